"""Layers of SRVP: frame encoders, frame decoders and MLPs (paper, section 3.3).

The nesting of modules is part of the file format: it gives the parameter names of the published
checkpoints.
"""

import functools
import re
from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F

SLOPE = 0.2  # of LeakyReLU


def block_widths(nf, nx):
    """Widths nf min(2^i, 8) of the log2(nx) - 2 blocks of an encoder, from nx x nx to 4x4.

    The networks of 64 x 64 frames are the published ones. Those of 128 x 128 have a fifth block of
    8 nf, as SVG's `dcgan_128` and `vgg_128`. Decoders mirror them.
    """
    return [nf * min(2 ** i, 8) for i in range(nx.bit_length() - 3)]


def vgg_depth(i):
    """Number of 3x3 convolutions of block i of VGG."""
    return 2 if i < 2 else 3


def conv_block(conv, n_in, n_out, kernel, stride, padding, batch_norm=True):
    """Convolution (of class `conv`) without bias, batch normalisation, LeakyReLU."""
    norm = [nn.BatchNorm2d(n_out)] if batch_norm else []
    return nn.Sequential(conv(n_in, n_out, kernel, stride, padding, bias=False), *norm,
                         nn.LeakyReLU(SLOPE, inplace=True))


def conv3s(*widths):
    """List of 3x3 blocks of VGG, from each width to the next, at the same resolution."""
    return [conv_block(nn.Conv2d, a, b, 3, 1, 1) for a, b in pairwise(widths)]


def last_conv(in_channels, out_channels):
    """Head of the encoders, from 4x4 to 1x1."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 4, 1, 0, bias=False),
                         nn.BatchNorm2d(out_channels), nn.Tanh())


# Encoders

class Encoder(nn.Module):
    """Frame encoder h (paper, section 3.3): blocks `conv`, then the head `last_conv`."""

    def forward(self, x):
        """Encode each frame independently.

        Parameters
        ----------
        x : tensor (N, nc, H, W), in [0, 1]

        Returns
        -------
        hx : tensor (N, nhx), in [-1, 1]
        skips : list of tensors (N, C_i, H_i, W_i)
            Outputs of the blocks, deepest first.
        """
        skips = []
        for block in self.conv:
            x = block(x)
            skips.append(x)
        return self.last_conv(x).flatten(1), skips[::-1]


class DCGANEncoder(Encoder):
    def __init__(self, nc, nhx, nf, nx):
        super().__init__()
        widths = block_widths(nf, nx)
        self.conv = nn.ModuleList(  # nx -> nx/2 -> … -> 4
            conv_block(nn.Conv2d, a, b, 4, 2, 1, batch_norm=i > 0)
            for i, (a, b) in enumerate(pairwise([nc, *widths])))
        self.last_conv = last_conv(widths[-1], nhx)


class VGGEncoder(Encoder):
    def __init__(self, nc, nhx, nf, nx):
        super().__init__()
        widths = block_widths(nf, nx)
        self.conv = nn.ModuleList(  # nx, nx -> nx/2, …, 16 -> 8
            nn.Sequential(*[nn.MaxPool2d(2)] * (i > 0), *conv3s(a, *[b] * vgg_depth(i)))
            for i, (a, b) in enumerate(pairwise([nc, *widths])))
        self.last_conv = nn.Sequential(nn.MaxPool2d(2), last_conv(widths[-1], nhx))


# Decoders

# Nearest upsampling by 2, then a 3x3 convolution, multiplies only 4 distinct input pixels by 9
# weights. Summing the weights of each pixel first gives a 4x4 transposed convolution of stride 2.
MIN_PIXELS = 2048  # of the whole input: below, summing costs more than it saves


def upsampling_kernel(kernel):
    """Kernel (C_in, C_out, 4, 4) equivalent to upsampling, then (C_out, C_in, 3, 3)."""
    for dim in (2, 3):
        a, b, c = kernel.unbind(dim)
        kernel = torch.stack([c, b + c, a + b, a], dim)
    return kernel.transpose(0, 1).contiguous(memory_format=torch.channels_last)


def conv_transpose_to_one_channel(h, kernel, bias, stride, padding):
    """`F.conv_transpose2d` to one channel (grey frames), where it leaves most SIMD lanes idle.

    A matrix product gives what each pixel of h (N, C, H, W) adds to its k x k surroundings, by the
    kernel (C, 1, k, k); `F.fold` sums up.
    """
    N, C, H, W = h.shape
    k, (stride, _), (padding, _) = kernel.shape[-1], stride, padding
    pixels = h.permute(0, 2, 3, 1).reshape(N, H * W, C).transpose(1, 2)
    taps = kernel.reshape(C, k * k).T @ pixels  # (N, k k, H W)
    taps = taps.to(torch.promote_types(taps.dtype, torch.float32))  # convolutions sum in float32
    size = [(n - 1) * stride - 2 * padding + k for n in (H, W)]
    out = F.fold(taps, size, k, padding=padding, stride=stride)
    return out if bias is None else out + bias[:, None, None]


def conv_function(conv):
    """Function of (input, kernel, bias, stride, padding) that computes a convolution module."""
    if isinstance(conv, nn.Conv2d):
        return F.conv2d
    if conv.out_channels == 1 and conv.weight.device.type == 'cpu':
        return conv_transpose_to_one_channel  # on CUDA, `F.fold` runs sample by sample
    return F.conv_transpose2d


def split_kernel(conv, kernel, skip):
    """Split a kernel of `conv` by input channels, into those of h and those of `skip`."""
    n = skip.shape[1]
    dim = 0 if isinstance(conv, nn.ConvTranspose2d) else 1
    return kernel.split([conv.in_channels - n, n], dim)


def convolve(conv, h, skip=None, up=False):
    """Convolution of h, upsampled if `up`, and of `skip`, as if concatenated on channels.

    Convolutions are linear: conv([h, s]) = conv_h(h) + conv_s(s). All frames of a video share the
    second term, which is computed once: h is (T·B, C, H, W), skip (B, C', H', W').
    """
    function, kernel = conv_function(conv), conv.weight
    if skip is not None:
        kernel, skip_kernel = split_kernel(conv, kernel, skip)
    if up and h.shape[0] * h.shape[2] * h.shape[3] >= MIN_PIXELS:
        out = F.conv_transpose2d(h, upsampling_kernel(kernel), stride=2, padding=1)
    else:
        h = F.interpolate(h, scale_factor=2.) if up else h
        out = function(h, kernel, None, conv.stride, conv.padding)
    if skip is not None:
        skip_out = function(skip, skip_kernel, None, conv.stride, conv.padding)
        out = (out.unflatten(0, (-1, len(skip))) + skip_out).flatten(0, 1)
    return out


class Decoder(nn.Module):
    """Frame decoder g (paper, section 3.1): `first_upconv`, then blocks `conv`.

    Its attribute `widest` is the size of the largest activation of a frame.
    """

    @functools.cached_property
    def is_standard(self):
        """Whether all layers are those that `steps` and `FrozenDecoder` compute in a faster way.

        These are convolutions without bias, each but the last followed by batch normalisation,
        LeakyReLU and perhaps upsampling, with kernels as below.
        """
        layers = [m for block in [self.first_upconv, *self.conv] for m in block.modules()
                  if not isinstance(m, nn.Sequential)]
        kinds = {nn.Conv2d: 'c', nn.ConvTranspose2d: 'c', nn.BatchNorm2d: 'n', nn.LeakyReLU: 'a',
                 nn.Upsample: 'u'}
        order = ''.join(next((c for kind, c in kinds.items() if isinstance(m, kind)), '?')
                        for m in layers)
        convs = [m for m, c in zip(layers, order) if c == 'c']
        after_up = [b for a, b in pairwise(layers) if isinstance(a, nn.Upsample)]
        return (re.fullmatch('(cnau?)+c', order) is not None
                and all(m.bias is None and m.groups == 1 and m.dilation == (1, 1) for m in convs)
                and all(m.negative_slope == SLOPE for m in layers if isinstance(m, nn.LeakyReLU))
                and all(m.scale_factor == 2 and m.mode == 'nearest' for m in layers
                        if isinstance(m, nn.Upsample))
                and geometry(convs[0]) == (nn.ConvTranspose2d, (4, 4), (1, 1), (0, 0))
                and all(geometry(m) == (nn.Conv2d, (3, 3), (1, 1), (1, 1)) for m in after_up))

    def plain(self, wy, skips=None):
        """`forward` layer by layer, for decoders of any layers."""
        h = self.first_upconv(wy[:, :, None, None])
        for i, block in enumerate(self.conv):
            if skips is not None:  # (B, C, H, W) -> (T·B, C, H, W)
                skip = skips[i].expand(len(h) // len(skips[i]), *skips[i].shape).flatten(0, 1)
                h = torch.cat([h, skip], 1)
            h = block(h)
        return torch.sigmoid(h.float())

    def steps(self, skips=None):
        """Yield (convolution, batch normalisation or None, skip or None, upsample first?)."""
        up = False
        skips = skips or [None] * len(self.conv)
        for block, skip in zip([self.first_upconv, *self.conv], [None, *skips]):
            layers = [m for m in block.modules() if not isinstance(m, nn.Sequential)]
            for i, layer in enumerate(layers):
                if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                    norm = layers[i + 1] if i + 1 < len(layers) else None
                    yield layer, norm, skip if i == 0 else None, up
                up = isinstance(layer, nn.Upsample)

    def forward(self, wy, skips=None):
        """Decode T frames of each of B videos.

        Parameters
        ----------
        wy : tensor (T·B, nh_inf + ny)
            Concatenation [w, y].
        skips : list of tensors (B, C_i, H_i, W_i), deepest first
            Required if and only if built with `skipco`.

        Returns
        -------
        tensor (T·B, nc, H, W), in [0, 1]
        """
        if not self.is_standard:
            return self.plain(wy, skips)
        h = wy[:, :, None, None]
        for conv, norm, skip, up in self.steps(skips):
            h = convolve(conv, h, skip, up)
            if norm is not None:
                h = F.leaky_relu_(norm(h), SLOPE)
        return torch.sigmoid(h.float())  # float32 under autocast, as the loss


def geometry(conv):
    return type(conv), conv.kernel_size, conv.stride, conv.padding


class DCGANDecoder(Decoder):
    def __init__(self, nc, nin, nf, nx, skipco):
        super().__init__()
        k = 2 if skipco else 1  # skip connections double the input width of each block
        widths = block_widths(nf, nx)[::-1]
        self.widest = nf * (nx // 2) ** 2
        self.first_upconv = conv_block(nn.ConvTranspose2d, nin, widths[0], 4, 1, 0)  # 1 -> 4
        self.conv = nn.ModuleList([
            *(conv_block(nn.ConvTranspose2d, a * k, b, 4, 2, 1)  # 4 -> 8 -> … -> nx/2
              for a, b in pairwise(widths)),
            nn.ConvTranspose2d(nf * k, nc, 4, 2, 1, bias=False)])  # nx/2 -> nx


class VGGDecoder(Decoder):
    def __init__(self, nc, nin, nf, nx, skipco):
        super().__init__()
        k = 2 if skipco else 1
        widths = block_widths(nf, nx)

        def block(i):
            a, b = widths[i], widths[i - 1]
            return nn.Sequential(*conv3s(a * k, *[a] * (vgg_depth(i) - 1), b),
                                 nn.Upsample(scale_factor=2))

        self.widest = nf * nx ** 2
        self.first_upconv = nn.Sequential(  # 1 -> 4 -> 8
            conv_block(nn.ConvTranspose2d, nin, widths[-1], 4, 1, 0), nn.Upsample(scale_factor=2))
        self.conv = nn.ModuleList([
            *(block(i) for i in reversed(range(1, len(widths)))),  # 8 -> 16 -> … -> nx
            nn.Sequential(*conv3s(nf * k, nf),
                          nn.ConvTranspose2d(nf, nc, 3, 1, 1, bias=False))])  # nx


class FrozenDecoder:
    """Decoder in evaluation mode for given videos: all that does not depend on y is computed once.

    Batch normalisation is an affine map a h + b per channel: a is folded into the kernel before it,
    and b becomes its bias. The terms of w (B, nh_inf) and of the skips (see `Decoder.forward`) are
    computed once per video.
    """

    def __init__(self, decoder, w, skips=None):
        self.plain = None
        if not decoder.is_standard:
            self.plain, self.w = decoder.plain, w.float()
            self.skips = skips and [skip.float() for skip in skips]
            return
        (conv, norm, _, _), *steps = decoder.steps(skips)
        kernel, bias = fold_norm(conv, norm, w.dtype)
        matrix = kernel.permute(0, 2, 3, 1).flatten(1)  # (nh_inf + ny, 4·4·C): the input is 1x1
        n = w.shape[1]
        self.y_matrix, self.w_term = matrix[n:], w @ matrix[:n] + bias.repeat(16)
        self.steps = []  # (function, kernel, bias, stride, padding, term of the skip, activate?)
        for conv, norm, skip, up in steps:
            function, geometry = conv_function(conv), (conv.stride, conv.padding)
            kernel, bias = fold_norm(conv, norm, w.dtype)
            skip_term = None
            if skip is not None:
                kernel, skip_kernel = split_kernel(conv, kernel, skip)
                skip_term, bias = function(skip, skip_kernel, bias, *geometry), None
            if up:
                function, kernel, geometry = F.conv_transpose2d, upsampling_kernel(kernel), (2, 1)
            kernel = kernel.contiguous(memory_format=torch.channels_last)
            self.steps.append((function, kernel, bias, *geometry, skip_term, norm is not None))

    def __call__(self, y):
        """Frames (T, B, nc, H, W), in [0, 1], of states y (T, B, ny)."""
        T, B = y.shape[:2]
        if self.plain is not None:
            wy = torch.cat([self.w.expand(T, *self.w.shape), y], -1)
            return self.plain(wy.flatten(0, 1), self.skips).unflatten(0, (T, B))
        h = y.to(self.y_matrix.dtype) @ self.y_matrix + self.w_term  # (T, B, 4·4·C)
        h = h.view(T * B, 4, 4, -1).permute(0, 3, 1, 2)  # (T·B, C, 4, 4), channels last in memory
        F.leaky_relu_(h, SLOPE)
        for function, kernel, bias, stride, padding, skip_term, activate in self.steps:
            h = function(h, kernel, bias, stride, padding)
            if skip_term is not None:
                h.unflatten(0, (T, B)).add_(skip_term)
            if activate:
                F.leaky_relu_(h, SLOPE)
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        return torch.sigmoid_(h).unflatten(0, (T, B))


def fold_norm(conv, norm, dtype):
    """Kernel and bias, of `dtype`, of a convolution with its batch normalisation folded in."""
    if norm is None:
        return conv.weight.to(dtype), None
    a = norm.weight / (norm.running_var + norm.eps).sqrt()
    b = norm.bias - norm.running_mean * a
    shape = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    return (conv.weight * a.view(shape)).to(dtype), b.to(dtype)


ENCODERS = {'dcgan': DCGANEncoder, 'vgg': VGGEncoder}
DECODERS = {'dcgan': DCGANDecoder, 'vgg': VGGDecoder}


# Other networks, initialisation

class MLP(nn.Module):
    """`n_layers` linear layers of width `n_hid`, with a ReLU before each but the first."""

    def __init__(self, n_in, n_hid, n_out, n_layers):
        super().__init__()
        widths = [n_in] + [n_hid] * (n_layers - 1) + [n_out]
        first, *others = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.module = nn.Sequential(nn.Sequential(first),
                                    *(nn.Sequential(nn.ReLU(), linear) for linear in others))

    def forward(self, x):
        """(…, n_in) -> (…, n_out)"""
        return self.module(x)


def init_conv(module):
    """Initialise the convolutions and batch normalisations of a network as DCGAN does."""
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(m.weight, 0., 0.02)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1., 0.02)
            nn.init.zeros_(m.bias)


def init_orthogonal(module, gain):
    """Initialise the linear layers of an MLP: orthogonal weights with `gain`, zero biases."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.orthogonal_(m.weight, gain)
            nn.init.zeros_(m.bias)
