"""Convert KTH: `python preprocessing/kth/convert.py --data_dir DIR`, after `download.sh`."""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # called by its path, as published

from parsing import Parser, positive_int
from data.kth import CLASSES
from files import UserError, cores, run_script
from preprocessing.convert import Job, decode, run_jobs, write_array, write_pngs


FRAME_RATE = 25  # frames a second
MOST = 20_000  # frames: 13 minutes, far more than any video of KTH has


def read(source, image_size, frame_rate, *options):
    """Frames of a video at the frame rate and size, resized by ffmpeg's default scaler: uint8 (T, image_size, image_size, 3)."""
    return decode(source, '-r', str(frame_rate), '-s', f'{image_size}x{image_size}', *options, most=MOST)


def write(target, frames):
    """The loader uses the first channel only: only that is kept."""
    write_array(target, frames[..., 0])


def write_published(target, frames):
    write_pngs(target, frames, lambda i: f'image-{i + 1:03d}.png')


def get_parser():
    parser = Parser('Convert the videos DIR/raw/<class>/*.avi to DIR/processed_<image_size>/<class>/.')
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    parser.add_argument('--image_size', type=positive_int, default=64, help='width and height of frames')
    parser.add_argument('--frame_rate', type=positive_int, default=FRAME_RATE, help='frames a second')
    parser.add_argument('--layout', choices=['array', 'published'], default='array',
                        help='one .npy a video, or, as published, a folder of PNG frames a video')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = Path(args.data_dir)
    target = folder / f'processed_{args.image_size}'
    suffix, writer = ('.npy', write) if args.layout == 'array' else ('', write_published)
    jobs = []
    for name in CLASSES:
        sources = sorted((folder / 'raw' / name).glob('*.avi'))
        if not sources:
            raise UserError(f'{folder}/raw/{name} has no videos as person01_{name}_d1_uncomp.avi; get them with: '
                            f'bash preprocessing/kth/download.sh {folder}')
        jobs += [Job(s, target / name / (s.stem.removesuffix('_uncomp') + suffix),
                     functools.partial(read, image_size=args.image_size, frame_rate=args.frame_rate), writer) for s in sources]
    return run_jobs(jobs, ThreadPoolExecutor(cores()), {'frame_rate': args.frame_rate})  # ffmpeg is the work, and a process of its own


if __name__ == '__main__':
    run_script(main)
