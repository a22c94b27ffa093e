"""Checkpoints, random numbers, devices and memory."""

import ctypes
import os

import numpy as np
import torch

from files import UserError, reading, replacing
from model import build_model


# Checkpoints

def write(path, value):
    """Write tensors, in dictionaries and lists, by `torch.save`."""
    try:
        with open(path, 'wb') as f:  # given the path, PyTorch would not tell why it cannot write
            torch.save(value, f)
    except RuntimeError as error:  # of the end of its file, after that of the system
        raise error.__context__ if isinstance(error.__context__, OSError) else error


def save(path, value):
    """As `write`, but `path` is never seen half-written."""
    with replacing(path) as tmp:
        write(tmp, value)


def load(path):
    """Read what `save` wrote, on the CPU. The file is untrusted: tensors and plain values only."""
    if not os.path.exists(path):
        raise UserError(f'{path} does not exist')
    with reading(path, 'is not a file of weights that can be read safely', 'take another one'):
        value = torch.load(path, map_location='cpu', weights_only=True)
        for name, v in value.items() if isinstance(value, dict) else ():
            if isinstance(v, torch.Tensor) and (v.layout != torch.strided or v.is_meta or v.is_quantized or v.is_complex()):
                raise ValueError(f'{name} is a sparse, meta, quantised or complex tensor')
        return value


def load_weights(model, path):
    """Load a published or own checkpoint, a plain `state_dict`, into `model`; one on the meta device gets memory once the weights fit."""
    state = load(path)
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        raise UserError(f'{path} is not a plain state_dict: tensors by parameter name are expected')
    expected = model.state_dict()
    wrong = sorted({k for k in expected.keys() | state.keys()
                    if k not in state or k not in expected or state[k].shape != expected[k].shape
                    or state[k].is_floating_point() != expected[k].is_floating_point()})
    if wrong:
        raise UserError(f'{path} does not fit the configuration: {len(wrong)} of {len(expected)} parameters are missing, '
                        f'unknown or of another shape or kind, the first is {wrong[0]}; check that config.json belongs to it')
    if next(model.parameters()).is_meta:
        model.to_empty(device='cpu')  # in the same layout
    model.load_state_dict(state)


def load_model(config, path, device):
    """Trained SRVP model of a configuration, with the weights at `path`, in evaluation mode, without gradients."""
    with torch.device('meta'):  # sizes of a foreign config.json may be absurd: no memory before the weights are seen to fit, no time to initialise
        model = build_model(config)
    load_weights(model, path)
    return model.to(device).eval().requires_grad_(False)


# Random numbers

STREAMS = {'train': 0, 'val': 1, 'test': 2, 'noise': 3, 'damage': 4}


def stream_rng(seed, stream, index):
    """Random numbers of item `index` of a stream: a function of the three alone.

    The streams are the videos of 'train', 'val' and 'test', the 'noise' of each training step, and the 'damage' of each run (`damage.py`).

    Philox is counter-based: each key gives an independent sequence at no cost, so that item 10⁶ needs none before it.

    Returns
    -------
    np.random.RandomState
    """
    return np.random.RandomState(np.random.Philox(key=np.array([seed, (STREAMS[stream] << 56) + index], np.uint64)))


def stream_generator(seed, stream, index):
    """As `stream_rng`, but a PyTorch generator on the CPU."""
    return torch.Generator().manual_seed(int(stream_rng(seed, stream, index).randint(2 ** 63, dtype=np.int64)))


# Devices

def get_device(index):
    """Device of `--device`: None or 'cpu' is the CPU, a number a CUDA device."""
    if index in (None, 'cpu'):
        return torch.device('cpu')
    found = torch.cuda.device_count()
    if not 0 <= index < found:
        raise UserError(f'--device {index}: {found} CUDA devices found; give one of them, or --device cpu')
    return torch.device('cuda', index)


def describe(device):
    """Name of a device for people."""
    if device.type == 'cuda':
        return f'{device} ({torch.cuda.get_device_name(device)})'
    return f'CPU ({torch.get_num_threads()} threads)'


def to_video(batch, device):
    """Videos of a loader, uint8 (T, B, H, W, C), on `device` as float in [0, 1], (T, B, C, H, W)."""
    return batch.to(device, non_blocking=True).permute(0, 1, 4, 2, 3).float() / 255


def check_compile(device):
    """Stop if torch.compile does not work on a device, as without a C++ compiler on CPUs."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # of many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(f'--compile: torch.compile does not work here ({lines[0]}); leave the option out') from None


# Memory

def keep_memory():
    """Let the C library keep freed memory for later use instead of returning large blocks to the system one by one (glibc).

    Each block obtained anew is cleared page by page, which takes an eighth of the time of I3D on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    if mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25):  # the latter is the most that older ones take
        mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)
