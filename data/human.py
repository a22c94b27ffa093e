"""Human3.6M: colour videos of people in a studio (paper, section 4)."""

import re
from pathlib import Path

import numpy as np

from data.clips import check_videos, fold_clips, longer_set
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


class TestClips:
    """Test clips test_<i>.npz, with the frames between those that are used."""

    def __init__(self, folder, nx, nc, nt, subsampling):
        paths = [folder / f'test_{i}.npz' for i in range(len(list(folder.glob('test_*.npz'))))]
        for path in paths or [folder / 'test_0.npz']:
            if not path.exists():
                raise UserError(f'{path} is missing; remove {folder} and make the test set again')
        self.clips = [NpzVideo(path) for path in paths]
        self.nc, self.nt, self.step = nc, nt, subsampling
        check_videos(self.clips, nx, nc, (nt - 1) * subsampling + 1)

    def __len__(self):
        return len(self.clips)

    def videos(self, indices):
        """uint8 (nt, len(indices), H, W, nc)"""
        return np.stack([self.clips[i].clip(0, self.nt, self.step) for i in indices], 1)


def load_test(config, data_dir, nt):
    """Test set, first `nt` frames, of the shortest folder test_set_<frames>_<subsampling> that has them."""
    found = longer_set(Path(data_dir), re.compile(rf'test_set_(\d+)_{config.subsampling}'), nt)
    if found is None:
        raise UserError(f'--data_dir {data_dir}: there is no test_set_<frames>_{config.subsampling} of at least {nt} frames; make it '
                        f'with: python preprocessing/human/make_test_set.py --data_dir {data_dir} --seq_len {max(nt, 53)} '
                        f'--subsampling {config.subsampling}')
    return TestClips(found[1], config.nx, config.nc, nt, config.subsampling)
