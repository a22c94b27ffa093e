"""Convert KTH: `python preprocessing/kth/convert.py --data_dir DIR`, after `download.sh`."""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from data.kth import CLASSES
from files import UserError, cores, run_script
from parsing import positive_int
from preprocessing.convert import (
    Job,
    add_check_option,
    add_layout_option,
    add_size_option,
    check_converted,
    dataset_parser,
    run_jobs,
    write_array,
    write_pngs,
)
from preprocessing.decoding import decode

FRAME_RATE = 25  # frames per second
MAX_FRAMES = 20_000  # 13 minutes, far more than any video of KTH


def read(source, image_size, frame_rate, *options):
    """Frames at a rate and size, resized by ffmpeg: uint8 (T, image_size, image_size, 3)."""
    return decode(source, (image_size, image_size, 3), '-r', str(frame_rate),
                  '-s', f'{image_size}x{image_size}', *options, max_frames=MAX_FRAMES)


def write(target, frames):
    """Write the first channel, the only one that is used."""
    write_array(target, frames[..., 0])


def write_published(target, frames):
    write_pngs(target, frames, lambda i: f'image-{i + 1:03d}.png')


def get_parser():
    parser = dataset_parser('Convert the videos DIR/raw/<class>/*.avi to '
                            'DIR/processed_<image_size>/<class>/.')
    add_size_option(parser)
    parser.add_argument('--frame_rate', type=positive_int, default=FRAME_RATE,
                        help='frames per second')
    add_layout_option(parser, 'a folder of PNG frames')
    add_check_option(parser)
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = Path(args.data_dir)
    if args.check:
        return check_converted(folder / f'processed_{args.image_size}')
    suffix, writer = ('.npy', write) if args.layout == 'array' else ('', write_published)
    reader = functools.partial(read, image_size=args.image_size, frame_rate=args.frame_rate)
    jobs = []
    for name in CLASSES:
        sources = sorted((folder / 'raw' / name).glob('*.avi'))
        if not sources:
            raise UserError(f'{folder}/raw/{name} has no videos as person01_{name}_d1_uncomp.avi; '
                            f'download them with: bash preprocessing/kth/download.sh {folder}')
        target = folder / f'processed_{args.image_size}' / name
        jobs += [Job(source, target / (source.stem.removesuffix('_uncomp') + suffix), reader,
                     writer) for source in sources]
    # Threads suffice: ffmpeg, in processes of its own, does the work
    return run_jobs(jobs, ThreadPoolExecutor(cores()), {'frame_rate': args.frame_rate})


if __name__ == '__main__':
    run_script(main)
