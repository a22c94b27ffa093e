"""Reading and drawing videos: against PNG frames, against the plain loops of Moving MNIST, and the memory of workers."""

import statistics
import subprocess
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.clips import Clips
from data.digits import load_digits
from data.mmnist import MovingDigits, draw_trajectory
from data.stream import BatchStream, chunks
from data.video import find_videos
from preprocessing.convert import find_ffmpeg
from preprocessing.kth import convert as kth

REPEATS = 5


def seconds(loader):
    """Time to go through a loader, its start left out."""
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def compare(plain, here):
    """Medians of two functions that return seconds, in alternating repetitions, and of their ratio."""
    pairs = [(plain(), here()) for _ in range(REPEATS)]
    return *map(statistics.median, zip(*pairs)), statistics.median(a / b for a, b in pairs)


def kth_clips(folder):
    """Clips of 20 frames from one worker: published PNG frames read by Pillow, against the memory map."""
    source = folder / 'video.avi'
    subprocess.run([find_ffmpeg(), '-v', 'error', '-f', 'lavfi', '-i', 'mandelbrot=size=160x120:rate=25', '-t', '16', '-c:v', 'mpeg4', str(source)],
                   check=True)
    frames, _ = kth.read(source, 64, 25)
    for k in range(20):
        for layout, write in (('array', kth.write), ('published', kth.write_published)):
            target = folder / layout / f'person{k + 1:02d}_boxing_d1'
            target.parent.mkdir(exist_ok=True)
            write(target.with_suffix('.npy') if layout == 'array' else target, frames)
    B, n = 32, 60

    def run(layout):
        clips = Clips(list(find_videos(folder / layout).values()), 64, 1, 20)
        return lambda: seconds(DataLoader(BatchStream(clips, 0, 'train', 20), None, sampler=chunks(range(B * (n + 1)), B), num_workers=1))
    plain, here, ratio = compare(run('published'), run('array'))
    return 'KTH, clips of 20 frames a second, one worker: PNG frames / memory map', f'{B * n / plain:,.0f}', f'{B * n / here:,.0f}', f'{ratio:.1f}'


class PlainMovingDigits(Dataset):
    """Moving MNIST by the book: each digit, frame by frame, added to a float picture; a video an item, collated by PyTorch."""

    def __init__(self, digits, nt, n):
        self.digits, self.nt, self.n = digits, nt, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        rng = np.random.RandomState(i)
        video = np.zeros((self.nt, 64, 64), np.float32)
        for _ in range(2):
            digit = self.digits[rng.randint(len(self.digits))]
            for t, (x, y, _, _) in enumerate(draw_trajectory(rng, self.nt, 64, 4, False)):
                video[t, x:x + 28, y:y + 28] += digit
        video[video > 255] = 255
        return torch.from_numpy(video / 255)[:, None]


def mmnist_clips():
    """Clips of 15 frames from one worker."""
    digits, _ = load_digits('mnist5k', None, True)
    B, n = 128, 20
    stream = BatchStream(MovingDigits(digits, 64, 4, 2, False), 0, 'train', 15)
    plain, here, ratio = compare(
        lambda: seconds(DataLoader(PlainMovingDigits(digits, 15, B * (n + 1)), B, num_workers=1)),
        lambda: seconds(DataLoader(stream, None, sampler=chunks(range(B * (n + 1)), B), num_workers=1)))
    return 'Moving MNIST, clips of 15 frames a second, one worker: plain loop / here', f'{B * n / plain:,.0f}', f'{B * n / here:,.0f}', f'{ratio:.1f}'


def private_megabytes(pid):
    """Memory of a process that no other shares (Linux)."""
    with open(f'/proc/{pid}/smaps_rollup') as f:
        return sum(int(line.split()[1]) for line in f if line.startswith('Private')) / 1024


def worker_memory(folder, gigabytes, n_batches=2000, n_workers=4):
    """Growth of the private memory of workers that read clips of a dataset as Human3.6M."""
    block = np.random.RandomState(0).randint(0, 256, (2000, 64, 64, 3)).astype(np.uint8)
    n = round(gigabytes * 1e9 / block.nbytes)
    (folder / 'human').mkdir()
    for i in range(n):
        np.save(folder / 'human' / f'S1-{i}.npy', np.roll(block, i, 0))
    clips = Clips(list(find_videos(folder / 'human').values()), 64, 3, 16, 8)
    loader = DataLoader(BatchStream(clips, 0, 'train', 16), None, sampler=chunks(range(16 * n_batches), 16), num_workers=n_workers)
    batches = iter(loader)
    pids = [w.pid for w in batches._workers]
    for i, _ in enumerate(batches):
        if i == 50:
            before = [private_megabytes(p) for p in pids]
        if i == n_batches - 4 * n_workers:  # before they end
            after = [private_megabytes(p) for p in pids]
    growth = max(b - a for a, b in zip(before, after))
    what = f'{n_workers} workers, {n_batches:,} batches of a set of {n * block.nbytes / 1e9:.1f} GB: largest growth of private memory, MB'
    return what, '', f'{growth:.1f}', ''


def rows(folder, gigabytes):
    """Yield the rows of the table: what, plain, here, ratio."""
    yield kth_clips(folder)
    yield mmnist_clips()
    yield worker_memory(folder, gigabytes)
