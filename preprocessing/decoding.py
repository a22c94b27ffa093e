"""Videos as ffmpeg reads them: what is in a file, and its frames as raw pixels."""

import math
import re
import shutil
import subprocess
import tempfile
from typing import NamedTuple

import numpy as np

from files import UserError

BLOCK = 1 << 20  # bytes of frames that are read at once
# What ffmpeg reads, but is no video itself
OTHERS = {'tty': 'text', 'concat': 'a list of other files', 'dash': 'a list of other files',
          'hls': 'a list of other files'}


class Unreadable(Exception):
    """A source cannot be decoded; the message is the reason."""


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


class Content(NamedTuple):
    """What the headers of a video file say."""
    width: int       # as stored, before a rotation
    height: int
    duration: float  # in seconds; 0 if unknown
    rate: float      # frames per second; 0 if unknown


def probe(path):
    """Read the headers of a video file; raises `Unreadable` if ffmpeg finds no video in it."""
    command = [find_ffmpeg(), '-nostdin', '-hide_banner', '-i', f'file:{path}']
    text = subprocess.run(command, capture_output=True).stderr.decode(errors='replace')
    kind = re.search(r'^Input #0, (\S+), from ', text, re.M)
    if kind is None:
        raise Unreadable(text.strip().rpartition(': ')[2] or 'ffmpeg says nothing')
    if kind[1] in OTHERS:
        raise Unreadable(f'it is {OTHERS[kind[1]]}')
    streams = [line for line in re.findall(r'^ *Stream #0:.*?: Video: (.*)', text, re.M)
               if '(attached pic)' not in line]
    size = re.search(r', (\d+)x(\d+)', streams[0]) if streams else None
    if size is None:
        raise Unreadable(f'there is no video in it, but {kind[1]}')
    duration = re.search(r'^ *Duration: (\d+):(\d+):([\d.]+)', text, re.M)
    seconds = sum(float(n) * unit for n, unit in zip(duration.groups(), (3600, 60, 1))) \
        if duration else 0
    rate = re.search(r'([\d.]+) fps', streams[0])
    return Content(int(size[1]), int(size[2]), seconds, float(rate[1]) if rate else 0)


class Frames:
    """Frames of a video, decoded by ffmpeg while they are iterated over.

    Yields blocks of frames, uint8 (n, *shape). Without `-r`, each stored frame comes once.

    Parameters
    ----------
    path : path
    shape : tuple
        (H, W, 3), RGB, or (H, W), grey: that of the frames after the options.
    options : str
        Output options of ffmpeg, such as '-s', '64x64', which give frames this size.
    max_frames : int, optional
        Longer videos count as damaged: to keep `-r`, ffmpeg fills a wrong timestamp with copies.

    Attributes
    ----------
    note : str
        After the last frame, the first error that ffmpeg reported but survived, or empty.

    Raises
    ------
    Unreadable
        If the file is not a video, or no frame can be decoded.
    """

    def __init__(self, path, shape, *options, max_frames=None):
        self.shape, self.max_frames, self.note = shape, max_frames, ''
        rate = [] if '-r' in options else ['-fps_mode', 'passthrough']
        self.command = [
            find_ffmpeg(), '-nostdin', '-v', 'error', '-threads', '1', '-i', f'file:{path}',
            *options, *rate, '-f', 'rawvideo',
            '-pix_fmt', 'rgb24' if len(shape) == 3 else 'gray', '-']

    def __iter__(self):
        with tempfile.TemporaryFile() as messages, \
                subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=messages) as process:
            n_frames = 0
            try:
                for block in self._blocks(process.stdout):
                    n_frames += len(block)
                    if self.max_frames and n_frames > self.max_frames:
                        raise Unreadable(f'it has more than {self.max_frames:,} frames')
                    yield block
            finally:
                process.stdout.close()
                process.wait()
            messages.seek(0)
            errors = messages.read().decode(errors='replace').strip().splitlines()
        if process.returncode or not n_frames:
            raise Unreadable(errors[-1] if errors else 'it has no frames')
        self.note = errors[0] if errors else ''

    def _blocks(self, stream):
        n_bytes = math.prod(self.shape)
        while data := stream.read(max(1, BLOCK // n_bytes) * n_bytes):
            if len(data) % n_bytes:
                raise Unreadable('ffmpeg stopped in the middle of a frame')
            yield np.frombuffer(data, np.uint8).reshape(-1, *self.shape)


def decode(path, shape, *options, transform=lambda frame: frame, max_frames=None):
    """All frames of `Frames`, each transformed, uint8 (T, …), and the note."""
    blocks = Frames(path, shape, *options, max_frames=max_frames)
    frames = [transform(frame) for block in blocks for frame in block]
    return np.stack(frames), blocks.note
