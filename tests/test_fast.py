"""Every fast path against the plain formula (`benchmarks.plain`): results, and gradients where training uses it."""

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import module
from args import parse_train
from tests import plain
from conftest import TINY
from files import UserError
from metrics import PSNR, SSIM
from metrics.lpips import LPIPS
from model import Noise, build_model, loss
from module import FrozenDecoder, conv_transpose_to_one, upsampling_kernel
from sampling import Chunk, Futures, draw_noise, evaluate_batch
from test_metrics import random_backbone

SIZES = [(1, 1), (1, 3), (4, 5), (7, 1)]  # frames, videos


@pytest.fixture(params=[*itertools.product(('dcgan', 'vgg'), (False, True), (1, 3), (4,)), ('dcgan', True, 1, 1), ('vgg', True, 1, 1)], ids=str)
def model(request, device):
    archi, skip, nc, nf = request.param
    config = parse_train([*TINY, '--data_dir', 'd', '--save_path', 's', '--n_euler_steps', '2', '--archi', archi, '--nf', str(nf), *['--skipco'] * skip])
    config.nc = nc
    model = build_model(config)
    with torch.no_grad():
        for p in model.parameters():
            p *= 2  # pictures that are not all grey
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.bias.normal_(0, 0.1)
        for _ in range(5):
            model(torch.rand(5, 4, nc, 64, 64), 5)  # statistics of batch norm
    return model.to(device)


def inputs(model, T, B, dtype=torch.float32):
    g, device = torch.Generator().manual_seed(1), next(model.parameters()).device

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=dtype).to(device)
    sizes = {'vgg': (8, 16, 32, 64), 'dcgan': (4, 8, 16, 32)}['vgg' if isinstance(model.decoder, module.VGGDecoder) else 'dcgan']
    nf = model.encoder.conv[0][0][0].out_channels if isinstance(model.encoder.conv[0][0], nn.Sequential) else model.encoder.conv[0][0].out_channels
    skips = [normal(B, nf * k, n, n) for k, n in zip((8, 4, 2, 1), sizes)] if model.skipco else None
    return normal(B, model.w_inf[0].out_features), normal(T, B, model.ny), skips


@pytest.mark.parametrize('few', [0, module.FEW_PIXELS])  # with the summed kernels everywhere, and where they pay
@pytest.mark.parametrize('T, B', SIZES)
def test_decoder_and_its_gradients(model, T, B, few, monkeypatch):
    monkeypatch.setattr(module, 'FEW_PIXELS', few)
    model.train()
    with torch.no_grad():
        torch.testing.assert_close(model.decode(*inputs(model, T, B)), plain.decode(model.decoder, *inputs(model, T, B)), rtol=0, atol=1e-5)
    model.double()  # gradients of batch statistics cancel: float32 would hide what is compared
    w, y, skips = inputs(model, T, B, torch.float64)
    parameters = [w, y, *(skips or [])]
    results = []
    for decode in (lambda *a: plain.decode(model.decoder, *a), model.decode):
        for p in [*parameters, *model.decoder.parameters()]:
            p.requires_grad_().grad = None
        x_ = decode(w, y, skips)
        (x_ * torch.arange(x_.numel(), dtype=torch.float64, device=x_.device).sin().view(x_.shape)).sum().backward()
        results.append([x_.detach(), *(p.grad for p in [*parameters, *model.decoder.parameters()])])
    assert results[0][0].shape[:2] == (T, B) and results[0][0].std() > 0.01
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('T, B', SIZES)
def test_decoders_in_evaluation(model, T, B):
    model.eval().requires_grad_(False)
    w, y, skips = inputs(model, T, B)
    expected = plain.decode(model.decoder, w, y, skips)
    assert expected.std() > 0.001
    torch.testing.assert_close(model.decode(w, y, skips), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(FrozenDecoder(model.decoder, w, skips)(y), expected, rtol=0, atol=1e-5)


def test_frozen_decoder_of_half_precision(model):
    """As kernels are under apex from level O2 on, which casts what enters and leaves a network."""
    model.eval().requires_grad_(False)
    w, y, skips = inputs(model, 2, 3)
    expected = plain.decode(model.decoder, w, y, skips)
    for m in model.decoder.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            m.half()
    torch.testing.assert_close(FrozenDecoder(model.decoder, w, skips)(y), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize('B', [1, 3])
def test_training_step(model, device, B, monkeypatch):
    model.train().double()
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    g = torch.Generator().manual_seed(2)
    x = torch.rand(5, B, channels(model), 64, 64, generator=g, dtype=torch.float64).to(device)
    noise = Noise(*(part.to(x) for part in model.draw_noise(5, B, generator=g)))
    weights = {'obs_scale': 0.3, 'beta_y': 0.5, 'beta_z': 2., 'l2_res': 0.7}
    results = []
    for step in (lambda: plain.loss(x, plain.forward(model, x, 5, noise=noise), **weights), lambda: loss(x, model(x, 5, noise=noise), **weights).loss):
        model.zero_grad()
        torch.manual_seed(3)  # frames for w and the skip connections
        value = step()
        value.backward()
        results.append([value.detach(), *(p.grad for p in model.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7 * expected.abs().max().item())


def channels(model):
    return next(m for m in model.encoder.modules() if isinstance(m, nn.Conv2d)).in_channels


def test_evaluation(model, device):
    """The best of samples, by all metrics, in one go."""
    model.eval().requires_grad_(False)
    x = torch.rand(7, 3, channels(model), 64, 64, generator=torch.Generator().manual_seed(5)).to(device)
    noise, lpips = draw_noise(model, 1, 'test', range(3), 4, 7).of(slice(None), device), LPIPS(random_backbone()).to(device)
    expected = plain.evaluate(model, lpips, x, 3, noise, 4)
    found, _ = evaluate_batch(Futures(model, x[:3], 4, noise, 4), x[3:], {'psnr': PSNR(), 'ssim': SSIM(), 'lpips': lpips})
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('size', [1, 4, 7])
def test_summed_kernel_upsamples_and_convolves(device, n, size):
    x, weight = torch.randn(n, 5, size, size, dtype=torch.float64, device=device), torch.randn(6, 5, 3, 3, dtype=torch.float64, device=device)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.), weight, padding=1)
    torch.testing.assert_close(F.conv_transpose2d(x, upsampling_kernel(weight), stride=2, padding=1), expected)


@pytest.mark.parametrize('k, stride', [(4, 2), (3, 1)])
def test_one_channel_by_its_taps(device, k, stride):
    x, kernel = torch.randn(3, 5, 6, 6, device=device), torch.randn(5, 1, k, k, device=device)
    expected = F.conv_transpose2d(x, kernel, None, stride, 1)
    torch.testing.assert_close(conv_transpose_to_one(x, kernel, None, (stride, stride), (1, 1)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('C', [1, 3])
def test_lpips_of_grey_frames_by_one_channel(device, C):
    lpips, x, y = LPIPS(random_backbone()).to(device), *torch.rand(2, 2, 3, C, 64, 64, device=device)
    torch.testing.assert_close(lpips(x, lpips.prepare(y)), plain.lpips(lpips, x, y), rtol=1e-5, atol=1e-6)


# Chunks

@pytest.fixture
def tiny(device):
    return build_model(parse_train([*TINY, '--data_dir', 'd', '--save_path', 's'])).to(device).eval().requires_grad_(False)


def test_chunks_of_any_size_give_the_same_frames(tiny, device):
    x, noise = torch.rand(3, 2, 1, 64, 64, device=device), draw_noise(tiny, 1, 'test', range(2), 5, 7)
    reference = [tiny.decode(tiny.condition(x).w, Futures(tiny, x, 4, noise).y[:, s]) for s in range(5)]
    for size in (1, 3, 8, 16, 17, 1000):  # less than a row, a sample, two samples, all
        futures = Futures(tiny, x, 4, noise, chunk=Chunk(tiny, size))
        frames = list(futures)
        assert len(frames) == 5
        for s in range(5):
            torch.testing.assert_close(frames[s], reference[s], rtol=0, atol=1e-6)
            torch.testing.assert_close(futures[s], reference[s], rtol=0, atol=1e-6)


@pytest.mark.parametrize('n_samples', [2, 50])
def test_memory_does_not_grow_with_the_samples(n_samples, tiny, device):
    x, noise = torch.rand(3, 2, 1, 64, 64, device=device), draw_noise(tiny, 1, 'test', range(2), n_samples, 7)
    futures, sizes = Futures(tiny, x, 4, noise, chunk=Chunk(tiny, 20)), []
    decoder = futures._decoder
    futures._decoder = lambda y: sizes.append(y.shape[:2].numel()) or decoder(y)
    assert sum(1 for _ in futures) == n_samples and max(sizes) <= 20 and sum(sizes) == n_samples * 4 * 2


def test_largest_activation_is_the_one_stated(model, monkeypatch):
    model.eval().requires_grad_(False)
    w, y, skips = inputs(model, 2, 3)
    decoder, sizes, function = FrozenDecoder(model.decoder, w, skips), [], F.leaky_relu_
    monkeypatch.setattr(F, 'leaky_relu_', lambda h, slope: sizes.append(h.numel()) or function(h, slope))
    decoder(y)
    assert max(sizes) == 2 * 3 * model.decoder.widest


@pytest.mark.parametrize('free, cached, size', [(28.5, 1.5, 30), (1e6, 0, 4096), (0.5, 0, 1)])
def test_chunk_of_a_gpu_is_what_its_free_memory_holds(free, cached, size, monkeypatch):
    """In units of a frame: eight times its largest activation, of float32."""
    unit = 8 * 4 * 1000
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (int(free * unit), 2 * int(free * unit)))
    monkeypatch.setattr(torch.cuda, 'memory_reserved', lambda device: int((cached + 7) * unit))
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda device: 7 * unit)
    model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device('cuda'))]), decoder=SimpleNamespace(widest=1000))
    assert Chunk(model).size == size


@pytest.mark.parametrize('error', [torch.cuda.OutOfMemoryError('CUDA out of memory'), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_halves_the_chunk_and_goes_on(error, tiny):
    sizes, y = [], torch.arange(24.).view(12, 2, 1)

    def decode(y):
        sizes.append(y.numel())
        if y.numel() > 5:
            raise error
        return y
    chunk = Chunk(tiny, 100)
    assert torch.equal(chunk.decode(decode, y), y)
    assert sizes[:4] == [24, 12, 6, 2] and chunk.size <= 5  # halves, of whole rows
    sizes.clear()
    assert torch.equal(chunk.decode(decode, y), y) and max(sizes) <= 5  # it remembers

    def never(y):
        raise error
    with pytest.raises(UserError, match='memory does not suffice to decode a frame of 2 videos; give a smaller batch'):
        chunk.decode(never, y)

    def broken(y):
        raise RuntimeError('another error')
    with pytest.raises(RuntimeError, match='another error'):
        chunk.decode(broken, y)
