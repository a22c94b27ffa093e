"""Random streams, devices, and weights on disk."""

import contextlib
import ctypes
import zipfile

from files import UserError, count, reading, replacing

import numpy as np
import torch

from model import build_model

# Random numbers

# Of videos to train, validate and test on, of noise by training step, of damage by run
STREAMS = {'train': 0, 'val': 1, 'test': 2, 'noise': 3, 'damage': 4}


def stream_rng(seed, stream, index):
    """`RandomState` for item `index` of a stream (see `STREAMS`), independent of all others.

    Philox is counter-based: each key starts a sequence of its own, at no cost.
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
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        # The second is the maximum of older versions
        if mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25):
            mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


def release_memory():
    """Return freed memory to the system: kept for long, it becomes fragmented and grows."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def describe(device):
    """Name of a device, for messages."""
    if device.type == 'cuda':
        return f'{device} ({torch.cuda.get_device_name(device)})'
    return f'CPU ({count(torch.get_num_threads(), "thread")})'


def has_bfloat16(device):
    """Whether a device computes in bfloat16. For CPUs, PyTorch says so by a private operator."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False)()


def half_dtype(name, device):
    """Half-precision dtype on a device: 'bfloat16', 'float16' or 'auto', the best one."""
    if name == 'auto':
        name = 'bfloat16' if device.type == 'cpu' or has_bfloat16(device) else 'float16'
    possible = has_bfloat16(device) if name == 'bfloat16' else device.type == 'cuda'
    if not possible:
        raise UserError(f'--torch_amp: this {device.type.upper()} does not compute in {name}; '
                        'leave it out, or use another --amp_dtype')
    return getattr(torch, name)


def to_video(batch, device):
    """Float videos (T, B, C, H, W) in [0, 1] on `device`, from uint8 (T, B, H, W, C)."""
    return batch.to(device, non_blocking=True).permute(0, 1, 4, 2, 3).float() / 255


# Weights on disk

def save(path, value):
    """Write tensors, in dictionaries and lists; `path` is never seen half-written."""
    with replacing(path) as tmp:
        try:
            with open(tmp, 'wb') as f:  # given a path, PyTorch hides why it cannot write
                torch.save(value, f)
        except RuntimeError as error:
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load(path):
    """Read what `save` wrote, on the CPU. Untrusted: only tensors and plain values are read."""
    with open(path, 'rb') as f:
        begin = f.read(64).lstrip()
    with reading(path, 'is not a readable weights file', 'use another one'):
        if begin.startswith((b'version https://git-lfs', b'<')):
            what = 'web page' if begin.startswith(b'<') else 'Git LFS pointer'
            raise ValueError(f'it is a {what}: download the file itself')
        if zipfile.is_zipfile(path):  # PyTorch does not look at the checksums
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f'the checksum of {damaged} in it is wrong')
        return torch.load(path, map_location='cpu', weights_only=True)


def load_weights(model, path):
    """Load a `state_dict` into `model`, which may be on the meta device.

    Parameter names may have the prefixes of DistributedDataParallel and torch.compile.
    """
    state, expected = load(path), model.state_dict()
    advice = 'use the options of its own training, such as --nf, or the config.json beside it'
    with reading(path, 'does not fit the configuration', advice):
        if not (isinstance(state, dict)
                and all(isinstance(value, torch.Tensor) for value in state.values())):
            raise ValueError('it is no plain state_dict, as model.pt')
        state = {name.replace('_orig_mod.', '').removeprefix('module.'): value
                 for name, value in state.items()}
        found, needed = ({name: tuple(value.shape) for name, value in s.items()}
                         for s in (state, expected))
        if wrong := sorted(k for k in found | needed if found.get(k) != needed.get(k)):
            raise ValueError(
                f'{len(wrong)} of {len(expected)} parameters differ, as {wrong[0]}: '
                f'{found.get(wrong[0], "missing")}, expected {needed.get(wrong[0], "none")}')
        for name, value in state.items():
            if not value.isfinite().all():
                raise ValueError(f'{name} has values that are not finite')
            state[name] = value.to(expected[name].dtype)
    # Assigned rather than copied: a model on the meta device has no memory to copy to
    model.load_state_dict(state, assign=True)
    model.to(memory_format=torch.channels_last)


def load_model(config, path, device):
    """Trained SRVP model of a configuration, in evaluation mode, without gradients."""
    with torch.device('meta'):  # initialising takes time
        model = build_model(config)
    load_weights(model, path)
    return model.to(device).eval().requires_grad_(False)
