"""Datasets. Training ones draw the videos of any step, test ones hold fixed videos; frames are uint8 on disk and in workers."""

import difflib
from pathlib import Path

import numpy as np

from data import bair, folder, human, kth, mmnist
from data.clips import check_videos
from data.video import find_video
from files import UserError

DATASETS = {'smmnist': mmnist, 'kth': kth, 'human': human, 'bair': bair, 'folder': folder}
CONVERTED = {'kth': 'processed_{nx}', 'human': '', 'bair': 'processed_data', 'folder': ''}  # folders of converted videos, in --data_dir


def load_train(config):
    """Training and validation folds of the dataset of `config`, as sources for a `data.stream.BatchStream`."""
    return DATASETS[config.dataset].load_folds(config)


def load_test(config, data_dir, nt):
    """Test set that `config` names, cut to `nt` frames.

    Returns
    -------
    object with a length, `videos(indices)`, uint8 (nt, N, H, W, C), and `path`, of its file or folder
    """
    return DATASETS[config.dataset].load_test(config, data_dir, nt)


def load_clip(config, data_dir, name, t_0, nt):
    """Clip of a converted video of the dataset of `config`, whatever its fold.

    Parameters
    ----------
    name : str
        Path of the video below the folder of converted videos, such as running/person01_running_d4 of KTH.
    t_0, nt : int
        First frame, from 0, and number of frames; of Human3.6M, every `subsampling`-th frame from t_0 on.

    Returns
    -------
    np.ndarray of uint8 (nt, H, W, C)
    """
    root = Path(data_dir) / CONVERTED[config.dataset].format(nx=config.nx)
    path = root / name.removesuffix('.npy').removesuffix('.npz')
    video = find_video(path.parent, path.name)
    if video is None:
        there = [p.name.removesuffix('.npy').removesuffix('.npz') for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, there, 1, 0)
        raise UserError(f'{path} is not there, as .npy, .npz or folder of frames; give the path of a converted video below {root}'
                        + (f', such as {Path(name).with_name(near[0])}' if near else ''))
    step = config.subsampling if config.dataset == 'human' else 1
    span = (nt - 1) * step + 1
    if t_0 + span > len(video):
        raise UserError(f'{video.path} has {len(video)} frames, but the clip covers {span} from frame {t_0} on; '
                        + (f'give a first frame (--t_0) of at most {len(video) - span}' if span <= len(video) else 'give a smaller --nt_gen'))
    check_videos([video], config.nx, config.nc, span)
    return np.array(video.clip(t_0, nt, step)[..., :config.nc])  # not the file's memory map
