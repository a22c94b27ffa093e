"""Metrics of single frames: PSNR, SSIM and LPIPS."""

import importlib.metadata
from pathlib import Path

from files import UserError, reading

import torch
import torch.nn as nn
import torch.nn.functional as F

from utils import load

K1, K2 = 0.01, 0.03
WINDOW, SIGMA = 11, 1.5


def psnr(x, y):
    """Peak signal-to-noise ratio of x and y (…, H, W), in [0, 1]: a tensor (…), in dB.

    It is 10 log10(1 / MSE), infinite where x = y.
    """
    return -10 * ((x - y) ** 2).mean((-2, -1)).log10()


def blur_matrix(n, device=None):
    """Matrix (n-10, n) of a 1D Gaussian blur: in 2D, it is separable, blur(x) = A x Bᵀ."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    taps = torch.exp(-offsets ** 2 / (2 * SIGMA ** 2))
    matrix = torch.zeros(n - WINDOW + 1, n, dtype=torch.float64)
    for i in range(len(matrix)):
        matrix[i, i:i + WINDOW] = taps / taps.sum()
    return matrix.float().to(device)


def ssim(x, y, moments=None):
    """Structural similarity (Wang et al., 2004) of x and y (…, H, W), in [0, 1]: a tensor (…).

    11 x 11 Gaussian window, valid positions, population moments, averaged over the map.
    """
    mean_y, square_y, rows, columns = moments or ssim_moments(y)
    mean_x = rows @ x @ columns
    square_x = rows @ (x * x) @ columns
    cov = rows @ (x * y) @ columns - mean_x * mean_y
    var = square_x - mean_x ** 2 + square_y - mean_y ** 2
    c1, c2 = K1 ** 2, K2 ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x ** 2 + mean_y ** 2 + c1)
    return (luminance * (2 * cov + c2) / (var + c2)).mean((-2, -1))


def ssim_moments(y):
    """What SSIM needs from y alone: blurred y and y², and the two blur matrices."""
    rows, columns = blur_matrix(y.shape[-2], y.device), blur_matrix(y.shape[-1], y.device).T
    return rows @ y @ columns, rows @ (y * y) @ columns, rows, columns


class Metric:
    """A score of each frame of videos. Subclasses are registered in `METRICS`."""
    label: str                # in tables and charts
    unit = ''                 # such as 'dB'
    digits = 4                # decimals printed
    higher_is_better = True

    @classmethod
    def build(cls, device='cpu', lpips_dir=None):
        """The metric, on a device; `lpips_dir` is the option of that name."""
        return cls()

    def prepare(self, y):
        """What `__call__` needs of true frames y (T, B, C, H, W), for any number of predictions."""
        return y

    def __call__(self, x, target):
        """Scores (T, B) of videos x (T, B, C, H, W), in [0, 1], with `target` from `prepare`."""
        raise NotImplementedError


class PSNR(Metric):
    """PSNR of frames, averaged over channels."""
    label, unit, digits = 'PSNR', 'dB', 2

    def __call__(self, x, target):
        return psnr(x, target).mean(2)


class SSIM(Metric):
    """SSIM of frames, averaged over channels."""
    label = 'SSIM'

    def prepare(self, y):
        return y, ssim_moments(y)

    def __call__(self, x, target):
        return ssim(x, *target).mean(2)


# LPIPS, the learned perceptual distance of Zhang et al. (2018)

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


def find_backbone(lpips_dir):
    """Path of AlexNet: in `lpips_dir`, in the cache of PyTorch, or downloaded there."""
    cached = Path(torch.hub.get_dir(), 'checkpoints', CHECKPOINT)
    if lpips_dir is not None:
        if not Path(lpips_dir).is_dir():
            raise UserError(f'--lpips_dir {lpips_dir} is not a folder; use the folder with '
                            f'{CHECKPOINT}, or leave the option out')
        if found := sorted(Path(lpips_dir).glob('alexnet*.pth')):
            return found[0]
    if not cached.is_file():
        try:
            torch.hub.load_state_dict_from_url(URL, map_location='cpu', check_hash=True,
                                               weights_only=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"LPIPS needs torchvision's AlexNet, and the download of {URL} failed ({error}); "
                'put this file in a folder and pass it as --lpips_dir, or leave LPIPS out '
                '(--metrics)') from None
    return cached


class LPIPS(Metric, nn.Module):
    """LPIPS of frames. `backbone` holds parameters of AlexNet, from the file `source`."""
    label, higher_is_better = 'LPIPS', False
    version = '0.1'  # of the weights; those of version 0.0 give other scores

    def __init__(self, backbone, source='the backbone'):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(*shape) for _, shape, _ in CONVOLUTIONS)
        with reading(source, "does not hold the convolutions of torchvision's AlexNet",
                     f'use {CHECKPOINT}'):
            for conv, (i, _, _) in zip(self.convolutions, CONVOLUTIONS):
                conv.load_state_dict({k: backbone[f'features.{i}.{k}'] for k in ('weight', 'bias')})
        # Weights of the channels of each layer
        package = importlib.metadata.distribution('lpips')
        linear = load(package.locate_file(f'lpips/weights/v{self.version}/alex.pth'))
        for i in range(len(CONVOLUTIONS)):
            self.register_buffer(f'linear_{i}', linear[f'lin{i}.model.1.weight'].flatten())
        # ImageNet normalisation of inputs in [-1, 1]
        self.register_buffer('shift', torch.tensor([-.030, -.088, -.188])[:, None, None])
        self.register_buffer('scale', torch.tensor([.458, .448, .450])[:, None, None])
        # The fastest layout for convolutions and poolings
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    @classmethod
    def build(cls, device='cpu', lpips_dir=None):
        path = find_backbone(lpips_dir)
        return cls(load(path), path).to(device)

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
        return self.features(y.flatten(0, 1))

    def __call__(self, x, target):
        distance = self.distance(self.features(x.flatten(0, 1)), target)
        return distance.unflatten(0, x.shape[:2])
