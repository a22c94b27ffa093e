"""(Stochastic) Moving MNIST: digits that bounce off the borders (paper, appendix on datasets)."""

import sys
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from data.clips import Sequences, get_fold
from data.digits import SIZE, load_digits
from files import UserError, npz_header, read_npz, reading

EPS = 1e-8  # tolerance of positions on the border


def bounce(x, y, dx, dy, limit, max_speed, deterministic, rng):
    """Bounce a digit, whose last step (dx, dy) left the frame, back inside.

    Parameters
    ----------
    x, y : float
        Position of the digit's corner, outside [0, limit].
    dx, dy : int
        Velocity of the step that led there.
    limit : int
        Largest position inside.
    max_speed, deterministic, rng
        A stochastic bounce draws a new velocity, uniform in [-max_speed, max_speed]; a
        deterministic one reflects it.

    Returns
    -------
    (x, y, dx, dy)
        Position inside and velocity after the bounces.
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
    """Draw the motion of one digit.

    Parameters
    ----------
    rng : np.random.RandomState
        Draws x, y, dx, dy, then dx, dy at each stochastic bounce.
    nt, frame_size, max_speed : int
    deterministic : bool

    Returns
    -------
    list of nt tuples (x, y, dx, dy) of int
        Rounded position of the corner (x indexes rows, y columns) and velocity.
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
    """Draw the motions of the digits of several videos at once.

    Each step moves all digits together; only those that left the frame are handled one by one.

    Parameters
    ----------
    rngs : list of np.random.RandomState
        One per video. Draws x, y, dx, dy of each digit, as uniform numbers, then, by frame and by
        digit, dx and dy at each stochastic bounce.
    nt, n_digits, frame_size, max_speed : int
    deterministic : bool

    Returns
    -------
    np.ndarray of int (nt, len(rngs), n_digits, 2)
        Rounded positions of the digits' corners.
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
    """Render videos of moving digits, which add up and saturate.

    Parameters
    ----------
    digits : np.ndarray of uint8 (N, n_digits, 28, 28)
    positions : np.ndarray of int (T, N, n_digits, ≥ 2)
        Of the digits' corners, row then column.
    frame_size : int

    Returns
    -------
    np.ndarray of uint8 (T, N, frame_size, frame_size)
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
    """Source of training videos: random digits with random motions.

    Parameters
    ----------
    digits : np.ndarray of uint8 (N, 28, 28)
    frame_size, max_speed, n_digits : int
    deterministic : bool
    """

    def __init__(self, digits, frame_size, max_speed, n_digits, deterministic):
        self.digits, self.frame_size, self.max_speed = digits, frame_size, max_speed
        self.n_digits, self.deterministic = n_digits, deterministic

    def draw(self, rngs, nt):
        """Videos uint8 (nt, len(rngs), frame_size, frame_size, 1), one from each RandomState."""
        chosen = np.stack([rng.randint(len(self.digits), size=self.n_digits) for rng in rngs])
        positions = draw_motions(rngs, nt, self.n_digits, self.frame_size, self.max_speed,
                                 self.deterministic)
        return render(self.digits[chosen], positions, self.frame_size)[..., None]


def load_folds(config):
    """Training and validation sources: videos of two folds of the training digits."""
    digits, _ = load_digits(config.digits, config.data_dir, train=True)
    return [MovingDigits(digits[get_fold(len(digits), train)], config.nx, config.max_speed,
                         config.ndigits, config.deterministic) for train in (True, False)]


def make_test_set(digits, labels, nt, *, seed=42, n_digits=2, frame_size=64, max_speed=4,
                  deterministic=False, progress=iter):
    """Draw a test set exactly like the published ones.

    Parameters
    ----------
    digits, labels : np.ndarray of uint8 (N, 28, 28) and (N,)
        Each digit appears in at most one video.
    nt, seed, n_digits, frame_size, max_speed : int
    deterministic : bool
    progress : function
        Wraps the iteration over videos.

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
    for i in progress(range(V)):
        for d in range(n_digits):
            latents[:, i, d] = draw_trajectory(rng, nt, frame_size, max_speed, deterministic)
    digits = digits[shown]
    return {'sequences': render(digits, latents, frame_size), 'latents': latents,
            'labels': labels[shown], 'digits': digits}


def test_set_name(deterministic, digits, n_digits, frame_size):
    """File name of a test set; like the published ones, sets of MNIST do not name their source."""
    kind = 'mmnist' if deterministic else 'smmnist'
    source = digits.removeprefix('mnist')
    return f'{kind}{source}_test_{n_digits}digits_{frame_size}.npz'


def load_test(config, data_dir, nt):
    """Test set of a configuration, first `nt` frames."""
    path = Path(data_dir) / test_set_name(config.deterministic, config.digits, config.ndigits,
                                          config.nx)
    command = make_command(config, data_dir, nt)
    if not path.exists():
        raise UserError(f'the test set {path} does not exist; make it with: {command}')
    command += ' --force'
    complaint = 'is not a test set of Moving MNIST', f'make it again with: {command}'
    with reading(path, *complaint):
        shape, dtype = npz_header(path, 'sequences')
        latents = read_npz(path, 'latents').get('latents')
        fastest = 0 if latents is None else int(abs(latents[..., 2:]).max())
    if dtype != np.uint8 or len(shape) != 4 or shape[2:] != (config.nx, config.nx) or not shape[1]:
        raise UserError(f'{path}: sequences must be uint8 (T, N, {config.nx}, {config.nx}), found '
                        f'{dtype} {shape}; make it again with: {command}')
    if shape[0] < nt:
        raise UserError(f'{path} has videos of {shape[0]} frames, but --nt_gen {nt} was '
                        'requested; use a smaller --nt_gen, or make longer videos, which are '
                        f'others, in another --data_dir: {make_command(config, "OTHER", nt)}')
    if fastest > config.max_speed:
        print(f'note: {path} has digits of speed {fastest}, but the model was trained with '
              f'max_speed {config.max_speed}', file=sys.stderr)

    def read():
        with reading(path, *complaint):
            return read_npz(path, 'sequences')['sequences'][:nt]
    return Sequences(path, shape[1], read)


def make_command(config, data_dir, nt):
    """Command that makes the test set of a configuration."""
    deterministic = '--deterministic ' if config.deterministic else ''
    return (f'python -m preprocessing.mmnist.make_test_set --data_dir {data_dir} {deterministic}'
            f'--seq_len {max(nt, 25)} --digit_source {config.digits} --digits {config.ndigits} '
            f'--max_speed {config.max_speed} --frame_size {config.nx}')
