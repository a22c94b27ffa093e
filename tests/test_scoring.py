"""`python -m metrics`: scores of files of predictions, against those of `test.py` and a plain computation."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import ROOT
from files import UserError
from metrics import __main__ as script
from metrics.frame import psnr, ssim
from metrics.lpips import LPIPS
from test_evaluation import arrays, evaluation
from test_metrics import random_backbone


@pytest.fixture(scope='module')
def published(data_dir, tmp_path_factory):
    """Folder with a test set under the name of the published one, and the weights of LPIPS."""
    folder = tmp_path_factory.mktemp('published')
    shutil.copy(data_dir / 'smmnist5k_test_2digits_64.npz', folder / 'smmnist_test_2digits_64.npz')
    torch.save(random_backbone(), folder / 'alexnet-features.pth')
    return folder


@pytest.fixture(scope='module')
def out_dir(run_dir, data_dir, published, tmp_path_factory):
    """Results of `test.py` with the given frames of the preset, of one sample."""
    folder = tmp_path_factory.mktemp('out')
    evaluation.main(['--xp_dir', str(run_dir), '--data_dir', str(data_dir), '--lpips_dir', str(published), '--out_dir', str(folder), '--nt_cond', '5',
                     '--nt_gen', '8', '--n_samples', '1', '--n_videos', '7', '--n_pictures', '0'])
    return folder


def run(published, out, *more):
    """Scores and protocol of a call."""
    script.main([*map(str, more), '--preset', 'smmnist', '--data_dir', str(published), '--lpips_dir', str(published), '--nt_gen', '8', '--n_videos', '7',
                 '--batch_size', '3', '--out', str(out)])
    return json.loads(out.read_text())


def plain(published, *samples):
    """Mean, and half-width of its interval, of the best of uint8 arrays (N, T, H, W, 1), by metric."""
    truth = arrays(published, 'smmnist_test_2digits_64')['sequences'][5:8, :7]
    y = torch.from_numpy(truth).float()[:, :, None] / 255  # (T, N, 1, H, W)
    lpips = LPIPS(random_backbone())
    functions = {'psnr': lambda x: psnr(x, y).mean((0, 2)), 'ssim': lambda x: ssim(x, y).mean((0, 2)), 'lpips': lambda x: lpips(x, lpips.prepare(y))}
    videos = [torch.from_numpy(x).permute(1, 0, 4, 2, 3).float() / 255 for x in samples]
    every = {name: torch.stack([f(x) for x in videos]).numpy() for name, f in functions.items()}
    best = {name: v.min(0) if name == 'lpips' else v.max(0) for name, v in every.items()}
    return {name: {'mean': v.mean(), 'ci95': 1.96 * v.std() / 7 ** .5} for name, v in best.items()}


def same(found, expected, rel):
    assert found.keys() == expected.keys()
    for name, score in expected.items():
        assert found[name] == {k: pytest.approx(v, rel=rel) for k, v in score.items()}


def test_scores_are_those_of_test_py(published, out_dir, tmp_path, capsys):
    expected = json.loads((out_dir / 'results.json').read_text())
    result = run(published, tmp_path / 'a.json', out_dir / 'random_1.npz')
    out = capsys.readouterr().out
    assert abs(result['scores']['psnr']['mean'] - expected['scores']['psnr']['mean']) < 0.1  # of quantised frames
    assert abs(result['scores']['ssim']['mean'] - expected['scores']['ssim']['mean']) < 0.01
    assert f'test set: {published}/smmnist_test_2digits_64.npz' in out and 'LPIPS: AlexNet, version 0.1' in out
    assert ' PSNR {mean:.2f} ± {ci95:.2f} dB'.format(**result['scores']['psnr']) in out
    same(result['scores'], plain(published, arrays(out_dir, 'random_1')['samples']), 1e-6)
    assert result['protocol'] == {'test_set': 'smmnist_test_2digits_64.npz',
                                  **{k: expected['protocol'][k] for k in result['protocol'].keys() - {'test_set'}}}


def test_best_of_several_files_counts(published, tmp_path):
    rng = np.random.RandomState(0)
    truth = arrays(published, 'smmnist_test_2digits_64')['sequences'][5:8, :7].swapaxes(0, 1)[..., None]
    samples = [np.clip(truth + rng.normal(0, rng.uniform(10, 60, (7, 1, 1, 1, 1)), truth.shape), 0, 255).astype(np.uint8) for _ in range(3)]
    for i, sample in enumerate(samples):
        np.savez(tmp_path / f'{i}.npz', samples=sample)
    result = run(published, tmp_path / 'a.json', *(tmp_path / f'{i}.npz' for i in range(3)))
    same(result['scores'], plain(published, *samples), 1e-6)
    alone = [plain(published, sample) for sample in samples]
    assert result['protocol']['samples'] == 3 and result['scores']['psnr']['mean'] > max(scores['psnr']['mean'] for scores in alone) + 0.1
    assert result['scores']['lpips']['mean'] < min(scores['lpips']['mean'] for scores in alone)


def test_other_kinds_of_files(published, out_dir, tmp_path):
    """Arrays of grey frames without channels, of all the test set."""
    samples = arrays(out_dir, 'random_1')['samples']
    whole = np.zeros((500, 3, 64, 64), np.uint8)
    whole[:7] = samples[..., 0]
    np.save(tmp_path / 'a.npy', whole)
    np.savez(tmp_path / 'b.npz', mine=samples)
    for i, name in enumerate(('a.npy', 'b.npz')):
        same(run(published, tmp_path / f'{i}.json', tmp_path / name)['scores'], plain(published, samples), 1e-6)


def test_perfect_prediction(published, tmp_path, capsys):
    truth = arrays(published, 'smmnist_test_2digits_64')['sequences'][5:8, :7].swapaxes(0, 1)
    np.save(tmp_path / 'truth.npy', truth)
    result = run(published, tmp_path / 'a.json', tmp_path / 'truth.npy', '--metrics', 'psnr', 'ssim')
    assert result['scores']['psnr'] == {'mean': None, 'ci95': None} and result['scores']['ssim']['mean'] == pytest.approx(1)
    assert 'PSNR inf ± nan dB' in capsys.readouterr().out and result['protocol']['lpips_version'] is None


@pytest.mark.parametrize('shape, more, message', [
    ((7, 4, 64, 64, 1), [], r'has videos .T, H, W, C. of .4, 64, 64, 1., but .* are of .3, 64, 64, 1.; give the predicted frames only'),
    ((7, 3, 32, 32, 1), [], 'are of .3, 64, 64, 1.'), ((7, 3, 64, 64, 3), [], 'are of .3, 64, 64, 1.'),
    ((6, 3, 64, 64, 1), [], 'has 6 videos, but the test set has 500, of which --n_videos asks for 7; give one prediction of each'),
    ((7, 3, 64, 64, 1), ['--nt_gen', '5'], '--nt_gen 5 leaves no frame to predict after the 5 given ones of smmnist'),
    ((7, 3, 64, 64, 1), ['--nt_gen', '9'], 'videos of 8 frames, but --nt_gen 9'), ((7, 3, 64, 64, 1), ['--n_videos', '501'], 'the test set has 500'),
    ((7, 3, 64, 64, 1), ['--out', 'there.json'], 'exists already'), ((7, 3, 64, 64, 1), ['--out', 'a.txt'], 'is no .json file'),
    ((7, 3, 64, 64, 1), ['--out', 'no/a.json'], 'no is not a folder that can be written to'),
    ((7, 3, 64, 64, 1), ['--preset', 'kth', '--nt_gen', '12'], 'there is no svg_test_set_<frames>.npz of at least 12 frames'),
    ((), [], 'expected uint8'), (None, [], 'bad.npy does not exist')])
def test_errors_before_any_score(shape, more, message, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there.json').write_text('mine')
    np.save('good.npy', np.zeros((7, 3, 64, 64), np.uint8))
    if shape is not None:
        np.save('bad.npy', np.zeros(shape, np.uint8))
    monkeypatch.setattr(script, 'score', None)
    with pytest.raises(UserError, match=message):
        script.main(['good.npy', 'bad.npy', '--preset', 'smmnist', '--data_dir', str(published), '--nt_gen', '8', '--n_videos', '7',
                     '--metrics', 'psnr', *more])
    assert (tmp_path / 'there.json').read_text() == 'mine' and not {p.name for p in tmp_path.iterdir()} - {'there.json', 'good.npy', 'bad.npy'}


def test_published_lengths_by_default(published, tmp_path):
    for preset, nt_gen in (('smmnist', 25), ('smmnist_deterministic', 100), ('kth', 40), ('human', 53), ('bair', 30)):
        assert script.resolve(['a.npz', '--preset', preset, '--data_dir', 'd'])[0].nt_gen == nt_gen


def test_help_has_an_example():
    done = subprocess.run([sys.executable, '-m', 'metrics', '--help'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and done.stdout.startswith('usage: python -m metrics [-h]')
    assert 'python -m metrics --preset kth --data_dir DATA A.npz B.npz' in ' '.join(done.stdout.split())
