"""Fréchet video distance: golden numbers of TensorFlow, plain formulas, weights and scripts."""

import functools
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from test_evaluation import script as test_script

import download
import metrics.fvd
import published
from conftest import GOLDEN, ROOT, refused
from files import UserError, exclusive
from metrics.fvd import Embedding, build_embedding, check, convert, fvd, i3d, tfhub, weights
from metrics.fvd import __main__ as script
from metrics.fvd.frechet import frechet_distance

golden = np.load(GOLDEN / 'i3d.npz', allow_pickle=False)
RESOLVE = tfhub.resolve  # the real one; tests have another (`offline`)


def grad(n_frames):
    b, t, i, j, c = np.ogrid[:2, :n_frames, :64, :64, :3]
    v = ((4 + b) * i + 3 * j + 5 * t * (c + 1) + 40 * c + 97 * b) % 511
    return np.where(v > 255, 510 - v, v).astype(np.uint8)


def random_videos(*shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


VIDEOS = {'noise16': lambda: random_videos(3, 16, 64, 64, 3, seed=7),
          'grad12': lambda: grad(12), 'grad25': lambda: grad(25)}


@functools.cache
def random_variables():
    """Random weights of the golden logits, by TensorFlow name."""
    rng, variables = np.random.RandomState(1234), {}
    shapes = sorted((name, shape) for _, name, shape in weights.parameters())
    for name, (out, *rest) in shapes:
        kind = name.rsplit('/')[-1]
        if kind == 'w':
            shape = (*rest[1:], rest[0], out)
            value = rng.randn(*shape) * np.sqrt(2 / np.prod(shape[:-1]))
        elif kind == 'moving_variance':
            value = 0.5 + rng.rand(1, 1, 1, 1, out)
        else:
            value = 0.1 * rng.randn(*((out,) if kind == 'b' else (1, 1, 1, 1, out)))
        variables[name] = value.astype(np.float32)
    return variables


@functools.cache
def random_state():
    return weights.from_tensorflow(random_variables(), 'these')


@functools.cache
def random_embedding(device='cpu'):
    return Embedding(random_state(), device)


@pytest.fixture(scope='module')
def variables_path(tmp_path_factory):
    path = tmp_path_factory.mktemp('variables') / 'variables.npz'
    np.savez(path, **random_variables())
    return path


@pytest.fixture(scope='module')
def module(variables_path, tmp_path_factory):
    """Folder of a TF-Hub module with the random weights.

    Its graph is the real one if $SRVP_I3D_GRAPH is a folder with it.
    """
    folder = tmp_path_factory.mktemp('i3d') / 'module'
    graph = [os.environ['SRVP_I3D_GRAPH']] if 'SRVP_I3D_GRAPH' in os.environ else []
    subprocess.run([sys.executable, ROOT / 'tests' / 'i3d_module.py', variables_path, folder,
                    *graph], check=True, capture_output=True)
    return folder


@pytest.fixture
def exported(variables_path, monkeypatch):
    """Export the variables of any module without TensorFlow: list of the modules exported."""
    modules = []

    def export(module, path):
        modules.append(module)
        shutil.copy(variables_path, path)
    monkeypatch.setattr(tfhub, 'export', export)
    return modules


@pytest.fixture
def memory(monkeypatch):
    """Embeddings compute the features of each batch of videos once: number of videos computed."""
    embed, known, computed = Embedding.__call__, {}, []

    def remember(self, videos):
        keys = [(self.sha256, video.tobytes()) for video in videos]
        new = {key: video for key, video in zip(keys, videos) if key not in known}
        if new:
            known.update(zip(new, embed(self, np.stack(list(new.values())))))
            computed.extend(new)
        return np.stack([known[key] for key in keys])
    monkeypatch.setattr(Embedding, '__call__', remember)
    return computed


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('SRVP_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'cache').mkdir()
    return tmp_path / 'cache'


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test leaves this machine."""
    def resolve(handle):
        raise UserError('no tensorflow_hub')
    monkeypatch.setattr(weights, 'URL', refused('1.tar.gz'))
    monkeypatch.setattr(weights, 'HANDLE', refused('deepmind/i3d-kinetics-400/1'))
    monkeypatch.setattr(tfhub, 'resolve', resolve)


class MeanColour:
    """An embedding that costs nothing."""
    sha256, identity, comparable, note = 'none', 'published', True, None

    def __call__(self, videos):
        return np.concatenate([videos.mean((2, 3, 4)), videos.std((2, 3, 4))], 1)

    def close(self):
        pass


# Network

@pytest.mark.parametrize('name', VIDEOS)
def test_golden_logits(name, device):
    videos = VIDEOS[name]()
    x = i3d.preprocess(torch.from_numpy(videos).to(device)).cpu()
    assert hashlib.sha256(x.numpy().tobytes()).hexdigest() == golden[f'pre_sha256_{name}']
    expected = golden[f'logits_{name}']
    found = random_embedding(device)(videos)
    assert abs(found - expected).max() < 1e-5 * abs(expected).max()


def test_preprocessing_of_other_sizes_is_the_formula():
    videos = random_videos(1, 1, 48, 91, 1)
    found = i3d.preprocess(torch.from_numpy(videos))[0, 0, :, :, 0]
    x = videos[0, 0, :, :, 0].astype(np.float32)

    def neighbours(i, n):
        position = np.float32(i) * np.float32(n / 224)
        return int(position), min(int(np.ceil(position)), n - 1), position - np.floor(position)
    for i, j in [(0, 0), (223, 223), (100, 37), (5, 220)]:
        (y0, y1, fy), (x0, x1, fx) = neighbours(i, 48), neighbours(j, 91)
        top, bottom = (x[y, x0] + (x[y, x1] - x[y, x0]) * fx for y in (y0, y1))
        value = np.float32(2) * (top + (bottom - top) * fy) / np.float32(255) - np.float32(1)
        assert found[i, j] == value


def test_grey_videos_are_three_equal_channels():
    grey = random_videos(1, 9, 64, 64, 1)
    colour = random_embedding()(np.repeat(grey, 3, -1))
    assert abs(random_embedding()(grey) - colour).max() < 1e-6 * abs(colour).max()


def pad_same(x, kernel, stride):
    """Zeros around x (N, C, T, H, W), by the formula of TensorFlow."""
    totals = [max((-(-n // s) - 1) * s + k - n, 0)
              for n, k, s in zip(x.shape[2:], kernel, stride)]
    return F.pad(x, [p for t in totals[::-1] for p in (t // 2, t - t // 2)])


@pytest.mark.parametrize('kernel, stride', [((1, 3), (1, 2)), ((3, 3), (2, 2)), ((2, 2), (2, 2)),
                                            ((3, 3), (1, 1))])
@pytest.mark.parametrize('n', [2, 3, 4, 9])
def test_max_pool_is_the_plain_one(kernel, stride, n):
    x = torch.rand(2, n, 6, 10, 5, generator=torch.Generator().manual_seed(n))
    kernel3, stride3 = ((t, s, s) for t, s in (kernel, stride))
    expected = F.max_pool3d(pad_same(x.movedim(-1, 1), kernel3, stride3), kernel3, stride3)
    assert torch.equal(i3d.max_pool(x, kernel, stride), expected.movedim(1, -1))


@pytest.mark.parametrize('name, stride, n', [('Conv3d_1a_7x7', 2, 5), ('Conv3d_1a_7x7', 2, 6),
                                             ('Conv3d_2b_1x1', 1, 3), ('Conv3d_2c_3x3', 1, 4)])
def test_unit_is_convolution_normalisation_and_relu(name, stride, n):
    state = random_state()
    weight = state[f'{name}.conv3d.weight']
    mean, variance, beta = (state[f'{name}.bn.{k}']
                            for k in ('running_mean', 'running_var', 'bias'))
    x = torch.rand(2, n, 8, 9, weight.shape[1], generator=torch.Generator().manual_seed(0))
    padded = pad_same(x.movedim(-1, 1), weight.shape[2:], (stride,) * 3)
    h = F.conv3d(padded, weight, None, stride).movedim(1, -1)
    expected = F.relu((h - mean) * (variance + 1e-3).rsqrt() + beta)
    found = i3d.Unit(state, name, stride=stride)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# Distance

@pytest.mark.parametrize('n1, n2, expected', [
    (64, 64, 712.955490286), (64, 100, 682.367537713), (256, 256, 409.358529221),
    (1000, 1000, 148.876760716)])
def test_golden_distances(n1, n2, expected):
    r = np.random.RandomState(3)
    x, y = r.randn(n1, 400), 1.2 * r.randn(n2, 400) + 0.3
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(x, x) < 1e-6


def test_distance_is_the_formula_where_covariances_are_regular():
    r = np.random.RandomState(0)
    x, y = r.randn(50, 5) @ r.randn(5, 5), r.randn(70, 5) + 1
    s, t = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(s @ t).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_distance_of_constant_features_and_of_bad_ones():
    assert frechet_distance(np.ones((20, 4)), np.ones((30, 4))) == 0
    assert frechet_distance(np.ones((20, 4)), np.full((30, 4), 3.)) == pytest.approx(16)
    x = np.random.RandomState(0).randn(20, 4)
    for bad in (float('nan'), float('inf')):
        y = x.copy()
        y[3, 2] = bad
        with pytest.raises(ValueError, match='not finite'):
            frechet_distance(x, y)
    for y in (x[:1], x[:, :3], x[0]):
        with pytest.raises(ValueError, match='shapes'):
            frechet_distance(x, y)


# Videos

def test_fvd_of_sets_of_videos():
    x, y = (random_videos(n, 9, 8, 8, 3, seed=n) for n in (16, 23))
    value = fvd(x, y, MeanColour(), batch_size=5)
    assert value == pytest.approx(frechet_distance(MeanColour()(x), MeanColour()(y))) and value > 0
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    assert fvd(*tensors, MeanColour()) == pytest.approx(value)
    constant = np.full((16, 9, 8, 8, 1), 7, np.uint8)
    assert fvd(constant, constant, MeanColour()) == pytest.approx(0, abs=1e-6)
    assert fvd(x, x, MeanColour()) == pytest.approx(0, abs=1e-6)
    assert fvd(constant, constant + 1, MeanColour()) == pytest.approx(9)


def test_fvd_of_constant_videos_by_the_network():
    black = np.zeros((16, 9, 16, 16, 1), np.uint8)
    features = random_embedding()(black)
    assert fvd(black, black, lambda videos: features) < 1e-6


@pytest.mark.parametrize('x, y, message', [
    ((15, 9, 8, 8, 3), (16, 9, 8, 8, 3), 'the first set has 15 videos, .* at least 16'),
    ((16, 8, 8, 8, 3), (16, 8, 8, 8, 3), 'the first set has videos of 8 frames, .* at least 9'),
    ((16, 9, 8, 8, 3), (16, 10, 8, 8, 3), 'videos of 9 and 10 frames'),
    ((16, 9, 8, 8, 3), (16, 9, 8, 8), r'the second set has shape \(16, 9, 8, 8\)'),
    ((16, 9, 8, 8, 3), (16, 9, 8, 8, 2), 'C 1 or 3'),
    ((16, 9, 8, 0, 3), (16, 9, 8, 8, 3), 'the first set .* H and W at least 1'),
])
def test_errors_of_sets(x, y, message):
    with pytest.raises(UserError, match=message):
        fvd(np.zeros(x, np.uint8), np.zeros(y, np.uint8), MeanColour())


def test_features_that_are_not_finite():
    videos = np.zeros((2, 16, 9, 8, 8, 1), np.uint8)
    with pytest.raises(UserError, match='not finite: its weights are damaged'):
        fvd(*videos, lambda videos: np.full((len(videos), 4), np.nan))
    with pytest.raises(UserError, match='float64'):
        fvd(*videos.astype(float), MeanColour())


def test_features_of_continued_videos():
    given, frames = (random_videos(n, 5, 8, 8, 3, seed=n) for n in (3, 6))
    found = metrics.fvd.embed_continued(MeanColour(), given, frames)
    whole = np.concatenate([given, frames]).swapaxes(0, 1)
    assert np.array_equal(found, MeanColour()(whole)) and found.shape == (5, 18)


# Weights

def test_parameters_are_those_of_the_module():
    sizes = [np.prod(shape) for *_, shape in weights.parameters()]
    assert len(sizes) == 230 and sum(sizes) == 12_704_544
    digest = tfhub.variables_sha256(random_variables())
    assert digest == golden['weights_sha256'] == random_embedding().sha256
    back = weights.to_tensorflow(random_state())
    assert all(np.array_equal(back[k], v) for k, v in random_variables().items())


def test_checkpoint_of_the_port(tmp_path):
    """With the counters and unit scales of batch normalisation, which it has, or without."""
    state = random_state()
    counters = {k.replace('bias', 'num_batches_tracked'): torch.tensor(3)
                for k in state if k.endswith('.bn.bias')}
    without = {k: v for k, v in state.items() if not k.endswith('.bn.weight')}
    for name, value in (('i3d_pretrained_400.pt', {**state, **counters}), ('a.pt', without)):
        torch.save(value, tmp_path / name)
        assert build_embedding(tmp_path / name).sha256 == golden['weights_sha256']


@pytest.mark.parametrize('change, message', [
    ({'Mixed_3b.b1b.conv3d.weight': None}, 'Mixed_3b.b1b.conv3d.weight is missing'),
    ({'logits.conv3d.bias': torch.zeros(157)},
     r'logits.conv3d.bias is of shape \(157,\), expected \(400,\)'),
    ({'Mixed_5c.b0.bn.weight': torch.full((384,), 1.1)},
     'Mixed_5c.b0.bn.weight is not 1 everywhere'),
    ({'Mixed_5c.b0.bn.weight': 'ones'}, 'Mixed_5c.b0.bn.weight is not 1 everywhere'),
])
def test_other_networks_are_refused(change, message):
    state = {k: v for k, v in {**random_state(), **change}.items() if v is not None}
    with pytest.raises(UserError, match=message):
        weights.check_state(state, 'x.pt')


def test_search_in_the_cache(cache, tmp_path):
    (cache / 'rgb_imagenet.pt').touch()
    with pytest.raises(UserError, match=f'^I3D is not in {cache}'):
        weights.find()
    for name in ('i3d_pretrained_400.pt', 'i3d-kinetics-400_1.tar.gz'):
        (cache / name).touch()
        assert weights.find() == cache / name
    (cache / 'i3d-kinetics-400_1.pt').touch()
    assert weights.find() == cache / 'i3d-kinetics-400_1.pt'
    assert weights.find(backend='tfhub') == cache / 'i3d-kinetics-400_1.tar.gz'
    (cache / 'i3d-kinetics-400_1').mkdir()
    (cache / 'i3d-kinetics-400_1' / 'saved_model.pb').touch()
    assert weights.find(backend='tfhub') == cache / 'i3d-kinetics-400_1'
    with pytest.raises(UserError, match='--i3d_path nowhere does not exist'):
        weights.find('nowhere')
    module = r'use the TF-Hub module \(folder with saved_model.pb, or its .tar.gz\)'
    with pytest.raises(UserError, match=f'{tmp_path} is not I3D; {module} or a .pt file$'):
        weights.find(tmp_path)
    with pytest.raises(UserError, match=f'.pt is not I3D; {module}, for --fvd_backend tfhub$'):
        weights.find(cache / 'rgb_imagenet.pt', 'tfhub')


def test_conversion_names_its_own_argument(cache, exported, tmp_path, monkeypatch):
    (tmp_path / 'file.pt').touch()
    for argv, message in (
            ([], 'get the first file on another machine and pass it as MODULE$'),
            (['nowhere'], r'^MODULE nowhere does not exist; use the TF-Hub module .*.tar.gz\)$'),
            ([str(tmp_path / 'file.pt')],
             rf'^MODULE {tmp_path}/file.pt is not I3D; use the TF-Hub module .*.tar.gz\)$')):
        with pytest.raises(UserError, match=message):
            convert.main(argv)
    (tmp_path / 'm.tar.gz').touch()
    monkeypatch.setattr(tfhub, 'module_sha256', lambda module: 'that of the archive')
    (tmp_path / f'.m.pt.{os.getpid()}.tmp').symlink_to('/dev/full')
    message = 'm.pt cannot be written .No space left on device.; copy .* and pass it as MODULE$'
    with pytest.raises(UserError, match=message):
        convert.main([str(tmp_path / 'm.tar.gz')])


@pytest.mark.parametrize('main, name', [(script.main, 'metrics.fvd'),
                                        (convert.main, 'metrics.fvd.convert')])
def test_usage_says_how_to_call(main, name, call):
    done = call(main, '--help')
    assert done.code == 0 and done.out.startswith(f'usage: python -m {name} [-h]')


# The TF-Hub module

def test_both_backends_are_equal(module, exported):
    videos = np.concatenate([VIDEOS['grad12'](), VIDEOS['noise16']()[:1, :12]])
    reference = build_embedding(module, 'tfhub')
    ours = build_embedding(module)
    assert exported == [module] and module.with_name('module.pt').exists()  # converted
    assert ours.sha256 == reference.sha256 == golden['weights_sha256']
    expected = reference(videos)
    assert abs(ours(videos) - expected).max() < 1e-5 * abs(expected).max()
    logits = golden['logits_grad12']
    assert abs(expected[:2] - logits).max() < 1e-5 * abs(logits).max()
    narrow = videos[:2, :9, :, :48, :1]
    expected = reference(narrow)
    assert abs(ours(narrow) - expected).max() < 1e-5 * abs(expected).max()
    as_they_are = i3d.preprocess(torch.from_numpy(narrow)).numpy()
    assert np.array_equal(reference(as_they_are), expected)
    assert (reference.identity, reference.comparable) == (ours.identity, True)
    reference.close()
    assert 'tensorflow' not in sys.modules


def test_conversion_of_an_archive(module, tmp_path, capsys):
    with tarfile.open(tmp_path / 'm.tar.gz', 'w:gz', compresslevel=1) as tar:
        tar.add(module, './')
        tar.add(module / 'saved_model.pb', '../outside')  # to be skipped
    convert.main([str(tmp_path / 'm.tar.gz')])
    assert sorted(p.name for p in tmp_path.iterdir()) == ['m.pt', 'm.tar.gz']
    digest = golden['weights_sha256']
    assert f'{tmp_path}/m.pt: SHA-256 of the weights {digest}' in capsys.readouterr().out
    weights.load_state(tmp_path / 'm.tar.gz')
    assert 'converting' not in capsys.readouterr().err  # a second time
    name = 'Conv3d_1a_7x7.conv3d.weight'
    state, identity = weights.load_state(tmp_path / 'm.pt')
    assert torch.equal(state[name], random_state()[name]) and identity == 'published'


def test_conversion_belongs_to_its_module(module, exported, tmp_path, capsys):
    """That of another module, as after an update, is replaced; another file is left alone."""
    shutil.copytree(module, tmp_path / 'm')
    state, name = random_state(), 'logits.conv3d.bias'
    other = {**state, name: state[name] + 1}
    torch.save({**other, weights.SOURCE: 'of another one'}, tmp_path / 'm.pt')
    found, _ = weights.load_state(tmp_path / 'm')
    assert f'converting {tmp_path}/m to {tmp_path}/m.pt' in capsys.readouterr().err
    assert exported == [tmp_path / 'm']
    assert torch.equal(found[name], state[name]) and weights.SOURCE not in found
    later = tmp_path / 'later'
    later.mkdir()
    for file in ('m', 'm.pt'):
        (tmp_path / file).rename(later / file)
    assert weights.sha256(weights.load_state(later / 'm')[0]) == golden['weights_sha256']
    torch.save(other, tmp_path / 'weights')
    for content in ((tmp_path / 'weights').read_bytes(), b'notes of mine'):
        (later / 'm.pt').write_bytes(content)
        message = 'later/m.pt is in the way of the conversion of the TF-Hub module; .* move it away'
        with pytest.raises(UserError, match=message):
            weights.load_state(later / 'm')
        assert (later / 'm.pt').read_bytes() == content
    assert len(exported) == 1


def test_modules_that_cannot_be_read(module, tmp_path):
    (tmp_path / 'a.tar.gz').write_bytes(b'no archive')
    with pytest.raises(UserError, match='a.tar.gz is not a tar archive or is damaged'):
        build_embedding(tmp_path / 'a.tar.gz')
    (tmp_path / 'b').mkdir()
    shutil.copy(module / 'saved_model.pb', tmp_path / 'b')
    with pytest.raises(UserError, match='lacks variables/variables.index'):
        build_embedding(tmp_path / 'b')
    shutil.copytree(module, tmp_path / 'c')
    (tmp_path / 'c' / 'saved_model.pb').write_bytes(b'no graph')
    with pytest.raises(UserError, match='c could not be run by TensorFlow'):
        build_embedding(tmp_path / 'c', 'tfhub')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.tar.gz', 'b', 'c']


def test_tensorflow_and_pytorch_do_not_meet():
    code = (f'import sys, runpy; sys.argv = ["tfhub.py"]; sys.path[0] = "{ROOT}/metrics/fvd"\n'
            f'try: runpy.run_path("{ROOT}/metrics/fvd/tfhub.py", run_name="__main__")\n'
            'except ValueError: print("torch" in sys.modules)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'False'


# Downloads

def archived(files):
    """Content of a .tar.gz archive of files by name, with the folder `variables`."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode='w:gz') as tar:
        folder = tarfile.TarInfo('variables')
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.fixture
def archive(site, monkeypatch):
    """Content of an archive at `weights.URL` like the module's, without numbers."""
    data = archived({name: os.urandom(500) for name in tfhub.FILES})
    site.files = {'1.tar.gz': data}
    monkeypatch.setattr(weights, 'URL', site.url('1.tar.gz'))
    monkeypatch.setattr(weights, 'SHA256', hashlib.sha256(data).hexdigest())
    return data


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_archive_is_downloaded_when_missing(site, archive, cache, exported, capsys):
    cache.rmdir()
    assert weights.find() == cache / weights.ARCHIVE
    assert (cache / weights.ARCHIVE).read_bytes() == archive and names(cache) == [weights.ARCHIVE]
    err = capsys.readouterr().err
    assert f'I3D is not in {cache}\ndownloading it (about 50 MB) from {site.url("1.tar.gz")}' in err
    assert f'{len(archive) / 1000:.2f}k' in err  # the progress bar
    assert weights.find(backend='tfhub') == cache / weights.ARCHIVE and len(site.requests) == 1
    _, identity = weights.load_state(weights.find())
    assert identity == 'published' and exported == [cache / weights.ARCHIVE]
    assert weights.find() == cache / weights.CONVERTED
    assert weights.load_state(weights.find())[1] == 'published' and len(site.requests) == 1


def test_broken_download_is_resumed(site, archive, cache):
    (cache / f'{weights.ARCHIVE}.part').write_bytes(archive[:100])
    site.cuts = [200]
    assert weights.find().read_bytes() == archive
    assert [requested for _, requested in site.requests] == ['bytes=100-', 'bytes=300-']
    assert names(cache) == [weights.ARCHIVE]


def test_download_of_another_process_is_awaited(site, archive, cache, monkeypatch):
    monkeypatch.setattr(weights, 'DOWNLOAD_TIME', 0.1)
    with exclusive(cache / '.i3d.lock', 'busy'):
        with pytest.raises(UserError, match=f'still downloading I3D to {cache}; wait for it'):
            weights.find()
    monkeypatch.setattr(weights, 'DOWNLOAD_TIME', 10)
    has_started = threading.Event()

    def other():
        with exclusive(cache / '.i3d.lock', 'busy'):
            has_started.set()
            time.sleep(0.3)
            (cache / weights.ARCHIVE).write_bytes(archive)
    thread = threading.Thread(target=other)
    thread.start()
    has_started.wait()
    assert weights.find() == cache / weights.ARCHIVE and site.requests == []
    thread.join()


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('SRVP_CACHE', str(tmp_path / 'file' / 'cache'))
    with pytest.raises(UserError, match=r'\$SRVP_CACHE .*/cache cannot be created'):
        weights.find()


@pytest.fixture
def hub(site, monkeypatch, tmp_path, offline):
    """Cache of the real tensorflow_hub, whose module is served by `site`."""
    monkeypatch.setattr(tfhub, 'resolve', RESOLVE)
    monkeypatch.setattr(weights, 'HANDLE', site.url('i3d'))
    monkeypatch.setenv('TFHUB_CACHE_DIR', str(tmp_path / 'hub'))
    return tmp_path / 'hub'


def test_tensorflow_hub_is_the_second_way(site, archive, cache, hub, exported, monkeypatch, capfd):
    """Its cache is used when there is no network, and ours for what is converted."""
    monkeypatch.setattr(weights, 'SHA256', 'another one')
    site.files['i3d?tf-hub-format=compressed'] = archive
    module = weights.find(backend='tfhub')
    assert module.parent == hub and (module / 'saved_model.pb').is_file()
    assert names(cache) == []  # the archive was removed
    assert [path for path, _ in site.requests] == ['1.tar.gz', 'i3d?tf-hub-format=compressed']
    err = capfd.readouterr().err
    found = hashlib.sha256(archive).hexdigest()
    assert (f'it has the SHA-256 {found}, expected another one; '
            f'trying {weights.HANDLE} with tensorflow_hub') in err
    assert 'Total size: 1.95kB' in err  # tensorflow_hub tells its progress

    site.files.clear()
    before = names(hub)
    assert weights.find() == cache / weights.CONVERTED
    assert exported == [module] and names(hub) == before
    assert weights.load_state(weights.find())[1] == 'published' and len(exported) == 1
    state, identity = weights.load_state(module)  # given explicitly
    assert identity == 'published' and len(exported) == 1 and names(hub) == before


def test_neither_way_is_open(cache, hub, monkeypatch):
    monkeypatch.setattr(weights, 'HANDLE', refused('i3d'))
    with pytest.raises(UserError) as caught:
        weights.find()
    assert str(caught.value) == (
        f'I3D is not in {cache}, and cannot be had from {weights.URL} (Connection refused), nor '
        f'with tensorflow_hub from {weights.HANDLE} (Connection refused); get the first file on '
        'another machine, or i3d_pretrained_400.pt of VideoGPT, and pass it as --i3d_path')
    assert names(cache) == []


def test_the_sentence_about_both_ways_fits(monkeypatch):
    """With the real addresses and a cache and reasons of usual length, nothing is cut out of it."""
    monkeypatch.undo()
    reason = 'tensorflow_hub needs TensorFlow; pip install tensorflow'

    def fails(*_, **__):
        raise download.DownloadError('', 'Temporary failure in name resolution')

    def resolve(handle):
        raise UserError(reason)
    monkeypatch.setattr(weights, 'fetch', fails)
    monkeypatch.setattr(tfhub, 'resolve', resolve)
    monkeypatch.setenv('SRVP_CACHE', '/home/somebody/.cache/srvp')
    with pytest.raises(UserError) as caught:
        weights.download('torch', '--i3d_path')
    message = str(caught.value)
    assert weights.URL in message and f'{weights.HANDLE} ({reason})' in message
    assert message.endswith('pass it as --i3d_path') and '[…]' not in message


@pytest.mark.parametrize('files, reason', [
    ({'tensorflow': 'raise ImportError("none")'}, 'needs TensorFlow; pip install tensorflow$'),
    ({'tensorflow': '', 'tensorflow_hub': 'import tf_keras_is_missing'},
     'cannot be imported .No module named .tf_keras_is_missing..; pip install tensorflow_hub$'),
    ({'tensorflow': '', 'tensorflow_hub': 'def resolve(handle): raise OSError(13, "Denied")'},
     '^Denied$')])
def test_packages_are_missed_where_they_are_needed(files, reason, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / f'{name}.py').write_text(text)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    with pytest.raises(UserError, match=reason):
        RESOLVE('https://nowhere')


# Identity of the weights

def test_ids_of_files_are_those_of_git(tmp_path):
    assert weights.KNOWN == {
        'a867b87ac3a9097d200598b1d48a1b890d8ec744': 'i3d_pretrained_400.pt',
        '73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a': 'rgb_imagenet.pt',
        '93daef59c7ae0e9e8f76225521407e60cbafa6aa': 'i3d_torchscript.pt'}
    path = tmp_path / 'file'
    for content, expected in ((b'', 'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'),
                              (b'hello world\n', '3b18e512dba79e4c8300dd08aeb37f8e728b8dad')):
        path.write_bytes(content)
        assert weights.blob_id(path) == expected  # of `git hash-object`
    path.write_bytes(bytes(3 << 20))
    whole = b'blob 3145728\0' + path.read_bytes()
    assert weights.blob_id(path) == hashlib.sha1(whole).hexdigest()


def known_as(monkeypatch, path, name):
    """Let `path` be the known file `name`."""
    monkeypatch.setattr(weights, 'KNOWN', {weights.blob_id(path): name})


def test_published_weights(i3d_path, monkeypatch):
    known_as(monkeypatch, i3d_path, 'i3d_pretrained_400.pt')
    embed = build_embedding(i3d_path)
    assert (embed.identity, embed.comparable, embed.note) == ('published', True, None)


def test_unknown_weights(i3d_path):
    embed = build_embedding(i3d_path)
    assert embed.identity == 'unknown' and not embed.comparable
    assert 'unknown origin' in embed.note and '--check' in embed.note


def test_weights_of_the_paper_of_i3d(i3d_path, cache, monkeypatch, capsys):
    """They are used only if asked for, under whatever name."""
    known_as(monkeypatch, i3d_path, 'rgb_imagenet.pt')
    message = (f'^{i3d_path} is rgb_imagenet.pt, .* not those of published distances; use the '
               'TF-Hub module or i3d_pretrained_400.pt of VideoGPT, or add --i3d_other')
    with pytest.raises(UserError, match=message):
        build_embedding(i3d_path)
    embed = build_embedding(i3d_path, other=True)
    assert (embed.identity, embed.comparable) == ('other', False)
    assert 'cannot be compared' in embed.note
    with pytest.raises(UserError, match='--i3d_other needs --i3d_path'):
        build_embedding(other=True)

    for name in weights.CONVERTED, 'i3d_pretrained_400.pt':
        (cache / name).symlink_to(i3d_path)
    with pytest.raises(UserError, match=f'^I3D is not in {cache}'):
        weights.find()
    note = f'note: {cache / "i3d_pretrained_400.pt"} is not used: it is a copy of rgb_imagenet.pt'
    assert note in capsys.readouterr().err
    (cache / weights.ARCHIVE).touch()
    assert weights.find() == cache / weights.ARCHIVE


@pytest.mark.filterwarnings('ignore:.*TorchScript', 'ignore:.*torch.jit.script')
def test_torchscript_is_recognised(tmp_path, cache, monkeypatch):
    path = tmp_path / 'i3d.pt'
    torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    with pytest.raises(UserError, match='i3d.pt is not a readable weights file'):
        build_embedding(path)
    known_as(monkeypatch, path, 'i3d_torchscript.pt')
    message = 'is i3d_torchscript.pt .*; use the TF-Hub module or i3d_pretrained_400.pt of VideoGPT'
    for other in False, True:
        with pytest.raises(UserError, match=message):
            build_embedding(path, other=other)
    (cache / 'i3d_pretrained_400.pt').symlink_to(path)
    with pytest.raises(UserError, match=f'^I3D is not in {cache}'):
        weights.find()


def test_published_distances_stand_only_beside_those_of_the_same_weights():
    protocol = {'dataset': 'kth', 'conditioning_frames': 10, 'predicted_frames': 30}
    assert published.find_scores(protocol | {'fvd': {'weights': 'published'}}).scores['fvd']
    for identity in ('other', 'unknown'):
        found = published.find_scores(protocol | {'fvd': {'weights': identity}}).scores
        assert found.keys() == {'psnr', 'ssim', 'lpips'}


# The published figure

@pytest.mark.parametrize('n_videos', [2, 4, 7])
def test_random_videos_are_drawn_in_parts(n_videos, monkeypatch):
    monkeypatch.setattr(check, 'SHAPE', (2, 5, 6, 3))
    parts = list(check.random_videos(2, n_videos))
    assert max(map(len, parts)) <= check.CHUNK
    whole = np.random.RandomState(2).rand(n_videos, 2, 5, 6, 3).astype(np.float32)
    assert np.array_equal(np.concatenate(parts), whole) and parts[0].dtype == np.float32


def test_constants_of_the_published_figure():
    assert (check.N_VIDEOS, check.SHAPE, check.SEEDS) == (128, (16, 224, 224, 3), (1, 2))
    assert (check.REFERENCE, check.TOLERANCE) == (10.13808536529541, 1e-4)


def test_distance_of_random_videos():
    monochrome = MeanColour()
    videos = [np.random.RandomState(seed).rand(5, 16, 224, 224, 3).astype(np.float32)
              for seed in (1, 2)]
    expected = frechet_distance(*(monochrome(v) for v in videos))
    assert check.random_distance(monochrome, 5) == pytest.approx(expected, rel=1e-6)


def test_float_videos_are_given_to_the_network_as_they_are(device):
    videos = random_videos(2, 9, 48, 64, 3)
    x = i3d.preprocess(torch.from_numpy(videos).to(device)).cpu().numpy()
    assert np.array_equal(random_embedding(device)(x), random_embedding(device)(videos))


def test_random_weights_are_not_the_published_ones(i3d_path, memory, monkeypatch, call):
    monkeypatch.setattr(check, 'SHAPE', (9, 224, 224, 3))
    monkeypatch.setattr(check, 'N_VIDEOS', 2)
    done = call(script.main, '--check', '--i3d_path', i3d_path)
    value = check.random_distance(random_embedding(), 2)
    difference = abs(value / check.REFERENCE - 1)
    assert done.code == 1 and 'these are not the weights of published distances' in done.out
    assert (f'FVD {value:.8f} between random videos; in TensorFlow with the weights of published '
            f'distances 10.13808537; relative difference {difference:.1e}') in done.out
    assert 'I3D:   0%' in done.err and '4/4' in done.err  # the progress bar

    for ratio, code, verdict in ((1 + 0.9e-4, 0, 'these are the'), (1 - 1.1e-4, 1, 'are not the')):
        monkeypatch.setattr(check, 'random_distance', Mock(return_value=ratio * check.REFERENCE))
        done = call(script.main, '--check', '--i3d_path', i3d_path)
        assert done.code == code and f'{verdict} weights of published distances' in done.out


@pytest.mark.parametrize('argv, message', [
    (['--check', 'a.npz', 'b.npz'], '--check takes no FILE, found a.npz and b.npz; leave them out'),
    ([], 'give two FILEs, one for each set of videos, or --check'),
    (['a.npz'], 'found 1 FILE; give two'), (['a', 'b', 'c', '--check'], 'found 3 FILEs; give two')])
def test_either_files_or_the_check(argv, message, call):
    done = call(script.main, *argv)
    assert done.code == 2 and message in done.err


# Scripts

@pytest.fixture(scope='module')
def i3d_path(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'i3d.pt'
    torch.save(random_state(), path)
    return path


@pytest.fixture(scope='module')
def test_set(data_dir, tmp_path_factory):
    """Folder with a test set of 20 videos of nine frames."""
    folder = tmp_path_factory.mktemp('nine_frames')
    with np.load(data_dir / 'smmnist5k_test_2digits_64.npz', allow_pickle=False) as f:
        sequences = f['sequences'][:, :20]
    np.savez(folder / 'smmnist5k_test_2digits_64.npz',
             sequences=np.concatenate([sequences, sequences[:1]]))
    return folder


def run_test(run_dir, test_set, out_dir, *more):
    test_script.main(['--xp_dir', str(run_dir), '--data_dir', str(test_set),
                      '--out_dir', str(out_dir), '--metrics', 'psnr', '--n_pictures', '0',
                      '--nt_gen', '9', '--n_videos', '16', '--n_samples', '2',
                      '--batch_size', '7', *more])


def true_videos(test_set):
    with np.load(test_set / 'smmnist5k_test_2digits_64.npz', allow_pickle=False) as f:
        return f['sequences'][:, :16].swapaxes(0, 1)[..., None]


def predicted_videos(truth, folder, i):
    with np.load(folder / f'random_{i}.npz', allow_pickle=False) as f:
        return np.concatenate([truth[:, :3], f['samples']], 1)


def test_evaluation_with_fvd(run_dir, test_set, i3d_path, tmp_path, memory, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        known_as(patch, i3d_path, 'rgb_imagenet.pt')
        run_test(run_dir, test_set, tmp_path, '--fvd', '--i3d_path', str(i3d_path), '--i3d_other')
    result = json.loads((tmp_path / 'results.json').read_text())
    assert result['protocol']['fvd'] == {
        'frames': 9, 'conditioning_frames_included': True, 'resolution': [64, 64], 'clips': 16,
        'samples': 1, 'seed': 1, 'embedding': metrics.fvd.EMBEDDING, 'backend': 'torch',
        'weights_sha256': str(golden['weights_sha256']), 'weights': 'other',
        'note': weights.NOTES['other']}
    assert result['scores']['fvd']['ci95'] is None
    out = capsys.readouterr().out
    assert ('FVD: 9 frames, 3 conditioning frames included, 64 x 64, 16 clips, '
            '1 random sample, seed 1') in out
    value = f'FVD {result["scores"]["fvd"]["mean"]:.2f}'
    assert value in out

    assert out.count(f'note: {weights.NOTES["other"]}') == 2  # before the work and at the end
    assert 'published: ' not in out.partition(value)[2]

    # The same weights under another name give the same results
    run_test(run_dir, test_set, tmp_path, '--fvd', '--i3d_path', str(i3d_path))
    record = json.loads((tmp_path / 'results.json').read_text())
    assert record['protocol']['fvd']['weights'] == 'unknown'
    assert record['scores'] == result['scores']

    # The same by hand: true and predicted videos, after the conditioning frames
    truth = true_videos(test_set)
    np.savez(tmp_path / 'truth.npz', samples=truth[..., 0])
    np.save(tmp_path / 'predicted.npy', predicted_videos(truth, tmp_path, 1))
    script.main([str(tmp_path / 'truth.npz'), str(tmp_path / 'predicted.npy'),
                 '--i3d_path', str(i3d_path)])
    out = capsys.readouterr().out
    assert value in out and str(golden['weights_sha256']) in out
    assert f'note: {weights.NOTES["unknown"]}' in out
    assert 'predicted.npy: 16 videos of 9 frames, 64 x 64, 1 channel' in out
    assert len(memory) == 32


def test_mean_over_samples(run_dir, test_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics.fvd, 'build_embedding', lambda *_: MeanColour())
    run_test(run_dir, test_set, tmp_path, '--fvd', '--fvd_samples', '2')
    truth = true_videos(test_set)
    distances = [fvd(truth, predicted_videos(truth, tmp_path, i), MeanColour()) for i in (1, 2)]
    mean, half = np.mean(distances), 1.96 * np.std(distances) / np.sqrt(2)
    scores = json.loads((tmp_path / 'results.json').read_text())['scores']
    assert scores['fvd'] == {'mean': pytest.approx(mean), 'ci95': pytest.approx(half)}
    line = f'FVD {mean:.2f} ± {half:.2f}'
    assert line in capsys.readouterr().out
    message = 'is from an evaluation with fvd samples 2, found 1 now'
    with pytest.raises(UserError, match=message):
        run_test(run_dir, test_set, tmp_path, '--fvd')
    # More samples than are saved
    run_test(run_dir, test_set, tmp_path, '--fvd', '--n_samples', '7', '--fvd_samples', '7',
             '--overwrite')
    saved = sorted(p.name for p in tmp_path.glob('random*'))
    assert saved == [f'random_{i}.npz' for i in range(1, 6)]


@pytest.mark.parametrize('more, message', [
    (['--fvd', '--n_videos', '15'],
     r'the test set \(--n_videos, --nt_gen\) has 15 videos'),
    (['--fvd', '--nt_gen', '8'], 'videos of 8 frames'),
    (['--fvd', '--fvd_samples', '3'], '--fvd_samples 3 is more than --n_samples 2'),
    (['--fvd', '--i3d_path', 'nowhere'], '--i3d_path nowhere does not exist'),
    (['--fvd'], 'I3D is not in .*cache'),
    (['--fvd_samples', '2'], 'need --fvd'),
    (['--i3d_other'], 'need --fvd'),
    (['--fvd', '--i3d_other'], '--i3d_other needs --i3d_path'),
])
def test_errors_of_options(run_dir, test_set, tmp_path, cache, more, message):
    with pytest.raises(UserError, match=message):
        run_test(run_dir, test_set, tmp_path / 'out', *more)
    assert not (tmp_path / 'out').exists()


def test_sets_are_checked_before_the_network_is_built(tmp_path, monkeypatch):
    np.save(tmp_path / 'few.npy', np.zeros((3, 9, 8, 8), np.uint8))
    monkeypatch.setattr(script, 'build_embedding', None)
    with pytest.raises(UserError, match='the first set has 3 videos'):
        script.main([str(tmp_path / 'few.npy')] * 2)


def test_errors_of_files(tmp_path):
    good = tmp_path / 'good.npy'
    np.save(good, np.zeros((16, 9, 8, 8), np.uint8))
    np.save(tmp_path / 'float.npy', np.zeros((16, 9, 8, 8)))
    np.savez(tmp_path / 'two.npz', a=np.zeros(3), b=np.zeros(3))
    np.savez(tmp_path / 'pickle.npz', samples=np.array([{}], object))
    (tmp_path / 'text.npz').write_text('no')
    np.savez(tmp_path / 'cut.npz', samples=np.zeros((16, 9, 8, 8), np.uint8))
    (tmp_path / 'cut.npz').write_bytes((tmp_path / 'cut.npz').read_bytes()[:5000])
    (tmp_path / 'array.npz').write_bytes(good.read_bytes())
    (tmp_path / 'archive.npy').write_bytes((tmp_path / 'two.npz').read_bytes())
    unreadable = 'is not a .npy or .npz file'
    for name, message in (('nowhere.npz', 'does not exist'), ('float.npy', 'holds float64'),
                          ('two.npz', 'holds a, b; expected one'), ('pickle.npz', unreadable),
                          ('text.npz', unreadable), ('cut.npz', unreadable),
                          ('array.npz', unreadable), ('archive.npy', unreadable)):
        with pytest.raises(UserError, match=message):
            script.main([str(good), str(tmp_path / name)])
