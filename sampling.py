"""Draw futures of videos and keep the best of N: shared by validation and evaluation (paper, section 4)."""

import torch

from files import UserError, is_out_of_memory
from metrics.frame import psnr
from model import Noise
from module import FrozenDecoder
from utils import stream_generator


def draw_noise(model, seed, stream, videos, n_samples, nt):
    """Standard normal draws for `n_samples` futures, of `nt` frames in all, of each video.

    Those of a video depend on the seed, its stream and its index only: scores do not depend on how videos are batched, nor
    on the device.

    Parameters
    ----------
    videos : sequence of int
        Indices in the stream ('val' or 'test').

    Returns
    -------
    Noise
        y_0 (S, B, ny), z (nt-1, S, B, nz), on the CPU.
    """
    draws = [model.draw_noise(nt, n_samples, generator=stream_generator(seed, stream, i)) for i in videos]
    return Noise(*(torch.stack(part, -2) for part in zip(*draws)))


class Chunk:
    """Number of frames that are decoded at a time: what memory there is allows, and half of it each time that it was too much.

    Parameters
    ----------
    model : SRVP
        What decodes.
    size : int
        By default chosen from the free memory of a GPU; on CPUs, what their caches are fast with.
    """

    def __init__(self, model, size=None):
        device = next(model.parameters()).device
        if size is None and device.type == 'cuda':
            free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            widest = model.decoder.widest * 4  # bytes of a frame's largest activation
            size = min(4096, free // (8 * widest))  # two of them, a workspace, and room for the metrics
        self.size = 128 if size is None else max(1, size)

    def decode(self, decode, y):
        """Frames (T, B, nc, 64, 64) that the function `decode` draws of states y (T, B, ny), as many rows at a time as fit."""
        while True:
            rows = min(len(y), max(1, self.size // y.shape[1]))
            try:
                return torch.cat([decode(part) for part in y.split(rows)])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if rows == 1:
                    raise UserError(f'memory does not suffice to decode a frame of {y.shape[1]} videos; give a smaller batch') from None
            self.size = rows * y.shape[1] // 2
            if y.is_cuda:
                torch.cuda.empty_cache()


class Futures:
    """Sampled futures of B videos, decoded in chunks as they are asked for: memory does not grow with their number.

    Frame codes, content, skip connections and posterior parameters are computed once, the states of all samples together.

    Parameters
    ----------
    model : SRVP, in evaluation mode
    x : tensor (T_o, B, C, H, W)
        Given frames.
    nt : int
        Frames to predict.
    noise : Noise
        For T_o + nt frames of (S, B) videos.
    n_euler_steps : int
        For predicted frames, by default those of training.
    between : bool
        Decode the states between predicted frames too: nt n frames instead of nt.
    chunk : Chunk
        Frames to decode at a time.
    """

    def __init__(self, model, x, nt, noise, n_euler_steps=None, between=False, chunk=None):
        self.cond = model.condition(x)
        noise = Noise(*(part.to(x.device) for part in noise))
        self.y_given, self.y = model.predict(self.cond, nt, noise, n_euler_steps, between)
        self.chunk = chunk or Chunk(model)
        self._decoder = FrozenDecoder(model.decoder, self.cond.w, self.cond.skips)

    def __len__(self):
        return self.y.shape[1]

    def _decode(self, y):
        return self.chunk.decode(self._decoder, y)

    def given(self, s):
        """Reconstruction (T_o, B, C, H, W) of the given frames in sample s."""
        return self._decode(self.y_given[:, s])

    def __getitem__(self, s):
        """Predicted frames (nt, B, C, H, W), in [0, 1], of sample s."""
        if s >= len(self):
            raise IndexError
        return self._decode(self.y[:, s])

    def __iter__(self):
        nt, _, B = self.y.shape[:3]
        for y in self.y.split(max(1, self.chunk.size // (nt * B)), 1):  # as many samples at a time as fit
            yield from self._decode(y.flatten(0, 1)).unflatten(0, y.shape[:2]).unbind(1)


class LastFrame:
    """Baseline with the interface of `Futures`: one future, in which the last given frame stays."""

    def __init__(self, x, nt):
        self.x, self.nt = x, nt

    def __len__(self):
        return 1

    def given(self, s):
        return self.x

    def __getitem__(self, s):
        if s >= 1:
            raise IndexError
        return self.x[-1:].expand(self.nt, *self.x.shape[1:])


class Best:
    """Best sample so far of each video, by a score.

    Parameters
    ----------
    higher : bool
        Whether a higher score is better.
    """

    def __init__(self, higher=True):
        self.sign, self.score, self.kept = 1 if higher else -1, None, None

    def update(self, score, kept):
        """Compare a sample's score (B,); `kept` (T, B, …) is what to remember of the best."""
        if self.score is None:
            self.score, self.kept = score.clone(), kept.clone()
            return
        better = self.sign * score > self.sign * self.score
        self.score = torch.where(better, score, self.score)
        self.kept[:, better] = kept[:, better]


def quantise(x):
    """uint8 of frames in [0, 1], by truncation of 255 x."""
    return (255 * x).to(torch.uint8)


@torch.no_grad()
def validation_psnr(model, x, nt_cond, noise, chunk=None):
    """PSNR (B,), in dB, of the frames after `nt_cond`, for the sample with the best PSNR over the whole clip.

    Parameters
    ----------
    model : SRVP, in evaluation mode
    x : tensor (T, B, C, H, W)
    nt_cond : int
    noise : Noise
        For T frames of (S, B) videos.
    chunk : Chunk
        Frames to decode at a time.
    """
    best = Best()
    futures = Futures(model, x[:nt_cond], len(x) - nt_cond, noise, chunk=chunk)
    for s, future in enumerate(futures):
        frames = psnr(torch.cat([futures.given(s), future]), x).mean(2)  # (T, B), mean over channels
        best.update(frames.mean(0), frames)
    return best.kept[nt_cond:].mean(0)


@torch.no_grad()
def evaluate_batch(futures, target, metrics, n_random=5, on_sample=lambda: None):
    """Score all futures of a batch of videos.

    Parameters
    ----------
    futures : Futures
    target : tensor (nt, B, C, H, W)
        True frames after the given ones.
    metrics : dict of metrics by name (see `metrics`)
    n_random : int
        Samples to return, or all if there are fewer.
    on_sample : function
        Called after each sample.

    Returns
    -------
    scores : dict of tensors (B,)
        Best score of each video by metric.
    frames : dict of uint8 tensors (T, B, C, H, W)
        `<metric>_best`, `<metric>_worst`, `random_1`, `random_2` … (the first samples), `cond_rec`. Of one sample, which is the best
        and the worst, `random_1` and `cond_rec` only.
    """
    prepared = {name: metric.prepare(target) for name, metric in metrics.items()}
    best = {name: Best(metric.higher_is_better) for name, metric in metrics.items()}
    worst = {name: Best(not metric.higher_is_better) for name, metric in metrics.items()}
    frames = {'cond_rec': quantise(futures.given(0))}
    for s, x in enumerate(futures):
        kept = quantise(x)
        if s < n_random:
            frames[f'random_{s + 1}'] = kept
        for name, metric in metrics.items():
            score = metric(x, prepared[name])
            best[name].update(score, kept)
            worst[name].update(score, kept)
        on_sample()
    for name in metrics if len(futures) > 1 else ():
        frames[f'{name}_best'], frames[f'{name}_worst'] = best[name].kept, worst[name].kept
    return {name: b.score for name, b in best.items()}, frames
