"""Convert Human3.6M: `python preprocessing/human/convert.py --data_dir DIR`.

DIR holds S1/Videos/*.mp4 etc.
"""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from files import UserError, cores, run_script, write_npz
from preprocessing.convert import (
    Job,
    add_check_option,
    add_layout_option,
    add_size_option,
    check_converted,
    dataset_parser,
    resized,
    run_jobs,
    write_array,
)
from preprocessing.decoding import Unreadable, decode, probe

SUBJECTS = {'train': (1, 5, 6, 7, 8), 'test': (9, 11)}
BOX = (100, 100, 900, 900)  # left, upper, right, lower, in frames of 1000 x 1000


def check_size(width, height):
    """Raise `Unreadable` unless frames of a size hold the box."""
    if min(width, height) < BOX[2]:
        raise Unreadable(f'frames of 1000 x 1000 are expected, found {width} x {height}')


def cut(frame, image_size):
    """Crop and resize a frame: uint8 (image_size, image_size, 3)."""
    H, W, _ = frame.shape
    check_size(W, H)
    return resized(frame, image_size, BOX)


def read(source, image_size, *options):
    """Frames of a video, cropped and resized: uint8 (T, image_size, image_size, 3).

    ffmpeg crops; it would resize to other values than Pillow, which was published.
    """
    content = probe(source)
    check_size(content.width, content.height)
    left, upper, right, lower = BOX
    W, H = right - left, lower - upper
    return decode(source, (H, W, 3), '-vf', f'crop={W}:{H}:{left}:{upper}', *options,
                  transform=functools.partial(resized, size=image_size, box=(0, 0, W, H)))


def write_published(target, frames, filename, subject):
    write_npz(target, image=frames, filename=np.array(filename), subject=np.array(subject))


def get_parser():
    parser = dataset_parser('Convert the videos DIR/S<id>/Videos/*.mp4 of Human3.6M to DIR/train '
                            'and DIR/test.')
    add_size_option(parser)
    add_layout_option(parser, 'one .npz')
    add_check_option(parser)
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = Path(args.data_dir)
    if args.check:
        return check_converted(folder)
    reader = functools.partial(read, image_size=args.image_size)
    jobs = []
    for fold, subject in ((fold, s) for fold, subjects in SUBJECTS.items() for s in subjects):
        sources = sorted((folder / f'S{subject}' / 'Videos').glob('[!_]*.mp4'))
        if not sources:
            raise UserError(
                f'{folder}/S{subject}/Videos has no .mp4 file; register at '
                'http://vision.imar.ro/human3.6m/description.php and extract the videos (.tgz) '
                f'of subjects 1, 5, 6, 7, 8, 9 and 11 in {folder}')
        for source in sources:
            suffix, writer = '.npy', write_array
            if args.layout == 'published':
                suffix = '.npz'
                writer = functools.partial(write_published, filename=source.name, subject=subject)
            target = folder / fold / f'S{subject}-{source.stem}{suffix}'
            jobs.append(Job(source, target, reader, writer))
    # Threads suffice: ffmpeg and Pillow do not hold the interpreter lock
    return run_jobs(jobs, ThreadPoolExecutor(cores()), {'image_size': args.image_size})


if __name__ == '__main__':
    run_script(main)
