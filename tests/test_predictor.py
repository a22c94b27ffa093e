"""Predictions from Python: `hubconf.py`, also as torch.hub loads it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import hubconf
import test as evaluation
from args import load_config
from conftest import ROOT, stirred
from data import load_test
from model import build_model
from utils import save

CONFIG = {'dataset': 'smmnist', 'digit_source': 'mnist5k', 'nc': 1, 'nf': 2, 'nhx': 8, 'ny': 4,
          'nz': 3, 'nt_inf': 2, 'nt_cond': 3, 'nh_inf': 8, 'nh_res': 8, 'seq_len': 6,
          'archi': 'vgg', 'skipco': True, 'n_euler_steps': 2}
FRAMES = np.zeros((3, 64, 64, 1), np.uint8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Folder of a tiny model whose samples differ visibly."""
    folder = tmp_path_factory.mktemp('model')
    (folder / 'config.json').write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    save(folder / 'model.pt', stirred(build_model(load_config(folder)), 1).state_dict())
    return folder


@pytest.fixture(scope='module')
def predictor(folder):
    return hubconf.srvp(folder)


@pytest.fixture(scope='module')
def videos(folder, data_dir):
    """Test videos uint8 (B, T, H, W, C)."""
    return load_test(load_config(folder), data_dir, 8).videos(range(4)).swapaxes(0, 1)


def differ_by(found, expected):
    """Largest difference of frames, in levels of 255."""
    found, expected = (torch.as_tensor(x).double() for x in (found, expected))
    return abs(found - expected).max()


def test_futures_are_those_of_evaluation(videos, folder, data_dir, tmp_path, device):
    evaluation.main(['--xp_dir', str(folder), '--data_dir', str(data_dir), '--nt_gen', '8',
                     '--n_samples', '6', '--n_videos', '4', '--metrics', 'psnr', '--n_pictures',
                     '0', '--test_seed', '7', '--out_dir', str(tmp_path), '--device',
                     '0' if device.type == 'cuda' else 'cpu'])
    predictor = hubconf.srvp(folder, device=device)
    found = predictor.predict(videos[:, :3], 6, 5, seed=7)
    assert found.shape == (4, 6, 5, 64, 64, 1) and np.std(found) > 1
    for s in range(5):
        with np.load(tmp_path / f'random_{s + 1}.npz') as saved:
            assert differ_by(found[:, s], saved['samples']) <= 1  # rounding of matrix products
            assert (found[:, s] != saved['samples']).mean() < 1e-3
    alone = predictor.predict(videos[2, :3], 6, 5, seed=7, index=2)
    assert differ_by(alone, found[2]) <= 1
    assert differ_by(predictor.predict(videos[2, :3], 6, 5, seed=7), found[2]) > 1


@pytest.mark.parametrize('batch', [False, True])
@pytest.mark.parametrize('dtype', ['uint8', 'float16', 'float32', 'float64'])
@pytest.mark.parametrize('library', [np, torch])
def test_results_are_of_the_kind_of_the_frames(predictor, videos, library, dtype, batch):
    frames, expected = videos[:2, :3], predictor.predict(videos[:2, :3], 3, 2)
    given = frames if batch else frames[0]
    given = given if dtype == 'uint8' else (given / 255).astype(dtype)
    given = given if library is np else torch.from_numpy(given)
    found = predictor.predict(given, 3, 2)
    assert type(found) is type(given) and found.dtype == given.dtype
    assert found.shape == (2,) * batch + (3, 2, 64, 64, 1)
    levels = torch.as_tensor(found) * (1 if dtype == 'uint8' else 255)
    assert differ_by(levels, expected if batch else expected[0]) < 1.5
    w, y = predictor.w(given), predictor.y(given, 3, 2)
    assert type(w) is type(y) is type(given) and w.dtype == y.dtype == library.float32
    assert w.shape == (2,) * batch + (8,) and y.shape == (2,) * batch + (3, 5, 4)


def test_decoded_states_are_the_futures(predictor, videos):
    decoded = predictor.decode(videos[:, :3], predictor.y(videos[:, :3], 2, 4))
    assert differ_by(decoded[:, :, 3:], predictor.predict(videos[:, :3], 2, 4)) <= 1


def test_defaults_are_those_of_training(predictor, videos):
    found = predictor.predict(videos[0, :3])
    assert found.shape == (1, 3, 64, 64, 1)  # seq_len 6, nt_cond 3
    assert (predictor.predict(videos[0, :3], n_euler_steps=2) == found).all()
    assert (predictor.predict(videos[0, :3], n_euler_steps=3) != found).any()


def test_states_and_content_are_those_of_the_model(predictor, videos):
    x, model = torch.from_numpy(videos[:, :3]), predictor.model
    y, w = predictor.y(x, 2, 3), predictor.w(x)
    cond = model.condition(x.permute(1, 0, 4, 2, 3) / 255)
    torch.testing.assert_close(w, cond.w)

    def check(found, w, y, skips):
        expected = (255 * model.decode(w, y.transpose(0, 1), skips)).permute(1, 0, 3, 4, 2)
        assert differ_by(found, expected) < 2
    check(predictor.decode(x, y[:, 1], w.flip(0)), w.flip(0), y[:, 1], cond.skips)
    assert predictor.decode(x[1], y[1, 0, 2], w[2]).shape == (64, 64, 1)  # one state
    # Content of the first two videos, motion of the others
    found = predictor.swap(x[:2], x[2:], 2, 3, index=2)
    assert found.shape == (2, 2, 6, 64, 64, 1)
    skips = [skip[:2] for skip in cond.skips]
    check(found[:, 0], w[:2], y[2:, 0], skips)


def test_computation_is_that_of_test_py_and_leaves_no_trace(predictor, monkeypatch):
    found, condition = [], predictor.model.condition

    def record(x):
        found.append((torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()))
        return condition(x)
    monkeypatch.setattr(predictor.model, 'condition', record)
    x = torch.rand(3, 64, 64, 1, requires_grad=True)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        for result in (predictor.predict(x), predictor.w(x), predictor.swap(x, x)):
            assert not result.requires_grad
        assert torch.backends.cudnn.allow_tf32 and torch.is_grad_enabled()
    assert set(found) == {(False, False)}


@pytest.mark.parametrize('frames, message', [
    (FRAMES.astype(int), r'uint8 or float .* found \(3, 64, 64, 1\) of torch.int64'),
    (FRAMES[:, :32], r'\(\[B,\] T, 64, 64, 1\), .* found \(3, 32, 64, 1\)'),
    (FRAMES[:1], r'T at least 2 \(nt_inf\), found \(1, 64, 64, 1\)'),
    (FRAMES - 1., r'floats must be in \[0, 1\], found -1 to -1')])
def test_bad_frames(predictor, frames, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(frames)


@pytest.mark.parametrize('B, y, w', [
    ((), (5, 3), (8,)), ((2,), (3, 5, 4), (2, 8)), ((2,), (2, 5, 4), (1, 8))])
def test_bad_vectors(predictor, B, y, w):
    with pytest.raises(ValueError, match=r'y and w must be \(., …, 4\) and \(., 8\) .* found'):
        predictor.decode(np.zeros((*B, *FRAMES.shape)), np.zeros(y), np.zeros(w))


# torch.hub

HUB = '''
import sys, utils, data.clips, numpy as np, torch
srvp = torch.hub.load({root!r}, 'srvp', {run!r}, source='local')
import args, model, test
for name in ('args', 'data', 'data.clips', 'model', 'test', 'utils'):
    assert sys.modules[name].mine, name
assert not {{'module', 'files'}} & sys.modules.keys() and {root!r} not in sys.path
np.save('futures.npy', srvp.predict(np.load('frames.npy'), 4, 5))
'''


def test_hub_and_the_caller_keep_their_own_modules(predictor, videos, folder, tmp_path):
    for name in ('args.py', 'utils.py', 'model.py', 'test.py', 'data/__init__.py',
                 'data/clips.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('mine = True\n')
    (tmp_path / 'try.py').write_text(HUB.format(root=str(ROOT), run=str(folder)))
    np.save(tmp_path / 'frames.npy', videos[0, :3])
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}  # which other tests set
    done = subprocess.run([sys.executable, 'try.py'], cwd=tmp_path, env=env, capture_output=True,
                          text=True)
    assert (done.returncode, done.stdout) == (0, ''), done.stderr
    expected = predictor.predict(videos[0, :3], 4, 5)
    assert differ_by(np.load(tmp_path / 'futures.npy'), expected) <= 1


def test_hub_lists_one_entry(monkeypatch):
    monkeypatch.setattr(torch.hub, '_get_cache_or_reload', lambda *_, **__: str(ROOT))
    assert torch.hub.list('owner/srvp') == ['srvp']


def test_example_of_the_manual():
    example = (ROOT / 'docs' / 'python.md').read_text().split('```')[1].removeprefix('python')
    values = {}
    exec(example.replace('/path/to/srvp', str(ROOT)), values)
    assert values['futures'].shape == (10, 20, 64, 64, 1)
