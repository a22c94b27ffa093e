"""Convert Human3.6M: `python preprocessing/human/convert.py --data_dir DIR`; DIR holds S1/Videos/*.mp4 and so on."""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # called by its path, as published

from parsing import Parser, positive_int
from files import UserError, cores, run_script, write_npz
from preprocessing.convert import Job, Unreadable, decode, resized, run_jobs, write_array

SUBJECTS = {'train': (1, 5, 6, 7, 8), 'test': (9, 11)}
BOX = (100, 100, 900, 900)  # left, upper, right, lower, in frames of 1000 x 1000


def cut(frame, image_size):
    """A frame, cut and resized: uint8 (image_size, image_size, 3)."""
    if min(frame.shape[:2]) < BOX[2]:
        raise Unreadable(f'frames of 1000 x 1000 are expected, found {frame.shape[1]} x {frame.shape[0]}')
    return resized(frame, image_size, BOX)


def read(source, image_size):
    """Frames of a video, cut and resized: uint8 (T, image_size, image_size, 3)."""
    return decode(source, transform=functools.partial(cut, image_size=image_size))


def write_published(target, frames, filename, subject):
    write_npz(target, image=frames, filename=np.array(filename), subject=np.array(subject))


def get_parser():
    parser = Parser('Convert the videos DIR/S<id>/Videos/*.mp4 of Human3.6M to DIR/train and DIR/test.')
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    parser.add_argument('--image_size', type=positive_int, default=64, help='width and height of frames')
    parser.add_argument('--layout', choices=['array', 'published'], default='array', help='one .npy a video, or, as published, one .npz')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = Path(args.data_dir)
    jobs = []
    for fold, subjects in SUBJECTS.items():
        for subject in subjects:
            sources = sorted(p for p in (folder / f'S{subject}' / 'Videos').glob('*.mp4') if not p.name.startswith('_'))
            if not sources:
                raise UserError(f'{folder}/S{subject}/Videos has no .mp4 file; register at http://vision.imar.ro/human3.6m/description.php and '
                                f'extract the videos (.tgz) of subjects 1, 5, 6, 7, 8, 9 and 11 in {folder}')
            for source in sources:
                target = folder / fold / f'S{subject}-{source.stem}{".npy" if args.layout == "array" else ".npz"}'
                write = write_array if args.layout == 'array' else functools.partial(write_published, filename=source.name, subject=subject)
                jobs.append(Job(source, target, functools.partial(read, image_size=args.image_size), write))
    return run_jobs(jobs, ThreadPoolExecutor(cores()), {'image_size': args.image_size})  # ffmpeg and Pillow work outside of Python's lock


if __name__ == '__main__':
    run_script(main)
