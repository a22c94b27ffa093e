"""Common parts of the scripts: options, decoding, atomic writing, parallel conversion."""

import contextlib
import os
import shutil
import subprocess
import tempfile
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

CHECKSUMS = 'checksums.sha256'  # also for `sha256sum --check`


class Unreadable(Exception):
    """A source cannot be decoded; the message is the reason."""


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


# Decoding

def find_ffmpeg():
    """Path of ffmpeg: the binary shipped with imageio-ffmpeg, or the system's."""
    try:
        import imageio_ffmpeg
        path = imageio_ffmpeg.get_ffmpeg_exe()
        if shutil.which(path):
            return path
        raise UserError(f'IMAGEIO_FFMPEG_EXE is {path}, which cannot be executed; unset it, '
                        'or set it to ffmpeg')
    except (ImportError, RuntimeError):
        if path := shutil.which('ffmpeg'):
            return path
    raise UserError('ffmpeg was not found; pip install imageio-ffmpeg, or install ffmpeg itself')


def decode(path, *options, transform=lambda frame: frame, max_frames=None):
    """Decode a video with ffmpeg. Without `-r`, each stored frame comes once.

    Parameters
    ----------
    path : path
    options : str
        Output options of ffmpeg, such as '-r', '25'.
    transform : function
        Applied to each frame, RGB uint8 (H, W, 3), as it is decoded.
    max_frames : int, optional
        Longer videos count as damaged: to keep `-r`, ffmpeg fills a wrong timestamp with copies.

    Returns
    -------
    frames : np.ndarray of uint8 (T, …)
    note : str
        First error that ffmpeg reported but survived, or empty.

    Raises
    ------
    Unreadable
        If the file is not a video, or no frame can be decoded.
    """
    rate = [] if '-r' in options else ['-fps_mode', 'passthrough']
    command = [find_ffmpeg(), '-nostdin', '-v', 'error', '-threads', '1', '-i', f'file:{path}',
               *options, *rate, '-f', 'image2pipe', '-c:v', 'ppm', '-pix_fmt', 'rgb24', '-']
    frames = []
    with tempfile.TemporaryFile() as messages, \
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages) as process:
        try:
            for frame in read_ppm(process.stdout):
                if len(frames) == max_frames:
                    raise Unreadable(f'it has more than {max_frames:,} frames')
                frames.append(transform(frame))
        finally:
            process.stdout.close()
            process.wait()
        messages.seek(0)
        errors = messages.read().decode(errors='replace').strip().splitlines()
    if process.returncode or not frames:
        raise Unreadable(errors[-1] if errors else 'it has no frames')
    return np.stack(frames), errors[0] if errors else ''


def read_ppm(stream):
    """Yield the frames of a stream of PPM images, each with its own size: uint8 (H, W, 3)."""
    while stream.readline() == b'P6\n':
        width, height = map(int, stream.readline().split())
        stream.readline()  # maximum value, 255
        data = stream.read(width * height * 3)
        if len(data) < width * height * 3:
            raise Unreadable('ffmpeg stopped in the middle of a frame')
        yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


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
def converting(folder, options):
    """Lock the output folder, and refuse options that differ from an earlier conversion to it."""
    make_folder(folder, 'output folder')
    message = f'another conversion to {folder} is running; wait until it has ended'
    with exclusive(folder / '.conversion.lock', message):
        path = folder / 'conversion.json'
        before = read_record(path, 'remove it, and the converted videos too unless they were made '
                                   'with the same options')
        for key in options.keys() & before.keys():
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


def check_converted(folder):
    """Compare converted videos with their checksums; returns the exit code."""
    path = folder / CHECKSUMS
    if not path.exists():
        raise UserError(f'{path} does not exist; convert the videos first')
    with reading(path, 'is not a list of checksums', 'convert the videos again'):
        # The last one counts: a video that was deleted may have been converted again
        expected = {name: digest for digest, name in
                    (line.split('  ', 1) for line in path.read_text().splitlines())}
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


def run_locked(jobs, executor, folder, options, unit='video'):
    """As `run_jobs`, inside `converting(folder, options)`."""
    write_json(folder / 'conversion.json', options)
    for parent in {job.target.parent for job in jobs}:
        for tmp in parent.glob('.*.tmp'):  # left by a killed process
            shutil.rmtree(tmp) if tmp.is_dir() else tmp.unlink()
    waiting = [job for job in jobs if not job.target.exists()]
    n_frames, n_failed, notes = 0, 0, []
    for job, n, note in run(waiting, executor, unit):
        if n is None:
            n_failed += 1
            notes.append(f'unreadable: {job.source} ({note})')
            continue
        n_frames += n
        add_checksums(job.target, folder)
        if note:
            notes.append(f'damaged, but converted: {job.source} ({note}); '
                         f'once repaired, delete {job.target} to convert it again')
    print(f'{len(waiting) - n_failed:,} {unit}s converted ({n_frames:,} frames), '
          f'{len(jobs) - len(waiting):,} already there, {n_failed} unreadable')
    for note in sorted(notes):
        print(note)
    return 1 if n_failed else 0


def run(jobs, executor, unit):
    """Run jobs and yield each, with its result, when it is done."""
    with executor:
        try:
            running = {executor.submit(job): job for job in jobs}
            for future in progress_bar(as_completed(running), 'converting', len(running),
                                       unit=unit, disable=not running):
                yield running[future], *future.result()
        except (OSError, WriteError) as error:
            raise UserError(f'the conversion to {jobs[0].target.parent} stopped: {error}; finished '
                            'videos are kept, run it again') from None
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
