"""LPIPS, the learned perceptual distance of Zhang et al. (2018): AlexNet, version 0.1."""

import importlib.util
import re
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from files import UserError
from checkpoint import load

VERSION = '0.1'
CHECKPOINT = 'alexnet-owt-7be5be79.pth'  # torchvision's name for the backbone
URL = f'https://download.pytorch.org/models/{CHECKPOINT}'

# AlexNet's convolutions: torchvision's index, (in, out, kernel, stride, padding); a max-pool stands before some.
CONVOLUTIONS = [(0, (3, 64, 11, 4, 2), False), (3, (64, 192, 5, 1, 2), True), (6, (192, 384, 3, 1, 1), True),
                (8, (384, 256, 3, 1, 1), False), (10, (256, 256, 3, 1, 1), False)]


def find_backbone(lpips_dir=None):
    """Parameters of AlexNet's convolutions, trained on ImageNet, wherever they are.

    Searched in `lpips_dir`, then in torchvision's cache, then downloaded.

    Returns
    -------
    dict of tensors by torchvision's names, `features.<N>.weight` and `features.<N>.bias`
    """
    if lpips_dir is not None:
        if not Path(lpips_dir).is_dir():
            raise UserError(f'--lpips_dir {lpips_dir} is not a folder; name the one that holds {CHECKPOINT}, or leave the option out')
        found = sorted(Path(lpips_dir).glob('alexnet*.pth'))
        if found:
            return _check_backbone(load(found[0]), found[0])
    cached = Path(torch.hub.get_dir()) / 'checkpoints' / CHECKPOINT
    if cached.is_file():
        return _check_backbone(load(cached), cached)
    try:
        return torch.hub.load_state_dict_from_url(URL, map_location='cpu', check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        where = f'neither in {lpips_dir} nor' if lpips_dir is not None else 'not'
        raise UserError(f"LPIPS needs torchvision's AlexNet, which is {where} in {cached.parent}, and downloading it failed "
                        f'({error}); put {CHECKPOINT} from {URL} in a folder and name it by --lpips_dir, '
                        'or do without by --metrics psnr ssim') from None


def _check_backbone(state, path):
    for i, (n_in, n_out, kernel, _, _), _ in CONVOLUTIONS:
        for name, shape in ((f'features.{i}.weight', (n_out, n_in, kernel, kernel)), (f'features.{i}.bias', (n_out,))):
            value = state.get(name) if isinstance(state, dict) else None
            if not isinstance(value, torch.Tensor) or value.shape != shape or not value.float().isfinite().all():
                raise UserError(f"{path} does not hold the convolutions of torchvision's AlexNet ({name} is missing, of another shape or not finite); "
                                f'get {CHECKPOINT}')
    return state


def find_linear():
    """Weights of the five layers' channels, from the package `lpips`: list of tensors (C,)."""
    spec = importlib.util.find_spec('lpips')  # located, not imported: only the weights are wanted
    if spec is None:
        raise UserError('LPIPS needs the package lpips, which ships its linear weights; pip install lpips')
    state = load(Path(spec.origin).parent / 'weights' / f'v{VERSION}' / 'alex.pth')
    return [state[k].flatten() for k in sorted(state, key=lambda k: [int(n) for n in re.findall(r'\d+', k)])]


class LPIPS(nn.Module):
    """LPIPS of videos, per frame, then averaged. Lower is better.

    Parameters
    ----------
    backbone : dict of tensors
        What `find_backbone` returns.
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
        # Normalisation of ImageNet, rescaled for an input in [-1, 1]
        self.register_buffer('shift', torch.tensor([-.030, -.088, -.188])[:, None, None])
        self.register_buffer('scale', torch.tensor([.458, .448, .450])[:, None, None])
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # in which convolutions and poolings are fastest

    def first(self, x):
        """First convolution of frames (N, C, H, W) in [0, 1], in three channels a x + b.

        Those of grey frames are equal but for a and b: one convolution by the sum of the kernels times a, and one of b for all frames.
        """
        conv = self.convolutions[0]
        a, b = 2 / self.scale, -(1 + self.shift) / self.scale
        if x.shape[1] == 3:
            return conv(a * x + b)
        kernel = (conv.weight * a).sum(1, keepdim=True)
        h = F.conv2d(x, kernel, None, conv.stride, conv.padding).contiguous(memory_format=torch.channels_last)  # which one channel does not tell
        return h.add_(conv(b.expand(1, 3, *x.shape[2:])))

    def features(self, x):
        """Activations of frames (N, C, H, W) in [0, 1] after the five convolutions, normalised along channels."""
        features, h = [], None
        for conv, (_, _, pool) in zip(self.convolutions, CONVOLUTIONS):
            h = conv(F.max_pool2d(h, 3, 2) if pool else h) if features else self.first(x)
            h = F.relu_(h)
            features.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return features

    def distance(self, features_x, features_y):
        """LPIPS (N,) of frames by their features."""
        layers = zip(features_x, features_y, [getattr(self, f'linear_{i}') for i in range(len(CONVOLUTIONS))])
        return sum(torch.einsum('nchw,c->n', (a - b) ** 2, w) / a[0, 0].numel() for a, b, w in layers)

    def prepare(self, y):
        """Target side, of y (T, B, C, H, W)."""
        return self.features(y.flatten(0, 1))

    def __call__(self, x, target):
        """Score of each video of x (T, B, C, H, W), in [0, 1]: tensor (B,)."""
        return self.distance(self.features(x.flatten(0, 1)), target).unflatten(0, x.shape[:2]).mean(0)
