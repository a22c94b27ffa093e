"""Datasets. Sources draw training clips, test sets hold fixed videos; frames are uint8."""

import difflib
import re
from pathlib import Path

import numpy as np

from data import bair, folder, human, kth, mmnist
from data.clips import check_videos, convert_again
from data.video import find_video, video_names
from files import UserError

DATASETS = {'smmnist': mmnist, 'kth': kth, 'human': human, 'bair': bair, 'folder': folder}
# Folders of converted videos in --data_dir
CONVERTED = {'kth': 'processed_{nx}', 'human': '', 'bair': 'processed_data', 'folder': ''}


def find_size(dataset, data_dir, sizes):
    """Width and height of the converted videos of a dataset.

    It is 64 if there are none, for BAIR, which has no other size, and for Moving MNIST.

    Parameters
    ----------
    dataset : str
    data_dir : path, or None
    sizes : list of int
        What models can have; a UserError if videos have other sizes only, or several of these.
    """
    found = converted_sizes(dataset, Path(data_dir)) if data_dir else {}
    usable = sorted(found.keys() & sizes)
    if len(usable) > 1:
        names = ' and '.join(found[size].name for size in usable)
        raise UserError(f'--data_dir {data_dir} has {names}; choose a size with --nx')
    if found and not usable:
        size, path = found.popitem()
        raise UserError(f'{path} has frames of {size} pixels, but models have '
                        f'{" or ".join(map(str, sizes))}; remove it and convert again, for example '
                        f'with: {DATASETS[dataset].convert_command(data_dir, 64)}')
    return usable[0] if usable else 64


def converted_sizes(dataset, data_dir):
    """Paths that show which sizes the converted training videos of a dataset have: dict by size."""
    if dataset in ('smmnist', 'bair'):
        return {}
    if dataset == 'kth':
        return {int(m[1]): path for path in data_dir.glob('processed_*')
                if (m := re.fullmatch(r'processed_(\d+)', path.name))}
    folder = data_dir / 'train'
    videos = [find_video(folder, name) for name in video_names(folder)[:1]]
    return {video.frame_shape[0]: video.path for video in videos}


def load_train(config):
    """Training and validation sources of a dataset, for `data.stream.BatchStream`."""
    return DATASETS[config.dataset].load_folds(config)


def load_test(config, data_dir, nt):
    """Test set of a dataset, cut to `nt` frames.

    Returns
    -------
    object with a length, `videos(indices)`, uint8 (nt, N, H, W, C), `name(i)` of a video, and
    `path`, its file or folder
    """
    return DATASETS[config.dataset].load_test(config, data_dir, nt)


def load_clip(config, data_dir, name, t_0, nt):
    """Load a clip of a converted video, from any fold.

    Parameters
    ----------
    name : str
        Path below the folder of converted videos, as running/person01_running_d4 of KTH.
    t_0, nt : int
        First frame, from 0, and number of frames; for Human3.6M, every `subsampling`-th from t_0.

    Returns
    -------
    np.ndarray of uint8 (nt, H, W, C)
    """
    command = DATASETS[config.dataset].convert_command(data_dir, config.nx)
    root = Path(data_dir) / CONVERTED[config.dataset].format(nx=config.nx)
    if not root.is_dir():
        raise UserError(f'{root}, of converted videos, does not exist; make it with: {command}')
    video = find_converted(root, name)
    step = config.subsampling if config.dataset == 'human' else 1
    span = (nt - 1) * step + 1
    last = len(video) - span
    if t_0 > last:
        advice = f'a first frame (--t_0) of at most {last}' if last >= 0 else 'a smaller --nt_gen'
        raise UserError(f'{video.path} has {len(video)} frames, but the clip covers {span} from '
                        f'frame {t_0} on; give {advice}')
    check_videos([video], config.nx, config.nc, span, convert_again(command))
    return np.array(video.clip(t_0, nt, step)[..., :config.nc])  # a copy of the memory map


def find_converted(root, name):
    """The converted video `name`, with or without extension, below the folder `root`."""
    path = root / without_extension(name)
    video = find_video(path.parent, path.name)
    if video is not None:
        return video
    names = [without_extension(p.name) for p in path.parent.glob('*')]
    example = ''.join(f', such as {Path(name).with_name(near)}'
                      for near in difflib.get_close_matches(path.name, names, 1, 0))
    raise UserError(f'{path} does not exist as .npy, .npz or folder of frames; '
                    f'give the path of a converted video below {root}{example}')


def without_extension(name):
    return name.removesuffix('.npy').removesuffix('.npz')
