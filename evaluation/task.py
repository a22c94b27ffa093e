"""What is evaluated: everything that is loaded, checked and announced before the work."""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

import torch

import metrics.fvd
from checkpoint import load_model
from files import UserError, count, make_folder, read_json, sha256
from logs import read_log
from metrics import METRICS
from metrics.scoring import Scorer
from model import build_model
from pictures import report
from results import EARLIER, PartialResults, check_results, lock_results
from sampling import check_memory
from utils import describe

N_RANDOM = 5  # samples saved as random_1.npz …
RESULTS = ['results.json', 'results.npz', 'curves.png', f'random_[1-{N_RANDOM}].npz',
           'cond_rec.npz', *(f'{name}_{end}.npz' for name in METRICS for end in ('best', 'worst')),
           'pictures/video_[0-9]*.png', 'pictures/video_[0-9]*.gif']
ARRAYS = {'<metric>': 'best score of each video, (videos)',
          '<metric>_t': 'score of each frame of that sample, channels averaged, '
                        '(videos, predicted frames)'}  # of results.npz


class Task(NamedTuple):
    """What is evaluated, and how."""
    args: argparse.Namespace
    scorer: Scorer
    model: torch.nn.Module | None  # None for the baseline last_frame
    fvd: metrics.fvd.Embedding | None  # or a TFHub; None without --fvd
    protocol: dict  # what the scores depend on


def prepare(args, config, world):
    """Load all that an evaluation needs, and check it."""
    device = world.device(args.device)
    scorer = Scorer(args, config, device)
    n_videos = scorer.n_videos
    check_memory(config, device, min(args.batch_size, n_videos), args.nt_gen, args.n_samples,
                 args.n_euler_steps)
    model, digest = get_model(args, config, device)
    fvd = None
    if args.fvd:
        metrics.fvd.check_sizes(n_videos, args.nt_gen, 'the test set (--n_videos, --nt_gen)')
        fvd = metrics.fvd.build_embedding(args.i3d_path, args.fvd_backend, device,
                                          args.i3d_other)
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
        'checkpoint': None if args.baseline else args.model_name, 'checkpoint_sha256': digest,
        'precision': 'bfloat16' if args.torch_amp else 'float32'}
    if fvd is not None:
        protocol['fvd'] = {
            **metrics.fvd.facts(args, config, scorer.n_videos, args.fvd_samples, fvd),
            'seed': args.test_seed}
    return protocol


def facts(task):
    """What must be the same in all processes, by name."""
    return {**vars(task.args), **task.protocol, 'a test set with first video': first_video(task)}


def first_video(task):
    """Digest of the first video of the test set."""
    return hashlib.sha256(task.scorer.testset.videos([0]).tobytes()).hexdigest()[:8]


# Results folder

def open_results(stack, task):
    """Lock --out_dir until `stack` closes, check it, and return its `PartialResults`."""
    args = task.args
    out_dir = make_folder(args.out_dir, '--out_dir')
    stack.enter_context(lock_results(out_dir))
    if not args.overwrite:
        try:
            check_earlier(task)
        except UserError as error:
            raise UserError(f'{error}; use another --out_dir, or --overwrite') from None
    check_results(out_dir, RESULTS, 'results.json', args.overwrite)
    if args.report:
        check_results(out_dir / 'report', report.RESULTS, 'report.json', args.overwrite)
    work = {**task.protocol, 'batch_size': args.batch_size, 'metrics': args.metrics,
            'first_video': first_video(task)}
    return PartialResults(out_dir / '.results.partial', work, args.overwrite)


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
    before, now = EARLIER | flatten(earlier['protocol']), flatten(task.protocol)
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
    fvd = {f'fvd {name}': value for name, value in protocol.get('fvd', {}).items()
           if name not in ('weights', 'note')}  # of which weights_sha256 tells all
    return {name: value for name, value in protocol.items() if name != 'fvd'} | fvd


# Messages

def announce(task, partial, world):
    """Print what is about to be computed."""
    args = task.args
    what = f'evaluating {args.baseline or args.model_name} on {describe(task.scorer.device)}'
    if world.size > 1:
        what += f' and {world.size - 1} more'
    precision = ', networks in bfloat16' if args.torch_amp else ''
    task.scorer.announce(what, f', {count(args.n_samples, "sample")}, '
                               f'{count(args.n_euler_steps, "Euler step")} per frame, '
                               f'seed {args.test_seed}{precision}')
    if task.fvd is not None:
        announce_fvd(task)
    note_better_checkpoint(args)
    if partial.scores:
        print(f'continuing: {n_done(task, partial)} are done', flush=True)


def announce_fvd(task):
    p = task.protocol['fvd']
    backend = 'TensorFlow' if p['backend'] == 'tfhub' else 'PyTorch'
    given = count(task.args.nt_cond, 'conditioning frame')
    print(f'FVD: {p["frames"]} frames, {given} included, '
          f'{p["resolution"][0]} x {p["resolution"][1]}, {p["clips"]} clips, '
          f'{count(p["samples"], "random sample")}, seed {p["seed"]}\n'
          f'     {p["embedding"]}, {backend}, weights {p["weights_sha256"]}', flush=True)
    if p['note']:
        print(f'     note: {p["note"]}', flush=True)


def note_better_checkpoint(args):
    """Print a note if the run has a checkpoint that was better in validation."""
    best = Path(args.xp_dir) / 'model_best.pt'
    if args.baseline or args.model_name != 'model.pt' or not best.exists():
        return
    try:
        _, validation = read_log(args.xp_dir)
    except UserError:
        return  # not a run of train.py
    scores = [row['val_psnr'] for row in validation]
    if scores and max(map(float, scores)) > float(scores[-1]):
        print(f'note: model_best.pt was better in validation, {max(map(float, scores)):.2f} dB '
              f'against {float(scores[-1]):.2f} dB; --model_name model_best.pt evaluates it',
              file=sys.stderr)


def n_done(task, partial):
    """How many videos are done, for messages."""
    done = sum(len(task.scorer.batches()[k]) for k in partial.scores)
    return f'{done:,} of {count(task.scorer.n_videos, "video")}'
