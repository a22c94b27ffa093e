"""The state on disk from which a run continues (`state.pt`)."""

import os
from pathlib import Path

import torch

from args import FREE_ON_RESUME, config_dict
from checkpoint import load, save, write
from files import UserError, count, replacing


def describe_split(processes, accumulate):
    """What a batch is split into, for messages."""
    text = count(processes, 'process', 'processes')
    return text if accumulate == 1 else f'{text} with {accumulate} parts each'


FORMAT = 2  # of state.pt; 1 had neither this number nor the configuration


def identity(config):
    """What a run cannot change when it is resumed, as it stands in its state."""
    return {k: v for k, v in config_dict(config).items() if k not in FREE_ON_RESUME}


def check_identity(state, config):
    """Raise a ValueError if a state belongs to a run of another configuration."""
    if (found := state.get('format', 1)) not in (1, FORMAT):
        raise ValueError(f'its format is {found}, expected {FORMAT}')
    expected, found = identity(config), state.get('config', {})
    for key in sorted(expected.keys() & found.keys()):
        if found[key] != expected[key]:
            raise ValueError(f'it has {key} {found[key]}, config.json has {expected[key]}')


def write_state(folder, state):
    """Write a state as `state.pt`, and its weights alone as `model.pt`.

    The state is written first and renamed last: a run killed in between repeats both, and if it
    was its first state, the temporary one is complete (`read_state`).
    """
    with replacing(folder / 'state.pt') as tmp:
        write(tmp, state)
        save(folder / 'model.pt', state['model'])


def read_state(folder):
    """State of a run to continue, None if it ended before saving its first one.

    Raises
    ------
    UserError
        There are weights, which must not be lost, but no state that belongs to them.
    """
    folder = Path(folder)
    path, model = folder / 'state.pt', folder / 'model.pt'
    if path.exists() or not model.exists():
        remove_temporary(folder)
        return load(path) if path.exists() else None
    for tmp in folder.glob('.state.pt.*.tmp'):  # killed while saving its first state
        state = load(tmp)
        os.replace(tmp, path)
        return state
    raise UserError(f'--resume: {path} is missing, without which a run cannot be continued; '
                    f'start a new one in another folder with --weights {model}')


def remove_temporary(folder):
    """Remove what a run that was killed while saving left; other scripts' files stay."""
    for name in ('state.pt', 'model*.pt', 'log.csv', 'validation.csv', 'config.json'):
        for tmp in folder.glob(f'.{name}.*.tmp'):
            tmp.unlink()
    for tmp in folder.glob('validation/.step_*.tmp'):
        tmp.unlink()


def restore_optimizer(optimizer, state, scaled):
    """Restore Adam's moments, which fused Adam does not check; its options stay.

    A run with `scaled` gradients may have none yet, if it skipped all its steps.
    """
    if state['state'] or not scaled:
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        for i, p in enumerate(parameters):
            found = {k: (tuple(v.shape), v.dtype) for k, v in state['state'][i].items()}
            moment = tuple(p.shape), p.dtype
            expected = {'step': ((), torch.float32), 'exp_avg': moment, 'exp_avg_sq': moment}
            if found != expected:
                raise ValueError(f'optimizer: parameter {i} has {found}, expected {expected}')
    groups = optimizer.state_dict()['param_groups']
    optimizer.load_state_dict({'state': state['state'], 'param_groups': groups})
