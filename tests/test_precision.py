"""Half precision, accumulated gradients, compiled networks: dtypes, scaling, saving, resuming."""

import csv
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

import train
from args import parse_train
from checkpoint import load
from conftest import TINY, steps
from data import load_train
from distributed import World
from files import UserError
from model import build_model
from training import loop
from training.parallel import SyncBatchNorm
from training.precision import Apex, Precision, amp_dtype, has_bfloat16
from utils import check_compile

NOT_STOPPED = SimpleNamespace(received=None)
CPU = torch.device('cpu')
OPTIONS = [*TINY, *steps(6, 0), '--batch_size', '6', '--n_samples_test', '1', '--n_workers', '0',
           '--val_interval', '100']
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(),
                                    reason='this CPU has no bfloat16 instructions')


def options(folder, *more):
    return [*OPTIONS, '--data_dir', str(folder), '--save_path', str(folder / 'run'), *more]


def resume(folder, *more):
    return train.main(['--resume', '--save_path', str(folder / 'run'), *more])


def losses(folder):
    with open(folder / 'run' / 'log.csv', newline='') as f:
        return [float(row['loss']) for row in csv.DictReader(f) if row['loss']]


@pytest.fixture(scope='module')
def float32(tmp_path_factory):
    """Losses of a run in float32."""
    folder = tmp_path_factory.mktemp('float32')
    assert train.main(options(folder)) == 0
    return losses(folder)


# PyTorch

@needs_bfloat16
def test_bfloat16_trains_with_the_loss_in_float32(float32, tmp_path, monkeypatch):
    loss, seen = loop.loss, []

    def spy(x, out, **weights):
        result = loss(x, out, **weights)
        seen.append((out.q_z_params.dtype, out.y.dtype, {v.dtype for v in result},
                     torch.is_autocast_enabled('cpu')))
        return result
    monkeypatch.setattr(loop, 'loss', spy)
    assert train.main(options(tmp_path, '--torch_amp')) == 0
    assert seen == [(torch.bfloat16, torch.float32, {torch.float32}, False)] * 6
    found = losses(tmp_path)
    assert found == pytest.approx(float32, rel=1e-3) and found != float32
    weights = load(tmp_path / 'run' / 'model.pt')
    assert {v.dtype for v in weights.values()} == {torch.float32, torch.int64}


def test_dtype_of_each_device(monkeypatch):
    cuda = torch.device('cuda')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: (7, 0))
    assert amp_dtype('auto', cuda) is torch.float16
    assert amp_dtype('bfloat16', cuda) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: (9, 0))
    assert amp_dtype('auto', cuda) is torch.bfloat16
    assert amp_dtype('float16', cuda) is torch.float16
    with pytest.raises(UserError, match='--amp_dtype float16 needs a CUDA device'):
        amp_dtype('float16', CPU)
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False,
                        raising=False)
    with pytest.raises(UserError, match='this CPU has no bfloat16 instructions'):
        amp_dtype('auto', CPU)


def test_gradients_are_scaled_for_float16_only():
    assert not Precision(CPU).scaler.is_enabled()
    assert not Precision(CPU, torch.bfloat16).scaler.is_enabled()
    precision = Precision(CPU, torch.float16)
    w = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([w], lr=0.5)
    precision.backward((w * 2).sum())
    assert w.grad.item() == 2 * 2. ** 16
    precision.step(optimizer)
    assert w.item() == 0  # the unscaled gradient
    w.grad = None
    precision.backward((w * float('inf')).sum())
    precision.step(optimizer)
    assert w.item() == 0 and precision.state_dict()['scale'] == 2. ** 15  # skipped, scale halved


def test_resume_keeps_the_scaler(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, 'build_precision', lambda config, model, optimizer, device:
                        Precision(device, torch.float16))
    assert train.main(options(tmp_path)) == 0
    path = tmp_path / 'run' / 'state.pt'
    state = load(path)
    # The loss, a sum over pixels, overflowed at first
    assert 1 < state['precision']['scale'] < 2. ** 16
    state['precision'].update(scale=32., _growth_tracker=5)
    torch.save({**state, 'step': 4}, path)
    assert resume(tmp_path) == 0
    found = load(path)['precision']
    assert found['scale'] == 32 and found['_growth_tracker'] == 7  # two steps later


@needs_bfloat16
def test_resume_keeps_the_dtype_that_auto_chose(tmp_path):
    assert train.main(options(tmp_path, '--torch_amp')) == 0
    path = tmp_path / 'run' / 'state.pt'
    state = load(path)
    assert state['dtype'] == 'bfloat16'
    torch.save({**state, 'dtype': 'float16', 'step': 4}, path)  # as from a GPU without bfloat16
    with pytest.raises(UserError, match='--amp_dtype float16 needs a CUDA device'):
        resume(tmp_path)
    assert resume(tmp_path, '--amp_dtype', 'bfloat16') == 0
    assert load(path)['step'] == 6


# NVIDIA apex

FAKE_APEX = """
import contextlib
calls = []

class Amp:
    def initialize(self, models, optimizers, **kwargs):
        types = [type(m).__name__ for m in models]
        calls.append(('initialize', types, type(optimizers).__name__, kwargs))
        return models, optimizers

    @contextlib.contextmanager
    def scale_loss(self, loss, optimizer, delay_unscale=False):
        calls.append(('scale_loss', delay_unscale))
        yield loss * 8
        if not delay_unscale:
            for group in optimizer.param_groups:
                for p in group['params']:
                    p.grad /= 8

    def state_dict(self):
        return {'loss_scaler0': {'loss_scale': 8.0, 'unskipped': len(calls)}}

    def load_state_dict(self, state):
        calls.append(('load_state_dict', state))

amp = Amp()
"""


@pytest.fixture
def apex(tmp_path, monkeypatch):
    """A module with apex's functions that records its calls."""
    monkeypatch.delitem(sys.modules, 'apex', raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / 'site'))
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'apex.py').write_text(FAKE_APEX)
    import apex
    yield apex
    del sys.modules['apex']


def test_calls_of_apex(apex, float32, tmp_path):
    assert train.main(options(tmp_path, '--apex_amp', '--amp_opt_lvl', 'O2', '--accumulate', '2',
                              '--keep_batchnorm_fp32', '--apex_verbose')) == 0
    (name, models, optimizer, kwargs), *others = apex.calls
    assert name == 'initialize' and optimizer == 'Adam'
    assert kwargs == {'opt_level': 'O2', 'keep_batchnorm_fp32': True, 'verbosity': 1}
    assert len(models) == 9 and set(models) == {
        'DCGANEncoder', 'DCGANDecoder', 'Sequential', 'MLP', 'LSTM', 'Linear'}
    assert others == [('scale_loss', True), ('scale_loss', False)] * 6
    assert losses(tmp_path) == pytest.approx(float32, rel=1e-3)
    saved = load(tmp_path / 'run' / 'state.pt')['precision']
    assert saved['loss_scaler0']['loss_scale'] == 8
    apex.calls.clear()
    assert resume(tmp_path) == 0
    assert [c[0] for c in apex.calls] == ['initialize', 'load_state_dict']
    assert apex.calls[1][1] == saved


def test_apex_defaults(apex, float32, tmp_path):
    assert train.main(options(tmp_path, '--apex_amp')) == 0
    assert apex.calls[0][3] == {'opt_level': 'O1', 'keep_batchnorm_fp32': None, 'verbosity': 0}
    assert losses(tmp_path) == pytest.approx(float32, rel=1e-6)  # scaled and unscaled


# Not installed, and the other package of that name
@pytest.mark.parametrize('content', [None, 'version = 1'])
def test_missing_apex_says_what_to_install(content, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, 'apex', raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    if content is None:
        monkeypatch.setitem(sys.modules, 'apex', None)
    else:
        (tmp_path / 'apex.py').write_text(content)
    with pytest.raises(UserError, match='needs NVIDIA apex .* https://github.com/NVIDIA/apex '
                                        '.pip install apex is another package.; '
                                        'or use --torch_amp'):
        train.main(options(tmp_path, '--apex_amp'))
    sys.modules.pop('apex', None)


def test_refusal_of_apex_is_reported(apex):
    def refuse(*_, **__):
        raise RuntimeError('expected cuda')
    apex.amp.initialize = refuse
    with pytest.raises(UserError, match='--apex_amp: NVIDIA apex refuses the model .expected cuda'):
        Apex(nn.Linear(1, 1), None, 'O1')


# Accumulation and compilation

def trainer_and_batch(folder, *more):
    config = parse_train(options(folder, *more))
    trainer = loop.Trainer(config, load_train(config), CPU, World())
    for m in trainer.model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()  # otherwise each part has its own statistics
    return trainer, torch.from_numpy(trainer.train_stream[range(6)])


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('more', [[], ['--archi', 'vgg', '--skipco']])
def test_accumulated_gradient_is_that_of_the_batch(more, tmp_path, monkeypatch):
    # In float32, cancellation would hide differences
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)

    def gradients_and_terms(accumulate):
        trainer, batch = trainer_and_batch(tmp_path, '--accumulate', str(accumulate), *more)
        terms = list(trainer.train_step(batch, NOT_STOPPED).values())
        return [p.grad for p in trainer.model.parameters()], terms
    gradients, terms = gradients_and_terms(1)
    for n in (2, 4):  # parts of 3 videos; of 1 and 2
        found, found_terms = gradients_and_terms(n)
        for expected, grad in zip(gradients, found, strict=True):
            torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9)
        assert found_terms == pytest.approx(terms, rel=1e-12)


def test_compiled_networks_are_the_same(float32, tmp_path, compiled):
    assert train.main(options(tmp_path, '--compile')) == 0
    assert len(compiled) == 8 and set(compiled) == {
        'DCGANEncoder', 'DCGANDecoder', 'MLP', 'Sequential', 'Linear'}
    assert losses(tmp_path) == pytest.approx(float32, rel=1e-6)
    model = build_model(parse_train(options(tmp_path)))
    assert load(tmp_path / 'run' / 'model.pt').keys() == model.state_dict().keys()


def test_failing_compilation_is_reported(monkeypatch):
    def fail(function):
        raise RuntimeError('No working C++ compiler found\nand much more')
    monkeypatch.setattr(torch, 'compile', fail)
    with pytest.raises(UserError, match='--compile: torch.compile does not work here '
                                        '.No working C.. compiler found.; leave'):
        check_compile(CPU)


# Synchronised batch normalisation

def test_synchronised_batch_norm_of_one_process_is_that_of_pytorch(monkeypatch):
    monkeypatch.setattr(torch.distributed, 'all_reduce', lambda x, group: None)
    x = (5 + torch.randn(4, 3, 6, 6)).requires_grad_()
    results = []
    for m in (nn.BatchNorm2d(3), SyncBatchNorm(3)):
        nn.init.constant_(m.weight, 1.3)
        x.grad = None
        y = m(x)
        (y ** 3).sum().backward()
        results.append([y, x.grad, m.weight.grad, m.bias.grad, *m.buffers(), m.eval()(x)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
