"""Train SRVP: `python train.py --preset smmnist --data_dir DATA --save_path RUN [--device 0]`; see --help and the README.

Several processes: `torchrun --nproc_per_node=2 train.py … --device 0 1`.
"""

import contextlib
import hashlib
import json
import os
import secrets
import sys
from pathlib import Path

import torch

from args import config_dict, parse_train
from data import load_train
from data.stream import BatchStream
from distributed import PER_PROCESS_OPTIONS, join
from files import UserError, WriteError, exclusive, make_folder, run_script, write_json
from model import build_model
from training.loop import NotFinite, Trainer, describe_split, read_state, read_weights
from utils import check_compile, describe, keep_memory


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def fingerprint(source, config):
    """Digest of the first videos of a source: those of the same data are the same on all machines."""
    return hashlib.sha256(BatchStream(source, config.seed, 'train', 2)[range(16)].tobytes()).hexdigest()[:8]


def check_folder(config):
    """Stop at a folder that holds another run, or one that cannot go on there."""
    folder = Path(config.save_path)
    if config.resume and not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f'--resume: {folder} cannot be written to; change that, or copy the run to another folder')
    for name in ('config.json', 'state.pt', 'model.pt'):
        if not config.resume and (folder / name).exists():
            raise UserError(f'--save_path {folder} holds another run ({name}); continue it by --resume, or give another folder')


def hold_folder(config, stack):
    """Be the only process that trains in the run's folder, which is created if need be, until `stack` is closed."""
    lock = make_folder(config.save_path, '--save_path') / '.train.lock'
    stack.enter_context(exclusive(lock, f'--save_path {config.save_path}: another process trains there; end it, or give another folder'))
    stack.callback(lock.unlink, missing_ok=True)
    check_folder(config)  # again, of what came meanwhile


def begin_run(config, stack):
    """Hold the folder of a new run and write its configuration there, the last thing before the first step."""
    hold_folder(config, stack)
    write_json(Path(config.save_path) / 'config.json', config_dict(config))


def resolve(argv, world):
    """Configuration, checked for the processes that there are; `seed` is None if none was given."""
    config = parse_train(argv)
    if config.batch_size < world.size * config.accumulate:
        raise UserError(f'--batch_size {config.batch_size}: {describe_split(world.size, config.accumulate)} need a video each; give a larger batch')
    return config


def main(argv=None):
    with join() as world, contextlib.ExitStack() as stack:
        return train(argv, world, stack)


def train(argv, world, stack):
    """Train as one of the processes of `world`, holding the run's folder until `stack` is closed; returns the exit code."""
    config = world.local_main_first(lambda: resolve(argv, world))
    world.check_equal(vars(config), PER_PROCESS_OPTIONS)
    if config.seed is None:
        config.seed = world.share(secrets.randbelow(2 ** 32))
    say = print if world.main else lambda *_, **__: None
    if config.dry_run:
        say(json.dumps(config_dict(config), indent=2))
        with torch.device('meta'):  # of any size at once
            say(f'{n_parameters(build_model(config)):,} parameters; nothing was written (--dry_run)')
        return 0
    device = world.local_main_first(lambda: world.device(config.device))
    world.check_equal({'a device of type': device.type})
    if device.type == 'cpu':
        keep_memory()
    if config.compile:
        world.local_main_first(lambda: check_compile(device))
    world.local_main_first(lambda: check_folder(config) if world.main else None)
    if config.resume:
        world.local_main_first(lambda: hold_folder(config, stack) if world.main else None)
    state = world.share(world.local_main_first(lambda: read_state(config.save_path) if world.main and config.resume else None))
    weights = world.share(world.local_main_first(lambda: read_weights(config) if world.main and state is None else None))
    sources = world.local_main_first(lambda: load_train(config))
    world.check_equal({f'{name} videos': fingerprint(source, config) for name, source in zip(('training', 'validation'), sources)})
    trainer = world.local_main_first(lambda: Trainer(config, sources, device, world, state, weights))
    world.check_equal({'numbers of type': trainer.precision.name})
    if not config.resume:
        world.local_main_first(lambda: begin_run(config, stack) if world.main else None)
    if trainer.step == trainer.validated == trainer.n_steps:
        say(f'the run in {config.save_path} is complete: {trainer.step:,} steps')
        return 0
    say(f'training on {describe(device)}' + f' and {world.size - 1} more' * (world.size > 1) + f': {n_parameters(trainer.model):,} parameters, steps '
        f'{trainer.step + 1:,} to {trainer.n_steps:,}, {trainer.precision.name}, seed {config.seed}, files in {config.save_path}', flush=True)
    try:
        received = trainer.run()
    except NotFinite as error:
        if world.main:
            last = f'the last good state is of step {trainer.saved[0]:,}' if trainer.saved else 'no state was saved'
            print(f'error: {error} is not finite; {last}; a lower --lr may help', file=sys.stderr)
        return 1
    except WriteError as error:
        raise UserError(f'{error} and continue with --resume') from None
    if received is not None:
        say(f'stopped after step {trainer.step:,}; continue with: '
            + (f'torchrun --nproc_per_node={world.local_size}' if world.size > 1 else 'python') + f' train.py --resume --save_path {config.save_path}')
        return 128 + received
    say(f'done: best validation PSNR {trainer.best:.2f} dB; weights in {config.save_path}: model.pt (last), model_best.pt')
    return 0


if __name__ == '__main__':
    run_script(main)
