"""Futures, best of N, evaluation of a batch and validation score, against plain loops."""

import pytest
import torch

from args import parse_train
from conftest import TINY, stirred
from metrics.frame import PSNR, SSIM, psnr, ssim
from metrics.scoring import Best, LastFrame, evaluate_batch, quantise
from model import Noise, build_model
from sampling import Futures, best_futures, draw_noise


@pytest.fixture
def model(device):
    config = parse_train([*TINY, '--data_dir', 'd', '--save_path', 's', '--n_euler_steps', '2'])
    return stirred(build_model(config), 1).to(device)


def predict(model, x, nt, noise, s, b):
    """Frames (nt, C, H, W) of sample s of video b, drawn alone."""
    noise = Noise(noise.y_0[s, b:b + 1].to(x.device), noise.z[:, s, b:b + 1].to(x.device))
    return model(x[:, b:b + 1], nt, noise=noise).x_[:, 0]


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


def test_evaluation_keeps_the_best_and_the_worst(model, device):
    x = torch.rand(6, 3, 1, 64, 64, device=device)
    futures = Futures(model, x[:3], 3, draw_noise(model, 1, 'test', range(3), 7, 6))
    metrics, seen = {'psnr': PSNR(), 'ssim': SSIM()}, []
    scores, frames = evaluate_batch(futures, x[3:], metrics, 5, seen.append)
    assert seen == [3] * 7  # videos, after each sample
    samples = torch.stack(list(futures))  # (S, T, B, C, H, W)
    for name, function in (('psnr', psnr), ('ssim', ssim)):
        every = function(samples, x[3:].expand_as(samples)).mean((1, 3))
        assert every.std(0).min() > 0
        torch.testing.assert_close(scores[name], every.max(0).values)
        best, worst = frames[f'{name}_best'], frames[f'{name}_worst']
        for b in range(3):
            assert torch.equal(best[:, b], quantise(samples[every[:, b].argmax(), :, b]))
            assert torch.equal(worst[:, b], quantise(samples[every[:, b].argmin(), :, b]))
    random = sorted(k for k in frames if k.startswith('random'))
    assert random == [f'random_{i}' for i in range(1, 6)]
    assert torch.equal(frames['random_5'], quantise(samples[4]))
    assert torch.equal(frames['cond_rec'], quantise(futures.given(0)))


def test_one_sample_is_kept_once(model, device):
    x = torch.rand(6, 3, 1, 64, 64, device=device)
    futures = Futures(model, x[:3], 3, draw_noise(model, 1, 'test', range(3), 1, 6))
    scores, frames = evaluate_batch(futures, x[3:], {'psnr': PSNR(), 'ssim': SSIM()})
    assert frames.keys() == {'cond_rec', 'random_1'}
    assert torch.equal(frames['random_1'], quantise(futures[0]))
    torch.testing.assert_close(scores['psnr'], psnr(futures[0], x[3:]).mean((0, 2)))
    torch.testing.assert_close(scores['psnr_t'], psnr(futures[0], x[3:]).mean(2).T)


def test_lower_is_better_for_distances():
    best = Best(higher=False)
    best.update(torch.tensor([1., 2.]), torch.tensor([[10, 20]]), torch.tensor([[1, 2]]))
    best.update(torch.tensor([3., 1.]), torch.tensor([[30, 40]]), torch.tensor([[3, 4]]))
    assert best.score.tolist() == [1, 1]
    assert [kept.tolist() for kept in best.kept] == [[[10, 40]], [[1, 4]]]


def test_validation_selects_over_the_clip_and_scores_the_prediction(model, device):
    x = torch.rand(6, 3, 1, 64, 64, generator=torch.Generator().manual_seed(3)).to(device)
    noise = draw_noise(model, 1, 'val', range(3), 40, 6)
    best = best_futures(model, x, 3, noise, n_random=2)
    found = best.psnr.mean(0)
    differs = False
    for b in range(3):
        clips = [psnr(predict(model, x[:3], 6, noise, s, b), x[:, b]).mean(1) for s in range(40)]
        chosen = max(clips, key=lambda p: p.mean())
        torch.testing.assert_close(found[b], chosen[3:].mean())
        first = max(range(40), key=lambda s: clips[s].mean())
        for sample, s in ((best.frames, first), (best.random[0], 0), (best.random[1], 1)):
            frames = predict(model, x[:3], 6, noise, s, b)[3:]
            torch.testing.assert_close(sample[:, b], frames, rtol=1e-4, atol=1e-5)
        frames = best.frames[:, b]
        torch.testing.assert_close(best.ssim[:, b], ssim(frames, x[3:, b]).mean(1))
        differs |= bool(max(p[3:].mean() for p in clips) > chosen[3:].mean() + 1e-6)
    assert differs  # from the best PSNR of predicted frames alone


def test_last_frame_baseline():
    x = torch.rand(3, 2, 1, 64, 64)
    future, = LastFrame(x, 4)
    assert future.shape == (4, 2, 1, 64, 64) and all(torch.equal(f, x[-1]) for f in future)


def test_quantisation_truncates():
    assert quantise(torch.tensor([0, 0.5, 0.9999, 1.])).tolist() == [0, 127, 254, 255]
