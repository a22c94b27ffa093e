"""Fréchet video distance of two files: `python -m metrics.fvd A.npz B.npz`."""

from pathlib import Path

import numpy as np

from args import Parser, add_device_option, add_i3d_options, count
from files import UserError, run_script
from metrics.fvd import EMBEDDING, build_embedding, fvd
from utils import describe, get_device


def get_parser():
    parser = Parser('Fréchet video distance of two sets of videos: .npy or .npz files of uint8 (N, T, H, W, C) or (N, T, H, W), such as '
                    'those of test.py. An .npz file holds one array, or one named samples. The published scores count the given frames '
                    'too: put them before the predicted ones, or use test.py --fvd.')
    parser.add_argument('files', nargs=2, metavar='FILE', help='one set of videos each')
    add_i3d_options(parser)
    parser.add_argument('--batch_size', type=count, default=16, help='videos read at a time')
    add_device_option(parser)
    return parser


def read_videos(path):
    """Videos of a file, uint8 (N, T, H, W, C); those of .npy files stay on disk."""
    path = Path(path)
    try:
        if path.suffix == '.npy':
            videos = np.load(path, mmap_mode='r', allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as f:
                name = 'samples' if 'samples' in f.files else f.files[0]
                if name != 'samples' and len(f.files) > 1:
                    raise UserError(f'{path} holds {", ".join(f.files)}; expected one array, or one named samples')
                videos = f[name]
        videos.dtype, videos.shape  # an archive under the name of an array has neither
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f'{path} does not exist') from None
    except Exception as error:  # cut and foreign files: numpy and zipfile raise several kinds
        raise UserError(f'{path} is not a .npy or .npz file of an array, as its name says ({error})') from None
    if videos.dtype != np.uint8 or videos.ndim not in (4, 5) or (videos.ndim == 5 and videos.shape[-1] not in (1, 3)):
        raise UserError(f'{path} holds {videos.dtype} of shape {videos.shape}; expected uint8 (N, T, H, W) or (N, T, H, W, C), C 1 or 3')
    return videos if videos.ndim == 5 else videos[..., None]


def main(argv=None):
    args = get_parser().parse_args(argv)
    x, y = map(read_videos, args.files)
    device = get_device(args.device)
    embed = build_embedding(args.i3d_path, args.fvd_backend, device)
    try:
        value = fvd(x, y, embed, args.batch_size, progress=True)
    finally:
        embed.close()
    for path, videos in zip(args.files, (x, y)):
        n, t, h, w, c = videos.shape
        print(f'{path}: {n} videos of {t} frames, {h} x {w}, {c} channel{"s" if c > 1 else ""}')
    print(f'embedding: {EMBEDDING}, by {"TensorFlow" if args.fvd_backend == "tfhub" else f"PyTorch on {describe(device)}"}\n'
          f'SHA-256 of the weights: {embed.sha256}')
    print(f'FVD {value:.2f}')


if __name__ == '__main__':
    run_script(main)
