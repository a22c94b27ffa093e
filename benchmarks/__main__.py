"""Measure the speed that the code claims, as ratios in one run: see benchmarks/README.md."""

import platform
import tempfile
from pathlib import Path

from files import Parser, positive_int, run_script

import numpy as np
import torch
from PIL import Image

from benchmarks import evaluation, training

# Functions of a folder and --repeats, which yield rows of the table
PARTS = {'training': training.step_rows, 'roofline': training.roofline_rows,
         'evaluation': evaluation.rows, 'data': training.clip_rows}


def get_parser():
    parser = Parser(__doc__, prog='python -m benchmarks')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS),
                        help='what to measure')
    parser.add_argument('--repeats', type=positive_int, default=3,
                        help='alternating runs of both sides; medians are printed')
    return parser


def write_kth(folder):
    """Write videos in our layout to processed_64, in the published one to png/, and a test set.

    Their content, a smooth texture that moves, does not affect the speed of networks.
    """
    rng = np.random.RandomState(0)
    for person in range(1, 21):
        texture = Image.fromarray(rng.randint(256, size=(16, 16)).astype(np.uint8))
        texture = np.asarray(texture.resize((64, 64), Image.BICUBIC))
        video = np.stack([np.roll(texture, t, 1) for t in range(200)])  # (T, H, W)
        name = f'processed_64/boxing/person{person:02d}_boxing_d1'
        (folder / 'png' / name).mkdir(parents=True)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f'{name}.npy', video)
        for t, frame in enumerate(video):
            Image.fromarray(frame).save(folder / 'png' / name / f'image-{t + 1:03d}.png')
    np.savez(folder / 'svg_test_set_40.npz', sequences=np.stack([video[:40]] * evaluation.N))


def main(argv=None):
    args = get_parser().parse_args(argv)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f'{device}, {torch.get_num_threads()} threads, Python {platform.python_version()}, '
          f'torch {torch.__version__}\n\n| what | plain | here | ratio |\n|---|---|---|---|')
    with tempfile.TemporaryDirectory() as folder:
        write_kth(Path(folder))
        for part in args.parts:
            for what, plain, here, ratio in PARTS[part](Path(folder), args.repeats):
                print(f'| {what} | {plain} | {here} | {ratio} |', flush=True)


if __name__ == '__main__':
    run_script(main)
