"""Weights of I3D: finding and checking them, and their conversion from the TF-Hub module."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from checkpoint import load, save
from files import UserError, WriteError
from metrics.fvd import tfhub
from metrics.fvd.i3d import N_LOGITS, units

URL = 'https://tfhub.dev/deepmind/i3d-kinetics-400/1?tf-hub-format=compressed'
ARCHIVE = 'i3d-kinetics-400_1.tar.gz'  # file name of the download
# Searched in the cache, in this order
NAMES = ('i3d-kinetics-400_1.pt', 'i3d-kinetics-400_1', ARCHIVE, 'i3d_pretrained_400.pt',
         'rgb_imagenet.pt')
SOURCE = 'converted_from'  # entry of a converted .pt file: SHA-256 of the module

BRANCHES = {'b0': 'Branch_0/Conv3d_0a_1x1/', 'b1a': 'Branch_1/Conv3d_0a_1x1/',
            'b1b': 'Branch_1/Conv3d_0b_3x3/', 'b2a': 'Branch_2/Conv3d_0a_1x1/',
            'b2b': 'Branch_2/Conv3d_0b_3x3/', 'b3b': 'Branch_3/Conv3d_0b_1x1/', '': ''}
BATCH_NORM = {'bias': 'beta', 'running_mean': 'moving_mean', 'running_var': 'moving_variance'}


# Names: the PyTorch port in circulation (used here) and TensorFlow

def parameters():
    """Parameters of I3D: list of (name in PyTorch, name in TensorFlow, shape in PyTorch)."""
    table = []
    for name, shape in units().items():
        block, _, unit = name.partition('.')
        scope = f'RGB/inception_i3d/{block}/{BRANCHES[unit]}'
        if name == 'Mixed_5b.b2b':
            scope = scope.replace('0b_3x3', '0a_3x3')  # irregular in the module
        table.append((f'{name}.conv3d.weight', f'{scope}conv_3d/w', shape))
        table += [(f'{name}.bn.{ours}', f'{scope}batch_norm/{theirs}', shape[:1])
                  for ours, theirs in BATCH_NORM.items()]
    scope = 'RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/'
    return table + [('logits.conv3d.weight', f'{scope}w', (N_LOGITS, 1024, 1, 1, 1)),
                    ('logits.conv3d.bias', f'{scope}b', (N_LOGITS,))]


def from_tensorflow(variables, source):
    """Parameters by PyTorch name, from variables (arrays by name) read from `source`."""
    state = {}
    for name, variable, shape in parameters():
        if variable not in variables:
            raise UserError(f'{source} has no variable {variable}: it is not the I3D of '
                            f'Kinetics-400; get it from {URL}')
        value = torch.from_numpy(np.asarray(variables[variable], np.float32))
        value = value.permute(4, 3, 0, 1, 2) if variable.endswith('/w') else value.flatten()
        state[name] = value.contiguous()
        if name.endswith('.bn.bias'):
            state[name.replace('bias', 'weight')] = torch.ones(shape)
    return check_state(state, source)


def to_tensorflow(state):
    """Inverse of `from_tensorflow`."""
    variables = {}
    for name, variable, _ in parameters():
        value = state[name].float().numpy()
        if variable.endswith('/w'):
            value = value.transpose(2, 3, 4, 1, 0)
        elif '/batch_norm/' in variable:
            value = value.reshape(1, 1, 1, 1, -1)
        variables[variable] = value
    return variables


def sha256(state):
    """SHA-256 of the weights, the same in all their forms."""
    return tfhub.variables_sha256(to_tensorflow(state))


def check_state(state, source):
    """Raise a UserError unless `state`, read from `source`, holds I3D by PyTorch names.

    Returns
    -------
    dict of float32 tensors
    """
    for name, _, shape in parameters():
        value = state.get(name) if isinstance(state, dict) else None
        is_tensor = isinstance(value, torch.Tensor)
        if not is_tensor or tuple(value.shape) != shape:
            found = f'of shape {tuple(value.shape)}' if is_tensor else 'missing'
            raise UserError(f'{source} does not hold the I3D of Kinetics-400: {name} is {found}, '
                            f'expected {shape}')
        if name.endswith('.bn.bias'):
            name = name.replace('bias', 'weight')
            scale = state.get(name, torch.ones(()))  # of batch normalisation; optional
            if not isinstance(scale, torch.Tensor) or (scale != 1).any():
                raise UserError(f'{source} is a fine-tuned I3D: {name} is not 1 everywhere, as in '
                                'the network of the published scores')
    return {name: value.detach().float() for name, value in state.items()
            if isinstance(value, torch.Tensor)}


# Files

def cache_folder():
    """$SRVP_CACHE, by default ~/.cache/srvp."""
    return Path(os.environ.get('SRVP_CACHE') or Path.home() / '.cache' / 'srvp')


def find(path=None, backend='torch', option='--i3d_path'):
    """Path of the weights: `path`, passed as `option`, or by default a file in the cache.

    Raises
    ------
    UserError
        The weights are missing, or cannot be used with the backend ('torch' or 'tfhub').
    """
    wanted = 'the TF-Hub module (folder with saved_model.pb, or its .tar.gz)'
    if backend == 'torch':
        wanted += ' or a .pt file'
    elif option == '--i3d_path':
        wanted += ', for --fvd_backend tfhub'

    def is_usable(path):
        return tfhub.is_module(path) or (path.is_file() and backend == 'torch')
    if path is None:
        cache = cache_folder()
        for name in NAMES:
            if is_usable(cache / name):
                return cache / name
        raise UserError('the Fréchet video distance needs the I3D of Kinetics-400, which is not '
                        f'in {cache}; download {URL} to {cache / ARCHIVE}, or pass {wanted} '
                        f'as {option}')
    path = Path(path)
    if not is_usable(path):
        found = 'is not I3D' if path.exists() else 'does not exist'
        raise UserError(f'{option} {path} {found}; use {wanted}')
    return path


def converted_path(module):
    """Path of the converted module: a .pt file next to it."""
    name = module.resolve().name
    for suffix in ('.tar.gz', '.tgz', '.tar'):
        name = name.removesuffix(suffix)
    return module.resolve().with_name(f'{name}.pt')


def converted_from(path):
    """SHA-256 of the module from which a .pt file was converted; None if there is no file.

    Raises
    ------
    UserError
        There is another file.
    """
    if not os.path.lexists(path):
        return None
    with contextlib.suppress(UserError):
        state = load(path)
        if isinstance(state, dict) and isinstance(state.get(SOURCE), str):
            return state[SOURCE]
    raise UserError(f'{path} is in the way of the conversion of the TF-Hub module next to it; '
                    'pass it as --i3d_path to use its weights, or else move it away')


def convert(module, option='--i3d_path'):
    """Convert a TF-Hub module to a .pt file next to it, unless already done; returns its path.

    `option` names the module in error messages.
    """
    path, digest = converted_path(module), tfhub.module_sha256(module)
    if converted_from(path) == digest:
        return path
    print(f'converting {module} to {path} with TensorFlow', file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as tmp:
        exported = Path(tmp, 'variables.npz')
        tfhub.export(module, exported)
        with np.load(exported, allow_pickle=False) as variables:
            state = from_tensorflow(variables, module)
    try:
        save(path, {**state, SOURCE: digest})
    except WriteError as error:
        reason = str(error).rpartition('; ')[0]
        raise UserError(f'{reason}; copy {module} to a folder of yours and pass it as '
                        f'{option}') from None
    return path


def load_state(path):
    """Parameters by PyTorch name, from a .pt file or a TF-Hub module, converted if need be."""
    if tfhub.is_module(path):
        path = convert(path)
    print(f'I3D: weights of {path}', file=sys.stderr, flush=True)
    return check_state(load(path), path)
