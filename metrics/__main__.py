"""Score predictions of any method on the published test sets, or on that of a run.

`python -m metrics --preset kth --data_dir DIR A.npz B.npz`
"""

import contextlib

import numpy as np
import torch

import metrics.fvd
from args import (
    METRICS,
    NX,
    add_i3d_options,
    check_frames,
    fill_from_config,
    load_config,
    preset_config,
)
from files import UserError, make_folder, progress_bar, run_script, write_json, write_npz
from metrics.scoring import FixedFutures, Scorer, concatenate
from metrics.summary import finite, score_lines, summarise, summary
from metrics.videos import read_videos
from parsing import Parser, add_device_option, positive_int
from pictures import charts
from published import PUBLISHED
from results import lock_results, replacing_results
from utils import describe, get_device, to_video

RESULTS = ['results.json', 'results.npz', 'curves.png']


def get_parser():
    parser = Parser(
        'Score predictions of any method on a published test set, or on that of a run, such as one '
        'on your own videos, as test.py scores its own. Each '
        'FILE holds one prediction of every video, in the order of the test set: uint8 '
        '(N, T, H, W, C), the T frames after the conditioning frames, as an .npy file, or as an '
        '.npz file of one array or one named samples, such as random_1.npz of test.py. Of several '
        'files, the best counts for each video and metric. '
        'Example: python -m metrics --preset kth --data_dir DATA A.npz B.npz',
        prog='python -m metrics')
    parser.add_argument('files', nargs='+', metavar='FILE',
                        help='predictions of all videos; put -- first if --metrics comes last')
    test_set = parser.add_mutually_exclusive_group(required=True)
    test_set.add_argument('--preset', choices=list(PUBLISHED),
                          help='published configuration: its test set and conditioning frames')
    test_set.add_argument('--xp_dir', metavar='RUN',
                          help='folder of a run: those of its config.json; no model is needed')
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    parser.add_argument('--nx', type=positive_int,
                        help='width and height of frames; default: as in --xp_dir, or 64, of which '
                             'published scores are')
    published = ', '.join(f'{paper.nt_gen} ({preset})' for preset, paper in PUBLISHED.items())
    parser.add_argument('--nt_gen', type=positive_int,
                        help='number of frames, conditioning frames included; '
                             f'default: as published, {published}, or as trained '
                             '(seq_len_test)')
    add_score_options(parser)
    add_device_option(parser)
    return parser


def add_score_options(parser):
    parser.add_argument('--metrics', nargs='+', choices=METRICS, default=METRICS,
                        help='scores to compute')
    parser.add_argument('--lpips_dir', help="folder with torchvision's AlexNet, as for test.py")
    parser.add_argument('--n_videos', type=positive_int,
                        help='score only the first videos of the test set; '
                             'files may hold just these')
    parser.add_argument('--batch_size', type=positive_int, default=16,
                        help='videos at a time; does not change the scores')
    parser.add_argument('--fvd', action='store_true',
                        help='also compute the Fréchet video distance, the mean over FILEs, of the '
                             'predictions after the true conditioning frames')
    add_i3d_options(parser)
    parser.add_argument('--out', metavar='FOLDER',
                        help='folder for the results, which replace earlier ones: results.json, '
                             'results.npz and curves.png, as those of test.py')


def resolve(argv=None):
    """Checked options, and the configuration of the preset or the run."""
    args = get_parser().parse_args(argv)
    if args.preset:
        config = preset_config(args.preset)
        config.nx = args.nx or NX
        check_frames(config)
        args.nt_cond, args.nt_gen = config.nt_cond, args.nt_gen or PUBLISHED[args.preset].nt_gen
        if args.nt_gen <= args.nt_cond:
            raise UserError(f'--nt_gen {args.nt_gen} leaves no frame to predict after the '
                            f'{args.nt_cond} conditioning frames of {args.preset}; '
                            'use a larger --nt_gen')
    else:
        config, args.nt_cond = load_config(args.xp_dir), None
        if args.nx not in (None, config.nx):
            raise UserError(f'--nx {args.nx}: {args.xp_dir} has frames of {config.nx} pixels; '
                            'leave the option out')
        fill_from_config(args, config)
    if not args.fvd and (args.i3d_path or args.i3d_other or args.fvd_backend != 'torch'):
        raise UserError('--i3d_path, --i3d_other and --fvd_backend need --fvd')
    if args.out and args.out.endswith('.json'):
        raise UserError(f'--out {args.out}: results are a folder now; name one')
    return args, config


def check_shape(path, shape, scorer):
    """Raise a UserError unless a file has predictions of all videos, or of those to score."""
    args, config, size = scorer.args, scorer.config, len(scorer.testset)
    expected = args.nt_gen - args.nt_cond, config.nx, config.nx, config.nc
    if shape[1:] != expected:
        raise UserError(f'{path} has videos (T, H, W, C) of {shape[1:]}, expected {expected}: '
                        f'{args.preset or args.xp_dir} has {args.nt_cond} conditioning frames of '
                        f'--nt_gen {args.nt_gen}; give predicted frames only, or the right '
                        '--nt_gen and --nx')
    if shape[0] not in (scorer.n_videos, size):
        hint = f' (--n_videos: {scorer.n_videos})' if scorer.n_videos < size else ''
        raise UserError(f'{path} has {shape[0]} videos, but the test set has {size}{hint}; give '
                        'one prediction per video, or --n_videos if the file has the first ones')


def score(path, scorer, embed, on_sample):
    """Scores by name of the predictions in a file, and their features for the FVD (N, 400)."""
    predictions, nt_cond = read_videos(path), scorer.args.nt_cond
    scores, features = [], []
    for indices in scorer.batches():
        batch = np.array(predictions[indices.start:indices.stop]).swapaxes(0, 1)
        x = to_video(torch.from_numpy(batch), scorer.device)
        truth, found, _ = scorer.score(indices, lambda _, given, x=x: FixedFutures(given, [x]))
        scores.append(found)
        if embed is not None:
            features.append(metrics.fvd.embed_continued(embed, truth[:nt_cond], batch))
        on_sample(len(indices))
    return concatenate(scores), np.concatenate(features) if features else None


def true_features(scorer, embed, on_sample):
    """Features (N, 400) of the test set."""
    features = []
    for indices in scorer.batches():
        truth = scorer.testset.videos(indices)
        features.append(metrics.fvd.compute_features(embed, truth.swapaxes(0, 1)))
        on_sample(len(indices))
    return np.concatenate(features)


def score_all(paths, scorer, embed):
    """Scores by name of the best of several files, and their Fréchet video distances (list)."""
    n_passes = len(paths) + (embed is not None)
    with progress_bar(total=n_passes * scorer.n_videos, unit='video') as bar:
        # One file in memory at a time
        every, features = zip(*(score(path, scorer, embed, bar.update) for path in paths))
        true = true_features(scorer, embed, bar.update) if embed is not None else None
    distances = [metrics.fvd.frechet_distance(true, f) for f in features if f is not None]
    best = {}
    for name, metric in scorer.metrics.items():
        i = (np.argmax if metric.higher_is_better else np.argmin)([s[name] for s in every], 0)
        for key in (name, f'{name}_t'):
            best[key] = np.stack([s[key] for s in every])[i, range(scorer.n_videos)]
    return best, distances


def get_protocol(args, config, scorer, embed):
    """What the scores depend on, as saved with them."""
    protocol = scorer.protocol(len(args.files)) | {'precision': 'float32'}
    if embed is not None:
        protocol['fvd'] = metrics.fvd.facts(args, config, scorer.n_videos, len(args.files), embed)
    return protocol


def main(argv=None):
    args, config = resolve(argv)
    scorer = Scorer(args, config, get_device(args.device))
    for path in args.files:  # all of them, before the work starts
        check_shape(path, read_videos(path).shape, scorer)
    embed = None
    if args.fvd:
        metrics.fvd.check_sizes(scorer.n_videos, args.nt_gen,
                                'the test set (--n_videos, --nt_gen)')
        embed = metrics.fvd.build_embedding(args.i3d_path, args.fvd_backend, scorer.device,
                                            args.i3d_other)
    with contextlib.ExitStack() as stack:
        if args.out:
            out = make_folder(args.out, '--out')
            stack.enter_context(lock_results(out))
            folder = stack.enter_context(replacing_results(out, RESULTS, 'results.json'))
        what = args.files[0] if len(args.files) == 1 else f'the best of {len(args.files)} files'
        scorer.announce(f'scoring {what} on {describe(scorer.device)}')
        scores, distances = score_all(args.files, scorer, embed)
        table, protocol = summary(scores), get_protocol(args, config, scorer, embed)
        if embed is not None:
            embed.close()
            table['fvd'] = summarise(np.array(distances))
        print('\n'.join(score_lines(table, protocol)))
        if args.out:
            write_npz(folder / 'results.npz', **scores)
            charts.score_curves(folder / 'curves.png', {'': scores}, args.nt_cond)
            write_json(folder / 'results.json', {
                'scores': finite(table), 'protocol': protocol, 'data_dir': args.data_dir,
                'predictions': args.files})
    if args.out:
        print(f'results in {args.out}: {", ".join(RESULTS)}')


if __name__ == '__main__':
    run_script(main)
