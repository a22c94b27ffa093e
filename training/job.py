"""A training job, from its options to its exit code: what `train.py` does."""

import contextlib
import hashlib
import json
import os
import secrets
import sys
from pathlib import Path

import torch

from args import config_dict, parse_train
from checkpoint import load_model
from data import load_train
from data.stream import BatchStream
from distributed import PER_PROCESS_OPTIONS, join
from files import UserError, WriteError, exclusive, make_folder, write_json
from model import build_model
from sampling import check_memory
from training.loop import NotFinite, Trainer
from training.state import describe_split, read_state
from utils import check_compile, describe, require_memory


def run(argv=None):
    """Train as one of the processes of a job; returns the exit code."""
    with join() as world, contextlib.ExitStack() as stack:
        seed = world.share(secrets.randbelow(2 ** 32))
        config, trainer, state, facts = world.local_main_first(
            lambda: prepare(argv, seed, world, stack))
        world.check_equal(facts, ignore=PER_PROCESS_OPTIONS)
        if config.dry_run:
            dry_run(config, world)
            return 0
        state = world.share(state)
        if state is not None:
            world.local_main_first(lambda: trainer.restore(state))
        world.local_main_first(lambda: begin(config, world, stack))
        return train(trainer, config, world)


def prepare(argv, seed, world, stack):
    """Check the options and the folder; load the data, the model and what the run starts from.

    Only process 0 reads states and weights. `seed` is used if the options have none.

    Returns
    -------
    config : argparse.Namespace
    trainer : Trainer
        None with --dry_run.
    state : dict
        What to resume from, or None.
    facts : dict
        What must be the same in all processes.
    """
    config = parse_train(argv)
    check_batch(config, world)
    if config.seed is None:
        config.seed = seed
    if config.dry_run:
        return config, None, None, vars(config)
    device = world.device(config.device, allow_tf32=True)
    if config.compile:
        check_compile(device)
    check_step_memory(config, device, world)
    check_memory(config, device, config.batch_size_test, config.seq_len_test,
                 config.n_samples_test, config.n_euler_steps,
                 'use a smaller --batch_size_test, --n_samples_test or --seq_len_test')
    if world.main:
        check_folder(config)
        if config.resume:
            lock_folder(config, stack)
    sources = load_train(config)
    trainer = Trainer(config, sources, device, world)
    facts = {**vars(config),
             'a device of type': device.type, 'numbers of type': trainer.precision.name,
             'training videos': fingerprint(sources[0], config),
             'validation videos': fingerprint(sources[1], config)}
    state = read_state(config.save_path) if world.main and config.resume else None
    if world.main and state is None and config.weights:
        weights = load_model(config, config.weights, 'cpu').state_dict()
        trainer.model.load_state_dict(weights)  # DistributedDataParallel copies them
    return config, trainer, state, facts


def check_batch(config, world):
    """Check that each part of a batch has a video."""
    if config.batch_size < world.size * config.accumulate:
        raise UserError(f'--batch_size {config.batch_size}: '
                        f'{describe_split(world.size, config.accumulate)} need at least one video '
                        'each; use a larger batch')


def check_step_memory(config, device, world):
    """Check a lower bound of what a step needs: weights, Adam's moments, widest activations."""
    with torch.device('meta'):
        model = build_model(config)
    videos = max(config.batch_size // (world.size * config.accumulate), 1)
    floats = 4 * n_parameters(model) + videos * config.seq_len * model.decoder.widest
    require_memory(4 * floats, device, 'use a smaller --batch_size, --seq_len or model')


def fingerprint(source, config):
    """Digest of the first videos of a source."""
    videos = BatchStream(source, config.seed, 'train', 2)[range(16)]
    return hashlib.sha256(videos.tobytes()).hexdigest()[:8]


def check_folder(config):
    """Raise a UserError for a folder with another run, or with one that cannot go on there."""
    folder = Path(config.save_path)
    if config.resume:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f'--resume: {folder} is not writable; check its permissions, '
                            'or copy the run to another folder')
        return
    for name in ('config.json', 'state.pt', 'model.pt'):
        if (folder / name).exists():
            raise UserError(f'--save_path {folder} holds another run ({name}); '
                            'continue it with --resume, or use another folder')


def lock_folder(config, stack):
    """Create the run's folder, and keep other training processes out until `stack` closes."""
    lock = make_folder(config.save_path, '--save_path') / '.train.lock'
    message = (f'--save_path {config.save_path}: another process is training there; '
               'stop it, or use another folder')
    stack.enter_context(exclusive(lock, message))
    check_folder(config)  # again: it may have changed since


def begin(config, world, stack):
    """Begin a new run, right before its first step: lock its folder, write its configuration."""
    if world.main and not config.resume:
        lock_folder(config, stack)
        write_json(Path(config.save_path) / 'config.json', config_dict(config))


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def dry_run(config, world):
    """Print the configuration and the size of the model."""
    if world.main:
        with torch.device('meta'):  # takes no memory
            n = n_parameters(build_model(config))
        print(json.dumps(config_dict(config), indent=2))
        print(f'{n:,} parameters; nothing was written (--dry_run)')


def train(trainer, config, world):
    """Run the training to its end, a signal or a failure; returns the exit code."""
    say = print if world.main else lambda *_, **__: None
    if trainer.complete:
        say(f'the run in {config.save_path} is complete: {trainer.step:,} steps')
        return 0
    others = f' and {world.size - 1} more' if world.size > 1 else ''
    say(f'training on {describe(trainer.device)}{others}: '
        f'{n_parameters(trainer.model):,} parameters, '
        f'steps {trainer.step + 1:,} to {trainer.n_steps:,}, {trainer.precision.name}, '
        f'seed {config.seed}, files in {config.save_path}', flush=True)
    try:
        received = trainer.run()
    except NotFinite as error:
        if world.main:
            print(f'error: {error} is not finite; {advise(trainer)}', file=sys.stderr)
        return 1
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        again = 'continue with --resume' if trainer.step > 0 or config.resume else 'start again'
        message = f'a process that loads data died ({error}); {last_state(trainer)}; {again}'
        if world.size > 1:  # ends this process at once, which the others notice
            raise UserError(message) from None
        print(f'error: {message}', file=sys.stderr)
        return 1
    except WriteError as error:
        again = ', then continue with --resume' if trainer.step > 0 or config.resume else ''
        raise UserError(f'{error}{again}') from None
    finally:
        if trainer.step == 0 and world.main and not config.resume:
            remove_run(config.save_path)
    if received is not None:
        launcher = f'torchrun --nproc_per_node={world.local_size}' if world.size > 1 else 'python'
        say(f'stopped after step {trainer.step:,}; continue with: '
            f'{launcher} train.py --resume --save_path {config.save_path}')
        return 128 + received
    say(f'done: best validation PSNR {trainer.best:.2f} dB; '
        f'weights in {config.save_path}: model.pt (last), model_best.pt')
    return 0


def advise(trainer):
    """What to do about a loss or a weight that is not finite."""
    if trainer.step == 0:
        return 'check --obs_scale, --beta_y, --beta_z, --l2_res and --weights'
    return f'{last_state(trainer)}; a lower --lr may help'


def last_state(trainer):
    if trainer.saved is None:
        return 'no state was saved'
    return f'the last good state is of step {trainer.saved[0]:,}'


def remove_run(folder):
    """Remove what a run wrote before its first step, so that it can be started again."""
    folder = Path(folder)
    for pattern in ('config.json', 'log.csv', 'validation.csv', 'events.out.tfevents.*'):
        for path in folder.glob(pattern):
            path.unlink()
