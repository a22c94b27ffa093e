"""Weights of I3D: where they are, what they are, and their conversion from the TF-Hub module."""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from files import UserError, WriteError
from metrics.fvd import tfhub
from metrics.fvd.i3d import N_LOGITS, units
from checkpoint import load, save

URL = 'https://tfhub.dev/deepmind/i3d-kinetics-400/1?tf-hub-format=compressed'
ARCHIVE = 'i3d-kinetics-400_1.tar.gz'  # what it is saved as
# Searched in the cache, in this order
NAMES = ('i3d-kinetics-400_1.pt', 'i3d-kinetics-400_1', ARCHIVE, 'i3d_pretrained_400.pt', 'rgb_imagenet.pt')
SOURCE = 'converted_from'  # entry of a converted .pt file, beside the weights: SHA-256 of the module

BRANCHES = {'b0': 'Branch_0/Conv3d_0a_1x1', 'b1a': 'Branch_1/Conv3d_0a_1x1', 'b1b': 'Branch_1/Conv3d_0b_3x3',
            'b2a': 'Branch_2/Conv3d_0a_1x1', 'b2b': 'Branch_2/Conv3d_0b_3x3', 'b3b': 'Branch_3/Conv3d_0b_1x1'}


def parameters():
    """Parameters of the network: (name in the PyTorch port, name of the TensorFlow variable, shape in the port)."""
    table = []
    for name, shape in units().items():
        block, _, unit = name.partition('.')
        scope = f'RGB/inception_i3d/{block}/' + (f'{BRANCHES[unit]}/' if unit else '')
        if name == 'Mixed_5b.b2b':
            scope = scope.replace('0b_3x3', '0a_3x3')  # so named in the module
        table.append((f'{name}.conv3d.weight', f'{scope}conv_3d/w', shape))
        table += [(f'{name}.bn.{ours}', f'{scope}batch_norm/{theirs}', shape[:1]) for ours, theirs in
                  (('bias', 'beta'), ('running_mean', 'moving_mean'), ('running_var', 'moving_variance'))]
    scope = 'RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/'
    return table + [('logits.conv3d.weight', f'{scope}w', (N_LOGITS, 1024, 1, 1, 1)), ('logits.conv3d.bias', f'{scope}b', (N_LOGITS,))]


def from_tensorflow(variables, source):
    """Parameters by the names of the port, of the module's variables (arrays by name), read from `source`."""
    state = {}
    for name, variable, shape in parameters():
        if variable not in variables:
            raise UserError(f'{source} has no variable {variable}: it is not the I3D of Kinetics-400; get it from {URL}')
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
    """Stop unless `state` holds I3D's parameters by the names of the port. Returns all its tensors, as float32."""
    for name, _, shape in parameters():
        value = state.get(name) if isinstance(state, dict) else None
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
            found = f'of shape {tuple(value.shape)}' if isinstance(value, torch.Tensor) else 'missing'
            raise UserError(f'{source} does not hold the I3D of Kinetics-400: {name} is {found}, expected {shape}')
        scale = state.get(name.replace('.bn.bias', '.bn.weight')) if name.endswith('.bn.bias') else None
        if scale is not None and not (isinstance(scale, torch.Tensor) and (scale == 1).all()):
            raise UserError(f'{source} is an I3D trained further: {name.replace("bias", "weight")} is not 1 everywhere, as in the network of '
                            'the published scores')
    return {name: value.detach().float() for name, value in state.items() if isinstance(value, torch.Tensor)}


def cache_folder():
    """$SRVP_CACHE, by default ~/.cache/srvp."""
    return Path(os.environ.get('SRVP_CACHE') or Path.home() / '.cache' / 'srvp')


def find(path=None, backend='torch', option='--i3d_path'):
    """Path of the weights: `path`, given by `option`, or what is in the cache. UserError if they are nowhere or not of the kind needed."""
    module_only = option != '--i3d_path'
    if path is not None:
        path = Path(path)
        if not path.exists():
            raise UserError(f'{option} {path} does not exist; name the TF-Hub module (folder or archive)' + ' or a .pt file of I3D' * (not module_only))
        if not tfhub.is_module(path) and (path.is_dir() or backend == 'tfhub'):
            raise UserError(f'{option} {path} is no TF-Hub module: a folder with saved_model.pb, or its .tar.gz, is expected'
                            + ('' if module_only else ' by --fvd_backend tfhub' if backend == 'tfhub' else ', or a .pt file'))
        return path
    for name in NAMES:
        found = cache_folder() / name
        if tfhub.is_module(found) or (found.is_file() and backend == 'torch'):
            return found
    raise UserError(f'the Fréchet video distance needs the I3D of Kinetics-400, which is not in {cache_folder()}; download {URL} to '
                    f'{cache_folder() / ARCHIVE}, or name the module{" or a .pt file of I3D" * (not module_only)} by {option}')


def converted_path(module):
    """Where the conversion of a TF-Hub module goes: a .pt file next to it."""
    name = module.resolve().name
    for suffix in ('.tar.gz', '.tgz', '.tar'):
        name = name.removesuffix(suffix)
    return module.resolve().with_name(f'{name}.pt')


def converted_from(path):
    """SHA-256 of the module that a .pt file was converted from, None if there is no such file; UserError if another one is there."""
    if not os.path.lexists(path):
        return None
    try:
        state = load(path)
    except UserError:
        state = None
    if not isinstance(state, dict) or not isinstance(state.get(SOURCE), str):
        raise UserError(f'{path} is in the way of the conversion of the TF-Hub module beside it, and not such a conversion; name it by --i3d_path if '
                        'its weights are wanted, or else move it away')
    return state[SOURCE]


def convert(module, option='--i3d_path'):
    """Convert a TF-Hub module, given by `option`, to a .pt file next to it, unless that is there; TensorFlow is in another process. Returns the file's path."""
    path, digest = converted_path(module), tfhub.module_sha256(module)
    if converted_from(path) == digest:
        return path
    print(f'converting {module} to {path} by TensorFlow', file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as tmp:
        exported = Path(tmp, 'variables.npz')
        tfhub.export(module, exported)
        with np.load(exported, allow_pickle=False) as f:
            state = from_tensorflow({name: f[name] for name in f.files}, module)
    try:
        save(path, {**state, SOURCE: digest})
    except WriteError as error:
        raise UserError(f'{str(error).rpartition("; ")[0]}; copy {module} to a folder of yours and name it by {option}') from None
    return path


def load_state(path):
    """Parameters by the names of the port, of a .pt file or a TF-Hub module, which is converted the first time."""
    if tfhub.is_module(path):
        path = convert(path)
    print(f'I3D: weights of {path}', file=sys.stderr, flush=True)
    return check_state(load(path), path)
