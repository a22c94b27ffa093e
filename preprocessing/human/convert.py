"""Convert Human3.6M: `python preprocessing/human/convert.py --data_dir DIR`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from files import run_script

import numpy as np
from PIL import Image

from preprocessing.common import Unreadable, dataset_parser, decode, find_files, run_jobs
from preprocessing.folder.frames import pictures

SUBJECTS = {'train': (1, 5, 6, 7, 8), 'test': (9, 11)}
BOX = (100, 100, 900, 900)  # left, upper, right, lower, in frames of 1000 x 1000


def read_any(path, size, n_frames, notes):
    """All frames of a video or a folder of pictures, cropped and resized: uint8 (size, size, 3)."""
    if path.is_dir():
        images = (image for *_, image in pictures(path))
    else:
        images = (Image.fromarray(frame.to_ndarray(format='rgb24'))
                  for *_, (frame, _) in decode(path, notes))
    for image in images:
        if min(image.size) < BOX[2]:
            raise Unreadable('frames of 1000 x 1000 are expected, found '
                             f'{image.width} x {image.height}')
        # In two steps as published: `resize(box=…)` differs
        yield np.asarray(image.crop(BOX).resize((size, size), Image.Resampling.LANCZOS))


def get_parser():
    return dataset_parser('Convert the videos DIR/S<id>/Videos/*.mp4 of Human3.6M to DIR/train '
                          'and DIR/test.', '--image_size')


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = Path(args.data_dir)
    advice = ('register at http://vision.imar.ro/human3.6m/description.php and extract the videos '
              f'(.tgz) of subjects 1, 5, 6, 7, 8, 9 and 11 in {folder}')
    sources = {}
    for fold, subjects in SUBJECTS.items():
        for subject in subjects:
            for source in find_files(folder / f'S{subject}' / 'Videos', '*.mp4', advice):
                sources[folder / fold / f'S{subject}-{source.stem}.npy'] = source
    return run_jobs(sources, lambda source, notes: read_any(source, args.image_size, None, notes),
                    args.overwrite)


if __name__ == '__main__':
    run_script(main)
