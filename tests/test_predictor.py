"""Predictions from Python: `predictor.py`, and `hubconf.py` as torch.hub loads it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_docs import fences
from test_evaluation import arrays
from test_evaluation import script as test_script
from test_visualize import cells, draw, write_model

import hubconf
import predictor as module
from conftest import ROOT
from data import load_test
from files import UserError
from metrics.scoring import quantise
from predictor import Predictor


@pytest.fixture(scope='module')
def grey(tmp_path_factory):
    """Folder of a grey model."""
    return write_model(tmp_path_factory.mktemp('grey'), '--dataset', 'smmnist', '--digits',
                       'mnist5k', '--nc', '1')


@pytest.fixture(scope='module')
def colour(tmp_path_factory):
    """Folder of a colour model with skip connections, and its test videos uint8 (N, T, H, W, C)."""
    folder = write_model(tmp_path_factory.mktemp('colour'), '--dataset', 'folder', '--nc', '3')
    videos = np.random.RandomState(0).randint(0, 256, (4, 6, 64, 64, 3)).astype(np.uint8)
    (folder / 'test').mkdir()
    for i, video in enumerate(videos):
        np.save(folder / 'test' / f'{i}.npy', video)
    return folder, videos


@pytest.fixture(scope='module')
def predictor(grey):
    return Predictor(grey)


@pytest.fixture(scope='module')
def videos(predictor, data_dir):
    """Test videos uint8 (N, T, H, W)."""
    return load_test(predictor.config, data_dir, 8).videos(range(5))[..., 0].swapaxes(0, 1)


def test_futures_are_those_of_evaluation(predictor, videos, grey, data_dir, tmp_path):
    test_script.main(['--xp_dir', str(grey), '--data_dir', str(data_dir), '--nt_gen', '8',
                      '--n_samples', '6', '--n_videos', '4', '--metrics', 'psnr', '--n_pictures',
                      '0', '--test_seed', '7', '--out_dir', str(tmp_path)])
    saved = np.stack([arrays(tmp_path, f'random_{i + 1}')['samples'] for i in range(5)], 1)
    found = predictor.predict(videos[:4, :3], 6, 5, seed=7)
    assert found.shape == (4, 6, 5, 64, 64) and found.dtype == np.uint8
    assert abs(found[:, :5, ..., None].astype(int) - saved).max() <= 1 < np.std(saved)
    alone = predictor.predict(videos[2, :3], 6, 5, seed=7, index=2)
    assert abs(alone.astype(int) - found[2]).max() <= 1 < np.std(alone)
    assert (predictor.predict(videos[2, :3], 6, 5, seed=7) != alone).any()


@pytest.mark.parametrize('channels', [False, True])
@pytest.mark.parametrize('batch', [False, True])
@pytest.mark.parametrize('kind', [np.uint8, np.float32, np.float64, torch.uint8, torch.float16,
                                  torch.float32])
def test_results_are_of_the_kind_of_the_frames(predictor, videos, kind, batch, channels):
    frames, expected = videos[:2, :3], predictor.predict(videos[:2, :3], 3, 2)
    given = frames if batch else frames[0]
    given = given[..., None] if channels else given
    if isinstance(kind, torch.dtype):
        given = torch.from_numpy(given)
        given = given if kind == torch.uint8 else (given / 255).to(kind)
    else:
        given = given if kind == np.uint8 else (given / 255).astype(kind)
    found = predictor.predict(given, 3, 2)
    assert type(found) is type(given) and found.dtype == kind
    assert found.shape == (2,) * batch + (3, 2, 64, 64) + (1,) * channels
    found = torch.as_tensor(found).double().view(-1, 3, 2, 64, 64)
    found = found if found.max() > 1 else 255 * found
    assert abs(found - torch.from_numpy(expected)[:len(found)]).max() <= 1.5
    w, y = predictor.w(given), predictor.y(given, 3, 2)
    assert type(w) is type(y) is type(given) and y.dtype == (torch.zeros(1) if isinstance(
        y, torch.Tensor) else np.zeros(1, np.float32)).dtype
    assert w.shape == (2,) * batch + (8,) and y.shape == (2,) * batch + (3, 5, 4)


def test_predictions_on_each_device(grey, videos, device):
    predictor = Predictor(grey, device=device)
    frames = torch.from_numpy(videos[:, :3])
    found = predictor.predict(frames.to(device), 2, 4)
    assert found.device == device
    expected = Predictor(grey).predict(frames, 2, 4)
    assert abs(found.cpu().int() - expected.int()).max() <= 1


def test_videos_are_predicted_in_batches(predictor, videos, monkeypatch):
    whole = predictor.predict(videos[:, :3], 2, 4), predictor.y(videos[:, :3], 2, 4)
    monkeypatch.setattr(module, 'BATCH', 2)
    parts = predictor.predict(videos[:, :3], 2, 4), predictor.y(videos[:, :3], 2, 4)
    assert abs(whole[0].astype(int) - parts[0]).max() <= 1
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(predictor.decode(videos[:, :3], whole[1])[:, :, 3:].astype(int),
                               whole[0], atol=1)


def test_defaults_are_those_of_training(predictor, videos):
    assert predictor.predict(videos[0, :4]).shape == (1, 3, 64, 64)  # seq_len 6, nt_cond 3
    predictor.predict(videos[0, :3], n_euler_steps=1)
    slow = predictor.predict(videos[0, :3], n_euler_steps=3)
    assert (slow != predictor.predict(videos[0, :3])).any()


def test_states_and_content_are_those_of_the_model(colour):
    predictor, videos = Predictor(colour[0]), colour[1]
    x, model = torch.from_numpy(videos[:, :3]), predictor.model
    y, w = predictor.y(x, 2, 3), predictor.w(x)
    future = predictor.predict(x, 2, 3)
    decoded = predictor.decode(x, y)
    assert decoded.shape == (4, 2, 6, 64, 64, 3)
    assert abs(decoded[:, :, 3:].int() - future.int()).max() <= 1
    alone = predictor.decode(x[1], y[1, 0])
    assert abs(alone.int() - decoded[1, 0].int()).max() <= 1
    cond = model.condition((x / 255).permute(1, 0, 4, 2, 3))
    torch.testing.assert_close(w, cond.w)
    other = predictor.decode(x, y[:, 0], w.flip(0))
    expected = quantise(model.decode(w.flip(0), y[:, 0].transpose(0, 1), cond.skips))
    assert abs(other.int() - expected.permute(1, 0, 3, 4, 2).int()).max() <= 1
    assert (other != decoded[:, 0]).any()


def test_swap_is_that_of_visualize(colour, tmp_path):
    predictor, videos = Predictor(colour[0]), colour[1]
    draw('swap', colour[0], '--data_dir', colour[0], '--index', 2, 1, '--nt_gen', 6,
         '--n_samples', 3, '--sample', 2, '--out', tmp_path / 'swap.png')
    drawn = cells(tmp_path / 'swap.png', 3, 13, apart=(0, 6))[1, 7:]
    found = predictor.swap(videos[2, :3], videos[1, :3], 3, 3, index=1)
    assert found.shape == (3, 6, 64, 64, 3)
    assert abs(found[1].astype(int) - drawn).max() <= 1 < np.std(drawn)
    both = predictor.swap(videos[2:, :3], videos[:2, :3], 2, 3)
    assert both.shape == (2, 2, 6, 64, 64, 3)
    own = predictor.swap(videos[1, :3], videos[1, :3], 3, 3, index=1)
    future = predictor.predict(videos[1, :3], 3, 3, index=1)
    assert abs(own[:, 3:].astype(int) - future).max() <= 1 and (own != found).any()


def test_gradients_are_not_recorded(predictor):
    x = torch.rand(3, 64, 64, requires_grad=True)
    for result in (predictor.predict(x), predictor.w(x), predictor.y(x),
                   predictor.decode(x, predictor.y(x))):
        assert not result.requires_grad
    assert predictor.predict(x).shape == (1, 3, 64, 64)


FRAMES = np.zeros((3, 64, 64), np.uint8)


@pytest.mark.parametrize('frames, options, error, message', [
    ([0], {}, TypeError, 'frames must be a NumPy array or a tensor, found list'),
    (FRAMES.astype(int), {}, TypeError, r'uint8, or floats .* found \(3, 64, 64\) of int64'),
    (torch.zeros(3, 64, 64, dtype=bool), {}, TypeError, 'found .* of torch.bool'),
    (FRAMES[:, :32], {}, ValueError,
     r'must be \(T, 64, 64, 1\) or \(T, 64, 64\), or a batch \(N, T, …\) of such videos, found '
     r'\(3, 32, 64\) of uint8; resize them, and put channels last'),
    (np.zeros((3, 64, 64, 3)), {}, ValueError, r'found \(3, 64, 64, 3\)'),
    (FRAMES[0], {}, ValueError, r'found \(64, 64\)'),
    (FRAMES[None, None], {}, ValueError, r'found \(1, 1, 3, 64, 64\)'),
    (FRAMES[None][:0], {}, ValueError, r'found \(0, 3, 64, 64\)'),
    (FRAMES[:1], {}, ValueError, r'infers y_0 from the first 2 \(nt_inf\), found 1; give more'),
    (FRAMES - 1., {}, ValueError, r'floats must be in \[0, 1\], found -1 to -1; scale or clip'),
    (torch.full((3, 64, 64), float('nan')), {}, ValueError, 'found nan to nan'),
    (FRAMES, {'n_samples': 0}, ValueError, "n_samples: expected a whole number .* found '0'"),
    (FRAMES, {'nt': 2.5}, ValueError, "nt: expected a whole number of at least 1 .* '2.5'"),
    (FRAMES, {'seed': -1}, ValueError, 'seed: expected'),
    (FRAMES, {'index': 'all'}, ValueError, 'index: expected'),
    (FRAMES, {'n_euler_steps': 0}, ValueError, 'n_euler_steps: expected'),
    (FRAMES, {'n_samples': 10 ** 9}, UserError,
     'takes at least .* GB of memory, .*; use fewer videos at a time, n_samples or nt')])
def test_bad_arguments(predictor, frames, options, error, message):
    with pytest.raises(error, match=message):
        predictor.predict(frames, **options)


def test_bad_vectors(predictor):
    y, batch = np.zeros((5, 4)), FRAMES[None].repeat(2, 0)
    for frames, states, w, message in (
            (FRAMES, y[:, :3], None, r'y must be \(…, nt, 4\), found \(5, 3\)'),
            (FRAMES, y[0], None, r'y must be \(…, nt, 4\), found \(4,\)'),
            (FRAMES, y[:0], None, r'found \(0, 4\)'),
            (batch, y, None, r'y must be \(2, …, nt, 4\), found \(5, 4\)'),
            (FRAMES, y, np.zeros((1, 8)), r'w must be \(8\), found \(1, 8\)'),
            (batch, y[None].repeat(2, 0), np.zeros(8), r'w must be \(2, 8\), found \(8,\)')):
        with pytest.raises(ValueError, match=message):
            predictor.decode(frames, states, w)
    with pytest.raises(ValueError, match=r'y must be \(2, …, nt, 4\), found \(1, 6, 4\)'):
        predictor.swap(batch, FRAMES)


def test_length_is_needed_if_the_configuration_has_none(grey):
    predictor = Predictor(grey)
    predictor.config.seq_len_test = None
    with pytest.raises(ValueError, match='nt is missing, and config.json has no seq_len_test'):
        predictor.predict(FRAMES)
    assert len(predictor.predict(FRAMES, nt=1)) == 1


# torch.hub

HUB = '''
import sys, utils, data.clips, numpy as np, torch
frames = np.load('frames.npy')
srvp = torch.hub.load({root!r}, 'srvp', {run!r}, source='local')
import args, model, test
for name in ('args', 'data', 'data.clips', 'model', 'test', 'utils'):
    assert sys.modules[name].mine, name
assert not {{'predictor', 'files', 'sampling'}} & sys.modules.keys() and {root!r} not in sys.path
np.save('futures.npy', srvp.predict(frames, 4, 5))
again = torch.hub.load({root!r}, 'srvp', {run!r}, source='local')
assert type(again) is not type(srvp) and len(again.swap(frames, frames)) == 1
'''


def test_hub_and_the_caller_keep_their_own_modules(predictor, videos, grey, tmp_path):
    for name in ('args.py', 'utils.py', 'model.py', 'test.py', 'data/__init__.py',
                 'data/clips.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('mine = True\n')
    (tmp_path / 'try.py').write_text(HUB.format(root=str(ROOT), run=str(grey)))
    np.save(tmp_path / 'frames.npy', videos[0, :3])
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}  # which other tests set
    done = subprocess.run([sys.executable, 'try.py'], cwd=tmp_path, env=env, capture_output=True,
                          text=True)
    assert (done.returncode, done.stdout) == (0, ''), done.stderr
    expected = predictor.predict(videos[0, :3], 4, 5)
    assert abs(np.load(tmp_path / 'futures.npy').astype(int) - expected).max() <= 1


def test_hub_lists_one_entry(grey, monkeypatch):
    monkeypatch.setattr(torch.hub, '_get_cache_or_reload', lambda *_, **__: str(ROOT))
    assert torch.hub.list('owner/srvp') == ['srvp']
    assert 'predict' in torch.hub.help('owner/srvp', 'srvp')
    assert type(torch.hub.load(str(ROOT), 'srvp', grey, source='local')) is Predictor
    with pytest.raises(UserError, match='nowhere/config.json does not exist'):
        hubconf.srvp('nowhere')


def test_example_of_the_readme(grey, monkeypatch):
    readme = (ROOT / 'README.md').read_text()
    example, = (code for kind, code in fences(readme) if kind == 'python')
    monkeypatch.chdir(ROOT)
    values = {}
    exec(example.replace('runs/first', str(grey)), values)
    assert values['futures'].shape == (10, 20, 64, 64)
