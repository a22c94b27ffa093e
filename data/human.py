"""Human3.6M: colour videos of people in a studio (paper, section 4)."""

from pathlib import Path

from data.clips import FirstFrames, fold_clips, shortest_set
from data.video import NpzVideo, find_videos
from files import UserError


def find_converted(data_dir, fold):
    """Converted videos of a fold ('train' or 'test') by name, in order of the published files."""
    folder = Path(data_dir) / fold
    found = find_videos(folder)
    if not found:
        raise UserError(f'--data_dir {data_dir}: no videos as {folder}/S1-Walking.54138969.npy '
                        '(or .npz) were found; make them with: '
                        f'python preprocessing/human/convert.py --data_dir {data_dir}')
    return {name: found[name] for name in sorted(found, key=lambda name: f'{name}.npz')}


def load_folds(config):
    """Training and validation sources: subsampled clips of two folds of the training videos."""
    videos = list(find_converted(config.data_dir, 'train').values())
    return fold_clips(videos, config, config.subsampling)


def load_test(config, data_dir, nt):
    """Test set, first `nt` frames: the shortest sufficient test_set_<frames>_<subsampling>.

    Its files test_<i>.npz include the frames that subsampling leaves out.
    """
    step = config.subsampling
    folder, _ = shortest_set(
        Path(data_dir), f'test_set_<frames>_{step}', nt,
        f'python preprocessing/human/make_test_set.py --data_dir {data_dir} '
        f'--seq_len {max(nt, 53)} --subsampling {step}')
    paths = [folder / f'test_{i}.npz' for i in range(len(list(folder.glob('test_*.npz'))) or 1)]
    for path in paths:
        if not path.exists():
            raise UserError(f'{path} is missing; remove {folder} and make the test set again')
    return FirstFrames(list(map(NpzVideo, paths)), config.nx, config.nc, nt, folder, step)
