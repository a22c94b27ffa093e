"""Random numbers and devices."""

import contextlib
import ctypes

import numpy as np
import torch

from files import UserError, check_memory

# Random numbers

# Of videos to train, validate and test on, of noise by training step, of damage by run
STREAMS = {'train': 0, 'val': 1, 'test': 2, 'noise': 3, 'damage': 4}


def stream_rng(seed, stream, index):
    """Random generator for item `index` of a stream (see `STREAMS`), independent of all others.

    Philox is counter-based: each key starts a sequence of its own, at no cost.

    Returns
    -------
    np.random.RandomState
    """
    key = np.array([seed, (STREAMS[stream] << 56) + index], np.uint64)
    return np.random.RandomState(np.random.Philox(key=key))


def stream_generator(seed, stream, index):
    """Like `stream_rng`, but a PyTorch generator on the CPU."""
    seed = int(stream_rng(seed, stream, index).randint(2 ** 63, dtype=np.int64))
    return torch.Generator().manual_seed(seed)


# Devices

def get_device(index, allow_tf32=False):
    """Set up the device of `--device`: None or 'cpu', or the index of a CUDA device.

    On CPUs, freed memory is kept for reuse (`keep_memory`); on GPUs, cuDNN uses TF32 only if it
    is allowed.
    """
    if index in (None, 'cpu'):
        keep_memory()
        return torch.device('cpu')
    found = torch.cuda.device_count()
    if not 0 <= index < found:
        raise UserError(f'--device {index}: {found} CUDA devices found; '
                        'choose one of them, or --device cpu')
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.cuda.set_device(index)
    return torch.device('cuda', index)


def keep_memory():
    """Make glibc keep freed memory for reuse instead of returning large blocks to the system.

    The kernel zeroes every page that it hands out, an eighth of the time of I3D on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    # The second is the maximum of older versions
    if mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25):
        mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


def release_memory():
    """Return freed memory to the system: kept for long, it becomes fragmented and grows."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def require_memory(needed, device, advice):
    """Raise a UserError if a lower bound of the memory needed, in bytes, exceeds a device's."""
    if device.type == 'cuda':
        check_memory(needed, advice, torch.cuda.mem_get_info(device)[1], 'the GPU')
    else:
        check_memory(needed, advice)


def describe(device):
    """Name of a device, for messages."""
    if device.type == 'cuda':
        return f'{device} ({torch.cuda.get_device_name(device)})'
    return f'CPU ({torch.get_num_threads()} threads)'


def to_video(batch, device):
    """Float videos (T, B, C, H, W) in [0, 1] on `device`, from uint8 (T, B, H, W, C)."""
    return batch.to(device, non_blocking=True).permute(0, 1, 4, 2, 3).float() / 255


def check_compile(device):
    """Raise a UserError if torch.compile fails, as on a CPU without a C++ compiler."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # compilers fail in many ways
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f'--compile: torch.compile does not work here '
                        f'({[*lines, type(error).__name__][0]}); leave the option out') from None
