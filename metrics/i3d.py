"""I3D (Carreira and Zisserman, 2017) trained on Kinetics-400, for the Fréchet video distance.

It is output `RGB/inception_i3d/Mean:0` of the TF-Hub module `deepmind/i3d-kinetics-400/1`.
Tensors are (N, T, H, W, C).
"""

import functools

import torch
import torch.nn as nn
import torch.nn.functional as F

SIZE = 224        # width and height of input frames
MIN_FRAMES = 9    # shorter videos are used up before the last pooling
EPSILON = 1e-3    # of batch normalisation
BLOCKS = [f'Mixed_{block}' for block in '3b 3c 4b 4c 4d 4e 4f 5b 5c'.split()]


def preprocess(videos):
    """Input of the network (N, T, 224, 224, C), in [-1, 1], from uint8 videos (N, T, H, W, C).

    Resizes bilinearly as TensorFlow 1 did, without half-pixel centres or aligned corners, in
    float32 and in the same order of operations: the result is equal to the bit.
    """
    x = videos.float()
    for axis in (3, 2):  # first along x, then along y
        n = x.shape[axis]
        source = torch.arange(SIZE, dtype=torch.float32) * torch.tensor(n / SIZE)
        low, high = source.floor(), source.ceil().clamp(max=n - 1)
        f = (source - low).reshape(-1, *[1] * (4 - axis)).to(x.device)
        a = x.index_select(axis, low.long().to(x.device))
        x = x.index_select(axis, high.long().to(x.device)).sub_(a).mul_(f).add_(a)
    return x.mul_(2).div_(255).sub_(1)


def same_padding(n, kernel, stride):
    """SAME padding of TensorFlow for n positions: before and after (the larger half)."""
    total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
    return total // 2, total - total // 2


def max_pool(x, kernel, stride):
    """Max-pooling of x (N, T, H, W, C), not negative, with SAME padding.

    Equal to `F.max_pool3d` of a padded copy, but several times faster on CPUs: it pools each
    frame, then over time. `kernel` and `stride` are pairs, in time and in space; with a stride of 2
    in space, H and W are even.
    """
    (k, k_space), (s, s_space) = kernel, stride
    padding = k_space // 2 if s_space == 1 else 0
    frames = x.flatten(0, 1).movedim(-1, 1)
    frames = F.max_pool2d(frames, k_space, s_space, padding, ceil_mode=True)
    x = frames.movedim(1, -1).unflatten(0, x.shape[:2])
    x = F.pad(x, (0, 0, 0, 0, 0, 0, *same_padding(x.shape[1], k, s))) if k > 1 else x
    return functools.reduce(torch.maximum, (x[:, i:x.shape[1] - k + i + 1:s] for i in range(k)))


class Unit(nn.Module):
    """Convolution with SAME padding, batch normalisation (folded into it) and ReLU."""

    def __init__(self, state, name, stride=1):
        super().__init__()
        scale, beta, mean, var = (state[f'{name}.bn.{k}'].double() for k in (
            'weight', 'bias', 'running_mean', 'running_var'))
        scale = scale * (var + EPSILON).rsqrt()
        weight = state[f'{name}.conv3d.weight'].double() * scale[:, None, None, None, None]
        weight = weight.float().to(memory_format=torch.channels_last_3d)
        self.kernel, self.stride = weight.shape[-1], stride
        self.register_buffer('weight', weight.flatten(1) if self.kernel == 1 else weight)
        self.register_buffer('bias', (beta - mean * scale).float())

    def forward(self, x):  # (N, T, H, W, C) -> (N, T / stride, H / stride, W / stride, C')
        if self.kernel == 1:
            return F.linear(x, self.weight, self.bias).relu_()
        padding = self.kernel // 2
        if self.stride > 1:  # differs before and after
            padding = 0
            x = F.pad(x, (0, 0, *(p for n in x.shape[3:0:-1]
                                  for p in same_padding(n, self.kernel, self.stride))))
        weight = self.weight
        if x.shape[-1] != weight.shape[1]:  # grey frames stand for three equal channels
            weight = weight.sum(1, keepdim=True)
        h = F.conv3d(x.movedim(-1, 1), weight, self.bias, self.stride, padding)
        return h.relu_().movedim(1, -1)


class Mixed(nn.Module):
    """Block of four parallel branches."""

    def __init__(self, state, name):
        super().__init__()
        self.b0, self.b1a, self.b1b, self.b2a, self.b2b, self.b3b = (
            Unit(state, f'{name}.{unit}') for unit in ('b0', 'b1a', 'b1b', 'b2a', 'b2b', 'b3b'))

    def forward(self, x):
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)),
                          self.b3b(max_pool(x, (3, 3), (1, 1)))], -1)


class I3D(nn.Module):
    """I3D with the logits of Kinetics-400; `state` has the names of parameters in PyTorch ports."""

    def __init__(self, state):
        super().__init__()
        if (n_classes := len(state['logits.conv3d.weight'])) != 400:
            raise ValueError(f'it has {n_classes} classes instead of 400')
        self.unit_1a = Unit(state, 'Conv3d_1a_7x7', stride=2)
        self.unit_2b = Unit(state, 'Conv3d_2b_1x1')
        self.unit_2c = Unit(state, 'Conv3d_2c_3x3')
        self.mixed = nn.ModuleDict({name: Mixed(state, name) for name in BLOCKS})
        self.register_buffer('weight', state['logits.conv3d.weight'].flatten(1))
        self.register_buffer('bias', state['logits.conv3d.bias'])

    def forward(self, x):
        """Logits (N, 400), averaged over time, of x (N, T, 224, 224, 3 or 1), in [-1, 1]."""
        h = self.unit_1a(x)                        # (N, T/2, 112, 112, 64)
        h = max_pool(h, (1, 3), (1, 2))            # (N, T/2, 56, 56, 64)
        h = self.unit_2c(self.unit_2b(h))          # (N, T/2, 56, 56, 192)
        h = max_pool(h, (1, 3), (1, 2))            # (N, T/2, 28, 28, 192)
        for name, block in self.mixed.items():
            if name == 'Mixed_4b':
                h = max_pool(h, (3, 3), (2, 2))    # (N, T/4, 14, 14, 480)
            if name == 'Mixed_5b':
                h = max_pool(h, (2, 2), (2, 2))    # (N, T/8, 7, 7, 832)
            h = block(h)
        h = h.mean((2, 3))                         # (N, T/8, 1024)
        h = (h[:, 1:] + h[:, :-1]) / 2             # average pooling: 2 frames, all of 7 x 7
        return F.linear(h, self.weight, self.bias).mean(1)
