"""Videos on disk, uint8 RGB or grey: arrays of our converters, and the published layouts."""

import contextlib
import math
import os
import re
import zipfile

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from files import UserError, check_archive, reading

AGAIN = 'convert the video again'


def _read_header(path, f, size):
    """Shape of the uint8 array in a `.npy` stream of `size` bytes; `f` is left at its data."""
    with reading(path, 'is not a NumPy array', AGAIN):
        version = npy.read_magic(f)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(f)
    is_shape = len(shape) in (3, 4) and all(type(n) is int and n >= 0 for n in shape)
    if dtype != np.uint8 or fortran or not is_shape:
        raise UserError(f'{path} must hold uint8 frames (T, H, W[, C]), found {dtype} {shape}; '
                        f'{AGAIN}')
    if size < f.tell() + math.prod(shape):
        raise UserError(f'{path} is truncated; {AGAIN}')
    return shape


class Video:
    """Frames of one video, read on demand: uint8 (T, H, W, C).

    Attributes
    ----------
    path : Path
    frame_shape : tuple
        (H, W) or (H, W, C), as stored.
    """

    def __len__(self):
        return self.n_frames

    def clip(self, start, n, step=1):
        """Frames start, start + step, …: uint8 (n, H, W, C), with all channels."""
        frames = self._read(start, start + (n - 1) * step + 1, step)
        return frames[..., None] if frames.ndim == 3 else frames


class ArrayVideo(Video):
    """A `.npy` file, memory-mapped for each clip: processes share the page cache."""

    def __init__(self, path):
        self.path = path
        with open(path, 'rb') as f:
            size = os.fstat(f.fileno()).st_size
            self.n_frames, *self.frame_shape = _read_header(path, f, size)
            self.offset = f.tell()

    def _read(self, start, stop, step):
        shape = self.n_frames, *self.frame_shape
        return np.memmap(self.path, np.uint8, 'r', self.offset, shape)[start:stop:step]


class NpzVideo(Video):
    """Published layout of Human3.6M: an `.npz` file with `image`."""

    def __init__(self, path):
        self.path, self.checked = path, False
        with self._open():
            pass

    @contextlib.contextmanager
    def _open(self):
        with reading(self.path, 'is not a video of the published layout', AGAIN), \
                zipfile.ZipFile(self.path) as archive, archive.open('image.npy') as f:
            size = archive.getinfo('image.npy').file_size
            self.n_frames, *self.frame_shape = _read_header(self.path, f, size)
            yield f

    def _read(self, start, stop, step):
        if not self.checked:  # once, at the first clip
            with reading(self.path, 'is damaged', AGAIN):
                check_archive(self.path)
            self.checked = True
        size = math.prod(self.frame_shape)
        with self._open() as f:
            f.seek(start * size, os.SEEK_CUR)
            frames = np.frombuffer(f.read((stop - start) * size), np.uint8)
            return frames.reshape(stop - start, *self.frame_shape)[::step]


class PngVideo(Video):
    """Published layout of KTH and BAIR: a folder of PNG frames, ordered by number, not as text."""

    def __init__(self, path):
        self.path = path
        matches = [(re.search(r'(\d+)\.png$', p.name), p.name) for p in path.glob('[!.]*')]
        self.frames = [name for _, name in sorted((int(m[1]), name) for m, name in matches if m)]
        if not self.frames:
            raise UserError(f'{path} has no PNG frames; {AGAIN}')
        self.n_frames = len(self.frames)
        self.frame_shape = self._read(0, 1, 1).shape[1:]

    def _read(self, start, stop, step):
        images = []
        for name in self.frames[start:stop:step]:
            path = self.path / name
            with reading(path, 'is not a readable image', AGAIN), Image.open(path) as image:
                # Palettes hold indices, other modes have other ranges
                if image.mode not in ('L', 'RGB', 'RGBA'):
                    raise ValueError(f'mode {image.mode}, expected L, RGB or RGBA')
                images.append(np.asarray(image))
            if images[-1].shape != images[0].shape:
                raise UserError(f'{path} and the frames before it have different sizes; {AGAIN}')
        return np.stack(images)


def find_video(folder, name):
    """The video of this name in a folder, None if there is none.

    Of several layouts, the array comes first, then the folder of frames.
    """
    for path, layout, exists in ((folder / f'{name}.npy', ArrayVideo, os.path.lexists),
                                 (folder / name, PngVideo, os.path.isdir),
                                 (folder / f'{name}.npz', NpzVideo, os.path.lexists)):
        if exists(path):
            try:
                return layout(path)
            except OSError as error:
                raise UserError(f'{error.filename} cannot be read ({error.strerror}); '
                                'remove or convert it again') from None
    return None


def find_names(folder):
    """Names of the videos in a folder: set of str."""
    return {path.name if path.is_dir() else path.stem for path in folder.glob('[!.]*')
            if path.is_dir() or path.suffix in ('.npy', '.npz')}


def find_videos(folder):
    """Videos of a folder by name, as by `find_video`: dict of Video, in order of names."""
    return {name: find_video(folder, name) for name in sorted(find_names(folder))}
