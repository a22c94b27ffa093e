"""KTH Actions: grey videos of six actions by 25 persons (paper, section 4)."""

import re
from pathlib import Path

import numpy as np

from data.clips import Sequences, convert_again, fold_clips, shortest_set
from data.video import find_videos
from files import UserError, npz_header, read_npz, reading

CLASSES = ['boxing', 'handclapping', 'handwaving', 'jogging', 'running', 'walking']
TRAIN_PERSONS, TEST_PERSONS = range(1, 21), range(21, 26)
NAME = re.compile(r'person(\d\d)_[a-z]+_d\d')


def convert_command(data_dir, nx):
    """Command that converts the dataset to frames of nx x nx."""
    return f'python preprocessing/kth/convert.py --data_dir {data_dir} --image_size {nx}'


def test_set_name(nt, nx):
    """File name of a test set of `nt` frames; the published ones do not name their size."""
    return f'svg_test_set_{nt}.npz' if nx == 64 else f'svg_test_set_{nt}_{nx}.npz'


def find_converted(data_dir, nx, persons):
    """Converted videos of some persons, by class in the order of `CLASSES`, then by name."""
    folder = Path(data_dir) / f'processed_{nx}'
    videos = [video for c in CLASSES for name, video in find_videos(folder / c).items()
              if (m := NAME.fullmatch(name)) and int(m[1]) in persons]
    if not videos:
        raise UserError(f'--data_dir {data_dir}: no videos as {folder}/boxing/person01_boxing_d1'
                        '.npy (or folders of PNG frames) were found; make them with: '
                        f'{convert_command(data_dir, nx)}')
    return videos


def load_folds(config):
    """Training and validation sources: clips of two folds of the training persons' videos."""
    videos = find_converted(config.data_dir, config.nx, TRAIN_PERSONS)
    return fold_clips(videos, config, convert_again(convert_command(config.data_dir, config.nx)))


def load_test(config, data_dir, nt):
    """Test set, first `nt` frames: the shortest sufficient one (see `test_set_name`)."""
    command = (f'python preprocessing/kth/make_test_set.py --data_dir {data_dir} '
               f'--seq_len {max(nt, 40)} --image_size {config.nx}')
    name = test_set_name('<frames>', config.nx)
    path, length = shortest_set(Path(data_dir), name, nt, command)
    complaint = 'is not a test set of KTH', f'make it again with: {command}'
    with reading(path, *complaint):
        shape, dtype = npz_header(path, 'sequences')  # (N, T, H, W)
    if dtype != np.uint8 or len(shape) != 4 or not shape[0] or shape[1] < nt \
            or shape[2:] != (config.nx, config.nx):
        raise UserError(f'{path}: sequences must be uint8 (N, {length}, {config.nx}, {config.nx}), '
                        f'found {dtype} {shape}; make it again with: {command}')

    def read():
        with reading(path, *complaint):
            return read_npz(path, 'sequences')['sequences'][:, :nt].swapaxes(0, 1)
    return Sequences(path, shape[0], read)
