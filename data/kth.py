"""KTH Actions: grey videos of six actions by 25 persons (paper, section 4)."""

import re
from pathlib import Path

from files import reading

import numpy as np

from data.clips import Dataset, Sequences, fold_clips, found, shortest_set
from data.video import find_videos

CLASSES = ['boxing', 'handclapping', 'handwaving', 'jogging', 'running', 'walking']
TRAIN_PERSONS, TEST_PERSONS = range(1, 21), range(21, 26)
NAME = re.compile(r'person(\d\d)_[a-z]+_d\d')


def test_set_name(nt, nx):
    """File name of a test set of `nt` frames; the published ones do not name their size."""
    return f'svg_test_set_{nt}.npz' if nx == 64 else f'svg_test_set_{nt}_{nx}.npz'


def find_converted(data_dir, nx, persons):
    """Converted videos of some persons, by class in the order of `CLASSES`, then by name."""
    folder = Path(data_dir) / f'processed_{nx}'
    videos = [video for c in CLASSES for name, video in find_videos(folder / c).items()
              if (m := NAME.fullmatch(name)) and int(m[1]) in persons]
    return found(videos, data_dir, f'{folder}/boxing/person01_boxing_d1.npy (or folders of PNG '
                 'frames)', 'kth')


def load_folds(config):
    """Training and validation sources: clips of two folds of the training persons' videos."""
    return fold_clips(find_converted(config.data_dir, config.nx, TRAIN_PERSONS), config)


def load_test(config, data_dir, nt):
    """Test set, first `nt` frames: the shortest sufficient one (see `test_set_name`)."""
    command = (f'python preprocessing/kth/make_test_set.py --data_dir {data_dir} '
               f'--seq_len {max(nt, 40)} --image_size {config.nx}')
    path = shortest_set(Path(data_dir), test_set_name('<frames>', config.nx), nt, command)
    with reading(path, 'is not a test set of KTH', f'make it again with: {command}'), \
            np.load(path, allow_pickle=False) as arrays:
        return Sequences(path, arrays['sequences'].swapaxes(0, 1), nt, config.nx)


DATASET = Dataset((1,), load_folds, load_test, videos='processed_{nx}')
