"""Make videos of coloured shapes and of a dark disc that wanders at random and bumps into them.

`python examples/shapes.py --out_dir VIDEOS` makes them; docs/shapes.md tells what for.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run by path

from files import Parser, nonnegative_int, positive_int, progress_bar, replacing, run_script

import av
import numpy as np
import pymunk
from PIL import Image, ImageDraw

SIZE, SCALE = 64, 4  # frames are drawn SCALE times as large, then reduced by averaging
N_SHAPES = 3
RADII = 7, 10        # of shapes, from the centre to a corner, in pixels
DISC = 6             # radius of the disc, in pixels
SPEED = 1.6          # of the disc, in pixels per frame
TURN = 0.35          # standard deviation of the change of its heading, in radians per frame
SLIDE = 0.6          # share of its velocity that a pushed shape keeps from one frame to the next
SUBSTEPS = 10        # of the physics, per frame
SEEDS = {'train': 0, 'val': 1_000_000, 'test': 2_000_000}  # of the first video of each fold
GROUND, DARK = (238, 238, 232), (40, 40, 48)


class Scene:
    """The disc and the shapes, at random places; they slide, but do not turn."""

    def __init__(self, rng):
        self.space = pymunk.Space()
        self.space.damping = SLIDE
        corners = [(0, 0), (SIZE, 0), (SIZE, SIZE), (0, SIZE)]
        for a, b in zip(corners, corners[1:] + corners[:1]):
            wall = pymunk.Segment(self.space.static_body, a, b, 0.5)
            wall.elasticity = 1
            self.space.add(wall)
        radii = [DISC, *rng.uniform(*RADII, N_SHAPES)]
        places = place(radii, rng)
        self.disc = self.add(places[0], pymunk.Circle(None, DISC), DARK)
        hues = rng.uniform() + (np.arange(N_SHAPES) + rng.uniform(-0.25, 0.25, N_SHAPES)) / N_SHAPES
        for position, radius, hue in zip(places[1:], radii[1:], hues):
            n = rng.choice([0, 3, 4])  # corners
            angles = 2 * np.pi * (np.arange(n) / max(n, 1) + rng.uniform())
            points = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
            shape = pymunk.Poly(None, points.tolist()) if n else pymunk.Circle(None, 0.8 * radius)
            hsv = int(255 * (hue % 1)), 220, int(rng.uniform(160, 250))
            self.add(position, shape, Image.new('HSV', (1, 1), hsv).convert('RGB').getpixel((0, 0)))
        self.heading = rng.uniform(0, 2 * np.pi)

    def add(self, position, shape, colour):
        body = pymunk.Body()
        body.position = tuple(position)
        shape.body, shape.density, shape.elasticity, shape.colour = body, 1, 1, colour
        self.space.add(body, shape)
        body.moment = float('inf')
        return body

    def step(self, rng):
        """Move on by one frame."""
        self.heading += TURN * rng.standard_normal()
        for _ in range(SUBSTEPS):
            self.disc.velocity = SPEED * np.cos(self.heading), SPEED * np.sin(self.heading)
            self.space.step(1 / SUBSTEPS)
            self.heading = self.disc.velocity.angle  # another one after a collision

    def draw(self):
        """Draw the scene: uint8 (SIZE, SIZE, 3), RGB."""
        image = Image.new('RGB', (SCALE * SIZE, SCALE * SIZE), GROUND)
        pen = ImageDraw.Draw(image)
        for body in self.space.bodies:
            shape, = body.shapes
            if isinstance(shape, pymunk.Circle):
                (x, y), r = SCALE * body.position, SCALE * shape.radius
                pen.ellipse([x - r, y - r, x + r, y + r], shape.colour)
            else:
                pen.polygon([tuple(SCALE * body.local_to_world(point))
                             for point in shape.get_vertices()], shape.colour)
        return np.asarray(image.reduce(SCALE))


def place(radii, rng):
    """Draw centres (x, y) of circles that do not overlap."""
    while True:
        places = rng.uniform(max(radii), SIZE - max(radii), (len(radii), 2))
        gaps = np.linalg.norm(places[:, None] - places, axis=2) - np.add.outer(radii, radii)
        if (gaps[np.triu_indices(len(radii), 1)] > 1).all():
            return places


def simulate(seed, frames, future=0, nt_cond=5):
    """Simulate a video: uint8 (frames, SIZE, SIZE, 3), and the centre (x, y) of the disc in each.

    `seed` determines the scene and the first `nt_cond` frames; with `future`, the others.
    """
    rng = np.random.default_rng(seed)
    scene = Scene(rng)
    video, path = [scene.draw()], [scene.disc.position]
    for t in range(1, frames):
        if t == nt_cond:
            rng = np.random.default_rng([seed, future])
        scene.step(rng)
        video.append(scene.draw())
        path.append(scene.disc.position)
    return np.stack(video), np.array(path)


def write(path, video):
    """Encode a video without loss."""
    with replacing(path) as tmp, av.open(tmp, 'w', format='matroska') as out:
        stream = out.add_stream('ffv1', rate=10, width=SIZE, height=SIZE, pix_fmt='bgr0')
        for frame in video:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, 'rgb24')))
        out.mux(stream.encode())


def get_parser():
    parser = Parser('Make videos of coloured shapes and of a dark disc that wanders at random.')
    parser.add_argument('--out_dir', type=Path, required=True, help='folder of the videos')
    parser.add_argument('--n_videos', type=nonnegative_int, nargs=3, default=[8000, 200, 300],
                        metavar=('TRAIN', 'VAL', 'TEST'),
                        help='videos in each fold; earlier ones are replaced')
    parser.add_argument('--frames', type=positive_int, default=30, help='frames per video')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    for (fold, first), n in zip(SEEDS.items(), args.n_videos):
        (args.out_dir / fold).mkdir(parents=True, exist_ok=True)
        for i in progress_bar(range(n), fold, unit='video'):
            write(args.out_dir / fold / f'{i:05}.mkv', simulate(first + i, args.frames)[0])


if __name__ == '__main__':
    run_script(main)
