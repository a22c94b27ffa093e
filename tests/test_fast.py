"""Fast paths against the plain formulation (`tests/plain.py`): results and gradients."""

import copy
import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from test_metrics import random_backbone

import module
from args import parse_train
from conftest import TINY
from files import UserError
from metrics import PSNR, SSIM
from metrics.lpips import LPIPS
from metrics.scoring import evaluate_batch
from model import Noise, build_model, loss
from module import FrozenDecoder, conv_transpose_to_one_channel, upsampling_kernel
from sampling import Chunk, Futures, draw_noise
from tests import plain

SIZES = [(1, 1), (1, 3), (2, 3), (3, 1)]  # T, B

# Architecture, skip connections, channels, width, size of frames
MODELS = [*((archi, skipco, nc, 4, 64) for archi in ('dcgan', 'vgg') for skipco in (False, True)
            for nc in (1, 3)),
          *((archi, True, 1, 1, nx) for archi in ('dcgan', 'vgg') for nx in (32, 64, 128, 256)),
          ('dcgan', False, 3, 2, 32), ('vgg', False, 3, 2, 128)]


def config_of(archi='dcgan', skipco=False, nc=1, nf=2, nx=64, n_euler_steps=1):
    config = parse_train([*TINY, '--data_dir', 'd', '--save_path', 's', '--archi', archi,
                          '--nf', str(nf), '--nx', str(nx), '--n_euler_steps', str(n_euler_steps)])
    config.skipco, config.nc = skipco, nc
    return config


@functools.cache
def build(*params):
    """Model in training mode, shared between tests: copy it before any change."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(config_of(*params, n_euler_steps=2))
        with torch.no_grad():
            for p in model.parameters():
                p *= 2  # frames that are not uniformly grey
            for m in model.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.bias.normal_(0, 0.1)
            for _ in range(5):
                model(torch.rand(5, 4, *frame_shape(model)), 5)  # batch norm statistics
    return model


@functools.cache
def lpips_on(device):
    return LPIPS(random_backbone()).to(device)


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
    size = 4 * 2 ** len(model.encoder.conv)
    return first.in_channels, size, size


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


@pytest.mark.parametrize('T, B', SIZES)
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
    expected = decode_with_gradients(plain_decode, model.decoder, args_64)
    assert expected[0].shape[:2] == (T, B) and expected[0].std() > 0.01
    for threshold in thresholds:
        monkeypatch.setattr(module, 'MIN_PIXELS', threshold)
        found = decode_with_gradients(model.decode, model.decoder, args_64)
        for e, f in zip(expected, found, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('T, B', SIZES)
def test_decoders_in_evaluation(frozen, T, B):
    w, y, skips = inputs(frozen, T, B)
    expected = plain.decode(frozen.decoder, w, y, skips)
    assert expected.std() > 0.001
    torch.testing.assert_close(frozen.decode(w, y, skips), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(FrozenDecoder(frozen.decoder, w, skips)(y), expected,
                               rtol=0, atol=1e-5)


def test_frozen_decoder_in_half_precision(frozen):
    """With the kernels of apex from level O2 on, which casts inputs and outputs of a network."""
    w, y, skips = inputs(frozen, 2, 3)
    expected = plain.decode(frozen.decoder, w, y, skips)
    for m in frozen.decoder.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            m.half()
    torch.testing.assert_close(FrozenDecoder(frozen.decoder, w, skips)(y), expected,
                               rtol=0, atol=0.02)


@pytest.mark.parametrize('B', [1, 3])
def test_training_step(model, device, B, monkeypatch):
    model.train().double()
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(4, B, *frame_shape(model), generator=generator, dtype=torch.float64)
    x = x.to(device)
    noise = Noise(*(part.to(x) for part in model.draw_noise(4, B, generator=generator)))
    weights = {'obs_scale': 0.3, 'beta_y': 0.5, 'beta_z': 2., 'l2_res': 0.7}

    def gradients(step):
        model.zero_grad()
        torch.manual_seed(3)  # frames for w and the skip connections
        value = step()
        value.backward()
        return [value.detach(), *(p.grad for p in model.parameters())]

    expected = gradients(lambda: plain.loss(x, plain.forward(model, x, 4, noise=noise), **weights))
    found = gradients(lambda: loss(x, model(x, 4, noise=noise), **weights).loss)
    for e, f in zip(expected, found, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-7, atol=1e-7 * e.abs().max().item())


def test_evaluation(frozen, device):
    """The best of several samples by all metrics."""
    generator, lpips = torch.Generator().manual_seed(5), lpips_on(device)
    x = torch.rand(5, 2, *frame_shape(frozen), generator=generator).to(device)
    noise = draw_noise(frozen, 1, 'test', range(2), 3, 5).of(slice(None), device)
    expected = plain.evaluate(frozen, lpips, x, 3, noise, 4)
    metrics = {'psnr': PSNR(), 'ssim': SSIM(), 'lpips': lpips}
    found, _ = evaluate_batch(Futures(frozen, x[:3], 2, noise, 4), x[3:], metrics)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('size', [1, 4, 7])
def test_summed_kernel_upsamples_and_convolves(device, n, size):
    x = torch.randn(n, 5, size, size, dtype=torch.float64, device=device)
    kernel = torch.randn(6, 5, 3, 3, dtype=torch.float64, device=device)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.), kernel, padding=1)
    found = F.conv_transpose2d(x, upsampling_kernel(kernel), stride=2, padding=1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('k, stride', [(4, 2), (3, 1)])
def test_transposed_convolution_to_one_channel(device, k, stride):
    x, kernel = torch.randn(3, 5, 6, 6, device=device), torch.randn(5, 1, k, k, device=device)
    bias = torch.randn(1, device=device)
    for b in (None, bias):
        expected = F.conv_transpose2d(x, kernel, b, stride, 1)
        found = conv_transpose_to_one_channel(x, kernel, b, (stride, stride), (1, 1))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('nc', [1, 3])
def test_lpips_of_grey_frames_from_one_channel(device, nc):
    lpips, x, y = lpips_on(device), *torch.rand(2, 2, 3, nc, 64, 64, device=device)
    torch.testing.assert_close(lpips(x, lpips.prepare(y)).mean(0), plain.lpips(lpips, x, y),
                               rtol=1e-5, atol=1e-6)


# Chunks

@pytest.fixture
def tiny(device):
    return build_model(config_of()).to(device).eval().requires_grad_(False)


def test_chunks_of_any_size_give_the_same_frames(tiny, device):
    x = torch.rand(3, 2, 1, 64, 64, device=device)
    noise = draw_noise(tiny, 1, 'test', range(2), 5, 7)
    futures = Futures(tiny, x, 4, noise)
    expected = [tiny.decode(tiny.condition(x).w, futures.y[:, s]) for s in range(5)]
    for size in (1, 3, 8, 16, 17, 1000):  # less than a row, a row, one sample, two samples, all
        futures = Futures(tiny, x, 4, noise, chunk=Chunk(tiny, size))
        frames = list(futures)
        assert len(frames) == 5
        for s in range(5):
            torch.testing.assert_close(frames[s], expected[s], rtol=0, atol=1e-6)
            torch.testing.assert_close(futures[s], expected[s], rtol=0, atol=1e-6)


@pytest.mark.parametrize('n_samples', [2, 50])
def test_memory_does_not_grow_with_the_samples(n_samples, tiny, device):
    x = torch.rand(3, 2, 1, 64, 64, device=device)
    noise = draw_noise(tiny, 1, 'test', range(2), n_samples, 7)
    futures, sizes = Futures(tiny, x, 4, noise, chunk=Chunk(tiny, 20)), []
    decoder = futures._decoder
    futures._decoder = lambda y: sizes.append(y.shape[:2].numel()) or decoder(y)
    assert sum(1 for _ in futures) == n_samples
    assert max(sizes) <= 20 and sum(sizes) == n_samples * 4 * 2


def test_widest_is_the_largest_activation(frozen, monkeypatch):
    w, y, skips = inputs(frozen, 2, 3)
    decoder, sizes, function = FrozenDecoder(frozen.decoder, w, skips), [], F.leaky_relu_
    monkeypatch.setattr(F, 'leaky_relu_',
                        lambda h, slope: sizes.append(h.numel()) or function(h, slope))
    decoder(y)
    assert max(sizes) == 2 * 3 * frozen.decoder.widest


@pytest.mark.parametrize('free, cached, nx, size', [
    (28.5, 1.5, 64, 30), (1e6, 0, 64, 4096), (1e6, 0, 256, 256), (0.5, 0, 64, 1)])
def test_chunk_on_a_gpu_fits_the_free_memory(free, cached, nx, size, monkeypatch):
    """In units of what a frame needs: eight times its largest activation, in float32."""
    unit = 8 * 4 * 1000
    for name, value in (('mem_get_info', (int(free * unit), 2 * int(free * unit))),
                        ('memory_reserved', int((cached + 7) * unit)),
                        ('memory_allocated', 7 * unit)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    parameter = SimpleNamespace(device=torch.device('cuda'))
    model = SimpleNamespace(parameters=lambda: iter([parameter]), nx=nx,
                            decoder=SimpleNamespace(widest=1000))
    assert Chunk(model).size == size


@pytest.mark.parametrize('nx, size', [(32, 512), (64, 128), (128, 32), (256, 8)])
def test_chunk_on_a_cpu_has_as_many_pixels_at_each_size(nx, size):
    assert Chunk(build('dcgan', True, 1, 1, nx)).size == size


@pytest.mark.parametrize('error', [torch.cuda.OutOfMemoryError('CUDA out of memory'),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_halves_the_chunk_and_goes_on(error, tiny):
    sizes, y = [], torch.arange(24.).view(12, 2, 1)

    def decode(y):
        sizes.append(y.numel())
        if y.numel() > 5:
            raise error
        return y
    chunk = Chunk(tiny, 100)
    assert torch.equal(chunk.decode(decode, y), y)
    assert sizes[:4] == [24, 12, 6, 2] and chunk.size <= 5  # halves, in whole rows
    sizes.clear()
    assert torch.equal(chunk.decode(decode, y), y) and max(sizes) <= 5  # the size is kept

    def never(y):
        raise error
    message = 'out of memory while decoding one frame of 2 videos; use a smaller --batch_size'
    with pytest.raises(UserError, match=message):
        chunk.decode(never, y)

    def broken(y):
        raise RuntimeError('another error')
    with pytest.raises(RuntimeError, match='another error'):
        chunk.decode(broken, y)
