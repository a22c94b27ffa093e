"""The ablations of the dynamics: formulas, training, and all scripts on their models."""

import json
import math

import numpy as np
import pytest
import test_damage as test_damage_script
import test_evaluation
import torch
import torch.nn as nn
from test_export import export_run
from test_precision import needs_bfloat16
from test_train import assert_same_end, cut_after, options, resume, rows
from test_visualize import as_frames, cells

import damage
import train
import visualize
from args import load_config, parse_train
from checkpoint import load, load_model
from conftest import TINY, steps, stirred
from data import load_test
from files import UserError
from model import Noise, build_model, loss
from sampling import draw_noise
from tests import plain
from utils import to_video

RULES = ['mlp', 'gru']
T, S, B = 3, 4, 2  # conditioning frames, samples, videos


def config_of(rule, *more):
    return parse_train([*TINY, '--data_dir', 'd', '--save_path', 's', '--dynamics', rule, *more])


@pytest.fixture(params=RULES)
def model(request, device):
    return stirred(build_model(config_of(request.param)), 1).to(device)


# Formulas

def test_evolve_follows_the_formulas(model, device):
    K, nt = 2, 6  # K random variables are given, the others come from the prior
    y_0 = torch.randn(S, B, model.ny, device=device)
    given = torch.randn(K, S, B, model.nz, device=device)
    noise = torch.randn(nt - 1 - K, S, B, model.nz, device=device)
    y, z, res = model.evolve(y_0, given, nt, noise)
    assert y.shape == (nt, S, B, model.ny) and z.shape == (nt - 1, S, B, model.nz)
    assert res.shape == (0, S, B, model.ny)
    for s in range(S):
        expected, states = y_0[s], [y_0[s]]
        for t in range(nt - 1):
            mean, raw = model.p_z(expected).chunk(2, -1)
            prior = mean + (raw.exp().log1p() + 1e-8) * noise[t - K, s]
            z_t = given[t, s] if t < K else prior
            torch.testing.assert_close(z[t, s], z_t, rtol=1e-5, atol=1e-5)
            expected = plain.next_state(model, expected, z_t)
            states.append(expected)
        torch.testing.assert_close(y[:, s], torch.stack(states), rtol=1e-5, atol=1e-5)
    assert (y[1:] - y[:-1]).abs().min(0).values.mean() > 1e-3  # the states move
    one, no_z, no_res = model.evolve(y_0, given, 1)
    assert torch.equal(one, y_0[None]) and len(no_z) == len(no_res) == 0


def test_predict_is_the_plain_formulation_with_a_sample_axis(model, device):
    x, nt = torch.rand(T, B, 1, 64, 64, device=device), 5
    noise = model.draw_noise(T + nt, (S, B), device)
    y_given, y = model.predict(model.condition(x), nt, noise)
    assert y_given.shape == (T, S, B, model.ny) and y.shape == (nt, S, B, model.ny)
    for s in range(S):
        one = Noise(noise.y_0[s], noise.z[:, s])
        expected = plain.forward(model, x, T + nt, noise=one)
        assert_outputs_equal(model(x, T + nt, noise=one), expected)
        torch.testing.assert_close(torch.cat([y_given, y])[:, s], expected.y, rtol=1e-5, atol=1e-5)


def assert_outputs_equal(found, expected):
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-5, atol=1e-5)


def test_training_step_is_the_plain_one_and_reaches_all_parameters(model, device, monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)  # else rounding hides errors
    model.train().double().requires_grad_()
    x = torch.rand(4, B, 1, 64, 64, dtype=torch.float64, device=device)
    noise = Noise(*(part.to(x) for part in model.draw_noise(4, B)))
    weights = {'obs_scale': 0.3, 'beta_y': 0.5, 'beta_z': 2., 'l2_res': 0.7}

    def gradients(step):
        model.zero_grad()
        torch.manual_seed(3)  # frames for w and the skip connections
        value = step()
        value.backward()
        return [value.detach(), *(p.grad for p in model.parameters())]
    losses = loss(x, model(x, 4, noise=noise), **weights)
    assert losses.res == 0
    assert losses.loss == losses.nll + 0.5 * losses.kl_y_0 + 2 * losses.kl_z
    expected = gradients(lambda: plain.loss(x, plain.forward(model, x, 4, noise=noise), **weights))
    found = gradients(lambda: loss(x, model(x, 4, noise=noise), **weights).loss)
    for e, f in zip(expected, found, strict=True):  # none is None, as DistributedDataParallel needs
        assert f.abs().max() > 0
        torch.testing.assert_close(f, e, rtol=1e-7, atol=1e-7 * e.abs().max().item())


def test_one_step_per_frame(model):
    y_0, z = torch.zeros(B, model.ny), torch.zeros(2, B, model.nz)
    with pytest.raises(ValueError, match=f'dynamics {model.rule}: one step per frame, found 2'):
        model.evolve(y_0.to(model.q_z.weight), z.to(model.q_z.weight), 3, n_euler_steps=2)


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


# Training

@pytest.fixture(scope='module', params=RULES)
def run(request, tmp_path_factory):
    """Folder of a complete run of 24 steps, and its rule."""
    folder = tmp_path_factory.mktemp(request.param) / 'run'
    assert train.main(options(folder, '--dynamics', request.param, '--lr', '3e-3')) == 0
    return folder, request.param


def test_training_and_its_files(run):
    folder, rule = run
    assert json.loads((folder / 'config.json').read_text())['dynamics'] == rule
    assert load(folder / 'state.pt')['config']['dynamics'] == rule
    model = load_model(load_config(folder), folder / 'model.pt', 'cpu')
    assert model.rule == rule and isinstance(model.dynamics, nn.GRUCell) == (rule == 'gru')
    training = [r for r in rows(folder) if r['loss']]
    assert len(training) == 24 and all(float(r['res']) == 0 for r in training)
    nll = [float(r['nll']) for r in training]
    assert np.mean(nll[-5:]) < np.mean(nll[:5])


def test_interrupted_run_resumes_bit_for_bit(run, tmp_path):
    folder, rule = run
    with cut_after(21):
        train.main(options(tmp_path / 'run', '--dynamics', rule, '--lr', '3e-3'))
    other = RULES[1 - RULES.index(rule)]
    with pytest.raises(UserError, match=f'started with dynamics {rule}, found {other}'):
        resume(tmp_path / 'run', '--dynamics', other)
    assert resume(tmp_path / 'run') == 0
    assert_same_end(tmp_path / 'run', folder)


def first_losses(tmp_path, rule, *more):
    folder = tmp_path / '_'.join(['run', *more])
    argv = ['--dynamics', rule, *steps(5, 0), '--val_interval', '100', *more]
    assert train.main(options(folder, *argv)) == 0
    return [float(r['loss']) for r in rows(folder) if r['loss']]


@needs_bfloat16
@pytest.mark.parametrize('rule', RULES)
def test_bfloat16(rule, tmp_path):
    expected, found = (first_losses(tmp_path, rule, *more) for more in ([], ['--torch_amp']))
    assert found == pytest.approx(expected, rel=1e-3) and found != expected
    model = build_model(config_of(rule)).eval()
    with torch.autocast('cpu', torch.bfloat16):
        out = model(torch.rand(T, B, 1, 64, 64), T + 2)
    assert out.y.dtype == out.z.dtype == out.res.dtype == torch.float32


@pytest.mark.parametrize('rule', RULES)
def test_compiled_networks_are_the_same(rule, tmp_path, compiled):
    expected, found = (first_losses(tmp_path, rule, *more) for more in ([], ['--compile']))
    assert compiled[-1] == ('GRUCell' if rule == 'gru' else 'MLP')
    assert found == pytest.approx(expected, rel=1e-6)


# Scripts

def plain_futures(folder, data_dir, videos, n_samples, nt_gen):
    """Frames (S, T, B, C, H, W) of all samples, and the true videos."""
    config = load_config(folder)
    model = load_model(config, folder / 'model.pt', 'cpu')
    x = to_video(torch.from_numpy(load_test(config, data_dir, nt_gen).videos(videos)), 'cpu')
    noise = draw_noise(model, 1, 'test', videos, n_samples, nt_gen)
    return torch.stack([
        plain.forward(model, x[:T], nt_gen, noise=Noise(noise.y_0[s], noise.z[:, s])).x_
        for s in range(n_samples)]), x


def test_evaluation_and_export(run, data_dir, tmp_path):
    folder, rule = run
    scores = test_evaluation.evaluate(folder, data_dir, tmp_path / 'out')
    samples, x = plain_futures(folder, data_dir, range(5), 6, 8)
    expected = torch.stack([plain.psnr(sample[T:], x[T:]) for sample in samples]).max(0).values
    np.testing.assert_allclose(scores['psnr'], expected, rtol=1e-5)
    assert test_evaluation.results(tmp_path / 'out')['protocol']['n_euler_steps'] == 1
    export_run(folder, tmp_path / 'exported')
    config = json.loads((tmp_path / 'exported' / 'config.json').read_text())
    assert config['dynamics'] == rule
    halved = test_evaluation.evaluate(tmp_path / 'exported', data_dir, tmp_path / 'after')
    np.testing.assert_allclose(halved['psnr'], scores['psnr'], atol=1e-2)


def test_damage(run, data_dir, tmp_path, monkeypatch):
    folder, rule = run
    monkeypatch.setattr(damage, 'write_videos', lambda *_: None)
    found = test_damage_script.run(folder, data_dir, tmp_path, '--where', 'dynamics',
                                   '--mode', 'noise', '--damage_high', 3)
    samples, x = plain_futures(folder, data_dir, [0], 1, 6)
    assert found['psnr'][0] == pytest.approx(plain.psnr(samples[0, T:], x[T:]).item(), rel=1e-5)
    assert len(set(found['psnr'])) == 4  # each iteration changes the prediction
    with np.load(tmp_path / 'damage.npz', allow_pickle=False) as f:
        assert len(f['names']) == {'mlp': 8, 'gru': 4}[rule]


def test_pictures(run, data_dir, tmp_path):
    folder, rule = run
    common = ['--xp_dir', folder, '--data_dir', data_dir, '--nt_gen', 8, '--n_samples', 2]

    def draw(what, *more):
        visualize.main([what, *map(str, [*common, *more])])
    draw('samples', '--index', 4, '--out', tmp_path / 'samples.png')
    found = cells(tmp_path / 'samples.png', 7, 8)  # truth, best, worst, the two, mean, deviation
    samples, _ = plain_futures(folder, data_dir, [4], 2, 8)
    for row, sample in zip(found[3:5, T:], samples[:, T:, 0], strict=True):
        assert abs(row.astype(int) - as_frames(sample).astype(int)).max() <= 1
    for what in ('swap', 'interpolate', 'latent'):
        draw(what, '--out', tmp_path / f'{what}.png')
    assert len(list(tmp_path.iterdir())) == 4
    message = f'framerate needs residual dynamics, but those of {folder} are {rule}: there are no'
    with pytest.raises(UserError, match=message):
        draw('framerate')


def test_other_numbers_of_steps_are_refused(run, data_dir, tmp_path):
    folder, rule = run
    paths = ['--xp_dir', str(folder), '--data_dir', str(data_dir)]
    before = set(folder.rglob('*'))
    for main in (test_evaluation.script.main, damage.main,
                 lambda argv: visualize.main(['latent', *argv])):
        with pytest.raises(UserError, match=f'--n_euler_steps 2: {rule} dynamics take one step'):
            main([*paths, '--n_euler_steps', '2'])
    config = json.loads((folder / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'n_euler_steps': 3}))
    with pytest.raises(UserError, match=f'config.json: n_euler_steps 3: {rule} dynamics take one'):
        test_evaluation.script.main(['--xp_dir', str(tmp_path), '--data_dir', str(data_dir)])
    assert set(folder.rglob('*')) == before


def test_weights_of_other_dynamics_are_refused_where_shapes_differ(run, tmp_path):
    folder, rule = run
    other = {'gru': 'mlp', 'mlp': 'gru'}[rule]
    with pytest.raises(UserError, match='model.pt does not fit the configuration'):
        train.main(options(tmp_path / 'run', '--dynamics', other, '--weights',
                           str(folder / 'model.pt')))
