"""Fréchet video distance of two files: `python -m metrics.fvd A.npz B.npz`."""

from args import add_i3d_options
from files import count, run_script
from metrics.fvd import EMBEDDING, build_embedding, check_sets, fvd
from metrics.videos import read_videos
from parsing import Parser, add_device_option, positive_int
from utils import describe, get_device


def get_parser():
    parser = Parser(
        'Fréchet video distance of two sets of videos: .npy or .npz files of uint8 '
        '(N, T, H, W, C) or (N, T, H, W), such as those of test.py. An .npz file holds one array, '
        'or one named samples. Published scores include the conditioning frames: put them before '
        'the predicted ones, or use test.py --fvd.', prog='python -m metrics.fvd')
    parser.add_argument('files', nargs=2, metavar='FILE', help='one set of videos each')
    add_i3d_options(parser)
    parser.add_argument('--batch_size', type=positive_int, default=16,
                        help='videos read at a time')
    add_device_option(parser)
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    x, y = map(read_videos, args.files)
    check_sets(x, y)  # before the network is built, or converted
    device = get_device(args.device)
    embed = build_embedding(args.i3d_path, args.fvd_backend, device)
    try:
        value = fvd(x, y, embed, args.batch_size, progress=True)
    finally:
        embed.close()
    for path, videos in zip(args.files, (x, y)):
        n, t, h, w, c = videos.shape
        print(f'{path}: {n} videos of {t} frames, {h} x {w}, {count(c, "channel")}')
    backend = 'TensorFlow' if args.fvd_backend == 'tfhub' else f'PyTorch on {describe(device)}'
    print(f'embedding: {EMBEDDING}, {backend}\nSHA-256 of the weights: {embed.sha256}')
    print(f'FVD {value:.2f}')


if __name__ == '__main__':
    run_script(main)
