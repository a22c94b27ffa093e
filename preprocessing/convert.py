"""Common parts of the scripts: options, atomic writing, parallel conversion."""

import contextlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from files import (
    UserError,
    WriteError,
    exclusive,
    make_folder,
    progress_bar,
    read_json,
    reading,
    replacing,
    replacing_folder,
    sha256,
    write_json,
    writing,
)
from parsing import Parser, frames, positive_int, seed
from preprocessing.decoding import Unreadable

CHECKSUMS = 'checksums.sha256'  # also for `sha256sum --check`


# Options

def dataset_parser(description):
    """Parser with `--data_dir`."""
    parser = Parser(description)
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    return parser


def clips_parser(description, seq_len):
    """Parser with the options of a test set of clips, by default of `seq_len` frames."""
    parser = dataset_parser(description)
    parser.add_argument('--size', type=positive_int, default=1000, help='number of clips')
    parser.add_argument('--seq_len', type=frames, default=seq_len,
                        help='frames per clip, after subsampling if any')
    parser.add_argument('--seed', type=seed, default=42, help='seed of the draws')
    return parser


def add_size_option(parser):
    """Add `--image_size`."""
    parser.add_argument('--image_size', type=positive_int, default=64,
                        help='width and height of frames')


def add_check_option(parser):
    """Add `--check`."""
    parser.add_argument('--check', action='store_true',
                        help='convert nothing; compare converted videos with their checksums')


def add_layout_option(parser, published):
    """Add `--layout`, which selects our arrays or the `published` form of a video."""
    parser.add_argument('--layout', choices=['array', 'published'], default='array',
                        help=f'one .npy per video or, as published, {published}')


# Frames

def resized(frame, size, box):
    """Crop `box` (left, upper, right, lower), then resize to size x size with Lanczos.

    In two steps: `resize(box=…)` of Pillow differs.
    """
    image = Image.fromarray(frame).crop(box)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


# Writing

def write_array(path, frames):
    """Write frames as one `.npy`."""
    with replacing(path) as tmp, open(tmp, 'wb') as f:
        np.save(f, np.ascontiguousarray(frames), allow_pickle=False)


def write_blocks(path, blocks):
    """Write blocks of frames, uint8 (n, …) each, as one `.npy`, the same as of all in one array.

    The memory is that of one block. Returns the number of frames.
    """
    with replacing(path) as tmp, open(tmp, 'wb') as f:
        n_frames = 0
        for block in blocks:
            if not n_frames:
                write_header(f, 0, block.shape[1:])
            f.write(np.ascontiguousarray(block))
            n_frames += len(block)
        f.seek(0)
        write_header(f, n_frames, block.shape[1:])  # as long as the first: NumPy leaves room
    return n_frames


def write_header(f, n_frames, frame_shape):
    """Write the header of a `.npy` of uint8 frames."""
    np.lib.format.write_array_header_1_0(f, {
        'descr': '|u1', 'fortran_order': False, 'shape': (n_frames, *frame_shape)})


def write_pngs(path, frames, name):
    """Write frames as a folder of PNG files, frame i as `name(i)`."""
    with replacing_folder(path) as tmp:
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp / name(i))


# Running

@dataclass
class Job:
    """Conversion of one source. The functions are picklable, for use in processes.

    Attributes
    ----------
    source, target : Path
    read : function source -> (frames, note)
        As `decode`; raises `Unreadable`.
    write : function (target, frames)
        Writes all frames or nothing.
    count : function frames -> int
        Number of frames.
    """
    source: Path
    target: Path
    read: Callable[[Path], tuple]
    write: Callable[[Path, Any], None]
    count: Callable[[Any], int] = len

    @property
    def targets(self):
        return [self.target]

    def __call__(self):
        """Convert; returns the number of frames, None if unreadable, and a note on the source."""
        try:
            frames, note = self.read(self.source)
        except UserError:
            raise
        except Unreadable as error:
            return None, str(error)
        except Exception as error:  # decoders raise many kinds; a bad file must not stop the rest
            return None, f'{type(error).__name__}: {error}'
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.write(self.target, frames)
        return self.count(frames), note


def read_record(path, advice):
    """JSON object of an earlier conversion, empty if there was none; `advice` is for damage."""
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f'{error}; {advice}') from None


@contextlib.contextmanager
def converting(folder, options, earlier=None):
    """Lock the output folder, and refuse options that differ from an earlier conversion to it.

    `earlier` holds options that records of earlier versions lack.
    """
    make_folder(folder, 'output folder')
    message = f'another conversion to {folder} is running; wait until it has ended'
    with exclusive(folder / '.conversion.lock', message):
        path = folder / 'conversion.json'
        before = read_record(path, 'remove it, and the converted videos too unless they were made '
                                   'with the same options')
        before = (earlier or {}) | before if before else {}
        for key in sorted(options.keys() & before.keys()):
            if options[key] != before[key]:
                raise UserError(f'{folder} was converted with --{key} {before[key]}, found '
                                f'{options[key]}; use the same, or remove the converted videos and '
                                f'{path}')
        yield


def digests(target, folder):
    """SHA-256 of the files of a converted target, by path below `folder`."""
    files = sorted(target.rglob('*')) if target.is_dir() else [target]
    return {str(path.relative_to(folder)): sha256(path) for path in files if path.is_file()}


def add_checksums(target, folder):
    """Append the checksums of a new target to those of a folder, in the format of sha256sum."""
    with writing(folder / CHECKSUMS), open(folder / CHECKSUMS, 'a') as f:
        f.writelines(f'{digest}  {name}\n' for name, digest in digests(target, folder).items())


def read_checksums(folder):
    """Checksums of converted files by path below `folder`."""
    path = folder / CHECKSUMS
    with reading(path, 'is not a list of checksums', 'convert the videos again'):
        # The last one counts: a video that was deleted may have been converted again
        return {name: digest for digest, name in
                (line.split('  ', 1) for line in path.read_text().splitlines())}


def check_converted(folder):
    """Compare converted videos with their checksums; returns the exit code."""
    path = folder / CHECKSUMS
    if not path.exists():
        raise UserError(f'{path} does not exist; convert the videos first')
    expected = read_checksums(folder)
    wrong = []
    for name, digest in progress_bar(expected.items(), 'checking', unit='file'):
        if not (folder / name).is_file():
            wrong.append(f'missing: {folder / name}')
        elif sha256(folder / name) != digest:
            wrong.append(f'damaged: {folder / name}; delete it to convert it again')
    print(f'{len(expected):,} files, {len(wrong)} damaged or missing', *wrong, sep='\n')
    return 1 if wrong else 0


def run_jobs(jobs, executor, options, unit='video'):
    """Run the conversions whose target does not exist yet, and print a summary.

    Parameters
    ----------
    jobs : list of Job
    executor : concurrent.futures.Executor
    options : dict
        Options that determine the result; the same for all conversions to a folder.
    unit : str
        Name of what a job converts.

    Returns
    -------
    int
        Exit code: 1 if a source was unreadable.
    """
    sources = {}
    for job in jobs:
        other = sources.setdefault(job.target, job.source)
        if other != job.source:
            raise UserError(f'{other} and {job.source} would both be converted to {job.target}; '
                            'remove or rename one')
    folder = Path(os.path.commonpath([job.target.parent for job in jobs]))
    with converting(folder, options):
        return run_locked(jobs, executor, folder, options, unit)


def is_done(job):
    """Whether all targets of a job exist."""
    return all(target.exists() for target in job.targets)


def run_locked(jobs, executor, folder, options, unit='video', silent=False):
    """As `run_jobs`, inside `converting(folder, options)`; `silent`: without a progress bar."""
    write_json(folder / 'conversion.json', options)
    for parent in {target.parent for job in jobs for target in job.targets}:
        for tmp in parent.glob('.*.tmp'):  # left by a killed process
            shutil.rmtree(tmp) if tmp.is_dir() else tmp.unlink()
    waiting = [job for job in jobs if not is_done(job)]
    n_frames, n_failed, notes = 0, 0, []
    for job, n, note in run(waiting, executor, unit, silent):
        if n is None:
            n_failed += 1
            notes.append(f'unreadable: {job.source} ({note})')
            continue
        n_frames += n
        for target in job.targets:
            add_checksums(target, folder)
        if note:
            targets = ', '.join(map(str, job.targets))
            notes.append(f'damaged, but converted: {job.source} ({note}); '
                         f'once repaired, delete {targets} to convert it again')
    print(f'{len(waiting) - n_failed:,} {unit}s converted ({n_frames:,} frames), '
          f'{len(jobs) - len(waiting):,} already there, {n_failed} unreadable')
    for note in sorted(notes):
        print(note)
    return 1 if n_failed else 0


def run(jobs, executor, unit, silent):
    """Run jobs and yield each, with its result, when it is done."""
    with executor:
        try:
            running = {executor.submit(job): job for job in jobs}
            for future in progress_bar(as_completed(running), 'converting', len(running),
                                       unit=unit, disable=silent or not running):
                yield running[future], *future.result()
        except (OSError, WriteError) as error:
            raise UserError(f'the conversion to {jobs[0].targets[0].parent} stopped: {error}; '
                            'finished videos are kept, run it again') from None
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
