"""Fréchet video distance: golden numbers of TensorFlow, plain formulas, weights and scripts."""

import functools
import hashlib
import os
import subprocess
import sys

from files import UserError, sha256

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import metrics.fvd
from conftest import GOLDEN, ROOT
from metrics import convert_i3d, i3d
from metrics.fvd import Embedding, build_embedding, frechet_distance, fvd, random_distance

golden = np.load(GOLDEN / 'i3d.npz', allow_pickle=False)


def grad(n_frames):
    b, t, i, j, c = np.ogrid[:2, :n_frames, :64, :64, :3]
    v = ((4 + b) * i + 3 * j + 5 * t * (c + 1) + 40 * c + 97 * b) % 511
    return np.where(v > 255, 510 - v, v).astype(np.uint8)


def random_videos(*shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


VIDEOS = {'noise16': lambda: random_videos(3, 16, 64, 64, 3, seed=7),
          'grad12': lambda: grad(12), 'grad25': lambda: grad(25)}

# Channels of the units of each Mixed block, from the graph of the module
MIXED = {'3b': (64, 96, 128, 16, 32, 32), '3c': (128, 128, 192, 32, 96, 64),
         '4b': (192, 96, 208, 16, 48, 64), '4c': (160, 112, 224, 24, 64, 64),
         '4d': (128, 128, 256, 24, 64, 64), '4e': (112, 144, 288, 32, 64, 64),
         '4f': (256, 160, 320, 32, 128, 128), '5b': (256, 160, 320, 32, 128, 128),
         '5c': (384, 192, 384, 48, 128, 128)}


@functools.cache
def random_variables():
    """Random weights of the golden logits, by TensorFlow name."""
    units = [('Conv3d_1a_7x7', 7, 3, 64), ('Conv3d_2b_1x1', 1, 64, 64),
             ('Conv3d_2c_3x3', 3, 64, 192)]
    n = 192
    for block, (b0, b1a, b1b, b2a, b2b, b3b) in MIXED.items():
        last = '0a' if block == '5b' else '0b'
        units += [(f'Mixed_{block}/Branch_{unit}', *sizes) for unit, *sizes in (
            ('0/Conv3d_0a_1x1', 1, n, b0), ('1/Conv3d_0a_1x1', 1, n, b1a),
            ('1/Conv3d_0b_3x3', 3, b1a, b1b), ('2/Conv3d_0a_1x1', 1, n, b2a),
            (f'2/Conv3d_{last}_3x3', 3, b2a, b2b), ('3/Conv3d_0b_1x1', 1, n, b3b))]
        n = b0 + b1b + b2b + b3b
    shapes = {'Logits/Conv3d_0c_1x1/conv_3d/w': (1, 1, 1, 1024, 400),
              'Logits/Conv3d_0c_1x1/conv_3d/b': (400,)}
    for name, k, n_in, n_out in units:
        shapes[f'{name}/conv_3d/w'] = k, k, k, n_in, n_out
        for part in ('beta', 'moving_mean', 'moving_variance'):
            shapes[f'{name}/batch_norm/{part}'] = 1, 1, 1, 1, n_out

    rng, variables = np.random.RandomState(1234), {}
    for name, shape in sorted(shapes.items()):
        if name.endswith('/w'):
            value = rng.randn(*shape) * np.sqrt(2 / np.prod(shape[:-1]))
        elif name.endswith('variance'):
            value = 0.5 + rng.rand(*shape)
        else:
            value = 0.1 * rng.randn(*shape)
        variables[f'RGB/inception_i3d/{name}'] = value.astype(np.float32)
    return variables


@functools.cache
def random_state():
    state = convert_i3d.to_pytorch(random_variables())
    return {name: torch.from_numpy(value) for name, value in state.items()}


@functools.cache
def random_embedding(device='cpu'):
    return Embedding(random_state(), device)


class MeanColour:
    """An embedding that costs nothing."""
    sha256, note = 'none', None

    def __call__(self, videos):
        return np.concatenate([videos.mean((2, 3, 4)), videos.std((2, 3, 4))], 1)


# Network

@pytest.mark.parametrize('name', VIDEOS)
def test_golden_logits(name, device):
    videos = VIDEOS[name]()
    x = i3d.preprocess(torch.from_numpy(videos).to(device)).cpu()
    assert hashlib.sha256(x.numpy().tobytes()).hexdigest() == golden[f'pre_sha256_{name}']
    n = 2 if name == 'grad12' else 1  # all of them would take long
    expected = golden[f'logits_{name}'][:n]
    found = random_embedding(device)(videos[:n])
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


def test_grey_videos_are_three_equal_channels_and_floats_pass_as_they_are(device):
    grey = random_videos(1, 9, 48, 64, 1)
    expected = random_embedding(device)(np.repeat(grey, 3, -1))
    found = random_embedding(device)(grey)
    assert abs(found - expected).max() < 1e-6 * abs(expected).max()
    x = i3d.preprocess(torch.from_numpy(grey).to(device)).cpu().numpy()
    assert np.array_equal(random_embedding(device)(x), found)


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


def test_distance_of_constant_features_and_of_bad_ones():
    assert frechet_distance(np.ones((20, 4)), np.ones((30, 4))) == 0
    assert frechet_distance(np.ones((20, 4)), np.full((30, 4), 3.)) == pytest.approx(16)
    x = np.random.RandomState(0).randn(20, 4)
    for bad in (float('nan'), float('inf')):
        y = x.copy()
        y[3, 2] = bad
        with pytest.raises(ValueError, match='infs or NaNs'):
            frechet_distance(x, y)


# Videos

def test_fvd_of_sets_of_videos():
    x, y = (random_videos(n, 9, 8, 8, 3, seed=n) for n in (16, 23))
    value = fvd(x, y, MeanColour())
    assert value == pytest.approx(frechet_distance(MeanColour()(x), MeanColour()(y))) and value > 0
    constant = np.full((16, 9, 8, 8, 1), 7, np.uint8)
    assert fvd(constant, constant, MeanColour()) == pytest.approx(0, abs=1e-6)
    assert fvd(constant, constant + 1, MeanColour()) == pytest.approx(9)


@pytest.mark.parametrize('x, y, message', [
    ((15, 9, 8, 8, 3), (16, 9, 8, 8, 3), 'the first set has 15 videos of 9 frames; .* at least 16'),
    ((16, 9, 8, 8, 3), (16, 8, 8, 8, 3), 'the second set has 16 videos of 8 frames; .* of 9$'),
    ((16, 9, 8, 8, 3), (16, 10, 8, 8, 3), 'videos of 9 and 10 frames')])
def test_errors_of_sets(x, y, message):
    with pytest.raises(UserError, match=message):
        fvd(np.zeros(x, np.uint8), np.zeros(y, np.uint8), MeanColour())


# Weights

def save_npz(path, state, digest=convert_i3d.SHA256):
    np.savez(path, module_sha256=digest, **{name: v.numpy() for name, v in state.items()})


def test_weights_are_recognised_by_the_module_that_they_are_from(tmp_path, monkeypatch):
    """They are the same in each kind of file, but only a conversion records where they are from."""
    monkeypatch.setenv('SRVP_CACHE', str(tmp_path))
    with pytest.raises(UserError, match='i3d-kinetics-400.npz does not .* --i3d_path'):
        build_embedding()
    counters = {k.replace('bias', 'num_batches_tracked'): torch.tensor(3)
                for k in random_state() if k.endswith('.bn.bias')}
    torch.save({**random_state(), **counters}, tmp_path / 'i3d_pretrained_400.pt')
    port = build_embedding()
    assert port.sha256 == random_embedding().sha256
    assert 'of unknown origin' in port.note and '--check' in port.note
    save_npz(tmp_path / 'i3d-kinetics-400.npz', random_state())
    assert build_embedding().note is None and build_embedding().sha256 == port.sha256
    save_npz(tmp_path / 'other.npz', random_state(), 'of another module')
    assert build_embedding(tmp_path / 'other.npz').note == port.note


def test_other_files_are_refused(tmp_path):
    for change, message in (
            ({'Mixed_3b.b1b.conv3d.weight': None}, r'\(KeyError .Mixed_3b.b1b.conv3d.weight'),
            ({'logits.conv3d.weight': torch.zeros(157, 1024, 1, 1, 1)},
             'it has 157 classes instead of 400')):
        state = {k: v for k, v in {**random_state(), **change}.items() if v is not None}
        save_npz(tmp_path / 'i3d.npz', state)
        with pytest.raises(UserError, match=f'does not hold the I3D of Kinetics-400 .*{message}'):
            build_embedding(tmp_path / 'i3d.npz')
    (tmp_path / '1.tar.gz').touch()
    for name in ('1.tar.gz', '', 'nowhere.pt'):
        with pytest.raises(UserError, match='no .npz or .pt .* python -m metrics.convert_i3d'):
            build_embedding(tmp_path / name)


CONVERSION = '''
import runpy, shutil, sys
import numpy as np, tensorflow.compat.v1 as tf

# A small module
with tf.Graph().as_default(), tf.Session() as session, np.load('variables.npz') as variables:
    for name, value in variables.items():
        tf.get_variable(name, initializer=value)
    session.run(tf.global_variables_initializer())
    tf.train.Saver().save(session, 'm/variables/variables', write_meta_graph=False)
shutil.make_archive('m', 'gztar', 'm')

main = runpy.run_path(sys.argv[1])['main']
main(['m.tar.gz', '--out', 'new/archive.npz'])
try:
    main(['damaged.tar.gz'])
except Exception as error:
    print(error)
print('torch' in sys.modules)
'''


def test_conversion_of_the_module(tmp_path):
    scope = 'RGB/inception_i3d'
    names = (f'{scope}/Logits/Conv3d_0c_1x1/conv_3d/b',
             *(f'{scope}/Mixed_5b/Branch_2/Conv3d_0a_3x3/{part}' for part in (
                 'conv_3d/w', 'batch_norm/beta', 'batch_norm/moving_mean')))
    np.savez(tmp_path / 'variables.npz', **{name: random_variables()[name] for name in names})
    (tmp_path / 'm' / 'variables').mkdir(parents=True)
    (tmp_path / 'damaged.tar.gz').write_bytes(b'no archive')
    done = subprocess.run([sys.executable, '-c', CONVERSION, ROOT / 'metrics' / 'convert_i3d.py'],
                          cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)}, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    digest = sha256(tmp_path / 'm.tar.gz')
    converted, damaged, torch_is_imported = done.stdout.splitlines()
    assert converted == f'new/archive.npz: of unknown origin (SHA-256 of m.tar.gz: {digest})'
    assert damaged.startswith('damaged.tar.gz is not the TF-Hub module of I3D, or is damaged (')
    assert torch_is_imported == 'False'

    expected = {name: random_state()[name] for name in (
        'logits.conv3d.bias', *(f'Mixed_5b.b2b.{part}' for part in (
            'conv3d.weight', 'bn.weight', 'bn.bias', 'bn.running_mean')))}
    with np.load(tmp_path / 'new' / 'archive.npz', allow_pickle=False) as file:
        found = dict(file)
    assert found.pop('module_sha256') == digest and found.keys() == expected.keys()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


# Scripts

def test_distance_of_random_videos(monkeypatch):
    monkeypatch.setattr(metrics.fvd, 'N_RANDOM', 8)
    monkeypatch.setattr(metrics.fvd, 'RANDOM_SHAPE', (5, 8, 8, 3))
    expected = frechet_distance(*(MeanColour()(
        np.random.RandomState(seed).rand(8, 5, 8, 8, 3).astype(np.float32)) for seed in (1, 2)))
    assert random_distance(MeanColour()) == pytest.approx(expected, rel=1e-6)


def test_check_of_the_weights(monkeypatch, capsys):
    monkeypatch.setattr(metrics.fvd, 'build_embedding', lambda path, device: MeanColour())
    for ratio, code, verdict in ((1 + 0.9e-4, 0, 'these are the'), (1 - 1.1e-4, 1, 'are not the')):
        monkeypatch.setattr(metrics.fvd, 'random_distance', lambda embed, r=ratio:
                            r * metrics.fvd.REFERENCE)
        assert metrics.fvd.main(['--check']) == code
        assert f'{verdict} weights of published distances' in capsys.readouterr().out


def test_distance_of_files(tmp_path, monkeypatch, capsys):
    x, y = (random_videos(16, 9, 8, 8, 1, seed=seed) for seed in (1, 2))
    np.save(tmp_path / 'a.npy', x)
    np.savez(tmp_path / 'b.npz', samples=y[..., 0])
    unknown = MeanColour()
    unknown.note = 'of unknown origin'
    monkeypatch.setattr(metrics.fvd, 'build_embedding', lambda path, device: unknown)
    assert metrics.fvd.main([str(tmp_path / 'a.npy'), str(tmp_path / 'b.npz')]) == 0
    out = capsys.readouterr().out
    assert f'\nFVD {fvd(x, y, MeanColour()):.2f}\nnote: of unknown origin\n' in out
    for argv, found in (([], '0 FILEs'), (['a.npy'], '1 FILE'), (['--check', 'a', 'b'], '2 FILEs')):
        with pytest.raises(UserError, match=f'found {found}; give two'):
            metrics.fvd.main(argv)
