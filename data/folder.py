"""Videos of your own, converted by `preprocessing/folder/convert.py`."""

from pathlib import Path

from data.clips import Clips, FirstFrames, convert_again
from data.video import find_videos
from files import UserError


def convert_command(data_dir, nx):
    """Command that converts videos to frames of nx x nx."""
    return ('python preprocessing/folder/convert.py --data_dir YOUR_VIDEOS '
            f'--out_dir {data_dir} --image_size {nx}')


def find_converted(data_dir, fold, nc, nx=64):
    """Converted videos of a fold ('train', 'val' or 'test') with nc channels: list of Video."""
    folder = Path(data_dir) / fold
    videos = list(find_videos(folder).values())
    if not videos:
        raise UserError(f'--data_dir {data_dir}: no videos as {folder}/<name>.npy were found; '
                        f'make them with: {convert_command(data_dir, nx)}')
    for video in videos:
        channels = (*video.frame_shape, 1)[2]
        if channels != nc:
            gray = 'with' if nc == 1 else 'without'
            raise UserError(f'{video.path} was converted for --nc {channels}; use that, or convert '
                            f'again {gray} --gray')
    return videos


def load_folds(config):
    """Training and validation sources: clips of the videos in `train` and `val`."""
    again = convert_again(convert_command(config.data_dir, config.nx))
    return [Clips(find_converted(config.data_dir, fold, config.nc, config.nx), config.nx,
                  config.nc, nt, advice=again)
            for fold, nt in (('train', config.seq_len), ('val', config.seq_len_test))]


def load_test(config, data_dir, nt):
    """Test set: the first `nt` frames of each test video."""
    videos = find_converted(data_dir, 'test', config.nc, config.nx)
    return FirstFrames(videos, config.nx, config.nc, nt, Path(data_dir) / 'test',
                       advice=convert_again(convert_command(data_dir, config.nx)))
