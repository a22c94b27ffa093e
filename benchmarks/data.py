"""Loading videos: against PNG frames and the plain loop of Moving MNIST; memory of workers."""

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
from preprocessing.decoding import find_ffmpeg
from preprocessing.kth import convert as kth

REPEATS = 5


def seconds(loader):
    """Time to iterate over a loader, its start excluded."""
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def stream_loader(source, nt, n_batches, batch_size, n_workers=1):
    """Loader of random videos of `nt` frames, as in training."""
    batches = chunks(range(n_batches * batch_size), batch_size)
    return DataLoader(BatchStream(source, 0, 'train', nt), None, sampler=batches,
                      num_workers=n_workers)


def compare(plain, here):
    """Medians of the seconds that two functions return in alternating runs, and of their ratio."""
    pairs = [(plain(), here()) for _ in range(REPEATS)]
    return *map(statistics.median, zip(*pairs)), statistics.median(a / b for a, b in pairs)


def kth_clips(folder):
    """Clips of 20 frames from one worker: PNG frames read with Pillow, against memory maps."""
    source = folder / 'video.avi'
    video = ['-f', 'lavfi', '-i', 'mandelbrot=size=160x120:rate=25', '-t', '16']
    subprocess.run([find_ffmpeg(), '-v', 'error', *video, '-c:v', 'mpeg4', source], check=True)
    frames, _ = kth.read(source, 64, 25)
    for k in range(20):
        name = f'person{k + 1:02d}_boxing_d1'
        for layout, file, write in (('array', f'{name}.npy', kth.write),
                                    ('published', name, kth.write_published)):
            (folder / layout).mkdir(exist_ok=True)
            write(folder / layout / file, frames)
    B, n = 32, 60

    def run(layout):
        clips = Clips(list(find_videos(folder / layout).values()), 64, 1, 20)
        return lambda: seconds(stream_loader(clips, 20, n + 1, B))
    plain, here, ratio = compare(run('published'), run('array'))
    return ('KTH, clips of 20 frames per second, one worker: PNG frames / memory map',
            f'{B * n / plain:,.0f}', f'{B * n / here:,.0f}', f'{ratio:.1f}')


class PlainMovingDigits(Dataset):
    """Moving MNIST with a loop over frames, one video per item, collated by PyTorch."""

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
    source = MovingDigits(digits, 64, 4, 2, False)
    plain_source = PlainMovingDigits(digits, 15, B * (n + 1))
    plain, here, ratio = compare(
        lambda: seconds(DataLoader(plain_source, B, num_workers=1)),
        lambda: seconds(stream_loader(source, 15, n + 1, B)))
    return ('Moving MNIST, clips of 15 frames per second, one worker: plain loop / here',
            f'{B * n / plain:,.0f}', f'{B * n / here:,.0f}', f'{ratio:.1f}')


def private_megabytes(pid):
    """Memory that a process does not share with others (Linux)."""
    with open(f'/proc/{pid}/smaps_rollup') as f:
        return sum(int(line.split()[1]) for line in f if line.startswith('Private')) / 1024


def worker_memory(folder, gigabytes, n_batches=2000, n_workers=4):
    """Growth of the private memory of workers that read clips of a set like Human3.6M."""
    block = np.random.RandomState(0).randint(0, 256, (2000, 64, 64, 3)).astype(np.uint8)
    n = round(gigabytes * 1e9 / block.nbytes)
    (folder / 'human').mkdir()
    for i in range(n):
        np.save(folder / 'human' / f'S1-{i}.npy', np.roll(block, i, 0))
    clips = Clips(list(find_videos(folder / 'human').values()), 64, 3, 16, 8)
    batches = iter(stream_loader(clips, 16, n_batches, 16, n_workers))
    pids = [w.pid for w in batches._workers]
    for i, _ in enumerate(batches):
        if i == 50:
            before = [private_megabytes(p) for p in pids]
        if i == n_batches - 4 * n_workers:  # before they exit
            after = [private_megabytes(p) for p in pids]
    growth = max(b - a for a, b in zip(before, after))
    what = (f'{n_workers} workers, {n_batches:,} batches of a set of {n * block.nbytes / 1e9:.1f} '
            'GB: largest growth of private memory, MB')
    return what, '', f'{growth:.1f}', ''


def rows(folder, gigabytes):
    """Yield the rows of the table: what, plain, here, ratio."""
    yield kth_clips(folder)
    yield mmnist_clips()
    yield worker_memory(folder, gigabytes)
