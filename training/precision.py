"""Float32, autocast, or NVIDIA apex: the number formats of training."""

import contextlib

import torch

from files import UserError

AMP_DTYPES = {'float16': torch.float16, 'bfloat16': torch.bfloat16}


def has_bfloat16():
    """Whether the CPU has bfloat16 instructions. PyTorch only says so by a private operator."""
    return getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False)()


def amp_dtype(name, device):
    """Half-precision dtype on a device: `name`, or for 'auto' the best that it supports.

    Raises
    ------
    UserError
        The device does not support it.
    """
    if device.type == 'cpu':
        if name == 'float16':
            raise UserError('--amp_dtype float16 needs a CUDA device (--device); '
                            'on a CPU, use --amp_dtype bfloat16')
        if not has_bfloat16():
            raise UserError('--torch_amp: this CPU has no bfloat16 instructions; '
                            'leave the option out')
        return torch.bfloat16
    if name == 'auto':
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        name = 'bfloat16' if has_bf16 else 'float16'
    return AMP_DTYPES[name]


class Precision:
    """Float32, or autocast to half precision, with gradient scaling for float16 only."""

    def __init__(self, device, dtype=torch.float32):
        self.device, self.dtype = device, dtype
        self.name = str(dtype).removeprefix('torch.')
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def autocast(self):
        """Context of a forward pass."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def backward(self, loss, last=True):
        """Accumulate the gradients of a loss; `last` says that `step` comes next."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer):
        """Update the weights; skipped, and the gradient scale reduced, if gradients overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self):
        return self.scaler.state_dict()

    def load_state_dict(self, state):
        if state:  # empty unless gradients were scaled
            self.scaler.load_state_dict(state)


class Apex:
    """NVIDIA apex, with the interface of `Precision`; it modifies model and optimiser.

    Parameters
    ----------
    model : SRVP
    optimizer : torch.optim.Optimizer
    opt_level : {'O0', 'O1', 'O2', 'O3'}
    keep_batchnorm_fp32 : bool, optional
    verbose : bool
    """

    def __init__(self, model, optimizer, opt_level, keep_batchnorm_fp32=None, verbose=False):
        try:
            from apex import amp
        except ImportError:
            raise UserError(
                '--apex_amp needs NVIDIA apex with its module amp, which is not installed: see '
                'https://github.com/NVIDIA/apex (pip install apex is another package); '
                'or use --torch_amp') from None
        self.amp, self.optimizer, self.name = amp, optimizer, f'apex {opt_level}'
        try:
            # Part by part: from O2 on, apex casts inputs and outputs, but does not know NamedTuples
            amp.initialize(list(model.children()), optimizer, opt_level=opt_level,
                           keep_batchnorm_fp32=keep_batchnorm_fp32, verbosity=int(verbose))
        except RuntimeError as error:
            raise UserError(f'--apex_amp: NVIDIA apex refuses the model ({error})') from None

    def autocast(self):
        return contextlib.nullcontext()  # apex patches the functions themselves

    def backward(self, loss, last=True):
        with self.amp.scale_loss(loss, self.optimizer, delay_unscale=not last) as scaled:
            scaled.backward()

    def step(self, optimizer):
        optimizer.step()

    def state_dict(self):
        return self.amp.state_dict()

    def load_state_dict(self, state):
        self.amp.load_state_dict(state)


def build_precision(config, model, optimizer, device):
    """Precision of a configuration, for a model on its device and its optimiser."""
    if config.apex_amp:
        return Apex(model, optimizer, config.amp_opt_lvl, config.keep_batchnorm_fp32,
                    config.apex_verbose)
    dtype = amp_dtype(config.amp_dtype, device) if config.torch_amp else torch.float32
    return Precision(device, dtype)
