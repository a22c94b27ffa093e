"""Layers of SRVP: frame encoders, frame decoders and perceptrons (paper, section 3.3).

The nesting of the modules is part of the file format: it gives the parameter names of the published checkpoints.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

NX = 64      # frames are 64 x 64: the number of downsamplings is fixed by the architectures
SLOPE = 0.2  # of LeakyReLU for negative numbers


def conv_block(conv, batch_norm=True):
    """`conv` (without bias), batch normalisation unless told otherwise, LeakyReLU."""
    layers = [conv]
    if batch_norm:
        layers.append(nn.BatchNorm2d(conv.out_channels))
    return nn.Sequential(*layers, nn.LeakyReLU(SLOPE, inplace=True))


def conv3(in_channels, out_channels):
    """3x3 block of the VGG architecture; keeps the resolution."""
    return conv_block(nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False))


def conv4(in_channels, out_channels, batch_norm=True):
    """4x4 block of the DCGAN encoder; halves the resolution."""
    return conv_block(nn.Conv2d(in_channels, out_channels, 4, 2, 1, bias=False), batch_norm)


def upconv4(in_channels, out_channels):
    """4x4 transposed block of the DCGAN decoder; doubles the resolution."""
    return conv_block(nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=False))


def first_upconv(in_channels, out_channels):
    """Transposed block from a vector, as a 1 x 1 picture, to 4 x 4."""
    return conv_block(nn.ConvTranspose2d(in_channels, out_channels, 4, 1, 0, bias=False))


def last_conv(in_channels, out_channels):
    """Head of the encoders, from 4 x 4 to 1 x 1: its layers, to be put in a Sequential."""
    return nn.Conv2d(in_channels, out_channels, 4, 1, 0, bias=False), nn.BatchNorm2d(out_channels), nn.Tanh()


class Encoder(nn.Module):
    """Frame encoder h (paper, section 3.3): four blocks `conv`, then the head `last_conv`."""

    def forward(self, x):
        """Encode frames, each by itself.

        Parameters
        ----------
        x : tensor (N, nc, 64, 64), in [0, 1]

        Returns
        -------
        hx : tensor (N, nhx), in [-1, 1]
        skips : list of four tensors (N, C_i, H_i, W_i)
            Outputs of the blocks, deepest first.
        """
        skips = []
        for block in self.conv:
            x = block(x)
            skips.append(x)
        return self.last_conv(x).flatten(1), skips[::-1]


class DCGANEncoder(Encoder):
    def __init__(self, nc, nhx, nf):
        super().__init__()
        self.conv = nn.ModuleList([
            conv4(nc, nf, batch_norm=False),  # 64 -> 32
            conv4(nf, nf * 2),                # 32 -> 16
            conv4(nf * 2, nf * 4),            # 16 -> 8
            conv4(nf * 4, nf * 8),            # 8 -> 4
        ])
        self.last_conv = nn.Sequential(*last_conv(nf * 8, nhx))


class VGGEncoder(Encoder):
    def __init__(self, nc, nhx, nf):
        super().__init__()
        self.conv = nn.ModuleList([
            nn.Sequential(conv3(nc, nf), conv3(nf, nf)),                                                           # 64
            nn.Sequential(nn.MaxPool2d(2), conv3(nf, nf * 2), conv3(nf * 2, nf * 2)),                              # 32
            nn.Sequential(nn.MaxPool2d(2), conv3(nf * 2, nf * 4), conv3(nf * 4, nf * 4), conv3(nf * 4, nf * 4)),   # 16
            nn.Sequential(nn.MaxPool2d(2), conv3(nf * 4, nf * 8), conv3(nf * 8, nf * 8), conv3(nf * 8, nf * 8)),   # 8
        ])
        self.last_conv = nn.Sequential(nn.MaxPool2d(2), nn.Sequential(*last_conv(nf * 8, nhx)))


# Nearest upsampling by 2, then a 3x3 convolution, gives each output pixel 9 products with 4 different input pixels. Rows (and columns) of
# the kernel that meet the same pixel are added beforehand: a transposed 4x4 convolution of stride 2, of 4 products.
FEW_PIXELS = 2048  # of all frames: below, summing a kernel costs more than it saves


def upsampling_kernel(weight):
    """Kernel (C_in, C_out, 4, 4) of the transposed convolution that upsamples and convolves with `weight` (C_out, C_in, 3, 3)."""
    for dim in (2, 3):
        a, b, c = weight.unbind(dim)
        weight = torch.stack([c, b + c, a + b, a], dim)
    return weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)


def conv_transpose_to_one(h, kernel, bias, stride, padding):
    """As `F.conv_transpose2d` to a single channel (grey frames), which would leave most lanes of a processor idle.

    h is (N, C, H, W), kernel (C, 1, k, k), bias (1,) or None, the result (N, 1, H', W').

    One matrix product gives what each pixel adds to its surroundings (taps); `fold` adds them up.
    """
    N, C, H, W = h.shape
    k, (stride, _), (padding, _) = kernel.shape[-1], stride, padding
    taps = kernel.reshape(C, k * k).T @ h.permute(0, 2, 3, 1).reshape(N, H * W, C).transpose(1, 2)  # (N, k k, H W)
    taps = taps.to(torch.promote_types(taps.dtype, torch.float32))  # added in float32, as a convolution does
    out = F.fold(taps, [(n - 1) * stride - 2 * padding + k for n in (H, W)], k, padding=padding, stride=stride)
    return out if bias is None else out + bias[:, None, None]


def function_of(layer):
    """Function of a convolution: of input, kernel, bias, stride and padding."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d
    return conv_transpose_to_one if layer.out_channels == 1 else F.conv_transpose2d


def convolve(layer, h, skip=None, up=False):
    """What `layer` makes of h, upsampled if `up`, joined by `skip` on the channels.

    A convolution is linear: conv([h, s]) = conv_h(h) + conv_s(s). The frames of a video share the second term, computed once.

    Parameters
    ----------
    layer : nn.Conv2d or nn.ConvTranspose2d, without bias
    h : tensor (N, C, H, W)
    skip : tensor (B, C', H', W')
        Of video b, which frames b, B + b, 2 B + b … belong to.
    up : bool
    """
    conv, weight = function_of(layer), layer.weight
    if skip is not None:
        weight, skip_weight = weight.split([h.shape[1], skip.shape[1]], 0 if isinstance(layer, nn.ConvTranspose2d) else 1)
    if up and len(h) * h.shape[2] * h.shape[3] >= FEW_PIXELS:
        out = F.conv_transpose2d(h, upsampling_kernel(weight), stride=2, padding=1)
    else:
        out = conv(F.interpolate(h, scale_factor=2.) if up else h, weight, None, layer.stride, layer.padding)
    if skip is not None:
        out = (out.unflatten(0, (-1, len(skip))) + conv(skip, skip_weight, None, layer.stride, layer.padding)).flatten(0, 1)
    return out


class Decoder(nn.Module):
    """Frame decoder g (paper, section 3.1): `first_upconv`, then four blocks `conv`.

    Attributes
    ----------
    widest : int
        Numbers in a frame's largest activation.
    """

    def layers(self):
        """Layers in order, each with the number of the skip connection that it takes, or None."""
        for i, block in enumerate([self.first_upconv, *self.conv], -1):
            for layer in block.modules():
                if not isinstance(layer, nn.Sequential):
                    first = isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and i >= 0
                    yield layer, i if first else None
                    i = -1 if first else i

    def forward(self, z, skips=None):
        """Draw frames.

        Parameters
        ----------
        z : tensor (N, nh_inf + ny)
            Concatenation [w, y].
        skips : list of four tensors (B, C_i, H_i, W_i), deepest first; needed if and only if built with `skipco`
            Of video b, which frames b, B + b, 2 B + b … of N belong to.

        Returns
        -------
        tensor (N, nc, 64, 64), in [0, 1]
        """
        h, up = z[:, :, None, None], False
        for layer, i in self.layers():
            if isinstance(layer, nn.Upsample):
                up = True  # left to the convolution that follows
            elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                h, up = convolve(layer, h, skips[i] if skips is not None and i is not None else None, up), False
            else:
                h = layer(h)
        return torch.sigmoid(h)


class FrozenDecoder:
    """Decoder in evaluation mode for given videos: all that does not depend on the state y is computed once.

    Batch normalisation, then an affine map a h + b of each channel, is folded into the kernel before it (a) and a bias (b); with skip
    connections, the bias is a picture of each video, with the skip term in it. w gives a term of the first layer in the same way.

    Parameters
    ----------
    decoder : Decoder, in evaluation mode
    w : tensor (B, nh_inf)
    skips : list of four tensors (B, C_i, H_i, W_i), deepest first, or None
    """

    def __init__(self, decoder, w, skips=None):
        self.convolutions = []  # (function, kernel, bias, stride, padding, activated)
        layers, up = list(decoder.layers()), False
        for k, (layer, i) in enumerate(layers):
            if isinstance(layer, nn.Upsample):
                up = True
            if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                continue
            transposed = isinstance(layer, nn.ConvTranspose2d)
            conv, kernel, stride, padding, bias = function_of(layer), layer.weight.to(w), layer.stride, layer.padding, None
            activated = k + 1 < len(layers)  # all but the last one: batch normalisation and LeakyReLU
            if activated:
                norm = layers[k + 1][0]
                scale = norm.weight.to(w) / (norm.running_var.to(w) + norm.eps).sqrt()
                bias = norm.bias.to(w) - norm.running_mean.to(w) * scale
                kernel = kernel * (scale[:, None, None] if transposed else scale[:, None, None, None])
            if k == 0:  # a linear layer, from a vector to 4 x 4 pixels
                linear = kernel.permute(0, 2, 3, 1).flatten(1)  # (nh_inf + ny, 4 · 4 · C)
                self.first = linear[w.shape[1]:], w @ linear[:w.shape[1]] + bias.repeat(16)
                continue
            if skips is not None and i is not None:
                n = len(kernel) if transposed else kernel.shape[1]
                kernel, skip_kernel = kernel.split([n - skips[i].shape[1], skips[i].shape[1]], 0 if transposed else 1)
                bias = conv(skips[i], skip_kernel, bias, stride, padding)
            if up:
                conv, kernel, stride, padding, up = F.conv_transpose2d, upsampling_kernel(kernel), 2, 1, False
            self.convolutions.append((conv, kernel.contiguous(memory_format=torch.channels_last), bias, stride, padding, activated))

    def __call__(self, y):
        """Frames (T, B, nc, 64, 64), in [0, 1], of states y (T, B, ny)."""
        T, B = y.shape[:2]
        kernel, bias = self.first
        h = (y @ kernel + bias).view(T * B, 4, 4, -1).permute(0, 3, 1, 2)  # in the channels-last layout
        F.leaky_relu_(h, SLOPE)
        for conv, kernel, bias, stride, padding, activated in self.convolutions:
            of_video = bias is not None and bias.ndim > 1
            h = conv(h, kernel, None if of_video else bias, stride, padding)
            if of_video:
                h.unflatten(0, (T, B)).add_(bias)
            if activated:
                F.leaky_relu_(h, SLOPE)
        return torch.sigmoid_(h).unflatten(0, (T, B))


class DCGANDecoder(Decoder):
    def __init__(self, nc, nin, nf, skipco):
        super().__init__()
        k = 2 if skipco else 1  # skip connections double the input width of each block
        self.widest = nf * 32 ** 2
        self.first_upconv = first_upconv(nin, nf * 8)
        self.conv = nn.ModuleList([
            upconv4(nf * 8 * k, nf * 4),                                # 4 -> 8
            upconv4(nf * 4 * k, nf * 2),                                # 8 -> 16
            upconv4(nf * 2 * k, nf),                                    # 16 -> 32
            nn.ConvTranspose2d(nf * k, nc, 4, 2, 1, bias=False),        # 32 -> 64
        ])


class VGGDecoder(Decoder):
    def __init__(self, nc, nin, nf, skipco):
        super().__init__()
        k = 2 if skipco else 1
        self.widest = nf * 64 ** 2

        def up():
            return nn.Upsample(scale_factor=2, mode='nearest')

        self.first_upconv = nn.Sequential(first_upconv(nin, nf * 8), up())
        self.conv = nn.ModuleList([
            nn.Sequential(conv3(nf * 8 * k, nf * 8), conv3(nf * 8, nf * 8), conv3(nf * 8, nf * 4), up()),  # 8 -> 16
            nn.Sequential(conv3(nf * 4 * k, nf * 4), conv3(nf * 4, nf * 4), conv3(nf * 4, nf * 2), up()),  # 16 -> 32
            nn.Sequential(conv3(nf * 2 * k, nf * 2), conv3(nf * 2, nf), up()),                             # 32 -> 64
            nn.Sequential(conv3(nf * k, nf), nn.ConvTranspose2d(nf, nc, 3, 1, 1, bias=False)),             # 64
        ])


ENCODERS = {'dcgan': DCGANEncoder, 'vgg': VGGEncoder}
DECODERS = {'dcgan': DCGANDecoder, 'vgg': VGGDecoder}


class MLP(nn.Module):
    """`n_layers` linear layers of width `n_hid`, with a ReLU before each but the first."""

    def __init__(self, n_in, n_hid, n_out, n_layers):
        super().__init__()
        widths = [n_in] + [n_hid] * (n_layers - 1) + [n_out]
        linears = [nn.Linear(a, b) for a, b in zip(widths, widths[1:])]
        self.module = nn.Sequential(nn.Sequential(linears[0]), *(nn.Sequential(nn.ReLU(), lin) for lin in linears[1:]))

    def forward(self, x):
        """(…, n_in) -> (…, n_out)"""
        return self.module(x)


def init_conv(module):
    """Initialise convolutions and batch normalisations of an encoder or decoder as DCGAN does."""
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(m.weight, 0., 0.02)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1., 0.02)
            nn.init.zeros_(m.bias)


def init_orthogonal(module, gain):
    """Initialise the linear layers of a perceptron: orthogonal weights with `gain`, zero biases."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.orthogonal_(m.weight, gain)
            nn.init.zeros_(m.bias)
