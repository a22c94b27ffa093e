"""What all converters share: decoding by ffmpeg, writing whole videos or nothing, running all cores, a summary."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
from PIL import Image

from files import UserError, exclusive, progress_bar, read_json, replacing, replacing_folder, write_json


class Unreadable(Exception):
    """A source that cannot be decoded, with the reason."""


# Decoding

def find_ffmpeg():
    """Path of ffmpeg: the binary that imageio-ffmpeg ships, or the system's."""
    try:
        import imageio_ffmpeg
        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        if path := shutil.which('ffmpeg'):
            return path
    raise UserError('ffmpeg was not found; pip install imageio-ffmpeg, or install ffmpeg itself')


def decode(path, *options, transform=lambda frame: frame, most=None):
    """Decode a video by ffmpeg. Without `-r`, each frame of the file comes once, whatever its time.

    Parameters
    ----------
    path : path
    options : str
        Options of ffmpeg for its output, such as '-r', '25'.
    transform : function
        Applied to each frame, uint8 (H, W, 3), RGB, as it comes.
    most : int, optional
        Frames at which a file counts as damaged: a wrong time in it lets ffmpeg repeat frames without end to keep `-r`.

    Returns
    -------
    frames : np.ndarray of uint8 (T, …)
    note : str
        What ffmpeg complained about, though it went on; empty if nothing.

    Raises
    ------
    Unreadable
        The file is no video, or no frame can be decoded.
    """
    rate = [] if '-r' in options else ['-fps_mode', 'passthrough']
    command = [find_ffmpeg(), '-nostdin', '-v', 'error', '-threads', '1', '-i', f'file:{path}', *options, *rate,
               '-f', 'image2pipe', '-c:v', 'ppm', '-pix_fmt', 'rgb24', '-']  # PPM tells the size of each frame
    frames = []
    with tempfile.TemporaryFile() as messages, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages) as process:
        try:
            while process.stdout.readline() == b'P6\n':
                width, height = map(int, process.stdout.readline().split())
                process.stdout.readline()  # largest value, 255
                if len(frames) == most:
                    raise Unreadable(f'it has more than {most:,} frames')
                data = process.stdout.read(width * height * 3)
                if len(data) < width * height * 3:
                    raise Unreadable('ffmpeg ended in the middle of a frame')
                frames.append(transform(np.frombuffer(data, np.uint8).reshape(height, width, 3)))
        finally:
            process.stdout.close()
            process.wait()
        messages.seek(0)
        lines = messages.read().decode(errors='replace').strip().splitlines()
    if process.returncode or not frames:
        raise Unreadable(lines[-1] if lines else 'it has no frame')
    return np.stack(frames), lines[0] if lines else ''


def resized(frame, size, box=None):
    """Cut `box` (left, upper, right, lower) out of a frame, then resize it by Lanczos to size x size, in two steps."""
    picture = Image.fromarray(frame)
    if box is not None:
        picture = picture.crop(box)
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))


# Writing

def write_array(path, frames):
    """Write frames as one `.npy`."""
    with replacing(path) as tmp, open(tmp, 'wb') as f:
        np.save(f, np.ascontiguousarray(frames), allow_pickle=False)


def write_pngs(path, frames, name):
    """Write frames as a folder of PNG; `name(i)` is the file name of frame i, from 0."""
    with replacing_folder(path) as tmp:
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp / name(i))


# Running

@dataclass
class Job:
    """Conversion of one source. The functions must be picklable where processes run them.

    Attributes
    ----------
    source, target : Path
    read : function source -> (frames, note)
        See `decode`; raises `Unreadable`.
    write : function (target, frames)
        Writes them whole or not at all.
    count : function frames -> int
        How many they are.
    """
    source: Path
    target: Path
    read: Callable[[Path], tuple]
    write: Callable[[Path, Any], None]
    count: Callable[[Any], int] = len

    def __call__(self):
        """Convert. Returns the number of frames, None if the source is unreadable, and a note about the source."""
        try:
            frames, note = self.read(self.source)
        except UserError:
            raise
        except Exception as error:  # decoders raise all kinds, and one bad file must not stop the rest
            return None, str(error) if isinstance(error, Unreadable) else f'{type(error).__name__}: {error}'
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.write(self.target, frames)
        return self.count(frames), note


def follow_parent():
    """Let this process, a worker, end with the one that started it, however that ends."""
    def watch(parent=os.getppid()):
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def read_record(path, advice):
    """JSON object that an earlier conversion wrote, empty if there was none; `advice` says what to do if it is damaged."""
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f'{error}; {advice}') from None


@contextlib.contextmanager
def converting(folder, options):
    """Lock the folder that conversions go to, and remember their options there: other ones would give a mixture."""
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / '.conversion.lock', f'another conversion to {folder} is running; wait until it has ended'):
        path = folder / 'conversion.json'
        before = read_record(path, 'remove it, and the converted videos too unless they were made by the same options')
        for key in options.keys() & before.keys():
            if options[key] != before[key]:
                raise UserError(f'{folder} was converted with --{key} {before[key]}, found {options[key]}; give the same, or remove the '
                                f'converted videos and {path}')
        write_json(path, options)
        yield


def run_jobs(jobs, executor, options, unit='video'):
    """Run conversions, but those whose target exists, with one progress bar; print a summary.

    Parameters
    ----------
    jobs : list of Job
    executor : concurrent.futures.Executor
    options : dict
        Options by name that the result depends on: an earlier conversion to the same folder must have had the same.
    unit : str
        What a job converts.

    Returns
    -------
    int
        Exit code: 1 if a source was unreadable.
    """
    sources = {}
    for job in jobs:
        if (other := sources.setdefault(job.target, job.source)) != job.source:  # chance would decide whose video stays
            raise UserError(f'{other} and {job.source} would both be converted to {job.target}; remove or rename one')
    with converting(Path(os.path.commonpath([job.target.parent for job in jobs])), options):
        return run_locked(jobs, executor, unit)


def run_locked(jobs, executor, unit='video'):
    """As `run_jobs`, within `converting`."""
    for folder in {job.target.parent for job in jobs}:
        for tmp in folder.glob('.*.tmp'):  # left behind by a run that was killed
            shutil.rmtree(tmp) if tmp.is_dir() else tmp.unlink()
    waiting = [job for job in jobs if not job.target.exists()]
    n_frames, lines, n_failed = 0, [], 0
    with executor:
        try:
            running = {executor.submit(job): job for job in waiting}
            for future in progress_bar(as_completed(running), 'converting', len(running), unit=unit, disable=not running):
                frames, note = future.result()
                if frames is None:
                    n_failed += 1
                    lines.append(f'unreadable: {running[future].source} ({note})')
                    continue
                n_frames += frames
                if note:
                    job = running[future]
                    lines.append(f'damaged, but converted: {job.source} ({note}); once mended, delete {job.target} to convert it again')
        except BaseException as error:
            executor.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, OSError):  # no space, no permission
                raise UserError(f'the conversion stopped: {error}; what is done stays, mend this and run it again') from None
            raise
    print(f'{len(waiting) - n_failed:,} {unit}s converted ({n_frames:,} frames), {len(jobs) - len(waiting):,} already there, '
          f'{n_failed} unreadable')
    print(*sorted(lines), sep='\n', end='\n' if lines else '')
    return 1 if n_failed else 0
