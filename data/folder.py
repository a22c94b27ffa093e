"""Videos of your own, converted by `preprocessing/folder/convert.py`."""

from pathlib import Path

from data.clips import Clips, FirstFrames
from data.video import find_videos
from files import UserError


def find_converted(data_dir, fold, nc):
    """Converted videos of a fold ('train', 'val' or 'test') with nc channels: list of Video."""
    folder = Path(data_dir) / fold
    videos = list(find_videos(folder).values())
    if not videos:
        raise UserError(f'--data_dir {data_dir}: no videos as {folder}/<name>.npy were found; '
                        'make them with: python preprocessing/folder/convert.py '
                        f'--data_dir YOUR_VIDEOS --out_dir {data_dir}')
    for video in videos:
        channels = (*video.frame_shape, 1)[2]
        if channels != nc:
            gray = 'with' if nc == 1 else 'without'
            raise UserError(f'{video.path} was converted for --nc {channels}; use that, or convert '
                            f'again {gray} --gray')
    return videos


def load_folds(config):
    """Training and validation sources: clips of the videos in `train` and `val`."""
    return [Clips(find_converted(config.data_dir, fold, config.nc), config.nx, config.nc, nt)
            for fold, nt in (('train', config.seq_len), ('val', config.seq_len_test))]


def load_test(config, data_dir, nt):
    """Test set: the first `nt` frames of each test video."""
    videos = find_converted(data_dir, 'test', config.nc)
    return FirstFrames(videos, config.nx, config.nc, nt, Path(data_dir) / 'test')
