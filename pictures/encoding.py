"""Animations as files: GIF with one palette for all frames, and MP4 by ffmpeg."""

import contextlib

import imageio_ffmpeg
import numpy as np
from PIL import Image

from files import UserError, replacing


class Palette:
    """Up to 255 colours, to the nearest of which the colours of frames are mapped.

    Parameters
    ----------
    colours : np.ndarray of uint8 (N, 3)
    """

    def __init__(self, colours):
        self.colours = np.concatenate([np.zeros((1, 3), np.uint8), colours])
        self.index = np.zeros(1 << 24, np.uint8)  # by 24-bit colour; 0: not computed yet

    @classmethod
    def greys(cls, tints):
        """Palette of grey videos: greys, and the colours `tints` of labels, blended with white."""
        ramps = [np.linspace(colour, (255,) * 3, 16, endpoint=False) for colour in tints]
        greys = np.linspace((0,) * 3, (255,) * 3, 255 - 16 * len(ramps))
        return cls(np.concatenate([greys, *ramps]).round().astype(np.uint8))

    @classmethod
    def of(cls, frames, n):
        """Palette chosen for n frames uint8 (H, W, 3).

        Errors are small everywhere, rather than zero in most places and large in a few.
        """
        # Pixels of four frames in all, as choosing takes time. Strides of 3 meet each pixel of a
        # video that is enlarged three times once.
        step = -(-n // 4)
        pixels = [frame[::3, ::3].reshape(-1, 3)[t % step::step] for t, frame in enumerate(frames)]
        sample = Image.fromarray(np.concatenate(pixels)[None])
        sample = sample.quantize(255, Image.Quantize.MAXCOVERAGE, kmeans=1)
        return cls(np.array(sample.getpalette(), np.uint8).reshape(-1, 3))

    def __call__(self, frame):
        """Picture of a frame uint8 (H, W, 3), in this palette."""
        r, g, b = (frame[..., c].astype(np.int32) for c in range(3))
        code = r << 16 | g << 8 | b
        index = self.index[code]
        if not index.all():
            new = np.unique(code[index == 0])
            colours = (new[:, None] >> [16, 8, 0] & 255).astype(np.float32)
            own = self.colours[1:].astype(np.float32)
            # argmin of the squared distance, without the term that all have in common
            self.index[new] = 1 + (np.square(own).sum(1) - 2 * colours @ own.T).argmin(1)
            index = self.index[code]
        picture = Image.fromarray(index)
        picture.putpalette(self.colours.tobytes())
        return picture


def write_gif(path, frames, fps, palette):
    """Write frames uint8 (H, W, 3), at least one, as a GIF that repeats.

    Durations are rounded to its unit, 10 ms; they are at least 20 ms, as players slow down others.
    """
    first, *others = map(palette, frames)
    with replacing(path) as tmp:
        first.save(tmp, 'GIF', save_all=True, append_images=others, loop=0,
                   duration=10 * max(2, round(100 / fps)))


def write_mp4(path, frames, fps):
    """Write frames uint8 (H, W, 3), at least one, as an MP4 video. They are read one by one."""
    frames = iter(frames)
    frame = next(frames)
    # Players expect 4:2:0, in which colours have half the resolution: even sizes
    (bottom, right), (H, W) = ((n % 2 for n in frame.shape[:2]), frame.shape[:2])
    with replacing(path) as tmp:
        video = imageio_ffmpeg.write_frames(
            str(tmp), (W + right, H + bottom), fps=fps, codec='libx264', quality=8,
            macro_block_size=2, ffmpeg_log_level='error',
            output_params=['-f', 'mp4', '-movflags', '+faststart'])
        video.send(None)
        sent, encoded = 0, 0
        while frame is not None:
            try:
                padded = np.pad(frame, ((0, bottom), (0, right), (0, 0)), 'edge')
                video.send(np.ascontiguousarray(padded))
            except OSError:  # ffmpeg has exited
                break
            sent, frame = sent + 1, next(frames, None)
        video.close()
        with contextlib.suppress(RuntimeError):  # not a video; `close` hides how ffmpeg exited
            encoded, _ = imageio_ffmpeg.count_frames_and_secs(str(tmp))
        if frame is not None or encoded != sent:
            raise UserError(f'{path} could not be encoded: ffmpeg exited early, after {encoded} '
                            f'of at least {sent} frames; free space on its disk')
