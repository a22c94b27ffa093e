"""Sampled futures of videos (section 4 of the paper), for validation and evaluation."""

from typing import NamedTuple

import torch

from files import UserError, is_out_of_memory
from metrics.frame import SSIM, psnr
from metrics.scoring import Best
from model import Noise
from module import FrozenDecoder
from utils import require_memory, stream_generator


def draw_noise(model, seed, stream, videos, n_samples, nt):
    """Standard normal noise for `n_samples` futures of each video.

    The noise of a video depends on the seed, the stream and its index only, so scores depend
    neither on the batch size nor on the device.

    Parameters
    ----------
    model : SRVP
    seed : int
    stream : {'val', 'test'}
    videos : sequence of int
        Indices in the stream.
    n_samples : int
    nt : int
        Number of frames, conditioning frames included.

    Returns
    -------
    Noise
        y_0 (S, B, ny) and z (nt-1, S, B, nz), on the CPU.
    """
    draws = [model.draw_noise(nt, n_samples, generator=stream_generator(seed, stream, i))
             for i in videos]
    return Noise(*(torch.stack(part, -2) for part in zip(*draws)))


def check_memory(config, device, n_videos, nt, n_samples=1, n_euler_steps=1,
                 advice='use fewer videos at a time, --n_samples, --nt_gen or --n_euler_steps'):
    """Raise a UserError if the noise and states of all samples exceed the memory.

    Parameters
    ----------
    config : argparse.Namespace
        Of the model.
    device : torch.device
    n_videos, nt, n_samples, n_euler_steps : int
        Videos at a time, and frames, samples per video and Euler steps per frame of each.
    advice : str
        What to do about it.
    """
    numbers = n_videos * n_samples * nt * (config.nz + config.ny * n_euler_steps)
    require_memory(4 * numbers, device, advice)


class Chunk:
    """Number of frames decoded at a time, halved whenever memory runs out.

    Parameters
    ----------
    model : SRVP
    size : int
        Default: chosen from the free memory of a GPU, or to fit the caches of a CPU; as many pixels
        at each size of frames.
    """

    def __init__(self, model, size=None):
        device = next(model.parameters()).device
        if size is None and device.type == 'cuda':
            free = (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
                    - torch.cuda.memory_allocated(device))
            widest = model.decoder.widest * 4  # bytes of the largest activation of a frame
            # Two of these, a workspace and the metrics
            size = min(4096 * 64 ** 2 // model.nx ** 2, free // (8 * widest))
        self.size = 128 * 64 ** 2 // model.nx ** 2 if size is None else max(1, size)

    def decode(self, decode, y):
        """Frames (T, B, nc, H, W) of states y (T, B, ny), by the function `decode`."""
        while True:
            rows = min(len(y), max(1, self.size // y.shape[1]))
            try:
                return torch.cat([decode(part) for part in y.split(rows)])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if rows == 1:
                    raise UserError(f'out of memory while decoding one frame of {y.shape[1]} '
                                    'videos; use a smaller --batch_size') from None
            self.size = rows * y.shape[1] // 2
            if y.is_cuda:
                torch.cuda.empty_cache()


class Futures:
    """Sampled futures of B videos, decoded chunk by chunk on access: memory is constant in S.

    Frame codes, content, skip connections and posterior parameters are computed once, and the
    states of all samples together.

    Parameters
    ----------
    model : SRVP, in evaluation mode
    x : tensor (T_o, B, C, H, W)
        Conditioning frames.
    nt : int
        Number of frames to predict.
    noise : Noise
        For T_o + nt frames of (S, B) videos.
    n_euler_steps : int
        Euler steps per predicted frame; default: as in training.
    between : bool
        Also decode the states between predicted frames: nt n frames instead of nt.
    chunk : Chunk
        Frames decoded at a time.
    dtype : torch.dtype
        Of the networks; states and frames stay in float32.
    """

    def __init__(self, model, x, nt, noise, n_euler_steps=None, between=False, chunk=None,
                 dtype=torch.float32):
        noise = Noise(*(part.to(x.device) for part in noise))
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            self.cond = model.condition(x)
            self.y_given, self.y = model.predict(self.cond, nt, noise, n_euler_steps, between)
        self.n = (n_euler_steps or model.n_euler_steps) if between else 1  # states per frame
        self.chunk = chunk or Chunk(model)
        w, skips = self.cond.w, self.cond.skips
        if dtype != torch.float32:
            w, skips = w.to(dtype), skips and [skip.to(dtype) for skip in skips]
        self._decoder = FrozenDecoder(model.decoder, w, skips)

    def __len__(self):
        return self.y.shape[1]

    def check_states(self):
        """Raise a UserError if states are not finite, although weights are."""
        for first, y in ((0, self.y_given), (len(self.y_given), self.y[self.n - 1::self.n])):
            bad = (~y.isfinite()).flatten(1).any(1).nonzero()
            if len(bad):
                raise UserError(f'the states of the model grow beyond float32 at frame '
                                f'{first + bad[0].item()}; predict fewer frames (--nt_gen), '
                                'or train the model for longer')

    def _decode(self, y):
        return self.chunk.decode(self._decoder, y)

    def given(self, s):
        """Reconstruction (T_o, B, C, H, W) of the conditioning frames in sample s."""
        return self._decode(self.y_given[:, s])

    def __getitem__(self, s):
        """Predicted frames (nt, B, C, H, W), in [0, 1], of sample s."""
        if s >= len(self):
            raise IndexError
        return self._decode(self.y[:, s])

    def __iter__(self):
        nt, _, B = self.y.shape[:3]
        for y in self.y.split(max(1, self.chunk.size // (nt * B)), 1):  # whole samples per chunk
            yield from self._decode(y.flatten(0, 1)).unflatten(0, y.shape[:2]).unbind(1)


class BestFutures(NamedTuple):
    """Best sample of each of B videos, by PSNR over the whole clip."""
    psnr: torch.Tensor    # (nt, B), of its predicted frames, in dB
    ssim: torch.Tensor    # (nt, B)
    frames: torch.Tensor  # (nt, B, C, H, W), in [0, 1]
    random: list          # of the first samples, (nt, B, C, H, W) each


@torch.no_grad()
def best_futures(model, x, nt_cond, noise, chunk=None, n_random=0):
    """Best samples of videos, for validation.

    Parameters
    ----------
    model : SRVP, in evaluation mode
    x : tensor (T, B, C, H, W)
    nt_cond : int
        Number of conditioning frames.
    noise : Noise
        For T frames of (S, B) videos.
    chunk : Chunk
        Frames decoded at a time.
    n_random : int
        Number of samples to return as well; all samples if there are fewer.

    Returns
    -------
    BestFutures
    """
    best, random, metric = Best(), [], SSIM()
    futures = Futures(model, x[:nt_cond], len(x) - nt_cond, noise, chunk=chunk)
    for s, future in enumerate(futures):
        frames = psnr(torch.cat([futures.given(s), future]), x).mean(2)  # (T, B), channel mean
        best.update(frames.mean(0), frames, future)
        if s < n_random:
            random.append(future.clone())
    frames, future = best.kept
    return BestFutures(frames[nt_cond:], metric(future, metric.prepare(x[nt_cond:])), future,
                       random)
