"""Weights of I3D: finding, downloading and checking them, and their conversion from TF-Hub."""

import contextlib
import hashlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from checkpoint import load, save
from download import DownloadError, fetch
from files import UserError, WriteError, exclusive, make_folder
from metrics.fvd import tfhub
from metrics.fvd.i3d import N_LOGITS, units

# The TF-Hub module: its archive, and its address for tensorflow_hub
URL = 'https://storage.googleapis.com/tfhub-modules/deepmind/i3d-kinetics-400/1.tar.gz'
SHA256 = 'bafe29bb4528badad428207d8fe86ca2a998b5b1386b82e42175339f12ea2ff5'
HANDLE = 'https://tfhub.dev/deepmind/i3d-kinetics-400/1'

ARCHIVE, CONVERTED = 'i3d-kinetics-400_1.tar.gz', 'i3d-kinetics-400_1.pt'  # in the cache
# Searched in the cache, in this order
NAMES = CONVERTED, 'i3d-kinetics-400_1', ARCHIVE, 'i3d_pretrained_400.pt'
SOURCE = 'converted_from'  # entry of a converted .pt file: SHA-256 of the module

PATIENCE = 10           # seconds for a server to answer
DOWNLOAD_TIME = 30 * 60  # seconds that the download of another process may take

# Files in circulation, by the blob id that Git gives them
KNOWN = {
    # Of VideoGPT and TATS, converted from the TF-Hub module
    'a867b87ac3a9097d200598b1d48a1b890d8ec744': 'i3d_pretrained_400.pt',
    # The weights released with the paper of I3D, which are not those of the TF-Hub module
    '73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a': 'rgb_imagenet.pt',
    # Of StyleGAN-V, converted from the TF-Hub module; a TorchScript program
    '93daef59c7ae0e9e8f76225521407e60cbafa6aa': 'i3d_torchscript.pt'}
NOTES = {  # by identity of the weights
    'published': None,
    'other': 'the weights of I3D are not those of published distances, '
             'which cannot be compared with this one',
    'unknown': 'the weights of I3D are of unknown origin: whether published distances can be '
               'compared with this one, python -m metrics.fvd --check tells'}

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


def blob_id(path):
    """Id that Git gives to a file: SHA-1 of `blob <size>`, a zero byte and the content."""
    digest = hashlib.sha1(f'blob {path.stat().st_size}\0'.encode(), usedforsecurity=False)
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_usable(path, backend):
    """Whether a path may be that of weights for a backend ('torch' or 'tfhub')."""
    return tfhub.is_module(path) or (path.is_file() and backend == 'torch')


def find(path=None, backend='torch', option='--i3d_path'):
    """Path of the weights: `path`, passed as `option`, or by default in the cache or downloaded.

    Raises
    ------
    UserError
        The weights are missing, or cannot be used with the backend ('torch' or 'tfhub').
    """
    if path is None:
        return search(backend) or obtain(backend, option)
    path = Path(path)
    if not is_usable(path, backend):
        wanted = 'the TF-Hub module (folder with saved_model.pb, or its .tar.gz)'
        if backend == 'torch':
            wanted += ' or a .pt file'
        elif option == '--i3d_path':
            wanted += ', for --fvd_backend tfhub'
        found = 'is not I3D' if path.exists() else 'does not exist'
        raise UserError(f'{option} {path} {found}; use {wanted}')
    return path


def search(backend):
    """Path of the weights in the cache, None if there are none."""
    for name in NAMES:
        path = cache_folder() / name
        if is_usable(path, backend):
            content = 'TF-Hub module' if tfhub.is_module(path) else KNOWN.get(blob_id(path))
            if content not in ('rgb_imagenet.pt', 'i3d_torchscript.pt'):
                return path
            print(f'note: {path} is not used: it is a copy of {content}', file=sys.stderr)
    return None


def obtain(backend, option):
    """Path of the weights, downloaded by this process or by another one just before."""
    cache = make_folder(cache_folder(), '$SRVP_CACHE')
    print(f'I3D is not in {cache}', file=sys.stderr, flush=True)
    message = f'another process is still downloading I3D to {cache}; wait for it, and run again'
    with exclusive(cache / '.i3d.lock', message, DOWNLOAD_TIME):
        return search(backend) or download(backend, option)


def download(backend, option):
    """Path of the downloaded weights: an archive, or else what tensorflow_hub finds."""
    archive = cache_folder() / ARCHIVE
    print(f'downloading it (about 50 MB) from {URL}', file=sys.stderr, flush=True)
    try:
        fetch(URL, archive, sha256=SHA256, patience=PATIENCE)
        return archive
    except DownloadError as error:
        first = error
    print(f'{first.reason}; trying {HANDLE} with tensorflow_hub', file=sys.stderr, flush=True)
    try:
        module = tfhub.resolve(HANDLE)
    except UserError as error:
        third = '' if backend == 'tfhub' else ', or i3d_pretrained_400.pt of VideoGPT,'
        raise UserError(
            f'I3D is not in {archive.parent}, and cannot be had from {URL} ({first.reason[:80]}), '
            f'nor with tensorflow_hub from {HANDLE} ({str(error)[:80]}); get the first file on '
            f'another machine{third} and pass it as {option}') from None
    return module if backend == 'tfhub' else convert(module, option)


def converted_path(module):
    """Path of the converted module: a .pt file next to it.

    The cache of tensorflow_hub may be temporary or read-only: its module goes to ours.
    """
    if module.name == hashlib.sha1(HANDLE.encode(), usedforsecurity=False).hexdigest():
        return make_folder(cache_folder(), '$SRVP_CACHE') / CONVERTED
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
    raise UserError(f'{path} is in the way of the conversion of the TF-Hub module; pass '
                    'it as --i3d_path to use its weights, or else move it away')


def convert(module, option='--i3d_path'):
    """Convert a TF-Hub module to a .pt file, unless already done; returns its path.

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


def load_state(path, other=False):
    """Read a .pt file, or a TF-Hub module, converted if need be.

    Parameters
    ----------
    path : Path
    other : bool
        Whether weights are accepted that are known not to be those of published distances.

    Returns
    -------
    state : dict of tensors
        Parameters by PyTorch name.
    identity : {'published', 'other', 'unknown'}
        Whether they are the weights of published distances.
    """
    if tfhub.is_module(path):
        path = convert(path)
    name = KNOWN.get(blob_id(path))
    good = 'the TF-Hub module or i3d_pretrained_400.pt of VideoGPT'
    if name == 'i3d_torchscript.pt':
        raise UserError(f'{path} is i3d_torchscript.pt of StyleGAN-V, which is a program rather '
                        f'than weights; use {good}, which have the same weights')
    if name == 'rgb_imagenet.pt' and not other:
        raise UserError(f'{path} is rgb_imagenet.pt, whose weights are not those of published '
                        f'distances; use {good}, or add --i3d_other if that does not matter')
    print(f'I3D: weights of {path}', file=sys.stderr, flush=True)
    content = load(path)
    state = check_state(content, path)
    if name == 'rgb_imagenet.pt':
        return state, 'other'
    return state, 'published' if name or SOURCE in content else 'unknown'
