"""Videos on disk, uint8 RGB or grey: ours, the published layouts, and predictions."""

import math
import re
import zipfile

from files import reading

import numpy as np
from PIL import Image

AGAIN = 'convert the video again'
NO_VIDEOS = 'is not a .npy or .npz file of videos', 'use another one'


class Video:
    """Frames of one video, read on demand; their `frame_shape` is (H, W) or (H, W, C)."""

    def __len__(self):
        return self.n_frames

    def clip(self, start, n, step=1):
        """Frames start, start + step, …: uint8 (n, H, W, C), with all channels."""
        frames = self._read(start, start + (n - 1) * step + 1, step)
        return frames[..., None] if frames.ndim == 3 else frames


class ArrayVideo(Video):
    """Frames (T, H, W) or (T, H, W, C) from byte `offset` of a `.npy` file on.

    They are mapped into memory for each clip: processes share the page cache, and workers get no
    copy.
    """

    def __init__(self, path, shape, offset):
        self.path, self.offset = path, offset
        self.n_frames, *self.frame_shape = self.shape = shape

    def _read(self, start, stop, step):
        return np.memmap(self.path, np.uint8, 'r', self.offset, self.shape)[start:stop:step]


def read_array(path, ndims):
    """Memory map of a `.npy` file of uint8 frames."""
    with reading(path, 'is not a whole array of uint8 frames', AGAIN):
        array = np.load(path, mmap_mode='r', allow_pickle=False)
        if array.dtype != np.uint8 or array.ndim not in ndims:
            raise ValueError(f'it holds {array.dtype} {array.shape}')
        return array


def open_array(path):
    """The video of a `.npy` file, (T, H, W) or (T, H, W, C)."""
    array = read_array(path, (3, 4))
    return ArrayVideo(path, array.shape, array.offset)


def open_fold(path):
    """The videos of one `.npy` file, (N, T, H, W, C): list."""
    array = read_array(path, (5,))
    return [ArrayVideo(path, array.shape[1:], array.offset + i * array.strides[0])
            for i in range(len(array))]


class NpzVideo(Video):
    """Published layout of Human3.6M: an `.npz` file with `image`."""

    def __init__(self, path):
        self.path = path
        with reading(path, 'is not a video of the published layout', AGAIN), \
                zipfile.ZipFile(path) as archive, archive.open('image.npy') as f:
            (self.n_frames, *self.frame_shape), _, dtype = npy_header(f)
            if dtype != np.uint8 or len(self.frame_shape) != 3:
                raise ValueError('image is not uint8 (T, H, W, C)')

    def _read(self, start, stop, step):
        with reading(self.path, 'is damaged', AGAIN), np.load(self.path) as arrays:
            return arrays['image'][start:stop:step]


class PngVideo(Video):
    """Published layout of KTH and BAIR: a folder of PNG frames, ordered by number, not as text."""

    def __init__(self, path):
        self.path = path
        matches = [(re.search(r'(\d+)\.png$', p.name), p) for p in path.glob('[!.]*.png')]
        self.frames = [p for _, p in sorted((int(m[1]), p) for m, p in matches if m)]
        with reading(path, 'is not a video', AGAIN):
            if not self.frames:
                raise ValueError('it has no PNG frames')
        self.n_frames = len(self.frames)
        self.frame_shape = self._read(0, 1, 1).shape[1:]

    def _read(self, start, stop, step):
        images = []
        for path in self.frames[start:stop:step]:
            with reading(path, 'is not a frame of its video', AGAIN), Image.open(path) as image:
                # Palettes hold indices, other modes have other ranges
                if image.mode not in ('L', 'RGB', 'RGBA'):
                    raise ValueError(f'mode {image.mode}, expected L, RGB or RGBA')
                images.append(np.asarray(image))
                if images[-1].shape != images[0].shape:
                    raise ValueError('its size is not that of the frames before')
        return np.stack(images)


def find_video(folder, name):
    """The video of this name in a folder, None if there is none.

    Of several layouts, the array comes first, then the folder of frames. Video <i> of an array of
    a whole fold, `<folder>.npy`, has the name <i>.
    """
    fold = folder.with_name(f'{folder.name}.npy')
    if name.isdigit() and fold.is_file():
        videos = open_fold(fold)
        return videos[int(name)] if int(name) < len(videos) else None
    for path, layout in ((folder / f'{name}.npy', open_array), (folder / name, PngVideo),
                         (folder / f'{name}.npz', NpzVideo)):
        if path.is_dir() if layout is PngVideo else path.exists():
            return layout(path)
    return None


def video_names(folder):
    """Names of the videos of a folder, in order."""
    return sorted({path.name if path.is_dir() else path.stem for path in folder.glob('[!.]*')
                   if path.is_dir() or path.suffix in ('.npy', '.npz')})


def find_videos(folder):
    """Videos of a folder by name, as by `find_video`: dict of Video, in order of names."""
    return {name: find_video(folder, name) for name in video_names(folder)}


# Predictions

def npy_header(file):
    """Shape, whether in Fortran order, and dtype of an open `.npy` file, whose values come next."""
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)


class VideoFile:
    """Videos of one `.npy` or `.npz` file, read in order: all may not fit into memory.

    They are uint8 of `shape` (N, T, H, W, C), C 1 or 3; the last axis of grey ones may be missing.
    An `.npz` file holds one array, or one named `samples`.
    """

    def __init__(self, path):
        self.path = path
        with reading(path, *NO_VIDEOS):
            self.file = open(path, 'rb')
            if str(path).endswith('.npz'):
                archive = zipfile.ZipFile(self.file)
                names = archive.namelist()
                self.file = archive.open(names[0] if len(names) == 1 else 'samples.npy')
            shape, is_fortran, dtype = npy_header(self.file)
            self.shape = (*shape, 1) if len(shape) == 4 else shape
            if (is_fortran or dtype != np.uint8 or len(self.shape) != 5
                    or self.shape[-1] not in (1, 3)):
                raise ValueError(f'it has {dtype} of shape {shape}, expected uint8 '
                                 '(N, T, H, W, C), C 1 or 3, in C order')

    def read(self, n):
        """The next n videos, uint8 (n, T, H, W, C)."""
        with reading(self.path, *NO_VIDEOS):
            data = self.file.read(n * math.prod(self.shape[1:]))
            return np.frombuffer(data, np.uint8).reshape(n, *self.shape[1:])
