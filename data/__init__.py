"""Datasets. Training ones draw the videos of any step, test ones hold fixed videos; frames are uint8 on disk and in workers."""

from data import bair, folder, human, kth, mmnist

DATASETS = {'smmnist': mmnist, 'kth': kth, 'human': human, 'bair': bair, 'folder': folder}


def load_train(config):
    """Training and validation folds of the dataset of `config`, as sources for a `data.stream.BatchStream`."""
    return DATASETS[config.dataset].load_folds(config)


def load_test(config, data_dir, nt):
    """Test set that `config` names, cut to `nt` frames.

    Returns
    -------
    object with a length and `videos(indices)`, uint8 (nt, N, H, W, C)
    """
    return DATASETS[config.dataset].load_test(config, data_dir, nt)
