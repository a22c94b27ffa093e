"""Videos as a function of (seed, index): the same for any number of workers and processes."""

import signal

from files import cores

import torch
from torch.utils.data import DataLoader, Dataset

from utils import stream_rng


class BatchStream(Dataset):
    """Endless stream of videos drawn from a source, in batches of any composition.

    Video i is drawn with the random numbers of item i of the stream, whatever its batch.

    Parameters
    ----------
    source : object with `draw(rngs, nt)` -> uint8 (nt, len(rngs), H, W, C)
        Draws one video with each `np.random.RandomState`.
    seed : int
    stream : {'train', 'val'}
    nt : int
        Frames per video.
    """

    def __init__(self, source, seed, stream, nt):
        self.source, self.seed, self.stream, self.nt = source, seed, stream, nt

    def __getitem__(self, videos):
        return self.source.draw([stream_rng(self.seed, self.stream, i) for i in videos], self.nt)


def chunks(videos, size):
    """Split a range into ranges of at most `size` items."""
    return [videos[i:i + size] for i in range(0, len(videos), size)]


def make_loader(stream, batches, n_workers, pin_memory=False, n_processes=1):
    """Loader of batches of a `BatchStream`, as tensors, in order.

    Parameters
    ----------
    stream : BatchStream
    batches : iterable of ranges
        Videos of each batch.
    n_workers : int
        Worker processes; at most one per core.
    pin_memory : bool
        As of `torch.utils.data.DataLoader`.
    n_processes : int
        Processes of the job on this machine, which share its cores.
    """
    # With its own generator, a loader does not advance the global one
    return DataLoader(stream, batch_size=None, sampler=batches, pin_memory=pin_memory,
                      num_workers=min(n_workers, max(1, cores() // n_processes)),
                      worker_init_fn=ignore_signals, generator=torch.Generator())


def ignore_signals(_):
    """Leave signals, which reach the whole process group, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
