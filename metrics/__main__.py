"""Score predictions of any method as `test.py` scores its own: see --help."""

import sys
from pathlib import Path

if __package__ in (None, ''):  # run by path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from files import Parser, UserError, positive_int, progress_bar, run_script

import numpy as np
import torch

from args import PUBLISHED, add_device_option, fill_from_config, load_config, preset_config
from data.stream import chunks
from evaluation.futures import score_futures
from evaluation.results import check_earlier, write_results
from evaluation.scoring import (add_score_options, get_protocol, load_test_set, note_differences,
                                score_lines, summarise, summary)
from metrics import build_metrics, fvd
from utils import describe, get_device, to_video


def get_parser():
    parser = Parser(
        'Score predictions of any method on a published test set, or on that of a run, as test.py '
        'scores its own. Each FILE holds one prediction of every video, in the order of the test '
        'set: uint8 (N, T, H, W, C), the T frames after the conditioning frames, as an .npy file, '
        'or as an .npz file of one array or one named samples, such as random_1.npz of test.py. '
        'Of several files, the best counts for each video and metric.', prog='python -m metrics')
    parser.add_argument('files', nargs='+', metavar='FILE',
                        help='predictions of all videos; put -- first if --metrics comes last')
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('--preset', choices=list(PUBLISHED),
                       help='published configuration: its test set and lengths')
    which.add_argument('--xp_dir', metavar='RUN',
                       help='folder of a run: those of its config.json; no model is needed')
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    parser.add_argument('--nx', type=positive_int,
                        help='width and height of frames; default: as in --xp_dir, or 64')
    add_score_options(parser, lengths='as published, or as trained')
    parser.add_argument('--out_dir', help='folder for results.json, results.npz and curves.png')
    add_device_option(parser)
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    config = preset_config(args.preset) if args.preset else load_config(args.xp_dir)
    config.nx = args.nx or config.nx
    if args.preset:
        args.nt_gen = args.nt_gen or PUBLISHED[args.preset]['nt_gen']
        config.nt_inf = 1  # of other methods, nothing is known
    fill_from_config(args, config)
    device = get_device(args.device)
    testset, n_videos = load_test_set(args, config)
    expected = args.nt_gen - args.nt_cond, config.nx, config.nx, config.nc
    for path in args.files:  # all of them, before the work starts
        shape = fvd.read_videos(path).shape
        if shape[1:] != expected or shape[0] not in (n_videos, len(testset)):
            raise UserError(f'{path} has videos (N, T, H, W, C) of {shape}, expected '
                            f'{(n_videos, *expected)}: --nt_gen {args.nt_gen} counts '
                            f'{args.nt_cond} conditioning frames (--nt_cond), which files do not '
                            'hold; give one prediction per video')
    build = build_metrics(args.metrics, args.lpips_dir, device)
    protocol = get_protocol(args, config, testset, n_videos, len(args.files))
    embed = None
    if args.fvd:
        fvd.check_sizes(n_videos, args.nt_gen, 'the test set (--n_videos, --nt_gen)')
        embed = fvd.build_embedding(args.i3d_path, device)
        protocol['fvd'] = {'samples': len(args.files), 'weights_sha256': embed.sha256,
                           'note': embed.note}
    if args.out_dir:
        Path(args.out_dir).mkdir(parents=True, exist_ok=True)
        check_earlier(Path(args.out_dir), protocol, args.overwrite)
    print(f'scoring {len(args.files)} predictions of {n_videos:,} videos on {describe(device)}; '
          f'test set: {testset.path}', flush=True)
    note_differences(protocol)

    scored, distances, batches = [], [], chunks(range(n_videos), args.batch_size)
    with progress_bar(total=len(args.files) * n_videos, unit='video') as bar:
        for path in args.files:  # one in memory at a time
            videos, found, features = fvd.read_videos(path), [], []
            for indices in batches:
                truth = testset.videos(indices)  # uint8 (nt_gen, B, H, W, C)
                predicted = np.array(videos[indices.start:indices.stop]).swapaxes(0, 1)
                x, x_ = (to_video(torch.from_numpy(v), device) for v in (truth, predicted))
                scores, _ = score_futures([x_], x[args.nt_cond:], build, n_random=0)
                found.append({name: score.cpu().numpy() for name, score in scores.items()})
                if embed is not None:
                    features.append([embed(truth.swapaxes(0, 1)), fvd.embed_continued(
                        embed, truth[:args.nt_cond], predicted)])
                bar.update(len(indices))
            scored.append({name: np.concatenate([f[name] for f in found]) for name in found[0]})
            if features:
                distances.append(fvd.frechet_distance(*map(np.concatenate, zip(*features))))

    best = {}
    for name, metric in build.items():
        means = np.stack([scores[f'{name}_t'].mean(1) for scores in scored])  # infinite ones count
        k = means.argmax(0) if metric.higher_is_better else means.argmin(0)
        for key in (name, f'{name}_t'):
            best[key] = np.stack([scores[key] for scores in scored])[k, np.arange(n_videos)]
    table = summary(best)
    if distances:
        table['fvd'] = summarise(np.array(distances))
    print('\n'.join(score_lines(table, protocol)))
    if args.out_dir:
        write_results(Path(args.out_dir), table, protocol, best, args.nt_cond,
                      data_dir=args.data_dir, predictions=args.files)


if __name__ == '__main__':
    run_script(main)
