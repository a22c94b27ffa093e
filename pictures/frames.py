"""Pictures of videos, enlarged by nearest neighbour: tables and strips (PNG), animations.

Videos are uint8 (T, H, W, C), C = 1 or 3. By name, they are the truth and predictions, which may
lack the conditioning frames.
"""

import contextlib
import itertools
import subprocess
from pathlib import Path
from typing import NamedTuple

from files import UserError, replacing

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 192    # pixels that frames are enlarged to, at most
GAP = 4       # pixels between frames
COLUMNS = 12  # frames in a row of a strip
CAPTION = 28  # height of a line of text below a picture
BACKGROUND, INK = (255, 255, 255), (0, 0, 0)
# Colours of conditioning and of predicted frames, in all pictures and pages
GIVEN, PREDICTED = (31, 119, 180), (214, 39, 40)


class Heading(NamedTuple):
    """Text above one or several columns of a table, left of a row, or below a picture."""
    text: str
    colour: tuple = INK
    span: int = 1


def table(cells, headings, names=(), border=None):
    """Picture of frames (H, W, C), or None for an empty cell, in rows `cells` of columns.

    There are a Heading above each column or group of columns, and a name, text or Heading, to the
    left of each row, unless there are no names. `border` is a colour around the frames.
    """
    # Larger in a wider table, which is viewed smaller; 22 fits 't = 23 (predicted)' above a frame
    font = ImageFont.load_default(min(max(15, 2 * len(cells[0]) + 2), 22))
    names = [name if isinstance(name, Heading) else Heading(name) for name in names]
    H, W = next(frame for row in cells for frame in row if frame is not None).shape[:2]
    scale = max(1, SIDE // W)
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
                    a, b = x + (w - W) // 2, top + i * h
                    if border is not None:
                        draw.rectangle((a - 2, b - 2, a + W + 1, b + H + 1), border)
                    picture = Image.fromarray(np.broadcast_to(frame, (*frame.shape[:2], 3)))
                    canvas.paste(picture.resize((W, H), Image.Resampling.NEAREST), (a, b))
            x += w
        x += space
    return canvas


def shortened(name, most=24):
    """Name for a label, without its middle if it has more than `most` characters."""
    return name if len(name) <= most else f'{name[:most // 2 - 1]}…{name[-most // 2:]}'


def moment(t, nt_cond, past=''):
    """Heading of time t, such as 't = 5 (predicted)', in its colour.

    With a fraction `past` t, such as ' + 1/2', the last conditioning frame is over.
    """
    if t < nt_cond - bool(past):
        return Heading(f't = {t}{past} (given)', GIVEN)
    return Heading(f't = {t}{past} (predicted)', PREDICTED)


def filled(videos):
    """Videos by name, of equal length: shorter ones begin with the frames of the first video."""
    first = next(iter(videos.values()))
    return {name: np.concatenate([first[:len(first) - len(video)], video])
            for name, video in videos.items()}


def spaced(nt_cond, T, most=COLUMNS):
    """At most `most` of T times, evenly spaced, among them the first predicted frame's."""
    spacing = -(-T // most)
    return range(nt_cond % spacing, T, spacing)


def write_picture(path, picture, **options):
    with replacing(path) as tmp:
        picture.save(tmp, 'PNG', **options)


def draw_rows(paths, videos, nt_cond, fps=5, across=COLUMNS):
    """Draw videos by name, as rows of frames (PNG) or as animations (GIF or MP4).

    A row has at most `COLUMNS` frames, evenly spaced; `across` animations are side by side.
    """
    videos = filled(videos)
    names, T = list(videos), len(next(iter(videos.values())))
    captions, times = [moment(t, nt_cond) for t in range(T)], spaced(nt_cond, T)
    cells = [[video[t] for t in times] for video in videos.values()]
    lines = [names[i:i + across] for i in range(0, len(names), across)]
    moving = [([[videos[name] for name in line]], list(map(Heading, line)), []) for line in lines]
    draw_tables(paths, (cells, [captions[t] for t in times], names), moving, captions, fps)


def draw_tables(paths, still, moving, captions, fps):
    """Draw a table of frames (PNG), or tables of videos, one below the other (GIF or MP4).

    Tables are arguments of `table`. The T captions are of type Heading; their colour is that of the
    frames' borders too.
    """
    font = ImageFont.load_default(15)

    def draw(t):
        text, colour, _ = captions[t]
        pictures = []
        for cells, headings, names in moving:
            shown = [[None if video is None else video[t] for video in row] for row in cells]
            pictures.append(table(shown, headings, names, colour))
        width, height = max(p.width for p in pictures), sum(p.height for p in pictures)
        canvas, y = Image.new('RGB', (width, height + CAPTION), BACKGROUND), 0
        for picture in pictures:
            canvas.paste(picture, (0, y))
            y += picture.height
        ImageDraw.Draw(canvas).text((2 * GAP, y + CAPTION // 2), text, colour, font, anchor='lm')
        return canvas
    for path in paths:
        if path.suffix.lower() == '.png':
            write_picture(path, table(*still))
        else:
            write_video(path, map(draw, range(len(captions))), fps)


def write_video(path, frames, fps):
    """Write frames, uint8 (H, W, 3) or pictures in RGB, as GIF (which repeats) or MP4."""
    frames = map(np.asarray, frames)
    first = next(frames)
    if Path(path).suffix.lower() == '.gif':
        fps = min(fps, 50)  # players slow down faster ones; a palette for each frame
        output = ['-filter_complex', 'split[a][b];[a]palettegen=stats_mode=single[p];'
                                     '[b][p]paletteuse=dither=none:new=1', '-f', 'gif']
    else:  # 4:2:0, which players expect, needs even sizes
        output = ['-vf', 'pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white', '-c:v', 'libx264',
                  '-pix_fmt', 'yuv420p', '-crf', '10', '-movflags', '+faststart', '-f', 'mp4']
    command = [imageio_ffmpeg.get_ffmpeg_exe(), '-y', '-loglevel', 'error', '-f', 'rawvideo',
               '-pix_fmt', 'rgb24', '-s', f'{first.shape[1]}x{first.shape[0]}', '-r', str(fps),
               '-i', '-', *output]
    with replacing(path) as tmp:
        with subprocess.Popen([*command, str(tmp)], stdin=subprocess.PIPE,
                              stderr=subprocess.PIPE) as ffmpeg:
            with contextlib.suppress(BrokenPipeError):  # ffmpeg has ended, and says why
                for frame in itertools.chain([first], frames):
                    ffmpeg.stdin.write(frame.tobytes())
            _, complaint = ffmpeg.communicate()
        if ffmpeg.returncode != 0:
            reason = complaint.decode(errors='replace').strip().splitlines()[-1:]
            raise UserError(f'{path} could not be encoded ({"".join(reason) or "ffmpeg ended"}); '
                            'check the free space on its disk')
