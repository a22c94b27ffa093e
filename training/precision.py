"""Numbers that training computes with: float32, half precision by PyTorch (autocast) or by NVIDIA apex."""

import contextlib

import torch

from files import UserError

AMP_DTYPES = {'float16': torch.float16, 'bfloat16': torch.bfloat16}


def has_bfloat16():
    """Whether the CPU computes with bfloat16; PyTorch tells by a private operator, which may go."""
    return getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False)()


def amp_dtype(name, device):
    """Type of half precision on a device: `name`, or for 'auto' bfloat16 where the hardware computes with it, else float16.

    Raises
    ------
    UserError
        The device has no such numbers.
    """
    if device.type == 'cpu':
        if name == 'float16':
            raise UserError('--amp_dtype float16 needs a CUDA device (--device); on a CPU, use --amp_dtype bfloat16')
        if not has_bfloat16():
            raise UserError('--torch_amp: this CPU does not compute with bfloat16; leave the option out')
        return torch.bfloat16
    if name == 'auto':
        name = 'bfloat16' if torch.cuda.get_device_capability(device) >= (8, 0) else 'float16'
    return AMP_DTYPES[name]


class Precision:
    """Float32, or half precision by PyTorch: the networks under autocast, gradients scaled for float16 only.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype
    """

    def __init__(self, device, dtype=torch.float32):
        self.device, self.dtype, self.name = device, dtype, str(dtype).removeprefix('torch.')
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def autocast(self):
        """Context of a forward pass."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def backward(self, loss, last=True):
        """Add the gradients of a loss; `last` tells that the step follows."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer):
        """Update the weights; left out, with smaller gradients the next time, if gradients overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self):
        return self.scaler.state_dict()

    def load_state_dict(self, state):
        if state:  # of a run that scaled
            self.scaler.load_state_dict(state)


class Apex:
    """Half precision by NVIDIA apex, with the interface of `Precision`; it changes model and optimiser.

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
            raise UserError('--apex_amp needs NVIDIA apex with its module amp, which is not installed: see https://github.com/NVIDIA/apex '
                            '(pip install apex is another package); or use --torch_amp') from None
        self.amp, self.optimizer, self.name = amp, optimizer, f'apex {opt_level}'
        try:
            # Part by part: from level O2 on, apex casts what enters and leaves a network, but knows tuples without names only
            amp.initialize(list(model.children()), optimizer, opt_level=opt_level, keep_batchnorm_fp32=keep_batchnorm_fp32,
                           verbosity=int(verbose))
        except RuntimeError as error:
            raise UserError(f'--apex_amp: NVIDIA apex refuses the model ({error})') from None

    def autocast(self):
        return contextlib.nullcontext()  # it has replaced the functions themselves

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
        return Apex(model, optimizer, config.amp_opt_lvl, config.keep_batchnorm_fp32, config.apex_verbose)
    return Precision(device, amp_dtype(config.amp_dtype, device) if config.torch_amp else torch.float32)
