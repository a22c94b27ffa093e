"""BAIR robot pushing: colour videos of a robot arm, 30 frames each (paper, section 4)."""

from pathlib import Path

from data.clips import Dataset, FirstFrames, fold_clips, found
from data.video import find_videos, open_fold


def find_converted(data_dir, fold):
    """Videos of a fold ('train' or 'test'), by record file and number: list of Video.

    They come from one array, or from the published layout: a folder of PNG frames each.
    """
    folder = Path(data_dir) / 'processed_data' / fold
    array = folder.with_suffix('.npy')
    if array.exists():
        return open_fold(array)
    records = sorted(p for p in folder.glob('[!.]*') if p.is_dir())
    videos = [video for record in records for video in find_videos(record).values()]
    return found(videos, data_dir, f'{array} (or folders of PNG frames, {folder}/<record>/001)',
                 'bair')


def load_folds(config):
    """Training and validation sources: clips of two folds of the training videos."""
    return fold_clips(find_converted(config.data_dir, 'train'), config)


def load_test(config, data_dir, nt):
    """Test set: the first `nt` frames of each test video."""
    folder = Path(data_dir) / 'processed_data' / 'test'
    array = folder.with_suffix('.npy')
    return FirstFrames(find_converted(data_dir, 'test'), config, nt,
                       array if array.exists() else folder)


DATASET = Dataset((3,), load_folds, load_test, sizes=(64,), videos='processed_data')
