"""Damage the weights of a trained SRVP model more and more, and look at its predictions: `python damage.py --xp_dir RUN --data_dir DATA`;
see --help and the README."""

import math
import zipfile
from pathlib import Path

import numpy as np
import torch

from pictures import charts, frames as pictures
from args import fill_from_config, load_config
from parsing import Parser, add_device_option, euler_steps, frames, nonnegative_int, number, positive_int, seed
from typing import NamedTuple
from data import load_clip, load_test
from files import UserError, make_folder, progress_bar, reading, replacing_results, run_script, sha256, write_csv, write_json, write_npz
from metrics import PSNR, SSIM
from pictures.network import NetworkPicture
from preprocessing.convert import find_ffmpeg
from metrics.scoring import quantise
from sampling import Futures, draw_noise
from checkpoint import load_model
from utils import describe, get_device, stream_rng, to_video

FRAME_RATE, NETWORK_RATE = 25, 5  # of the videos: predicted frames and iterations a second
RESULTS = ['prediction.mp4', 'network.mp4', 'damage.csv', 'damage.png', 'damage.npz', 'damage.json', 'network/[0-9][0-9][0-9][0-9][0-9].png']


DAMAGE_MODES = ['scale', 'zero', 'noise', 'sign']


class Experiment(NamedTuple):
    """A published experiment of damage, on a KTH model: its clip."""
    video: str
    t_0: int      # first frame, from 0
    nt_gen: int   # frames, given ones included
    nt_cond: int = 10


EXPERIMENTS = {1: Experiment('running/person01_running_d4', 315, 50),
               2: Experiment('walking/person01_walking_d2', 182, 130),
               3: Experiment('handclapping/person08_handclapping_d4', 14, 31)}

MAX_ITERATIONS, MAX_DAMAGES = 99_999, 1_000_000  # pictures of the network are numbered with five digits
MAX_TOTAL = 100_000_000                          # draws of all runs, held in memory


def damage_parser():
    """Parser of `damage.py`."""
    parser = Parser('Predict one clip again and again while the weights of the model decay. What is not a number in a prediction is shown, and scored, '
                    'as black.')
    g = parser.add_argument_group('Model and clip')
    g.add_argument('--xp_dir', required=True, help='folder of the trained model: config.json and the weights')
    g.add_argument('--data_dir', required=True, help='folder of the dataset')
    g.add_argument('--model_name', default='model.pt', help='weights, in --xp_dir')
    clip = g.add_mutually_exclusive_group()
    clip.add_argument('--experiment', type=int, choices=list(EXPERIMENTS), help='published experiment on KTH: ' + '; '.join(
        f'{i}: {e.video} from frame {e.t_0}, --nt_gen {e.nt_gen} --nt_cond {e.nt_cond}' for i, e in EXPERIMENTS.items()))
    clip.add_argument('--video', metavar='CLASS/NAME', help='converted video, by its path below the folder of converted videos, such as '
                                                            'running/person01_running_d4 of KTH or test/<name> of folder')
    clip.add_argument('--index', type=nonnegative_int, metavar='I', help='video of the test set, from 0; 0 if no clip is named')
    g.add_argument('--t_0', type=nonnegative_int, metavar='N', help='first frame of --video, from 0; 0 if absent')
    g.add_argument('--nt_cond', type=frames, help='given frames; if absent, those of --experiment, or as trained')
    g.add_argument('--nt_gen', type=frames,
                   help='frames, given ones included; if absent, those of --experiment, or as trained (seq_len_test)')
    g.add_argument('--n_euler_steps', type=euler_steps, help='Euler steps a predicted frame; as trained if absent')

    g = parser.add_argument_group('Damage')
    g.add_argument('--n_iterations', type=number(int, 1, MAX_ITERATIONS), default=100, help='predictions; the first is that of the intact model')
    g.add_argument('--n_damages', type=number(int, 1, MAX_DAMAGES), default=100,
                   help='draws before each further iteration: an entry of the state_dict, then an element of it, each uniformly; '
                        'an entry that is a scalar leaves its draw without effect')
    g.add_argument('--mode', choices=DAMAGE_MODES, default='scale',
                   help='what becomes of the element v. With u uniform in [--damage_low, --damage_high], scale: u v; zero: 0; noise: v + u e, '
                        'e normal with the standard deviation of the intact tensor; sign: -v. A variance of batch norm (running_var) stays at least 0. '
                        'The same seed hits the same elements in all modes')
    g.add_argument('--damage_low', type=number(float), default=0., help='least u of scale and noise')
    g.add_argument('--damage_high', type=number(float), default=1., help='greatest u of scale and noise')
    g.add_argument('--where', metavar='PREFIX', help='damage only entries of this name or below it: dynamics, decoder.conv.0 …; all if absent')
    g.add_argument('--n_runs', type=positive_int, default=1, help='experiments, of seeds --seed, --seed + 1 …: curves show mean and standard deviation; '
                                                           'videos and pictures of the network come from the first. Draws of all of them '
                                                           f'are at most {MAX_TOTAL:,}')
    g.add_argument('--fresh_noise', action='store_true',
                   help='new noise for each prediction, the intact one being that of the first; else what changes is the damage alone')
    g.add_argument('--seed', type=seed, default=1, help='of damage and noise; with --replay of the noise only')
    g.add_argument('--replay', metavar='FILE', help='damage.npz of an earlier call, whose damage is repeated')

    g = parser.add_argument_group('Run')
    add_device_option(g)
    g.add_argument('--out_dir', help='where results go, instead of earlier ones; the folder damage of --xp_dir if absent')
    return parser


def check_damage(args, config):
    """Stop at options of `damage.py` that contradict each other or the model's configuration."""
    a = args
    defaults = damage_parser().get_default
    given = {name for name in ('n_iterations', 'n_damages', 'mode', 'damage_low', 'damage_high', 'where', 'n_runs')
             if getattr(a, name) != defaults(name)}
    if a.replay is not None and given:
        raise UserError(f'--{sorted(given)[0]} and --replay: the damage comes from the file; leave one of them out')
    if a.mode in ('zero', 'sign') and given & {'damage_low', 'damage_high'}:
        raise UserError(f'--damage_low and --damage_high have no meaning in --mode {a.mode}; leave them out, or give --mode scale or noise')
    if a.damage_low > a.damage_high:
        raise UserError(f'--damage_low {a.damage_low} must be a number of at most --damage_high {a.damage_high}')
    if a.damage_high - a.damage_low == float('inf'):
        raise UserError(f'--damage_low {a.damage_low} and --damage_high {a.damage_high} are too far apart: their difference is infinite; give smaller ones')
    if a.n_runs * a.n_iterations * a.n_damages > MAX_TOTAL:
        raise UserError(f'--n_runs {a.n_runs}, --n_iterations {a.n_iterations} and --n_damages {a.n_damages} make more than {MAX_TOTAL:,} draws '
                        'in all; give smaller ones')
    if a.t_0 is not None and a.video is None:
        raise UserError(f'--t_0 {a.t_0} needs --video, of which it is the first frame')
    if a.experiment and config.dataset != 'kth':
        raise UserError(f'--experiment {a.experiment} is one of KTH, but the model was trained on {config.dataset}; name a clip by --index '
                        'or --video')
    if a.video == '':
        raise UserError('--video is empty; name a converted video, such as running/person01_running_d4, or leave it out')
    if a.video and config.dataset == 'smmnist':
        raise UserError(f'--video {a.video}: the videos of smmnist are no files; name one of the test set by --index')


def resolve(argv=None):
    """Options of the call and configuration of the model, checked; what was left out comes from the experiment, then the configuration."""
    args = damage_parser().parse_args(argv)
    config = load_config(args.xp_dir)
    check_damage(args, config)
    if args.experiment:
        args.video, args.t_0, nt_gen, nt_cond = EXPERIMENTS[args.experiment]
        args.nt_gen, args.nt_cond = args.nt_gen or nt_gen, args.nt_cond or nt_cond
    fill_from_config(args, config)
    args.index, args.t_0 = (args.index or 0, None) if args.video is None else (None, args.t_0 or 0)
    args.out_dir = Path(args.out_dir or f'{args.xp_dir}/damage')
    return args, config


def get_clip(args, config):
    """Clip that the options name: uint8 (nt_gen, 1, H, W, C)."""
    if args.video is not None:
        return load_clip(config, args.data_dir, args.video, args.t_0, args.nt_gen)[:, None]
    testset = load_test(config, args.data_dir, args.nt_gen)
    if args.index >= len(testset):
        raise UserError(f'--index {args.index}: the test set has {len(testset)} videos; give at most {len(testset) - 1}')
    return testset.videos([args.index])


# What is damaged

# One random choice of what to damage, and how
DRAW = np.dtype([
    ('entry', np.int64),       # among the entries that may be damaged
    ('index', np.int64),       # of the element, flat, in C order; 0 of scalars
    ('strength', np.float64),  # u of --mode
    ('normal', np.float64),    # e of --mode, with standard deviation 1
])


def choose_entries(shapes, where):
    """Names of the entries that may be damaged: `where` itself or below it, or all if it is None."""
    names = [name for name in shapes if where is None or f'{name}.'.startswith(f'{where}.')]
    if not any(shapes[name] for name in names):
        parts = ', '.join(dict.fromkeys(name.partition('.')[0] for name in shapes))
        raise UserError(f'--where {where}: {"these are scalars" if names else "no entry of the model is called so or lies below it"}; give a name '
                        f'that entries start with, up to a dot; the parts are {parts}')
    return names


def draw_damage(shapes, args):
    """Draw the damage of all runs: entries uniformly, their elements uniformly; a function of the run's seed and the iteration alone.

    Parameters
    ----------
    shapes : list of tuples
        Of the entries that may be damaged.

    Returns
    -------
    np.ndarray of DRAW (n_runs, n_iterations - 1, n_damages)
    """
    draws = np.empty((args.n_runs, args.n_iterations - 1, args.n_damages), DRAW)
    sizes = np.array([math.prod(shape) for shape in shapes])
    for run, i in np.ndindex(draws.shape[:2]):
        rng, d = stream_rng(args.seed + run, 'damage', i + 1), draws[run, i]
        d['entry'] = rng.randint(len(sizes), size=len(d))
        d['index'] = rng.random_sample(len(d)) * sizes[d['entry']]  # rounded towards 0
        d['strength'] = rng.uniform(args.damage_low, args.damage_high, len(d))
        d['normal'] = rng.standard_normal(len(d))
    return draws


def load_damage(path, shapes):
    """Read an untrusted damage.npz: names of entries, mode and draws, which must fit a model of these shapes."""
    def check(fits, what):
        if not fits:
            raise UserError(f'--replay {path}: {what}; give the damage.npz of an earlier call on a model with the same parts and sizes')

    def read(name, fits, what):
        """Read an array whose head `fits(shape, dtype)`: a small file may hold gigabytes, compressed."""
        with reading(f'--replay {path}', 'cannot be read as the damage.npz of an earlier call', 'give one'), \
                zipfile.ZipFile(path) as archive, archive.open(f'{name}.npy') as f:
            if (version := np.lib.format.read_magic(f)) != (1, 0):
                raise ValueError(f'{name} has format {version}')
            shape, _, dtype = np.lib.format.read_array_header_1_0(f)
            if fitting := fits(shape, dtype):
                f.seek(0)
                value = np.lib.format.read_array(f, allow_pickle=False)
        check(fitting, f'{name} must be {what}, found {shape} of {dtype}')
        return value
    longest = 4 * max(map(len, [*shapes, *DAMAGE_MODES]))  # bytes of a name
    mode = str(read('mode', lambda shape, dtype: dtype.kind == 'U' and dtype.itemsize <= longest and shape == (), 'a mode'))
    check(mode in DAMAGE_MODES, f'mode must be one of {", ".join(DAMAGE_MODES)}, found {mode!r}')
    names = read('names', lambda shape, dtype: dtype.kind == 'U' and dtype.itemsize <= longest and len(shape) == 1 and shape[0] <= len(shapes),
                 'a list of entries of the model').tolist()
    check(len(set(names)) == len(names), 'names has an entry twice')
    unknown = [name for name in names if name not in shapes]
    check(not unknown, f'the model has no entry {"".join(unknown[:1])}')
    check(any(shapes[name] for name in names), 'names has no entry but scalars')
    draws = read('draws', lambda shape, dtype: dtype == DRAW and len(shape) == 3 and shape[0] >= 1 and 0 <= shape[1] < MAX_ITERATIONS
                 and 1 <= shape[2] <= MAX_DAMAGES and shape[0] * (shape[1] + 1) * shape[2] <= MAX_TOTAL,
                 f'(runs, iterations, damages), within the bounds of --n_runs, --n_iterations and --n_damages, of {", ".join(DRAW.names)}')
    check(((0 <= draws['entry']) & (draws['entry'] < len(names))).all(), f'entry must lie between 0 and {len(names) - 1}')
    sizes = np.array([math.prod(shapes[name]) for name in names])
    check(((0 <= draws['index']) & (draws['index'] < sizes[draws['entry']])).all(), 'index lies outside its entry')
    check(np.isfinite(draws['strength']).all() and np.isfinite(draws['normal']).all(), 'strength and normal must be numbers')
    return names, mode, draws


class Weights:
    """Weights of a model, which damage changes in place, and their intact values.

    Attributes
    ----------
    state : dict of tensors by name
        The `state_dict`, whose memory is the model's.
    hit : dict of sets of int by name
        Flat indices of the elements damaged so far.
    """

    def __init__(self, model):
        self.state = model.state_dict()
        self.intact = {name: value.clone() for name, value in self.state.items()}
        self.hit = {name: set() for name in self.state}

    def restore(self):
        """Undo all damage."""
        for name, value in self.state.items():
            value.copy_(self.intact[name])
            self.hit[name].clear()

    def damage(self, names, mode, draws):
        """Damage elements, one after the other; returns the names of the entries that changed.

        Parameters
        ----------
        names : list of str
            Entries that `draws.entry` counts.
        mode : str
            See --mode.
        draws : np.ndarray of DRAW (n_damages)
        """
        changed = set()
        for entry, index, strength, normal in draws:
            name = names[entry]
            value = self.state[name]
            if value.ndim == 0:  # a counter of batches, without effect in evaluation
                continue
            place = np.unravel_index(index, value.shape)
            v, std = value[place].item(), self.intact[name].std(correction=0).item() if mode == 'noise' else 0.
            v = {'scale': strength * v, 'zero': 0., 'noise': v + strength * normal * std, 'sign': -v}[mode]
            if name.endswith('running_var'):  # batch norm takes its root: below 0, all predictions would be lost at once
                v = max(0., v)
            value[place] = torch.tensor(v, dtype=torch.float64)  # beyond float32, infinite
            self.hit[name].add(int(index))
            changed.add(name)
        return changed

    @property
    def n_hit(self):
        """Number of elements damaged so far, each counted once."""
        return sum(map(len, self.hit.values()))

    def change(self):
        """Euclidean norm of the change of all weights."""
        total = 0.
        for name, hit in self.hit.items():
            if hit:
                places = tuple(torch.from_numpy(i) for i in np.unravel_index(np.array(sorted(hit)), self.state[name].shape))
                total += (self.state[name][places].double() - self.intact[name][places].double()).square().sum().item()
        return math.sqrt(total)


# Predictions

def predict(model, x, seed, i, args):
    """Future (nt, 1, C, H, W) of the clip (nt_gen, 1, C, H, W) in iteration i, from 0; what is not a number is black."""
    noise = draw_noise(model, seed, 'test', [i if args.fresh_noise else 0], 1, args.nt_gen)
    return Futures(model, x[:args.nt_cond], args.nt_gen - args.nt_cond, noise, args.n_euler_steps)[0].nan_to_num(0)


def run_experiment(model, weights, x, names, draws, run, args):
    """Predict a clip with more and more damage.

    Parameters
    ----------
    x : tensor (nt_gen, 1, C, H, W)
    draws : np.ndarray of DRAW (n_iterations - 1, n_damages)
    run : int
        From 0; added to the seed.

    Yields
    ------
    row : dict
        Row of damage.csv.
    frames : np.ndarray of uint8 (nt, H, W, C)
        Predicted ones, as they are scored.
    changed : set of str
        Entries to draw: all at first, then those damaged since the prediction before.
    """
    weights.restore()
    size = sum(weights.state[name].numel() for name in names if weights.state[name].ndim)
    scores, changed = {'psnr': PSNR(), 'ssim': SSIM()}, set(weights.state)
    for i in range(len(draws) + 1):
        if i > 0:
            changed = weights.damage(names, args.mode, draws[i - 1])
        future = predict(model, x, args.seed + run, i, args)
        if i == 0:
            targets = {'': x[args.nt_cond:], '_intact': future}
            targets = {name + what: score.prepare(y) for what, y in targets.items() for name, score in scores.items()}
        row = {'run': run + 1, 'iteration': i + 1, 'damaged': weights.n_hit, 'share': weights.n_hit / size,
               **{name: scores[name.partition('_')[0]](future, target).item() for name, target in targets.items()},
               'weight_change': weights.change()}
        yield row, quantise(future)[:, 0].permute(0, 2, 3, 1).cpu().numpy(), changed


def run_all(model, weights, clip, names, draws, network, folder, args):
    """Run all experiments and write the pictures of the network, of the first one. Returns the rows, and frames and captions of the first."""
    x, rows, predictions, captions = to_video(torch.from_numpy(clip), get_device(args.device)), [], [], []
    with progress_bar(total=args.n_runs * args.n_iterations, unit='iteration') as bar:
        for run in range(args.n_runs):
            for row, frames, changed in run_experiment(model, weights, x, names, draws[run], run, args):
                rows.append(row)
                if run == 0:
                    predictions.append(frames)
                    captions.append(f'iteration {row["iteration"]} of {args.n_iterations}: {row["damaged"]:,} values damaged '
                                    f'({100 * row["share"]:.3g}%), weight change {row["weight_change"]:.3g}')
                    for name in changed:
                        network.draw(name, weights.state[name], sorted(weights.hit[name]))
                    network.save(folder / 'network' / f'{row["iteration"] - 1:05d}.png', captions[-1])
                bar.update()
                bar.set_postfix(run=run + 1, damaged=row['damaged'], psnr=f'{row["psnr"]:.2f}')
    return rows, predictions, captions


# Results

def write_videos(folder, truth, predictions, captions, network):
    """Write both videos, of predictions (list of uint8 (nt, H, W, C)) and of the pictures of the network, iteration by iteration."""
    headings = list(map(pictures.Heading, ('truth', 'intact', 'damaged')))

    def frames():
        for predicted, text in zip(progress_bar(predictions, 'prediction.mp4', unit='iteration'), captions):
            for panels in zip(truth, predictions[0], predicted):
                yield np.asarray(pictures.below([pictures.table([panels], headings, scale=4)], text))
    pictures.write_video(folder / 'prediction.mp4', frames(), FRAME_RATE)
    paths = progress_bar(sorted(folder.glob('network/*.png')), 'network.mp4', unit='iteration')
    pictures.write_video(folder / 'network.mp4', map(network.video_frame, paths), NETWORK_RATE)


def draw_curves(path, rows):
    """Draw the columns of damage.csv against the iteration."""
    table = {name: np.array([row[name] for row in rows], float).reshape(rows[-1]['run'], -1) for name in rows[0]}  # (n_runs, n_iterations)
    charts.curves(path, 'iteration', table['iteration'][0], {
        'PSNR (dB)': {'against the truth': table['psnr'], 'against the intact prediction': table['psnr_intact']},
        'SSIM': {'against the truth': table['ssim'], 'against the intact prediction': table['ssim_intact']},
        'damaged values': {f'{100 * table["share"][:, -1].mean():.3g}% at the end': table['damaged']},
        'norm of the change of the weights': {'': table['weight_change']}})


def main(argv=None):
    args, config = resolve(argv)
    find_ffmpeg()  # its absence would else show after all the work
    device = get_device(args.device)
    path = Path(args.xp_dir) / args.model_name
    model = load_model(config, path, device)
    digest = sha256(path)  # of what was loaded: the file may be replaced meanwhile
    weights = Weights(model)
    shapes = {name: tuple(value.shape) for name, value in weights.state.items()}
    if args.replay is not None:
        names, args.mode, draws = load_damage(args.replay, shapes)
    else:
        names = choose_entries(shapes, args.where)
        draws = draw_damage([shapes[name] for name in names], args)
    args.n_runs, args.n_iterations, args.n_damages = draws.shape[0], draws.shape[1] + 1, draws.shape[2]
    clip = get_clip(args, config)
    make_folder(args.out_dir, '--out_dir')

    what = f'{args.video} from frame {args.t_0}' if args.video is not None else f'video {args.index} of the test set'
    print(f'damaging {args.model_name} on {describe(device)}: {what} of {config.dataset}, {args.nt_cond} frames given, {args.nt_gen - args.nt_cond} '
          f'predicted, {args.n_iterations} iterations of {args.n_damages} damages, mode {args.mode}, {len(names)} of {len(shapes)} entries, '
          f'{args.n_runs} run{"s" * (args.n_runs > 1)}, seed {args.seed}', flush=True)
    with replacing_results(args.out_dir, RESULTS) as folder:
        (folder / 'network').mkdir()
        network = NetworkPicture(shapes)
        rows, predictions, captions = run_all(model, weights, clip, names, draws, network, folder, args)
        write_videos(folder, clip[args.nt_cond:, 0], predictions, captions, network)
        write_csv(folder / 'damage.csv', rows)
        draw_curves(folder / 'damage.png', rows)
        write_npz(folder / 'damage.npz', names=np.array(names), mode=args.mode, draws=draws)
        left_out = {'out_dir', 'device'} | ({'where', 'damage_low', 'damage_high'} if args.replay is not None else set())
        write_json(folder / 'damage.json', {**{k: v for k, v in vars(args).items() if k not in left_out},
                                            'dataset': config.dataset, 'checkpoint_sha256': digest})
    print(f'results in {args.out_dir}: {", ".join(RESULTS[:-1])}, network/00000.png …')


if __name__ == '__main__':
    run_script(main)
