"""Sprite pictures: all frames of a video and its futures in one file."""

import numpy as np
from PIL import Image

from files import replacing

MAX_WIDTH = 4096  # pixels; the graphics memory of small devices takes pictures of this size


def columns(n, width):
    """Number of frames side by side, for videos of n frames of some width."""
    return max(1, min(n, MAX_WIDTH // width))


def numbers(values):
    """Numbers for JSON, None where they are not finite. They have the digits of their own type."""
    return [float(str(v)) if np.isfinite(v) else None for v in np.ma.filled(values, np.nan)]


class Sheet:
    """Frames uint8 (H, W, C), C = 1 or 3, in rows of `across`, from left to right.

    Frame k is in row k // across and column k % across. Equal videos are kept once.
    """

    def __init__(self, across):
        self.across, self.frames, self.first = across, [], {}

    def add(self, video):
        """Add a video uint8 (T, H, W, C), and return the number of its first frame."""
        key = video.tobytes()
        if key not in self.first:
            self.first[key] = len(self.frames)
            self.frames.extend(video)
        return self.first[key]

    def write(self, path):
        """Write the picture as PNG."""
        H, W, C = self.frames[0].shape
        rows = -(-len(self.frames) // self.across)
        canvas = np.zeros((rows, H, self.across, W, C), np.uint8)
        for k, frame in enumerate(self.frames):
            canvas[k // self.across, :, k % self.across] = frame
        canvas = canvas.reshape(rows * H, self.across * W, C)
        with replacing(path) as tmp:
            Image.fromarray(canvas[..., 0] if C == 1 else canvas).save(tmp, 'PNG')
