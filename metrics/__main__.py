"""Score predictions of any method on the published test sets: `python -m metrics --preset kth --data_dir DIR A.npz B.npz`."""

import os
from pathlib import Path

import numpy as np
import torch

from args import METRICS, NT_GEN, PRESETS, note_lengths, preset_config
from parsing import Parser, add_device_option, positive_int
from data import load_test
from data.stream import chunks
from files import UserError, progress_bar, run_script, write_json
from metrics import build_metrics, lpips
from metrics.summary import finite, score_lines, summary
from metrics.videos import read_videos
from sampling import Best
from utils import describe, get_device, to_video


def get_parser():
    parser = Parser('Score predictions of any method on a published test set, as test.py scores its own. Each FILE holds one prediction of every video, in '
                    'the order of the test set: uint8 (N, T, H, W, C), of the T frames after the given ones, as a .npy, or as an .npz of one array or one '
                    'named samples, such as random_1.npz of test.py. Of several files the best counts, for each video and metric. Example: python -m '
                    'metrics --preset kth --data_dir DATA A.npz B.npz', prog='python -m metrics')
    parser.add_argument('files', nargs='+', metavar='FILE', help='predictions of all videos; where --metrics comes last, put -- before')
    parser.add_argument('--preset', choices=PRESETS, required=True, help='whose test set, and number of given frames')
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    parser.add_argument('--nt_gen', type=positive_int, help='frames, given ones included; if absent, those of the published scores: '
                                                     + ', '.join(f'{nt} of {preset}' for preset, nt in NT_GEN.items()))
    parser.add_argument('--metrics', nargs='+', choices=METRICS, default=METRICS, help='scores to compute')
    parser.add_argument('--lpips_dir', help="folder with torchvision's AlexNet, as of test.py")
    parser.add_argument('--n_videos', type=positive_int, help='score the first videos of the test set only; files may hold no more than these')
    parser.add_argument('--batch_size', type=positive_int, default=16, help='videos at a time; does not change the scores')
    parser.add_argument('--out', metavar='FILE.json', help='new file for scores and protocol')
    add_device_option(parser)
    return parser


def resolve(argv=None):
    """Options of the call and configuration of the preset, checked."""
    args = get_parser().parse_args(argv)
    config = preset_config(args.preset)
    args.nt_cond, args.nt_gen = config.nt_cond, args.nt_gen or NT_GEN[args.preset]
    if args.nt_gen <= args.nt_cond:
        raise UserError(f'--nt_gen {args.nt_gen} leaves no frame to predict after the {args.nt_cond} given ones of {args.preset}; give a larger --nt_gen')
    if args.out is not None:
        folder = Path(args.out).parent
        if os.path.lexists(args.out) or not args.out.endswith('.json'):
            raise UserError(f'--out {args.out} ' + ('exists already' if args.out.endswith('.json') else 'is no .json file') + '; name a new .json file')
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f'--out {args.out}: {folder} is not a folder that can be written to; name a file in another one')
    return args, config


def check_shape(path, shape, size, n_videos, args, config):
    """Stop unless a file's videos are those of the test set (of `size` videos), or of its first `n_videos`."""
    expected = args.nt_gen - args.nt_cond, config.nx, config.nx, config.nc
    if shape[1:] != expected:
        raise UserError(f'{path} has videos (T, H, W, C) of {shape[1:]}, but those of {args.preset} after the {args.nt_cond} given frames, with --nt_gen '
                        f'{args.nt_gen}, are of {expected}; give the predicted frames only, or the right --nt_gen')
    if shape[0] not in (n_videos, size):
        raise UserError(f'{path} has {shape[0]} videos, but the test set has {size}' + f', of which --n_videos asks for {n_videos}' * (n_videos < size)
                        + '; give one prediction of each, or --n_videos if they are of the first ones')


def score(path, testset, n_videos, scorers, args, device, bar):
    """Scores (N,) by metric of the videos of a file; one file at a time is in memory."""
    videos, scores = read_videos(path), {name: [] for name in scorers}
    for indices in chunks(range(n_videos), args.batch_size):
        target = to_video(torch.from_numpy(testset.videos(indices)[args.nt_cond:]), device)
        x = to_video(torch.from_numpy(np.array(videos[indices.start:indices.stop]).swapaxes(0, 1)), device)
        for name, metric in scorers.items():
            scores[name].append(metric(x, metric.prepare(target)))
        bar.update(len(indices))
    return {name: torch.cat(parts) for name, parts in scores.items()}


def main(argv=None):
    args, config = resolve(argv)
    device = get_device(args.device)
    testset = load_test(config, args.data_dir, args.nt_gen)
    n_videos = args.n_videos or len(testset)
    if n_videos > len(testset):
        raise UserError(f'--n_videos {n_videos}: the test set has {len(testset)}; give at most as many')
    for path in args.files:  # all of them, before long work
        check_shape(path, read_videos(path).shape, len(testset), n_videos, args, config)
    scorers = build_metrics(args.metrics, args.lpips_dir, device)

    what = f'the best of {len(args.files)} files' if len(args.files) > 1 else args.files[0]
    print(f'scoring {what} on {describe(device)}: {n_videos} videos of {config.dataset}, {args.nt_cond} frames given, {args.nt_gen - args.nt_cond} '
          f'predicted\ntest set: {testset.path}', flush=True)
    note_lengths(args, config)
    if 'lpips' in args.metrics:
        print(f'LPIPS: AlexNet, version {lpips.VERSION}')
    best = {name: Best(metric.higher_is_better) for name, metric in scorers.items()}
    with progress_bar(total=len(args.files) * n_videos, unit='video') as bar:
        for path in args.files:
            for name, found in score(path, testset, n_videos, scorers, args, device, bar).items():
                best[name].update(found, found[None])
    table = summary({name: b.score.cpu().numpy() for name, b in best.items()})
    print('\n'.join(score_lines(table)))
    if args.out is not None:
        protocol = {'dataset': config.dataset, 'test_set': testset.path.name, 'clips': n_videos, 'conditioning_frames': args.nt_cond,
                    'predicted_frames': args.nt_gen - args.nt_cond, 'samples': len(args.files),
                    'lpips_version': lpips.VERSION if 'lpips' in args.metrics else None}
        write_json(args.out, {'scores': finite(table), 'protocol': protocol, 'files': args.files})
        print(f'results in {args.out}')


if __name__ == '__main__':
    run_script(main)
