"""Videos of your own, converted by `preprocessing/folder/convert.py`."""

from pathlib import Path

from files import UserError, read_json, reading

from data.clips import Clips, Dataset, FirstFrames, found, long_enough, shortest_set
from data.video import find_videos

TEST_SET = 'test_set_<frames>.json'


def find_converted(data_dir, fold, nc):
    """Converted videos of a fold ('train', 'val' or 'test') with nc channels: dict by name."""
    folder = Path(data_dir) / fold
    videos = found(find_videos(folder), data_dir, f'{folder}/<name>.npy', 'folder')
    for video in videos.values():
        channels = (*video.frame_shape, 1)[2]
        if channels != nc:
            gray = 'with' if nc == 1 else 'without'
            raise UserError(f'{video.path} was converted for --nc {channels}; use that, or convert '
                            f'again {gray} --gray')
    return videos


def load_folds(config):
    """Training and validation sources: clips of the videos in `train` and `val`."""
    return [Clips(list(find_converted(config.data_dir, fold, config.nc).values()), config, nt)
            for fold, nt in (('train', config.seq_len), ('val', config.seq_len_test))]


def load_test(config, data_dir, nt):
    """Test set: the clips of the shortest sufficient test_set_<frames>.json.

    Without such a file, the first `nt` frames of each test video that is long enough.
    """
    converted = find_converted(data_dir, 'test', config.nc)
    if not list(Path(data_dir).glob(TEST_SET.replace('<frames>', '*'))):
        videos = long_enough(list(converted.values()), nt, '--nt_gen')
        return FirstFrames(videos, config, nt, Path(data_dir) / 'test')
    command = (f'python preprocessing/folder/make_test_set.py --data_dir {data_dir} '
               f'--seq_len {nt}')
    path = shortest_set(Path(data_dir), TEST_SET, nt, command)
    with reading(path, 'does not fit the converted test videos',
                 f'make it again with: {command} --overwrite'):
        clips = read_json(path)['clips']  # [name, first frame]
        videos, starts = [converted[name] for name, _ in clips], [int(start) for _, start in clips]
    return FirstFrames(videos, config, nt, path, starts=starts)


DATASET = Dataset((1, 3), load_folds, load_test, videos='')
