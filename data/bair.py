"""BAIR robot pushing: colour videos of a robot arm, 30 frames each (paper, section 4)."""

from pathlib import Path

from data.clips import FirstFrames, convert_again, fold_clips
from data.video import find_videos
from files import UserError


def convert_command(data_dir, nx=64):
    """Command that converts the dataset, to its only size."""
    return f'python preprocessing/bair/convert.py --data_dir {data_dir}'


def find_converted(data_dir, fold):
    """Converted videos of a fold ('train' or 'test'), by record file and number: list of Video."""
    folder = Path(data_dir) / 'processed_data' / fold
    records = sorted(p for p in folder.glob('[!.]*') if p.is_dir())
    videos = [video for record in records for video in find_videos(record).values()]
    if not videos:
        raise UserError(f'--data_dir {data_dir}: no videos as {folder}/<record>/001.npy (or '
                        'folders of PNG frames) were found; make them with: '
                        f'{convert_command(data_dir)}')
    return videos


def load_folds(config):
    """Training and validation sources: clips of two folds of the training videos."""
    videos = find_converted(config.data_dir, 'train')
    return fold_clips(videos, config, convert_again(convert_command(config.data_dir)))


def load_test(config, data_dir, nt):
    """Test set: the first `nt` frames of each test video."""
    folder = Path(data_dir) / 'processed_data' / 'test'
    return FirstFrames(find_converted(data_dir, 'test'), config.nx, config.nc, nt, folder,
                       advice=convert_again(convert_command(data_dir)))
