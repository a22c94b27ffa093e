"""Validation during training: scores, and pictures of some videos."""

import io
import itertools
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from data.stream import chunks, make_loader
from distributed import Stopped
from files import progress_bar, writing
from metrics.scoring import quantise
from pictures import frames
from pictures.encoding import Palette, write_gif
from sampling import Chunk, best_futures, draw_noise
from utils import to_video

N_SHOWN, N_RANDOM = 4, 2  # videos to draw, and random futures of each


class Scores(NamedTuple):
    """Scores of N validation videos: of the future with the best PSNR over the whole clip."""
    psnr: np.ndarray    # (N,), mean over predicted frames, in dB
    ssim: np.ndarray    # (N,)
    psnr_t: np.ndarray  # (N, nt), of each predicted frame
    shown: list         # of the first N_SHOWN videos, uint8 (T, H, W, C) by name; in process 0


def validate(model, stream, config, device, world, stop):
    """Score the validation videos, together with the other processes.

    Parameters
    ----------
    model : SRVP, in evaluation mode
    stream : data.stream.BatchStream
    config : argparse.Namespace
    device : torch.device
    world : distributed.World
    stop : distributed.StopSignal

    Returns
    -------
    Scores

    Raises
    ------
    Stopped
        A process was asked to stop.
    """
    c, shown = config, []
    chunk = Chunk(model)
    # The mean PSNR, the mean SSIM, and PSNR by frame; zero for videos of other processes
    table = torch.zeros(c.n_iter_test * c.batch_size_test, 2 + c.seq_len_test - c.nt_cond,
                        dtype=torch.float64)
    batches = chunks(world.part(len(table)), c.batch_size_test)
    # The last process has the most; all look for a signal as often
    rounds = -(-len(world.part(len(table), world.size - 1)) // c.batch_size_test)
    bar = progress_bar(range(rounds), 'validation', leave=False, unit='batch',
                       disable=None if world.main else True)
    with make_loader(stream, batches, min(c.n_workers, 1)) as loader:
        for _, item in itertools.zip_longest(bar, zip(batches, loader)):
            if any(world.sum([stop.received is not None])):
                raise Stopped
            if item is None:  # this process has fewer batches than the last one
                continue
            videos, batch = item
            n_shown = max(0, min(videos.stop, N_SHOWN) - videos.start) if world.main else 0
            noise = draw_noise(model, c.seed, 'val', videos, c.n_samples_test, c.seq_len_test)
            best = best_futures(model, to_video(batch, device), c.nt_cond, noise, chunk,
                                N_RANDOM if n_shown else 0)
            table[videos.start:videos.stop] = torch.cat(
                [best.psnr.mean(0)[None], best.ssim.mean(0)[None], best.psnr]).T
            shown += [show(batch, best, b) for b in range(n_shown)]
    table = np.array(world.sum(table.flatten().tolist())).reshape(table.shape)
    return Scores(table[:, 0], table[:, 1], table[:, 2:], shown)


def show(batch, best, b):
    """Truth and futures of a video of a batch: uint8 (T, H, W, C) by name."""
    futures = {'best': best.frames, **{f'random {i + 1}': x for i, x in enumerate(best.random)}}
    return frames.filled({'truth': batch[:, b].numpy(), **{
        name: quantise(x[:, b]).permute(0, 2, 3, 1).cpu().numpy() for name, x in futures.items()}})


# Pictures, made in a fraction of the time of a validation

def draw_strip(shown, nt_cond, caption):
    """Picture of the videos shown, below each other: truth, best and random futures."""
    times = frames.spaced(nt_cond, len(shown[0]['truth']))
    headings = [frames.Heading(f't = {t}', frames.moment(t, nt_cond)[0]) for t in times]
    cells = [[video[t] for t in times] for videos in shown for video in videos.values()]
    names = [f'video {i}' if name == 'truth' else name
             for i, videos in enumerate(shown) for name in videos]
    return frames.stacked([frames.table(cells, headings, names, side=0)], caption)


def write_mosaic(path, shown, nt_cond):
    """Write the videos shown as a GIF: a row for each, in a column each truth and futures.

    What is between them is blue while frames are given, and red while they are predicted.
    """
    grid = np.stack([np.stack(list(videos.values())) for videos in shown])  # (N, K, T, H, W, C)
    grid &= 0xfc  # 64 levels: half the size, of which the time to write the events depends
    N, K, T, H, W, C = grid.shape
    pixels = np.empty((T, N, H + frames.GAP, K, W + frames.GAP, 3), np.uint8)
    pixels[:nt_cond], pixels[nt_cond:] = frames.GIVEN, frames.PREDICTED
    first = frames.GAP // 2
    pixels[:, :, first:first + H, :, first:first + W] = grid.transpose(2, 0, 3, 1, 4, 5)
    pixels = pixels.reshape(T, N * (H + frames.GAP), K * (W + frames.GAP), 3)
    palette = Palette.greys((frames.GIVEN, frames.PREDICTED)) if C == 1 else Palette.of(pixels, T)
    write_gif(path, pixels, 5, palette)


def draw_curve(psnr, nt_cond):
    """Picture of the PSNR (nt) of predicted frames against time."""
    y = np.nan_to_num(psnr, posinf=100)
    low, high = np.floor(y.min()), np.floor(y.max()) + 1
    picture = Image.new('RGB', (420, 260), frames.BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    draw.text((45, 12), 'PSNR (dB) of frame t', frames.INK, font, anchor='lm')
    for value, height in zip(np.linspace(high, low, 5), range(30, 231, 50)):
        draw.line((45, height, 410, height), 'lightgray')
        draw.text((40, height), f'{value:.4g}', frames.INK, font, anchor='rm')
    points = list(zip(np.linspace(55, 400, len(y)), 30 + 200 * (high - y) / (high - low)))
    for k in range(0, len(y), -(-len(y) // 10)):
        draw.text((points[k][0], 245), f'{nt_cond + k}', frames.INK, font, anchor='mm')
    draw.line(points, frames.PREDICTED, 2)
    for x, height in points:
        draw.ellipse((x - 3, height - 3, x + 3, height + 3), frames.PREDICTED)
    return picture


def draw(folder, scores, step, nt_cond):
    """Draw the videos shown to `step_<step>.png` and `.gif`, and the PSNR by frame.

    Returns
    -------
    dict of bytes
        Content of the picture files by name: strip, videos, psnr_by_frame.
    """
    curve = io.BytesIO()
    draw_curve(scores.psnr_t.mean(0), nt_cond).save(curve, 'PNG')
    pictures = {'psnr_by_frame': curve.getvalue()}
    if not scores.shown:  # there are more processes than videos
        return pictures
    with writing(folder):
        folder.mkdir(exist_ok=True)
    strip, videos = (folder / f'step_{step}.{suffix}' for suffix in ('png', 'gif'))
    caption = (f'step {step:,}: PSNR {scores.psnr.mean():.2f} dB, SSIM {scores.ssim.mean():.4f} '
               f'(means over {len(scores.psnr):,} videos)')
    picture = draw_strip(scores.shown, nt_cond, caption)
    frames.write_picture(strip, picture, compress_level=1)  # the fastest
    write_mosaic(videos, scores.shown, nt_cond)
    return pictures | {'strip': strip.read_bytes(), 'videos': videos.read_bytes()}
