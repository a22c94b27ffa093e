"""Human3.6M: colour videos of people in a studio (paper, section 4)."""

import re
from pathlib import Path

from data.clips import FirstFrames, fold_clips, shortest_set
from data.video import NpzVideo, find_videos
from files import UserError


def find_converted(data_dir, fold):
    """Converted videos of a fold ('train' or 'test'), by name, in text order of the published file names: dict of Video."""
    folder = Path(data_dir) / fold
    found = find_videos(folder)
    if not found:
        raise UserError(f'--data_dir {data_dir}: no videos as {folder}/S1-Walking.54138969.npy (or .npz) were found; '
                        f'make them with: python preprocessing/human/convert.py --data_dir {data_dir}')
    return {name: found[name] for name in sorted(found, key=lambda name: f'{name}.npz')}


def load_folds(config):
    """Training and validation sources: subsampled clips of the training subjects' videos, in two folds."""
    return fold_clips(list(find_converted(config.data_dir, 'train').values()), config, config.subsampling)


def load_test(config, data_dir, nt):
    """Test set, first `nt` frames, of the shortest folder test_set_<frames>_<subsampling> that has them, with those between, as test_<i>.npz."""
    found = shortest_set(Path(data_dir), re.compile(rf'test_set_(\d+)_{config.subsampling}'), nt)
    if found is None:
        raise UserError(f'--data_dir {data_dir}: there is no test_set_<frames>_{config.subsampling} of at least {nt} frames; make it '
                        f'with: python preprocessing/human/make_test_set.py --data_dir {data_dir} --seq_len {max(nt, 53)} '
                        f'--subsampling {config.subsampling}')
    folder = found[1]
    paths = [folder / f'test_{i}.npz' for i in range(len(list(folder.glob('test_*.npz'))))] or [folder / 'test_0.npz']
    if missing := [path for path in paths if not path.exists()]:
        raise UserError(f'{missing[0]} is missing; remove {folder} and make the test set again')
    return FirstFrames(list(map(NpzVideo, paths)), config.nx, config.nc, nt, folder, config.subsampling)
