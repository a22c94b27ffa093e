"""Picture of all tensors of a network, in greys, damaged elements in red."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from files import replacing

SCREEN = 1920, 1200            # largest size of a video of a network
THIN = 6                       # tensors with a side of fewer pixels are drawn thicker
# Colours of pictures of networks: greys from 0 to WHITE, a background that is none of them, and the red of damage
WHITE, MID_GREY, PAPER, RED = 253, 127, 254, 255
PALETTE = np.array([[round(i * 255 / WHITE)] * 3 for i in range(WHITE + 1)] + [[206, 222, 240], [255, 0, 0]], np.uint8)


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


class NetworkPicture:
    """Picture of all tensors of a network, in blocks by part, that is redrawn tensor by tensor.

    Elements take a pixel, or several in a small network, so that the picture fills a screen.

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
        self.font = ImageFont.load_default(26)
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
            picture = draw_tensor(value, damaged).repeat(down, 0).repeat(across, 1)
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
        """Frame uint8 (H, W, 3) for a video of a picture that `save` wrote, made no larger than a screen.

        A smaller one would hide damage: there the pixels around a damaged element are red too.
        """
        with Image.open(path) as file:
            canvas = np.asarray(file)
        H, W = canvas.shape
        scale = min(SCREEN[0] / W, SCREEN[1] / H)
        if scale >= 1:
            return PALETTE[canvas]
        size, red = (int(W * scale), int(H * scale)), canvas == RED
        grey = Image.fromarray(np.where(red, np.uint8(MID_GREY), canvas)).resize(size, Image.Resampling.BOX)
        frame = PALETTE[np.asarray(grey)]
        y, x = (np.nonzero(red) * np.array([[size[1] / H], [size[0] / W]])).astype(int)
        dots = np.zeros(frame.shape[:2], np.uint8)
        dots[y, x] = 1
        frame[np.asarray(Image.fromarray(dots).filter(ImageFilter.MaxFilter(3))) > 0] = PALETTE[RED]
        return frame
