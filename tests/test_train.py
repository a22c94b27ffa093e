"""Training runs: files, resume after any kind of end, logs, what must not be overwritten."""

import csv
import errno
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torchvision
from tensorboardX.record_writer import RecordWriter

import train
from args import load_config
from checkpoint import load, load_weights, save
from conftest import ROOT, TINY, steps, wait_for_rows
from files import UserError, run_script
from model import build_model
from training import log
from training import loop as trainer
from training import state as state_file

STEPS = steps(60, 20)


def options(folder, *more):
    return [*TINY, *STEPS, '--data_dir', str(folder.parent), '--save_path', str(folder), *more]


def start(*argv):
    return subprocess.Popen([sys.executable, 'train.py', *argv], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def rows(folder):
    with open(folder / 'log.csv', newline='') as f:
        return [{k: v for k, v in row.items() if k != 'steps_per_s'} for row in csv.DictReader(f)]


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
    return SimpleNamespace(lr=lr, lr_scheduling_burnin=burnin, lr_scheduling_n_iter=n_iter)


def test_killed_run_resumes_bit_for_bit(unbroken, tmp_path):
    folder = tmp_path / 'run'
    process = start(*options(folder))
    wait_for_rows(process, folder, 23)
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
    wait_for_rows(process, folder, 17)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / 'state.pt').exists()
    (folder / '.state.pt.1.tmp').write_bytes(b'half of a state')
    assert train.main(['--resume', '--save_path', str(folder)]) == 0
    assert not list(folder.glob('.*.tmp'))
    assert_same_end(folder, unbroken)


def test_run_killed_between_two_files_repeats_both(unbroken, tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    real = state_file.save

    def save(path, value):
        real(path, value)
        if path.name == 'model.pt' and len(rows(folder)) > 85:  # of 80 steps and 8 validations
            raise KeyboardInterrupt
    monkeypatch.setattr(state_file, 'save', save)
    with pytest.raises(KeyboardInterrupt):
        train.main(options(folder))
    assert load(folder / 'state.pt')['step'] < 80
    monkeypatch.setattr(state_file, 'save', real)
    assert train.main(['--resume', '--save_path', str(folder)]) == 0
    assert_same_end(folder, unbroken)


def test_weights_without_a_state_are_not_lost(unbroken, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / 'run')
    (folder / 'state.pt').unlink()
    before = {p: p.read_bytes() for p in folder.iterdir()}
    for half in (None, b'half of a state'):
        if half:
            (folder / '.state.pt.1.tmp').write_bytes(half)
        with pytest.raises(UserError, match='--resume: .*state.pt is missing, .* another folder' if half is None else '.state.pt.1.tmp is not a readable weights file'):
            train.main(['--resume', '--save_path', str(folder)])
        assert before.items() <= {p: p.read_bytes() for p in folder.iterdir()}.items()


@pytest.mark.parametrize('name', ['model.pt', 'state.pt'])  # renamed, or not yet
def test_run_killed_while_saving_its_first_state_resumes_bit_for_bit(name, unbroken, tmp_path):
    folder = tmp_path / 'run'
    script = tmp_path / 'killed.py'
    script.write_text(f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import train
replace = os.replace
def replacing(source, target):
    if target.name == {name!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = replacing
train.main()
""")
    assert subprocess.run([sys.executable, script, *options(folder)]).returncode == -signal.SIGKILL
    assert (folder / 'model.pt').exists() == (name == 'state.pt') and not (folder / 'state.pt').exists()
    assert train.main(['--resume', '--save_path', str(folder)]) == 0
    assert not list(folder.glob('.*.tmp'))
    assert_same_end(folder, unbroken)


def test_resume_removes_its_own_temporary_files_only(unbroken, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / 'run')
    own = [folder / f'.{name}.1.tmp' for name in ('state.pt', 'model.pt', 'model_best.pt', 'model_6.pt', 'log.csv', 'config.json')]
    others = [folder / '.results.npz.1.tmp', folder / '.results.tmp' / 'damage.csv']  # of test.py and damage.py, which may be running
    others[1].parent.mkdir()
    for path in own + others:
        path.write_bytes(b'half')
    assert train.main(['--resume', '--save_path', str(folder)]) == 0
    assert not any(p.exists() for p in own) and all(p.exists() for p in others)


def test_validation_that_is_repeated_stands_in_the_log_once(unbroken, tmp_path, monkeypatch):
    folder, real = tmp_path / 'run', state_file.write

    def write(path, state):
        if 'validated' in state and state['validated'] == 20:
            raise KeyboardInterrupt  # it is in the log already
        real(path, state)
    monkeypatch.setattr(state_file, 'write', write)
    with pytest.raises(KeyboardInterrupt):
        train.main(options(folder, '--state_interval', '10'))
    assert [r['step'] for r in rows(folder) if r['val_psnr']] == ['10', '20'] and load(folder / 'state.pt')['validated'] == 10
    monkeypatch.setattr(state_file, 'write', real)
    assert train.main(['--resume', '--save_path', str(folder)]) == 0
    assert_same_end(folder, unbroken)


def test_speed_counts_the_steps_of_its_time(tmp_path, monkeypatch):
    folder, clock, real, last = tmp_path / 'run', [0], trainer.Trainer.train_step, [8]

    def step(self, *args):
        clock[0] += 0.5
        assert self.step < last[0], 'here the run is cut'
        return real(self, *args)
    monkeypatch.setattr(trainer.Trainer, 'train_step', step)
    monkeypatch.setattr(trainer, 'time', SimpleNamespace(monotonic=lambda: clock[0]))
    with pytest.raises(AssertionError):
        train.main(options(folder, *steps(20, 0), '--log_interval', '10'))
    last[0] = 20
    assert train.main(['--resume', '--save_path', str(folder)]) == 0
    with open(folder / 'log.csv', newline='') as f:
        assert [(r['step'], float(r['steps_per_s'])) for r in csv.DictReader(f) if r['loss']] == [('10', 2), ('20', 2)]  # the first one of steps 9 and 10


def test_run_whose_reader_ends_saves_its_state(unbroken, tmp_path):
    """As of `train.py … 2>&1 | tee log` after Ctrl-C, which ends tee as well."""
    folder = tmp_path / 'run'
    process = start(*options(folder, '--state_interval', '1000'))
    wait_for_rows(process, folder, 17)
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
    wait_for_rows(process, folder, 3)
    (folder / 'link').symlink_to(folder)
    os.replace(folder / 'link', folder / 'log.csv')  # a folder, at once: at no time is there none
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and f'error: {folder}/log.csv cannot be written (Is a directory); check permissions and free space and continue with --resume\n' in err
    assert 'Traceback' not in err


@pytest.mark.parametrize('name', ['state.pt', 'model.pt', 'model_best.pt', 'log.csv', 'config.json'])
def test_full_disk_is_a_sentence_and_loses_nothing(name, unbroken, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / f'.{name}.{os.getpid()}.tmp').symlink_to('/dev/full')
    advice = 'free space' + ' and continue with --resume' * (name != 'config.json')
    with pytest.raises(UserError, match=rf'run/{name} cannot be written \(No space left on device\); {advice}$'):
        train.main(options(folder))
    assert not list(folder.glob('.*.tmp'))
    assert train.main(options(folder) if name == 'config.json' else ['--resume', '--save_path', str(folder)]) == 0
    assert_same_end(folder, unbroken)


@pytest.mark.parametrize('n', range(1000, 26000, 2503))
def test_file_cut_anywhere_is_a_sentence(n, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 1000, before[1]))  # a disk that takes the beginning
    try:
        with pytest.raises(UserError, match='weights.pt cannot be written .File too large.; free space$'):
            save(tmp_path / 'weights.pt', {str(i): torch.zeros(n // 7) for i in range(7)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_full_disk_under_events_is_a_sentence(tmp_path, monkeypatch):
    class Full(log.EventsWriter):
        def __init__(self, prefix):
            super().__init__(prefix)
            self._py_recordio_writer.close()
            self._py_recordio_writer = RecordWriter('/dev/full')
    monkeypatch.setattr(log, 'EventsWriter', Full)
    monkeypatch.setattr(log, 'FLUSH_INTERVAL', -1)
    with pytest.raises(UserError, match='run/events cannot be written .No space left on device.; free space and continue with --resume'):
        train.main(options(tmp_path / 'run'))
    with pytest.raises(UserError, match='events cannot be written'), log.RunLog(tmp_path, 0, 0) as run_log:
        run_log.tensorboard.flushed = float('inf')
        run_log.write(1, loss=1.)  # buffered until the end
    with pytest.raises(ZeroDivisionError), log.RunLog(tmp_path, 0, 0) as run_log:
        run_log.tensorboard.flushed = float('inf')
        run_log.write(1, loss=1.)
        1 / 0  # is what is told


def test_full_disk_elsewhere_is_a_sentence(capsys):
    def fail(number, name=None):
        def main():
            raise OSError(number, os.strerror(number), name)
        return main
    with pytest.raises(SystemExit) as end:
        run_script(fail(errno.ENOSPC, 'out/frames'))
    assert end.value.code == 2 and capsys.readouterr().err == 'error: out/frames cannot be written (No space left on device); free space\n'
    with pytest.raises(FileNotFoundError):  # an error of the program keeps its traceback
        run_script(fail(errno.ENOENT, 'out/frames'))


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signalled_run_saves_its_state_and_resumes_bit_for_bit(number, code, unbroken, tmp_path):
    folder = tmp_path / 'run'
    process = start(*options(folder, '--state_interval', '1000'))
    wait_for_rows(process, folder, 17)
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


def test_new_run_starts_from_weights(unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.Trainer, 'train_step', lambda *_: pytest.fail('no step yet'))
    started = []
    monkeypatch.setattr(trainer.Trainer, 'run', lambda self: started.append({k: v.clone() for k, v in self.model.state_dict().items()}))
    weights = load(unbroken / 'model.pt')
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in weights.items()}, tmp_path / 'half.pt')
    for i, file in enumerate((unbroken / 'model.pt', tmp_path / 'half.pt')):
        assert train.main(options(tmp_path / str(i), '--weights', str(file))) == 0
        assert json.loads((tmp_path / str(i) / 'config.json').read_text())['weights'] == str(file)
        assert {v.dtype for v in started[i].values()} == {torch.float32, torch.int64}
        for key, value in weights.items():
            torch.testing.assert_close(started[i][key], value, rtol=0 if i == 0 else 1e-3, atol=0 if i == 0 else 1e-6)


def test_run_from_weights_resumes_without_them(unbroken, tmp_path, monkeypatch):
    file, folders = tmp_path / 'start.pt', [tmp_path / 'whole', tmp_path / 'cut']
    shutil.copy(unbroken / 'model_best.pt', file)
    argv = [*steps(12, 0), '--weights', str(file)]
    assert train.main(options(folders[0], *argv)) == 0
    real = trainer.Trainer.train_step
    monkeypatch.setattr(trainer.Trainer, 'train_step', lambda self, *a: real(self, *a) if self.step < 10 else pytest.fail('here the run is cut'))
    with pytest.raises(pytest.fail.Exception):
        train.main(options(folders[1], *argv))
    monkeypatch.setattr(trainer.Trainer, 'train_step', real)
    with pytest.raises(UserError, match='--resume: the run was started with weights .*start.pt, found other.pt'):
        train.main(['--resume', '--save_path', str(folders[1]), '--weights', 'other.pt'])
    with pytest.raises(UserError, match='--resume: the run was started with weights None, found'):
        train.main(['--resume', '--save_path', str(unbroken), '--weights', str(file)])
    file.unlink()
    assert train.main(['--resume', '--save_path', str(folders[1])]) == 0
    assert_same_end(folders[1], folders[0])
    assert rows(folders[0])[0]['loss'] != rows(unbroken)[0]['loss']


def test_weights_that_do_not_fit_are_refused_before_files(unbroken, tmp_path):
    for argv, message in ((['--weights', str(unbroken / 'model.pt'), '--ny', '5'], 'model.pt does not fit the configuration: .* parameters'),
                          (['--weights', str(tmp_path / 'none.pt')], 'none.pt does not exist'),
                          (['--weights', str(unbroken / 'state.pt')], 'is not a plain state_dict')):
        with pytest.raises(UserError, match=message):
            train.main(options(tmp_path / 'run', *argv))
    assert not (tmp_path / 'run').exists()


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
    with pytest.raises(UserError, match='cannot be read|is not a readable weights file'):
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
    mnist = ['--digits', 'mnist', '--save_path', str(folder)]
    with pytest.raises(UserError, match='--data_dir .*mistyped is not a folder'):
        train.main(options(folder, *mnist, '--data_dir', str(tmp_path / 'mistyped')))
    monkeypatch.setattr(torchvision.datasets.MNIST, 'mirrors', ['http://127.0.0.1:9/', 'http://127.0.0.1:9/'])  # nobody is there
    with pytest.raises(UserError, match='MNIST can be neither read from .*MNIST/raw nor downloaded .*(Connection refused|Error downloading)') as error:
        train.main(options(folder, *mnist))
    assert '\n' not in str(error.value)
    assert not list(tmp_path.iterdir())
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be created'):
        train.main(options(tmp_path / 'file' / 'run'))
    assert train.main(options(folder, *steps(1, 0))) == 0
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # as for a folder of somebody else's
    with pytest.raises(UserError, match='--resume: .*run is not writable'):
        train.main(['--resume', '--save_path', str(folder)])
    with pytest.raises(UserError, match='--save_path .* is not writable'):
        train.main(options(tmp_path / 'other'))


@pytest.mark.parametrize('more', [['--archi', 'vgg'], ['--archi', 'vgg', '--skipco', '--n_euler_steps', '2'], ['--skipco'], ['--deterministic']])
def test_every_architecture_trains(more, tmp_path):
    assert train.main(options(tmp_path / 'run', *more, *steps(3, 1), '--val_interval', '2')) == 0
    assert len([r for r in rows(tmp_path / 'run') if r['val_psnr']]) == 2


@pytest.fixture
def resumable(tmp_path):
    """Folder of a run that stopped at step 4 of 6, and its state."""
    folder = tmp_path / 'run'
    assert train.main(options(folder, *steps(6, 0))) == 0
    state = load(folder / 'state.pt')
    return folder, {**state, 'step': 4, 'validated': 0}


@pytest.mark.parametrize('spoil', [
    lambda s: s['optimizer']['state'][0].update(exp_avg=torch.zeros(1)),  # beyond which fused Adam would read
    lambda s: s['optimizer']['state'][0].pop('exp_avg'), lambda s: s['optimizer']['state'][0].update(exp_avg='x'),
    lambda s: s['optimizer']['state'].pop(0), lambda s: s['optimizer']['state'].clear(), lambda s: s['optimizer'].clear(),
    lambda s: s.update(step=math.inf), lambda s: s.update(n_summed=-1), lambda s: s.update(sums=[0.]), lambda s: s.update(step=7)])
def test_damaged_states_are_refused(spoil, resumable):
    folder, state = resumable
    spoil(state)
    torch.save(state, folder / 'state.pt')
    with pytest.raises(UserError, match='--resume: .*state.pt is '):
        train.main(['--resume', '--save_path', str(folder)])


def test_options_of_adam_are_those_of_the_configuration(resumable, tmp_path):
    folder, state = resumable
    torch.save(state, folder / 'state.pt')
    other = shutil.copytree(folder, tmp_path / 'other')
    state['optimizer']['param_groups'][0].update(maximize=True, weight_decay=5.)
    torch.save(state, other / 'state.pt')
    for f in (folder, other):
        assert train.main(['--resume', '--save_path', str(f)]) == 0
    expected, found = (load(f / 'model.pt') for f in (folder, other))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize('content', [b'step,loss\n1,2\n', b'\xff\xfe', b'a' * 200_000, None])
def test_foreign_logs_are_no_obstacle_or_a_sentence(content, resumable):
    folder, state = resumable
    torch.save(state, folder / 'state.pt')
    (folder / 'log.csv').unlink()
    (folder / 'log.csv').mkdir() if content is None else (folder / 'log.csv').write_bytes(content)
    if content == b'step,loss\n1,2\n':
        assert train.main(['--resume', '--save_path', str(folder)]) == 0 and rows(folder)[0]['step'] == '5'
    else:
        with pytest.raises(UserError, match='log.csv (is not the log of a run .*; move it away|cannot be read)'):
            train.main(['--resume', '--save_path', str(folder)])


def test_a_run_is_trained_by_one_process_at_a_time(resumable):
    folder, state = resumable
    torch.save(state, folder / 'state.pt')
    process = start(*options(folder.parent / 'other'))
    wait_for_rows(process, folder.parent / 'other', 2)
    with pytest.raises(UserError, match='--save_path .*other: another process is training there; stop it, or use another folder'):
        train.main(['--resume', '--save_path', str(folder.parent / 'other')])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert train.main(['--resume', '--save_path', str(folder.parent / 'other')]) == 0  # a killed one holds nothing
    assert not list((folder.parent / 'other').glob('.*'))


def test_configuration_without_seed_is_not_continued(resumable):
    folder, _ = resumable
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'seed': None}))
    with pytest.raises(UserError, match='config.json has no seed'):
        train.main(['--resume', '--save_path', str(folder)])


@pytest.mark.parametrize('error, code', [(MemoryError('Unable to allocate 9 TiB'), 2), (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2),
                                         (torch.cuda.OutOfMemoryError('CUDA out of memory. Tried'), 2), (RuntimeError('another'), None)])
def test_too_little_memory_is_a_sentence(error, code, capsys):
    def fail():
        raise error
    with pytest.raises(SystemExit if code else RuntimeError) as caught:
        run_script(fail)
    if code:
        assert caught.value.code == code and re.fullmatch(r'error: out of memory \(.*\); use a smaller --batch_size, .*\n', capsys.readouterr().err)
