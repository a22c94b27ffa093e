"""Draw what a trained SRVP model knows: `python visualize.py WHAT --xp_dir RUN --data_dir DATA`; see --help and the README."""

import math
from pathlib import Path

import numpy as np
import torch

from pictures import charts, frames as pictures
from args import fill_from_config, load_config
import os
from typing import NamedTuple
from parsing import Parser, add_device_option, euler_steps, frames, nonnegative_int, number, positive_int, seed
from data import load_test
from files import UserError, make_folder, progress_bar, run_script, write_npz
from metrics.frame import psnr
from model import Noise
from pictures.frames import Heading
from preprocessing.convert import find_ffmpeg
from preprocessing.video import read_video
from metrics.scoring import Best, quantise
from sampling import Chunk, Futures, draw_noise
from checkpoint import load_model
from utils import get_device, to_video

N_RANDOM = 3        # random futures that `samples` shows, as evaluation does
FRAMERATE_ROWS = 6  # frames in the picture of `framerate`


class Visual(NamedTuple):
    """What visualize.py draws, the extensions of its files, those of the files written without --out, and how many videos it takes."""
    text: str
    formats: tuple = ('.png', '.gif', '.mp4')
    usual_formats: tuple = ('.gif',)
    least: int = 1
    most: int = None  # any number: each gets files of its own
    usual: int = 1

    @property
    def takes(self):
        """Number of videos, in words."""
        if self.most is None:
            return f'{self.least} or more, each drawn to a file of its own'
        return f'{self.least}' if self.least == self.most else f'{self.least} to {self.most}'


VISUALS = {
    'samples': Visual('futures of a video, with their mean and standard deviation', usual_formats=('.png', '.gif')),
    'framerate': Visual('frames between the frames, from states at Euler steps'),
    'swap': Visual('content of each video with the motion of each other one', least=2, most=12, usual=3),
    'interpolate': Visual('frames between the first ones of two videos', usual_formats=('.png',), least=2, most=2, usual=2),
    'latent': Visual('states of videos along time, in a plane (PCA)', ('.png',), ('.png',), most=10, usual=4),
    'predict': Visual('futures of any video, a file or a folder of frames', ('.mp4', '.gif', '.png', '.npz'), ('.mp4',))}


def _add_visual(verbs, what):
    """Add the parser of one WHAT of `visualize.py`."""
    visual = VISUALS[what]
    p = verbs.add_parser(what, help=visual.text, description=f'{visual.text[0].upper()}{visual.text[1:]}.')
    p.add_argument('--xp_dir', required=True, help='folder of the trained model: config.json and the weights')
    if what == 'predict':
        p.add_argument('--video', required=True, metavar='PATH', help="video file, or folder of pictures; cut and resized as in the "
                                                                      "conversion of the model's dataset")
        p.add_argument('--t_0', type=nonnegative_int, default=0, metavar='T', help='its first given frame, counted as converted')
    else:
        p.add_argument('--data_dir', required=True, help='folder of the dataset')
        p.add_argument('--index', type=nonnegative_int, nargs='+', metavar='I', help=f'videos of the test set, from 0: {visual.takes}; '
                       f'{" ".join(map(str, range(visual.usual)))} if absent, as far as there are so many')
    p.add_argument('--out', nargs='+', metavar='FILE', help=f'files to write, {" or ".join(visual.formats)}; '
                   + ' and '.join(f'<xp_dir>/visualize/{what}{suffix}' for suffix in visual.usual_formats) + ' if absent')
    p.add_argument('--model_name', default='model.pt', help='weights, in --xp_dir')
    p.add_argument('--nt_cond', type=frames, metavar='T', help='given frames; as trained if absent')
    p.add_argument('--nt_gen', type=frames, metavar='T', help='frames, given ones included; as trained (seq_len_test) if absent')
    if what == 'predict':
        p.add_argument('--n_samples', type=positive_int, default=5, metavar='N', help='futures')
    else:
        p.add_argument('--n_samples', type=positive_int, default=100, metavar='N', help='futures that are drawn; the same seed, number and --nt_gen '
                                                                                 'give those of test.py')
    if what in ('framerate', 'swap', 'interpolate', 'latent'):
        p.add_argument('--sample', type=positive_int, default=1, metavar='K', help='which of them is shown, from 1')
    if what == 'framerate':
        p.add_argument('--n_euler_steps', type=number(int, 2), default=4, metavar='N', help='Euler steps, all decoded, a predicted frame')
    elif what != 'interpolate':
        p.add_argument('--n_euler_steps', type=euler_steps, metavar='N', help='Euler steps a predicted frame; as trained if absent')
    if what == 'interpolate':
        p.add_argument('--steps', type=number(int, 2, 64), default=9, metavar='N', help='decodings, both ends included')
    if what != 'latent':
        p.add_argument('--fps', type=number(float, 0.1, 50), default=10 if what == 'framerate' else 5, metavar='F',
                       help='pictures a second, in a .gif or .mp4; a .gif rounds the time of each to hundredths of a second, at least two (50 a second)')
    p.add_argument('--seed', type=seed, default=1, help='of the futures (--test_seed of test.py)')
    add_device_option(p)


def visualize_parser():
    """Parser of `visualize.py`, one below it for each WHAT."""
    parser = Parser('Draw what a trained model knows. `python visualize.py WHAT --help` lists the options of each.')
    verbs = parser.add_subparsers(title='WHAT', dest='what', metavar='WHAT', required=True)
    for what in VISUALS:
        _add_visual(verbs, what)
    return parser


def parse_visualize(argv=None):
    """Options of `visualize.py`, checked as far as the model need not be known.

    `out` is a list of Path; `files` has a list of those that are written of each video, or one list of those of all together.

    Raises
    ------
    UserError
    """
    parser = visualize_parser()
    args, unknown = parser.parse_known_args(argv)
    what, visual = args.what, VISUALS[args.what]
    if unknown:
        parsers = next(a.choices for a in parser._actions if a.dest == 'what')
        option = unknown[0].split('=')[0]
        if owners := [name for name, p in parsers.items() if option in p._option_string_actions]:
            raise UserError(f'{option} belongs to {", ".join(owners)}, found {what}; leave it out')
        parsers[what].error(f'unrecognized arguments: {" ".join(unknown)}')
    args.out = list(map(Path, args.out or [f'{args.xp_dir}/visualize/{what}{suffix}' for suffix in visual.usual_formats]))
    for path in args.out:
        if path.suffix.lower() not in visual.formats:
            raise UserError(f'--out {path}: {what} is written as {" or ".join(visual.formats)}, by the extension of the file; give one of them')
    if given := getattr(args, 'index', None):
        if not visual.least <= len(given) <= (visual.most or len(given)):
            raise UserError(f'--index {" ".join(map(str, given))}: {what} takes {visual.takes} videos, found {len(given)}')
        if len(set(given)) < len(given):
            raise UserError(f'--index {" ".join(map(str, given))} names a video twice; give each once')
    each = visual.most is None and given and len(given) > 1  # a file of each video
    args.files = [[path.with_name(f'{path.stem}_{i}{path.suffix}') for path in args.out] for i in given] if each else [args.out]
    for path in sum(args.files, []):
        if len(os.fsencode(path.name)) > 230:  # file systems allow 255 bytes, of which the temporary file's name takes some
            raise UserError(f'--out: the name of {path} has {len(os.fsencode(path.name))} bytes; give a name of at most 230')
        if os.path.isdir(path):
            raise UserError(f'--out: {path} is a folder; name another file')
        option = 'video' if what == 'predict' else 'data_dir'
        source, own, real = map(os.path.realpath, (getattr(args, option), Path(args.xp_dir, 'visualize'), path))
        if real == source or (os.path.dirname(real) != own and real.startswith(os.path.join(source, ''))
                              and (what == 'predict' or os.path.exists(real))):
            raise UserError(f'--out {path} would replace or mix with what --{option} {getattr(args, option)} holds; name another file')
    if getattr(args, 'sample', 1) > args.n_samples:
        raise UserError(f'--sample {args.sample} is more than the {args.n_samples} futures (--n_samples) that are drawn')
    return args


def resolve(argv=None):
    """Options of the call and configuration of the model, checked; what was left out comes from the configuration."""
    args = parse_visualize(argv)
    config = load_config(args.xp_dir)
    fill_from_config(args, config)
    if args.what == 'predict':
        args.index = [0]  # its futures are drawn as those of the first test video
    args.device = get_device(args.device)
    if any(path.suffix.lower() == '.mp4' for path in args.out):
        find_ffmpeg()  # says so if there is none
    return args, config


def get_videos(args, config):
    """True videos uint8 (T, B, H, W, C): those of --index, or the one of --video, of which frames after the given ones may be missing."""
    if args.what == 'predict':
        frames, note = read_video(args.video, config, args.t_0, args.nt_gen)
        if len(frames) < args.nt_cond:
            raise UserError(f'--video {args.video} has {len(frames)} frames from --t_0 {args.t_0} on, but the model is given {args.nt_cond} '
                            '(--nt_cond); name a longer video, or give a smaller --t_0 or --nt_cond')
        if note:
            print(f'note: {args.video} is damaged, but was read ({note})')
        return frames[:, None]
    testset = load_test(config, args.data_dir, args.nt_gen)
    visual = VISUALS[args.what]
    if len(testset) < visual.least:
        raise UserError(f'{args.what} takes {visual.least} videos or more, but the test set in --data_dir {args.data_dir} has {len(testset)}; '
                        'make a larger one')
    args.index = args.index or list(range(min(visual.usual, len(testset))))
    for i in args.index:
        if i >= len(testset):
            raise UserError(f'--index {i}: the test set has {len(testset)} videos; give numbers from 0 to {len(testset) - 1}')
    return testset.videos(args.index)


def get_futures(model, truth, index, args, **kwargs):
    """Futures of true videos uint8 (T, B, H, W, C), drawn as in evaluation; number --sample alone where there is this option."""
    noise = draw_noise(model, args.seed, 'test', index, args.n_samples, args.nt_gen)
    if 'sample' in args:
        chosen = slice(args.sample - 1, args.sample)
        noise = Noise(noise.y_0[chosen], noise.z[:, chosen])
    given = to_video(torch.from_numpy(truth[:args.nt_cond]), args.device)
    return Futures(model, given, args.nt_gen - args.nt_cond, noise, args.n_euler_steps, **kwargs)


def to_frames(x):
    """uint8 (…, H, W, C) of frames (…, C, H, W)."""
    if x.isnan().any():
        raise UserError('the model predicts frames that are not numbers; the weights are damaged, take another checkpoint')
    return quantise(x.clamp(0, 1)).movedim(-3, -1).cpu().numpy()


def decode(model, w, y, skips):
    """uint8 (T, B, H, W, C) of states y (T, B, ny), content w (B, nh_inf) and skip connections, as many at a time as memory allows."""
    return to_frames(Chunk(model).decode(lambda part: model.decode(w, part, skips), y))


def is_still(path):
    """Whether a file is one picture."""
    return path.suffix.lower() == '.png'


# Each WHAT: what it computes of true videos uint8 (T, B, H, W, C) and their indices, returned as a function that draws it to a path

def samples(model, truth, index, args):
    """Futures of one video: the best and the worst by PSNR, random ones, and mean and standard deviation of each pixel over all."""
    futures = get_futures(model, truth, index, args)
    target = to_video(torch.from_numpy(truth[args.nt_cond:]), args.device)
    best, worst, random, total, squares = Best(), Best(False), [], 0, 0
    for x in progress_bar(futures, f'video {index[0]}', unit='sample'):  # (nt, 1, C, H, W), forgotten one after the other
        score = psnr(x, target).mean((0, 2))
        best.update(score, x)
        worst.update(score, x)
        random += [to_frames(x[:, 0])] if len(random) < N_RANDOM else []
        x = x[:, 0].double()
        total, squares = total + x, squares + x ** 2
    mean = total / len(futures)
    std = (squares / len(futures) - mean ** 2).clamp(min=0).sqrt()  # of numbers in [0, 1] it is at most 1/2
    truth, given = truth[:, 0], truth[:args.nt_cond, 0]
    rows = {'best': to_frames(best.kept[:, 0]), 'worst': to_frames(worst.kept[:, 0]), **{f'random {i + 1}': x for i, x in enumerate(random)},
            'mean': to_frames(mean), '2 std': to_frames(2 * std)}

    def draw(path):
        if is_still(path):
            return pictures.strip(path, {'truth': truth, **rows}, args.nt_cond)
        columns = {name: np.concatenate([given if name != '2 std' else 0 * given, row]) for name, row in rows.items()}
        pictures.animation(path, {'truth': truth, **columns}, args.nt_cond, args.fps, across=4)
    return draw


def framerate(model, truth, index, args):
    """Frames of one future at all its Euler steps, n a frame, beside those at the true frame rate."""
    n, T, last = args.n_euler_steps, args.nt_gen, args.nt_cond - 1
    predicted = to_frames(get_futures(model, truth, index, args, between=True)[0][:, 0])  # (nt n, H, W, C)
    truth = truth[:, 0]
    ticks = np.arange((T - 1) * n + 1)  # tick i is time i / n
    smooth = np.concatenate([truth[ticks[:last * n + 1] // n], predicted])

    def draw(path):
        if is_still(path):
            times = range(last, T - 1)[:FRAMERATE_ROWS]
            headings = [Heading('truth'), Heading('t')] + [Heading(f't + {k}/{n}') for k in range(1, n)]
            names = [Heading(f't = {t}', pictures.moment(t, args.nt_cond)[0]) for t in times]
            return pictures.write_picture(path, pictures.table([[truth[t], *smooth[t * n:t * n + n]] for t in times], headings, names))
        captions = [pictures.moment(t, args.nt_cond, f' + {k}/{n}' if k else '') for t, k in zip(*divmod(ticks, n))]
        headings = [Heading('truth'), Heading('frames'), Heading(f'frames and {n - 1} between')]
        pictures.animated_table(path, [[truth[ticks // n], smooth[ticks - ticks % n], smooth]], headings, [], captions, args.fps)
    return draw


def swap(model, truth, index, args):
    """Content w, and skip connections, of each video with the motion (y_0, z) of each."""
    futures = get_futures(model, truth, index, args)
    w, skips, B = futures.cond.w, futures.cond.skips, len(index)
    y = torch.cat([futures.y_given, futures.y])[:, 0]  # (T, B, ny)

    def with_content(b):
        """All motions with the content of video b: uint8 (T, B, H, W, C)."""
        return decode(model, w[b].expand(B, -1), y, skips and [s[b].expand(B, *s[b].shape) for s in skips])
    cells = [[None, *truth.swapaxes(0, 1)]]
    for b in range(B):
        content = np.broadcast_to(truth[args.nt_cond - 1, b], truth[:, b].shape)  # the frame that skip connections come from
        cells.append([content, *with_content(b).swapaxes(0, 1)])
    names = ['truth', *(f'video {i}' for i in index)]
    motions = [f'motion of video {i}' for i in index]

    def draw(path):
        if is_still(path):
            times = pictures.spaced(args.nt_cond, args.nt_gen, max(2, pictures.COLUMNS // B))
            still = [[row[0] if row[0] is None else row[0][0], *(video[t] for video in row[1:] for t in times)] for row in cells]
            headings = [Heading('content'), *(Heading(f'{m}, t = {", ".join(map(str, times))}', span=len(times)) for m in motions)]
            return pictures.write_picture(path, pictures.table(still, headings, names))
        captions = [pictures.moment(t, args.nt_cond) for t in range(args.nt_gen)]
        pictures.animated_table(path, cells, [Heading('content'), *map(Heading, motions)], names, captions, args.fps)
    return draw


def interpolate(model, truth, index, args):
    """Decodings of states between the first states y_0 of two videos, with the content of the one, of the other, and between."""
    futures = get_futures(model, truth, index, args)
    a = torch.linspace(0, 1, args.steps, device=args.device)

    def mix(pair, weight):
        """Points (K, …) between two of (2, …); weights (K,) of the second."""
        weight = weight.view(-1, *[1] * (pair.ndim - 1))
        return (1 - weight) * pair[0] + weight * pair[1]
    y, contents = mix(futures.y_given[0, 0], a)[None], {}  # (1, K, ny)
    for name, weight in {f'content of video {index[0]}': 0 * a, 'content between': a, f'content of video {index[1]}': 0 * a + 1}.items():
        skips = futures.cond.skips and [mix(s, weight) for s in futures.cond.skips]
        contents[name] = decode(model, mix(futures.cond.w, weight), y, skips)[0]  # (K, H, W, C)

    def draw(path):
        ends = [Heading(f'video {i}, t = 0', pictures.GIVEN) for i in index]
        steps = [f'a = {weight:.3g}' for weight in a.tolist()]
        if is_still(path):
            cells = [[None, *video, None] for video in contents.values()]
            cells[1][0], cells[1][-1] = truth[0]
            return pictures.write_picture(path, pictures.table(cells, [ends[0], *map(Heading, steps), ends[1]], list(contents)))
        order = [*range(args.steps), *range(args.steps - 2, 0, -1)]  # there and back
        still = [np.broadcast_to(frame, (len(order), *frame.shape)) for frame in truth[0]]
        headings = [ends[0], *map(Heading, contents), ends[1]]
        captions = [(pictures.INK, steps[k]) for k in order]
        pictures.animated_table(path, [[still[0], *(video[order] for video in contents.values()), still[1]]], headings, [], captions, args.fps)
    return draw


def pca(y):
    """Coordinates (N, 2) of points (N, d) along their first two principal components, and the share of the variance of each."""
    y = np.pad(y - y.mean(0), ((0, 0), (0, max(0, 2 - y.shape[1]))))
    _, s, vt = np.linalg.svd(y.astype(np.float64), full_matrices=False)
    vt = vt[:2] * np.sign(vt[range(2), abs(vt[:2]).argmax(1)])[:, None]  # signs are arbitrary: the largest weight is positive
    return y @ vt.T, s[:2] ** 2 / (s ** 2).sum()


def latent(model, truth, index, args):
    """States of videos along time in the plane of their first principal components, and what they decode to."""
    futures = get_futures(model, truth, index, args)
    y = torch.cat([futures.y_given, futures.y])[:, 0]  # (T, B, ny)
    times = sorted({0, args.nt_cond, args.nt_gen - 1})  # a single predicted frame is the first and the last
    x = decode(model, futures.cond.w, y[times], futures.cond.skips)  # (times, B, H, W, C)
    flat, share = pca(y.flatten(0, 1).cpu().numpy())

    def draw(path):
        names = [f'video {i}' for i in index]
        plot, colours = charts.plane(flat.reshape(*y.shape[:2], 2), times, share, max(800, 200 * len(index)))
        headings = [Heading(text, colour) for colour, text in (pictures.moment(t, args.nt_cond) for t in times)]
        frames = pictures.table(list(x.swapaxes(0, 1)), headings, list(map(Heading, names, colours)))
        pictures.write_picture(path, pictures.beside([plot, frames]))
    return draw


def predict(model, truth, index, args):
    """Futures of any video."""
    futures = get_futures(model, truth, index, args)
    x = np.stack([to_frames(future[:, 0]) for future in progress_bar(futures, 'predicting', unit='sample')])  # (S, nt, H, W, C)
    video, given = truth[:, 0], truth[:args.nt_cond, 0]
    shown = np.pad(video, ((0, args.nt_gen - len(video)), (0, 0), (0, 0), (0, 0)), constant_values=255)  # white where it has ended

    def draw(path):
        if path.suffix.lower() == '.npz':
            return write_npz(path, samples=x, given=given)
        rows = {f'future {s + 1}': future for s, future in enumerate(x)}
        if is_still(path):
            return pictures.strip(path, {'video': shown, **rows}, args.nt_cond)
        columns = {name: np.concatenate([given, row]) for name, row in rows.items()}
        pictures.animation(path, {'video': shown, **columns}, args.nt_cond, args.fps, across=max(3, math.ceil(math.sqrt(len(x) + 1))))
    return draw


DRAW = {function.__name__: function for function in (samples, framerate, swap, interpolate, latent, predict)}


def main(argv=None):
    args, config = resolve(argv)
    model = load_model(config, Path(args.xp_dir) / args.model_name, args.device)
    truth = get_videos(args, config)
    for path in args.out:
        make_folder(path.parent, '--out: folder')
    each = len(args.files) > 1
    for b, files in enumerate(args.files):
        part = slice(b, b + 1) if each else slice(None)
        draw = DRAW[args.what](model, truth[:, part], args.index[part], args)
        for path in files:
            draw(path)
            print(f'{args.what}: {path}')


if __name__ == '__main__':
    run_script(main)
