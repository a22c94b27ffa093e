"""Evaluation of a model on a test set: what `test.py` does once PyTorch is imported."""

import argparse
import contextlib
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import metrics.fvd
from checkpoint import load_model
from distributed import PER_PROCESS_OPTIONS, join
from files import (
    UserError,
    count,
    make_folder,
    progress_bar,
    read_json,
    sha256,
    write_json,
    write_npz,
)
from metrics import METRICS
from metrics.scoring import LastFrame, Scorer, concatenate
from metrics.summary import finite, score_lines, summary
from model import build_model
from pictures import frames as pictures
from results import replacing_results
from sampling import Chunk, Futures, check_memory, draw_noise
from utils import describe

N_RANDOM = 5  # samples saved as random_1.npz …
RESULTS = ['results.json', 'results.npz', f'random_[1-{N_RANDOM}].npz', 'cond_rec.npz',
           *(f'{name}_{end}.npz' for name in METRICS for end in ('best', 'worst')),
           'pictures/video_[0-9]*.png', 'pictures/video_[0-9]*.gif']


class Task(NamedTuple):
    """What is evaluated, and how."""
    args: argparse.Namespace
    scorer: Scorer
    model: torch.nn.Module | None  # None for the baseline last_frame
    fvd: metrics.fvd.FVD | None  # None without --fvd
    protocol: dict  # what the scores depend on


def run(resolve):
    """Evaluate a model, together with the other processes of the job, if any.

    Parameters
    ----------
    resolve : function
        Returns options and configuration.
    """
    with join() as world, contextlib.ExitStack() as stack:
        task = world.local_main_first(lambda: prepare(*resolve(), world))
        world.check_equal(facts(task), PER_PROCESS_OPTIONS)
        folder = world.local_main_first(
            lambda: open_results(stack, task) if world.main else None)
        if world.main:
            announce(task, world)
        scores, samples = evaluate(task, world)
        if world.main:
            write_scores(folder, scores, task)  # first: the disk may be full before the samples
            for name, videos in samples.items():
                write_npz(folder / f'{name}.npz', samples=videos)
            drawn = draw_pictures(folder / 'pictures', samples, task)
            stack.close()
            names = ', '.join(f'{name}.npz' for name in sorted(samples))
            print(f'results in {task.args.out_dir}: results.json, results.npz, {names}')
            if drawn:
                print('pictures:', ', '.join(f'{task.args.out_dir}/pictures/{n}' for n in drawn))


# Preparation

def prepare(args, config, world):
    """Load all that an evaluation needs, and check it."""
    device = world.device(args.device)
    scorer = Scorer(args, config, device)
    n_videos = scorer.n_videos
    if n_videos < world.size:
        raise UserError(f'{n_videos} videos cannot be shared by {world.size} processes; '
                        'start fewer')
    check_memory(config, device, min(args.batch_size, n_videos), args.nt_gen, args.n_samples,
                 args.n_euler_steps)
    model, digest = get_model(args, config, device)
    fvd = None
    if args.fvd:
        metrics.fvd.check_sizes(n_videos, args.nt_gen, 'the test set (--n_videos, --nt_gen)')
        embed = metrics.fvd.build_embedding(args.i3d_path, args.fvd_backend, device,
                                            args.i3d_other)
        fvd = metrics.fvd.FVD(embed, args.fvd_samples)
    protocol = get_protocol(args, config, scorer, digest, fvd)
    return Task(args, scorer, model, fvd, protocol)


def get_model(args, config, device):
    """Model to evaluate, and the SHA-256 of its checkpoint; None for what a baseline lacks."""
    if args.baseline == 'last_frame':
        return None, None
    if args.baseline == 'untrained':
        torch.manual_seed(args.test_seed)
        return build_model(config).to(device).eval().requires_grad_(False), None
    path = Path(args.xp_dir) / args.model_name
    return load_model(config, path, device), sha256(path)


def get_protocol(args, config, scorer, digest, fvd):
    """What the scores depend on, as saved with them."""
    protocol = scorer.protocol(args.n_samples) | {
        'n_euler_steps': args.n_euler_steps, 'seed': args.test_seed, 'baseline': args.baseline,
        'checkpoint': None if args.baseline else args.model_name, 'checkpoint_sha256': digest}
    if config.dataset == 'smmnist':
        names = 'digits', 'ndigits', 'max_speed', 'deterministic'
        protocol |= {name: getattr(config, name) for name in names}
    if fvd is not None:
        protocol['fvd'] = {
            'frames': args.nt_gen, 'conditioning_frames_included': True,
            'resolution': [config.nx, config.nx], 'clips': scorer.n_videos,
            'samples': args.fvd_samples, 'seed': args.test_seed,
            'embedding': metrics.fvd.EMBEDDING, 'backend': args.fvd_backend,
            'weights_sha256': fvd.embed.sha256, 'weights': fvd.embed.identity,
            'note': fvd.embed.note}
    return protocol


def facts(task):
    """What must be the same in all processes, by name."""
    first = hashlib.sha256(task.scorer.testset.videos([0]).tobytes()).hexdigest()[:8]
    return {**vars(task.args), **task.protocol, 'a test set with first video': first}


# Results folder

def open_results(stack, task):
    """Folder for results, which replace earlier ones in --out_dir when the stack is closed."""
    args = task.args
    out_dir = make_folder(args.out_dir, '--out_dir')
    if not args.overwrite:
        try:
            check_earlier(task)
        except UserError as error:
            raise UserError(f'{error}; use another --out_dir, or --overwrite') from None
    return stack.enter_context(replacing_results(
        out_dir, RESULTS, 'results.json', args.overwrite))


def check_earlier(task):
    """Raise a UserError if --out_dir has results of another protocol, or other scores.

    What older results do not record is not a difference.
    """
    args, path = task.args, task.args.out_dir / 'results.json'
    if not path.exists():
        if path.with_suffix('.npz').exists():
            raise UserError(f'{args.out_dir} has results.npz of an unknown protocol, '
                            'without results.json')
        return
    earlier = read_json(path)
    if not all(isinstance(earlier.get(part), dict) for part in ('scores', 'protocol')):
        raise UserError(f'{path} is not from an evaluation: it lacks scores or protocol')
    before, now = flatten(earlier['protocol']), flatten(task.protocol)
    if before.get('checkpoint_sha256') == now['checkpoint_sha256']:
        del now['checkpoint']  # another name of the same weights
    if None in (before.get('lpips_version'), now['lpips_version']):
        del now['lpips_version']  # there is no LPIPS in both
    for key, value in now.items():
        if before.get(key, value) != value:
            raise UserError(f'{path} is from an evaluation with {key} {before[key]}, '
                            f'found {value} now')
    computed = {*args.metrics, 'fvd'} if args.fvd else {*args.metrics}
    if lost := earlier['scores'].keys() - computed:
        raise UserError(f'{path} has scores that are not computed now: {", ".join(sorted(lost))}')


def flatten(protocol):
    """Protocol without nesting: 'fvd samples' is the entry 'samples' of 'fvd'."""
    fvd = {f'fvd {name}': value for name, value in protocol.get('fvd', {}).items()}
    return {name: value for name, value in protocol.items() if name != 'fvd'} | fvd


# Evaluation

def announce(task, world):
    """Print what is about to be computed."""
    args = task.args
    what = f'evaluating {args.baseline or args.model_name} on {describe(task.scorer.device)}'
    if world.size > 1:
        what += f' and {world.size - 1} more'
    task.scorer.announce(what, f', {count(args.n_samples, "sample")}, '
                               f'{count(args.n_euler_steps, "Euler step")} per frame, '
                               f'seed {args.test_seed}')
    if task.fvd is not None:
        p = task.protocol['fvd']
        backend = 'TensorFlow' if p['backend'] == 'tfhub' else 'PyTorch'
        given = count(args.nt_cond, 'conditioning frame')
        print(f'FVD: {p["frames"]} frames, {given} included, '
              f'{p["resolution"][0]} x {p["resolution"][1]}, {p["clips"]} clips, '
              f'{count(p["samples"], "random sample")}, seed {p["seed"]}\n'
              f'     {p["embedding"]}, {backend}, weights {p["weights_sha256"]}', flush=True)
        if p['note']:
            print(f'     note: {p["note"]}', flush=True)


def predictor(task):
    """Function that predicts a batch: (indices, conditioning frames) -> Futures."""
    args = task.args
    nt = args.nt_gen - args.nt_cond
    if task.model is None:
        return lambda indices, x: LastFrame(x, nt)
    chunk = Chunk(task.model, args.chunk)

    def predict(indices, x):
        noise = draw_noise(task.model, args.test_seed, 'test', indices, args.n_samples, args.nt_gen)
        futures = Futures(task.model, x, nt, noise, args.n_euler_steps, chunk=chunk)
        futures.check_states()
        return futures
    return predict


def evaluate(task, world):
    """Evaluate the videos of this process, and bring the results of all to the main process.

    Returns
    -------
    scores : dict of arrays (N,) by metric
    samples : dict of uint8 arrays (N, T, H, W, C) by name of their file
    """
    n_videos, n_samples = task.scorer.n_videos, task.args.n_samples
    part = world.part(n_videos)
    with progress_bar(total=len(part) * n_samples, unit='sample', disable=not world.main) as bar:
        scores, samples = evaluate_part(task, part, bar)
    scores = {name: world.collect(score, n_videos) for name, score in scores.items()}
    # One by one, as they may fill the memory
    samples = {name: world.collect(samples.pop(name), n_videos) for name in list(samples)}
    if task.fvd is not None:
        task.fvd.embed.close()
        task.fvd.collect(world, n_videos)
    if n_samples == 1:
        samples |= {f'{name}_{end}': samples['random_1'] for name in scores
                    for end in ('best', 'worst')}
    return scores, samples


def evaluate_part(task, part, bar):
    """As `evaluate`, for the videos of a range. Updates the Fréchet video distance."""
    args, scores, samples = task.args, [], {}
    n_random = max(N_RANDOM, args.fvd_samples)
    batches = task.scorer.batches(part, predictor(task), n_random, bar.update)
    for indices, truth, batch_scores, frames in batches:
        if any(np.isnan(score).any() for score in batch_scores.values()):
            raise UserError(f'{args.model_name} predicts NaN: its activations grow beyond '
                            'float32; use another checkpoint')
        scores.append(batch_scores)
        bar.set_postfix({name: f'{s.mean():.4f}' for name, s in concatenate(scores).items()})
        if task.fvd is not None:
            random = [frames[f'random_{k + 1}'] for k in range(args.fvd_samples)]
            task.fvd.update(truth[:args.nt_cond], truth[args.nt_cond:], random)
        for k in range(N_RANDOM, args.fvd_samples):
            del frames[f'random_{k + 1}']  # not saved
        for name, video in frames.items():
            if name not in samples:
                samples[name] = np.empty((len(part), len(video), *video.shape[2:]), np.uint8)
            first = indices.start - part.start
            samples[name][first:first + len(indices)] = video.swapaxes(0, 1)
    return concatenate(scores), samples


# Output

def write_scores(folder, scores, task):
    """Print the scores, and write them to `folder`.

    Also to --out_dir if it has no earlier results: there they survive a failure among the samples.
    """
    table = summary(scores)
    lines = score_lines(table)
    if task.fvd is not None:
        mean, std = task.fvd.result()
        table['fvd'] = {'mean': mean, 'std': std}
        lines.append(f'  FVD {mean:.2f}')
        if task.args.fvd_samples > 1:
            lines[-1] += f' ± {std:.2f} (standard deviation of {task.args.fvd_samples} samples)'
    print('\n'.join(lines), flush=True)
    out_dir = task.args.out_dir
    has_earlier = any(path for pattern in RESULTS for path in out_dir.glob(pattern))
    for place in [folder] if has_earlier else [out_dir, folder]:
        write_npz(place / 'results.npz', **scores)
        write_json(place / 'results.json', {
            'scores': finite(table), 'protocol': task.protocol,
            'files': ['results.json', 'results.npz']})  # so far


def draw_pictures(folder, samples, task):
    """Draw the first videos: truth, best, worst and random samples. Returns the file names."""
    args = task.args
    metric = args.metrics[0]
    names = {'best': f'{metric}_best', 'worst': f'{metric}_worst',
             **{f'random {i}': f'random_{i}' for i in (1, 2, 3)}}
    names = {label: name for label, name in names.items() if name in samples}
    folder.mkdir()
    drawn = []
    for i in range(min(args.n_pictures, task.scorer.n_videos)):
        truth = task.scorer.testset.videos([i])[:, 0]
        rows = {label: samples[name][i] for label, name in names.items()}
        pictures.strip(folder / f'video_{i:04d}.png', {'truth': truth, **rows}, args.nt_cond)
        given = truth[:args.nt_cond]
        videos = {label: np.concatenate([given, video]) for label, video in rows.items()}
        pictures.animation(folder / f'video_{i:04d}.gif', {'truth': truth, **videos}, args.nt_cond)
        drawn += [f'video_{i:04d}.png', f'video_{i:04d}.gif']
    return drawn
