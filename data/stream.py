"""Batches as a function of (seed, step): repeatable, resumable, the same for any number of workers."""

import atexit
import multiprocessing
import os
import signal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from utils import stream_rng


def get_fold(n, train):
    """Indices of the training (95%) or validation fold among n items, in order, as published.

    Returns
    -------
    np.ndarray of int
    """
    indices = np.arange(n)
    np.random.RandomState(42).shuffle(indices)
    split = int(0.95 * n)
    return np.sort(indices[:split] if train else indices[split:])


class BatchStream(Dataset):
    """Endless stream of batches drawn from a source.

    Video b of batch i is drawn with the random numbers of item i·B + b of the stream, whoever asks for it.

    Parameters
    ----------
    source : object with `draw(rngs, nt)` -> uint8 (nt, len(rngs), H, W, C)
        Draws one video with each of the `np.random.RandomState` given.
    seed : int
    stream : {'train', 'val'}
    batch_size, nt : int
        Videos a batch and frames a video.
    """

    def __init__(self, source, seed, stream, batch_size, nt):
        self.source, self.seed, self.stream, self.batch_size, self.nt = source, seed, stream, batch_size, nt

    def __getitem__(self, step):
        first = step * self.batch_size
        rngs = [stream_rng(self.seed, self.stream, first + b) for b in range(self.batch_size)]
        return self.source.draw(rngs, self.nt)


def _init_worker(_):
    # An interrupt from the terminal or a job scheduler reaches the whole process group; the main process alone answers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@atexit.register
def _kill_workers():
    # Python waits for the workers of a loader still in use, as after an exception, and these ignore its request to end.
    for process in multiprocessing.active_children():
        process.kill()


def make_loader(stream, start, stop, n_workers, pin_memory=False):
    """Loader of the batches of steps `start` to `stop` - 1 of a `BatchStream`, as tensors; at most a worker a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    n_workers = min(n_workers, cores)
    # A generator of its own: else each loader would draw a number from the global one, that of the model's noise.
    return DataLoader(stream, batch_size=None, sampler=range(start, stop), num_workers=n_workers, pin_memory=pin_memory,
                      worker_init_fn=_init_worker, generator=torch.Generator())
