"""Pictures of videos, enlarged by nearest neighbour: tables and strips (PNG), animations."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from files import replacing
from pictures.encoding import Palette, write_gif, write_mp4

SIDE = 192    # pixels that frames are enlarged to
GAP = 4       # pixels between frames
COLUMNS = 12  # frames in a row of a strip
CAPTION = 28  # height of a line of text below a picture
BACKGROUND, INK = (255, 255, 255), (0, 0, 0)
GIVEN, PREDICTED = (31, 119, 180), (214, 39, 40)  # of conditioning and predicted frames


# Layout

class Heading(NamedTuple):
    """Text above one or several columns of a table, or to the left of a row."""
    text: str
    colour: tuple = INK
    span: int = 1


def table(cells, headings, names=(), border=None, side=SIDE):
    """Draw frames in rows and columns.

    Parameters
    ----------
    cells : list of lists of uint8 (H, W, C), or None for an empty cell
    headings : list of Heading
        Above the columns.
    names : list of str or Heading
        To the left of the rows, one each; may be empty.
    border : tuple
        Colour of a border around frames; by default none.
    side : int
        Frames are enlarged, by a whole number, to this width at most.

    Returns
    -------
    PIL.Image.Image
        In RGB.
    """
    font = _font(len(cells[0]))
    names = [name if isinstance(name, Heading) else Heading(name) for name in names]
    H, W = next(frame for row in cells for frame in row if frame is not None).shape[:2]
    scale = max(1, side // W)
    H, W, gap = H * scale, W * scale, GAP if border is None else 3 * GAP
    widest = max(int(font.getlength(h.text)) // h.span for h in headings)
    w, h = max(W + gap, widest + 3 * GAP), H + (GAP if border is None else 2 * GAP)  # of a cell
    left = max((int(font.getlength(name.text)) + 4 * GAP for name in names), default=0)
    top = 2 * round(font.size) - 2
    space = 4 * GAP if any(h.span > 1 for h in headings) else 0  # between groups of columns
    width = left + len(cells[0]) * w + (len(headings) - 1) * space
    canvas = Image.new('RGB', (width, top + len(cells) * h), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, name in enumerate(names):
        place = left - 2 * GAP, top + i * h + H // 2
        draw.text(place, name.text, name.colour, font, anchor='rm')
    x, columns = left, zip(*cells)
    for heading in headings:
        place = x + heading.span * w // 2, top // 2
        draw.text(place, heading.text, heading.colour, font, anchor='mm')
        for column in itertools.islice(columns, heading.span):
            for i, frame in enumerate(column):
                if frame is not None:
                    _paste(canvas, frame, x + (w - W) // 2, top + i * h, scale, border)
            x += w
        x += space
    return canvas


def shortened(name, most=24):
    """A name for a label: its middle is left out if it has more than `most` characters."""
    return name if len(name) <= most else f'{name[:most // 2 - 1]}…{name[-most // 2:]}'


def _font(columns=0):
    """Font for a table of so many columns: larger in a wider one, which is viewed smaller.

    The largest one fits 't = 23 (predicted)' above a frame.
    """
    return ImageFont.load_default(min(max(15, 2 * columns + 2), 22))


def _paste(canvas, frame, x, y, scale, border):
    """Paste a frame uint8 (H, W, C), C = 1 or 3, enlarged."""
    picture = Image.fromarray(np.broadcast_to(frame, (*frame.shape[:2], 3)))
    W, H = picture.width * scale, picture.height * scale
    if border is not None:
        ImageDraw.Draw(canvas).rectangle((x - 2, y - 2, x + W + 1, y + H + 1), border)
    canvas.paste(picture.resize((W, H), Image.Resampling.NEAREST), (x, y))


def side_by_side(pictures):
    """Join pictures from left to right, centred vertically."""
    size = sum(p.width for p in pictures), max(p.height for p in pictures)
    canvas = Image.new('RGB', size, BACKGROUND)
    x = 0
    for picture in pictures:
        canvas.paste(picture, (x, (canvas.height - picture.height) // 2))
        x += picture.width
    return canvas


def stacked(pictures, caption, colour=INK):
    """Join pictures from top to bottom, with a line of text below."""
    height = sum(p.height for p in pictures)
    canvas = Image.new('RGB', (max(p.width for p in pictures), height + CAPTION), BACKGROUND)
    y = 0
    for picture in pictures:
        canvas.paste(picture, (0, y))
        y += picture.height
    place = 2 * GAP, height + CAPTION // 2
    ImageDraw.Draw(canvas).text(place, caption, colour, _font(), anchor='lm')
    return canvas


# Time

def moment(t, nt_cond, past=''):
    """Colour and text of time t, such as 't = 5 (predicted)'.

    With a fraction `past` t, such as ' + 1/2', the last conditioning frame is over.
    """
    if t < nt_cond - bool(past):
        return GIVEN, f't = {t}{past} (given)'
    return PREDICTED, f't = {t}{past} (predicted)'


def filled(videos):
    """Videos by name, of equal length: shorter ones begin with the frames of the first video."""
    first = next(iter(videos.values()))
    return {name: np.concatenate([first[:len(first) - len(video)], video])
            for name, video in videos.items()}


def spaced(nt_cond, T, most=COLUMNS):
    """At most `most` of T times, evenly spaced, among them the first predicted frame's."""
    spacing = -(-T // most)
    return range(nt_cond % spacing, T, spacing)


# Files

def write_picture(path, picture, **options):
    """Write a Pillow image as PNG."""
    with replacing(path) as tmp:
        picture.save(tmp, 'PNG', **options)


def strip(path, rows, nt_cond):
    """Draw videos as rows of at most `COLUMNS` frames, evenly spaced, with times and names.

    Parameters
    ----------
    path : path
        PNG file.
    rows : dict of uint8 (T, H, W, C) by name
        Predictions may be shorter (see `filled`).
    nt_cond : int
    """
    rows = filled(rows)
    times = spaced(nt_cond, len(next(iter(rows.values()))))
    cells = [[video[t] for t in times] for video in rows.values()]
    headings = [Heading(text, colour) for colour, text in (moment(t, nt_cond) for t in times)]
    write_picture(path, table(cells, headings, list(rows)))


def animation(path, columns, nt_cond, fps=5, across=COLUMNS):
    """Draw videos side by side as an animation; borders show which frames were predicted.

    Parameters
    ----------
    path : path
        GIF or MP4 file.
    columns : dict of uint8 (T, H, W, C) by name
        Predictions may be shorter (see `filled`).
    nt_cond : int
    fps : float
        Frames per second.
    across : int
        Maximum number of videos side by side; more are put below.
    """
    columns, names = filled(columns), list(columns)
    lines = [names[i:i + across] for i in range(0, len(names), across)]
    video = columns[names[0]]

    def draw(t):
        colour, text = moment(t, nt_cond)
        bands = [table([[columns[name][t] for name in line]], list(map(Heading, line)),
                       border=colour) for line in lines]
        return np.asarray(stacked(bands, text, colour))
    _write_animation(path, draw, len(video), fps, video.shape[-1] == 1)


def animated_table(path, cells, headings, names, captions, fps):
    """Draw a table of videos as an animation.

    Parameters
    ----------
    path : path
        GIF or MP4 file.
    cells : list of lists of uint8 (T, H, W, C), or None for an empty cell
    headings, names
        As of `table`.
    captions : list of T tuples (colour, text)
        The colour is that of the frames' borders too.
    fps : float
    """
    def draw(t):
        colour, text = captions[t]
        still = [[None if video is None else video[t] for video in row] for row in cells]
        return np.asarray(stacked([table(still, headings, names, colour)], text, colour))
    _write_animation(path, draw, len(captions), fps, cells[0][-1].shape[-1] == 1)


def _write_animation(path, draw, n, fps, grey):
    """Write the frames draw(0), …, draw(n - 1) as GIF or MP4, by the extension of `path`."""
    frames = map(draw, range(n))
    if Path(path).suffix.lower() == '.mp4':
        write_mp4(path, frames, fps)
    else:  # colours are drawn twice: a list of all frames may take gigabytes
        palette = Palette.greys((GIVEN, PREDICTED)) if grey else Palette.of(map(draw, range(n)), n)
        write_gif(path, frames, fps, palette)
