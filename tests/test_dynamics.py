"""The ablations of the dynamics: formulas, gradients, initial weights, training and evaluation."""

import json
import math

from files import UserError

import pytest
import test_evaluation
import torch
import torch.nn as nn

import train
from args import load_config, parse_train
from conftest import TINY, steps, stirred
from model import Noise, build_model, loss
from tests import plain
from utils import load_model

RULES = ['mlp', 'gru']
T, S, B = 3, 4, 2  # conditioning frames, samples, videos


def config_of(rule, *more):
    return parse_train([*TINY, '--data_dir', 'd', '--save_path', 's', '--dynamics', rule, *more])


@pytest.fixture(params=RULES)
def model(request, device):
    return stirred(build_model(config_of(request.param)), 1).to(device)


def test_evolve_follows_the_formulas(model, device):
    K, nt = 2, 6  # K random variables are given, the others come from the prior
    y_0 = torch.randn(S, B, model.ny, device=device)
    given = torch.randn(K, S, B, model.nz, device=device)
    noise = torch.randn(nt - 1 - K, S, B, model.nz, device=device)
    y, z, res = model.evolve(y_0, given, nt, noise)
    assert y.shape == (nt, S, B, model.ny) and z.shape == (nt - 1, S, B, model.nz)
    assert res.shape == (0, S, B, model.ny)
    expected = y_0
    for t in range(nt - 1):
        mean, raw = model.p_z(expected).chunk(2, -1)
        z_t = given[t] if t < K else mean + (raw.exp().log1p() + 1e-8) * noise[t - K]
        torch.testing.assert_close(z[t], z_t, rtol=1e-5, atol=1e-5)
        expected = plain.next_state(model, expected, z_t)
        torch.testing.assert_close(y[t + 1], expected, rtol=1e-5, atol=1e-5)
    assert (y[1:] - y[:-1]).abs().min(0).values.mean() > 1e-3  # the states move
    one, no_z, no_res = model.evolve(y_0, given, 1)
    assert torch.equal(one, y_0[None]) and len(no_z) == len(no_res) == 0
    with pytest.raises(ValueError, match=f'dynamics {model.rule}: one step per frame, found 2'):
        model.evolve(y_0, given, 3, n_euler_steps=2)


def test_predict_is_the_plain_formulation_with_a_sample_axis(model, device):
    x, nt = torch.rand(T, B, 1, 64, 64, device=device), 5
    noise = model.draw_noise(T + nt, (S, B), device)
    y_given, y = model.predict(model.condition(x), nt, noise)
    assert y_given.shape == (T, S, B, model.ny) and y.shape == (nt, S, B, model.ny)
    for s in range(S):
        one = Noise(noise.y_0[s], noise.z[:, s])
        found, expected = model(x, T + nt, noise=one), plain.forward(model, x, T + nt, noise=one)
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.cat([y_given, y])[:, s], expected.y, rtol=1e-5, atol=1e-5)


def test_training_step_is_the_plain_one_and_reaches_all_parameters(model, device, monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)  # else rounding hides errors
    model.train().double().requires_grad_()
    x = torch.rand(4, B, 1, 64, 64, dtype=torch.float64, device=device)
    noise = Noise(*(part.to(x) for part in model.draw_noise(4, B)))
    weights = {'obs_scale': 0.3, 'beta_y': 0.5, 'beta_z': 2., 'l2_res': 0.7}
    assert loss(x, model(x, 4, noise=noise), **weights).res == 0
    expected = plain.gradients(
        model, lambda: plain.loss(x, plain.forward(model, x, 4, noise=noise), **weights))
    found = plain.gradients(model, lambda: loss(x, model(x, 4, noise=noise), **weights).loss)
    for e, f in zip(expected, found, strict=True):  # none is None, as DistributedDataParallel needs
        assert f.abs().max() > 0
        torch.testing.assert_close(f, e, rtol=1e-7, atol=1e-7 * e.abs().max().item())


def test_initial_weights():
    models = {}
    for rule in ('residual', *RULES):
        torch.manual_seed(0)
        models[rule] = build_model(config_of(rule, '--res_gain', '1.2'))
    residual, mlp = (models[rule].state_dict() for rule in ('residual', 'mlp'))
    assert residual.keys() == mlp.keys()
    assert all(torch.equal(residual[name], mlp[name]) for name in residual)
    cell = models['gru'].dynamics
    assert type(cell) is nn.GRUCell and (cell.input_size, cell.hidden_size) == (3, 4)
    # Uniform in ±1/√ny, as PyTorch has it
    largest = [p.abs().max() for p in cell.parameters()]
    assert len(largest) == 4 and all(0.3 < value <= 1 / math.sqrt(4) for value in largest)


@pytest.mark.parametrize('rule', RULES)
def test_training_and_evaluation(rule, data_dir, tmp_path):
    folder = tmp_path / 'run'
    assert train.main([*TINY, '--n_workers', '0', *steps(8, 0), '--dynamics', rule, '--data_dir',
                       str(data_dir), '--save_path', str(folder)]) == 0
    assert json.loads((folder / 'config.json').read_text())['dynamics'] == rule
    model = load_model(load_config(folder), folder / 'model.pt', 'cpu')
    assert isinstance(model.dynamics, nn.GRUCell) == (rule == 'gru')
    found = test_evaluation.evaluate(folder, data_dir, tmp_path / 'out')
    samples, truth = test_evaluation.draw_samples(model, load_config(folder), data_dir)
    expected = torch.stack([plain.psnr(sample, truth) for sample in samples]).max(0).values
    torch.testing.assert_close(torch.from_numpy(found['psnr']), expected, rtol=1e-5, atol=0)
    with pytest.raises(UserError, match=f'--n_euler_steps 2: {rule} dynamics take one step'):
        test_evaluation.evaluate(folder, data_dir, tmp_path / 'out', '--n_euler_steps', '2')
    other = RULES[1 - RULES.index(rule)]
    with pytest.raises(UserError, match=f'started with dynamics {rule}, found {other}'):
        train.main(['--resume', '--save_path', str(folder), '--dynamics', other])
