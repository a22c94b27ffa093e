"""Metrics against numbers of the published implementation and independent ones."""

import os
import warnings

from files import UserError, sha256

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

import metrics.frame
from conftest import GOLDEN
from metrics import FVD, METRICS, build_metrics
from metrics.frame import CHECKPOINT, CONVOLUTIONS, LPIPS, PSNR, SSIM, Metric, psnr, ssim
from tests.plain import random_backbone


@pytest.fixture(scope='module')
def frames():
    r = np.random.RandomState(9)
    a = r.rand(6, 3, 64, 64)
    b = np.clip(a + 0.1 * r.randn(6, 3, 64, 64), 0, 1)
    return torch.from_numpy(a.astype(np.float32)), torch.from_numpy(b.astype(np.float32))


@pytest.fixture(scope='module')
def golden():
    return np.load(GOLDEN / 'metrics.npz', allow_pickle=False)


def skimage_ssim(x, y):
    return structural_similarity(x, y, data_range=1, gaussian_weights=True, sigma=1.5,
                                 use_sample_covariance=False)


@pytest.mark.parametrize('name, function', [('psnr', psnr), ('ssim', ssim)])
def test_golden_frame_metrics(name, function, frames, golden, device):
    found = function(*(v.to(device) for v in frames)).cpu()
    torch.testing.assert_close(found, torch.from_numpy(golden[name]), rtol=1e-5, atol=1e-5)


def test_psnr_of_known_differences():
    x = torch.zeros(2, 1, 64, 64)
    y = x.clone()
    y[1] = 0.1
    assert psnr(x, y)[0].item() == float('inf')
    assert psnr(x, y)[1].item() == pytest.approx(20, abs=1e-5)


def test_ssim_is_that_of_skimage(frames):
    a, b = (v[0, 0].double().numpy() for v in frames)
    assert ssim(*frames)[0, 0].item() == pytest.approx(skimage_ssim(a, b), abs=1e-5)
    x = torch.zeros(64, 64)
    x[10:40, 20:30] = 1  # flat regions: variances near 0
    expected = skimage_ssim(x.numpy(), x.numpy() * 0.9)
    assert ssim(x, x * 0.9).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize('metric, function', [(PSNR(), psnr), (SSIM(), ssim)])
def test_video_metrics_average_channels(metric, function):
    x, y = torch.rand(2, 4, 3, 2, 64, 64)
    expected = torch.stack([torch.stack([
        torch.stack([function(x[t, b, c], y[t, b, c]) for c in range(2)]).mean()
        for b in range(3)]) for t in range(4)])
    torch.testing.assert_close(metric(x, metric.prepare(y)), expected)


@pytest.mark.parametrize('grey', [False, True])
def test_golden_lpips(frames, golden, grey, device):
    """With the real AlexNet, which is not included: $SRVP_LPIPS_DIR is a folder with it."""
    if 'SRVP_LPIPS_DIR' not in os.environ:
        pytest.skip("SRVP_LPIPS_DIR does not name a folder with torchvision's AlexNet")
    lpips = LPIPS.build(device, os.environ['SRVP_LPIPS_DIR'])
    channels = 1 if grey else 3
    a, b = (v[:, :channels].to(device) for v in frames)
    expected = torch.from_numpy(golden['lpips_alex_v01_gray' if grey else 'lpips_alex_v01'])
    found = lpips.distance(lpips.features(a), lpips.features(b))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
    found = lpips(a[:, None], lpips.prepare(b[:, None]))[:, 0]  # one video of six frames
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_lpips_is_that_of_its_authors(frames, device):
    """Against the package `lpips`, on the same random backbone."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it uses deprecated options of torchvision
        import lpips as reference
        theirs = reference.LPIPS(net='alex', version='0.1', pnet_rand=True, verbose=False).eval()
    backbone = random_backbone()
    convolutions = [m for m in theirs.net.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        for conv, (i, _, _) in zip(convolutions, CONVOLUTIONS):
            conv.weight.copy_(backbone[f'features.{i}.weight'])
            conv.bias.copy_(backbone[f'features.{i}.bias'])
        expected = theirs(*frames, normalize=True).flatten()
    ours, frames = LPIPS(backbone).to(device), [v.to(device) for v in frames]
    found = ours.distance(*map(ours.features, frames))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)
    x, y = (f.unflatten(0, (3, 2)) for f in frames)  # three frames of two videos
    found, expected = ours(x, ours.prepare(y)).cpu(), expected.unflatten(0, (3, 2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    x = torch.rand(2, 1, 1, 64, 64, device=device)
    colour = x.repeat(1, 1, 3, 1, 1)
    expected = ours(colour, ours.prepare(1 - colour))
    torch.testing.assert_close(ours(x, ours.prepare(1 - x)), expected)


# Weights of LPIPS

def first_bias(lpips_dir=None):
    """One of the parameters that are found."""
    return LPIPS.build(lpips_dir=lpips_dir).convolutions[0].bias


def test_backbone_is_searched_in_the_folder_then_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    folder, empty = tmp_path / 'given', tmp_path / 'empty'
    cache = tmp_path / 'torch' / 'hub' / 'checkpoints'
    for d in (folder, cache, empty):
        d.mkdir(parents=True)
    features = random_backbone()
    whole = {**random_backbone(), 'classifier.6.bias': torch.zeros(1000)}
    features['features.0.bias'] += 1
    torch.save(features, folder / 'alexnet-features.pth')
    torch.save(whole, cache / CHECKPOINT)
    for lpips_dir, expected in ((folder, features), (None, whole), (empty, whole)):
        assert torch.equal(first_bias(lpips_dir), expected['features.0.bias'])


def test_other_backbones_are_refused(tmp_path):
    with pytest.raises(UserError, match='--lpips_dir .*nowhere is not a folder'):
        first_bias(tmp_path / 'nowhere')
    (tmp_path / CHECKPOINT).write_bytes(b'not a checkpoint')
    with pytest.raises(UserError, match='is not a readable weights file'):
        first_bias(tmp_path)
    for name, value in (('features.0.weight', torch.zeros(64, 3, 3, 3)),
                        ('features.3.bias', torch.zeros(1)), ('features.6.bias', 'none')):
        torch.save({**random_backbone(), name: value}, tmp_path / CHECKPOINT)
        message = f"{CHECKPOINT} does not hold the convolutions of torchvision's AlexNet"
        with pytest.raises(UserError, match=message):
            first_bias(tmp_path)


def test_backbone_is_downloaded_and_its_hash_checked(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    torch.save(random_backbone(), tmp_path / 'weights')

    def publish(digest):
        name = f'alexnet-owt-{digest}.pth'
        (tmp_path / name).write_bytes((tmp_path / 'weights').read_bytes())
        monkeypatch.setattr(metrics.frame, 'CHECKPOINT', name)
        monkeypatch.setattr(metrics.frame, 'URL', (tmp_path / name).as_uri())
    publish('00000000')
    with pytest.raises(UserError, match='download of .* failed .invalid hash .* --lpips_dir'):
        first_bias()
    publish(sha256(tmp_path / 'weights')[:8])
    assert torch.equal(first_bias(), random_backbone()['features.0.bias'])
    (tmp_path / metrics.frame.CHECKPOINT).unlink()
    assert torch.equal(first_bias(), random_backbone()['features.0.bias'])  # from the cache
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'other'))
    with pytest.raises(UserError, match='download of .* failed .* --lpips_dir'):
        first_bias()


# Registry

class Error(Metric):
    """A metric as a reader of CONTRIBUTING.md would write it."""
    label, digits, higher_is_better = 'MAE', 3, False

    def __call__(self, x, target):
        return (x - target).abs().mean((2, 3, 4))


def test_a_metric_is_a_class_with_a_name_in_the_registry(monkeypatch):
    monkeypatch.setitem(METRICS, 'mae', Error)
    assert list(build_metrics(['mae', 'ssim', 'psnr'])) == ['psnr', 'ssim', 'mae']
    metric = build_metrics(['mae'])['mae']
    x, y = torch.rand(2, 4, 3, 1, 16, 16)
    torch.testing.assert_close(metric(x, metric.prepare(y)), (x - y).abs().mean((2, 3, 4)))
    shown = {m.label: (m.unit, m.digits, m.higher_is_better) for m in (*METRICS.values(), FVD)}
    assert shown == {'PSNR': ('dB', 2, True), 'SSIM': ('', 4, True), 'LPIPS': ('', 4, False),
                     'MAE': ('', 3, False), 'FVD': ('', 2, False)}
