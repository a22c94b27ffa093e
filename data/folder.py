"""Videos of your own, converted by `preprocessing/folder/convert.py`."""

from pathlib import Path

from data.clips import Clips, FirstFrames, convert_again, note_short, shortest_set
from data.video import find_videos, video_names
from files import UserError, read_json

FOLDS = ('train', 'val', 'test')
TEST_SET = 'test_set_<frames>.json'


def convert_command(data_dir, nx):
    """Command that converts videos to frames of nx x nx."""
    return ('python preprocessing/folder/convert.py --data_dir YOUR_VIDEOS '
            f'--out_dir {data_dir} --image_size {nx}')


def find_converted(data_dir, fold, nc, nx=64):
    """Converted videos of a fold ('train', 'val' or 'test') with nc channels: dict by name."""
    folder = Path(data_dir) / fold
    check_folds(data_dir)
    found = find_videos(folder)
    if not found:
        raise UserError(f'--data_dir {data_dir}: no videos as {folder}/<name>.npy were found; '
                        f'make them with: {convert_command(data_dir, nx)}')
    for video in found.values():
        channels = (*video.frame_shape, 1)[2]
        if channels != nc:
            gray = 'with' if nc == 1 else 'without'
            raise UserError(f'{video.path} was converted for --nc {channels}; use that, or convert '
                            f'again {gray} --gray')
    return found


def check_folds(data_dir):
    """Raise a UserError if a video is in two folds."""
    folds = {}
    for fold in FOLDS:
        for name in video_names(Path(data_dir, fold)):
            other = folds.setdefault(name, fold)
            if other != fold:
                raise UserError(f'--data_dir {data_dir}: {name} is in both {other} and {fold}; '
                                'remove one, or convert again: files then follow split.json')


def load_folds(config):
    """Training and validation sources: clips of the videos in `train` and `val`."""
    again = convert_again(convert_command(config.data_dir, config.nx))
    return [Clips(list(find_converted(config.data_dir, fold, config.nc, config.nx).values()),
                  config.nx, config.nc, nt, advice=again)
            for fold, nt in (('train', config.seq_len), ('val', config.seq_len_test))]


def load_test(config, data_dir, nt):
    """Test set: the clips of the shortest sufficient test_set_<frames>.json.

    Without such a file, the first `nt` frames of each test video that is long enough.
    """
    found = find_converted(data_dir, 'test', config.nc, config.nx)
    again = convert_again(convert_command(data_dir, config.nx))
    if not list(Path(data_dir).glob(TEST_SET.replace('<frames>', '*'))):
        videos = note_short(list(found.values()), nt, '--nt_gen')
        return FirstFrames(videos, config.nx, config.nc, nt, Path(data_dir) / 'test', advice=again)
    command = (f'python preprocessing/folder/make_test_set.py --data_dir {data_dir} '
               f'--seq_len {nt}')
    path, length = shortest_set(Path(data_dir), TEST_SET, nt, command)
    clips = read_clips(path, length, found, command)
    return FirstFrames([found[name] for name, _ in clips], config.nx, config.nc, nt, path,
                       starts=[start for _, start in clips], advice=again)


def read_clips(path, length, found, command):
    """Clips of a test set: list of (name of the video, first frame)."""
    clips = read_json(path).get('clips')
    if not clips or not isinstance(clips, list) or not all(
            isinstance(clip, list) and len(clip) == 2 and isinstance(clip[0], str)
            and type(clip[1]) is int and clip[1] >= 0 for clip in clips):
        raise UserError(f'{path} has no clips [name, first frame]; remove it and make it again '
                        f'with: {command}')
    for name, start in clips:
        if name not in found or start + length > len(found[name]):
            raise UserError(f'{path}: the clip of {length} frames from {start} on of {name} is not '
                            'among the converted test videos; if these have changed, remove it and '
                            f'make it again with: {command}')
    return clips
