"""Videos on disk, uint8 RGB or grey: what the converters write, and the published layouts."""

import re
import zipfile

import numpy as np
from PIL import Image

from files import UserError


def _read_header(path, f):
    """Shape of the uint8 array that a `.npy` stream holds; leaves `f` at its first byte."""
    try:
        version = np.lib.format.read_magic(f)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(f)
    except (ValueError, EOFError) as error:
        raise UserError(f'{path} is not an array of NumPy ({error}); convert the video again') from None
    if dtype != np.uint8 or fortran or len(shape) not in (3, 4):
        raise UserError(f'{path} must hold uint8 frames (T, H, W[, C]), found {dtype} {shape}; convert the video again')
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
            self.n_frames, *self.frame_shape = _read_header(path, f)
            self.offset = f.tell()
        if path.stat().st_size < self.offset + self.n_frames * np.prod(self.frame_shape):
            raise UserError(f'{path} is cut short; convert the video again')

    def _read(self, start, stop, step):
        frames = np.memmap(self.path, np.uint8, 'r', self.offset, (self.n_frames, *self.frame_shape))
        return frames[start:stop:step]


class NpzVideo(Video):
    """Published layout of Human3.6M: one `.npz` a video, with `image`."""

    def __init__(self, path):
        self.path = path
        with self._open() as f:
            self.n_frames, *self.frame_shape = _read_header(path, f)

    def _open(self):
        try:
            return zipfile.ZipFile(self.path).open('image.npy')
        except (KeyError, zipfile.BadZipFile) as error:
            raise UserError(f'{self.path} is not a video of the published layout ({error}); convert it again') from None

    def _read(self, start, stop, step):
        with self._open() as f:
            _read_header(self.path, f)
            size = int(np.prod(self.frame_shape))
            f.seek(start * size, 1)
            frames = np.frombuffer(f.read((stop - start) * size), np.uint8)
        return frames.reshape(stop - start, *self.frame_shape)[::step]


class PngVideo(Video):
    """Published layout of KTH and BAIR: a folder of PNG frames, in the order of their numbers (image-1000 follows image-999)."""

    def __init__(self, path):
        self.path = path
        numbered = [(int(m[1]), p) for p in path.iterdir() if (m := re.search(r'(\d+)\.png$', p.name)) and not p.name.startswith('.')]
        if not numbered:
            raise UserError(f'{path} has no PNG frames; convert the video again')
        self.frames = [p.name for _, p in sorted(numbered)]
        self.n_frames = len(self.frames)
        self.frame_shape = self._read(0, 1, 1).shape[1:]

    def _read(self, start, stop, step):
        pictures = []
        for name in self.frames[start:stop:step]:
            try:
                with Image.open(self.path / name) as picture:
                    pictures.append(np.asarray(picture))
            except (OSError, SyntaxError, ValueError) as error:
                raise UserError(f'{self.path / name} is no picture that can be read ({error}); convert the video again') from None
            if pictures[-1].shape != pictures[0].shape:
                raise UserError(f'{self.path / name} is of another size than the frames before it; convert the video again')
        return np.stack(pictures)


def find_videos(folder):
    """Videos of a folder, in any layout, by name; a `.npy` goes before another layout of the same video.

    Returns
    -------
    dict of Video by name, in no order
    """
    paths = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith('.'):
            continue
        if path.is_dir():
            paths.setdefault(path.name, path)
        elif path.suffix == '.npy' or path.suffix == '.npz' and path.stem not in paths:
            paths[path.stem] = path
    return {name: _open(path) for name, path in paths.items()}


def _open(path):
    try:
        return PngVideo(path) if path.is_dir() else {'.npy': ArrayVideo, '.npz': NpzVideo}[path.suffix](path)
    except OSError as error:
        raise UserError(f'{error.filename} cannot be read ({error.strerror}); remove or convert it again') from None


def find_video(folder, name):
    """The video of this name in a folder, in any layout, as `find_videos` finds it, without opening the others; None if there is none."""
    for path in (folder / f'{name}.npy', folder / name, folder / f'{name}.npz'):
        if path.is_dir() if path.name == name else path.exists():
            return _open(path)
    return None
