"""Human3.6M: colour videos of people in a studio (paper, section 4)."""

from pathlib import Path

from data.clips import FirstFrames, convert_again, fold_clips, shortest_set
from data.video import NpzVideo, find_videos
from files import UserError


def convert_command(data_dir, nx):
    """Command that converts the dataset to frames of nx x nx."""
    return f'python preprocessing/human/convert.py --data_dir {data_dir} --image_size {nx}'


def find_converted(data_dir, fold, nx=64):
    """Converted videos of a fold ('train' or 'test') by name, in order of the published files."""
    folder = Path(data_dir) / fold
    found = find_videos(folder)
    if not found:
        raise UserError(f'--data_dir {data_dir}: no videos as {folder}/S1-Walking.54138969.npy '
                        '(or .npz) were found; make them with: '
                        f'{convert_command(data_dir, nx)}')
    return {name: found[name] for name in sorted(found, key=lambda name: f'{name}.npz')}


def load_folds(config):
    """Training and validation sources: subsampled clips of two folds of the training videos."""
    videos = list(find_converted(config.data_dir, 'train', config.nx).values())
    again = convert_again(convert_command(config.data_dir, config.nx))
    return fold_clips(videos, config, again, config.subsampling)


def load_test(config, data_dir, nt):
    """Test set, first `nt` frames: the shortest sufficient test_set_<frames>_<subsampling>.

    Its files test_<i>.npz include the frames that subsampling leaves out.
    """
    step = config.subsampling
    command = (f'python preprocessing/human/make_test_set.py --data_dir {data_dir} '
               f'--seq_len {max(nt, 53)} --subsampling {step}')
    folder, _ = shortest_set(Path(data_dir), f'test_set_<frames>_{step}', nt, command)
    paths = [folder / f'test_{i}.npz' for i in range(len(list(folder.glob('test_*.npz'))) or 1)]
    for path in paths:
        if not path.exists():
            raise UserError(f'{path} is missing; remove {folder} and make the test set again')
    again = (f'remove {folder} and make it again with: {command}, after '
             f'{convert_command(data_dir, config.nx)}')
    return FirstFrames(list(map(NpzVideo, paths)), config.nx, config.nc, nt, folder, step, again)
