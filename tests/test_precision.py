"""Half precision, batches in parts, compiled networks: what is computed in which type, scaled, saved and resumed."""

import csv
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

import distributed
import train
from args import parse_train
from checkpoint import load
from conftest import TINY, steps
from data import load_train
from distributed import World
from files import UserError
from model import build_model
from training import loop as trainer
from training.precision import Apex, Precision, amp_dtype, has_bfloat16
from utils import check_compile

NOT_STOPPED = SimpleNamespace(received=None)
CPU = torch.device('cpu')
OPTIONS = [*TINY, *steps(6, 0), '--batch_size', '6', '--n_samples_test', '1', '--n_workers', '0', '--val_interval', '100']
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason='this CPU does not compute with bfloat16')


def options(folder, *more):
    return [*OPTIONS, '--data_dir', str(folder), '--save_path', str(folder / 'run'), *more]


def losses(folder):
    with open(folder / 'run' / 'log.csv', newline='') as f:
        return [float(row['loss']) for row in csv.DictReader(f) if row['loss']]


@pytest.fixture(scope='module')
def float32(tmp_path_factory):
    folder = tmp_path_factory.mktemp('float32')
    assert train.main(options(folder)) == 0
    return losses(folder)


# By PyTorch

@needs_bfloat16
def test_bfloat16_trains_with_the_loss_in_float32(float32, tmp_path, monkeypatch):
    real, seen = trainer.loss, []

    def loss(x, out, **weights):
        result = real(x, out, **weights)
        seen.append((out.q_z_params.dtype, out.y.dtype, {v.dtype for v in result}, torch.is_autocast_enabled('cpu')))
        return result
    monkeypatch.setattr(trainer, 'loss', loss)
    assert train.main(options(tmp_path, '--torch_amp')) == 0
    assert seen == [(torch.bfloat16, torch.float32, {torch.float32}, False)] * 6
    found = losses(tmp_path)
    assert found == pytest.approx(float32, rel=1e-3) and found != float32
    assert {v.dtype for v in load(tmp_path / 'run' / 'model.pt').values()} == {torch.float32, torch.int64}


def test_type_of_each_device(monkeypatch):
    cuda = torch.device('cuda')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: (7, 0))
    assert amp_dtype('auto', cuda) is torch.float16 and amp_dtype('bfloat16', cuda) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: (9, 0))
    assert amp_dtype('auto', cuda) is torch.bfloat16 and amp_dtype('float16', cuda) is torch.float16
    with pytest.raises(UserError, match='--amp_dtype float16 needs a CUDA device'):
        amp_dtype('float16', CPU)
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False, raising=False)
    with pytest.raises(UserError, match='this CPU has no bfloat16 instructions'):
        amp_dtype('auto', CPU)


def test_gradients_are_scaled_for_float16_only():
    assert not Precision(CPU).scaler.is_enabled() and not Precision(CPU, torch.bfloat16).scaler.is_enabled()
    precision = Precision(CPU, torch.float16)
    w = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([w], lr=0.5)
    precision.backward((w * 2).sum())
    assert w.grad.item() == 2 * 2. ** 16
    precision.step(optimizer)
    assert w.item() == 0  # the gradient itself
    w.grad = None
    precision.backward((w * float('inf')).sum())
    precision.step(optimizer)
    assert w.item() == 0 and precision.state_dict()['scale'] == 2. ** 15  # left out, and a smaller scale


def test_resume_keeps_the_scaler(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, 'build_precision', lambda config, model, optimizer, device: Precision(device, torch.float16))
    assert train.main(options(tmp_path)) == 0
    path = tmp_path / 'run' / 'state.pt'
    state = load(path)
    assert 1 < state['precision']['scale'] < 2. ** 16  # the loss, a sum over pixels, has overflowed at first
    state['precision'].update(scale=32., _growth_tracker=5)
    torch.save({**state, 'step': 4}, path)
    assert train.main(['--resume', '--save_path', str(tmp_path / 'run')]) == 0
    found = load(path)['precision']
    assert found['scale'] == 32 and found['_growth_tracker'] == 7  # two steps later


@needs_bfloat16
def test_resume_keeps_the_type_that_auto_chose(tmp_path):
    assert train.main(options(tmp_path, '--torch_amp')) == 0
    path = tmp_path / 'run' / 'state.pt'
    state = load(path)
    assert state['dtype'] == 'bfloat16'
    torch.save({**state, 'dtype': 'float16', 'step': 4}, path)  # as of a GPU without bfloat16
    with pytest.raises(UserError, match='--amp_dtype float16 needs a CUDA device'):
        train.main(['--resume', '--save_path', str(tmp_path / 'run')])
    assert train.main(['--resume', '--save_path', str(tmp_path / 'run'), '--amp_dtype', 'bfloat16']) == 0
    assert load(path)['step'] == 6


# By apex

STAND_IN = """
import contextlib
import torch
calls = []

class Amp:
    def initialize(self, models, optimizers, **kwargs):
        calls.append(('initialize', [type(m).__name__ for m in models], type(optimizers).__name__, kwargs))
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
    (tmp_path / 'site' / 'apex.py').write_text(STAND_IN)
    import apex
    yield apex
    del sys.modules['apex']


def test_apex_is_called_as_it_wants(apex, float32, tmp_path):
    assert train.main(options(tmp_path, '--apex_amp', '--amp_opt_lvl', 'O2', '--keep_batchnorm_fp32', '--apex_verbose', '--accumulate', '2')) == 0
    (name, models, optimizer, kwargs), *others = apex.calls
    assert name == 'initialize' and optimizer == 'Adam' and kwargs == {'opt_level': 'O2', 'keep_batchnorm_fp32': True, 'verbosity': 1}
    assert set(models) == {'DCGANEncoder', 'DCGANDecoder', 'Sequential', 'MLP', 'LSTM', 'Linear'} and len(models) == 9
    assert others == [('scale_loss', True), ('scale_loss', False)] * 6
    assert losses(tmp_path) == pytest.approx(float32, rel=1e-3)
    saved = load(tmp_path / 'run' / 'state.pt')['precision']
    assert saved['loss_scaler0']['loss_scale'] == 8
    apex.calls.clear()
    train.main(['--resume', '--save_path', str(tmp_path / 'run')])
    assert [c[0] for c in apex.calls] == ['initialize', 'load_state_dict'] and apex.calls[1][1] == saved


def test_apex_defaults(apex, float32, tmp_path):
    assert train.main(options(tmp_path, '--apex_amp')) == 0
    assert apex.calls[0][3] == {'opt_level': 'O1', 'keep_batchnorm_fp32': None, 'verbosity': 0}
    assert losses(tmp_path) == pytest.approx(float32, rel=1e-6)  # scaled and unscaled


@pytest.mark.parametrize('content', [None, 'version = 1'])  # not installed; the other package of that name
def test_absent_apex_says_what_to_install(content, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, 'apex', raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    if content is not None:
        (tmp_path / 'apex.py').write_text(content)
    else:
        monkeypatch.setitem(sys.modules, 'apex', None)
    with pytest.raises(UserError, match='needs NVIDIA apex .* https://github.com/NVIDIA/apex .pip install apex is another package.; or use --torch_amp'):
        train.main(options(tmp_path, '--apex_amp'))
    sys.modules.pop('apex', None)


def test_refusal_of_apex_is_a_sentence(apex):
    def refuse(*_, **__):
        raise RuntimeError('expected cuda')
    apex.amp.initialize = refuse
    with pytest.raises(UserError, match='--apex_amp: NVIDIA apex refuses the model .expected cuda.'):
        Apex(nn.Linear(1, 1), None, 'O1')


# In parts, and compiled

def trainer_and_batch(folder, *more):
    config = parse_train(options(folder, *more))
    run = trainer.Trainer(config, load_train(config), CPU, World())
    for m in run.model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()  # its statistics are those of a part
    return run, torch.from_numpy(run.train_stream[range(6)])


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('more', [[], ['--archi', 'vgg', '--skipco']])
def test_accumulated_gradient_is_that_of_the_batch(more, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)  # cancellation in float32 hides what is compared
    gradients, terms = [], []
    for n in (1, 2, 4):  # parts of 6; 3; 1 and 2 videos
        run, batch = trainer_and_batch(tmp_path, '--accumulate', str(n), *more)
        terms.append(list(run.train_step(batch, NOT_STOPPED).values()))
        gradients.append([p.grad for p in run.model.parameters()])
    for n, found in zip((2, 4), gradients[1:]):
        for expected, grad in zip(gradients[0], found):
            torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9)
    assert terms[1] == pytest.approx(terms[0], rel=1e-12) and terms[2] == pytest.approx(terms[0], rel=1e-12)


def test_compiled_networks_are_the_same(float32, tmp_path, monkeypatch):
    compile, compiled = nn.Module.compile, []

    def quickly(self, **kwargs):
        compiled.append(self)
        compile(self, backend='eager')  # traced, not translated: no compiler is needed
    monkeypatch.setattr(nn.Module, 'compile', quickly)
    monkeypatch.setattr(train, 'check_compile', lambda device: None)
    assert train.main(options(tmp_path, '--compile')) == 0
    assert {type(m).__name__ for m in compiled} == {'DCGANEncoder', 'DCGANDecoder', 'MLP', 'Sequential', 'Linear'} and len(compiled) == 8
    assert losses(tmp_path) == pytest.approx(float32, rel=1e-6)
    assert load(tmp_path / 'run' / 'model.pt').keys() == build_model(parse_train(options(tmp_path))).state_dict().keys()


def test_compile_that_does_not_work_is_a_sentence(monkeypatch):
    def fail(function):
        raise RuntimeError('No working C++ compiler found\nand much more')
    monkeypatch.setattr(torch, 'compile', fail)
    with pytest.raises(UserError, match='--compile: torch.compile does not work here .No working C.. compiler found.; leave'):
        check_compile(CPU)


# Batch normalisation over processes, by one

def test_synchronised_batch_norm_of_one_process_is_that_of_pytorch(monkeypatch):
    monkeypatch.setattr(distributed.dist, 'all_reduce', lambda x, group: None)
    plain, sync = nn.BatchNorm2d(3), distributed.SyncBatchNorm(3)
    for m in (plain, sync):
        nn.init.constant_(m.weight, 1.3)
    x = (5 + torch.randn(4, 3, 6, 6)).requires_grad_()
    results = []
    for m in (plain, sync):
        x.grad = None
        y = m(x)
        (y ** 3).sum().backward()
        results.append([y, x.grad, m.weight.grad, m.bias.grad, *m.buffers(), m.eval()(x)])
    for expected, found in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
