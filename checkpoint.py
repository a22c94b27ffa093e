"""Weights on disk: write and read tensors, load models."""

import os
import zipfile

import torch

from files import UserError, check_archive, reading, replacing
from model import build_model


def write(path, value):
    """Write tensors, in dictionaries and lists, with `torch.save`."""
    try:
        with open(path, 'wb') as f:  # given a path, PyTorch hides why it cannot write
            torch.save(value, f)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # the cause
            raise error.__context__ from None
        raise


def save(path, value):
    """Like `write`, but `path` is never seen half-written."""
    with replacing(path) as tmp:
        write(tmp, value)


def load(path):
    """Read what `save` wrote, on the CPU. Untrusted: only tensors and plain values are read."""
    if not os.path.exists(path):
        raise UserError(f'{path} does not exist')
    with reading(path, 'is not a readable weights file', 'use another one'):
        if zipfile.is_zipfile(path):  # not those of PyTorch before 1.6
            check_archive(path)
        value = torch.load(path, map_location='cpu', weights_only=True)
        for name, v in value.items() if isinstance(value, dict) else ():
            if isinstance(v, torch.Tensor) and not is_plain(v):
                raise ValueError(f'{name} is a sparse, meta, quantised or complex tensor')
        return value


def is_plain(tensor):
    """Whether a tensor is a dense array of real numbers."""
    return (tensor.layout == torch.strided
            and not (tensor.is_meta or tensor.is_quantized or tensor.is_complex()))


def load_weights(model, path):
    """Load a `state_dict` into `model`, which may be on the meta device."""
    state = load(path)
    if not (isinstance(state, dict) and all(
            isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())):
        raise UserError(f'{path} is not a plain state_dict (tensors by parameter name)')
    expected = model.state_dict()
    wrong = sorted(k for k in expected.keys() | state.keys()
                   if not fits(state.get(k), expected.get(k)))
    if wrong:
        raise UserError(
            f'{path} does not fit the configuration: {len(wrong)} of {len(expected)} parameters '
            f'are missing, unexpected or of another shape or type, the first is {wrong[0]}; '
            'check that config.json belongs to it')
    check_values(state, path)
    # Assigned rather than copied: a model on the meta device has no memory to copy to
    state = {name: value.to(expected[name].dtype) for name, value in state.items()}
    model.load_state_dict(state, assign=True)
    model.to(memory_format=torch.channels_last)


def check_values(state, path):
    """Raise a UserError unless all values are finite and variances not negative."""
    for name, value in state.items():
        if not value.isfinite().all():
            raise UserError(f'{path}: {name} has values that are not finite; use other weights')
        if name.endswith('running_var') and (value < 0).any():
            raise UserError(f'{path}: {name} has negative variances; use other weights')


def fits(found, expected):
    """Whether a tensor can be loaded in place of another; either may be None (missing)."""
    return (found is not None and expected is not None and found.shape == expected.shape
            and found.is_floating_point() == expected.is_floating_point())


def load_model(config, path, device):
    """Trained SRVP model of a configuration, in evaluation mode, without gradients."""
    # Initialising takes time, and an untrusted config.json may ask for more memory than there is
    with torch.device('meta'):
        model = build_model(config)
    load_weights(model, path)
    return model.to(device).eval().requires_grad_(False)
