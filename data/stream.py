"""Videos as a function of (seed, index): the same for any number of workers and processes."""

import multiprocessing
import multiprocessing.queues
import os
import resource
import signal
import sys

import torch
from torch.utils.data import DataLoader, Dataset

from data.workers import follow_parent
from files import UserError, cores
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


class Loader(DataLoader):
    """`DataLoader` that ends its workers on leaving a `with` block, even those that do not respond.

    An exception keeps the iterator alive, and Python would wait for its workers at exit.
    """

    batches = None

    def __iter__(self):
        before = set(multiprocessing.active_children())
        try:
            self.batches = super().__iter__()
        except BaseException:  # one of the workers cannot be started
            for worker in set(multiprocessing.active_children()) - before:
                worker.kill()
            raise
        return self.take_batches()

    def take_batches(self):
        try:
            yield from self.batches
        except (ConnectionError, EOFError) as error:  # a worker died while it sent a batch
            raise RuntimeError(f'DataLoader worker: {error}') from None  # as PyTorch calls it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.batches is not None and self.num_workers > 0:
            self.batches._shutdown_workers()
            for worker in self.batches._workers:
                worker.kill()  # SIGTERM is ignored


def make_loader(stream, batches, n_workers, pin_memory=False, n_processes=1):
    """Loader of batches of a `BatchStream`, as tensors, in order; use it in a `with` statement.

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

    Returns
    -------
    Loader
    """
    n_workers = min(n_workers, max(1, cores() // n_processes))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < 64 + 16 * n_workers:  # below, PyTorch fails in several ways
        raise UserError(f'{limit} open files (ulimit -n) are too few for {n_workers} processes '
                        f'that load data; allow {64 + 16 * n_workers}, or use fewer --n_workers')
    # With its own generator, a loader does not advance the global one
    return Loader(stream, batch_size=None, sampler=batches, num_workers=n_workers,
                  pin_memory=pin_memory, worker_init_fn=init_worker, generator=torch.Generator())


def init_worker(_):
    # Signals reach the whole process group; only the main process handles them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = print_other_errors
    # Queues drop what they cannot send, and the main process would wait for it forever
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end_worker)
    follow_parent()


def end_worker(error, _):
    """End a worker that cannot send a batch, as when shared memory is full."""
    print(f'a process that loads data cannot send a batch ({error}); free space in /dev/shm, or '
          'use --n_workers 0', file=sys.stderr, flush=True)
    os._exit(1)


def print_other_errors(kind, error, trace):
    """Exception hook of workers, silent if the main process is killed while it takes a batch."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)
