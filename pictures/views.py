"""What `visualize.py` draws.

Each view takes true videos uint8 (T, B, H, W, C), with their indices and names, computes what it
shows, and returns a `Drawing`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from files import UserError, progress_bar, write_npz
from metrics.frame import psnr
from metrics.scoring import Best, quantise
from model import Noise
from pictures import charts, frames
from pictures.frames import Heading
from sampling import Chunk, Futures, draw_noise
from utils import to_video

N_RANDOM = 3        # random futures in `samples`
FRAMERATE_ROWS = 6  # frames in the picture of `framerate`


class Drawing(NamedTuple):
    """Functions that write a view to a path, by kind of file."""
    still: Callable
    animation: Callable = None
    arrays: Callable = None

    def write(self, path):
        """Write the view to a file, by its extension."""
        kinds = {'.png': self.still, '.npz': self.arrays}
        kinds.get(path.suffix.lower(), self.animation)(path)


def get_futures(model, truth, index, args, **kwargs):
    """Futures of videos, with the noise of evaluation; only that of `--sample`, if an option."""
    noise = draw_noise(model, args.seed, 'test', index, args.n_samples, args.nt_gen)
    if 'sample' in args:
        chosen = slice(args.sample - 1, args.sample)
        noise = Noise(noise.y_0[chosen], noise.z[:, chosen])
    x = to_video(torch.from_numpy(truth[:args.nt_cond]), args.device)
    futures = Futures(model, x, args.nt_gen - args.nt_cond, noise, args.n_euler_steps, **kwargs)
    futures.check_states()
    return futures


def get_states(futures):
    """States (T, B, ny) of the first future, from t = 0."""
    return torch.cat([futures.y_given, futures.y])[:, 0]


def to_frames(x):
    """Frames uint8 (…, H, W, C) of x (…, C, H, W) in [0, 1]."""
    if x.isnan().any():
        raise UserError('the model predicts NaN: its activations grow beyond float32; '
                        'use another checkpoint')
    return quantise(x.clamp(0, 1)).movedim(-3, -1).cpu().numpy()


def decode(model, w, y, skips):
    """Frames uint8 (T, B, H, W, C) of states y (T, B, ny), in chunks that fit into memory."""
    return to_frames(Chunk(model).decode(lambda part: model.decode(w, part, skips), y))


def repeated(frame, n):
    """Video (n, H, W, C) of a frame."""
    return np.broadcast_to(frame, (n, *frame.shape))


# Futures

def samples(model, truth, index, names, args):
    """Best, worst (by PSNR) and random futures of a video, mean and standard deviation of all."""
    futures = get_futures(model, truth, index, args)
    target = to_video(torch.from_numpy(truth[args.nt_cond:]), args.device)
    best, worst, random, total, squares = Best(), Best(False), {}, 0, 0
    # One at a time: all futures may not fit into memory
    for x in progress_bar(futures, names[0], unit='sample'):  # (nt, 1, C, H, W)
        score = psnr(x, target).mean((0, 2))
        best.update(score, x)
        worst.update(score, x)
        if len(random) < N_RANDOM:
            random[f'random {len(random) + 1}'] = to_frames(x[:, 0])
        x = x[:, 0].double()
        total, squares = total + x, squares + x ** 2
    mean = total / len(futures)
    std = (squares / len(futures) - mean ** 2).clamp(min=0).sqrt()  # at most 1/2, in [0, 1]
    given = truth[:args.nt_cond, 0]
    rows = {'truth': truth[:, 0], 'best': to_frames(best.kept[0][:, 0]),
            'worst': to_frames(worst.kept[0][:, 0]), **random, 'mean': to_frames(mean),
            '2 std': np.concatenate([0 * given, to_frames(2 * std)])}

    def still(path):
        frames.strip(path, rows, args.nt_cond)

    def animation(path):
        frames.animation(path, rows, args.nt_cond, args.fps, across=4)
    return Drawing(still, animation)


def predict(model, truth, index, names, args):
    """Futures of any video."""
    futures = get_futures(model, truth, index, args)
    bar = progress_bar(futures, 'predicting', unit='sample')
    x = np.stack([to_frames(future[:, 0]) for future in bar])  # (S, nt, H, W, C)
    truth, given = truth[:, 0], truth[:args.nt_cond, 0]
    missing = args.nt_gen - len(truth)  # white, after its end
    video = np.pad(truth, ((0, missing), (0, 0), (0, 0), (0, 0)), constant_values=255)
    rows = {names[0]: video} | {f'future {s + 1}': future for s, future in enumerate(x)}

    def still(path):
        frames.strip(path, rows, args.nt_cond)

    def animation(path):
        across = max(3, math.ceil(math.sqrt(len(x) + 1)))
        frames.animation(path, rows, args.nt_cond, args.fps, across)
    return Drawing(still, animation, lambda path: write_npz(path, samples=x, given=given))


def framerate(model, truth, index, names, args):
    """Frames of one future at all its Euler steps, n per frame, next to the true frame rate."""
    n, T, last = args.n_euler_steps, args.nt_gen, args.nt_cond - 1
    future = get_futures(model, truth, index, args, between=True)[0]
    truth = truth[:, 0]
    ticks = np.arange((T - 1) * n + 1)  # tick i is time i / n
    smooth = np.concatenate([truth[ticks[:last * n + 1] // n], to_frames(future[:, 0])])

    def still(path):
        times = range(last, T - 1)[:FRAMERATE_ROWS]
        headings = [Heading('truth'), Heading('t'), *(Heading(f't + {k}/{n}') for k in range(1, n))]
        names = [Heading(f't = {t}', frames.moment(t, args.nt_cond)[0]) for t in times]
        cells = [[truth[t], *smooth[t * n:t * n + n]] for t in times]
        frames.write_picture(path, frames.table(cells, headings, names))

    def animation(path):
        captions = [frames.moment(t, args.nt_cond, f' + {k}/{n}' if k else '')
                    for t, k in zip(*divmod(ticks, n))]
        headings = list(map(Heading, ('truth', 'frames', f'frames and {n - 1} between')))
        cells = [[truth[ticks // n], smooth[ticks - ticks % n], smooth]]
        frames.animated_table(path, cells, headings, [], captions, args.fps)
    return Drawing(still, animation)


# Content, motion and states

def swap(model, truth, index, names, args):
    """Content w, and skip connections, of each video with the motion (y_0, z) of each."""
    futures = get_futures(model, truth, index, args)
    w, skips, y, B = futures.cond.w, futures.cond.skips, get_states(futures), len(index)
    cells = [[None, *truth.swapaxes(0, 1)]]
    for b in range(B):
        skips_b = skips and [s[b].expand(B, *s[b].shape) for s in skips]
        videos = decode(model, w[b].expand(B, -1), y, skips_b)  # content b, all motions
        content = repeated(truth[args.nt_cond - 1, b], len(truth))  # frame of the skip connections
        cells.append([content, *videos.swapaxes(0, 1)])
    rows, motions = ['truth', *names], [f'motion of {name}' for name in names]

    def still(path):
        times = frames.spaced(args.nt_cond, args.nt_gen, max(2, frames.COLUMNS // B))
        shown = [[None if content is None else content[0],
                  *(video[t] for video in videos for t in times)] for content, *videos in cells]
        text, span = f't = {", ".join(map(str, times))}', len(times)
        headings = [Heading('content'), *(Heading(f'{m}, {text}', span=span) for m in motions)]
        frames.write_picture(path, frames.table(shown, headings, rows))

    def animation(path):
        captions = [frames.moment(t, args.nt_cond) for t in range(args.nt_gen)]
        headings = list(map(Heading, ['content', *motions]))
        frames.animated_table(path, cells, headings, rows, captions, args.fps)
    return Drawing(still, animation)


def mix(pair, a):
    """Points (K, …) between two, pair (2, …), at a (K,): (1 - a) pair[0] + a pair[1]."""
    a = a.view(-1, *[1] * (pair.ndim - 1))
    return (1 - a) * pair[0] + a * pair[1]


def interpolate(model, truth, index, names, args):
    """Frames of states between the y_0 of two videos, with the content of each, and between."""
    futures = get_futures(model, truth, index, args)
    a = torch.linspace(0, 1, args.steps, device=args.device)
    y, videos = mix(futures.y_given[0, 0], a)[None], []  # (1, K, ny)
    for a_w in (torch.zeros_like(a), a, torch.ones_like(a)):
        skips = futures.cond.skips and [mix(s, a_w) for s in futures.cond.skips]
        videos.append(decode(model, mix(futures.cond.w, a_w), y, skips)[0])  # (K, H, W, C)
    contents = [f'content of {names[0]}', 'content between', f'content of {names[1]}']
    left, right = (Heading(f'{name}, t = 0', frames.GIVEN) for name in names)
    steps = [f'a = {step:.3g}' for step in a.tolist()]

    def still(path):
        cells = [[truth[0, 0], *video, truth[0, 1]] for video in videos]
        headings = [left, *map(Heading, steps), right]
        frames.write_picture(path, frames.table(cells, headings, contents))

    def animation(path):
        order = [*range(args.steps), *range(args.steps - 2, 0, -1)]  # there and back
        start, end = (repeated(frame, len(order)) for frame in truth[0])
        cells = [[start, *(video[order] for video in videos), end]]
        headings = [left, *map(Heading, contents), right]
        captions = [(frames.INK, steps[k]) for k in order]
        frames.animated_table(path, cells, headings, [], captions, args.fps)
    return Drawing(still, animation)


def pca(y):
    """Coordinates (N, 2) of points (N, d) along two principal components, shares of variance."""
    y = np.pad(y - y.mean(0), ((0, 0), (0, max(0, 2 - y.shape[1]))))
    _, s, vt = np.linalg.svd(y.astype(np.float64), full_matrices=False)
    # Signs are arbitrary: make the largest weight positive
    vt = vt[:2] * np.sign(vt[range(2), abs(vt[:2]).argmax(1)])[:, None]
    return y @ vt.T, s[:2] ** 2 / (s ** 2).sum()


def latent(model, truth, index, names, args):
    """States of videos over time, along their first principal components, and their frames."""
    futures = get_futures(model, truth, index, args)
    y = get_states(futures)  # (T, B, ny)
    times = sorted({0, args.nt_cond, args.nt_gen - 1})  # a single predicted frame is shown once
    x = decode(model, futures.cond.w, y[times], futures.cond.skips)  # (times, B, H, W, C)
    flat, share = pca(y.flatten(0, 1).cpu().numpy())

    def still(path):
        size = max(800, 200 * len(index))
        plot, colours = charts.plane(flat.reshape(*y.shape[:2], 2), times, share, size)
        moments = [frames.moment(t, args.nt_cond) for t in times]
        headings = [Heading(text, colour) for colour, text in moments]
        rows = list(map(Heading, names, colours))
        table = frames.table(list(x.swapaxes(0, 1)), headings, rows)
        frames.write_picture(path, frames.side_by_side([plot, table]))
    return Drawing(still)


VIEWS = {view.__name__: view for view in (samples, framerate, swap, interpolate, latent, predict)}
