"""Pictures of predictions: strips and tables of frames (PNG) and animations (GIF, MP4), enlarged by nearest neighbour; charts."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from files import UserError, replacing

SCALE = 3                      # enlargement of frames
GAP = 4                        # pixels between frames
COLUMNS = 12                   # frames in a strip
BACKGROUND, INK = (255, 255, 255), (0, 0, 0)
GIVEN, PREDICTED = (31, 119, 180), (214, 39, 40)  # colours of what was given to the model and what it predicted


def _font(columns=0):
    """Font for a picture of so many columns: larger in a wider one, which is seen smaller, as far as 't = 23 (predicted)' fits above a frame."""
    return ImageFont.load_default(min(max(15, 2 * columns + 2), 22))


def _enlarge(frame, scale):
    """uint8 (H, W, C) of 1 or 3 channels -> RGB picture, enlarged."""
    picture = Image.fromarray(np.repeat(frame, 3, 2) if frame.shape[2] == 1 else frame)
    return picture.resize((frame.shape[1] * scale, frame.shape[0] * scale), Image.Resampling.NEAREST)


def _to_palette(frame):
    """RGB picture uint8 (H, W, 3) -> picture of 256 colours chosen for it, with small errors everywhere rather than large ones in small parts."""
    return Image.fromarray(frame).quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)


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
        if path.suffix.lower() == '.gif':
            first, *others = map(_to_palette, frames)
            hundredths = max(2, round(100 / fps))  # the unit of GIF; players slow down what is faster
            first.save(tmp, 'GIF', save_all=True, append_images=others, duration=hundredths * 10, loop=0)
            return
        frame = next(frames)
        H, W = (n + n % 2 for n in frame.shape[:2])  # players expect half as many colours: even sizes
        video = imageio_ffmpeg.write_frames(str(tmp), (W, H), fps=fps, codec='libx264', quality=8, macro_block_size=2,
                                            ffmpeg_log_level='error', output_params=['-f', 'mp4', '-movflags', '+faststart'])
        video.send(None)
        sent, encoded = 0, None
        while frame is not None:
            try:
                video.send(np.ascontiguousarray(np.pad(frame, ((0, H - len(frame)), (0, W - frame.shape[1]), (0, 0)), 'edge')))
            except OSError:  # ffmpeg has ended
                break
            sent, frame = sent + 1, next(frames, None)
        video.close()
        with contextlib.suppress(RuntimeError):  # no video; `close` does not tell how ffmpeg ended
            encoded, _ = imageio_ffmpeg.count_frames_and_secs(str(tmp))
        if frame is not None or encoded != sent:
            raise UserError(f'{path} could not be encoded: ffmpeg ended early, after {encoded or 0} of at least {sent} frames; make room on its disk')


def write_picture(path, picture):
    """Write a Pillow image as PNG."""
    with replacing(path) as tmp:
        picture.save(tmp, 'PNG', optimize=True)


class Heading(NamedTuple):
    """What stands above one column of a table, or several."""
    text: str
    colour: tuple = INK
    span: int = 1


def table(cells, headings, names=(), border=None, scale=SCALE):
    """Frames in rows and columns, with headings above and names at the left.

    Parameters
    ----------
    cells : list of lists of uint8 (H, W, C), or None for an empty place
    headings : list of Heading
    names : list of str or Heading
        One each row, or none at all.
    border : tuple
        Colour of a border around frames.
    scale : int
        Enlargement of frames.

    Returns
    -------
    PIL.Image.Image
        In RGB.
    """
    font, names = _font(len(cells[0])), [name if isinstance(name, Heading) else Heading(name) for name in names]
    H, W = next(frame for row in cells for frame in row if frame is not None).shape[:2]
    widest = max(int(font.getlength(h.text)) // h.span for h in headings)
    w, h = max(W * scale + (GAP if border is None else 3 * GAP), widest + 3 * GAP), H * scale + GAP * (1 if border is None else 2)
    left = int(max(font.getlength(name.text) for name in names)) + 4 * GAP if names else 0
    top, apart = 2 * round(font.size) - 2, 4 * GAP * any(h.span > 1 for h in headings)  # groups of columns stand apart
    canvas = Image.new('RGB', (left + len(cells[0]) * w + (len(headings) - 1) * apart, top + len(cells) * h), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, name in enumerate(names):
        draw.text((left - 2 * GAP, top + i * h + H * scale // 2), name.text, name.colour, font, anchor='rm')
    x, j = left, 0
    for heading in headings:
        draw.text((x + heading.span * w // 2, top // 2), heading.text, heading.colour, font, anchor='mm')
        for _ in range(heading.span):
            for i, row in enumerate(cells):
                if row[j] is not None:
                    x0, y0 = x + (w - W * scale) // 2, top + i * h
                    if border is not None:
                        draw.rectangle((x0 - 2, y0 - 2, x0 + W * scale + 1, y0 + H * scale + 1), border)
                    canvas.paste(_enlarge(row[j], scale), (x0, y0))
            x, j = x + w, j + 1
        x += apart
    return canvas


def beside(pictures):
    """Pictures from left to right, in the middle of their height."""
    canvas = Image.new('RGB', (sum(p.width for p in pictures), max(p.height for p in pictures)), BACKGROUND)
    x = 0
    for picture in pictures:
        canvas.paste(picture, (x, (canvas.height - picture.height) // 2))
        x += picture.width
    return canvas


def below(pictures, footer='', colour=INK):
    """Pictures one below the other, and a line of text."""
    canvas = Image.new('RGB', (max(p.width for p in pictures), sum(p.height for p in pictures) + 28 * bool(footer)), BACKGROUND)
    y = 0
    for picture in pictures:
        canvas.paste(picture, (0, y))
        y += picture.height
    ImageDraw.Draw(canvas).text((2 * GAP, y + 14), footer, colour, _font(), anchor='lm')
    return canvas


def moment(t, nt_cond, past=''):
    """Colour of time t, and 't = 5 (predicted)'; `past` it, the last given frame has gone by."""
    colour, word = (GIVEN, 'given') if t < nt_cond - bool(past) else (PREDICTED, 'predicted')
    return colour, f't = {t}{past} ({word})'


def spaced(nt_cond, T, most=COLUMNS):
    """At most `most` times, evenly spaced; the first predicted frame is always there."""
    spacing = -(-T // most)
    return range(nt_cond % spacing, T, spacing)


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
    T = max(map(len, rows.values()))
    times = spaced(nt_cond, T)
    cells = [[video[t - T] if t >= T - len(video) else None for t in times] for video in rows.values()]
    headings = [Heading(text, colour) for colour, text in (moment(t, nt_cond) for t in times)]
    write_picture(path, table(cells, headings, list(rows)))


def animation(path, columns, nt_cond, fps=5, across=COLUMNS):
    """Draw videos side by side as an animation; a frame's border tells whether it was given.

    Parameters
    ----------
    path : path
        GIF or MP4 file.
    columns : dict of uint8 (T, H, W, C) by name
        All of the same length.
    nt_cond : int
    fps : float
        Frames a second.
    across : int
        Videos side by side; more are put below.
    """
    names = list(columns)
    lines = [names[i:i + across] for i in range(0, len(names), across)]

    def draw(t):
        colour, text = moment(t, nt_cond)
        bands = [table([[columns[name][t] for name in line]], [Heading(name) for name in line], border=colour) for line in lines]
        return np.asarray(below(bands, text, colour))
    write_video(path, map(draw, range(len(columns[names[0]]))), fps)


def animated_table(path, cells, headings, names, captions, fps):
    """Draw a table of videos as an animation.

    Parameters
    ----------
    path : path
        GIF or MP4 file.
    cells : list of lists of uint8 (T, H, W, C), or None for an empty place
    headings, names
        As of `table`.
    captions : list of T tuples (colour, text)
        The colour is that of the frames' borders.
    fps : float
    """
    def draw(t):
        colour, text = captions[t]
        picture = table([[None if video is None else video[t] for video in row] for row in cells], headings, names, colour)
        return np.asarray(below([picture], text, colour))
    write_video(path, map(draw, range(len(captions))), fps)
