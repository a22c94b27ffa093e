"""Any videos of the user's own, converted by `preprocessing/folder/convert.py`."""

from pathlib import Path

from data.clips import Clips, FirstFrames
from data.video import find_videos
from files import UserError


def find_converted(data_dir, fold, nc):
    """Converted videos, of nc channels, of a fold ('train', 'val' or 'test'), by name: list of Video."""
    folder = Path(data_dir) / fold
    found = find_videos(folder)
    if not found:
        raise UserError(f'--data_dir {data_dir}: no videos as {folder}/<name>.npy were found; make them with: '
                        f'python preprocessing/folder/convert.py --data_dir YOUR_VIDEOS --out_dir {data_dir}')
    for video in found.values():
        if (channels := (*video.frame_shape, 1)[2]) != nc:
            raise UserError(f'{video.path} has {channels} channels; give --nc {channels}, or convert again with{"out" * (nc == 3)} --gray')
    return [found[name] for name in sorted(found)]


def load_folds(config):
    """Training and validation sources: clips of the videos in `train` and `val`."""
    return [Clips(find_converted(config.data_dir, fold, config.nc), config.nx, config.nc, nt)
            for fold, nt in (('train', config.seq_len), ('val', config.seq_len_test))]


def load_test(config, data_dir, nt):
    """Test set: the first `nt` frames of each test video."""
    return FirstFrames(find_converted(data_dir, 'test', config.nc), config.nx, config.nc, nt, Path(data_dir) / 'test')
