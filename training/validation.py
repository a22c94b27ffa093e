"""Validation during training: scores, and a picture of some videos."""

from typing import NamedTuple

from files import progress_bar

import numpy as np
import torch

from data.stream import chunks, make_loader
from evaluation.futures import Chunk, Futures, draw_noise, score_futures, to_frames
from metrics.frame import PSNR, SSIM
from utils import to_video

N_SHOWN, N_RANDOM = 4, 2  # videos to draw, and random futures of each


class Scores(NamedTuple):
    """Scores of N validation videos: of the future with the best PSNR over the whole clip."""
    psnr: np.ndarray    # (N,), mean over predicted frames, in dB
    ssim: np.ndarray    # (N,)
    psnr_t: np.ndarray  # (N, nt), of each predicted frame
    shown: dict         # uint8 (T, H, W, C) by label, of the first videos; empty unless main


@torch.no_grad()
def validate(model, stream, config, device, world, stop):
    """`Scores` of the validation videos, by all processes; None if one was asked to stop."""
    c, shown, ssim = config, {}, SSIM()
    chunk = Chunk(model)
    # The mean PSNR, the mean SSIM, and PSNR by frame; zero for videos of other processes
    table = torch.zeros(c.n_iter_test * c.batch_size_test, 2 + c.seq_len_test - c.nt_cond,
                        dtype=torch.float64)
    batches = chunks(world.part(len(table)), c.batch_size_test)
    # Batches of the process that has the most; all look for a signal as often
    rounds = -(-len(table) // (world.size * c.batch_size_test))
    loader = iter(make_loader(stream, batches, min(c.n_workers, 1)))
    for i in progress_bar(range(rounds), 'validation', leave=False, unit='batch',
                          disable=None if world.main else True):
        if world.any(stop.received is not None):
            return None
        if i >= len(batches):
            continue
        videos, x = batches[i], to_video(next(loader), device)  # (T, B, C, H, W)
        noise = draw_noise(model, c.seed, 'val', videos, c.n_samples_test, c.seq_len_test)
        futures = Futures(model, x[:c.nt_cond], len(x) - c.nt_cond, noise, chunk=chunk)
        clips = (torch.cat([futures.given(s), future]) for s, future in enumerate(futures))
        scores, frames = score_futures(clips, x, {'psnr': PSNR()}, N_RANDOM, keep=lambda x: x)
        psnr = scores['psnr_t'][:, c.nt_cond:]  # (B, nt)
        best, target = frames['psnr_best'][c.nt_cond:], x[c.nt_cond:]
        table[videos.start:videos.stop] = torch.cat(
            [psnr.mean(1, keepdim=True), ssim(best, ssim.prepare(target)).mean(0)[:, None],
             psnr], 1)
        rows = {'truth': x, 'best': frames['psnr_best']} | {
            f'random {k + 1}': frames[f'random_{k + 1}']
            for k in range(min(N_RANDOM, c.n_samples_test))}
        for b in range(max(0, min(videos.stop, N_SHOWN) - videos.start) if world.main else 0):
            shown |= {f'{videos[b]}: {label}': to_frames(video[:, b])
                      for label, video in rows.items()}
    table = world.sum(table).numpy()
    return Scores(table[:, 0], table[:, 1], table[:, 2:], shown)
