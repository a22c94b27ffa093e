"""LPIPS, the learned perceptual distance of Zhang et al. (2018): AlexNet, version 0.1."""

import importlib.util
import re
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from checkpoint import load
from files import UserError

VERSION = '0.1'
CHECKPOINT = 'alexnet-owt-7be5be79.pth'  # name of the backbone in torchvision
URL = f'https://download.pytorch.org/models/{CHECKPOINT}'

# Convolutions of AlexNet: index in torchvision, (in, out, kernel, stride, padding), and whether
# a max-pooling comes first
CONVOLUTIONS = [
    (0, (3, 64, 11, 4, 2), False),
    (3, (64, 192, 5, 1, 2), True),
    (6, (192, 384, 3, 1, 1), True),
    (8, (384, 256, 3, 1, 1), False),
    (10, (256, 256, 3, 1, 1), False),
]


def find_backbone(lpips_dir=None):
    """Parameters of the convolutions of AlexNet trained on ImageNet.

    Searched in `lpips_dir`, then in torchvision's cache, then downloaded.

    Returns
    -------
    dict of tensors
        `features.<N>.weight` and `features.<N>.bias`, as in torchvision.

    Raises
    ------
    UserError
    """
    cached = Path(torch.hub.get_dir()) / 'checkpoints' / CHECKPOINT
    found = [cached] if cached.is_file() else []
    if lpips_dir is not None:
        if not Path(lpips_dir).is_dir():
            raise UserError(f'--lpips_dir {lpips_dir} is not a folder; use the folder with '
                            f'{CHECKPOINT}, or leave the option out')
        found = sorted(Path(lpips_dir).glob('alexnet*.pth')) + found
    if found:
        return check_backbone(load(found[0]), found[0])
    try:
        return torch.hub.load_state_dict_from_url(URL, map_location='cpu', check_hash=True,
                                                  weights_only=True)
    except (OSError, RuntimeError) as error:
        where = cached.parent if lpips_dir is None else f'{lpips_dir} or {cached.parent}'
        raise UserError(
            f"LPIPS needs torchvision's AlexNet, which is not in {where}, and the download failed "
            f'({error}); put {CHECKPOINT} from {URL} in a folder and pass it as --lpips_dir, '
            'or do without LPIPS: --metrics psnr ssim') from None


def check_backbone(state, path):
    """Raise a UserError unless `state`, read from `path`, holds the convolutions of AlexNet."""
    shapes = {}
    for i, (n_in, n_out, kernel, _, _), _ in CONVOLUTIONS:
        shapes[f'features.{i}.weight'] = n_out, n_in, kernel, kernel
        shapes[f'features.{i}.bias'] = n_out,
    for name, shape in shapes.items():
        value = state.get(name) if isinstance(state, dict) else None
        if (not isinstance(value, torch.Tensor) or value.shape != shape
                or not value.float().isfinite().all()):
            raise UserError(f"{path} does not hold the convolutions of torchvision's AlexNet "
                            f'({name} is missing, of another shape or not finite); '
                            f'use {CHECKPOINT}')
    return state


def find_linear():
    """Weights of the channels of the five layers, from package `lpips`: list of tensors (C,)."""
    spec = importlib.util.find_spec('lpips')  # located, not imported: only its files are needed
    if spec is None:
        raise UserError('LPIPS needs the package lpips, which ships its linear weights; '
                        'pip install lpips')
    state = load(Path(spec.origin).parent / 'weights' / f'v{VERSION}' / 'alex.pth')
    names = sorted(state, key=lambda name: [int(n) for n in re.findall(r'\d+', name)])
    return [state[name].flatten() for name in names]


class LPIPS(nn.Module):
    """LPIPS of frames.

    Parameters
    ----------
    backbone : dict of tensors
        As returned by `find_backbone`.
    """
    higher_is_better = False
    digits, unit = 4, ''

    def __init__(self, backbone):
        super().__init__()
        self.convolutions = nn.ModuleList()
        for i, shape, _ in CONVOLUTIONS:
            conv = nn.Conv2d(*shape)
            conv.load_state_dict({k: backbone[f'features.{i}.{k}'] for k in ('weight', 'bias')})
            self.convolutions.append(conv)
        for i, weight in enumerate(find_linear()):
            self.register_buffer(f'linear_{i}', weight)
        # ImageNet normalisation of inputs in [-1, 1]
        self.register_buffer('shift', torch.tensor([-.030, -.088, -.188])[:, None, None])
        self.register_buffer('scale', torch.tensor([.458, .448, .450])[:, None, None])
        # The fastest layout for convolutions and poolings
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def first(self, x):
        """First convolution of normalised frames a x + b, from frames (N, C, H, W) in [0, 1].

        The channels of grey frames differ only in a and b: their convolution is that of the single
        channel with the kernels summed over channels, weighted by a, plus that of b.
        """
        conv = self.convolutions[0]
        a, b = 2 / self.scale, -(1 + self.shift) / self.scale
        if x.shape[1] == 3:
            return conv(a * x + b)
        kernel = (conv.weight * a).sum(1, keepdim=True)
        h = F.conv2d(x, kernel, None, conv.stride, conv.padding)
        h = h.contiguous(memory_format=torch.channels_last)  # ambiguous for one input channel
        return h.add_(conv(b.expand(1, 3, *x.shape[2:])))

    def features(self, x):
        """Channel-normalised activations of the five convolutions on frames (N, C, H, W)."""
        features, h = [], None
        for conv, (_, _, pool) in zip(self.convolutions, CONVOLUTIONS):
            if pool:
                h = F.max_pool2d(h, 3, 2)
            h = F.relu_(conv(h) if features else self.first(x))
            features.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return features

    def distance(self, features_x, features_y):
        """LPIPS (N,) of frames, from their features."""
        weights = [getattr(self, f'linear_{i}') for i in range(len(CONVOLUTIONS))]
        return sum(torch.einsum('nchw,c->n', (a - b) ** 2, w) / a[0, 0].numel()
                   for a, b, w in zip(features_x, features_y, weights))

    def prepare(self, y):
        """Target for `__call__`, from true frames y (T, B, C, H, W)."""
        return self.features(y.flatten(0, 1))

    def __call__(self, x, target):
        """LPIPS (T, B) of videos x (T, B, C, H, W), in [0, 1]."""
        distance = self.distance(self.features(x.flatten(0, 1)), target)
        return distance.unflatten(0, x.shape[:2])
