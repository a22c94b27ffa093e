"""Pictures of predictions: strips of frames (PNG) and animations (GIF, MP4), enlarged by nearest neighbour."""

from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from files import replacing

SCALE = 3                      # enlargement of frames
GAP = 4                        # pixels between frames
COLUMNS = 12                   # frames in a strip
BACKGROUND, INK = (255, 255, 255), (0, 0, 0)
GIVEN, PREDICTED = (31, 119, 180), (214, 39, 40)  # colours of what was given to the model and what it predicted


def _font(size=15):
    return ImageFont.load_default(size)


def _enlarge(frame):
    """uint8 (H, W, C) of 1 or 3 channels -> RGB picture, enlarged."""
    picture = Image.fromarray(np.repeat(frame, 3, 2) if frame.shape[2] == 1 else frame)
    return picture.resize((frame.shape[1] * SCALE, frame.shape[0] * SCALE), Image.Resampling.NEAREST)


def write_video(path, frames, fps):
    """Write frames, one after the other, as a video (`.mp4`) or an animation that repeats (`.gif`), by the path's extension.

    Parameters
    ----------
    path : path
    frames : iterable of uint8 arrays (H, W, 3), at least one
        Read one by one for a video, so that they may be drawn as they are asked for.
    fps : float
        Frames a second.
    """
    path, frames = Path(path), iter(frames)
    with replacing(path) as tmp:
        if path.suffix == '.gif':
            first, *others = map(Image.fromarray, frames)
            first.save(tmp, 'GIF', save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
            return
        frame = next(frames)
        H, W = (n + n % 2 for n in frame.shape[:2])  # players expect half as many colours: even sizes
        video = imageio_ffmpeg.write_frames(str(tmp), (W, H), fps=fps, codec='libx264', quality=8, macro_block_size=2,
                                            ffmpeg_log_level='error', output_params=['-f', 'mp4', '-movflags', '+faststart'])
        video.send(None)
        while frame is not None:
            video.send(np.ascontiguousarray(np.pad(frame, ((0, H - len(frame)), (0, W - frame.shape[1]), (0, 0)), 'edge')))
            frame = next(frames, None)
        video.close()


def strip(path, rows, nt_cond):
    """Draw videos as rows of at most `COLUMNS` frames, evenly spaced, with the time above and names at the left.

    Parameters
    ----------
    path : path
        PNG file.
    rows : dict of uint8 (T, H, W, C) by name
        Frames before `nt_cond` are those given; a row may leave them out by being shorter.
    nt_cond : int
    """
    font = _font()
    T, (H, W) = max(map(len, rows.values())), next(iter(rows.values())).shape[1:3]
    spacing = -(-T // COLUMNS)
    times = range(nt_cond % spacing, T, spacing)  # the first predicted frame is always there
    w, h = W * SCALE + GAP, H * SCALE + GAP
    left = int(max(font.getlength(name) for name in rows)) + 4 * GAP
    top = 28
    canvas = Image.new('RGB', (left + len(times) * w, top + len(rows) * h), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, (name, video) in enumerate(rows.items()):
        draw.text((left - 2 * GAP, top + i * h + h // 2), name, INK, font, anchor='rm')
        for j, t in enumerate(times):
            missing = T - len(video)  # frames left out in front
            if t >= missing:
                canvas.paste(_enlarge(video[t - missing]), (left + j * w, top + i * h))
    for j, t in enumerate(times):
        colour, word = (GIVEN, 'given') if t < nt_cond else (PREDICTED, 'predicted')
        draw.text((left + j * w + w // 2, top // 2), f't = {t} ({word})', colour, font, anchor='mm')
    with replacing(path) as tmp:
        canvas.save(tmp, 'PNG', optimize=True)


def animation(path, columns, nt_cond, duration=200):
    """Draw videos side by side as an animation; a frame's border tells whether it was given.

    Parameters
    ----------
    path : path
        GIF or MP4 file.
    columns : dict of uint8 (T, H, W, C) by name
        All of the same length.
    nt_cond : int
    duration : int
        Milliseconds a frame.
    """
    font = _font()
    T, H, W = next(iter(columns.values())).shape[:3]
    w = max(W * SCALE, int(max(font.getlength(name) for name in columns))) + 3 * GAP
    top, bottom = 28, 28
    frames = []
    for t in range(T):
        colour, word = (GIVEN, 'given') if t < nt_cond else (PREDICTED, 'predicted')
        canvas = Image.new('RGB', (len(columns) * w, top + H * SCALE + GAP + bottom), BACKGROUND)
        draw = ImageDraw.Draw(canvas)
        for i, (name, video) in enumerate(columns.items()):
            x = i * w + (w - W * SCALE) // 2
            draw.text((i * w + w // 2, top // 2), name, INK, font, anchor='mm')
            draw.rectangle((x - 2, top - 2, x + W * SCALE + 1, top + H * SCALE + 1), colour)
            canvas.paste(_enlarge(video[t]), (x, top))
        draw.text((GAP, canvas.height - bottom // 2), f't = {t} ({word})', colour, font, anchor='lm')
        frames.append(np.asarray(canvas))
    write_video(path, frames, 1000 / duration)
