"""Picture of all tensors of a network: grey values, with damaged elements in red."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pictures.frames import write_picture

SCREEN = 1920, 1200  # maximum size of a video of a network
THIN = 6             # minimum height and width of a tensor, in pixels
DOT = 3              # size of a damaged element of a matrix, in pixels of a screen
HEAD, FOOT = 36, 48  # height of the name of a part, and of the caption
GAP = 6              # pixels between tensors
# Colours: greys from 0 to WHITE, a background unlike any of them, and the red of damage
WHITE, MID_GREY, PAPER, RED = 253, 127, 254, 255
PALETTE = np.array([[round(i * 255 / WHITE)] * 3 for i in range(WHITE + 1)]
                   + [[206, 222, 240], [255, 0, 0]], np.uint8)


def draw_tensor(value):
    """Pixels uint8 (h, w) of a tensor, one per element, in colours of `PALETTE`.

    A vector is a row, a kernel (h, w, …) is shown by its slice [:, :, 0, 0]. The minimum of a
    tensor is black, its maximum white; a constant tensor is mid-grey.
    """
    matrix = value[None] if value.ndim == 1 else value[(..., *[0] * (value.ndim - 2))]
    finite = value[value.isfinite()]  # damage may lead beyond float32
    low, high = (x.item() for x in finite.aminmax()) if len(finite) else (0, 0)
    if low == high:
        return np.full(matrix.shape, MID_GREY, np.uint8)
    grey = (matrix.double().cpu().numpy() - low) / (high - low)
    return np.rint(WHITE * np.nan_to_num(grey).clip(0, 1)).astype(np.uint8)


def enlarged(n):
    """Pixels per element along an axis of n elements: 1, unless the tensor would be too thin."""
    return -(-THIN // n)


def in_rows(sizes, aspect):
    """Place boxes of sizes (w, h) by name in rows from left to right, like the words of a text.

    Return their places (x, y) by name, and the size of all rows together, which are about `aspect`
    times as wide as high.
    """
    limit = max(math.sqrt(aspect * sum(w * h for w, h in sizes.values())),
                *(w for w, _ in sizes.values()))
    places, x, y, height, width = {}, 0, 0, 0, 0
    for name, (w, h) in sizes.items():
        if x + w > limit:
            x, y, height = 0, y + height, 0
        places[name] = x, y
        x, height = x + w, max(height, h)
        width = max(width, x)
    return places, (width, y + height)


class NetworkPicture:
    """Picture of all tensors of a network, part by part, redrawn tensor by tensor.

    `shapes` are those of the tensors by name; what precedes the first dot of a name is its part,
    and scalars are not drawn. `places` (x, y) by name are the upper left corners of the tensors
    in the picture `canvas`, which has the colours of `PALETTE`.
    """

    def __init__(self, shapes):
        self.font = ImageFont.load_default(26)
        parts = {}
        for name, shape in shapes.items():
            if shape:
                h, w = (1, *shape) if len(shape) == 1 else shape[:2]
                part = parts.setdefault(name.partition('.')[0], {})
                part[name] = w * enlarged(w) + GAP, h * enlarged(h) + GAP
        inside, sizes = {}, {}
        for part, boxes in parts.items():
            boxes = dict(sorted(boxes.items(), key=lambda box: -box[1][1]))  # tall ones first
            inside[part], (w, h) = in_rows(boxes, 1.5)
            sizes[part] = max(w, int(self.font.getlength(part))) + 4 * GAP, h + HEAD + GAP
        corners, (w, h) = in_rows(sizes, 2)
        w, h = max(w, 1000), h + FOOT  # wide enough for the caption
        # Damage stays visible where a larger picture is reduced to a screen
        self.reach = math.ceil(DOT * max(1, w / SCREEN[0], h / SCREEN[1])) // 2
        self.canvas, self.places = Image.new('L', (w, h), PAPER), {}
        for part, (x, y) in corners.items():
            x, y = x + 2 * GAP, y + GAP
            ImageDraw.Draw(self.canvas).text((x, y), part, 0, self.font)
            for name, (right, down) in inside[part].items():
                self.places[name] = x + right, y + HEAD + down

    def draw(self, name, value, damaged=()):
        """Redraw a tensor (see `draw_tensor`), unless it is a scalar.

        `damaged` are flat indices of elements to draw in red, in a matrix with what is next to
        them. Those outside the slice of a kernel show at their (h, w).
        """
        if name not in self.places:
            return
        picture = draw_tensor(value)
        places, r = np.unravel_index(np.array(list(damaged), int), value.shape), self.reach
        if value.ndim == 1:
            picture[0, places[0]] = RED
        else:
            for i, j in zip(*places[:2]):
                picture[max(0, i - r):i + r + 1, max(0, j - r):j + r + 1] = RED
        h, w = picture.shape
        picture = picture.repeat(enlarged(h), 0).repeat(enlarged(w), 1)
        self.canvas.paste(Image.fromarray(picture), self.places[name])

    def save(self, path, caption):
        """Write the picture as PNG, with a line of text at its foot."""
        picture, top = self.canvas.copy(), self.canvas.height - FOOT
        ImageDraw.Draw(picture).text((2 * GAP, top + GAP), caption, 0, self.font)
        picture.putpalette(PALETTE.tobytes())
        write_picture(path, picture, compress_level=3)


def video_frame(path):
    """Frame uint8 (H, W, 3) for a video, of a picture that `NetworkPicture.save` wrote."""
    with Image.open(path) as picture:
        frame = picture.convert('RGB')
    frame.thumbnail(SCREEN, Image.Resampling.BOX)
    return np.asarray(frame)
