"""Videos on disk, uint8 RGB or grey: what the converters write, and the published layouts."""

import contextlib
import math
import os
import re
import zipfile

import numpy as np
from PIL import Image

from files import UserError, reading


AGAIN = 'convert the video again'


def _read_header(path, f, size):
    """Shape of the uint8 array that a `.npy` stream of `size` bytes holds; leaves `f` at its first byte."""
    with reading(path, 'is not an array of NumPy', AGAIN):
        version = np.lib.format.read_magic(f)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(f)
    if dtype != np.uint8 or fortran or len(shape) not in (3, 4) or not all(type(n) is int and n >= 0 for n in shape):
        raise UserError(f'{path} must hold uint8 frames (T, H, W[, C]), found {dtype} {shape}; {AGAIN}')
    if size < f.tell() + math.prod(shape):
        raise UserError(f'{path} is cut short; {AGAIN}')
    return shape


class Video:
    """Frames of one video, read when asked for: uint8 (T, H, W, C).

    Attributes
    ----------
    path : Path
    frame_shape : tuple
        (H, W) or (H, W, C), as stored.
    """

    def __len__(self):
        return self.n_frames

    def clip(self, start, n, step=1):
        """Frames start, start + step, …: uint8 (n, H, W, C), all the channels there are."""
        frames = self._read(start, start + (n - 1) * step + 1, step)
        return frames[..., None] if frames.ndim == 3 else frames


class ArrayVideo(Video):
    """One `.npy` a video, opened as a memory map for each clip: the page cache is shared and no memory is kept."""

    def __init__(self, path):
        self.path = path
        with open(path, 'rb') as f:
            self.n_frames, *self.frame_shape = _read_header(path, f, os.fstat(f.fileno()).st_size)
            self.offset = f.tell()

    def _read(self, start, stop, step):
        frames = np.memmap(self.path, np.uint8, 'r', self.offset, (self.n_frames, *self.frame_shape))
        return frames[start:stop:step]


class NpzVideo(Video):
    """Published layout of Human3.6M: one `.npz` a video, with `image`."""

    def __init__(self, path):
        self.path = path
        with self._open():
            pass

    @contextlib.contextmanager
    def _open(self):
        with reading(self.path, 'is not a video of the published layout', AGAIN), zipfile.ZipFile(self.path) as archive, archive.open('image.npy') as f:
            self.n_frames, *self.frame_shape = _read_header(self.path, f, archive.getinfo('image.npy').file_size)
            yield f

    def _read(self, start, stop, step):
        with self._open() as f:
            size = math.prod(self.frame_shape)
            f.seek(start * size, 1)
            return np.frombuffer(f.read((stop - start) * size), np.uint8).reshape(stop - start, *self.frame_shape)[::step]


class PngVideo(Video):
    """Published layout of KTH and BAIR: a folder of PNG frames, in the order of their numbers (image-1000 follows image-999)."""

    def __init__(self, path):
        self.path = path
        numbered = [(int(m[1]), p) for p in path.iterdir() if (m := re.search(r'(\d+)\.png$', p.name)) and not p.name.startswith('.')]
        if not numbered:
            raise UserError(f'{path} has no PNG frames; {AGAIN}')
        self.frames = [p.name for _, p in sorted(numbered)]
        self.n_frames = len(self.frames)
        self.frame_shape = self._read(0, 1, 1).shape[1:]

    def _read(self, start, stop, step):
        pictures = []
        for name in self.frames[start:stop:step]:
            with reading(self.path / name, 'is no picture that can be read', AGAIN), Image.open(self.path / name) as picture:
                if picture.mode not in ('L', 'RGB', 'RGBA'):  # the numbers of others are indices of a palette, or have other ranges
                    raise ValueError(f'mode {picture.mode}, expected 8 bits of grey, RGB or RGBA')
                pictures.append(np.asarray(picture))
            if pictures[-1].shape != pictures[0].shape:
                raise UserError(f'{self.path / name} is of another size than the frames before it; {AGAIN}')
        return np.stack(pictures)


def find_video(folder, name):
    """The video of this name in a folder; of several layouts the array goes first, then the folder of frames. None if there is none."""
    for path, layout in ((folder / f'{name}.npy', ArrayVideo), (folder / name, PngVideo), (folder / f'{name}.npz', NpzVideo)):
        if path.is_dir() if layout is PngVideo else os.path.lexists(path):
            try:
                return layout(path)
            except OSError as error:
                raise UserError(f'{error.filename} cannot be read ({error.strerror}); remove or convert it again') from None
    return None


def find_videos(folder):
    """Videos of a folder by name, as `find_video` finds each: dict of Video, in order of names."""
    paths = [path for path in folder.iterdir() if not path.name.startswith('.')] if folder.is_dir() else []
    names = {path.name if path.is_dir() else path.stem for path in paths if path.is_dir() or path.suffix in ('.npy', '.npz')}
    return {name: find_video(folder, name) for name in sorted(names)}
