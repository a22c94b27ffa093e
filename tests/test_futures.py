"""Futures, their chunks and scores, against plain loops."""

from types import SimpleNamespace

from files import UserError, explain

import pytest
import torch

from args import parse_train
from conftest import TINY, stirred
from evaluation.futures import Best, Chunk, Futures, draw_noise, quantise, score_futures
from metrics.frame import PSNR, SSIM, psnr, ssim
from model import Noise, build_model

METRICS = {'psnr': PSNR(), 'ssim': SSIM()}


@pytest.fixture
def model(device):
    config = parse_train([*TINY, '--data_dir', 'd', '--save_path', 's', '--n_euler_steps', '2'])
    return stirred(build_model(config), 1).to(device)


def predict(model, x, nt, noise, s, b):
    """Frames (nt, C, H, W) of sample s of video b, drawn alone."""
    noise = Noise(noise.y_0[s, b:b + 1].to(x.device), noise.z[:, s, b:b + 1].to(x.device))
    return model(x[:, b:b + 1], nt, noise=noise).x_[:, 0]


# Futures

def test_noise_of_a_video_does_not_depend_on_its_batch(model):
    whole = draw_noise(model, 1, 'test', range(4), 3, 6)
    assert whole.y_0.shape == (3, 4, model.ny) and whole.z.shape == (5, 3, 4, model.nz)
    part = draw_noise(model, 1, 'test', [2], 3, 6)
    assert torch.equal(part.y_0, whole.y_0[:, 2:3]) and torch.equal(part.z, whole.z[:, :, 2:3])
    assert not torch.equal(draw_noise(model, 2, 'test', [2], 3, 6).y_0, part.y_0)
    assert not torch.equal(draw_noise(model, 1, 'val', [2], 3, 6).y_0, part.y_0)
    assert abs(draw_noise(model, 1, 'test', range(200), 20, 2).z.std() - 1) < 0.02


def test_futures_are_those_of_the_model_one_by_one(model, device):
    x = torch.rand(3, 4, 1, 64, 64, device=device)
    noise = draw_noise(model, 1, 'test', range(4), 2, 7)
    futures = Futures(model, x, 4, noise)
    assert len(futures) == 2
    for s, future in enumerate(futures):
        for b in range(4):
            expected = predict(model, x, 7, noise, s, b)
            found = torch.cat([futures.given(s)[:, b], future[:, b]])
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_states_between_frames(model, device):
    x = torch.rand(3, 2, 1, 64, 64, device=device)
    noise = draw_noise(model, 1, 'test', range(2), 2, 7)
    some, every = (Futures(model, x, 4, noise, 3, between) for between in (False, True))
    assert every[0].shape == (12, 2, 1, 64, 64)
    torch.testing.assert_close(every[1][2::3], some[1], rtol=0, atol=1e-5)


def test_states_that_are_not_finite_are_said(model, device):
    x = torch.rand(3, 2, 1, 64, 64, device=device)
    model.dynamics.module[-1][-1].bias.fill_(3e38)
    with pytest.raises(UserError, match='the states of the model grow beyond float32; predict fe'):
        Futures(model, x, 4, draw_noise(model, 1, 'test', range(2), 2, 7))


# Chunks

@pytest.mark.parametrize('size', [1, 3, 8, 16, 17, 1000])
def test_chunks_of_any_size_give_the_same_frames(size, model, device):
    """Less than a row, a row, one sample, two samples, all; never more frames than asked for."""
    x = torch.rand(3, 2, 1, 64, 64, device=device)
    noise = draw_noise(model, 1, 'test', range(2), 5, 7)
    futures, sizes = Futures(model, x, 4, noise, chunk=Chunk(model, size)), []
    expected = [model.decode(model.condition(x).w, futures.y[:, s]) for s in range(5)]
    decoder = futures._decoder
    futures._decoder = lambda y: sizes.append(y.shape[:2].numel()) or decoder(y)
    frames = list(futures)
    assert len(frames) == 5 and max(sizes) <= max(size, 2) and sum(sizes) == 5 * 4 * 2
    for s in range(5):
        torch.testing.assert_close(frames[s], expected[s], rtol=0, atol=1e-5)
        torch.testing.assert_close(futures[s], expected[s], rtol=0, atol=1e-5)


@pytest.mark.parametrize('free, cached, nx, size', [
    (28.5, 1.5, 64, 30), (1e6, 0, 64, 4096), (1e6, 0, 256, 256), (0.5, 0, 64, 1),
    (None, 0, 32, 512), (None, 0, 64, 128), (None, 0, 256, 8)])
def test_size_of_a_chunk(free, cached, nx, size, monkeypatch):
    """On a GPU, in units of what a frame needs: eight times its largest activation, in float32."""
    unit = 8 * 4 * 1000
    device = torch.device('cpu' if free is None else 'cuda')
    for name, value in (('mem_get_info', (int((free or 0) * unit), 0)),
                        ('memory_reserved', int((cached + 7) * unit)),
                        ('memory_allocated', 7 * unit)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=device)]), nx=nx,
                            decoder=SimpleNamespace(widest=1000))
    assert Chunk(model).size == size


@pytest.mark.parametrize('error', [torch.cuda.OutOfMemoryError('CUDA out of memory'),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_halves_the_chunk_and_goes_on(error, model):
    sizes, y = [], torch.arange(24.).view(12, 2, 1)

    def decode(y, most=5):
        sizes.append(y.numel())
        if y.numel() > most:
            raise error
        return y
    chunk = Chunk(model, 100)
    assert torch.equal(chunk.decode(decode, y), y)
    assert sizes[:4] == [24, 12, 6, 2] and chunk.size <= 5  # halves, in whole rows
    sizes.clear()
    assert torch.equal(chunk.decode(decode, y), y) and max(sizes) <= 5  # the size is kept
    with pytest.raises(type(error)) as caught:
        chunk.decode(lambda y: decode(y, 0), y)
    assert 'use a smaller --batch_size' in explain(caught.value)

    def broken(y):
        raise RuntimeError('another error')
    with pytest.raises(RuntimeError, match='another error'):
        chunk.decode(broken, y)


# Scores

def test_the_best_and_the_worst_are_kept(model, device):
    x = torch.rand(6, 3, 1, 64, 64, device=device)
    futures = Futures(model, x[:3], 3, draw_noise(model, 1, 'test', range(3), 7, 6))
    seen = []
    scores, frames = score_futures(futures, x[3:], METRICS, on_sample=seen.append)
    assert seen == [3] * 7
    samples = torch.stack(list(futures))  # (S, T, B, C, H, W)
    for name, function in (('psnr', psnr), ('ssim', ssim)):
        every = function(samples, x[3:].expand_as(samples)).mean((1, 3))
        assert every.std(0).min() > 0
        torch.testing.assert_close(scores[name], every.max(0).values)
        best, worst = frames[f'{name}_best'], frames[f'{name}_worst']
        for b in range(3):
            chosen = samples[every[:, b].argmax(), :, b]
            assert torch.equal(best[:, b], quantise(chosen))
            torch.testing.assert_close(scores[f'{name}_t'][b], function(chosen, x[3:, b]).mean(1))
            assert torch.equal(worst[:, b], quantise(samples[every[:, b].argmin(), :, b]))
    random = sorted(k for k in frames if k.startswith('random'))
    assert random == [f'random_{i}' for i in range(1, 6)]
    assert torch.equal(frames['random_5'], quantise(samples[4]))


def test_lower_is_better_for_distances():
    best = Best(higher=False)
    best.update(torch.tensor([1., 2.]), torch.tensor([[10, 20]]), torch.tensor([[1, 2]]))
    best.update(torch.tensor([3., 1.]), torch.tensor([[30, 40]]), torch.tensor([[3, 4]]))
    assert best.score.tolist() == [1, 1]
    assert [kept.tolist() for kept in best.kept] == [[[10, 40]], [[1, 4]]]


def test_equal_frames_count_as_best_and_are_left_out_of_means():
    """Video 0 has one equal frame in sample 1, video 1 has only equal ones, video 2 has none."""
    truth = torch.rand(4, 3, 1, 16, 16, generator=torch.Generator().manual_seed(1)) / 2
    near, far = truth + 0.01, truth + 0.4
    far[0, 0], far[:, 1] = truth[0, 0], truth[:, 1]
    scores, frames = score_futures([near, far], truth, METRICS, keep=lambda x: x)
    assert torch.equal(frames['psnr_best'][:, :2], far[:, :2])
    assert torch.equal(frames['psnr_best'][:, 2], near[:, 2])
    assert torch.equal(frames['psnr_worst'][:, :2], near[:, :2])
    assert scores['psnr_t'].isinf().sum(1).tolist() == [1, 4, 0]
    assert scores['psnr'].isnan().tolist() == [False, True, False]
    torch.testing.assert_close(scores['psnr'][0], psnr(far[1:, 0], truth[1:, 0]).mean())
    torch.testing.assert_close(scores['psnr'][2], torch.tensor(40.), rtol=1e-4, atol=0)
    assert not scores['ssim'].isnan().any()


def test_quantisation_truncates():
    assert quantise(torch.tensor([0, 0.5, 0.9999, 1.])).tolist() == [0, 127, 254, 255]
