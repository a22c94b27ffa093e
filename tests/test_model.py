"""The model and its loss against numbers of the published implementation and closed forms."""

import copy
import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

import module
from conftest import GOLDEN
from data.clips import SIZES
from model import Noise, build_model, gaussian_kl, gaussian_nll, loss, normal_params
from tests import plain

ARCHITECTURES = ['dcgan', 'dcgan_skip', 'vgg', 'vgg_skip']


def recipe_weights(model, seed):
    """Fill a model with the weights of the golden files' recipe."""
    rng = np.random.RandomState(seed)
    state = {}
    for key, value in sorted(model.state_dict().items()):
        shape = tuple(value.shape)
        if key.endswith('num_batches_tracked'):
            array = np.zeros(shape, np.int64)
        elif key.endswith('running_var'):
            array = 0.5 + rng.rand(*shape)
        elif len(shape) == 1:
            array = 0.1 * rng.randn(*shape) + key.endswith('.weight')
        else:
            array = rng.randn(*shape) / np.sqrt(np.prod(shape[1:]))
        state[key] = torch.from_numpy(np.asarray(array)).to(value.dtype)
    model.load_state_dict(state)
    return model


@functools.cache
def golden(name, device='cpu', seed=11):
    """Numbers, model (shared between tests: copy it before any change), loss weights, config."""
    g = np.load(GOLDEN / f'{name}.npz', allow_pickle=False)
    config, opt = json.loads(str(g['config'])), json.loads(str(g['opt']))
    model = recipe_weights(build_model(SimpleNamespace(res_gain=1.41, **config)), seed)
    return g, model.to(device), opt, config


def means(model, nt, B):
    """Noise that replaces each random variable by its mean."""
    device = next(model.parameters()).device
    return Noise(torch.zeros(B, model.ny, device=device),
                 torch.zeros(nt - 1, B, model.nz, device=device))


def assert_close(actual, expected, tol=1e-5):
    expected = torch.from_numpy(np.asarray(expected)).to(actual.dtype)
    torch.testing.assert_close(actual.cpu(), expected, rtol=tol, atol=tol)


def random_frames(seed, *shape):
    return torch.from_numpy(np.random.RandomState(seed).rand(*shape).astype(np.float32))


@pytest.fixture(params=ARCHITECTURES)
def case(request, device):
    g, model, opt, config = golden(f'model_{request.param}', device)
    x = random_frames(5, 5, 2, config['nc'], 64, 64).to(device)
    with torch.no_grad():
        yield g, model.eval(), opt, x


@pytest.mark.parametrize('prefix, given, nt', [('rec', 5, 5), ('pred', 3, 8)])
def test_forward_is_the_published_one(case, prefix, given, nt):
    g, model, _, x = case
    out = model(x[:given], nt, noise=means(model, nt, 2))
    for name, value in out._asdict().items():
        assert_close(value, g[f'{prefix}_{name}'])


def test_encoder_skips_and_loss_are_the_published_ones(case):
    g, model, opt, x = case
    assert_close(model.encode(x)[0], g['hx'])
    if model.skipco:
        for i, skip in enumerate(model.condition(x).skips):
            # Sums of up to 4,096 terms: the tolerance is relative to the largest
            expected = g[f'skip{i}_sum']
            largest = np.abs(expected).max()
            assert_close(skip.cpu().sum((2, 3)) / largest, expected / largest)
    losses = loss(x, model(x, 5, noise=means(model, 5, 2)), **opt)
    assert_close(torch.stack(losses), g['losses'])


def test_states_between_frames_and_without_observations(case):
    g, model, _, x = case
    out = model(x[:3], 4, between=True, noise=means(model, 4, 2))
    assert_close(out.y, g['inter_y'])
    assert out.x_.shape == (len(out.y), 2, *x.shape[2:])
    y_0, no_z = torch.from_numpy(g['pred_y'][2]).to(x), x.new_zeros(0, 2, model.nz)
    y, _, _ = model.evolve(y_0, no_z, 4, means(model, 4, 2).z)
    assert_close(y[::model.n_euler_steps], g['gen_y'])


def test_predict_is_forward_with_a_sample_axis(case):
    _, model, _, x = case
    T, S, B, n = 3, 4, 2, 3
    noise = model.draw_noise(T + 5, (S, B), x.device)
    y_given, y = model.predict(model.condition(x[:T]), 5, noise, n)
    assert y_given.shape == (T, S, B, model.ny) and y.shape == (5, S, B, model.ny)
    for s in range(S):
        out = model(x[:T], T, noise=Noise(noise.y_0[s], noise.z[:T - 1, s]))
        torch.testing.assert_close(y_given[:, s], out.y, rtol=1e-5, atol=1e-5)
        expected = out.y[-1]
        for t in range(5):  # the paper's formulas, one by one
            mean, std = normal_params(model.p_z(expected))
            z = mean + std * noise.z[T - 1 + t, s]
            for _ in range(n):
                expected = expected + model.dynamics(torch.cat([expected, z], -1)) / n
            torch.testing.assert_close(y[t, s], expected, rtol=1e-5, atol=1e-5)


SMALL = dict(nx=64, nc=1, nf=2, archi='dcgan', skipco=True, nhx=4, ny=3, nz=2, nt_inf=1, nh_inf=4,
             nlayers_inf=1, nh_res=4, nlayers_res=1, n_euler_steps=2, res_gain=1.)


def test_one_observed_frame_and_one_generated():
    model = build_model(SimpleNamespace(**SMALL)).eval()
    x = torch.rand(1, 2, 1, 64, 64)
    out = model(x, 1)
    tensors = out.x_, out.y, out.z, out.q_z_params, out.p_z_params, out.res
    assert [tuple(v.shape) for v in tensors] \
        == [(1, 2, 1, 64, 64), (1, 2, 3), (0, 2, 2), (0, 2, 4), (0, 2, 4), (0, 2, 3)]
    assert loss(x, out, obs_scale=1, beta_y=1, beta_z=1, l2_res=1).kl_z == 0
    y_given, y = model.predict(model.condition(x), 3, model.draw_noise(4, (5, 2)))
    assert y_given.shape == (1, 5, 2, 3) and y.shape == (3, 5, 2, 3)
    assert model(x, 4, between=True).x_.shape[0] == 7


def test_three_training_steps_are_the_published_ones(device):
    g, model, opt, _ = golden('train_dcgan', device, seed=12)
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, fused=True)
    for i in range(3):
        x = random_frames(20 + i, 4, 3, 1, 64, 64).to(device)
        losses = loss(x, model(x, 4, noise=means(model, 4, 3)), **opt)
        assert_close(torch.stack(losses), g['history'][i], 1e-4)
        optimizer.zero_grad()
        losses.loss.backward()
        if i == 0:
            grads = {name: p.grad for name, p in model.named_parameters()}
            assert sorted(grads) == list(g['grad_names'])
            norms = torch.stack([grads[k].norm() for k in g['grad_names']])
            assert_close(norms, g['grad_norms'], 1e-4)
        optimizer.step()
    state = model.state_dict()
    assert sorted(state) == list(g['final_names'])
    norms = torch.stack([state[k].double().norm() for k in g['final_names']])
    assert_close(norms, g['final_norms'], 1e-4)


@pytest.mark.parametrize('name', ['smmnist', 'kth', 'human', 'bair'])
def test_names_and_shapes_of_published_checkpoints(name):
    expected = json.loads((GOLDEN / 'state_dicts.json').read_text())[name]
    with torch.device('meta'):
        model = build_model(SimpleNamespace(res_gain=1.41, n_euler_steps=1, **expected['config']))
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected['state_dict']
    assert sum(p.numel() for p in model.parameters()) == expected['parameters']


# Widths of the convolutions of SVG's networks for 128 x 128 frames, in units of nf = 64, with 3
# channels, frame codes of 90 and codes (w, y) of 90. Decoder widths are those after concatenation.
SVG_128 = {
    'dcgan': ([(3, 1), (1, 2), (2, 4), (4, 8), (8, 8), (8, 90)],
              [(90, 8), (16, 8), (16, 4), (8, 2), (4, 1), (2, 3)]),
    'vgg': ([(3, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 4), (4, 8), (8, 8), (8, 8),
             (8, 8), (8, 8), (8, 8), (8, 90)],
            [(90, 8), (16, 8), (8, 8), (8, 8), (16, 8), (8, 8), (8, 4), (8, 4), (4, 4), (4, 2),
             (4, 2), (2, 1), (2, 1), (1, 3)])}


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d,
                                                           torch.nn.ConvTranspose2d))]


@pytest.mark.parametrize('archi', ['dcgan', 'vgg'])
def test_networks_of_128_are_those_of_svg(archi):
    """With other numbers of channels and codes, which are no multiple of nf, at both ends."""
    def widths(network):
        return [tuple(n if n in (3, 90) else n // 64 for n in (m.in_channels, m.out_channels))
                for m in convolutions(network)]
    with torch.device('meta'):
        encoder = module.ENCODERS[archi](3, 90, 64, 128)
        decoder = module.DECODERS[archi](3, 90, 64, 128, True)
    assert (widths(encoder), widths(decoder)) == SVG_128[archi]


@pytest.mark.parametrize('nx', SIZES)
@pytest.mark.parametrize('archi', ['dcgan', 'vgg'])
@pytest.mark.parametrize('skipco', [False, True])
def test_sizes_of_frames(archi, skipco, nx):
    """The blocks' widths and resolutions, skip connections, and the largest activation."""
    nf, n = 2, int(np.log2(nx)) - 2
    encoder = module.ENCODERS[archi](3, 7, nf, nx)
    decoder = module.DECODERS[archi](3, 5, nf, nx, skipco)
    hx, skips = encoder(torch.rand(2, 3, nx, nx))
    assert hx.shape == (2, 7) and len(encoder.conv) == len(decoder.conv) == len(skips) == n
    shapes = [tuple(skip.shape) for skip in skips[::-1]]
    first = 1 if archi == 'dcgan' else 0  # DCGAN's blocks halve the resolution at their start
    assert shapes == [(2, nf * min(2 ** i, 8), *[nx >> (i + first)] * 2) for i in range(n)]
    largest = []
    for m in decoder.modules():
        if isinstance(m, torch.nn.LeakyReLU | torch.nn.Upsample):
            m.register_forward_hook(lambda *args: largest.append(args[-1][0].numel()))
    wy, given = torch.rand(6, 5), skips if skipco else None
    frames = decoder(wy, given)
    assert frames.shape == (6, 3, nx, nx)
    plain.decode(decoder, wy[:2, :2], wy[None, :2, 2:], given)  # the fast path calls no modules
    assert max(largest) == decoder.widest


@pytest.mark.parametrize('archi', ['dcgan', 'vgg'])
def test_training_mode_draws_frames_for_w_and_skips(archi):
    """w uses nt_inf distinct frames of its video; all four skips come from one frame of it."""
    _, model, _, config = golden(f'model_{archi}_skip')
    model = copy.deepcopy(model).train()
    x = torch.rand(6, 3, config['nc'], 64, 64)
    with torch.no_grad():
        hx, skips = model.encode(x)
    model.encode = lambda x: (hx, skips)
    seen_w, seen_skip = set(), set()
    for _ in range(40):
        found = {}
        model.infer_w = lambda h, found=found: found.setdefault('hx', h)[0]
        cond = model.condition(x)
        for b in range(3):
            chosen = [(hx[:, b] - h).abs().sum(-1).argmin().item() for h in found['hx'][:, b]]
            assert len(set(chosen)) == model.nt_inf
            seen_w.add(tuple(sorted(chosen)))
            frame = {(s[:, b] - c[b]).abs().flatten(1).sum(-1).argmin().item()
                     for s, c in zip(skips, cond.skips)}
            assert len(frame) == 1
            seen_skip |= frame
    assert seen_skip == set(range(6)) and len(seen_w) > 5


def test_errors_of_the_model():
    _, model, _, _ = golden('model_dcgan')
    x = torch.rand(3, 2, 1, 64, 64)
    with pytest.raises(ValueError, match='predicts in evaluation mode only'):
        model.train()(x, 4)
    with pytest.raises(ValueError, match='nt_inf = 3'):
        model.eval()(x[:2], 4)


def test_initialisation():
    model = build_model(SimpleNamespace(
        **{**SMALL, 'archi': 'vgg', 'nf': 16, 'nhx': 32, 'nh_res': 64, 'nlayers_res': 3,
           'res_gain': 1.2}))
    convs = torch.cat([p.flatten() for m in (model.encoder, model.decoder)
                       for p in m.parameters() if p.ndim == 4])
    assert abs(convs.mean()) < 1e-4 and abs(convs.std() - 0.02) < 1e-4
    norms = torch.cat([p for k, p in model.encoder.named_parameters() if k.endswith('1.weight')])
    assert abs(norms.mean() - 1) < 5e-3 and abs(norms.std() - 0.02) < 5e-3
    w = model.dynamics.module[1][1].weight
    torch.testing.assert_close(w @ w.T, 1.44 * torch.eye(64), atol=1e-5, rtol=0)
    biases = [p for k, p in model.dynamics.named_parameters() if k.endswith('bias')]
    assert biases and all(p.abs().sum() == 0 for p in biases)


def test_gaussian_terms_are_those_of_torch_distributions():
    q, p, x = torch.randn(3, 5, 8), torch.randn(3, 5, 8), torch.randn(3, 5, 4)
    q_dist, p_dist = Normal(*normal_params(q)), Normal(*normal_params(p))
    torch.testing.assert_close(gaussian_kl(q, p), kl_divergence(q_dist, p_dist))
    torch.testing.assert_close(gaussian_kl(q), kl_divergence(q_dist, Normal(0., 1.)))
    log_prob = Normal(q_dist.mean, 0.3).log_prob(x)
    torch.testing.assert_close(gaussian_nll(x, q_dist.mean, 0.3), -log_prob)
