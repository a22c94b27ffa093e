"""Videos as a function of (seed, index): repeatable, resumable, the same for any number of workers and processes."""

import atexit
import multiprocessing
import signal

import torch
from torch.utils.data import DataLoader, Dataset

from files import cores
from utils import stream_rng


class BatchStream(Dataset):
    """Endless stream of videos drawn from a source, in batches of any kind.

    Video i is drawn with the random numbers of item i of the stream, whoever asks for it and with whichever others.

    Parameters
    ----------
    source : object with `draw(rngs, nt)` -> uint8 (nt, len(rngs), H, W, C)
        Draws one video with each of the `np.random.RandomState` given.
    seed : int
    stream : {'train', 'val'}
    nt : int
        Frames a video.
    """

    def __init__(self, source, seed, stream, nt):
        self.source, self.seed, self.stream, self.nt = source, seed, stream, nt

    def __getitem__(self, videos):
        return self.source.draw([stream_rng(self.seed, self.stream, i) for i in videos], self.nt)


def chunks(videos, size):
    """Ranges of at most `size` items that a range consists of."""
    return [videos[i:i + size] for i in range(0, len(videos), size)]


def _init_worker(_):
    # An interrupt from the terminal or a job scheduler reaches the whole process group; the main process alone answers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@atexit.register
def _kill_workers():
    # Python waits for the workers of a loader still in use, as after an exception, and these ignore its request to end.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would tell that as an error of theirs
    for process in multiprocessing.active_children():
        process.kill()


def make_loader(stream, batches, n_workers, pin_memory=False, n_processes=1):
    """Loader of batches of a `BatchStream`, as tensors, in order.

    Parameters
    ----------
    stream : BatchStream
    batches : iterable of ranges
        Videos of each batch.
    n_workers : int
        Worker processes; at most one a core.
    pin_memory : bool
        As of `torch.utils.data.DataLoader`.
    n_processes : int
        Processes of the job on this machine, which share its cores.
    """
    n_workers = min(n_workers, max(1, cores() // n_processes))
    # A generator of its own: else each loader would draw a number from the global one.
    return DataLoader(stream, batch_size=None, sampler=batches, num_workers=n_workers, pin_memory=pin_memory,
                      worker_init_fn=_init_worker, generator=torch.Generator())
