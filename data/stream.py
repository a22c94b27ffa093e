"""Videos as a function of (seed, index): the same for any number of workers and processes."""

import signal

from files import cores

import torch
from torch.utils.data import DataLoader, Dataset

from utils import stream_rng


class BatchStream(Dataset):
    """Endless stream, 'train' or 'val', of videos of `nt` frames, in batches of any composition.

    Video i is drawn from the source (see `data.clips.Dataset`) with the random numbers of item i of
    the stream, whatever its batch.
    """

    def __init__(self, source, seed, stream, nt):
        self.source, self.seed, self.stream, self.nt = source, seed, stream, nt

    def __getitem__(self, videos):
        return self.source.draw([stream_rng(self.seed, self.stream, i) for i in videos], self.nt)


def chunks(videos, size):
    """Split a range into ranges of at most `size` items."""
    return [videos[i:i + size] for i in range(0, len(videos), size)]


def make_loader(stream, batches, n_workers, pin_memory=False, n_processes=1):
    """Loader of the batches (iterable of ranges) of a `BatchStream`, as tensors, in order.

    The `n_processes` of the job on this machine share its cores; each core gets one worker at most.
    """
    # With its own generator, a loader does not advance the global one
    return DataLoader(stream, batch_size=None, sampler=batches, pin_memory=pin_memory,
                      num_workers=min(n_workers, max(1, cores() // n_processes)),
                      worker_init_fn=ignore_signals, generator=torch.Generator())


def ignore_signals(_):
    """Leave signals, which reach the whole process group, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
