"""Several processes on CPUs: the numbers of one process, files written once, ends reported once.

One job is started by the real launcher; the others by `processes`, without importing PyTorch anew
in each process.
"""

import csv
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from files import UserError

import pytest
import torch
from torch import nn

import train
from conftest import ROOT, TINY, steps, wait_for_rows
from distributed import StopSignal, SyncBatchNorm, World
from processes import patched, run_job
from utils import load

# Five videos a batch and three to validate on: parts of different sizes. States in the middle of
# the intervals of the log.
OPTIONS = [*TINY, *steps(8, 4), '--nx', '32', '--batch_size', '5', '--val_interval', '6',
           '--state_interval', '3', '--log_interval', '2', '--n_iter_test', '3',
           '--batch_size_test', '1', '--n_workers', '0']


def options(folder, *more):
    return [*OPTIONS, '--data_dir', str(folder.parent), '--save_path', str(folder), *more]


def run_together(n, *argv, code=0, script='train.py'):
    """Run a job of n processes with the same arguments; returns what all of them printed."""
    codes, outs, errs = run_job(script, *[argv] * n)
    assert codes == [code] * n, errs
    return ''.join(outs), ''.join(errs)


def rows(folder):
    return [row for name in ('log.csv', 'validation.csv') for row in csv.DictReader(
        (folder / name).read_text().splitlines())]


def assert_same_run(folder, reference):
    """Compare gradients, weights, loss curve, schedule and scores of two runs up to rounding."""
    for name in ('model.pt', 'model_best.pt'):
        expected, found = load(reference / name), load(folder / name)
        difference = torch.cat([(expected[k] - found[k]).double().flatten().abs()
                                for k in expected])
        # Where a gradient is all rounding, Adam still moves the weight by the learning rate
        assert (difference > 1e-5).double().mean() < 0.01 and difference.max() < 2e-3
    assert_same_gradients(folder, reference)
    for expected, found in zip(rows(reference), rows(folder), strict=True):
        for column in expected.keys() - {'steps_per_s'}:
            assert float(found[column]) == pytest.approx(float(expected[column]), rel=1e-5), column


def assert_same_gradients(folder, reference):
    expected, found = (
        torch.cat([s['exp_avg'].flatten()
                   for s in load(f / 'state.pt')['optimizer']['state'].values()])
        for f in (reference, folder))
    assert (expected - found).norm() < 1e-4 * expected.norm()  # mean gradients, at their scale


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp('alone') / 'run'
    assert train.main(options(folder)) == 0
    return folder


def test_parts_cover_everything_once():
    for n in (1, 2, 5, 128):
        for size in (1, 2, 3, 7):
            parts = [World(rank, size).part(n) for rank in range(size)]
            assert [i for part in parts for i in part] == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_devices_of_a_machine():
    cpu, second = torch.device('cpu'), World(1, 2, 1, 2)
    assert World().device(None) == World().device(['cpu']) == cpu
    assert second.device(['cpu']) == second.device(['cpu', 'cpu']) == cpu
    with pytest.raises(UserError, match='--device 0 1: 2 devices, but 1 process on this machine; '
                                        '.* torchrun --nproc_per_node=2 … --device 0 1'):
        World().device([0, 1])
    with pytest.raises(UserError, match='--device 0: 1 device, but 2 processes'):
        second.device([0])
    with pytest.raises(UserError, match='--device 97: '):
        second.device([96, 97])


# The numbers of one process

def test_two_processes_train_as_one(alone, tmp_path):
    folder = tmp_path / 'run'
    argv = options(folder, '--device', 'cpu', 'cpu', '--n_workers', '1')
    # Older launchers pass --local-rank, too
    codes, outs, errs = run_job('train.py', [*argv, '--local-rank=0'], [*argv, '--local-rank=1'])
    assert codes == [0, 0], errs
    assert_same_run(folder, alone)
    assert 'strides' not in ''.join(errs)  # no warning of DDP about the strides of gradients
    assert 'and 1 more' in outs[0] and outs[0].count('done:') == 1 and outs[1] == ''

    def names(f):
        return {p.name for p in f.iterdir() if 'tfevents' not in p.name}
    assert names(folder) == names(alone)
    assert len(list(folder.glob('*tfevents*'))) == 1


def test_two_machines_start_from_the_weights_of_one(alone, tmp_path):
    """They have no disk in common, and only process 0 needs the file."""
    folders = [tmp_path / 'one' / 'run', tmp_path / 'two' / 'run']
    weights = [alone / 'model.pt', tmp_path / 'missing.pt']
    more = [*steps(2, 0), '--val_interval', '2']
    argvs = [options(f, '--weights', w, *more) for f, w in zip(folders, weights)]
    codes, _, errs = run_job('train.py', *argvs, local_size=1)
    assert codes == [0, 0], errs
    assert [f.exists() for f in folders] == [True, False]  # process 0 writes
    reference = tmp_path / 'three' / 'run'
    assert train.main(options(reference, '--weights', str(weights[0]), *more)) == 0
    assert_same_run(folders[0], reference)  # validation, too, which uses batch statistics
    assert rows(reference)[0]['loss'] != rows(alone)[0]['loss']


def test_gradient_is_that_of_the_batch_in_any_parts(tmp_path, monkeypatch):
    # Batch normalisation as in evaluation: otherwise each part has its own statistics
    monkeypatch.setattr(nn.BatchNorm2d, 'train', lambda m, mode=True: nn.Module.train(m, False))
    argv = [*steps(1, 0), '--accumulate']
    reference = tmp_path / 'whole'
    assert train.main(options(reference, *argv, '1')) == 0
    for n in (2, 4):  # parts of 2 and 3 videos; of 1 and 2
        folder = tmp_path / str(n)
        assert train.main(options(folder, *argv, str(n))) == 0
        assert_same_run(folder, reference)
    folder = tmp_path / 'both'
    script = patched(tmp_path, 'from torch import nn\n'
                     'nn.BatchNorm2d.train = lambda m, mode=True: nn.Module.train(m, False)')
    run_together(2, *options(folder, *argv, '2'), script=script)
    assert_same_run(folder, reference)


@pytest.mark.parametrize('before, after', [(1, 3), (2, 1)])
def test_resume_with_another_number_of_processes(before, after, alone, tmp_path):
    folder = tmp_path / 'run'
    script = patched(tmp_path, f'''
calls, loss = [], train.loss
def signalled(*args, **kwargs):
    calls.append(args)
    if len(calls) == 7 and os.environ['RANK'] == '{before - 1}':  # only one process is signalled
        os.kill(os.getpid(), signal.SIGTERM)
    return loss(*args, **kwargs)
train.loss = signalled
''')
    out, _ = run_together(before, *options(folder), script=script, code=143)
    step = 10 if before == 2 else 7  # processes ask each other every ten steps
    assert out.count(f'stopped after step {step}; continue with: ') == 1
    assert ('torchrun --nproc_per_node=2 train.py --resume' in out) == (before == 2)
    assert load(folder / 'state.pt')['progress']['step'] == step
    run_together(after, '--resume', '--save_path', folder)
    assert_same_run(folder, alone)


def test_missing_seed_is_chosen_once_and_shared(tmp_path):
    """Each seed has its own first loss."""
    folder, again = tmp_path / 'run', tmp_path / 'again'
    more = [*steps(1, 0), '--log_interval', '1']
    argv = options(folder, *more)
    position = argv.index('--seed')
    run_together(2, *argv[:position], *argv[position + 2:])
    seed = json.loads((folder / 'config.json').read_text())['seed']
    assert train.main(options(again, *more, '--seed', str(seed))) == 0
    expected, found = (float(rows(f)[0]['loss']) for f in (again, folder))
    assert found == pytest.approx(expected, rel=1e-6)


def test_synchronised_batch_norm_is_that_of_the_whole_batch(monkeypatch):
    """In two threads instead of processes."""
    barrier, sums = threading.Barrier(2), {}

    def all_reduce(x):
        sums[threading.get_ident()] = x.clone()
        barrier.wait()
        x.copy_(sum(sums[i] for i in sorted(sums)))
        barrier.wait()

    def run(m, x):
        nn.init.constant_(m.weight, 1.3)
        y = m(x)
        (y ** 3).sum().backward()
        return y
    monkeypatch.setattr(torch.distributed, 'all_reduce', all_reduce)
    whole, parts = nn.BatchNorm2d(3), [SyncBatchNorm(3) for _ in range(2)]
    x = 5 + torch.randn(5, 3, 6, 6)
    leaves = [part.clone().requires_grad_() for part in (x[:2], x[2:], x)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, parts, leaves))
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    close(torch.cat(found), run(whole, leaves[2]))
    close(torch.cat([leaf.grad for leaf in leaves[:2]]), leaves[2].grad)
    for name in ('weight', 'bias'):
        close(sum(getattr(m, name).grad for m in parts), getattr(whole, name).grad)
    for m in parts:
        close(list(m.buffers()), list(whole.buffers()))
        close(m.eval()(x), whole.eval()(x))


# Ends

def test_sigterm_to_torchrun_saves_the_state_once(tmp_path):
    folder, saves = tmp_path / 'run', tmp_path / 'saves'
    script = patched(tmp_path, f'''
save = train.save
def counting(path, value):
    open({str(saves)!r}, 'a').write(path.name + ' ')
    save(path, value)
train.save = counting
''')
    argv = options(folder, *steps(5000, 0), '--state_interval', '10000', '--val_interval', '10000')
    job = subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
         str(script), *argv], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)})
    wait_for_rows(job, folder, 5)
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate(timeout=240)
    ours = err.split('SignalException')[0].split('torch/distributed')[0]  # not the launcher's
    assert 'Traceback' not in ours and job.returncode != 0
    step = load(folder / 'state.pt')['progress']['step']
    assert 5 <= step < 5000 and out.count(f'stopped after step {step}; continue with') == 1
    assert saves.read_text() == 'state.pt model.pt '


def test_bad_input_is_reported_once(tmp_path):
    argv = options(tmp_path / 'run', '--nt_cond', '1')
    codes, _, errs = run_job('train.py', argv, argv)
    assert codes[0] == 2 and codes[1] != 0
    assert len(re.findall('^error: --nt_cond 1 is less than --nt_inf 2', ''.join(errs), re.M)) == 1
    assert not (tmp_path / 'run').exists()


def test_loss_that_is_not_finite_in_one_process_ends_all(tmp_path):
    script = patched(tmp_path, '''
loss = train.loss
def spoiled(*args, **kwargs):
    losses = loss(*args, **kwargs)
    return losses._replace(nll=losses.nll / (os.environ['RANK'] != '1'))
train.loss = spoiled
''')
    _, err = run_together(2, *options(tmp_path / 'run'), script=script, code=1)
    assert err.count('error: the loss of steps 1 to 2 is not finite; check --obs_scale') == 1
    assert not list((tmp_path / 'run').glob('*.pt'))


@pytest.mark.parametrize('world, second', [(World(), signal.SIG_DFL),
                                           (World(0, 2), signal.SIG_IGN)])
def test_second_signal_ends_at_once_except_under_a_launcher(world, second, capfd):
    before = signal.getsignal(signal.SIGINT)
    with StopSignal(world, 'saving the state') as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT and signal.getsignal(signal.SIGINT) == second
    assert signal.getsignal(signal.SIGINT) == before
    assert capfd.readouterr().err == '\nSIGINT: saving the state\n'


def test_signal_is_obeyed_although_the_reader_of_stderr_ended(capfd):
    """As with `train.py … 2>&1 | tee log` after Ctrl-C, which ends tee as well."""
    reader, writer = os.pipe()
    os.close(reader)
    kept = os.dup(2)
    os.dup2(writer, 2)
    try:
        with StopSignal(World(), 'saving the state') as stop:
            signal.raise_signal(signal.SIGTERM)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)
    assert stop.received == signal.SIGTERM
