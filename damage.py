"""Predict a clip again and again while the weights of a trained model decay.

`python damage.py --xp_dir RUN --data_dir DATA`; see --help. After a fork by Denis Perevalov.
"""

import csv
import math
from pathlib import Path

from files import (Parser, UserError, count, nonnegative_int, positive_int, progress_bar, replacing,
                   run_script, sha256, write_json)

import numpy as np
import torch

from args import (add_dataset_options, add_device_option, add_length_options, add_model_options,
                  fill_from_config, load_config)
from data import load_clip, load_videos
from evaluation.futures import Futures, draw_noise, to_frames
from metrics import METRICS
from pictures import charts, frames
from pictures.network import NetworkPicture, video_frame
from utils import describe, get_device, load_model, stream_rng, to_video

SCORES = 'psnr', 'ssim'
FRAME_RATE, NETWORK_RATE = 25, 5  # of the videos: predicted frames, and iterations, per second
# Published experiments on KTH: clip, first frame (from 0), frames, conditioning frames of them
EXPERIMENTS = {1: ('running/person01_running_d4', 315, 50, 10),
               2: ('walking/person01_walking_d2', 182, 130, 10),
               3: ('handclapping/person08_handclapping_d4', 14, 31, 10)}
# New value of an element v by --mode, from its draw (u, e) and the standard deviation of the
# intact tensor
MODES = {'scale': lambda v, u, e, std: u * v,
         'zero': lambda v, u, e, std: torch.zeros_like(v),
         'noise': lambda v, u, e, std: v + u * e * std,
         'sign': lambda v, u, e, std: -v}


def damage_parser():
    parser = Parser('Predict one clip again and again while the weights of the model decay. NaNs '
                    'in predictions are shown, and scored, as black.')
    add_model_options(parser)
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    clip = parser.add_mutually_exclusive_group()
    clip.add_argument('--experiment', type=int, choices=list(EXPERIMENTS),
                      help='published experiment on KTH, with its clip and lengths: '
                           + '; '.join(f'{i}: {video} from frame {t_0}, --nt_gen {nt_gen}'
                                       for i, (video, t_0, nt_gen, _) in EXPERIMENTS.items()))
    clip.add_argument('--video', metavar='CLASS/NAME',
                      help='path of a video below the folder of converted ones, such as '
                           'running/person01_running_d4 of KTH or test/<name> of folder')
    clip.add_argument('--index', type=nonnegative_int, metavar='I',
                      help='video of the test set, from 0; default: 0, if no clip is named')
    option = parser.add_argument
    option('--t_0', type=nonnegative_int, metavar='N', help='first frame of --video; default: 0')
    add_dataset_options(parser)
    add_length_options(parser, 'as in --experiment, or as trained')
    option('--n_euler_steps', type=positive_int,
           help='Euler steps per predicted frame; default: as trained')
    option('--n_iterations', type=positive_int, default=100,
           help='predictions; the first is by the intact model')
    option('--n_damages', type=positive_int, default=100,
           help='draws before each further iteration: an entry of the state_dict, then an element')
    option('--mode', choices=list(MODES), default='scale',
           help='new value of an element v. With u uniform in [--damage_low, --damage_high], '
                'scale: u v; zero: 0; noise: v + u e, with e normal, of the standard deviation of '
                'the intact tensor; sign: -v. A seed hits the same elements in all modes')
    option('--damage_low', type=float, default=0., help='minimum u of scale and noise')
    option('--damage_high', type=float, default=1., help='maximum u of scale and noise')
    option('--where', metavar='PREFIX',
           help='damage only entries of this name or below it: dynamics, decoder.conv.0, …')
    option('--n_runs', type=positive_int, default=1,
           help='experiments, with seeds --seed, --seed + 1, …: curves show mean and deviation')
    option('--fresh_noise', action='store_true',
           help='new noise for each prediction; otherwise, only the damage changes')
    option('--seed', type=nonnegative_int, default=1, help='seed of damage and noise')
    add_device_option(parser)
    option('--out_dir', type=Path, help='folder of the results; default: damage in --xp_dir')
    option('--overwrite', action='store_true', help='replace earlier results in --out_dir')
    return parser


def choose_entries(shapes, where):
    """Shapes by name of the entries that may be damaged: `where` and those below it, or all."""
    chosen = {name: shape for name, shape in shapes.items()
              if where is None or f'{name}.'.startswith(f'{where}.')}
    if not any(chosen.values()):
        parts = ', '.join(dict.fromkeys(name.partition('.')[0] for name in shapes))
        raise UserError(f'--where {where}: no tensor of the model has this name or prefix; use a '
                        f'prefix of names of entries, up to a dot; the parts are {parts}')
    return chosen


def draw_damage(shapes, seed, i, args):
    """Draw what is damaged before iteration i > 0, a function of the seed and of i only.

    Of the entries of `shapes` by name, one is drawn uniformly, then one of its elements. Return
    `n_damages` tuples (name, flat index, u, e); see `MODES`.
    """
    rng, names, n = stream_rng(seed, 'damage', i), list(shapes), args.n_damages
    sizes = np.array([math.prod(shape) for shape in shapes.values()])
    entry = rng.randint(len(sizes), size=n)
    index = (rng.random_sample(n) * sizes[entry]).astype(np.int64)  # rounded towards 0
    u = rng.uniform(args.damage_low, args.damage_high, n)
    e = rng.standard_normal(n)
    return [(names[k], *draw) for k, *draw in zip(entry, *(x.tolist() for x in (index, u, e)))]


class Weights:
    """Weights of a model, damaged in place, with their intact values."""

    def __init__(self, model):
        self.state = model.state_dict()  # shares its memory with the model
        self.intact = {name: value.clone() for name, value in self.state.items()}
        self.hit = {name: set() for name in self.state}  # flat indices of damaged elements

    def restore(self):
        for name, value in self.state.items():
            value.copy_(self.intact[name])
            self.hit[name].clear()

    def damage(self, mode, draws):
        """Damage elements in turn, as drawn by `draw_damage`."""
        for name, index, u, e in draws:
            value, intact = self.state[name], self.intact[name]
            if value.ndim == 0:  # batch counter, not used in evaluation
                continue
            place = np.unravel_index(index, value.shape)
            std = intact.std(correction=0).double() if mode == 'noise' else None
            new = MODES[mode](value[place].double(), u, e, std)
            if name.endswith('running_var'):  # a negative one would make all predictions NaN
                new = new.nan_to_num(0).clamp(min=0)
            value[place] = new  # beyond float32: infinite
            self.hit[name].add(index)

    def change(self):
        """Euclidean norm of the change of all weights."""
        total = 0.
        for name, hit in self.hit.items():
            now, before = (state[name].flatten()[sorted(hit)].double()
                           for state in (self.state, self.intact))
            total += (now - before).square().sum().item()
        return math.sqrt(total)


def draw_curves(path, rows, n_runs):
    """Draw the columns of damage.csv against the iteration."""
    lines = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows], float).reshape(n_runs, -1)
        lines[name] = np.arange(1, values.shape[1] + 1), *charts.band(values)
    share = lines['share'][1][-1]
    panels = [charts.Panel(charts.label(name), 'iteration', {
                  'against the truth': lines[name],
                  'against the intact prediction': lines[f'{name}_intact']})
              for name in SCORES]
    panels += [charts.Panel('damaged values', 'iteration',
                            {f'{100 * share:.3g}% at the end': lines['damaged']}),
               charts.Panel('norm of the change of the weights', 'iteration',
                            {'': lines['weight_change']})]
    charts.curves(path, panels)


def main(argv=None):
    parser = damage_parser()
    args = parser.parse_args(argv)
    if args.t_0 is not None and args.video is None:
        parser.error(f'--t_0 {args.t_0} is the first frame of --video, which is missing')
    config = load_config(args.xp_dir)
    if args.experiment:
        args.video, args.t_0, nt_gen, nt_cond = EXPERIMENTS[args.experiment]
        args.nt_gen, args.nt_cond = args.nt_gen or nt_gen, args.nt_cond or nt_cond
    fill_from_config(args, config)
    out_dir = args.out_dir or Path(args.xp_dir, 'damage')
    record, network_dir = out_dir / 'damage.json', out_dir / 'network'
    if record.exists() and not args.overwrite:
        raise UserError(f'{out_dir} has results of an earlier call; use another --out_dir, or '
                        '--overwrite')
    if args.video is not None:
        args.t_0 = args.t_0 or 0
        clip = load_clip(config, args.data_dir, args.video, args.t_0, args.nt_gen)[:, None]
    else:
        args.index = args.index or 0
        clip, _ = load_videos(config, args.data_dir, [args.index], args.nt_gen)
    device, path = get_device(args.device), Path(args.xp_dir, args.model_name)
    model = load_model(config, path, device)
    digest = sha256(path)  # now: later, the file may have been replaced
    weights = Weights(model)
    shapes = {name: tuple(value.shape) for name, value in weights.state.items()}
    entries = choose_entries(shapes, args.where)
    size = sum(math.prod(shape) for shape in entries.values() if shape)
    print(f'damaging {len(entries)} of {len(shapes)} entries of {args.model_name} on '
          f'{describe(device)}: {count(args.n_iterations, "iteration")} of '
          f'{count(args.n_damages, "damage")}, {count(args.n_runs, "run")}', flush=True)
    record.unlink(missing_ok=True)  # written last: an interrupted call leaves none
    network_dir.mkdir(parents=True, exist_ok=True)
    for picture in network_dir.glob('[0-9]*.png'):  # there may have been more iterations
        picture.unlink()

    x, network = to_video(torch.from_numpy(clip), device), NetworkPicture(shapes)
    metrics = {name: METRICS[name]() for name in SCORES}
    rows, predictions, captions = [], [], []
    bar = progress_bar(total=args.n_runs * args.n_iterations, unit='iteration')
    for run in range(args.n_runs):
        weights.restore()
        for i in range(args.n_iterations):
            draws = draw_damage(entries, args.seed + run, i, args) if i > 0 else []
            weights.damage(args.mode, draws)
            video = i if args.fresh_noise else 0  # whose noise is taken
            noise = draw_noise(model, args.seed + run, 'test', [video], 1, args.nt_gen)
            futures = Futures(model, x[:args.nt_cond], args.nt_gen - args.nt_cond, noise,
                              args.n_euler_steps, check=False)
            future = futures[0].nan_to_num(0)  # (nt, 1, C, H, W); NaNs are black
            if i == 0:
                targets = {f'{name}{suffix}': (metric, metric.prepare(y))
                           for suffix, y in (('', x[args.nt_cond:]), ('_intact', future))
                           for name, metric in metrics.items()}
            n_hit = sum(map(len, weights.hit.values()))
            rows.append({'run': run + 1, 'iteration': i + 1, 'damaged': n_hit,
                         'share': n_hit / size,
                         **{name: metric(future, target).mean().item()
                            for name, (metric, target) in targets.items()},
                         'weight_change': weights.change()})
            bar.set_postfix(run=run + 1, damaged=n_hit, psnr=f'{rows[-1]["psnr"]:.2f}',
                            refresh=False)
            bar.update()
            if run > 0:
                continue
            predictions.append(to_frames(future[:, 0]))
            captions.append(f'iteration {i + 1} of {args.n_iterations}: {n_hit:,} values damaged '
                            f'({100 * n_hit / size:.3g}%)')
            for name in {name for name, *_ in draws} if i > 0 else shapes:
                network.draw(name, weights.state[name], weights.hit[name])
            network.save(network_dir / f'{i:05d}.png',
                         f'{captions[-1]}, weight change {rows[-1]["weight_change"]:.3g}')
    bar.close()

    predictions, truth, n = np.stack(predictions), clip[:, 0], args.n_iterations
    panels = [np.tile(truth[args.nt_cond:], (n, 1, 1, 1)), np.tile(predictions[0], (n, 1, 1, 1)),
              np.concatenate(predictions)]
    headings = [frames.Heading(text) for text in ('truth', 'intact', 'damaged')]
    captions = [frames.Heading(f't = {t}, {caption}', frames.PREDICTED)
                for caption in captions for t in range(args.nt_cond, args.nt_gen)]
    frames.draw_tables([out_dir / 'prediction.mp4'], None, [([panels], headings, [])], captions,
                       FRAME_RATE)
    pictures = (video_frame(network_dir / f'{i:05d}.png') for i in range(n))
    frames.write_video(out_dir / 'network.mp4', pictures, NETWORK_RATE)
    draw_curves(out_dir / 'damage.png', rows, args.n_runs)
    with replacing(out_dir / 'predictions.npz') as tmp, open(tmp, 'wb') as f:
        np.savez_compressed(f, truth=truth, samples=predictions)
    with replacing(out_dir / 'damage.csv') as tmp, open(tmp, 'w', newline='') as f:
        table = csv.DictWriter(f, rows[0])
        table.writeheader()
        table.writerows(rows)
    options = {name: value for name, value in vars(args).items()
               if name not in ('out_dir', 'device', 'overwrite')}
    write_json(record, {**options, 'dataset': config.dataset, 'checkpoint_sha256': digest})
    print(f'results in {out_dir}')


if __name__ == '__main__':
    run_script(main)
