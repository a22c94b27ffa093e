"""Fast paths against the plain formulation (`tests/plain.py`): results and gradients."""

import copy
import functools

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import module
from args import parse_train
from conftest import TINY
from evaluation.futures import Futures, draw_noise, score_futures
from metrics.frame import LPIPS, PSNR, SSIM
from model import Noise, build_model, loss
from module import FrozenDecoder, conv_transpose_to_one_channel
from tests import plain

# Architecture, skip connections, channels, width, size of frames
MODELS = [*((archi, skipco, nc, 4, 64) for archi in ('dcgan', 'vgg') for skipco in (False, True)
            for nc in (1, 3)),
          *((archi, True, 1, 1, nx) for archi in ('dcgan', 'vgg') for nx in (32, 128, 256)),
          ('dcgan', False, 3, 2, 32), ('vgg', False, 3, 2, 128)]
SIZES = [(model, T, B) for model in MODELS for T, B in ((1, 1), (1, 3), (2, 3), (3, 1))
         if model[-1] <= 64 or (T, B) == (2, 3)]


@functools.cache
def build(archi, skipco, nc, nf, nx):
    """Model in training mode, shared between tests: copy it before any change."""
    config = parse_train([*TINY, '--data_dir', 'd', '--save_path', 's', '--archi', archi,
                          '--nf', str(nf), '--nx', str(nx), '--n_euler_steps', '2'])
    config.skipco, config.nc = skipco, nc
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return prepare(build_model(config))


def prepare(model):
    """Model whose frames are not uniformly grey, with statistics of batch normalisation."""
    with torch.no_grad():
        for p in model.parameters():
            p *= 2
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.bias.normal_(0, 0.1)
        for _ in range(5):
            model(torch.rand(5, 4, *frame_shape(model)), 5)
    return model


@functools.cache
def lpips_on(device):
    return LPIPS(plain.random_backbone()).to(device)


@pytest.fixture(params=MODELS, ids=str)
def model(request, device):
    return copy.deepcopy(build(*request.param)).to(device)


@pytest.fixture
def frozen(model):
    return model.eval().requires_grad_(False)


def inputs(model, T, B, dtype=torch.float32):
    """w, y and skips for `model.decode`."""
    generator, device = torch.Generator().manual_seed(1), next(model.parameters()).device

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=dtype).to(device)
    skips = None
    if model.skipco:
        with torch.no_grad():
            _, shapes = model.encode(torch.zeros(1, 1, *frame_shape(model)).to(draw(1)))
        skips = [draw(B, *s.shape[2:]) for s in shapes]
    return draw(B, model.w_inf[0].out_features), draw(T, B, model.ny), skips


def frame_shape(model):
    """(nc, H, W) of a model's frames."""
    first = next(m for m in model.encoder.modules() if isinstance(m, nn.Conv2d))
    return first.in_channels, model.nx, model.nx


def decode_with_gradients(decode, decoder, inputs):
    """Frames, and the gradients of a weighted sum of them by all inputs and parameters."""
    w, y, skips = inputs
    tensors = [w, y, *(skips or []), *decoder.parameters()]
    for tensor in tensors:
        tensor.requires_grad_().grad = None
    x_ = decode(w, y, skips)
    weights = torch.arange(x_.numel(), dtype=torch.float64, device=x_.device).sin()
    (x_ * weights.view(x_.shape)).sum().backward()
    return [x_.detach(), *(tensor.grad for tensor in tensors)]


@pytest.mark.parametrize('model, T, B', SIZES, indirect=['model'], ids=str)
def test_decoder_and_its_gradients(model, T, B, monkeypatch):
    def plain_decode(*args):
        return plain.decode(model.decoder, *args)

    # Summed kernels everywhere, and only where they pay off
    thresholds = [0, module.MIN_PIXELS] if isinstance(model.decoder, module.VGGDecoder) else [0]
    args = inputs(model.eval(), T, B)
    args_64 = inputs(model.double(), T, B, torch.float64)
    model.float().train()
    with torch.no_grad():
        expected = plain_decode(*args)
        for threshold in thresholds:
            monkeypatch.setattr(module, 'MIN_PIXELS', threshold)
            torch.testing.assert_close(model.decode(*args), expected, rtol=0, atol=1e-5)
    model.double()  # gradients of batch statistics cancel: float32 would hide differences
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    expected = decode_with_gradients(plain_decode, model.decoder, args_64)
    assert expected[0].shape[:2] == (T, B) and expected[0].std() > 0.01
    for threshold in thresholds:
        monkeypatch.setattr(module, 'MIN_PIXELS', threshold)
        found = decode_with_gradients(model.decode, model.decoder, args_64)
        for e, f in zip(expected, found, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('model, T, B', SIZES, indirect=['model'], ids=str)
def test_decoders_in_evaluation(frozen, T, B, monkeypatch):
    w, y, skips = inputs(frozen, T, B)
    expected = plain.decode(frozen.decoder, w, y, skips)
    assert expected.std() > 0.001
    torch.testing.assert_close(frozen.decode(w, y, skips), expected, rtol=0, atol=1e-5)
    decoder, sizes, function = FrozenDecoder(frozen.decoder, w, skips), [], F.leaky_relu_
    monkeypatch.setattr(F, 'leaky_relu_',
                        lambda h, slope: sizes.append(h.numel()) or function(h, slope))
    torch.testing.assert_close(decoder(y), expected, rtol=0, atol=1e-5)
    assert max(sizes) == T * B * frozen.decoder.widest  # the largest activation


class OtherDecoder(module.DCGANDecoder):
    """Convolutions with biases, and another activation: `FrozenDecoder` would leave them out."""

    def __init__(self, *args):
        super().__init__(*args)
        for m in self.modules():
            if isinstance(m, nn.ConvTranspose2d):
                m.bias = nn.Parameter(torch.randn(m.out_channels))
        for block in self.conv[:-1]:
            block[2] = nn.SiLU()


@pytest.mark.parametrize('skipco', [False, True])
def test_a_decoder_of_other_layers_is_computed_layer_by_layer(skipco, monkeypatch):
    for archi in ('dcgan', 'vgg'):
        assert build(archi, skipco, 1, 4, 64).decoder.is_standard
    config = parse_train([*TINY, '--data_dir', 'd', '--save_path', 's'])
    config.skipco = skipco
    monkeypatch.setitem(module.DECODERS, 'dcgan', OtherDecoder)
    model = prepare(build_model(config)).eval().requires_grad_(False)
    assert not model.decoder.is_standard
    w, y, skips = inputs(model, 2, 3)
    expected = plain.decode(model.decoder, w, y, skips)
    torch.testing.assert_close(model.decode(w, y, skips), expected)
    torch.testing.assert_close(FrozenDecoder(model.decoder, w, skips)(y), expected)


@pytest.mark.parametrize('change', [
    lambda d: setattr(d.conv[0][2], 'negative_slope', 0.1),
    lambda d: setattr(d.conv[0][0], 'dilation', (2, 2)),
    lambda d: d.conv[0].append(nn.Dropout(0.1)),
    lambda d: d.conv.__setitem__(0, nn.Sequential(d.conv[0][0], d.conv[0][2])),
    lambda d: setattr(d.first_upconv[0], 'padding', (1, 1)),
    lambda d: d.conv.append(nn.Upsample(scale_factor=2))])
def test_what_fast_paths_do_not_know_is_noticed(change):
    decoder = module.DCGANDecoder(1, 5, 2, 64, False)
    change(decoder)
    assert not decoder.is_standard


def test_frozen_decoder_in_half_precision(frozen):
    """With the kernels of apex from level O2 on, which casts inputs and outputs of a network."""
    w, y, skips = inputs(frozen, 2, 3)
    expected = plain.decode(frozen.decoder, w, y, skips)
    for m in frozen.decoder.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            m.half()
    torch.testing.assert_close(FrozenDecoder(frozen.decoder, w, skips)(y), expected,
                               rtol=0, atol=0.02)


@pytest.mark.parametrize('model', [m for m in MODELS if m[-1] <= 64], indirect=True, ids=str)
def test_training_step(model, device, monkeypatch):
    B = 3
    model.train().double()
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(4, B, *frame_shape(model), generator=generator, dtype=torch.float64)
    x = x.to(device)
    noise = Noise(*(part.to(x) for part in model.draw_noise(4, B, generator=generator)))
    weights = {'obs_scale': 0.3, 'beta_y': 0.5, 'beta_z': 2., 'l2_res': 0.7}
    expected = plain.gradients(
        model, lambda: plain.loss(x, plain.forward(model, x, 4, noise=noise), **weights))
    found = plain.gradients(model, lambda: loss(x, model(x, 4, noise=noise), **weights).loss)
    for e, f in zip(expected, found, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-7, atol=1e-7 * e.abs().max().item())


@pytest.mark.parametrize('model', [m for m in MODELS if m[-1] < 256], indirect=True, ids=str)
def test_evaluation(frozen, device):
    """The best of several samples by all metrics."""
    generator, lpips = torch.Generator().manual_seed(5), lpips_on(device)
    x = torch.rand(5, 2, *frame_shape(frozen), generator=generator).to(device)
    noise = draw_noise(frozen, 1, 'test', range(2), 3, 5).of(slice(None), device)
    expected = plain.evaluate(frozen, lpips, x, 3, noise, 4)
    metrics = {'psnr': PSNR(), 'ssim': SSIM(), 'lpips': lpips}
    found, _ = score_futures(Futures(frozen, x[:3], 2, noise, 4), x[3:], metrics)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('k, stride', [(4, 2), (3, 1)])
def test_transposed_convolution_to_one_channel(device, k, stride):
    x, kernel = torch.randn(3, 5, 6, 6, device=device), torch.randn(5, 1, k, k, device=device)
    for bias in (None, torch.randn(1, device=device)):
        expected = F.conv_transpose2d(x, kernel, bias, stride, 1)
        found = conv_transpose_to_one_channel(x, kernel, bias, (stride, stride), (1, 1))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
