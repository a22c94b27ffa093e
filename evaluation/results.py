"""Results of an evaluation on disk: finished batches while it runs, and what it ends with."""

import concurrent.futures
import hashlib
import json

from files import UserError, cores, read_json, reading, replacing, write_json

import numpy as np

from pictures import charts, frames


class FinishedBatches:
    """Finished batches of an evaluation, on disk, where a repeated call finds them.

    Frames of all videos are arrays on disk, `<name>.npy`, (N, T, H, W, C), into which each batch
    writes its part; after it, its scores, `<k>.npz`, say that it is finished. Their folder is named
    by `work`: all that the results depend on, and how the videos are split into batches.
    """

    def __init__(self, out_dir, work):
        digest = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
        self.folder = out_dir / f'.partial-{digest[:12]}'

    def create(self, shapes):
        """Create the arrays, of shapes by name, unless an earlier call did."""
        self.folder.mkdir(exist_ok=True)
        for name, shape in shapes.items():
            if not (self.folder / f'{name}.npy').exists():
                with replacing(self.folder / f'{name}.npy') as tmp:
                    np.lib.format.open_memmap(tmp, 'w+', np.uint8, shape)

    def write(self, k, videos, scores, frames):
        """Write batch k, the `videos` of a range: scores (B, …) and frames (T, B, H, W, C)."""
        for name, video in frames.items():
            array = np.lib.format.open_memmap(self.folder / f'{name}.npy', 'r+')
            array[videos.start:videos.stop] = video.swapaxes(0, 1)
        with replacing(self.folder / f'{k:06d}.npz') as tmp, open(tmp, 'wb') as f:
            np.savez(f, **scores)

    def done(self):
        """Numbers of the finished batches."""
        return sorted(int(path.stem) for path in self.folder.glob('*.npz'))

    def scores(self):
        """Scores of all finished videos by name, in their order."""
        batches = []
        for k in self.done():
            path = self.folder / f'{k:06d}.npz'
            with reading(path, 'is damaged', 'delete it and repeat the command'), \
                    np.load(path, allow_pickle=False) as arrays:
                batches.append(dict(arrays))
        return {name: np.concatenate([batch[name] for batch in batches])
                for name in (batches[0] if batches else ())}

    def frames(self, name):
        """Frames of all videos, a memory map (N, T, H, W, C)."""
        return np.load(self.folder / f'{name}.npy', mmap_mode='r', allow_pickle=False)


def check_earlier(out_dir, protocol, overwrite):
    """Raise a UserError if a folder has results of another protocol, unless `overwrite`."""
    path = out_dir / 'results.json'
    if overwrite or not path.exists():
        return
    earlier = read_json(path).get('protocol') or {}
    if earlier != protocol:
        differ = sorted(n for n in {*earlier, *protocol} if earlier.get(n) != protocol.get(n))
        raise UserError(f'{path} is of an evaluation with other {", ".join(differ)}; '
                        'use another --out_dir, or --overwrite')


def write_results(out_dir, table, protocol, scores, nt_cond, **facts):
    """Write the scores: `results.npz`, `curves.png` and, last, `results.json`."""
    (out_dir / 'results.json').unlink(missing_ok=True)
    with replacing(out_dir / 'results.npz') as tmp, open(tmp, 'wb') as f:
        np.savez_compressed(f, **scores)
    charts.score_curves(out_dir / 'curves.png', {'': scores}, nt_cond)
    write_json(out_dir / 'results.json', {'scores': table, 'protocol': protocol, **facts})


def write_samples(out_dir, finished, names):
    """Write the frames of all videos, `<name>.npz` with `samples`, compressed on all cores."""
    def write(name):
        with replacing(out_dir / f'{name}.npz') as tmp, open(tmp, 'wb') as f:
            np.savez_compressed(f, samples=finished.frames(name))
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, names))


def draw_pictures(folder, testset, finished, rows, n, nt_cond):
    """Draw the first n videos: truth, and `rows`, names of frames by label."""
    folder.mkdir(exist_ok=True)
    for i in range(n):
        videos = {'truth': testset.videos([i])[:, 0],
                  **{label: finished.frames(name)[i] for label, name in rows.items()}}
        paths = [folder / f'video_{i:04d}{end}' for end in ('.png', '.gif')]
        frames.draw_rows(paths, videos, nt_cond)
