"""Metrics against numbers of the published implementation and independent ones."""

import os
import warnings

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

import metrics.lpips
from conftest import GOLDEN
from files import UserError, sha256
from metrics import build_metrics
from metrics.frame import PSNR, SSIM, psnr, ssim
from metrics.lpips import CHECKPOINT, CONVOLUTIONS, LPIPS, find_backbone, find_linear


@pytest.fixture(scope='module')
def frames():
    r = np.random.RandomState(9)
    a = r.rand(6, 3, 64, 64)
    b = np.clip(a + 0.1 * r.randn(6, 3, 64, 64), 0, 1)
    return torch.from_numpy(a.astype(np.float32)), torch.from_numpy(b.astype(np.float32))


@pytest.fixture(scope='module')
def golden():
    return np.load(GOLDEN / 'metrics.npz', allow_pickle=False)


def random_backbone():
    generator = torch.Generator().manual_seed(0)
    backbone = {}
    for i, (n_in, n_out, kernel, _, _), _ in CONVOLUTIONS:
        weight = torch.randn(n_out, n_in, kernel, kernel, generator=generator)
        backbone[f'features.{i}.weight'] = weight * (2 / (n_in * kernel ** 2)) ** .5
        backbone[f'features.{i}.bias'] = 0.1 * torch.randn(n_out, generator=generator)
    return backbone


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
    lpips = LPIPS(find_backbone(os.environ['SRVP_LPIPS_DIR'])).to(device)
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


def test_linear_weights_come_with_the_package():
    weights = find_linear()
    assert [len(w) for w in weights] == [64, 192, 384, 256, 256]
    assert all((w >= 0).all() for w in weights)


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
        found = find_backbone(lpips_dir)
        assert torch.equal(found['features.0.bias'], expected['features.0.bias'])
    assert set(build_metrics(['lpips', 'psnr'], folder, 'cpu')) == {'psnr', 'lpips'}


def test_backbone_errors(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    with pytest.raises(UserError, match='is not a folder'):
        find_backbone(tmp_path / 'nowhere')
    (tmp_path / CHECKPOINT).write_bytes(b'not a checkpoint')
    with pytest.raises(UserError, match='cannot|is not a readable weights file'):
        find_backbone(tmp_path)
    good = random_backbone()
    for name, value in (('features.0.weight', torch.zeros(64, 3, 3, 3)),
                        ('features.3.bias', torch.zeros(1)), ('features.6.bias', 'none'),
                        ('features.8.weight', good['features.8.weight'] / 0)):
        torch.save({**good, name: value}, tmp_path / CHECKPOINT)
        message = ("does not hold the convolutions of torchvision's AlexNet "
                   f'.{name} is missing, of another shape or not')
        with pytest.raises(UserError, match=message):
            find_backbone(tmp_path)


def test_backbone_is_downloaded_and_its_hash_checked(tmp_path, monkeypatch, server):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    folder, address = server
    torch.save(random_backbone(), folder / 'weights')
    for digest in ('00000000', sha256(folder / 'weights')[:8]):
        name = f'alexnet-owt-{digest}.pth'
        (folder / name).write_bytes((folder / 'weights').read_bytes())
        monkeypatch.setattr(metrics.lpips, 'URL', address + name)
        if digest == '00000000':
            with pytest.raises(UserError, match='invalid hash'):
                find_backbone()
        else:
            expected = random_backbone()['features.3.bias']
            assert torch.equal(find_backbone()['features.3.bias'], expected)


def test_missing_backbone_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    # No server listens there
    monkeypatch.setattr(metrics.lpips, 'URL', f'http://127.0.0.1:9/{CHECKPOINT}')
    with pytest.raises(UserError, match=f'put {CHECKPOINT} from http://.* --metrics psnr ssim'):
        find_backbone()
