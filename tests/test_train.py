"""Training runs: files, resume after any kind of end, logs, what must not be overwritten."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import train
import trainer
from args import load_config
from conftest import ROOT, TINY, steps
from model import build_model
from files import UserError
from utils import load, load_weights

STEPS = steps(60, 20)


def options(folder, *more):
    return [*TINY, *STEPS, '--data_dir', str(folder.parent), '--save_path', str(folder), *more]


def start(*argv):
    return subprocess.Popen([sys.executable, 'train.py', *argv], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def rows(folder):
    with open(folder / 'log.csv', newline='') as f:
        return [{k: v for k, v in row.items() if k != 'steps_per_s'} for row in csv.DictReader(f)]


def wait_for_step(process, folder, step):
    deadline = time.time() + 120
    while not (folder / 'log.csv').exists() or len((folder / 'log.csv').read_text().splitlines()) <= step:
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.005)


def assert_same_end(folder, reference):
    for name in ('model.pt', 'model_best.pt'):
        expected, found = load(reference / name), load(folder / name)
        assert expected.keys() == found.keys()
        for key in expected:
            assert torch.equal(expected[key], found[key]), (name, key)
    expected, found = load(reference / 'state.pt'), load(folder / 'state.pt')
    assert {k: expected[k] for k in ('step', 'score', 'best', 'validated')} == {k: found[k] for k in ('step', 'score', 'best', 'validated')}
    assert rows(folder) == rows(reference)


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp('unbroken') / 'run'
    assert train.main(options(folder)) == 0
    return folder


def test_files_of_a_run(run_dir):
    assert {p.name for p in run_dir.iterdir()} >= {'config.json', 'log.csv', 'model.pt', 'model_best.pt', 'model_6.pt', 'model_12.pt', 'state.pt'}
    assert not list(run_dir.glob('*.tmp')) and not list(run_dir.glob('.*.tmp'))
    model = build_model(load_config(run_dir))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for name in ('model_6.pt', 'model.pt'):
        load_weights(model, run_dir / name)  # plain state dicts
        assert all(v.isfinite().all() for v in model.state_dict().values())
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_log_has_every_term_and_the_schedule(unbroken):
    table = rows(unbroken)
    training = [r for r in table if r['loss']]
    assert [int(r['step']) for r in training] == list(range(1, 81))
    for r in training:
        loss, nll, kl_y_0, kl_z, res = (float(r[k]) for k in ('loss', 'nll', 'kl_y_0', 'kl_z', 'res'))
        assert loss == pytest.approx(nll + kl_y_0 + kl_z + res, rel=1e-5)
        assert float(r['lr']) == pytest.approx(3e-4 * max(0, 1 - max(0, int(r['step']) - 60) / 20))
    validations = [r for r in table if r['val_psnr']]
    assert [int(r['step']) for r in validations] == list(range(10, 81, 10))
    assert float(validations[-1]['best_psnr']) == max(float(r['val_psnr']) for r in validations)
    assert float(training[-1]['nll']) < float(training[0]['nll'])


def test_tensorboard_events_hold_the_log(unbroken):
    from tensorboardX.proto import event_pb2
    data, = [p.read_bytes() for p in unbroken.glob('events.out.tfevents.*')]
    scalars, position = {}, 0
    while position < len(data):  # records of TensorFlow: length, its checksum, bytes, their checksum
        length = int.from_bytes(data[position:position + 8], 'little')
        event = event_pb2.Event.FromString(data[position + 12:position + 12 + length])
        position += 16 + length
        for value in event.summary.value:
            scalars[value.tag, event.step] = value.simple_value
    for row in rows(unbroken):
        if row['loss']:
            assert scalars['train/nll', int(row['step'])] == pytest.approx(float(row['nll']), rel=1e-5)
        else:
            assert scalars['validation/val_psnr', int(row['step'])] == pytest.approx(float(row['val_psnr']), rel=1e-5)


def test_learning_rate_of_each_update():
    config = load_config_like(lr=2., burnin=3, n_iter=4)
    assert [trainer.learning_rate(k, config) for k in range(1, 9)] == [2, 2, 2, 1.5, 1, 0.5, 0, 0]
    assert trainer.learning_rate(3, load_config_like(lr=2., burnin=3, n_iter=0)) == 2


def load_config_like(lr, burnin, n_iter):
    from types import SimpleNamespace
    return SimpleNamespace(lr=lr, lr_scheduling_burnin=burnin, lr_scheduling_n_iter=n_iter)


def test_killed_run_resumes_bit_for_bit(unbroken, tmp_path):
    folder = tmp_path / 'run'
    process = start(*options(folder))
    wait_for_step(process, folder, 23)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with open(folder / 'log.csv', 'a') as f:
        f.write('79,1.0,2')  # a line cut short
    (folder / '.state.pt.1.tmp').write_bytes(b'half of a state')
    stopped_at = load(folder / 'state.pt')['step']
    assert 20 <= stopped_at < 80 and stopped_at % 4 == 0
    assert train.main(['--resume', '--save_path', str(folder)]) == 0
    assert not list(folder.glob('.*.tmp'))
    assert_same_end(folder, unbroken)


def test_run_killed_before_its_first_state_resumes_bit_for_bit(unbroken, tmp_path):
    folder = tmp_path / 'run'
    process = start(*options(folder, '--state_interval', '1000'))
    wait_for_step(process, folder, 17)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / 'state.pt').exists()
    (folder / '.state.pt.1.tmp').write_bytes(b'half of a state')
    assert train.main(['--resume', '--save_path', str(folder)]) == 0
    assert not list(folder.glob('.*.tmp'))
    assert_same_end(folder, unbroken)


def test_run_killed_between_two_files_repeats_both(unbroken, tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    real = trainer.save

    def save(path, value):
        real(path, value)
        if path.name == 'model.pt' and len(rows(folder)) > 85:  # of 80 steps and 8 validations
            raise KeyboardInterrupt
    monkeypatch.setattr(trainer, 'save', save)
    with pytest.raises(KeyboardInterrupt):
        train.main(options(folder))
    assert load(folder / 'state.pt')['step'] < 80
    monkeypatch.setattr(trainer, 'save', real)
    assert train.main(['--resume', '--save_path', str(folder)]) == 0
    assert_same_end(folder, unbroken)


def test_run_whose_reader_ends_saves_its_state(unbroken, tmp_path):
    """As of `train.py … 2>&1 | tee log` after Ctrl-C, which ends tee as well."""
    folder = tmp_path / 'run'
    process = start(*options(folder, '--state_interval', '1000'))
    wait_for_step(process, folder, 17)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) in (130, 141)
    assert 17 <= load(folder / 'state.pt')['step'] < 80
    assert train.main(['--resume', '--save_path', str(folder)]) == 0
    assert_same_end(folder, unbroken)


def test_run_that_fails_ends(tmp_path):
    folder = tmp_path / 'run'
    process = start(*options(folder, '--n_workers', '2', '--log_interval', '5'))
    wait_for_step(process, folder, 3)
    (folder / 'log.csv').rename(folder / 'log')
    (folder / 'log.csv').mkdir()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and 'IsADirectoryError' in err


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signalled_run_saves_its_state_and_resumes_bit_for_bit(number, code, unbroken, tmp_path):
    folder = tmp_path / 'run'
    process = start(*options(folder, '--state_interval', '1000'))
    wait_for_step(process, folder, 17)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and 'Traceback' not in err
    step = load(folder / 'state.pt')['step']
    assert f'stopped after step {step}; continue with: python train.py --resume --save_path {folder}' in out
    assert train.main(['--resume', '--save_path', str(folder), '--n_workers', '0']) == 0
    assert_same_end(folder, unbroken)


@pytest.mark.parametrize('step', [10, 80])  # the first validation and that at the end
def test_run_stopped_during_validation_repeats_it(step, unbroken, tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    validate = trainer.validation_psnr
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2 * step // 10 - 1:  # first of the two batches
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(*args)
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(trainer, 'validation_psnr', interrupted)
    assert train.main(options(folder)) == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    state = load(folder / 'state.pt')
    assert state['step'] == step and state['validated'] == step - 10
    monkeypatch.setattr(trainer, 'validation_psnr', validate)
    assert train.main(['--resume', '--save_path', str(folder)]) == 0
    assert_same_end(folder, unbroken)


def test_runs_are_repeatable_and_seeds_differ(unbroken, tmp_path):
    assert train.main(options(tmp_path / 'same', '--n_workers', '0')) == 0
    assert_same_end(tmp_path / 'same', unbroken)
    assert train.main(options(tmp_path / 'other', '--seed', '4')) == 0
    assert rows(tmp_path / 'other') != rows(unbroken)


def test_absent_seed_is_drawn_and_saved(tmp_path):
    short = options(tmp_path / 'run', *steps(1, 0))
    position = short.index('--seed')
    assert train.main(short[:position] + short[position + 2:]) == 0
    assert 0 <= json.loads((tmp_path / 'run' / 'config.json').read_text())['seed'] < 2 ** 32


def test_ended_run_is_not_overwritten(unbroken, capsys):
    before = {p: p.read_bytes() for p in unbroken.iterdir()}
    with pytest.raises(UserError, match='holds another run .* --resume'):
        train.main(options(unbroken))
    assert train.main(['--resume', '--save_path', str(unbroken)]) == 0
    assert 'is complete: 80 steps' in capsys.readouterr().out
    assert {p: p.read_bytes() for p in unbroken.iterdir()} == before


def test_resume_refuses_another_configuration(unbroken, tmp_path):
    with pytest.raises(UserError, match='the run was started with ny 4, found 5'):
        train.main(['--resume', '--save_path', str(unbroken), '--ny', '5'])
    with pytest.raises(UserError, match='--resume needs --save_path'):
        train.main(['--resume'])
    (tmp_path / 'config.json').write_text((unbroken / 'config.json').read_text())
    state = load(unbroken / 'state.pt')
    torch.save({**state, 'step': 81}, tmp_path / 'state.pt')
    with pytest.raises(UserError, match='is of step 81, but the run has 80 steps'):
        train.main(['--resume', '--save_path', str(tmp_path)])
    for content in ({'model': {}}, {'step': 3}, {**state, 'optimizer': None}, torch.zeros(3)):
        torch.save(content, tmp_path / 'state.pt')
        with pytest.raises(UserError, match='is not a state of this run'):
            train.main(['--resume', '--save_path', str(tmp_path)])
    (tmp_path / 'state.pt').write_bytes((unbroken / 'state.pt').read_bytes()[:1000])
    with pytest.raises(UserError, match='cannot be read|can be read safely'):
        train.main(['--resume', '--save_path', str(tmp_path)])


def test_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'run'
    real = trainer.loss

    def loss(*args, **kwargs):
        losses = real(*args, **kwargs)
        loss.calls += 1
        return losses._replace(loss=losses.loss * float('nan')) if loss.calls == 11 else losses
    loss.calls = 0
    monkeypatch.setattr(trainer, 'loss', loss)
    assert train.main(options(folder)) == 1
    assert 'the loss of step 11 is not finite; the last good state is of step 8' in capsys.readouterr().err
    assert all(v.isfinite().all() for v in load(folder / 'model.pt').values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'run'
    step = torch.optim.Adam.step

    def spoiled(self, *args, **kwargs):
        step(self, *args, **kwargs)
        spoiled.calls += 1
        if spoiled.calls == 8:
            self.param_groups[0]['params'][0].data[0] = float('inf')
    spoiled.calls = 0
    monkeypatch.setattr(torch.optim.Adam, 'step', spoiled)
    assert train.main(options(folder)) == 1
    assert 'a weight after step 8 is not finite; the last good state is of step 4' in capsys.readouterr().err
    assert load(folder / 'state.pt')['step'] == 4


def test_errors_come_before_files(tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    with pytest.raises(UserError, match='CUDA devices found'):
        train.main(options(folder, '--device', '99'))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match='--device 0: 0 CUDA devices found'):
            train.main(options(folder, '--device', '0'))
    with pytest.raises(UserError, match='no videos as .*processed_64/boxing/person01_boxing_d1.npy'):
        train.main(['--preset', 'kth', '--data_dir', str(tmp_path), '--save_path', str(folder)])
    assert not folder.exists()
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be created'):
        train.main(options(tmp_path / 'file' / 'run'))
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # as for a folder of somebody else's
    with pytest.raises(UserError, match='--save_path .* cannot be written to'):
        train.main(options(tmp_path / 'other'))


@pytest.mark.parametrize('more', [['--archi', 'vgg'], ['--archi', 'vgg', '--skipco', '--n_euler_steps', '2'], ['--skipco'], ['--deterministic']])
def test_every_architecture_trains(more, tmp_path):
    assert train.main(options(tmp_path / 'run', *more, *steps(3, 1), '--val_interval', '2')) == 0
    assert len([r for r in rows(tmp_path / 'run') if r['val_psnr']]) == 2
