"""Fréchet video distance of two files: `python -m metrics.fvd A.npz B.npz`.

`python -m metrics.fvd --check` tells whether its weights are those of published distances.
"""

import argparse

from args import add_i3d_options
from files import UserError, count, run_script
from metrics.fvd import EMBEDDING, build_embedding, check, check_sets, fvd
from metrics.videos import read_videos
from parsing import Parser, add_device_option, positive_int
from utils import describe, get_device


class Files(argparse.Action):
    """Two files, or none."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) not in (0, 2):
            parser.error(f'found {count(len(values), "FILE")}; give two, one for each set')
        namespace.files = values


def get_parser():
    parser = Parser(
        'Fréchet video distance of two sets of videos: .npy or .npz files of uint8 '
        '(N, T, H, W, C) or (N, T, H, W), such as those of test.py. An .npz file holds one array, '
        'or one named samples. Published scores include the conditioning frames: put them before '
        'the predicted ones, or use test.py --fvd.', prog='python -m metrics.fvd')
    parser.add_argument('files', nargs='*', action=Files, metavar='FILE',
                        help='one set of videos each')
    parser.add_argument('--check', action='store_true',
                        help='instead of files, compute a public figure of the weights of '
                             'published distances, from random videos; the exit code is 1 if it '
                             'differs')
    add_i3d_options(parser)
    parser.add_argument('--batch_size', type=positive_int, default=16,
                        help='videos read at a time')
    add_device_option(parser)
    return parser


def resolve(argv=None):
    """Checked options."""
    args = get_parser().parse_args(argv)
    if args.check and args.files:
        raise UserError(f'--check takes no FILE, found {" and ".join(args.files)}; leave them out')
    if not args.check and not args.files:
        raise UserError('give two FILEs, one for each set of videos, or --check')
    return args


def main(argv=None):
    args = resolve(argv)
    sets = [read_videos(path) for path in args.files]
    if sets:
        check_sets(*sets)  # before the network is built, or converted
    device = get_device(args.device)
    embed = build_embedding(args.i3d_path, args.fvd_backend, device, args.i3d_other)
    try:
        value = (check.random_distance(embed, check.N_VIDEOS) if args.check else
                 fvd(*sets, embed, args.batch_size, progress=True))
    finally:
        embed.close()
    for path, videos in zip(args.files, sets):
        n, t, h, w, c = videos.shape
        print(f'{path}: {n} videos of {t} frames, {h} x {w}, {count(c, "channel")}')
    backend = 'TensorFlow' if args.fvd_backend == 'tfhub' else f'PyTorch on {describe(device)}'
    print(f'embedding: {EMBEDDING}, {backend}\nSHA-256 of the weights: {embed.sha256}')
    if args.check:
        return report(value)
    print(f'FVD {value:.2f}')
    if embed.note:
        print(f'note: {embed.note}')
    return 0


def report(value):
    """Print whether the distance of the random videos is the public one; returns the exit code."""
    difference = abs(value - check.REFERENCE) / check.REFERENCE
    is_equal = difference <= check.TOLERANCE
    print(f'FVD {value:.8f} between random videos; in TensorFlow with the weights of published '
          f'distances {check.REFERENCE:.8f}; relative difference {difference:.1e}\n'
          f'these are {"" if is_equal else "not "}the weights of published distances '
          f'(tolerance: {check.TOLERANCE:.0e})')
    return 0 if is_equal else 1


if __name__ == '__main__':
    run_script(main)
