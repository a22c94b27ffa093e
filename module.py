"""Layers of SRVP: frame encoders, frame decoders and perceptrons (paper, section 3.3).

The nesting of the modules is part of the file format: it gives the parameter names of the published checkpoints.
"""

import torch
import torch.nn as nn

NX = 64  # frames are 64 x 64: the number of downsamplings is fixed by the architectures


def conv_block(conv, batch_norm=True):
    """`conv` (without bias), batch normalisation unless told otherwise, LeakyReLU of slope 0.2."""
    layers = [conv]
    if batch_norm:
        layers.append(nn.BatchNorm2d(conv.out_channels))
    return nn.Sequential(*layers, nn.LeakyReLU(0.2))


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


class Decoder(nn.Module):
    """Frame decoder g (paper, section 3.1): `first_upconv`, then four blocks `conv`."""

    def forward(self, z, skips=None):
        """Draw frames.

        Parameters
        ----------
        z : tensor (N, nh_inf + ny)
            Concatenation [w, y].
        skips : list of four tensors (N, C_i, H_i, W_i), deepest first; needed if and only if built with `skipco`

        Returns
        -------
        tensor (N, nc, 64, 64), in [0, 1]
        """
        h = self.first_upconv(z[:, :, None, None])
        for i, block in enumerate(self.conv):
            h = block(h if skips is None else torch.cat([h, skips[i]], 1))
        return torch.sigmoid(h)


class DCGANDecoder(Decoder):
    def __init__(self, nc, nin, nf, skipco):
        super().__init__()
        k = 2 if skipco else 1  # skip connections double the input width of each block
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
