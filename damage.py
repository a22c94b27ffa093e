"""Predict a clip while the weights of a trained model decay.

`python damage.py --xp_dir RUN --data_dir DATA`; see --help.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

# Modules that import PyTorch are imported where they are used: --help and checks do without it
from args import add_model_options, fill_from_config, load_config
from data import load_clip, load_test
from files import (
    UserError,
    make_folder,
    progress_bar,
    run_script,
    sha256,
    write_csv,
    write_json,
    write_npz,
)
from parsing import (
    Parser,
    add_device_option,
    euler_steps,
    frames,
    nonnegative_int,
    number,
    positive_int,
    seed,
)
from perturbation import (
    MAX_DAMAGES,
    MAX_ITERATIONS,
    MAX_TOTAL,
    MODES,
    DamageFile,
    Weights,
    choose_entries,
    draw_damage,
)
from pictures import charts
from pictures.encoding import write_mp4
from pictures.frames import Heading, stacked, table
from pictures.network import NetworkPicture, video_frame
from preprocessing.decoding import find_ffmpeg
from results import lock_results, replacing_results

FRAME_RATE, NETWORK_RATE = 25, 5  # of the videos: predicted frames, and iterations, per second
RESULTS = ['prediction.mp4', 'network.mp4', 'predictions.npz', 'damage.csv', 'damage.png',
           'damage.npz', 'damage.json', 'network/[0-9][0-9][0-9][0-9][0-9].png']
DAMAGE_OPTIONS = ['n_iterations', 'n_damages', 'mode', 'damage_low', 'damage_high', 'where',
                  'n_runs']  # what a file holds that --replay repeats


class Experiment(NamedTuple):
    """Clip of a published experiment on KTH."""
    video: str
    t_0: int     # first frame, from 0
    nt_gen: int  # frames, conditioning frames included
    nt_cond: int = 10


EXPERIMENTS = {1: Experiment('running/person01_running_d4', 315, 50),
               2: Experiment('walking/person01_walking_d2', 182, 130),
               3: Experiment('handclapping/person08_handclapping_d4', 14, 31)}


# Options

def damage_parser():
    """Parser of `damage.py`."""
    parser = Parser('Predict one clip again and again while the weights of the model decay. NaNs '
                    'in predictions are shown, and scored, as black.')
    add_clip_options(parser.add_argument_group('Model and clip'))
    add_damage_options(parser.add_argument_group('Damage'))
    g = parser.add_argument_group('Run')
    add_device_option(g)
    g.add_argument('--out_dir', help='folder for the results, which replace earlier ones; '
                                     'default: the folder damage in --xp_dir')
    g.add_argument('--overwrite', action='store_true',
                   help='also replace files in --out_dir that an earlier call did not write')
    return parser


def add_clip_options(g):
    add_model_options(g)
    g.add_argument('--data_dir', required=True, help='folder of the dataset')
    clip = g.add_mutually_exclusive_group()
    clip.add_argument('--experiment', type=int, choices=list(EXPERIMENTS),
                      help='published experiment on KTH: ' + '; '.join(
                          f'{i}: {e.video} from frame {e.t_0}, --nt_gen {e.nt_gen} '
                          f'--nt_cond {e.nt_cond}' for i, e in EXPERIMENTS.items()))
    clip.add_argument('--video', metavar='CLASS/NAME',
                      help='converted video: its path below the folder of converted videos, such '
                           'as running/person01_running_d4 of KTH or test/<name> of folder')
    clip.add_argument('--index', type=nonnegative_int, metavar='I',
                      help='video of the test set, from 0; default: 0, if no clip is named')
    g.add_argument('--t_0', type=nonnegative_int, metavar='N',
                   help='first frame of --video, from 0; default: 0')
    g.add_argument('--nt_cond', type=frames,
                   help='conditioning frames; default: as in --experiment, or as trained')
    g.add_argument('--nt_gen', type=frames,
                   help='frames, conditioning frames included; default: as in --experiment, or as '
                        'trained (seq_len_test)')
    g.add_argument('--n_euler_steps', type=euler_steps,
                   help='Euler steps per predicted frame; default: as trained')


def add_damage_options(g):
    g.add_argument('--n_iterations', type=number(int, 1, MAX_ITERATIONS), default=100,
                   help='predictions; the first is by the intact model')
    g.add_argument('--n_damages', type=number(int, 1, MAX_DAMAGES), default=100,
                   help='draws before each further iteration: an entry of the state_dict, then '
                        'one of its elements, each uniformly; drawing a scalar has no effect')
    g.add_argument('--mode', choices=list(MODES), default='scale',
                   help='new value of an element v. With u uniform in [--damage_low, '
                        '--damage_high], scale: u v; zero: 0; noise: v + u e, with e normal, of '
                        'the standard deviation of the intact tensor; sign: -v. Variances of batch '
                        'norm (running_var) stay nonnegative. A seed hits the same elements in all '
                        'modes')
    g.add_argument('--damage_low', type=number(float), default=0.,
                   help='minimum u of scale and noise')
    g.add_argument('--damage_high', type=number(float), default=1.,
                   help='maximum u of scale and noise')
    g.add_argument('--where', metavar='PREFIX',
                   help='damage only the entry of this name, or entries below it: dynamics, '
                        'decoder.conv.0, …; default: all')
    g.add_argument('--n_runs', type=positive_int, default=1,
                   help='experiments, with seeds --seed, --seed + 1, …: curves show mean and '
                        'standard deviation; videos and pictures of the network show the first. '
                        f'At most {MAX_TOTAL:,} draws in all')
    g.add_argument('--fresh_noise', action='store_true',
                   help='new noise for each prediction; the intact prediction to compare with is '
                        'the first one. Otherwise, only the damage changes')
    g.add_argument('--seed', type=seed, default=1,
                   help='seed of damage and noise; with --replay, of the noise only')
    g.add_argument('--replay', metavar='FILE',
                   help='damage.npz of an earlier run, whose damage is repeated')


def check_damage(args, config):
    """Raise a UserError for options that contradict each other or the configuration."""
    a, default = args, damage_parser().get_default
    changed = {name for name in DAMAGE_OPTIONS if getattr(a, name) != default(name)}
    if a.replay is not None and changed:
        raise UserError(f'--{min(changed)} and --replay: the damage comes from the file; '
                        'leave one of them out')
    if a.mode in ('zero', 'sign') and changed & {'damage_low', 'damage_high'}:
        raise UserError(f'--damage_low and --damage_high have no effect in --mode {a.mode}; leave '
                        'them out, or use --mode scale or noise')
    if a.damage_low > a.damage_high:
        raise UserError(f'--damage_low {a.damage_low} must not exceed '
                        f'--damage_high {a.damage_high}')
    if a.damage_high - a.damage_low == float('inf'):
        raise UserError(f'--damage_low {a.damage_low} and --damage_high {a.damage_high} are too '
                        'far apart: their difference overflows; use smaller ones')
    if a.n_runs * a.n_iterations * a.n_damages > MAX_TOTAL:
        raise UserError(f'--n_runs {a.n_runs}, --n_iterations {a.n_iterations} and --n_damages '
                        f'{a.n_damages} make more than {MAX_TOTAL:,} draws in all; '
                        'use smaller ones')
    if a.t_0 is not None and a.video is None:
        raise UserError(f'--t_0 {a.t_0} is the first frame of --video, which is missing')
    if a.experiment and config.dataset != 'kth':
        raise UserError(f'--experiment {a.experiment} is on KTH, but the model was trained on '
                        f'{config.dataset}; use --index or --video')
    if a.video and config.dataset == 'smmnist':
        raise UserError(f'--video {a.video}: the videos of smmnist are not files; use --index')


def resolve(argv=None):
    """Options and configuration of the model, checked.

    Missing options are taken from the experiment, then from the configuration.
    """
    args = damage_parser().parse_args(argv)
    config = load_config(args.xp_dir)
    check_damage(args, config)
    if args.experiment:
        args.video, args.t_0, nt_gen, nt_cond = EXPERIMENTS[args.experiment]
        args.nt_gen, args.nt_cond = args.nt_gen or nt_gen, args.nt_cond or nt_cond
    fill_from_config(args, config)
    if args.video is None:
        args.index = args.index or 0
    else:
        args.t_0 = args.t_0 or 0
    args.out_dir = Path(args.out_dir or f'{args.xp_dir}/damage')
    return args, config


def get_clip(args, config):
    """Clip that the options name: uint8 (nt_gen, 1, H, W, C)."""
    if args.video is not None:
        return load_clip(config, args.data_dir, args.video, args.t_0, args.nt_gen)[:, None]
    testset = load_test(config, args.data_dir, args.nt_gen)
    if args.index >= len(testset):
        raise UserError(f'--index {args.index}: the test set has {len(testset)} videos; '
                        f'use at most {len(testset) - 1}')
    return testset.videos([args.index])


def get_damage(args, shapes):
    """Names of the entries that may be damaged, and draws; sets the options of a replayed file."""
    if args.replay is None:
        names = choose_entries(shapes, args.where)
        return names, draw_damage([shapes[name] for name in names], args)
    file = DamageFile(args.replay, shapes)
    args.mode, names = file.mode(), file.names()
    draws = file.draws(names)
    args.n_runs, args.n_iterations, args.n_damages = draws.shape
    args.n_iterations += 1  # the intact model
    return names, draws


# Predictions

def predict(model, x, seed, i, args):
    """Future (nt, 1, C, H, W) in iteration i, from 0, of the clip x; NaNs are black."""
    from sampling import Futures, draw_noise
    index = i if args.fresh_noise else 0
    noise = draw_noise(model, seed, 'test', [index], 1, args.nt_gen)
    futures = Futures(model, x[:args.nt_cond], args.nt_gen - args.nt_cond, noise,
                      args.n_euler_steps)
    return futures[0].nan_to_num(0)


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
    future : np.ndarray of uint8 (nt, H, W, C)
        Predicted frames, as scored.
    changed : set of str
        Entries to redraw: all at first, then those damaged since the previous iteration.
    """
    from metrics import PSNR, SSIM
    from metrics.scoring import quantise
    weights.restore()
    size = sum(weights.state[name].numel() for name in names if weights.state[name].ndim)
    metrics, changed = {'psnr': PSNR(), 'ssim': SSIM()}, set(weights.state)
    for i in range(len(draws) + 1):
        if i > 0:
            changed = weights.damage(names, args.mode, draws[i - 1])
        future = predict(model, x, args.seed + run, i, args)
        if i == 0:
            references = {'': x[args.nt_cond:], '_intact': future}
            targets = {f'{name}{suffix}': (metric, metric.prepare(reference))
                       for suffix, reference in references.items()
                       for name, metric in metrics.items()}
        scores = {name: metric(future, target).mean().item()
                  for name, (metric, target) in targets.items()}
        row = {'run': run + 1, 'iteration': i + 1, 'damaged': weights.n_hit,
               'share': weights.n_hit / size, **scores, 'weight_change': weights.change()}
        yield row, quantise(future)[:, 0].permute(0, 2, 3, 1).cpu().numpy(), changed


def run_all(model, weights, x, names, draws, network, folder, args):
    """Run all experiments, and write the pictures of the network for the first one.

    Returns
    -------
    rows : list of dict
        Of damage.csv.
    predictions, captions : list
        Frames uint8 (nt, H, W, C) and a line of text by iteration, of the first experiment.
    """
    rows, predictions, captions = [], [], []
    with progress_bar(total=args.n_runs * args.n_iterations, unit='iteration') as bar:
        for run in range(args.n_runs):
            for row, future, changed in run_experiment(model, weights, x, names, draws[run], run,
                                                       args):
                rows.append(row)
                if run == 0:
                    predictions.append(future)
                    captions.append(
                        f'iteration {row["iteration"]} of {args.n_iterations}: '
                        f'{row["damaged"]:,} values damaged ({100 * row["share"]:.3g}%), '
                        f'weight change {row["weight_change"]:.3g}')
                    for name in changed:
                        network.draw(name, weights.state[name], sorted(weights.hit[name]))
                    picture = folder / 'network' / f'{row["iteration"] - 1:05d}.png'
                    network.save(picture, captions[-1])
                bar.update()
                bar.set_postfix(run=run + 1, damaged=row['damaged'], psnr=f'{row["psnr"]:.2f}')
    return rows, predictions, captions


# Results

def write_videos(folder, truth, predictions, captions, nt_cond):
    """Write the videos of the predictions and of the pictures of the network, by iteration.

    Parameters
    ----------
    truth : np.ndarray of uint8 (nt, H, W, C)
    predictions, captions : list
        See `run_all`.
    nt_cond : int
        Time t of the first predicted frame.
    """
    headings = list(map(Heading, ('truth', 'intact', 'damaged')))

    def shown():
        bar = progress_bar(predictions, 'prediction.mp4', unit='iteration')
        for predicted, text in zip(bar, captions):
            for t, panels in enumerate(zip(truth, predictions[0], predicted), nt_cond):
                panel = table([panels], headings, side=256)
                yield np.asarray(stacked([panel], f't = {t}, {text}'))
    write_mp4(folder / 'prediction.mp4', shown(), FRAME_RATE)
    paths = progress_bar(sorted(folder.glob('network/*.png')), 'network.mp4', unit='iteration')
    write_mp4(folder / 'network.mp4', map(video_frame, paths), NETWORK_RATE)


def draw_curves(path, rows):
    """Draw the columns of damage.csv against the iteration."""
    shape = rows[-1]['run'], -1  # (n_runs, n_iterations)
    columns = {name: np.array([row[name] for row in rows], float).reshape(shape)
               for name in rows[0]}
    share = columns['share'][:, -1].mean()
    bands = {name: charts.band(values) for name, values in columns.items()}
    panels = {label: {'against the truth': bands[name],
                      'against the intact prediction': bands[f'{name}_intact']}
              for label, name in (('PSNR (dB)', 'psnr'), ('SSIM', 'ssim'))}
    panels |= {'damaged values': {f'{100 * share:.3g}% at the end': bands['damaged']},
               'norm of the change of the weights': {'': bands['weight_change']}}
    charts.curves(path, 'iteration', columns['iteration'][0], panels)


def announce(args, config, n_names, n_entries, device):
    """Print what will be computed."""
    clip = f'video {args.index} of the test set'
    if args.video is not None:
        clip = f'{args.video} from frame {args.t_0}'
    runs = '1 run' if args.n_runs == 1 else f'{args.n_runs} runs'
    print(f'damaging {args.model_name} on {device}: {clip} of {config.dataset}, '
          f'{args.nt_cond} conditioning frames, {args.nt_gen - args.nt_cond} predicted, '
          f'{args.n_iterations} iterations of {args.n_damages} damages, mode {args.mode}, '
          f'{n_names} of {n_entries} entries, {runs}, seed {args.seed}', flush=True)


def main(argv=None):
    args, config = resolve(argv)
    find_ffmpeg()  # raises an error now rather than after all the work
    clip = get_clip(args, config)

    import torch

    from checkpoint import load_model
    from sampling import check_memory
    from utils import describe, get_device, to_video
    device, path = get_device(args.device), Path(args.xp_dir) / args.model_name
    check_memory(config, device, 1, args.nt_gen, 1, args.n_euler_steps)
    model = load_model(config, path, device)
    digest = sha256(path)  # now: later, the file may have been replaced
    weights = Weights(model)
    shapes = {name: tuple(value.shape) for name, value in weights.state.items()}
    names, draws = get_damage(args, shapes)
    make_folder(args.out_dir, '--out_dir')
    announce(args, config, len(names), len(shapes), describe(device))
    with lock_results(args.out_dir), replacing_results(
            args.out_dir, RESULTS, 'damage.json', args.overwrite) as folder:
        (folder / 'network').mkdir()
        rows, predictions, captions = run_all(
            model, weights, to_video(torch.from_numpy(clip), device), names, draws,
            NetworkPicture(shapes), folder, args)
        write_videos(folder, clip[args.nt_cond:, 0], predictions, captions, args.nt_cond)
        write_npz(folder / 'predictions.npz', truth=clip[:, 0], samples=np.stack(predictions))
        write_csv(folder / 'damage.csv', rows)
        draw_curves(folder / 'damage.png', rows)
        write_npz(folder / 'damage.npz', names=np.array(names), mode=args.mode, draws=draws)
        left_out = {'out_dir', 'device', 'overwrite'}
        if args.replay is not None:  # the file does not hold them
            left_out |= {'where', 'damage_low', 'damage_high'}
        protocol = {k: v for k, v in vars(args).items() if k not in left_out}
        write_json(folder / 'damage.json', {**protocol, 'dataset': config.dataset,
                                            'checkpoint_sha256': digest})
    print(f'results in {args.out_dir}: {", ".join(RESULTS[:-1])}, network/00000.png …')


if __name__ == '__main__':
    run_script(main)
