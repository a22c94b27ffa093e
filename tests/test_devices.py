"""Training on a GPU, against its results on the CPU."""

import csv

import numpy as np
import pytest
import torch

import train
from conftest import TINY, failing, nth, steps
from utils import load

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no CUDA device')
DEVICES = ['cpu', '0']


def column(path, name='loss'):
    with open(path, newline='') as f:
        return np.array([float(row[name]) for row in csv.DictReader(f)])


def run(main, device, *argv):
    return main([*map(str, argv), '--device', device])


def test_training(run_dir, data_dir, tmp_path):
    assert run(train.main, '0', *TINY, *steps(10, 5), '--data_dir', data_dir,
               '--save_path', tmp_path) == 0
    np.testing.assert_allclose(column(tmp_path / 'log.csv'), column(run_dir / 'log.csv'), rtol=1e-4)
    weights, expected = load(tmp_path / 'model.pt'), load(run_dir / 'model.pt')
    difference = torch.cat([(weights[k] - v).double().flatten().abs() for k, v in expected.items()])
    # The first steps of Adam are of size lr, even if rounding decides the sign of a gradient
    assert (difference > 1e-4).double().mean() < 0.01


@pytest.mark.parametrize('before', DEVICES)
@pytest.mark.parametrize('after', DEVICES)
def test_resume_on_any_device(before, after, run_dir, data_dir, tmp_path):
    with failing(train, 'loss', nth(7)), pytest.raises(KeyboardInterrupt):
        run(train.main, before, *TINY, *steps(10, 5), '--data_dir', data_dir,
            '--save_path', tmp_path)
    assert run(train.main, after, '--resume', '--save_path', tmp_path) == 0
    np.testing.assert_allclose(column(tmp_path / 'log.csv'), column(run_dir / 'log.csv'), rtol=1e-4)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_trains_500_steps(dtype, data_dir, tmp_path):
    found = []
    for name, more in (('full', []), ('half', ['--torch_amp', '--amp_dtype', dtype])):
        assert run(train.main, '0', *TINY, *steps(500, 0), '--data_dir', data_dir,
                   '--save_path', tmp_path / name, '--val_interval', 500, '--state_interval', 500,
                   '--obs_scale', 0.2, *more) == 0
        found.append(column(tmp_path / name / 'log.csv'))
    # Without the constant of the Gaussian, log 0.2 + log(2 pi) / 2 per pixel: it hides differences
    constant = 5 * 64 ** 2 * (np.log(0.2) + np.log(2 * np.pi) / 2)
    full, half = (np.convolve(v - constant, np.ones(50) / 50, 'valid') for v in found)
    assert full[-1] < 0.6 * full[0]  # the model has learnt something
    np.testing.assert_allclose(half, full, rtol=0.02)
