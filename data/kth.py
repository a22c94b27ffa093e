"""KTH actions: grey videos of six actions by 25 persons (paper, section 4)."""

import re
from pathlib import Path

import numpy as np

from data.clips import Sequences, fold_clips, shortest_set
from data.video import find_videos
from files import UserError, reading

CLASSES = ['boxing', 'handclapping', 'handwaving', 'jogging', 'running', 'walking']
TRAIN_PERSONS = range(1, 21)
NAME = re.compile(r'person(\d\d)_([a-z]+)_d(\d)')


def find_converted(data_dir, nx, persons):
    """Converted videos of some persons, by class in the order of `CLASSES`, then by name: list of Video."""
    folder = Path(data_dir) / f'processed_{nx}'
    videos = []
    for name in CLASSES:
        found = find_videos(folder / name)
        videos += [found[k] for k in sorted(found) if (m := NAME.fullmatch(k)) and int(m[1]) in persons]
    if not videos:
        raise UserError(f'--data_dir {data_dir}: no videos as {folder}/boxing/person01_boxing_d1.npy (or folders of PNG frames) were '
                        f'found; make them with: python preprocessing/kth/convert.py --data_dir {data_dir}')
    return videos


def load_folds(config):
    """Training and validation sources: clips of the training persons' videos, in two folds."""
    return fold_clips(find_converted(config.data_dir, config.nx, TRAIN_PERSONS), config)


def load_test(config, data_dir, nt):
    """Test set, first `nt` frames, of the shortest file svg_test_set_<frames>.npz that has them."""
    found = shortest_set(Path(data_dir), re.compile(r'svg_test_set_(\d+)\.npz'), nt)
    command = f'python preprocessing/kth/make_test_set.py --data_dir {data_dir} --seq_len {max(nt, 40)}'
    if found is None:
        raise UserError(f'--data_dir {data_dir}: there is no svg_test_set_<frames>.npz of at least {nt} frames; make it with: {command}')
    with reading(found[1], 'is not a test set of KTH', f'make it again with: {command}'), np.load(found[1], allow_pickle=False) as arrays:
        sequences = arrays['sequences']  # (N, T, H, W)
    if sequences.dtype != np.uint8 or sequences.ndim != 4 or not len(sequences) or sequences.shape[2:] != (config.nx, config.nx) \
            or sequences.shape[1] < nt:
        raise UserError(f'{found[1]}: sequences must be uint8 (N, {found[0]}, {config.nx}, {config.nx}), found {sequences.dtype} '
                        f'{sequences.shape}; make it again with: {command}')
    return Sequences(sequences[:, :nt].swapaxes(0, 1), found[1])
