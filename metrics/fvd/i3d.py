"""I3D (Carreira and Zisserman, 2017) trained on Kinetics-400, for the Fréchet video distance.

Computes the same numbers as output `RGB/inception_i3d/Mean:0` of the TF-Hub module
`deepmind/i3d-kinetics-400/1`. Tensors are (N, T, H, W, C).
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

SIZE = 224        # width and height of input frames
MIN_FRAMES = 9    # shorter videos are used up before the last pooling
N_LOGITS = 400
EPSILON = 1e-3    # of batch normalisation

# Kernels of the units of a Mixed block (Branch_0 … Branch_3 of the original)
MIXED_KERNELS = {'b0': 1, 'b1a': 1, 'b1b': 3, 'b2a': 1, 'b2b': 3, 'b3b': 1}
# Channels of the input of a Mixed block, then of the output of each unit
MIXED = {
    'Mixed_3b': (192, 64, 96, 128, 16, 32, 32),
    'Mixed_3c': (256, 128, 128, 192, 32, 96, 64),
    'Mixed_4b': (480, 192, 96, 208, 16, 48, 64),
    'Mixed_4c': (512, 160, 112, 224, 24, 64, 64),
    'Mixed_4d': (512, 128, 128, 256, 24, 64, 64),
    'Mixed_4e': (512, 112, 144, 288, 32, 64, 64),
    'Mixed_4f': (528, 256, 160, 320, 32, 128, 128),
    'Mixed_5b': (832, 256, 160, 320, 32, 128, 128),
    'Mixed_5c': (832, 384, 192, 384, 48, 128, 128),
}


def units():
    """Kernel shapes (out, in, t, h, w) of all units by name.

    A unit is a convolution, a batch normalisation and a ReLU.
    """
    shapes = {'Conv3d_1a_7x7': (64, 3, 7, 7, 7), 'Conv3d_2b_1x1': (64, 64, 1, 1, 1),
              'Conv3d_2c_3x3': (192, 64, 3, 3, 3)}
    for block, (n_in, *n_out) in MIXED.items():
        widths = dict(zip(MIXED_KERNELS, n_out))
        for unit, kernel in MIXED_KERNELS.items():
            before = widths[unit[:-1] + 'a'] if kernel == 3 else n_in
            shapes[f'{block}.{unit}'] = (widths[unit], before, kernel, kernel, kernel)
    return shapes


def source_positions(n):
    """Where each of `SIZE` pixels comes from among n: two neighbours, distance from the first."""
    scale = torch.tensor(n / SIZE, dtype=torch.float32)
    source = torch.arange(SIZE, dtype=torch.float32) * scale
    low = source.floor()
    return low.long(), source.ceil().long().clamp(max=n - 1), source - low


def preprocess(videos):
    """Input of the network: frames resized bilinearly to 224 x 224 and scaled to [-1, 1].

    Resizes as TensorFlow 1 did, without half-pixel centres or aligned corners, in float32 and in
    the same order of operations: the result is equal to the bit.

    Parameters
    ----------
    videos : uint8 tensor (N, T, H, W, C)

    Returns
    -------
    float32 tensor (N, T, 224, 224, C)
    """
    x = videos.float()
    for axis in (3, 2):  # first along x, then along y
        low, high, f = (p.to(x.device) for p in source_positions(x.shape[axis]))
        f = f.reshape(-1, *[1] * (4 - axis))
        a = x.index_select(axis, low)
        x = x.index_select(axis, high).sub_(a).mul_(f).add_(a)
    return x.mul_(2).div_(255).sub_(1)


def same_padding(n, kernel, stride):
    """SAME padding of TensorFlow for n positions: before and after (the larger half)."""
    total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
    return total // 2, total - total // 2


def max_pool(x, kernel, stride):
    """Max-pooling of x (N, T, H, W, C) with SAME padding; a spatial stride of 2 needs even H and W.

    Equal to `F.max_pool3d` of a padded copy, but several times faster on CPUs: it pools each
    frame, then over time.

    Parameters
    ----------
    kernel, stride : pairs of int
        In time and in space.
    """
    (k, k_space), (s, s_space) = kernel, stride
    frames = x.flatten(0, 1).movedim(-1, 1)
    padding = k_space // 2 if s_space == 1 else 0
    frames = F.max_pool2d(frames, k_space, s_space, padding, ceil_mode=True)
    x = frames.movedim(1, -1).unflatten(0, x.shape[:2])
    if k == 1:
        return x
    n, front = x.shape[1], same_padding(x.shape[1], k, s)[0]
    out = x[:, ::s].clone()
    for shift in range(-front, k - front):
        if shift:
            # Windows with a frame at this shift from their first
            first = 1 if shift < 0 else 0
            last = min((n - 1 - shift) // s, out.shape[1] - 1)
            window = out[:, first:last + 1]
            shifted = x[:, first * s + shift:last * s + shift + 1:s]
            torch.maximum(window, shifted, out=window)
    return out


def fold(state, name):
    """Weight and bias of the convolution of a unit with its batch normalisation folded in."""
    mean, var, beta = (state[f'{name}.bn.{k}'].double()
                       for k in ('running_mean', 'running_var', 'bias'))
    scale = (var + EPSILON).rsqrt()
    weight = state[f'{name}.conv3d.weight'].double() * scale[:, None, None, None, None]
    return weight.float(), (beta - mean * scale).float()


class Unit(nn.Module):
    """Convolution with SAME padding, batch normalisation and ReLU.

    Several units with the same input are computed as one.
    """

    def __init__(self, state, *names, stride=1):
        super().__init__()
        weight, bias = map(torch.cat, zip(*(fold(state, name) for name in names)))
        self.kernel, self.stride = weight.shape[-1], stride
        layout = torch.channels_last_3d
        weight = weight.flatten(1) if self.kernel == 1 else weight.to(memory_format=layout)
        self.register_buffer('weight', weight)
        self.register_buffer('bias', bias)

    def forward(self, x):
        """(N, T, H, W, C) -> (N, T / stride, H / stride, W / stride, C')"""
        if self.kernel == 1:
            return F.linear(x, self.weight, self.bias).relu_()
        padding = [same_padding(n, self.kernel, self.stride) for n in x.shape[1:4]]
        if any(front != behind for front, behind in padding):
            x = F.pad(x, (0, 0, *(p for axis in padding[::-1] for p in axis)))
            padding = [(0, 0)] * 3
        weight = self.weight
        if x.shape[-1] != weight.shape[1]:  # grey frames stand for three equal channels
            weight = weight.sum(1, keepdim=True)
        padding = [front for front, _ in padding]
        h = F.conv3d(x.movedim(-1, 1), weight, self.bias, self.stride, padding)
        return h.relu_().movedim(1, -1)


class Mixed(nn.Module):
    """Block of four parallel branches, the first 1x1 convolutions of which are computed as one."""

    def __init__(self, state, name):
        super().__init__()
        entries = [f'{name}.{unit}' for unit in ('b0', 'b1a', 'b2a')]
        self.widths = [len(state[f'{entry}.bn.bias']) for entry in entries]
        self.entry = Unit(state, *entries)
        self.b1b, self.b2b, self.b3b = (Unit(state, f'{name}.{unit}')
                                        for unit in ('b1b', 'b2b', 'b3b'))

    def forward(self, x):
        h0, h1, h2 = self.entry(x).split(self.widths, -1)
        h1, h2 = self.b1b(h1.contiguous()), self.b2b(h2.contiguous())
        return torch.cat([h0, h1, h2, self.b3b(max_pool(x, (3, 3), (1, 1)))], -1)


class I3D(nn.Module):
    """I3D with the logits of Kinetics-400.

    Parameters
    ----------
    state : dict of tensors
        Parameters by PyTorch name (see `weights.load_state`).
    """

    def __init__(self, state):
        super().__init__()
        self.unit_1a = Unit(state, 'Conv3d_1a_7x7', stride=2)
        self.unit_2b = Unit(state, 'Conv3d_2b_1x1')
        self.unit_2c = Unit(state, 'Conv3d_2c_3x3')
        self.mixed = nn.ModuleDict({name: Mixed(state, name) for name in MIXED})
        self.register_buffer('weight', state['logits.conv3d.weight'].flatten(1))
        self.register_buffer('bias', state['logits.conv3d.bias'])

    def forward(self, x):
        """Logits (N, 400), averaged over time, of x (N, T, 224, 224, C), in [-1, 1].

        C is 3, or 1 for grey frames.
        """
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
