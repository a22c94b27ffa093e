"""Sampled futures of videos (section 4 of the paper), and their scores."""

from files import UserError, is_out_of_memory

import torch

from model import Noise
from module import FrozenDecoder
from utils import stream_generator


def draw_noise(model, seed, stream, videos, n_samples, nt):
    """Noise y_0 (S, B, ny) and z (nt-1, S, B, nz), on the CPU, for S futures of B videos.

    `videos` are their indices in the stream; `nt` includes the conditioning frames. The noise of a
    video depends on the seed, the stream and its index only, so scores depend neither on the batch
    size nor on the device.
    """
    draws = [model.draw_noise(nt, n_samples, generator=stream_generator(seed, stream, i))
             for i in videos]
    return Noise(*(torch.stack(part, -2) for part in zip(*draws)))


class Chunk:
    """Number of frames decoded at a time, halved whenever memory runs out.

    By default, it is chosen from the free memory of a GPU, or to fit the caches of a CPU; as many
    pixels at each size of frames.
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
                if not is_out_of_memory(error) or rows == 1:
                    raise
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
    nt, noise, n_euler_steps, between
        As in `SRVP.predict`. With `between`, nt n frames are decoded instead of nt.
    chunk : Chunk
        Frames decoded at a time.
    dtype : torch.dtype
        Of the networks; states and frames stay in float32.
    check : bool
        Whether states that are not finite are an error.

    Raises
    ------
    UserError
        States are not finite, although weights are.
    """

    def __init__(self, model, x, nt, noise, n_euler_steps=None, between=False, chunk=None,
                 dtype=torch.float32, check=True):
        noise = Noise(*(part.to(x.device) for part in noise))
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            self.cond = model.condition(x)
            self.y_given, self.y = model.predict(self.cond, nt, noise, n_euler_steps, between)
        if check and not (self.y_given.isfinite().all() and self.y.isfinite().all()):
            raise UserError('the states of the model grow beyond float32; predict fewer frames '
                            '(--nt_gen), or train the model for longer')
        self.chunk = chunk or Chunk(model)
        w, skips = self.cond.w, self.cond.skips
        if dtype != torch.float32:
            w, skips = w.to(dtype), skips and [skip.to(dtype) for skip in skips]
        self._decoder = FrozenDecoder(model.decoder, w, skips)

    def __len__(self):
        return self.y.shape[1]

    def _decode(self, y):
        return self.chunk.decode(self._decoder, y)

    def given(self, s):
        """Reconstruction (T_o, B, C, H, W) of the conditioning frames in sample s."""
        return self._decode(self.y_given[:, s])

    def __getitem__(self, s):
        """Predicted frames (nt, B, C, H, W), in [0, 1], of sample s."""
        return self._decode(self.y[:, s])

    def __iter__(self):
        nt, _, B = self.y.shape[:3]
        for y in self.y.split(max(1, self.chunk.size // (nt * B)), 1):  # whole samples per chunk
            yield from self._decode(y.flatten(0, 1)).unflatten(0, y.shape[:2]).unbind(1)


def quantise(x):
    """uint8 frames from frames in [0, 1], by truncation of 255 x."""
    return (255 * x).to(torch.uint8)


def to_frames(x):
    """uint8 array (…, H, W, C) of frames x (…, C, H, W) in [0, 1], up to rounding."""
    return quantise(x.clamp(0, 1)).movedim(-3, -1).cpu().numpy()


class Best:
    """Best sample so far of each video; `higher` says whether higher scores are better."""

    def __init__(self, higher=True):
        self.sign, self.score, self.kept = 1 if higher else -1, None, None

    def update(self, score, *kept):
        """Compare the score (B,) of a sample; `kept`, (T, B, …) each, is what to keep of it."""
        if self.score is None:
            self.score, self.kept = score, kept
            return
        better = self.sign * score > self.sign * self.score
        self.score = torch.where(better, score, self.score)
        self.kept = [torch.where(better.view(-1, *[1] * (new.ndim - 2)), new, old)
                     for old, new in zip(self.kept, kept)]


@torch.no_grad()
def score_futures(samples, target, metrics, n_random=5, keep=quantise,
                  on_sample=lambda n_videos: None):
    """Score samples of B videos: the best and the worst one counts, by each metric.

    Equal frames, whose PSNR is infinite, count as best when samples are chosen; the score of a
    video is the mean over its other frames, or NaN if all are equal.

    Parameters
    ----------
    samples : iterable of tensors (T, B, C, H, W), in [0, 1]
        Such as `Futures`.
    target : tensor (T, B, C, H, W)
        True frames.
    metrics : dict of metrics by name
    n_random : int
        Number of samples to return.
    keep : function
        Applied to frames that are returned.
    on_sample : function
        Called after each sample with the number of videos.

    Returns
    -------
    scores : dict of tensors
        Best score (B,) of each video by metric and, as `<metric>_t`, its frames' scores (B, T).
    frames : dict of tensors (T, B, C, H, W)
        `<metric>_best`, `<metric>_worst`, `random_1`, `random_2`, … (the first samples).
    """
    prepared = {name: metric.prepare(target) for name, metric in metrics.items()}
    best = {name: Best(metric.higher_is_better) for name, metric in metrics.items()}
    worst = {name: Best(not metric.higher_is_better) for name, metric in metrics.items()}
    scores, frames = {}, {}
    for s, x in enumerate(samples):
        kept = keep(x)
        if s < n_random:
            frames[f'random_{s + 1}'] = kept
        for name, metric in metrics.items():
            per_frame = metric(x, prepared[name])  # (T, B)
            best[name].update(per_frame.mean(0), kept, per_frame)
            worst[name].update(per_frame.mean(0), kept)
        on_sample(target.shape[1])
    for name in metrics:
        frames[f'{name}_best'], per_frame = best[name].kept
        frames[f'{name}_worst'] = worst[name].kept[0]
        equal = per_frame.isinf()
        scores[name] = per_frame.masked_fill(equal, 0).sum(0) / (~equal).sum(0)
        scores[f'{name}_t'] = per_frame.T
    return scores, frames
