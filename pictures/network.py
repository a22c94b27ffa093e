"""Picture of all tensors of a network: grey values, with damaged elements in red."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from files import replacing

SCREEN = 1920, 1200  # maximum size of a video of a network
THIN = 6             # minimum height and width of a tensor in pixels
DOT = 3              # minimum size of damage in a matrix, in pixels of a screen
HEAD, FOOT = 36, 48  # height of the name of a part, and of the caption
GAP = 6              # pixels between tensors
# Colours: greys from 0 to WHITE, a background unlike any of them, and the red of damage
WHITE, MID_GREY, PAPER, RED = 253, 127, 254, 255
PALETTE = np.array([[round(i * 255 / WHITE)] * 3 for i in range(WHITE + 1)]
                   + [[206, 222, 240], [255, 0, 0]], np.uint8)


def draw_tensor(value, damaged=()):
    """Draw a tensor, one pixel per element, from black (minimum) to white (maximum).

    Parameters
    ----------
    value : tensor (n) or (h, w, …)
        A vector is drawn as a row, a kernel by its slice [:, :, 0, 0]. A constant tensor is
        mid-grey.
    damaged : sequence of int
        Flat indices of elements to draw in red; those outside the slice show at their (h, w).

    Returns
    -------
    np.ndarray of uint8 (h, w)
        Colours of `PALETTE`.
    """
    low, high = value.aminmax()
    if not (low.isfinite() and high.isfinite()):  # damaged beyond float32
        finite = value[value.isfinite()]
        low, high = finite.aminmax() if len(finite) else (low, low)
    low, high = low.item(), high.item()
    matrix = value[None] if value.ndim == 1 else value[(..., *[0] * (value.ndim - 2))]
    matrix = matrix.cpu().numpy().astype(np.float64)
    if low < high:
        grey = np.nan_to_num((matrix - low) / (high - low)).clip(0, 1)
        picture = np.rint(grey * WHITE).astype(np.uint8)
    else:
        picture = np.full(matrix.shape, MID_GREY, np.uint8)
    if len(damaged):
        places = np.unravel_index(np.asarray(damaged), value.shape)
        picture[places[:2] if value.ndim > 1 else (0, places[0])] = RED
    return picture


def spread(mask, r):
    """Mask (h, w) of what is at most r pixels from a mask (h, w), along each axis."""
    padded, (h, w) = np.pad(mask, r), mask.shape
    rows = np.logical_or.reduce([padded[d:d + h] for d in range(2 * r + 1)])  # (h, w + 2 r)
    return np.logical_or.reduce([rows[:, d:d + w] for d in range(2 * r + 1)])


# Layout

def pack(sizes, width):
    """Pack boxes into a strip of some width, in turn, each as far up, then left, as it goes.

    Parameters
    ----------
    sizes : list of (w, h)
        No box is wider than the strip.
    width : int

    Returns
    -------
    places : list of (x, y)
    height : int
    """
    bottom, places = np.zeros(width, int), []  # bottom[x]: of the boxes packed so far
    for w, h in sizes:
        starts = [0, *(np.flatnonzero(np.diff(bottom)) + 1)]
        y, x = min((bottom[x:x + w].max(), x) for x in starts if x + w <= width)
        bottom[x:x + w] = y + h
        places.append((int(x), int(y)))
    return places, int(bottom.max())


def pack_best(sizes, cost):
    """As `pack`, with the width that minimises `cost(width, height)`; (places, width, height)."""
    widest, total = max(w for w, _ in sizes), sum(w for w, _ in sizes)
    packed = []
    for strip in sorted({min(int(widest * 1.05 ** k), total) for k in range(60)}):
        places, height = pack(sizes, strip)
        width = max(x + w for (x, _), (w, _) in zip(places, sizes))
        packed.append((places, width, height))
    return min(packed, key=lambda p: cost(*p[1:]))


def part_of(name):
    """Part of the network that a tensor belongs to: its name up to the first dot."""
    return name.partition('.')[0]


class NetworkPicture:
    """Picture of all tensors of a network, in blocks by part, redrawn tensor by tensor.

    In a small network, an element takes several pixels, so that the picture fills a screen.

    Parameters
    ----------
    shapes : dict of tuples by name
        Of the tensors; scalars are not drawn.

    Attributes
    ----------
    canvas : np.ndarray of uint8 (H, W)
        Colours of `PALETTE`.
    """

    def __init__(self, shapes):
        self.font = ImageFont.load_default(26)
        shapes = {name: (1, *shape) if len(shape) == 1 else shape[:2]
                  for name, shape in shapes.items() if shape}
        area = sum(h * w for h, w in shapes.values())
        for self.zoom in (8, 6, 4, 3, 2, 1):
            if self.zoom > 1 and area * self.zoom ** 2 > SCREEN[0] * SCREEN[1]:
                continue
            width, height = self._lay_out(shapes)
            if width <= SCREEN[0] and height <= SCREEN[1]:
                break
        self.canvas = np.full((height, width), PAPER, np.uint8)
        # Of a dot; the picture may be reduced to fit a screen
        self.dot = math.ceil(DOT * max(1, width / SCREEN[0], height / SCREEN[1]))
        for part, (x, y) in self.labels.items():
            self._write(part, x, y)

    def _lay_out(self, shapes):
        """Place the tensors; returns the width and height of the picture.

        `self.places` has (x, y, horizontal and vertical pixels per element) by name.
        """
        pixels = {name: (max(self.zoom, -(-THIN // w)), max(self.zoom, -(-THIN // h)))
                  for name, (h, w) in shapes.items()}
        boxes = {name: (w * pixels[name][0] + GAP, h * pixels[name][1] + GAP)
                 for name, (h, w) in shapes.items()}
        parts = {}
        for name in sorted(boxes, key=lambda name: -min(boxes[name])):  # bulky first: packs tighter
            parts.setdefault(part_of(name), []).append(name)
        packed = {part: pack_best([boxes[name] for name in names], lambda w, h: w + h)
                  for part, names in parts.items()}
        order = list(dict.fromkeys(map(part_of, shapes)))
        sizes = [(max(packed[part][1], int(self.font.getlength(part))) + 4 * GAP,
                  packed[part][2] + HEAD + GAP) for part in order]
        corners, width, height = pack_best(
            sizes, lambda w, h: max(w / SCREEN[0], (h + FOOT) / SCREEN[1]))
        self.labels = {part: (x + 2 * GAP, y + GAP) for part, (x, y) in zip(order, corners)}
        self.places = {}
        for part, names in parts.items():
            left, top = self.labels[part]
            for name, (x, y) in zip(names, packed[part][0]):
                self.places[name] = left + x, top + HEAD + y, *pixels[name]
        self.caption = 2 * GAP, height + GAP
        return max(width, 1000), height + FOOT  # at least as wide as the caption

    def _write(self, text, x, y):
        box = Image.new('L', (int(self.font.getlength(text)) + 1, HEAD), PAPER)
        ImageDraw.Draw(box).text((0, 0), text, 0, self.font)
        place = self.canvas[y:y + HEAD, x:x + box.width]
        place[:] = np.asarray(box)[:, :place.shape[1]]

    def draw(self, name, value, damaged=()):
        """Redraw a tensor (see `draw_tensor`), unless it is a scalar.

        In matrices, damage covers what is around it, so that it is visible.
        """
        if name not in self.places:
            return
        x, y, across, down = self.places[name]
        picture = draw_tensor(value, damaged)
        is_matrix = min(picture.shape) > 1
        picture = picture.repeat(down, 0).repeat(across, 1)
        if is_matrix and len(damaged) and self.zoom < self.dot:
            picture[spread(picture == RED, (self.dot - self.zoom + 1) // 2)] = RED
        self.canvas[y:y + picture.shape[0], x:x + picture.shape[1]] = picture

    def save(self, path, caption):
        """Write the picture as PNG, with a line of text at its foot."""
        x, y = self.caption
        self.canvas[y:] = PAPER
        self._write(caption, x, y)
        picture = Image.fromarray(self.canvas)
        picture.putpalette(PALETTE.tobytes())
        with replacing(path) as tmp:
            picture.save(tmp, 'PNG', compress_level=3)


def video_frame(path):
    """Frame uint8 (H, W, 3) for a video, of a picture that `NetworkPicture.save` wrote.

    A picture larger than a screen is reduced; what is red stays so, however small.
    """
    with Image.open(path) as file:
        canvas = np.asarray(file)
    H, W = canvas.shape
    scale = min(SCREEN[0] / W, SCREEN[1] / H)
    if scale >= 1:
        return PALETTE[canvas]
    size, red = (int(W * scale), int(H * scale)), canvas == RED

    def reduced(picture):
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    frame = PALETTE[reduced(np.where(red, np.uint8(MID_GREY), canvas))]
    frame[reduced(255 * red.astype(np.uint8)) > 0] = PALETTE[RED]
    return frame
