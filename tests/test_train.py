"""Training runs: files, logs, resuming after any kind of end, what must not be overwritten."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from processes import Script, patched
from tensorboardX.record_writer import RecordWriter

import logs
import train
from args import load_config
from checkpoint import load, load_weights, save
from conftest import ROOT, TINY, steps, wait_for_rows
from files import UserError, run_script
from model import build_model
from training import log, loop, validation
from training import state as state_file
from training.loop import Trainer

# 24 steps, a state every 4, a validation every 6
OPTIONS = [*TINY, *steps(18, 6), '--val_interval', '6', '--state_interval', '4', '--n_workers', '0']
WORKER = ['--n_workers', '1']
NO_STATE = ['--state_interval', '1000']


def options(folder, *more):
    return [*OPTIONS, '--data_dir', str(folder.parent), '--save_path', str(folder), *more]


def start(script, *argv):
    """Start a script as a shell does: with pipes, and ended by Python itself, unlike `Script`."""
    return subprocess.Popen([sys.executable, script, *argv], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def resume(folder, *more):
    return train.main(['--resume', '--save_path', str(folder), *more])


@contextlib.contextmanager
def interrupted(owner, name, when):
    """Context ended by a KeyboardInterrupt in a function, when `when` accepts its arguments."""
    function = getattr(owner, name)

    def call(*args, **kwargs):
        if when(*args):
            raise KeyboardInterrupt
        return function(*args, **kwargs)
    with mock.patch.object(owner, name, call), pytest.raises(KeyboardInterrupt):
        yield


def cut_after(step):
    """Context in which a run is interrupted after a number of steps."""
    return interrupted(Trainer, 'train_step', lambda trainer, *_: trainer.step == step)


def rows(folder, name='log.csv'):
    """Rows of a table of a run, but for the speed."""
    with open(folder / name, newline='') as f:
        return [{k: v for k, v in row.items() if k != 'steps_per_s'} for row in csv.DictReader(f)]


def validations(folder):
    return rows(folder, 'validation.csv')


def assert_same_end(folder, reference):
    """Compare weights, place, log and pictures of two runs bit for bit."""
    for name in ('model.pt', 'model_best.pt'):
        expected, found = load(reference / name), load(folder / name)
        assert expected.keys() == found.keys()
        for key in expected:
            assert torch.equal(expected[key], found[key]), (name, key)
    expected, found = load(reference / 'state.pt'), load(folder / 'state.pt')
    for key in ('step', 'score', 'best', 'validated'):
        assert expected[key] == found[key]
    assert rows(folder) == rows(reference)
    assert validations(folder) == validations(reference)
    expected, found = ({path.name: path.read_bytes() for path in (f / 'validation').iterdir()}
                       for f in (reference, folder))
    assert found == expected


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    """Folder of a complete run."""
    folder = tmp_path_factory.mktemp('unbroken') / 'run'
    assert train.main(options(folder, *WORKER)) == 0
    return folder


@pytest.fixture(scope='module')
def cut_run(tmp_path_factory):
    """Folder of the same run, cut after step 21; its last state is of step 20."""
    folder = tmp_path_factory.mktemp('cut') / 'run'
    with cut_after(21):
        train.main(options(folder))
    assert load(folder / 'state.pt')['step'] == 20
    return folder


@pytest.fixture(scope='module')
def short_run(tmp_path_factory):
    """Folder of a complete run of 6 steps."""
    folder = tmp_path_factory.mktemp('short') / 'run'
    assert train.main(options(folder, *steps(6, 0))) == 0
    return folder


@pytest.fixture
def resumable(short_run, tmp_path):
    """Folder of a run of 6 steps with a state of step 4, and that state."""
    folder = shutil.copytree(short_run, tmp_path / 'run')
    state = {**load(folder / 'state.pt'), 'step': 4, 'validated': 0}
    torch.save(state, folder / 'state.pt')
    return folder, state


@pytest.fixture
def slow_script(tmp_path):
    """Path of a train.py that pauses after each step from 7 on, for tests that stop it."""
    return patched(tmp_path, """
step = loop.Trainer.train_step
def slow(self, *args):
    terms = step(self, *args)
    if self.step >= 7:
        time.sleep(0.1)
    return terms
loop.Trainer.train_step = slow
""")


# Files and logs

def test_files_of_a_run(run_dir):
    assert {p.name for p in run_dir.iterdir()} >= {
        'config.json', 'log.csv', 'model.pt', 'model_best.pt', 'model_6.pt', 'model_12.pt',
        'state.pt', 'validation.csv'}
    assert {p.name for p in (run_dir / 'validation').iterdir()} == {
        f'step_{step}.{suffix}' for step in (10, 15) for suffix in ('png', 'gif')}
    assert not list(run_dir.glob('*.tmp')) and not list(run_dir.glob('.*.tmp'))
    model = build_model(load_config(run_dir))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for name in ('model_6.pt', 'model.pt'):
        load_weights(model, run_dir / name)  # plain state dicts
        assert all(v.isfinite().all() for v in model.state_dict().values())
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_log_has_every_term_and_the_schedule(unbroken):
    training = rows(unbroken)
    assert [int(r['step']) for r in training] == list(range(1, 25))
    for r in training:
        loss, *terms = (float(r[k]) for k in ('loss', 'nll', 'kl_y_0', 'kl_z', 'res'))
        assert loss == pytest.approx(sum(terms), rel=1e-5)
        assert float(r['lr']) == pytest.approx(3e-4 * max(0, 1 - max(0, int(r['step']) - 18) / 6))
    table = validations(unbroken)
    assert [int(r['step']) for r in table] == [6, 12, 18, 24]
    assert float(table[-1]['best_psnr']) == max(float(r['val_psnr']) for r in table)
    for r in table:
        by_frame = [float(r[f'psnr_{t}']) for t in (3, 4)]
        assert float(r['val_psnr']) == pytest.approx(np.mean(by_frame), rel=1e-5)
        assert -1 < float(r['val_ssim']) < 1 and len(r) == 6
    assert float(training[-1]['nll']) < float(training[0]['nll'])


def test_tensorboard_shows_the_log_and_pictures(unbroken, monkeypatch):
    # Otherwise, it imports TensorFlow
    monkeypatch.setitem(sys.modules, 'tensorboard.compat.notf', ModuleType('notf'))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(unbroken), {'images': 0, 'scalars': 0}).Reload()
    tags = events.Tags()
    assert set(tags['scalars']) == {
        *(f'train/{name}' for name in rows(unbroken)[0].keys() - {'step'}), 'train/steps_per_s',
        'validation/val_psnr', 'validation/best_psnr', 'validation/val_ssim'}
    for folder, table, name in (('train', rows(unbroken), 'nll'),
                                ('validation', validations(unbroken), 'val_psnr'),
                                ('validation', validations(unbroken), 'val_ssim')):
        found = events.Scalars(f'{folder}/{name}')
        assert [e.step for e in found] == [int(r['step']) for r in table]
        np.testing.assert_allclose([e.value for e in found], [float(r[name]) for r in table], 1e-5)
    assert set(tags['images']) == {f'validation/{n}' for n in ('strip', 'videos', 'psnr_by_frame')}
    for name, suffix in (('strip', 'png'), ('videos', 'gif')):
        found = events.Images(f'validation/{name}')
        assert [e.step for e in found] == [6, 12, 18, 24]
        for e in found:
            path = unbroken / 'validation' / f'step_{e.step}.{suffix}'
            assert e.encoded_image_string == path.read_bytes()
            with Image.open(path) as picture:
                assert (e.width, e.height) == picture.size
                assert getattr(picture, 'n_frames', 1) == (5 if suffix == 'gif' else 1)
    curve = Image.open(io.BytesIO(events.Images('validation/psnr_by_frame')[-1]
                                  .encoded_image_string))
    assert curve.format == 'PNG' and curve.width > 300


def test_bar_shows_readable_numbers(tmp_path, capsys):
    folder = tmp_path / 'run'
    assert train.main(options(folder, *steps(6, 0))) == 0
    out, err = capsys.readouterr()
    last, (scores,) = rows(folder)[-1], validations(folder)
    shown = dict(re.findall(r'([\w/]+)=([-.\de]+)', err.splitlines()[-1]))
    assert list(shown) == ['loss/pixel', 'nll/pixel', 'kl_y_0', 'kl_z', 'val']
    for name, size in (('loss/pixel', 5 * 64 ** 2), ('nll/pixel', 5 * 64 ** 2), ('kl_z', 1)):
        value = float(last[name.split('/')[0]]) / size
        assert float(shown[name]) == pytest.approx(value, rel=1e-3) and len(shown[name]) < 8
    psnr, ssim = float(scores['val_psnr']), float(scores['val_ssim'])
    assert f'step 6: validation PSNR {psnr:.2f} dB, best {psnr:.2f} dB, SSIM {ssim:.4f}\n' in out


def test_learning_rate_of_each_update():
    def rates(updates, n_iter):
        config = SimpleNamespace(lr=2., lr_scheduling_burnin=3, lr_scheduling_n_iter=n_iter)
        return [loop.learning_rate(k, config) for k in updates]
    assert rates(range(1, 9), 4) == [2, 2, 2, 1.5, 1, 0.5, 0, 0]
    assert rates([3], 0) == [2]


def test_speed_counts_the_steps_of_its_time(tmp_path, monkeypatch):
    folder, clock, train_step = tmp_path / 'run', [0], Trainer.train_step

    def step(self, *args):
        clock[0] += 0.5
        return train_step(self, *args)
    monkeypatch.setattr(Trainer, 'train_step', step)
    monkeypatch.setattr(loop, 'time', SimpleNamespace(monotonic=lambda: clock[0]))
    with cut_after(5):
        train.main(options(folder, *steps(12, 0), '--log_interval', '6'))
    assert resume(folder) == 0  # the first row is then timed over steps 5 and 6 only
    with open(folder / 'log.csv', newline='') as f:
        speeds = [(r['step'], float(r['steps_per_s'])) for r in csv.DictReader(f)]
    assert speeds == [('6', 2), ('12', 2)]


@pytest.mark.parametrize('more', [
    ['--archi', 'vgg'], ['--archi', 'vgg', '--skipco', '--n_euler_steps', '2'], ['--skipco'],
    ['--deterministic']])
def test_every_architecture_trains(more, tmp_path):
    folder = tmp_path / 'run'
    assert train.main(options(folder, *more, *steps(3, 1), '--val_interval', '2')) == 0
    assert len(validations(folder)) == 2


def test_runs_are_repeatable_and_seeds_differ(unbroken, tmp_path):
    assert train.main(options(tmp_path / 'same')) == 0  # with another number of workers
    assert_same_end(tmp_path / 'same', unbroken)
    assert train.main(options(tmp_path / 'other', *steps(1, 0), '--seed', '4')) == 0
    assert rows(tmp_path / 'other')[0] != rows(unbroken)[0]


def test_missing_seed_is_drawn_and_saved(tmp_path):
    argv = options(tmp_path / 'run', *steps(1, 0))
    position = argv.index('--seed')
    assert train.main(argv[:position] + argv[position + 2:]) == 0
    assert 0 <= json.loads((tmp_path / 'run' / 'config.json').read_text())['seed'] < 2 ** 32


# Interruptions of all kinds, after which a run resumes bit for bit

def test_killed_run_resumes_bit_for_bit(slow_script, unbroken, tmp_path):
    folder = tmp_path / 'run'
    process = Script(slow_script, *options(folder, *WORKER))
    wait_for_rows(process, folder, 10)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with open(folder / 'log.csv', 'a') as f:
        f.write('23,1.0,2')  # a truncated row
    (folder / '.state.pt.1.tmp').write_bytes(b'half of a state')
    stopped_at = load(folder / 'state.pt')['step']
    assert 8 <= stopped_at < 24 and stopped_at % 4 == 0
    assert resume(folder) == 0
    assert not list(folder.glob('.*.tmp'))
    assert_same_end(folder, unbroken)


def test_run_killed_before_its_first_state_resumes_bit_for_bit(slow_script, unbroken, tmp_path):
    folder = tmp_path / 'run'
    process = Script(slow_script, *options(folder, *WORKER, *NO_STATE))
    wait_for_rows(process, folder, 8)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / 'state.pt').exists()
    (folder / '.state.pt.1.tmp').write_bytes(b'half of a state')
    assert resume(folder) == 0
    assert not list(folder.glob('.*.tmp'))
    assert_same_end(folder, unbroken)


@pytest.mark.parametrize('name', ['model.pt', 'state.pt'])  # renamed first and last
def test_run_killed_while_saving_its_first_state_resumes_bit_for_bit(name, unbroken, tmp_path):
    folder = tmp_path / 'run'
    script = patched(tmp_path, f"""
replace = os.replace
def killing(source, target):
    if target.name == {name!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killing
""")
    process = Script(script, *options(folder))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (folder / 'model.pt').exists() == (name == 'state.pt')
    assert not (folder / 'state.pt').exists()
    assert resume(folder) == 0
    assert not list(folder.glob('.*.tmp'))
    assert_same_end(folder, unbroken)


def test_run_interrupted_between_two_files_repeats_both(unbroken, cut_run, tmp_path):
    folder = shutil.copytree(cut_run, tmp_path / 'run')
    with interrupted(os, 'replace', lambda source, target: target.name == 'state.pt'):
        resume(folder)
    assert load(folder / 'state.pt')['step'] == 20
    weights, previous = load(folder / 'model.pt'), load(cut_run / 'model.pt')
    assert any(not torch.equal(weights[k], previous[k]) for k in weights)
    assert resume(folder) == 0
    assert_same_end(folder, unbroken)


def test_repeated_validation_appears_in_the_log_once(unbroken, tmp_path):
    folder = tmp_path / 'run'
    # `write` is also called with the weights, which have no such key
    with interrupted(state_file, 'write', lambda path, state: state.get('validated') == 12):
        train.main(options(folder, '--state_interval', '6'))
    assert [r['step'] for r in validations(folder)] == ['6', '12']
    assert load(folder / 'state.pt')['validated'] == 6
    assert resume(folder) == 0
    assert_same_end(folder, unbroken)


def as_before(folder):
    """Turn the log of a run into that of an earlier version: one table of both kinds of rows."""
    columns = [*logs.BOTH]
    with open(folder / 'log.csv', newline='') as f:
        training = list(csv.DictReader(f))
    table = sorted([*training, *validations(folder)],
                   key=lambda row: (int(row['step']), 'val_psnr' in row))
    with open(folder / 'log.csv', 'w', newline='') as f:
        writer = csv.DictWriter(f, columns, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(table)
    (folder / 'validation.csv').unlink()
    return table


@pytest.mark.parametrize('cut', [None, 'validation.csv', 'log.csv'])
def test_log_of_an_earlier_version_is_split_without_loss(cut, unbroken, cut_run, tmp_path):
    """Also if the resumed run is killed before one of the two tables is in place."""
    folder = shutil.copytree(cut_run, tmp_path / 'run')
    table = as_before(folder)
    training, scores = logs.read_log(folder)
    assert len(training) == 21 and [r['step'] for r in scores] == ['6', '12', '18']
    if cut:
        with interrupted(os, 'replace', lambda source, target: target.name == cut):
            resume(folder)
    assert resume(folder) == 0
    assert rows(folder) == rows(unbroken)
    expected = validations(unbroken)
    for row in expected[:3]:  # earlier versions did not compute the others
        row.update({name: '' for name in row.keys() - {'step', 'val_psnr', 'best_psnr'}})
    assert validations(folder) == expected
    speeds = [[row['steps_per_s'] for row in part if row.get('steps_per_s')]
              for part in (table, logs.read_log(folder)[0])]
    assert speeds[0][:20] == speeds[1][:20]
    assert not list(folder.glob('*.csv.*'))


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signalled_run_saves_its_state_and_resumes_bit_for_bit(
        number, code, slow_script, unbroken, tmp_path):
    folder = tmp_path / 'run'
    process = Script(slow_script, *options(folder, *WORKER, *NO_STATE))
    wait_for_rows(process, folder, 8)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and 'Traceback' not in err
    step = load(folder / 'state.pt')['step']
    assert 7 <= step < 24
    assert (f'stopped after step {step}; continue with: '
            f'python train.py --resume --save_path {folder}') in out
    assert resume(folder, '--n_workers', '0') == 0
    assert_same_end(folder, unbroken)


@pytest.mark.parametrize('step', [6, 24])  # the first validation, and the one at the end
def test_run_stopped_during_validation_repeats_it(step, unbroken, tmp_path):
    folder, calls, best_futures = tmp_path / 'run', [], validation.best_futures

    def signalled(*args):
        calls.append(args)
        if len(calls) == 2 * step // 6 - 1:  # first of the two batches
            os.kill(os.getpid(), signal.SIGTERM)
        return best_futures(*args)
    handler = signal.getsignal(signal.SIGTERM)
    with mock.patch.object(validation, 'best_futures', signalled):
        assert train.main(options(folder)) == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    state = load(folder / 'state.pt')
    assert state['step'] == step and state['validated'] == step - 6
    assert resume(folder) == 0
    assert_same_end(folder, unbroken)


def test_run_whose_reader_ends_saves_its_state(slow_script, unbroken, tmp_path):
    """As with `train.py … 2>&1 | tee log` after Ctrl-C, which ends tee as well."""
    folder = tmp_path / 'run'
    process = start(slow_script, *options(folder, *WORKER, *NO_STATE))
    wait_for_rows(process, folder, 8)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) in (130, 141)
    assert 7 <= load(folder / 'state.pt')['step'] < 24
    assert resume(folder) == 0
    assert_same_end(folder, unbroken)


# Failures

def test_failing_run_ends_despite_its_workers(tmp_path):
    folder = tmp_path / 'run'
    process = start('train.py', *options(folder, *steps(5000, 0), '--n_workers', '2',
                                         '--log_interval', '5'))
    wait_for_rows(process, folder, 3)
    (folder / 'link').symlink_to(folder)
    os.replace(folder / 'link', folder / 'log.csv')  # a folder; the name exists at all times
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (f'error: {folder}/log.csv cannot be written (Is a directory); check permissions and '
            'free space, then continue with --resume\n') in err
    assert 'Traceback' not in err


@pytest.mark.parametrize('name', ['state.pt', 'model.pt', 'model_best.pt', 'log.csv',
                                  'validation.csv', 'validation/step_12.png',
                                  'validation/step_6.gif'])
def test_full_disk_is_reported_and_loses_nothing(name, unbroken, tmp_path):
    folder = tmp_path / 'run'
    path = folder / name
    path.parent.mkdir(parents=True)
    (path.parent / f'.{path.name}.{os.getpid()}.tmp').symlink_to('/dev/full')
    with pytest.raises(UserError, match=rf'run/{name} cannot be written \(No space left on device\)'
                                        '; free space(, then continue with --resume)?$'):
        train.main(options(folder))
    assert not list(folder.rglob('.*.tmp'))
    if name in ('log.csv', 'validation.csv'):  # written before the first step: there is no run yet
        assert not (folder / 'config.json').exists() and train.main(options(folder)) == 0
    else:
        assert resume(folder) == 0
    assert_same_end(folder, unbroken)


def test_full_disk_before_the_first_step_leaves_no_run(unbroken, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / f'.config.json.{os.getpid()}.tmp').symlink_to('/dev/full')
    with pytest.raises(UserError, match=r'run/config.json cannot be written '
                                        r'\(No space left on device\); free space$'):
        train.main(options(folder))
    assert not list(folder.iterdir())
    assert train.main(options(folder)) == 0
    assert_same_end(folder, unbroken)


@pytest.mark.parametrize('n', range(1000, 26000, 2503))
def test_file_truncated_anywhere_is_reported(n, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 1000, before[1]))  # an almost full disk
    try:
        with pytest.raises(UserError, match='weights.pt cannot be written .File too large.; '
                                            'free space$'):
            save(tmp_path / 'weights.pt', {str(i): torch.zeros(n // 7) for i in range(7)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_full_disk_under_events_is_reported(tmp_path, monkeypatch):
    class Full(log.EventsWriter):
        def __init__(self, prefix):
            super().__init__(prefix)
            self._py_recordio_writer.close()
            self._py_recordio_writer = RecordWriter('/dev/full')
    monkeypatch.setattr(log, 'EventsWriter', Full)
    monkeypatch.setattr(log, 'FLUSH_INTERVAL', -1)
    with pytest.raises(UserError, match='run/events cannot be written .No space left on device.; '
                                        'free space, then continue with --resume'):
        train.main(options(tmp_path / 'run'))
    monkeypatch.setattr(log, 'FLUSH_INTERVAL', math.inf)  # all is buffered until the end
    with pytest.raises(UserError, match='events cannot be written'), \
            log.RunLog(tmp_path, 0, 0, [3]) as run_log:
        run_log.write(1, loss=1.)
    with pytest.raises(ZeroDivisionError), log.RunLog(tmp_path, 0, 0, [3]) as run_log:
        run_log.write(1, loss=1.)
        1 / 0  # noqa: B018 (the error to report)


def failing(error):
    """The `main` of a script that fails."""
    def main(argv):
        raise error
    return main


def test_full_disk_elsewhere_is_reported(call):
    name = 'out/frames'
    code, _, err = call(failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)))
    assert code == 2
    assert err == f'error: {name} cannot be written (No space left on device); free space\n'


@pytest.mark.parametrize('error', [
    MemoryError('Unable to allocate 9 TiB'),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    torch.cuda.OutOfMemoryError('CUDA out of memory. Tried')])
def test_lack_of_memory_is_reported(error, call):
    code, _, err = call(failing(error))
    assert code == 2
    assert re.fullmatch(r'error: out of memory \(.*\); use a smaller --batch_size, .*\n', err)


@pytest.mark.parametrize('error', [
    FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), 'out/frames'),
    RuntimeError('another')])
def test_errors_of_the_program_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_script(lambda: failing(error)(None))


def test_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, capsys):
    folder, loss, calls = tmp_path / 'run', loop.loss, []

    def spoiled(*args, **kwargs):
        losses = loss(*args, **kwargs)
        calls.append(args)
        return losses._replace(loss=losses.loss * math.nan) if len(calls) == 11 else losses
    monkeypatch.setattr(loop, 'loss', spoiled)
    assert train.main(options(folder)) == 1
    message = 'the loss of step 11 is not finite; the last good state is of step 8'
    assert message in capsys.readouterr().err
    assert all(v.isfinite().all() for v in load(folder / 'model.pt').values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, capsys):
    folder, step, calls = tmp_path / 'run', torch.optim.Adam.step, []

    def spoiling(self, *args, **kwargs):
        step(self, *args, **kwargs)
        calls.append(args)
        if len(calls) == 8:
            self.param_groups[0]['params'][0].data[0] = math.inf
    monkeypatch.setattr(torch.optim.Adam, 'step', spoiling)
    assert train.main(options(folder)) == 1
    message = 'a weight after step 8 is not finite; the last good state is of step 4'
    assert message in capsys.readouterr().err
    assert load(folder / 'state.pt')['step'] == 4


# Weights to start from

def test_new_run_starts_from_weights(unbroken, tmp_path, monkeypatch):
    def note(trainer):
        started.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
        trainer.step = 1  # else nothing would be left of the run
    started, weights = [], load(unbroken / 'model.pt')
    monkeypatch.setattr(Trainer, 'train_step', lambda *_: pytest.fail('no step yet'))
    monkeypatch.setattr(Trainer, 'run', note)
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    torch.save(half, tmp_path / 'half.pt')
    for file, rtol, atol in ((unbroken / 'model.pt', 0, 0), (tmp_path / 'half.pt', 1e-3, 1e-6)):
        folder = tmp_path / file.stem
        assert train.main(options(folder, '--weights', str(file))) == 0
        assert json.loads((folder / 'config.json').read_text())['weights'] == str(file)
        assert {v.dtype for v in started[-1].values()} == {torch.float32, torch.int64}
        for key, value in weights.items():
            torch.testing.assert_close(started[-1][key], value, rtol=rtol, atol=atol)
    assert len(started) == 2


def test_run_from_weights_resumes_without_them(unbroken, tmp_path):
    file, whole, cut = tmp_path / 'start.pt', tmp_path / 'whole', tmp_path / 'cut'
    shutil.copy(unbroken / 'model_best.pt', file)
    argv = [*steps(6, 0), '--weights', str(file)]
    assert train.main(options(whole, *argv)) == 0
    with cut_after(5):
        train.main(options(cut, *argv))
    with pytest.raises(UserError, match='--resume: the run was started with weights .*start.pt, '
                                        'found other.pt'):
        resume(cut, '--weights', 'other.pt')
    with pytest.raises(UserError, match='--resume: the run was started with weights None, found'):
        resume(unbroken, '--weights', str(file))
    file.unlink()
    assert resume(cut) == 0
    assert_same_end(cut, whole)
    assert rows(whole)[0]['loss'] != rows(unbroken)[0]['loss']


def test_run_of_before_there_was_a_choice_of_dynamics_resumes(unbroken, cut_run, tmp_path):
    folder = shutil.copytree(cut_run, tmp_path / 'run')
    config, state = json.loads((folder / 'config.json').read_text()), load(folder / 'state.pt')
    assert config.pop('dynamics') == state['config'].pop('dynamics') == 'residual'
    (folder / 'config.json').write_text(json.dumps(config))
    torch.save(state, folder / 'state.pt')
    with pytest.raises(UserError, match='the run was started with dynamics residual, found mlp'):
        resume(folder, '--dynamics', 'mlp')
    assert resume(folder, '--dynamics', 'residual') == 0
    assert_same_end(folder, unbroken)


def test_weights_that_do_not_fit_are_refused_before_files(unbroken, tmp_path):
    for argv, message in (
            ([unbroken / 'model.pt', '--ny', '5'],
             'model.pt does not fit the configuration: .* parameters'),
            ([tmp_path / 'none.pt'], 'none.pt does not exist'),
            ([unbroken / 'state.pt'], 'is not a plain state_dict')):
        with pytest.raises(UserError, match=message):
            train.main(options(tmp_path / 'run', '--weights', *map(str, argv)))
    assert not (tmp_path / 'run').exists()


# What is refused, before files are written

def test_errors_come_before_files(tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    with pytest.raises(UserError, match='--device 99: .* CUDA devices found'):
        train.main(options(folder, '--device', '99'))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match='--device 0: 0 CUDA devices found'):
            train.main(options(folder, '--device', '0'))
    with pytest.raises(UserError, match='no videos as .*processed_64/boxing/'
                                        'person01_boxing_d1.npy'):
        train.main(['--preset', 'kth', '--data_dir', str(tmp_path), '--save_path', str(folder)])
    mnist = ['--digits', 'mnist', '--save_path', str(folder)]
    with pytest.raises(UserError, match='--data_dir .*mistyped is not a folder'):
        train.main(options(folder, *mnist, '--data_dir', str(tmp_path / 'mistyped')))
    nobody = ['http://127.0.0.1:9/', 'http://127.0.0.1:9/']
    monkeypatch.setattr(torchvision.datasets.MNIST, 'mirrors', nobody)
    with pytest.raises(UserError, match='MNIST can be neither read from .*MNIST/raw nor downloaded '
                                        '.*(Connection refused|Error downloading)') as error:
        train.main(options(folder, *mnist))
    assert '\n' not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written(resumable, tmp_path, monkeypatch):
    folder, _ = resumable
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be created'):
        train.main(options(tmp_path / 'file' / 'run'))
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # as if owned by somebody else
    with pytest.raises(UserError, match='--resume: .*run is not writable'):
        resume(folder)
    with pytest.raises(UserError, match='--save_path .* is not writable'):
        train.main(options(tmp_path / 'other'))


def test_complete_run_is_not_overwritten(unbroken, capsys):
    before = {p: p.read_bytes() for p in unbroken.rglob('*') if p.is_file()}
    with pytest.raises(UserError, match='holds another run .* --resume'):
        train.main(options(unbroken))
    assert resume(unbroken) == 0
    assert 'is complete: 24 steps' in capsys.readouterr().out
    assert {p: p.read_bytes() for p in unbroken.rglob('*') if p.is_file()} == before


def test_resume_removes_its_own_temporary_files_only(unbroken, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / 'run')
    names = ['state.pt', 'model.pt', 'model_best.pt', 'model_6.pt', 'log.csv', 'validation.csv',
             'config.json']
    own = [*(folder / f'.{name}.1.tmp' for name in names),
           folder / 'validation' / '.step_6.png.1.tmp']
    # Of test.py and damage.py, which may be running
    others = [folder / '.results.npz.1.tmp', folder / '.results.tmp' / 'damage.csv']
    others[1].parent.mkdir()
    for path in own + others:
        path.write_bytes(b'half')
    assert resume(folder) == 0
    assert not any(p.exists() for p in own) and all(p.exists() for p in others)


def test_weights_without_a_state_are_not_lost(unbroken, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / 'run')
    (folder / 'state.pt').unlink()
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}

    def refused(message):
        with pytest.raises(UserError, match=message):
            resume(folder)
        assert before.items() <= {p: p.read_bytes() for p in before}.items()
    refused('--resume: .*state.pt is missing, .* another folder')
    (folder / '.state.pt.1.tmp').write_bytes(b'half of a state')
    refused('.state.pt.1.tmp is not a readable weights file')


def test_resume_refuses_another_configuration(unbroken, tmp_path):
    with pytest.raises(UserError, match='the run was started with ny 4, found 5'):
        resume(unbroken, '--ny', '5')
    with pytest.raises(UserError, match='--resume needs --save_path'):
        train.main(['--resume'])
    (tmp_path / 'config.json').write_text((unbroken / 'config.json').read_text())
    state = load(unbroken / 'state.pt')
    torch.save({**state, 'step': 25}, tmp_path / 'state.pt')
    with pytest.raises(UserError, match='is of step 25, but the run has 24 steps'):
        resume(tmp_path)
    for content in ({'model': {}}, {'step': 3}, {**state, 'optimizer': None}, torch.zeros(3)):
        torch.save(content, tmp_path / 'state.pt')
        with pytest.raises(UserError, match='is not a state of this run'):
            resume(tmp_path)
    (tmp_path / 'state.pt').write_bytes((unbroken / 'state.pt').read_bytes()[:1000])
    with pytest.raises(UserError, match='cannot be read|is not a readable weights file'):
        resume(tmp_path)


@pytest.mark.parametrize('spoil', [
    lambda s: s['optimizer']['state'][0].update(exp_avg=torch.zeros(1)),  # read out of bounds
    lambda s: s['optimizer']['state'][0].pop('exp_avg'),
    lambda s: s['optimizer']['state'][0].update(exp_avg='x'),
    lambda s: s['optimizer']['state'].pop(0), lambda s: s['optimizer']['state'].clear(),
    lambda s: s['optimizer'].clear(), lambda s: s.update(step=math.inf),
    lambda s: s.update(n_summed=-1), lambda s: s.update(sums=[0.]), lambda s: s.update(step=7)])
def test_damaged_states_are_refused(spoil, resumable):
    folder, state = resumable
    spoil(state)
    torch.save(state, folder / 'state.pt')
    with pytest.raises(UserError, match='--resume: .*state.pt is '):
        resume(folder)


def test_options_of_adam_are_those_of_the_configuration(resumable, tmp_path):
    folder, state = resumable
    other = shutil.copytree(folder, tmp_path / 'other')
    state['optimizer']['param_groups'][0].update(maximize=True, weight_decay=5.)
    torch.save(state, other / 'state.pt')
    for f in (folder, other):
        assert resume(f) == 0
    expected, found = (load(f / 'model.pt') for f in (folder, other))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize('name, first', [('log.csv', '5'), ('validation.csv', '6')])
def test_log_with_other_columns_is_moved_aside(name, first, resumable):
    folder, _ = resumable
    (folder / name).write_bytes(b'step,loss\n1,2\n')
    assert resume(folder) == 0 and rows(folder, name)[0]['step'] == first
    assert (folder / f'{name}.1').read_bytes() == b'step,loss\n1,2\n'


@pytest.mark.parametrize('name', ['log.csv', 'validation.csv'])
@pytest.mark.parametrize('content', [b'\xff\xfe', b'a' * 200_000, None])
def test_unreadable_log_is_reported(content, name, resumable):
    folder, _ = resumable
    path = folder / name
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content)
    if content is None:
        with pytest.raises(UserError, match=f'{name} cannot be written .Is a directory.; check'):
            resume(folder)
        return
    assert resume(folder) == 0
    assert (folder / f'{name}.1').read_bytes() == content


def test_a_run_is_trained_by_one_process_at_a_time(slow_script, unbroken, tmp_path):
    folder = tmp_path / 'run'
    process = Script(slow_script, *options(folder, *WORKER))
    wait_for_rows(process, folder, 2)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match='--save_path .*run: another process is training there; '
                                        'stop it, or use another folder'):
        resume(folder)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert resume(folder) == 0  # a killed process has no lock
    assert not list(folder.glob('.*'))
    assert_same_end(folder, unbroken)


def test_configuration_without_seed_is_not_resumed(resumable):
    folder, _ = resumable
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'seed': None}))
    with pytest.raises(UserError, match='config.json has no seed'):
        resume(folder)
