"""Datasets. Training ones draw the videos of any step, test ones hold fixed videos; frames are uint8 on disk and in workers."""

from data import mmnist
from utils import UserError

# What the scripts know of each dataset before its data are touched.
CHANNELS = {'smmnist': 1, 'kth': 1, 'human': 3, 'bair': 3}
EPOCH_SIZE = 500_000  # videos that an epoch of drawn clips counts


def _check(config):
    if config.dataset != 'smmnist':
        raise UserError(f'--dataset {config.dataset}: this version loads smmnist only')


def load_train(config):
    """Training and validation folds of the dataset of `config`, as sources for a `data.stream.BatchStream`."""
    _check(config)
    return mmnist.load_folds(config)


def load_test(config, data_dir, nt):
    """Test set that `config` names, cut to `nt` frames.

    Returns
    -------
    object with a length and `videos(indices)`, uint8 (nt, N, H, W, C)
    """
    _check(config)
    return mmnist.load_test(config, data_dir, nt)
