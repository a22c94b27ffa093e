"""What `visualize.py` draws.

Each view takes true videos uint8 (T, B, H, W, C), their indices and names, the files to write,
each by its extension, and the options of `visualize.py`.
"""

import math

from files import progress_bar, replacing

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from evaluation.futures import Chunk, Futures, draw_noise, score_futures, to_frames
from metrics.frame import PSNR
from model import Noise
from pictures import frames
from pictures.charts import COLOURS
from pictures.frames import Heading
from utils import to_video

N_RANDOM = 3        # random futures in `samples`
FRAMERATE_ROWS = 6  # frames in the picture of `framerate`
DISTANT = 0.25      # size of the paths of `latent`, relative to all; smaller ones are distant


def get_futures(model, truth, index, args, **kwargs):
    """Futures of videos, those of evaluation; only that of `--sample`, if it is an option."""
    noise = draw_noise(model, args.seed, 'test', index, args.n_samples, args.nt_gen)
    if 'sample' in args:
        chosen = slice(args.sample - 1, args.sample)
        noise = Noise(noise.y_0[chosen], noise.z[:, chosen])
    x = to_video(torch.from_numpy(truth[:args.nt_cond]), args.device)
    return Futures(model, x, args.nt_gen - args.nt_cond, noise, args.n_euler_steps, **kwargs)


def decode(model, w, y, skips):
    """Frames uint8 (T, B, H, W, C) of states y (T, B, ny), in chunks that fit into memory."""
    return to_frames(Chunk(model).decode(lambda part: model.decode(w, part, skips), y))


def choose(futures, target):
    """Best, worst (by PSNR) and random ones of futures: dict of tensors (nt, B, C, H, W)."""
    _, found = score_futures(futures, target, {'psnr': PSNR()}, N_RANDOM, keep=lambda x: x)
    chosen = {'best': found.pop('psnr_best'), 'worst': found.pop('psnr_worst')}
    return chosen | {name.replace('_', ' '): x for name, x in found.items()}


def samples(model, truth, index, names, paths, args):
    """Best, worst (by PSNR) and random futures of a video, mean and standard deviation of all."""
    futures = progress_bar(get_futures(model, truth, index, args), names[0], unit='sample')
    target = to_video(torch.from_numpy(truth[args.nt_cond:]), args.device)
    total, squares = torch.zeros(2, *target.shape, dtype=torch.float64, device=args.device)

    def summed():  # one at a time: all futures may not fit into memory
        for x in futures:  # (nt, 1, C, H, W)
            total.add_(x)
            squares.add_(x.double() ** 2)
            yield x
    chosen = choose(summed(), target)
    mean = total / args.n_samples
    std = (squares / args.n_samples - mean ** 2).clamp(min=0).sqrt()  # at most 1/2, in [0, 1]
    black = target.new_zeros(args.nt_cond, *target.shape[1:])
    rows = {**chosen, 'mean': mean, '2 std': torch.cat([black, 2 * std])}
    rows = {name: to_frames(x[:, 0]) for name, x in rows.items()}
    frames.draw_rows(paths, {'truth': truth[:, 0], **rows}, args.nt_cond, args.fps, across=4)


def futures(model, truth, index, names, paths, args):
    """Videos in rows: the truth, the best future (by PSNR) and random ones; still, the end."""
    bar = progress_bar(get_futures(model, truth, index, args), 'predicting', unit='sample')
    target = to_video(torch.from_numpy(truth[args.nt_cond:]), args.device)
    chosen = {name: to_frames(x) for name, x in choose(bar, target).items() if name != 'worst'}
    shown = frames.filled({'truth': truth, **chosen})
    cells = [[x[:, b] for x in shown.values()] for b in range(len(index))]
    ends = [[truth[args.nt_cond - 1, b], *(x[-1] for x in row)] for b, row in enumerate(cells)]
    headings = list(map(Heading, shown))
    still = ends, [Heading('last given', frames.GIVEN), *headings], names
    captions = [frames.moment(t, args.nt_cond) for t in range(args.nt_gen)]
    frames.draw_tables(paths, still, [(cells, headings, [])], captions, args.fps)


def predict(model, truth, index, names, paths, args):
    """Futures of any video; what it lacks of `--nt_gen` frames is white."""
    bar = progress_bar(get_futures(model, truth, index, args), 'predicting', unit='sample')
    x = np.stack([to_frames(future[:, 0]) for future in bar])  # (S, nt, H, W, C)
    given, missing = truth[:args.nt_cond, 0], args.nt_gen - len(truth)
    video = np.pad(truth[:, 0], ((0, missing), (0, 0), (0, 0), (0, 0)), constant_values=255)
    rows = {names[0]: video, **{f'future {s + 1}': future for s, future in enumerate(x)}}
    for path in paths:
        if path.suffix.lower() == '.npz':
            with replacing(path) as tmp, open(tmp, 'wb') as f:
                np.savez_compressed(f, samples=x, given=given)
        else:
            across = max(3, math.ceil(math.sqrt(len(rows))))
            frames.draw_rows([path], rows, args.nt_cond, args.fps, across)


def framerate(model, truth, index, names, paths, args):
    """Frames of one future at all its Euler steps, n per frame, next to the true frame rate."""
    n, last = args.n_euler_steps, args.nt_cond - 1
    future = get_futures(model, truth, index, args, between=True)[0]
    truth = truth[:, 0]
    ticks = np.arange((args.nt_gen - 1) * n + 1)  # tick i is time i / n
    smooth = np.concatenate([truth[ticks[:last * n + 1] // n], to_frames(future[:, 0])])
    times = range(last, args.nt_gen - 1)[:FRAMERATE_ROWS]
    headings = [Heading('truth'), Heading('t'), *(Heading(f't + {k}/{n}') for k in range(1, n))]
    still = ([[truth[t], *smooth[t * n:t * n + n]] for t in times], headings,
             [Heading(f't = {t}', frames.moment(t, args.nt_cond).colour) for t in times])
    captions = [frames.moment(t, args.nt_cond, f' + {k}/{n}' if k else '')
                for t, k in zip(*divmod(ticks, n))]
    headings = list(map(Heading, ('truth', 'frames', f'frames and {n - 1} between')))
    moving = [[truth[ticks // n], smooth[ticks - ticks % n], smooth]], headings, []
    frames.draw_tables(paths, still, [moving], captions, args.fps)


def swap(model, truth, index, names, paths, args):
    """Content w, and skip connections, of each video with the motion (y_0, z) of each."""
    futures, B = get_futures(model, truth, index, args), len(index)
    w, skips = futures.cond.w, futures.cond.skips
    y = torch.cat([futures.y_given, futures.y])[:, 0]  # (T, B, ny)
    cells = [[None, *truth.swapaxes(0, 1)]]
    for b in range(B):
        skips_b = skips and [s[b].expand(B, *s[b].shape) for s in skips]
        videos = decode(model, w[b].expand(B, -1), y, skips_b)  # content b, all motions
        content = truth[[args.nt_cond - 1] * args.nt_gen, b]  # frame of the skip connections
        cells.append([content, *videos.swapaxes(0, 1)])
    rows, motions = ['truth', *names], [f'motion of {name}' for name in names]
    times = frames.spaced(args.nt_cond, args.nt_gen, max(2, frames.COLUMNS // B))
    shown = [[None if content is None else content[0],
              *(video[t] for video in videos for t in times)] for content, *videos in cells]
    text = f't = {", ".join(map(str, times))}'
    headings = [Heading('content'), *(Heading(f'{m}, {text}', span=len(times)) for m in motions)]
    captions = [frames.moment(t, args.nt_cond) for t in range(args.nt_gen)]
    moving = cells, list(map(Heading, ['content', *motions])), rows
    frames.draw_tables(paths, (shown, headings, rows), [moving], captions, args.fps)


def interpolate(model, truth, index, names, paths, args):
    """Frames of states between the y_0 of two videos, with the content of each, and between."""
    def mix(pair, a):  # points (K, …) between two, pair (2, …), at a (K,)
        a = a.view(-1, *[1] * (pair.ndim - 1))
        return (1 - a) * pair[0] + a * pair[1]
    futures = get_futures(model, truth, index, args)
    a = torch.linspace(0, 1, args.steps, device=args.device)
    y, videos = mix(futures.y_given[0, 0], a)[None], []  # (1, K, ny)
    for a_w in (torch.zeros_like(a), a, torch.ones_like(a)):
        skips = futures.cond.skips and [mix(s, a_w) for s in futures.cond.skips]
        videos.append(decode(model, mix(futures.cond.w, a_w), y, skips)[0])  # (K, H, W, C)
    contents = [f'content of {names[0]}', 'content between', f'content of {names[1]}']
    left, right = (Heading(f'{name}, t = 0', frames.GIVEN) for name in names)
    steps = [f'a = {step:.3g}' for step in a.tolist()]
    still = ([[truth[0, 0], *video, truth[0, 1]] for video in videos],
             [left, *map(Heading, steps), right], contents)
    order = [*range(args.steps), *range(args.steps - 2, 0, -1)]  # there and back
    start, end = (truth[[0] * len(order), b] for b in (0, 1))
    moving = ([[start, *(video[order] for video in videos), end]],
              [left, *map(Heading, contents), right], [])
    captions = [Heading(steps[k]) for k in order]
    frames.draw_tables(paths, still, [moving], captions, args.fps)


def pca(y):
    """Coordinates (N, 2) of points (N, d) along two principal components, shares of variance."""
    y = y - y.mean(0)
    _, s, vt = np.linalg.svd(y.astype(np.float64), full_matrices=False)
    # Signs are arbitrary: make the largest weight positive
    vt = vt[:2] * np.sign(vt[range(2), abs(vt[:2]).argmax(1)])[:, None]
    return y @ vt.T, s[:2] ** 2 / (s ** 2).sum()


def plane(y, times, share, colours, size):
    """Picture of paths of states y (T, B, 2) in a plane, also one by one if they are distant.

    `times` are labelled: 0, the first predicted frame and maybe the last one; `share` (2,) is that
    of each component in the variance.
    """
    figure = Figure((size / 100, size / 100), dpi=100, layout='constrained')
    paths = list(zip(y.swapaxes(0, 1), colours))
    panels = [paths]
    if np.ptp(y, 0).max() < DISTANT * np.ptp(y, (0, 1)).max():
        panels += [[path] for path in paths]
    across, nt_cond = math.ceil(math.sqrt(len(panels))), times[1]
    outline = [withStroke(linewidth=3, foreground='white')]
    for k, shown in enumerate(panels, 1):
        axes = figure.add_subplot(-(-len(panels) // across), across, k)
        for path, colour in shown:
            axes.plot(*path.T, color=colour, lw=1.2, alpha=0.5)
            axes.plot(*path[:nt_cond].T, 'o', color=colour, ms=7)
            axes.plot(*path[nt_cond:].T, 'o', color=colour, ms=6, mfc='white')
            for t in times if len(panels) == 1 or k > 1 else []:
                axes.annotate(str(t), path[t], (5, 5), textcoords='offset points', color=colour,
                              size=12, weight='bold', zorder=5, path_effects=outline)
        axes.grid(alpha=0.3)
        axes.set_aspect('equal', 'datalim')
    figure.suptitle('States y_t: dots given, rings predicted, numbers are t')
    figure.supxlabel(f'first principal component ({share[0]:.0%} of the variance)', fontsize=10)
    figure.supylabel(f'second principal component ({share[1]:.0%})', fontsize=10)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')


def latent(model, truth, index, names, paths, args):
    """States of videos over time, along their first principal components, and their frames."""
    futures, B = get_futures(model, truth, index, args), len(index)
    y = torch.cat([futures.y_given, futures.y])[:, 0]  # (T, B, ny)
    times = sorted({0, args.nt_cond, args.nt_gen - 1})  # a single predicted frame counts once
    x = decode(model, futures.cond.w, y[times], futures.cond.skips)  # (times, B, H, W, C)
    flat, share = pca(y.flatten(0, 1).cpu().numpy())
    colours = [COLOURS[b % len(COLOURS)] for b in range(B)]
    plot = plane(flat.reshape(len(y), B, 2), times, share, colours, max(800, 200 * B))
    headings = [frames.moment(t, args.nt_cond) for t in times]
    table = frames.table(list(x.swapaxes(0, 1)), headings, list(map(Heading, names, colours)))
    height = max(plot.height, table.height)
    picture = Image.new('RGB', (plot.width + table.width, height), frames.BACKGROUND)
    picture.paste(plot, (0, (height - plot.height) // 2))
    picture.paste(table, (plot.width, (height - table.height) // 2))
    for path in paths:
        frames.write_picture(path, picture)
