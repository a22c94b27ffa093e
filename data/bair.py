"""BAIR robot pushing: colour videos of a robot arm, 30 frames each (paper, section 4)."""

from pathlib import Path

from data.clips import Dataset, FirstFrames, fold_clips, found
from data.video import find_videos, open_fold


def find_converted(data_dir, fold):
    """Videos of a fold ('train' or 'test'), by record file and number, and their path.

    They come from one array, or from the published layout: a folder of PNG frames each.
    """
    folder = Path(data_dir) / 'processed_data' / fold
    array = folder.with_suffix('.npy')
    if array.exists():
        return open_fold(array), array
    records = sorted(p for p in folder.glob('[!.]*') if p.is_dir())
    videos = [video for record in records for video in find_videos(record).values()]
    example = f'{array} (or folders of PNG frames, {folder}/<record>/001)'
    return found(videos, data_dir, example, 'bair'), folder


def load_folds(config):
    """Training and validation sources: clips of two folds of the training videos."""
    videos, _ = find_converted(config.data_dir, 'train')
    return fold_clips(videos, config)


def load_test(config, data_dir, nt):
    """Test set: the first `nt` frames of each test video."""
    videos, path = find_converted(data_dir, 'test')
    return FirstFrames(videos, config, nt, path)


DATASET = Dataset((3,), load_folds, load_test, sizes=(64,), videos='processed_data')
