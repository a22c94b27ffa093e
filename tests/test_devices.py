"""The scripts on each kind of device there is, against their results on the CPU: training and resume, half precision, and what reads a trained model."""

import csv
import signal

import numpy as np
import pytest
import torch

import damage
import train
from training import loop as trainer
import visualize
from conftest import DEVICES, TINY, steps
from training.precision import has_bfloat16
from test_damage import OPTIONS as DAMAGE, table
from test_evaluation import arrays, evaluate
from checkpoint import load

STEPS = steps(10, 5)


def losses(folder):
    with open(folder / 'log.csv', newline='') as f:
        return np.array([float(row['loss']) for row in csv.DictReader(f) if row['loss']])


def option(device):
    return ['--device', 'cpu' if device.type == 'cpu' else str(device.index)]


def test_training(device, run_dir, data_dir, tmp_path):
    assert train.main([*TINY, *STEPS, *option(device), '--data_dir', str(data_dir), '--save_path', str(tmp_path)]) == 0
    np.testing.assert_allclose(losses(tmp_path), losses(run_dir), rtol=1e-4)
    weights = load(tmp_path / 'model.pt')
    assert all(v.device.type == 'cpu' for v in weights.values())  # also where there is no such device
    difference = torch.cat([(weights[k] - v).double().flatten().abs() for k, v in load(run_dir / 'model.pt').items()])
    assert (difference > 1e-4).double().mean() < 0.01  # Adam moves a weight by the rate, though the sign of its gradient may be rounding


@pytest.mark.parametrize('before, after', [(a, b) for a in DEVICES for b in DEVICES], ids=str)
def test_resume_on_any_device(before, after, run_dir, data_dir, tmp_path, monkeypatch):
    step = trainer.Trainer.train_step

    def stop_after_six(self, *args):
        terms = step(self, *args)
        if self.step == 6:
            signal.raise_signal(signal.SIGTERM)
        return terms
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, 'train_step', stop_after_six)
        assert train.main([*TINY, *STEPS, *option(before), '--data_dir', str(data_dir), '--save_path', str(tmp_path)]) == 128 + signal.SIGTERM
    assert 6 <= load(tmp_path / 'state.pt')['step'] <= 7
    assert train.main(['--resume', '--save_path', str(tmp_path), *option(after)]) == 0
    np.testing.assert_allclose(losses(tmp_path), losses(run_dir), rtol=1e-4)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_trains_500_steps(dtype, device, data_dir, tmp_path):
    if device.type == 'cpu' and (dtype == 'float16' or not has_bfloat16()):
        pytest.skip(f'no training in {dtype} on this CPU')
    found = []
    for name, more in (('full', []), ('half', ['--torch_amp', '--amp_dtype', dtype])):
        argv = [*TINY, *steps(500, 0), *option(device), '--data_dir', str(data_dir), '--save_path', str(tmp_path / name), '--val_interval', '500',
                '--state_interval', '500', '--obs_scale', '0.2', *more]
        assert train.main(argv) == 0
        found.append(losses(tmp_path / name))
    full, half = found
    assert len(half) == 500 and np.isfinite(half).all()
    # without the constant of the Gaussian, which would hide a difference: log 0.2 + log(2 pi) / 2 a pixel
    constant = 5 * 64 ** 2 * (np.log(0.2) + np.log(2 * np.pi) / 2)
    full, half = (np.convolve(v - constant, np.ones(50) / 50, 'valid') for v in (full, half))
    assert full[-1] < 0.6 * full[0]  # it has learnt something
    np.testing.assert_allclose(half, full, rtol=0.02)
    if dtype == 'float16':
        assert load(tmp_path / 'half' / 'state.pt')['precision']['scale'] >= 1


def test_evaluation(device, run_dir, data_dir, tmp_path):
    expected = evaluate(run_dir, data_dir, tmp_path / 'cpu')
    found = evaluate(run_dir, data_dir, tmp_path / 'device', *option(device))
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    for name in ('psnr_best', 'random_1', 'cond_rec'):
        a, b = (arrays(tmp_path / folder, name)['samples'].astype(int) for folder in ('cpu', 'device'))
        assert abs(a - b).max() <= 1  # the last bit of a float decides a truncation


@pytest.mark.parametrize('what', ['samples', 'framerate', 'swap', 'interpolate', 'latent'])
def test_visualize(what, device, run_dir, data_dir, tmp_path):
    more = ['--index', '0', '1'] if what in ('swap', 'interpolate') else []
    visualize.main([what, '--xp_dir', str(run_dir), '--data_dir', str(data_dir), *more, '--out', str(tmp_path / 'a.png'), *option(device)])
    assert (tmp_path / 'a.png').stat().st_size > 1000


def test_damage(device, run_dir, data_dir, tmp_path):
    for name, where in (('cpu', []), ('device', option(device))):
        damage.main(['--xp_dir', str(run_dir), '--data_dir', str(data_dir), '--out_dir', str(tmp_path / name), *DAMAGE, *where])
    expected, found = (table(tmp_path / name) for name in ('cpu', 'device'))
    for column in expected:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-3, atol=1e-4)
