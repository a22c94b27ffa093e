"""BAIR robot pushing: colour videos of 30 frames of a robot's arm (paper, section 4)."""

from pathlib import Path

from data.clips import FirstFrames, fold_clips
from data.video import find_videos
from files import UserError


def find_converted(data_dir, fold):
    """Converted videos of a fold ('train' or 'test'), by record file, then by number in it: list of Video."""
    folder = Path(data_dir) / 'processed_data' / fold
    records = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith('.')) if folder.is_dir() else []
    videos = [video for record in records for _, video in sorted(find_videos(record).items())]
    if not videos:
        raise UserError(f'--data_dir {data_dir}: no videos as {folder}/<record>/001.npy (or folders of PNG frames) were found; '
                        f'make them with: python preprocessing/bair/convert.py --data_dir {data_dir}')
    return videos


def load_folds(config):
    """Training and validation sources: clips of the training videos, in two folds."""
    return fold_clips(find_converted(config.data_dir, 'train'), config)


def load_test(config, data_dir, nt):
    """Test set: the first `nt` frames of each test video."""
    return FirstFrames(find_converted(data_dir, 'test'), config.nx, config.nc, nt, Path(data_dir) / 'processed_data' / 'test')
