"""A trained model that predicts arrays: what `hubconf.py` gives to Python programs."""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import files
import parsing
from args import load_config
from checkpoint import load_model
from data.stream import chunks
from metrics.scoring import quantise
from module import FrozenDecoder
from sampling import Chunk, Futures, check_memory, draw_noise
from utils import to_video

BATCH = 16  # videos at a time, as by test.py
TYPES = 'uint8', 'float16', 'bfloat16', 'float32', 'float64'
ADVICE = 'use fewer videos at a time, n_samples or nt'


class Given(NamedTuple):
    """Conditioning frames, and how they were given: results are returned in the same way."""
    x: torch.Tensor    # (T, N, H, W, C)
    original: object   # array or tensor
    is_batch: bool
    has_channels: bool

    def new_frames(self, *shape):
        """Tensor (N, *shape, H, W, C), of the type of the given frames, to be filled."""
        shape = torch.Size([self.x.shape[1], *shape, *self.x.shape[2:]])
        files.check_memory(shape.numel() * self.x.element_size(), ADVICE)
        return torch.empty(shape, dtype=self.x.dtype)

    def encoded(self, x):
        """Frames (B, T, H, W, C), of the type of the given ones, from x (T, B, C, H, W)."""
        if x.isnan().any():
            raise files.UserError('the model predicts NaN: its activations grow beyond float32; '
                                  'use another checkpoint')
        x = quantise(x) if self.x.dtype == torch.uint8 else x.to(self.x.dtype)
        return x.permute(1, 0, 3, 4, 2)

    def returned(self, value):
        """Result (N, …) as an array or a tensor, without N for a single video."""
        value = value if self.is_batch else value[0]
        if isinstance(self.original, np.ndarray):
            return value.cpu().numpy()
        return value.to(self.original.device)

    def returned_frames(self, x):
        """As `returned`, for frames (N, …, H, W, C), without C if the given ones lack it."""
        return self.returned(x if self.has_channels else x.squeeze(-1))


class Sampling(NamedTuple):
    """Checked arguments of `Predictor.predict`."""
    n_samples: int
    nt: int
    seed: int
    index: int
    n_euler_steps: int


def checked(name, value, kind):
    """Value of an argument, of a type of `parsing`; ValueError if it is another one."""
    try:
        return kind(str(value))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f'{name}: {error}') from None


class Predictor:
    """A trained model, which samples continuations of videos.

    Conditioning frames are (T, H, W, C), or (T, H, W) if they are grey: a NumPy array or a
    tensor, uint8 or floats in [0, 1]. (N, T, …) is a batch of videos. Results are of the same kind:
    library, device, batch axis, and, of frames, type and channel axis.

    Parameters
    ----------
    folder : path
        With config.json and the weights.
    model_name : str
        Weights in `folder`.
    device : str, int or torch.device

    Attributes
    ----------
    config : argparse.Namespace
        Of its training.
    model : SRVP

    Raises
    ------
    UserError
        There is no model, or a damaged one.
    """

    def __init__(self, folder, model_name='model.pt', device='cpu'):
        self.config, self.device = load_config(folder), torch.device(device)
        self.model = load_model(self.config, Path(folder) / model_name, self.device)

    # Futures

    @torch.no_grad()
    def predict(self, frames, n_samples=1, nt=None, *, seed=1, index=0, n_euler_steps=None):
        """Sample futures of videos.

        Parameters
        ----------
        frames : array or tensor ([N,] T, H, W[, C])
            Conditioning frames.
        n_samples : int
            Futures per video.
        nt : int
            Frames to predict; default: as in training.
        seed, index : int
            Of the noise. Video i gets that of video `index` + i of the test set in `test.py
            --test_seed seed`, if `n_samples` and the number of all frames, T + nt, are the same.
        n_euler_steps : int
            Euler steps per predicted frame; default: as in training.

        Returns
        -------
        array or tensor ([N,] n_samples, nt, H, W[, C])

        Raises
        ------
        TypeError, ValueError
            An argument is of the wrong type, shape or range.
        """
        given = self._read(frames)
        sampling = self._sampling(n_samples, nt, seed, index, n_euler_steps)
        found = given.new_frames(sampling.n_samples, sampling.nt)
        for part, futures in self._futures(given, sampling):
            for s, x in enumerate(futures):  # (nt, B, C, H, W)
                found[part, s] = given.encoded(x)
        return given.returned_frames(found)

    def swap(self, frames_a, frames_b, n_samples=1, nt=None, **options):
        """Content of one video with the motion of another, as `visualize.py swap` shows.

        Parameters
        ----------
        frames_a, frames_b : array or tensor ([N,] T, H, W[, C])
            Content and motion come from these; two videos, or two batches of the same size.
        n_samples, nt, **options
            As of `predict`, for the motion.

        Returns
        -------
        array or tensor ([N,] n_samples, T + nt, H, W[, C])
            The first T frames are those of the motion that was given.
        """
        return self.decode(frames_a, self.y(frames_b, n_samples, nt, **options))

    # Inside the model

    @torch.no_grad()
    def w(self, frames):
        """Content of videos: float32 ([N,] nh_inf)."""
        given = self._read(frames)
        contents = [self.model.condition(x).w for _, x in self._batches(given)]
        return given.returned(torch.cat(contents))

    @torch.no_grad()
    def y(self, frames, n_samples=1, nt=None, *, seed=1, index=0, n_euler_steps=None):
        """States of conditioning frames, and of futures; takes the arguments of `predict`.

        Returns
        -------
        array or tensor of float32 ([N,] n_samples, T + nt, ny)
        """
        given = self._read(frames)
        sampling = self._sampling(n_samples, nt, seed, index, n_euler_steps)
        states = [torch.cat([futures.y_given, futures.y])  # (T + nt, S, B, ny)
                  for _, futures in self._futures(given, sampling)]
        return given.returned(torch.cat(states, 2).permute(2, 1, 0, 3))

    @torch.no_grad()
    def decode(self, frames, y, w=None):
        """Frames of states, with the content (and skip connections, if any) of videos.

        Parameters
        ----------
        frames : array or tensor ([N,] T, H, W[, C])
            Content comes from these.
        y : array or tensor ([N,] …, nt, ny)
            States, such as those of all samples.
        w : array or tensor ([N,] nh_inf)
            Content, instead of that of `frames`.

        Returns
        -------
        array or tensor ([N,] …, nt, H, W[, C])
        """
        given = self._read(frames)
        y = self._vectors('y', y, given, '…, nt, ', self.model.ny)
        if w is not None:
            w = self._vectors('w', w, given, '', self.config.nh_inf)
        samples = y.reshape(len(y), -1, *y.shape[-2:])  # (N, S, nt, ny)
        found = given.new_frames(*samples.shape[1:3])
        for part, x in self._batches(given):
            cond = self.model.condition(x)
            content = cond.w if w is None else w[part]
            decoder = FrozenDecoder(self.model.decoder, content, cond.skips)
            for s, states in enumerate(samples[part].unbind(1)):  # (B, nt, ny)
                decoded = Chunk(self.model).decode(decoder, states.transpose(0, 1))
                found[part, s] = given.encoded(decoded)
        return given.returned_frames(found.reshape(*y.shape[:-1], *found.shape[3:]))

    # Computation

    def _batches(self, given):
        """Slices of the videos, with their float frames (T, B, C, H, W) in [0, 1]."""
        for videos in chunks(range(given.x.shape[1]), BATCH):
            part = slice(videos.start, videos.stop)
            x = given.x[:, part].to(self.device)
            is_bytes = x.dtype == torch.uint8
            yield part, to_video(x, self.device) if is_bytes else x.permute(0, 1, 4, 2, 3).float()

    def _futures(self, given, sampling):
        """Slices of the videos, with their `Futures`."""
        n_samples, nt, seed, index, n_euler_steps = sampling
        T, N = given.x.shape[:2]
        check_memory(self.config, self.device, min(N, BATCH), T + nt, n_samples,
                     n_euler_steps or self.config.n_euler_steps, ADVICE)
        for part, x in self._batches(given):
            videos = range(index + part.start, index + part.stop)
            noise = draw_noise(self.model, seed, 'test', videos, n_samples, T + nt)
            futures = Futures(self.model, x, nt, noise, n_euler_steps)
            futures.check_states()
            yield part, futures

    # Arguments

    def _read(self, frames):
        """Check conditioning frames, and bring their axes into order; returns `Given`."""
        if not isinstance(frames, np.ndarray | torch.Tensor):
            raise TypeError('frames must be a NumPy array or a tensor, found '
                            f'{type(frames).__name__}')
        nx, nc, nt_inf = self.config.nx, self.config.nc, self.config.nt_inf
        shape = tuple(frames.shape)
        found = f'{shape} of {frames.dtype}'
        if str(frames.dtype).removeprefix('torch.') not in TYPES:
            raise TypeError(f'frames must be uint8, or floats in [0, 1], found {found}')
        has_channels = shape[-3:] == (nx, nx, nc)
        axes = len(shape) - 2 - has_channels
        is_grey = nc == 1 and shape[-2:] == (nx, nx)
        if not (has_channels or is_grey) or axes not in (1, 2) or 0 in shape:
            expected = f'(T, {nx}, {nx}, {nc})' + f' or (T, {nx}, {nx})' * (nc == 1)
            raise ValueError(f'frames must be {expected}, or a batch (N, T, …) of such videos, '
                             f'found {found}; resize them, and put channels last')
        if shape[axes - 1] < nt_inf:
            raise ValueError(f'frames {found}: the model infers y_0 from the first {nt_inf} '
                             f'(nt_inf), found {shape[axes - 1]}; give more')
        x = torch.from_numpy(np.array(frames)) if isinstance(frames, np.ndarray) else frames
        if x.is_floating_point() and not (0 <= x.min() and x.max() <= 1):
            raise ValueError(f'frames of floats must be in [0, 1], found {x.min().item():.3g} to '
                             f'{x.max().item():.3g}; scale or clip them')
        x = x if has_channels else x[..., None]
        x = x.transpose(0, 1) if axes == 2 else x[:, None]
        return Given(x, frames, axes == 2, has_channels)

    def _sampling(self, n_samples, nt, seed, index, n_euler_steps):
        """Checked arguments of `predict`."""
        if nt is None:
            if self.config.seq_len_test is None:
                raise ValueError('nt is missing, and config.json has no seq_len_test; '
                                 'give the number of frames to predict')
            nt = self.config.seq_len_test - self.config.nt_cond
        if n_euler_steps is not None:
            n_euler_steps = checked('n_euler_steps', n_euler_steps, parsing.euler_steps)
        return Sampling(checked('n_samples', n_samples, parsing.positive_int),
                        checked('nt', nt, parsing.frames), checked('seed', seed, parsing.seed),
                        checked('index', index, parsing.nonnegative_int), n_euler_steps)

    def _vectors(self, name, value, given, axes, size):
        """Check the vectors of an argument; float32 (N, …, size) on the device."""
        value = torch.as_tensor(value, dtype=torch.float32, device=self.device)
        shape = tuple(value.shape)
        value = value if given.is_batch else value[None]
        N = given.x.shape[1]
        fits = (value.shape[:1] == (N,) and value.shape[-1:] == (size,) and value.numel()
                and (value.ndim > 2 if axes else value.ndim == 2))
        if not fits:
            raise ValueError(f'{name} must be ({f"{N}, " * given.is_batch}{axes}{size}), '
                             f'found {shape}')
        return value
