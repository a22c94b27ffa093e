"""`python -m metrics`: scores of predictions in files, against `test.py` and a plain loop."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_evaluation import arrays
from test_evaluation import script as test_script
from test_fvd import MeanColour
from test_metrics import random_backbone

from conftest import ROOT
from files import UserError
from metrics import __main__ as script
from metrics.frame import psnr, ssim
from metrics.fvd import fvd
from metrics.lpips import LPIPS


@pytest.fixture(scope='module')
def published(data_dir, tmp_path_factory):
    """Folder with a test set under the name of the published one, and the weights of LPIPS."""
    folder = tmp_path_factory.mktemp('published')
    shutil.copy(data_dir / 'smmnist5k_test_2digits_64.npz', folder / 'smmnist_test_2digits_64.npz')
    torch.save(random_backbone(), folder / 'alexnet-features.pth')
    return folder


@pytest.fixture(scope='module')
def truth(published):
    """True frames uint8 (N, T, H, W, 1) after the conditioning frames of the preset."""
    sequences = arrays(published, 'smmnist_test_2digits_64')['sequences']
    return sequences[5:8, :7].swapaxes(0, 1)[..., None]


@pytest.fixture(scope='module')
def out_dir(run_dir, data_dir, published, tmp_path_factory):
    """Results of `test.py` with the conditioning frames of the preset, for one sample."""
    folder = tmp_path_factory.mktemp('out')
    test_script.main(['--xp_dir', str(run_dir), '--data_dir', str(data_dir),
                      '--lpips_dir', str(published), '--out_dir', str(folder), '--nt_cond', '5',
                      '--nt_gen', '8', '--n_samples', '1', '--n_videos', '7',
                      '--n_pictures', '0'])
    return folder


def run(published, out, *more):
    """Scores and protocol of a call."""
    script.main([*map(str, more), '--preset', 'smmnist', '--data_dir', str(published),
                 '--lpips_dir', str(published), '--nt_gen', '8', '--n_videos', '7',
                 '--batch_size', '3', '--out', str(out)])
    return json.loads((out / 'results.json').read_text())


def plain(truth, *samples):
    """Mean over videos and half-width of its interval of the best sample, by metric."""
    lpips = LPIPS(random_backbone())
    y, *videos = [torch.from_numpy(x).permute(1, 0, 4, 2, 3).float() / 255
                  for x in (truth, *samples)]
    functions = {'psnr': lambda x: psnr(x, y).mean((0, 2)),
                 'ssim': lambda x: ssim(x, y).mean((0, 2)),
                 'lpips': lambda x: lpips(x, lpips.prepare(y)).mean(0)}
    scores = {}
    for name, function in functions.items():
        every = torch.stack([function(x) for x in videos]).numpy()
        best = every.min(0) if name == 'lpips' else every.max(0)
        scores[name] = {'mean': best.mean(), 'ci95': 1.96 * best.std() / 7 ** .5}
    return scores


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, score in expected.items():
        assert found[name] == {k: pytest.approx(v, rel=1e-6) for k, v in score.items()}


def test_scores_are_those_of_test_py(published, truth, out_dir, tmp_path, capsys):
    expected = json.loads((out_dir / 'results.json').read_text())
    result = run(published, tmp_path / 'a', out_dir / 'random_1.npz')
    out = capsys.readouterr().out
    for name, tolerance in (('psnr', 0.1), ('ssim', 0.01)):  # frames are quantised
        difference = result['scores'][name]['mean'] - expected['scores'][name]['mean']
        assert abs(difference) < tolerance
    assert f'test set: {published}/smmnist_test_2digits_64.npz' in out
    assert 'LPIPS: AlexNet, version 0.1' in out
    assert ' PSNR {mean:.2f} ± {ci95:.2f} dB'.format(**result['scores']['psnr']) in out
    assert_equal(result['scores'], plain(truth, arrays(out_dir, 'random_1')['samples']))
    names = result['protocol'].keys() - {'test_set', 'digits'}
    result['protocol'].pop('digits')  # not published, by another name here
    assert result['protocol'] == {'test_set': 'smmnist_test_2digits_64.npz',
                                  **{k: expected['protocol'][k] for k in names}}
    assert names == expected['protocol'].keys() - {
        'test_set', 'digits', 'n_euler_steps', 'seed', 'baseline', 'checkpoint',
        'checkpoint_sha256'}
    assert {p.name for p in (tmp_path / 'a').iterdir()} == {
        'results.json', 'results.npz', 'curves.png'}
    assert result['data_dir'] == str(published)


def test_best_of_several_files_counts(published, truth, tmp_path):
    rng = np.random.RandomState(0)
    samples = []
    for i in range(3):
        noise = rng.normal(0, rng.uniform(10, 60, (7, 1, 1, 1, 1)), truth.shape)
        samples.append(np.clip(truth + noise, 0, 255).astype(np.uint8))
        np.savez(tmp_path / f'{i}.npz', samples=samples[-1])
    result = run(published, tmp_path / 'a', *(tmp_path / f'{i}.npz' for i in range(3)))
    assert_equal(result['scores'], plain(truth, *samples))
    assert result['protocol']['samples'] == 3
    found, y = arrays(tmp_path / 'a', 'results'), torch.from_numpy(truth)[..., 0].float() / 255
    every = torch.stack([psnr(torch.from_numpy(x)[..., 0].float() / 255, y) for x in samples])
    for b, s in enumerate(every.mean(2).argmax(0)):
        np.testing.assert_allclose(found['psnr_t'][b], every[s, b], rtol=1e-5)
    np.testing.assert_allclose(found['lpips_t'].mean(1), found['lpips'], rtol=1e-5)
    alone = [plain(truth, sample) for sample in samples]
    found = {name: score['mean'] for name, score in result['scores'].items()}
    assert found['psnr'] > max(scores['psnr']['mean'] for scores in alone) + 0.1
    assert found['lpips'] < min(scores['lpips']['mean'] for scores in alone)


def test_other_kinds_of_files(published, truth, out_dir, tmp_path):
    """Grey frames without channel axis, and predictions of the whole test set."""
    samples = arrays(out_dir, 'random_1')['samples']
    whole = np.zeros((500, 3, 64, 64), np.uint8)
    whole[:7] = samples[..., 0]
    np.save(tmp_path / 'a.npy', whole)
    np.savez(tmp_path / 'b.npz', mine=samples)
    expected = plain(truth, samples)
    for i, name in enumerate(('a.npy', 'b.npz')):
        assert_equal(run(published, tmp_path / f'{i}', tmp_path / name)['scores'], expected)


def test_perfect_prediction(published, truth, tmp_path, capsys):
    np.save(tmp_path / 'truth.npy', truth[..., 0])
    result = run(published, tmp_path / 'a', tmp_path / 'truth.npy', '--metrics', 'psnr',
                 'ssim')
    assert result['scores']['psnr'] == {'mean': None, 'ci95': None}
    assert result['scores']['ssim']['mean'] == pytest.approx(1)
    assert result['protocol']['lpips_version'] is None
    assert 'PSNR inf (identical)' in capsys.readouterr().out


def test_fvd_of_predictions(data_dir, published, tmp_path, monkeypatch, capsys):
    """With the true conditioning frames before them; mean and interval over files."""
    with np.load(published / 'smmnist_test_2digits_64.npz', allow_pickle=False) as f:
        videos = np.concatenate([f['sequences'][:, :16], f['sequences'][:2, :16]])
    np.savez(tmp_path / 'smmnist_test_2digits_64.npz', sequences=videos)
    videos, paths = videos.swapaxes(0, 1)[..., None], []
    for i in range(3):
        paths.append(tmp_path / f'{i}.npy')
        np.save(paths[-1], np.random.RandomState(i).permutation(videos[:, 5:]))
    monkeypatch.setattr(script.metrics.fvd, 'build_embedding', lambda *_, **__: MeanColour())
    script.main([*map(str, paths), '--preset', 'smmnist', '--data_dir', str(tmp_path), '--nt_gen',
                 '10', '--metrics', 'psnr', '--batch_size', '7', '--fvd', '--out',
                 str(tmp_path / 'out')])
    distances = [fvd(videos, np.concatenate([videos[:, :5], np.load(path)], 1), MeanColour())
                 for path in paths]
    mean, half = np.mean(distances), 1.96 * np.std(distances) / 3 ** .5
    result = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert result['scores']['fvd'] == {'mean': pytest.approx(mean), 'ci95': pytest.approx(half)}
    assert half > 0 and result['protocol']['fvd']['samples'] == 3
    assert f'  FVD {mean:.2f} ± {half:.2f}' in capsys.readouterr().out


GOOD = 7, 3, 64, 64, 1
EXPECTED = 'expected .3, 64, 64, 1.'


@pytest.mark.parametrize('shape, more, message', [
    ((7, 4, 64, 64, 1), [], r'has videos .T, H, W, C. of .4, 64, 64, 1., ' + EXPECTED
     + '.*; give predicted frames only'),
    ((7, 3, 32, 32, 1), [], EXPECTED),
    ((7, 3, 64, 64, 3), [], EXPECTED),
    ((6, 3, 64, 64, 1), [], 'has 6 videos, but the test set has 500 .--n_videos: 7.; '
                            'give one prediction per video'),
    (GOOD, ['--nt_gen', '5'],
     '--nt_gen 5 leaves no frame to predict after the 5 conditioning frames of smmnist'),
    (GOOD, ['--nt_gen', '9'], 'videos of 8 frames, .*--nt_gen 9'),
    (GOOD, ['--n_videos', '501'], 'the test set has 500'),
    (GOOD, ['--out', 'there.json'], 'results are a folder now'),
    (GOOD, ['--out', 'bad.npy'], '--out bad.npy cannot be created'),
    (GOOD, ['--out', '.'], 'curves.png is not listed as a result'),
    (GOOD, ['--i3d_path', 'a'], '--i3d_path, --i3d_other and --fvd_backend need --fvd'),
    (GOOD, ['--fvd'], 'has 7 videos, but the Fréchet video distance needs at least 16'),
    (GOOD, ['--preset', 'kth', '--nt_gen', '12'],
     'there is no svg_test_set_<frames>.npz of at least 12 frames'),
    ((), [], 'expected uint8'),
    (None, [], 'bad.npy does not exist')])
def test_errors_before_any_score(shape, more, message, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there.json').write_text('mine')
    (tmp_path / 'curves.png').write_text('mine')
    np.save('good.npy', np.zeros((7, 3, 64, 64), np.uint8))
    if shape is not None:
        np.save('bad.npy', np.zeros(shape, np.uint8))
    monkeypatch.setattr(script, 'score_all', None)
    with pytest.raises(UserError, match=message):
        script.main(['good.npy', 'bad.npy', '--preset', 'smmnist', '--data_dir', str(published),
                     '--nt_gen', '8', '--n_videos', '7', '--metrics', 'psnr', *more])
    assert (tmp_path / 'there.json').read_text() == 'mine'
    assert {p.name for p in tmp_path.iterdir()} <= {
        'there.json', 'curves.png', 'good.npy', 'bad.npy'}


def test_published_lengths_by_default():
    lengths = {'smmnist': 25, 'smmnist_deterministic': 100, 'kth': 40, 'human': 53, 'bair': 30}
    for preset, nt_gen in lengths.items():
        args, _ = script.resolve(['a.npz', '--preset', preset, '--data_dir', 'd'])
        assert args.nt_gen == nt_gen


def test_help_has_an_example():
    done = subprocess.run([sys.executable, '-m', 'metrics', '--help'], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith('usage: python -m metrics [-h]')
    example = 'python -m metrics --preset kth --data_dir DATA A.npz B.npz'
    assert example in ' '.join(done.stdout.split())


def test_other_sizes_of_frames(published, truth, tmp_path, call):
    small = truth[:, :, 16:48, 16:48]
    np.save(tmp_path / 'a.npy', small)
    sequences = arrays(published, 'smmnist_test_2digits_64')['sequences'][:, :, 16:48, 16:48]
    np.savez(tmp_path / 'smmnist_test_2digits_32.npz', sequences=sequences)
    argv = [tmp_path / 'a.npy', '--preset', 'smmnist', '--nt_gen', '8', '--n_videos', '7',
            '--metrics', 'psnr', '--data_dir']
    code, out, _ = call(script.main, *argv, tmp_path, '--nx', 32, '--out', tmp_path / 'out')
    assert code == 0 and 'PSNR inf (identical)' in out
    assert json.loads((tmp_path / 'out' / 'results.json').read_text())['protocol']['size'] == 32
    code, _, err = call(script.main, *argv, published)
    assert code == 2 and re.search(r'a.npy .* of \(3, 32, 32, 1\), expected .* and --nx', err)
    code, _, err = call(script.main, *argv, published, '--nx', 48)
    assert code == 2 and '--nx 48: frames of smmnist are 32 or 64 or 128 or 256 pixels' in err
