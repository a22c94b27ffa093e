"""The scripts on each available device, against their results on the CPU."""

import csv
import signal

import numpy as np
import pytest
import torch

import damage
import test as evaluation
import train
import visualize
from checkpoint import load
from conftest import DEVICES, TINY, steps
from training.loop import Trainer
from training.precision import has_bfloat16

STEPS = steps(10, 5)


def column(path, name='loss'):
    """Numbers in a column of a CSV file, empty cells left out."""
    with open(path, newline='') as f:
        return np.array([float(row[name]) for row in csv.DictReader(f) if row[name]])


def option(device):
    return ['--device', 'cpu' if device.type == 'cpu' else str(device.index)]


def run(main, device, *argv):
    return main([*map(str, argv), *option(device)])


def test_training(device, run_dir, data_dir, tmp_path):
    assert run(train.main, device, *TINY, *STEPS, '--data_dir', data_dir,
               '--save_path', tmp_path) == 0
    np.testing.assert_allclose(column(tmp_path / 'log.csv'), column(run_dir / 'log.csv'), rtol=1e-4)
    weights, expected = load(tmp_path / 'model.pt'), load(run_dir / 'model.pt')
    assert all(v.device.type == 'cpu' for v in weights.values())  # loads on any machine
    difference = torch.cat([(weights[k] - v).double().flatten().abs() for k, v in expected.items()])
    # The first steps of Adam are of size lr, even if rounding decides the sign of a gradient
    assert (difference > 1e-4).double().mean() < 0.01


@pytest.mark.parametrize('before, after', [(a, b) for a in DEVICES for b in DEVICES], ids=str)
def test_resume_on_any_device(before, after, run_dir, data_dir, tmp_path, monkeypatch):
    step = Trainer.train_step

    def stop_after_six(self, *args):
        terms = step(self, *args)
        if self.step == 6:
            signal.raise_signal(signal.SIGTERM)
        return terms
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, 'train_step', stop_after_six)
        code = run(train.main, before, *TINY, *STEPS, '--data_dir', data_dir,
                   '--save_path', tmp_path)
        assert code == 128 + signal.SIGTERM
    assert 6 <= load(tmp_path / 'state.pt')['step'] <= 7
    assert run(train.main, after, '--resume', '--save_path', tmp_path) == 0
    np.testing.assert_allclose(column(tmp_path / 'log.csv'), column(run_dir / 'log.csv'), rtol=1e-4)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_trains_500_steps(dtype, device, data_dir, tmp_path):
    if device.type == 'cpu' and (dtype == 'float16' or not has_bfloat16()):
        pytest.skip(f'no training in {dtype} on this CPU')
    found = []
    for name, more in (('full', []), ('half', ['--torch_amp', '--amp_dtype', dtype])):
        folder = tmp_path / name
        assert run(train.main, device, *TINY, *steps(500, 0), '--data_dir', data_dir,
                   '--save_path', folder, '--val_interval', 500, '--state_interval', 500,
                   '--obs_scale', 0.2, *more) == 0
        found.append(column(folder / 'log.csv'))
    full, half = found
    assert len(half) == 500 and np.isfinite(half).all()
    # Without the constant of the Gaussian, log 0.2 + log(2 pi) / 2 per pixel: it hides differences
    constant = 5 * 64 ** 2 * (np.log(0.2) + np.log(2 * np.pi) / 2)
    full, half = (np.convolve(v - constant, np.ones(50) / 50, 'valid') for v in (full, half))
    assert full[-1] < 0.6 * full[0]  # the model has learnt something
    np.testing.assert_allclose(half, full, rtol=0.02)
    if dtype == 'float16':
        assert load(tmp_path / 'half' / 'state.pt')['precision']['scale'] >= 1


def test_evaluation(device, run_dir, data_dir, tmp_path):
    for folder, where in (('cpu', torch.device('cpu')), ('device', device)):
        run(evaluation.main, where, '--xp_dir', run_dir, '--data_dir', data_dir,
            '--out_dir', tmp_path / folder, '--metrics', 'psnr', 'ssim', '--nt_gen', 8,
            '--n_samples', 6, '--n_videos', 5, '--batch_size', 2, '--n_pictures', 1)

    def arrays(name):
        return [np.load(tmp_path / folder / f'{name}.npz') for folder in ('cpu', 'device')]
    expected, found = arrays('results')
    assert expected.files == found.files
    for name in expected.files:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    for name in ('psnr_best', 'random_1', 'cond_rec'):
        a, b = (f['samples'].astype(int) for f in arrays(name))
        assert abs(a - b).max() <= 1  # the last bit of a float may change a truncation


@pytest.mark.parametrize('what', ['samples', 'framerate', 'swap', 'interpolate', 'latent'])
def test_visualize(what, device, run_dir, data_dir, tmp_path):
    index = ['--index', 0, 1] if what in ('swap', 'interpolate') else []
    path = tmp_path / 'a.png'
    run(visualize.main, device, what, '--xp_dir', run_dir, '--data_dir', data_dir, *index,
        '--n_samples', 4, '--out', path)
    assert path.stat().st_size > 1000


def test_damage(device, run_dir, data_dir, tmp_path):
    for folder, where in (('cpu', torch.device('cpu')), ('device', device)):
        run(damage.main, where, '--xp_dir', run_dir, '--data_dir', data_dir,
            '--out_dir', tmp_path / folder, '--nt_gen', 6, '--n_iterations', 4, '--n_damages', 30)
    expected, found = (tmp_path / folder / 'damage.csv' for folder in ('cpu', 'device'))
    with open(expected, newline='') as f:
        names = next(csv.reader(f))
    for name in names:
        np.testing.assert_allclose(column(found, name), column(expected, name),
                                   rtol=1e-3, atol=1e-4)
