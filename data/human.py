"""Human3.6M: colour videos of people in a studio (paper, section 4)."""

from pathlib import Path

from files import positive_int

from data.clips import Dataset, FirstFrames, fold_clips, found, shortest_set
from data.video import NpzVideo, find_videos


def find_converted(data_dir, fold):
    """Converted videos of a fold ('train' or 'test') by name, in order of the published files."""
    folder = Path(data_dir) / fold
    videos = found(find_videos(folder), data_dir,
                   f'{folder}/S1-Walking.54138969.npy (or .npz)', 'human')
    return {name: videos[name] for name in sorted(videos, key=lambda name: f'{name}.npz')}


def load_folds(config):
    """Training and validation sources: subsampled clips of two folds of the training videos."""
    videos = list(find_converted(config.data_dir, 'train').values())
    return fold_clips(videos, config, config.subsampling)


def load_test(config, data_dir, nt):
    """Test set, first `nt` frames: the shortest sufficient test_set_<frames>_<subsampling>.

    Its files test_<i>.npz include the frames that subsampling leaves out.
    """
    step = config.subsampling
    command = (f'python preprocessing/human/make_test_set.py --data_dir {data_dir} '
               f'--seq_len {max(nt, 53)} --subsampling {step}')
    folder = shortest_set(Path(data_dir), f'test_set_<frames>_{step}', nt, command)
    videos = [NpzVideo(folder / f'test_{i}.npz')
              for i in range(len(list(folder.glob('test_*.npz'))) or 1)]
    return FirstFrames(videos, config, nt, folder, step)


DATASET = Dataset(
    (3,), load_folds, load_test, videos='',
    options={'subsampling': dict(type=positive_int, default=8, help='use every n-th frame')})
