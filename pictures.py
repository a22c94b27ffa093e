"""Pictures of predictions: strips of frames (PNG) and animations (GIF, MP4), enlarged by nearest neighbour; pictures of networks."""

from pathlib import Path

import imageio_ffmpeg
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from files import replacing

SCALE = 3                      # enlargement of frames
GAP = 4                        # pixels between frames
COLUMNS = 12                   # frames in a strip
BACKGROUND, INK = (255, 255, 255), (0, 0, 0)
SCREEN = 1920, 1200            # largest size of a video of a network
THIN = 6                       # tensors with a side of fewer pixels are drawn thicker
# Colours of pictures of networks: greys from 0 to WHITE, a background that is none of them, and the red of damage
WHITE, MID_GREY, PAPER, RED = 253, 127, 254, 255
PALETTE = np.array([[round(i * 255 / WHITE)] * 3 for i in range(WHITE + 1)] + [[206, 222, 240], [255, 0, 0]], np.uint8)
GIVEN, PREDICTED = (31, 119, 180), (214, 39, 40)  # colours of what was given to the model and what it predicted


def _font(size=15):
    return ImageFont.load_default(size)


def _enlarge(frame, scale=SCALE):
    """uint8 (H, W, C) of 1 or 3 channels -> RGB picture, enlarged."""
    picture = Image.fromarray(np.repeat(frame, 3, 2) if frame.shape[2] == 1 else frame)
    return picture.resize((frame.shape[1] * scale, frame.shape[0] * scale), Image.Resampling.NEAREST)


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


def side_by_side(frames, caption, scale=4):
    """Frames uint8 (H, W, C) by name, their names above and a line of text below: uint8 (H', W', 3)."""
    font = _font()
    H, W = next(iter(frames.values())).shape[:2]
    w, top, bottom = W * scale + 2 * GAP, 28, 28
    canvas = Image.new('RGB', (len(frames) * w, top + H * scale + bottom), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, (name, frame) in enumerate(frames.items()):
        draw.text((i * w + w // 2, top // 2), name, INK, font, anchor='mm')
        canvas.paste(_enlarge(frame, scale), (i * w + GAP, top))
    draw.text((GAP, canvas.height - bottom // 2), caption, INK, font, anchor='lm')
    return np.asarray(canvas)


def curves(path, xlabel, x, panels):
    """Draw curves, of several runs their mean and a band of a standard deviation on either side. Values that are not finite are left out.

    Parameters
    ----------
    path : path
        PNG file.
    xlabel : str
    x : array (N)
    panels : dict of dicts of arrays (runs, N)
        By the label of their axis, then by their name in its legend.
    """
    figure = Figure(figsize=(11, 3.5 * -(-len(panels) // 2)), layout='constrained')
    for i, (label, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(-(-len(panels) // 2), 2, i + 1)
        for name, values in lines.items():
            values = np.ma.masked_invalid(values)
            mean, std = values.mean(0), values.std(0)
            axes.plot(x, mean, '.-', label=name, markersize=4)
            axes.fill_between(x, mean - std, mean + std, alpha=0.25, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if any(lines):
            axes.legend()
    with replacing(path) as tmp:
        figure.savefig(tmp, format='png', dpi=120)


# Pictures of a network

def draw_tensor(value, damaged=()):
    """Draw a tensor, a pixel an element, from black at its minimum to white at its maximum, mid-grey if it is constant.

    Parameters
    ----------
    value : tensor (n) or (h, w, …)
        A vector is drawn as a row; of further axes, those of kernels, the first element is drawn.
    damaged : sequence of int
        Flat indices of elements to draw in red; those that are not drawn show at their place (h, w).

    Returns
    -------
    np.ndarray of uint8 (h, w)
        Colours of `PALETTE`.
    """
    low, high = value.aminmax()
    if not low.isfinite() or not high.isfinite():  # damaged beyond float32
        finite = value[value.isfinite()]
        low, high = finite.aminmax() if len(finite) else (low, low)
    low, high = low.item(), high.item()
    plane = (value[None] if value.ndim == 1 else value[(..., *[0] * (value.ndim - 2))]).cpu().numpy().astype(np.float64)
    if low < high:
        picture = np.rint(np.nan_to_num((plane - low) / (high - low)).clip(0, 1) * WHITE).astype(np.uint8)
    else:
        picture = np.full(plane.shape, MID_GREY, np.uint8)
    if len(damaged):
        places = np.unravel_index(np.asarray(damaged), value.shape)
        picture[places[:2] if value.ndim > 1 else (0, places[0])] = RED
    return picture


def pack(sizes, width):
    """Pack boxes in a strip `width` pixels wide, one after the other, each as far up as it goes, then as far left.

    Parameters
    ----------
    sizes : list of (w, h)
        None is wider than the strip.

    Returns
    -------
    places : list of (x, y)
    height : int
    """
    bottom, places = np.zeros(width, int), []  # bottom[x]: of what is packed so far
    for w, h in sizes:
        starts = [0, *(np.flatnonzero(np.diff(bottom)) + 1)]
        y, x = min((bottom[x:x + w].max(), x) for x in starts if x + w <= width)
        bottom[x:x + w] = y + h
        places.append((int(x), int(y)))
    return places, int(bottom.max())


def pack_best(sizes, cost):
    """As `pack`, in a strip of the width for which `cost(width, height)` of the whole is least. Returns places, width, height."""
    widest, total = max(w for w, _ in sizes), sum(w for w, _ in sizes)
    strips = sorted({min(int(widest * 1.05 ** k), total) for k in range(60)})
    packed = [(places, max(x + w for (x, _), (w, _) in zip(places, sizes)), height)
              for places, height in (pack(sizes, strip) for strip in strips)]
    return min(packed, key=lambda p: cost(*p[1:]))


def _paint(picture, y, x, colour, reach):
    """Colour the pixels (y, x) and those around them, as many steps to either side as `reach` says, in place."""
    for dy in reach:
        for dx in reach:
            picture[(y + dy).clip(0, len(picture) - 1), (x + dx).clip(0, picture.shape[1] - 1)] = colour


class NetworkPicture:
    """Picture of all tensors of a network, in blocks by part, that is redrawn tensor by tensor.

    Elements take a pixel, or several in a small network, so that the picture fills a screen. Where they take a single one, a damaged element
    also colours its neighbours: it would not be seen otherwise.

    Parameters
    ----------
    shapes : dict of tuples by name
        Of the tensors; scalars are not drawn. The part is the name up to its first dot.

    Attributes
    ----------
    canvas : np.ndarray of uint8 (H, W)
        Colours of `PALETTE`.
    """

    def __init__(self, shapes):
        self.font = _font(26)
        shapes = {name: (1, *shape) if len(shape) == 1 else shape[:2] for name, shape in shapes.items() if shape}
        area = sum(h * w for h, w in shapes.values())
        for self.zoom in (8, 6, 4, 3, 2, 1):
            if self.zoom > 1 and area * self.zoom ** 2 > SCREEN[0] * SCREEN[1]:
                continue
            width, height = self._lay_out(shapes)
            if width <= SCREEN[0] and height <= SCREEN[1]:
                break
        self.canvas = np.full((height, width), PAPER, np.uint8)
        for part, (x, y) in self.labels.items():
            self._write(part, x, y)

    def _lay_out(self, shapes):
        """Place the tensors: `self.places`, (x, y, horizontal and vertical pixels an element) by name. Returns the size of the whole."""
        head, foot, gap = 36, 48, 6
        pixels = {name: (max(self.zoom, -(-THIN // w)), max(self.zoom, -(-THIN // h))) for name, (h, w) in shapes.items()}
        boxes = {name: (w * pixels[name][0] + gap, h * pixels[name][1] + gap) for name, (h, w) in shapes.items()}
        parts = {}
        for name in sorted(boxes, key=lambda name: -min(boxes[name])):  # those that are hard to place first: less room is lost
            parts.setdefault(name.partition('.')[0], []).append(name)
        packed = {part: pack_best([boxes[name] for name in names], lambda w, h: w + h) for part, names in parts.items()}
        order = dict.fromkeys(name.partition('.')[0] for name in shapes)
        sizes = [(max(packed[part][1], int(self.font.getlength(part))) + 4 * gap, packed[part][2] + head + gap) for part in order]
        corners, width, height = pack_best(sizes, lambda w, h: max(w / SCREEN[0], (h + foot) / SCREEN[1]))
        self.labels = {part: (x + 2 * gap, y + gap) for part, (x, y) in zip(order, corners)}
        self.places = {name: (self.labels[part][0] + x, self.labels[part][1] + head + y, *pixels[name])
                       for part, names in parts.items() for name, (x, y) in zip(names, packed[part][0])}
        self.caption = 2 * gap, height + gap
        return max(width, 1000), height + foot  # room for a line of text

    def _write(self, text, x, y):
        box = Image.new('L', (int(self.font.getlength(text)) + 1, 36), PAPER)
        ImageDraw.Draw(box).text((0, 0), text, 0, self.font)
        below = self.canvas[y:y + 36, x:x + box.width]
        below[:] = np.asarray(box)[:, :below.shape[1]]

    def draw(self, name, value, damaged=()):
        """Draw a tensor anew (see `draw_tensor`); scalars are left out."""
        if name in self.places:
            x, y, across, down = self.places[name]
            picture = draw_tensor(value, damaged)
            if across == down == 1:
                _paint(picture, *np.nonzero(picture == RED), RED, (-1, 0, 1))
            picture = picture.repeat(down, 0).repeat(across, 1)
            self.canvas[y:y + picture.shape[0], x:x + picture.shape[1]] = picture

    def save(self, path, caption):
        """Write the picture as PNG, with a line of text below it."""
        x, y = self.caption
        self.canvas[y:] = PAPER
        self._write(caption, x, y)
        picture = Image.fromarray(self.canvas)
        picture.putpalette(PALETTE.tobytes())
        with replacing(path) as tmp:
            picture.save(tmp, 'PNG', compress_level=3)

    def video_frame(self, path):
        """Frame uint8 (H, W, 3) for a video of a picture that `save` wrote: no larger than a screen, damage large enough to see."""
        with Image.open(path) as file:
            canvas = np.asarray(file)
        H, W = canvas.shape
        scale = min(1, SCREEN[0] / W, SCREEN[1] / H)
        size = int(W * scale), int(H * scale)
        red = canvas == RED
        grey = Image.fromarray(np.where(red, np.uint8(MID_GREY), canvas)).resize(size, Image.Resampling.BOX)
        frame = PALETTE[np.asarray(grey)]
        y, x = (np.nonzero(red) * np.array([[size[1] / H], [size[0] / W]])).astype(int)
        _paint(frame, y, x, PALETTE[RED], (0, 1) if scale < 1 else (0,))
        return frame
