"""Half precision, apex, and what runs on GPUs only, as far as a CPU can show it."""

import contextlib
import csv
import sys
from types import SimpleNamespace

from files import UserError

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import train
from args import preset_config
from conftest import TINY, failing, nth, steps
from evaluation.futures import Chunk, Futures, draw_noise, score_futures
from metrics.frame import PSNR, SSIM
from model import build_model, loss
from module import conv_function, conv_transpose_to_one_channel
from utils import half_dtype, has_bfloat16, load, save

CPU = torch.device('cpu')
OPTIONS = [*TINY, *steps(6, 0), '--nx', '32', '--batch_size', '6', '--n_samples_test', '1',
           '--batch_size_test', '1', '--n_iter_test', '1', '--n_workers', '0']
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(CPU),
                                    reason='this CPU has no bfloat16 instructions')


def options(folder, *more):
    return [*OPTIONS, '--data_dir', str(folder), '--save_path', str(folder / 'run'), *more]


def resume(folder, *more):
    return train.main(['--resume', '--save_path', str(folder / 'run'), *more])


def losses(folder):
    with open(folder / 'run' / 'log.csv', newline='') as f:
        return [float(row['loss']) for row in csv.DictReader(f)]


@pytest.fixture(scope='module')
def float32(tmp_path_factory):
    """Losses of a run in float32."""
    folder = tmp_path_factory.mktemp('float32')
    assert train.main(options(folder)) == 0
    return losses(folder)


# PyTorch

@needs_bfloat16
def test_bfloat16_learns_as_float32_with_the_loss_in_float32(tmp_path, monkeypatch):
    seen, curves = [], []

    def spy(x, out, **weights):
        result = loss(x, out, **weights)
        seen.append((out.q_z_params.dtype, out.y.dtype, out.x_.dtype, result.loss.dtype,
                     torch.is_autocast_enabled('cpu')))
        return result
    monkeypatch.setattr(train, 'loss', spy)
    for name, more in (('full', []), ('half', ['--torch_amp'])):
        argv = options(tmp_path / name, *steps(30, 0), '--batch_size', '2', '--lr', '0.01', *more)
        assert train.main([*argv, '--obs_scale', '0.2', '--val_interval', '30']) == 0
        # Without the constant of the Gaussian, which hides differences
        constant = 5 * 32 ** 2 * (np.log(0.2) + np.log(2 * np.pi) / 2)
        curves.append(np.array(losses(tmp_path / name)) - constant)
    full, half = curves
    assert full[-10:].mean() < 0.6 * full[:3].mean()  # the model has learnt something
    np.testing.assert_allclose(half, full, rtol=0.1)
    assert (half != full).any()
    assert set(seen[30:]) == {(torch.bfloat16, *[torch.float32] * 3, False)}
    weights = load(tmp_path / 'half' / 'run' / 'model.pt')
    assert {v.dtype for v in weights.values()} == {torch.float32, torch.int64}


def test_dtype_of_each_device(monkeypatch):
    cuda = torch.device('cuda')
    for capability, auto in (((7, 0), torch.float16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _, c=capability: c)
        assert half_dtype('auto', cuda) is auto
        assert half_dtype('float16', cuda) is torch.float16
    assert half_dtype('bfloat16', cuda) is torch.bfloat16
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False,
                        raising=False)
    for dtype in ('float16', 'bfloat16', 'auto'):
        with pytest.raises(UserError, match='--torch_amp: this CPU does not compute in b?float16'):
            half_dtype(dtype, CPU)


def test_gradients_of_float16_are_scaled_and_the_scale_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(train, 'half_dtype', lambda name, device: torch.float16)
    with failing(train, 'loss', nth(6)), pytest.raises(KeyboardInterrupt):
        train.main(options(tmp_path, '--state_interval', '4', '--torch_amp'))
    path = tmp_path / 'run' / 'state.pt'
    state = load(path)
    # The loss, a sum over pixels, overflowed at first
    assert state['progress']['step'] == 4 and 1 < state['scaling']['scale'] < 2. ** 16
    state['scaling'].update(scale=32., _growth_tracker=5)
    save(path, state)
    assert resume(tmp_path) == 0
    found = load(path)['scaling']
    assert found['scale'] == 32 and found['_growth_tracker'] == 7  # two steps later


# NVIDIA apex

class FakeAmp:
    """A module with apex's functions that records its calls."""

    def __init__(self):
        self.calls = []

    def initialize(self, models, optimizers, **kwargs):
        types = {type(m).__name__ for m in models}
        self.calls.append(('initialize', len(models), types, type(optimizers).__name__, kwargs))
        return models, optimizers

    @contextlib.contextmanager
    def scale_loss(self, loss, optimizer, delay_unscale=False):
        self.calls.append(('scale_loss', delay_unscale))
        yield loss * 8
        if not delay_unscale:
            for p in optimizer.param_groups[0]['params']:
                p.grad /= 8

    def state_dict(self):
        return {'loss_scaler0': {'loss_scale': 8.0, 'unskipped': len(self.calls)}}

    def load_state_dict(self, state):
        self.calls.append(('load_state_dict', state))


@pytest.fixture
def amp(monkeypatch):
    amp = FakeAmp()
    monkeypatch.setitem(sys.modules, 'apex', SimpleNamespace(amp=amp))
    return amp


def test_calls_of_apex(amp, float32, tmp_path):
    assert train.main(options(tmp_path, '--apex_amp', '--amp_opt_lvl', 'O2', '--accumulate', '2',
                              '--keep_batchnorm_fp32', '--apex_verbose')) == 0
    initialize, *others = amp.calls
    types = {'DCGANEncoder', 'DCGANDecoder', 'Sequential', 'MLP', 'LSTM', 'Linear'}
    assert initialize == ('initialize', 9, types, 'Adam', {
        'opt_level': 'O2', 'keep_batchnorm_fp32': True, 'verbosity': 1})
    assert others == [('scale_loss', True), ('scale_loss', False)] * 6
    assert losses(tmp_path) == pytest.approx(float32, rel=1e-3)  # other batch statistics
    path = tmp_path / 'run' / 'state.pt'
    state = load(path)
    assert state['scaling']['loss_scaler0']['loss_scale'] == 8
    state['progress'].update(step=5, validated=0, logged=5)
    save(path, state)
    amp.calls.clear()
    assert resume(tmp_path) == 0
    assert amp.calls[1] == ('load_state_dict', state['scaling'])


def test_apex_defaults(amp, float32, tmp_path):
    assert train.main(options(tmp_path, '--apex_amp')) == 0
    assert amp.calls[0][-1] == {'opt_level': 'O1', 'keep_batchnorm_fp32': None, 'verbosity': 0}
    assert losses(tmp_path) == pytest.approx(float32, rel=1e-6)  # scaled and unscaled


# Not installed, and the other package of that name
@pytest.mark.parametrize('module', [None, SimpleNamespace(version=1)])
def test_missing_apex_says_what_to_install(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'apex', module)
    with pytest.raises(UserError, match='needs NVIDIA apex .* https://github.com/NVIDIA/apex '
                                        '.pip install apex is another package.; '
                                        'or use --torch_amp'):
        train.main(options(tmp_path, '--apex_amp'))


# GPUs

def on_fake_gpu(model):
    """Move a model to a GPU that may not exist: its tensors have shapes and dtypes, no values."""
    for m in model.modules():
        for name, p in m._parameters.items():
            if p is not None:
                m._parameters[name] = nn.Parameter(torch.empty(p.shape, device='cuda'))
        for name, b in m._buffers.items():
            m._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device='cuda')
    return model


@pytest.mark.parametrize('preset, dtype', [
    ('kth', torch.float32), ('smmnist', torch.bfloat16), ('kth', torch.float16)])
def test_operands_on_a_gpu_agree_in_device_and_dtype(preset, dtype, monkeypatch):
    """In the forward passes of training and evaluation."""
    c = preset_config(preset)
    c.nf, c.seq_len, c.nt_cond = 2, c.nt_inf, c.nt_inf
    model = build_model(c)
    finite = SimpleNamespace(all=lambda: True)  # fake tensors have no values to look at
    monkeypatch.setattr(torch.Tensor, 'isfinite', lambda self: finite)
    # Without a GPU, autocast would do nothing
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: True)
    with FakeTensorMode(), torch.backends.cudnn.flags(enabled=False):
        on_fake_gpu(model).train()
        x = torch.rand(c.seq_len, 2, c.nc, 64, 64, device='cuda')
        noise = model.draw_noise(c.seq_len, 4).of(slice(2), x.device)
        frames = model.draw_frames(c.seq_len, 4).of(slice(2), x.device)
        with torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
            out = model(x, c.seq_len, noise=noise, frames=frames)
        losses = loss(x, out, obs_scale=c.obs_scale, beta_y=1, beta_z=1, l2_res=1)
        assert {(v.dtype, v.device.type) for v in losses} == {(torch.float32, 'cuda')}
        assert out.x_.dtype == out.y.dtype == torch.float32
        assert out.q_z_params.dtype == dtype
        model.eval().requires_grad_(False)
        futures = Futures(model, x, 3, draw_noise(model, 1, 'test', [0, 1], 2, len(x) + 3),
                          dtype=dtype, chunk=Chunk(model, 4))
        metrics = {'psnr': PSNR(), 'ssim': SSIM()}
        scores, frames = score_futures(futures, x[:3], metrics, keep=lambda frames: frames)
        assert {(v.dtype, v.device.type) for v in [*scores.values(), *frames.values()]} \
            == {(torch.float32, 'cuda')}


def test_matrix_product_for_one_channel_is_for_cpus():
    """Its backward pass on a GPU launches a kernel for each frame."""
    one, three = (nn.ConvTranspose2d(4, n, 4, 2, 1, bias=False) for n in (1, 3))
    assert conv_function(one) is conv_transpose_to_one_channel
    assert conv_function(three) is conv_function(one.to('meta')) is nn.functional.conv_transpose2d
