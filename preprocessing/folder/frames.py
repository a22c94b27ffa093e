"""Frames of your own videos: cropped or letterboxed, resized, in colour or grey."""

import re
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from preprocessing.decoding import Frames, Unreadable

cv2.setNumThreads(1)  # a conversion uses its cores for several videos

CROPS = ('centre', 'none')
IMAGES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}
LANCZOS = 'flags=lanczos+accurate_rnd'
# To RGB after resizing, which is faster than in one step; 444: colours in full resolution
COLOUR = 'format=yuv444p,scale=flags=accurate_rnd+full_chroma_int,format=rgb24'


class FrameFormat(NamedTuple):
    """What becomes of a frame, and which frames of a video are taken."""
    size: int              # width and height
    gray: bool = False
    crop: str = 'centre'   # the central square; or none: the whole frame, in black bars
    fps: float = None      # frames per second; None: each stored frame once

    @property
    def shape(self):
        """Shape of a converted frame."""
        return (self.size, self.size) if self.gray else (self.size, self.size, 3)

    @property
    def filters(self):
        """The same in the language of ffmpeg, which has turned frames upright before."""
        n, parts = self.size, []
        if self.fps is not None:
            parts.append(f'fps={self.fps}')
        if self.crop == 'centre':
            parts += ["crop='min(iw,ih)':'min(iw,ih)'", f'scale={n}:{n}:{LANCZOS}']
        else:
            parts.append(f'scale={n}:{n}:force_original_aspect_ratio=decrease:{LANCZOS}')
        parts.append('format=gray' if self.gray else COLOUR)
        if self.crop == 'none':
            parts.append(f'pad={n}:{n}:-1:-1')
        return ','.join(parts)


def open_frames(source, form, *options):
    """Frames of a video file, or of a folder of images, which have no rate.

    Parameters
    ----------
    source : Path
    form : FrameFormat
    options : str
        Further output options of ffmpeg.

    Returns
    -------
    iterable of blocks of frames, uint8 (n, *form.shape), with `note`, as `decoding.Frames`
    """
    if source.is_dir():
        return Pictures(find_images(source), form)
    return Frames(source, form.shape, '-vf', form.filters, *options)


# Folders of images

def find_images(folder):
    """Paths of the images in a folder, ordered by the last number in their names, then by name."""
    def order(path):
        return int((re.findall(r'\d+', path.stem) or [-1])[-1]), path.name
    paths = [path for path in folder.glob('[!.]*') if path.suffix.lower() in IMAGES]
    if not paths:
        raise Unreadable(f'a folder without images ({", ".join(sorted(IMAGES))})')
    return sorted(paths, key=order)


class Pictures:
    """Frames in image files, read while they are iterated over: blocks of one frame."""
    note = ''

    def __init__(self, paths, form):
        self.paths, self.form = paths, form

    def __iter__(self):
        for path in self.paths:
            yield fit(read_image(path, self.form.size), self.form)[None]


def read_image(path, least=None):
    """Values of an image of any mode, turned upright: uint8 (H, W, 3), in the order of OpenCV, BGR.

    Of 16 bits, the upper 8. With `least`, a JPEG that is larger may be read at a half, a quarter
    or an eighth of its size, if its sides keep twice this many pixels.
    """
    flags = cv2.IMREAD_COLOR
    try:
        with Image.open(path) as image:  # the header only
            if image.mode == 'F':
                raise Unreadable('floating-point images have no defined range')
            is_jpeg, side = image.format == 'JPEG', min(image.size)
        data = path.read_bytes()
        if is_jpeg:
            if b'\xff\xd9' not in data[-4096:]:  # OpenCV would fill the rest with grey
                raise Unreadable('it ends in the middle')
            if least:
                flags = next((flag for flag, step in REDUCED if side >= 2 * least * step), flags)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if image is None:
            raise Unreadable('OpenCV cannot read it')
        return image
    except Exception as error:  # Pillow and OpenCV raise many kinds
        raise Unreadable(f'{path.name}: {error}') from None


REDUCED = ((cv2.IMREAD_REDUCED_COLOR_8, 8), (cv2.IMREAD_REDUCED_COLOR_4, 4),
           (cv2.IMREAD_REDUCED_COLOR_2, 2))


def fit(image, form):
    """Converted frame, uint8 (form.shape), of an image uint8 (H, W, 3), BGR."""
    H, W, _ = image.shape
    n = form.size
    if form.crop == 'centre':
        side = min(H, W)
        upper, left = (H - side) // 2, (W - side) // 2
        frame = resize(image[upper:upper + side, left:left + side], n, n)
    else:
        w, h = (max(1, round(n * length / max(H, W))) for length in (W, H))
        frame = np.zeros((n, n, 3), np.uint8)
        upper, left = (n - h) // 2, (n - w) // 2
        frame[upper:upper + h, left:left + w] = resize(image, w, h)
    return cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY if form.gray else cv2.COLOR_BGR2RGB)


def resize(image, width, height):
    """Resize by means over areas, or by interpolation if it grows."""
    shrinks = width * height < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height),
                      interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)
