"""Frames of your own videos: video files, moving pictures and folders of pictures."""

import math
import re
from collections import Counter
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from natsort import natsorted, ns
from PIL import Image, ImageOps

from preprocessing.common import STILL, Unreadable, decode

CROPS = ('centre', 'none')
LANCZOS = 'flags=lanczos+accurate_rnd'
MOVING = ('AVIF', 'GIF', 'PNG', 'TIFF', 'WEBP')  # may hold several pictures
Image.init()
FORMATS = [name for name in ('BMP', 'DIB', 'JPEG', 'JPEG2000', 'MPO', 'PPM', *MOVING)
           if name in Image.OPEN]  # AVIF is unknown to older versions of Pillow
# Files with these names are pictures, damaged or not; so is what Pillow recognises
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items()
            if name in FORMATS and name != 'GIF'}


class FrameFormat(NamedTuple):
    """What becomes of a frame, and which frames of a video are taken."""
    size: int              # width and height
    gray: bool = False
    crop: str = 'centre'   # the central square; or none: the whole frame, in black bars
    fps: float = None      # frames per second; None: each stored frame once


def read_frames(path, form, notes):
    """Frames of a video file, a moving picture or a folder of pictures, which has no rate.

    Yields uint8 (size, size, 3), RGB, or (size, size), in the `FrameFormat`. What the decoder
    survived is appended to `notes`; what it did not raises `Unreadable`.
    """
    if path.is_dir():
        timed, convert = pictures(path), fit
    elif count_pictures(path) > 1:
        timed, convert = moving_picture(path), fit
    else:
        timed, convert = decode(path, notes), Scaler()
    if form.fps and not path.is_dir() and path.suffix.lower() not in ('.tif', '.tiff'):
        timed = at_rate(timed, form.fps)
    for _, _, frame in timed:
        yield convert(frame, form)


def at_rate(timed, fps):
    """Bring frames (time, duration, frame), in seconds, to a rate, as the filter fps of ffmpeg.

    A frame lasts until the next one begins, the last one for its duration. Raises `Unreadable` if
    there would be far more frames than durations tell.
    """
    before, n_in, n_out, expected = None, 0, 0, 0
    for current in timed:
        time, duration, _ = current
        if before is None:
            first = time
        end = math.floor((time - first) * fps + 0.5)  # of the copies of the frame before
        if end > 4 * expected + STILL * fps:
            raise Unreadable(f'at {fps:g} frames per second, {n_in} of its frames would be '
                             f'{end}: its clock jumps; leave out --fps, or repair it')
        yield from [before] * (end - n_out)
        before, n_in, n_out = current, n_in + 1, max(end, n_out)
        expected += max(1, fps * duration)
    if n_in:
        end = math.floor((time + duration - first) * fps + 0.5)
        yield from [before] * (max(1, end) - n_out)


class Scaler:
    """Crops, resizes and turns frames of a video, by filters of ffmpeg."""
    described, graph = None, None

    def __call__(self, frame_and_aspect, form):
        frame, aspect = frame_and_aspect
        described = (f'video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:'
                     f'colorspace={int(frame.colorspace)}:range={int(frame.color_range)}:'
                     'time_base=1/1000')
        if described != self.described:  # sizes may change within a file
            self.described, self.graph = described, av.filter.Graph()
            filters = [('buffer', described), *filters_of(frame, aspect, form),
                       ('buffersink', None)]
            self.graph.link_nodes(*(self.graph.add(*f) for f in filters)).configure()
        self.graph.vpush(frame)
        pixels = self.graph.vpull().to_ndarray()
        if matrix := frame.side_data.get(SideData.DISPLAYMATRIX):  # phones turn and mirror so
            (a, b, _), (c, d, _), _ = np.frombuffer(bytes(matrix), '<i4').reshape(3, 3)
            if abs(a) < abs(b):  # x and y change places
                pixels, a, d = pixels.swapaxes(0, 1), c, b
            pixels = pixels[::-1 if d < 0 else 1, ::-1 if a < 0 else 1]
        return pixels


def filters_of(frame, aspect, form):
    n, H, W = form.size, frame.height, frame.width * aspect  # as shown
    if form.crop == 'centre':
        side = min(H, W)
        yield 'crop', f'{max(1, round(side / aspect))}:{max(1, round(side))}'
        yield 'scale', f'{n}:{n}:{LANCZOS}'
    else:
        h, w = (max(1, round(n * length / max(H, W))) for length in (H, W))
        yield 'scale', f'{w}:{h}:{LANCZOS}'
    if form.gray:
        yield 'format', 'gray'
    else:  # to RGB after resizing, which is faster; 444: colours in full resolution
        yield 'format', 'yuv444p'
        yield 'scale', 'flags=accurate_rnd+full_chroma_int'
        yield 'format', 'rgb24'
    if form.crop == 'none':
        yield 'pad', f'{n}:{n}:-1:-1'


def find_pictures(folder):
    """Paths of the pictures in a folder, in natural order: frame2 comes before frame10."""
    paths = [path for path in folder.glob('[!.]*') if count_pictures(path)]
    if not paths:
        raise Unreadable('a folder without images')
    found, decimal = (natsorted(paths, lambda path: path.stem, alg=alg)
                      for alg in (ns.INT, ns.FLOAT | ns.NOEXP))
    if found != decimal:
        raise Unreadable('the order of its pictures is ambiguous: numbers such as 1.10 may be '
                         'decimals or not; rename them')
    names = Counter(re.sub(r'\d+', '#', path.stem) for path in found)
    series = [name for name, n in names.items() if n > 1]
    # A single picture without a number may be the first: frame, frame1, frame (2)
    others = [name for name in names if series and name != series[0] and (
        name in series or re.sub(r'[\W_]', '', name) != re.sub(r'[\W_]', '', series[0]))]
    if others:
        raise Unreadable(f'its pictures {series[0]} and {others[0]}, # for numbers, may not be of '
                         'one video; give each a folder of its own')
    numbers = Counter(re.sub(r'0*(\d+)', r'\1', path.stem) for path in found)
    (number, n), = numbers.most_common(1)
    if n > 1:
        raise Unreadable(f'{n} of its pictures have the same number, {number}; keep one of them')
    return found


def count_pictures(path):
    """Number of pictures in a file as Pillow knows it, 0 if it is no picture."""
    suffix = path.suffix.lower()
    # A named pipe would be waited for; a sequence of JPEGs is a video that begins like a picture
    if not path.is_file() or suffix in ('.mjpeg', '.mjpg'):
        return 0
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.format not in MOVING:  # photos may hold another one, as a preview
                return 1
            size = image.size
            for i in range(1, image.n_frames if image.format == 'TIFF' else 1):
                image.seek(i)
                if image.size != size:  # the same picture in another size
                    return 1
            return image.n_frames
    except Exception:  # Pillow raises many kinds
        return int(suffix in SUFFIXES)


def pictures(folder):
    """Yields None, None and each picture (PIL.Image, RGB)."""
    for path in find_pictures(folder):
        try:
            with Image.open(path, formats=FORMATS) as image:
                picture = to_rgb(image)
        except Exception as error:  # Pillow raises many kinds
            raise Unreadable(f'{path.name}: {error}') from None
        yield None, None, picture


def moving_picture(path):
    """Yields time and duration in seconds, and each picture (PIL.Image, RGB)."""
    time = 0
    with Image.open(path, formats=FORMATS) as image:
        for i in range(image.n_frames):
            image.seek(i)
            milliseconds = image.info.get('duration') or 0
            duration = milliseconds / 1000 if milliseconds >= 20 else 0.1  # as players do
            yield time, duration, to_rgb(image)
            time += duration


def to_rgb(image):
    """A picture of any mode, turned upright, in RGB; of 16 bits, the upper 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in 'FI':
        values = np.asarray(image)
        if image.mode == 'F' or values.min() < 0 or values.max() >= 1 << 16:
            raise Unreadable('images of 32 bits have no defined range')
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert('RGB')


def fit(image, form):
    place = ImageOps.fit if form.crop == 'centre' else ImageOps.pad
    image = place(image, (form.size, form.size), Image.Resampling.LANCZOS)
    return np.asarray(image.convert('L') if form.gray else image)
