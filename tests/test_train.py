"""Training runs: files, logs, resuming after any kind of end, what must not be lost."""

import csv
import errno
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
from types import ModuleType, SimpleNamespace
from unittest import mock

from files import UserError

import filelock
import numpy as np
import pytest
import torch

import train
from args import load_config
from conftest import TINY, failing, nth, same, steps
from model import build_model
from processes import Script, patched
from training import validation
from utils import load, load_weights, save

# 12 steps, a state every 4, a validation of two videos every 6
OPTIONS = [*TINY, *steps(8, 4), '--nx', '32', '--batch_size_test', '1', '--val_interval', '6',
           '--state_interval', '4', '--n_workers', '0']
NO_STATE = ['--state_interval', '1000']
WITHOUT_SEED = [arg for a, b in zip(OPTIONS[::2], OPTIONS[1::2]) if a != '--seed' for arg in (a, b)]


def options(folder, *more):
    return [*OPTIONS, '--data_dir', str(folder.parent), '--save_path', str(folder), *more]


def resume(folder, *more):
    return train.main(['--resume', '--save_path', str(folder), *more])


def rows(folder, name='log.csv'):
    """Rows of a table of a run, but for the speed."""
    with open(folder / name, newline='') as f:
        return [{k: v for k, v in row.items() if k != 'steps_per_s'} for row in csv.DictReader(f)]


def validations(folder):
    return rows(folder, 'validation.csv')


def step_of(folder):
    return load(folder / 'state.pt')['progress']['step']


def assert_same_end(folder, reference):
    """Compare weights, optimiser, progress, logs and pictures of two runs bit for bit."""
    for name in ('model.pt', 'model_best.pt', 'state.pt'):
        assert same(load(folder / name), load(reference / name))
    for name in ('log.csv', 'validation.csv'):
        assert rows(folder, name) == rows(reference, name)
    expected, found = ({path.name: path.read_bytes() for path in (f / 'validation').iterdir()}
                       for f in (reference, folder))
    assert found == expected


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module', autouse=True)
def few_pictures():
    """Drawing takes longer than training such a model."""
    with mock.patch.object(validation, 'N_SHOWN', 1):
        yield


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    """Folder of a complete run."""
    folder = tmp_path_factory.mktemp('unbroken') / 'run'
    assert train.main(options(folder, '--n_workers', '1')) == 0
    return folder


@pytest.fixture(scope='module')
def cut_run(tmp_path_factory):
    """Folder of the same run, cut in step 11; its last state is of step 8."""
    folder = tmp_path_factory.mktemp('cut') / 'run'
    with failing(train, 'loss', nth(11)), pytest.raises(KeyboardInterrupt):
        train.main(options(folder))
    return folder


@pytest.fixture
def cut(cut_run, tmp_path):
    """A copy of the run that was cut."""
    return shutil.copytree(cut_run, tmp_path / 'cut')


# Files and logs

def test_files_of_a_run(run_dir):
    names = {p.name for p in run_dir.iterdir() if 'tfevents' not in p.name}
    assert names == {
        '.train.lock', 'config.json', 'log.csv', 'model.pt', 'model_best.pt', 'model_6.pt',
        'model_12.pt', 'state.pt', 'validation', 'validation.csv'}
    assert {p.name for p in (run_dir / 'validation').iterdir()} == {'step_10.png', 'step_15.png'}
    model = build_model(load_config(run_dir))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for name in ('model_6.pt', 'model.pt'):
        load_weights(model, run_dir / name)  # plain state dicts
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_log_has_every_term_and_the_schedule(unbroken):
    training = rows(unbroken)
    assert [int(r['step']) for r in training] == list(range(1, 13))
    for r in training:
        loss, *terms = (float(r[k]) for k in ('loss', 'nll', 'kl_y_0', 'kl_z', 'res'))
        assert loss == pytest.approx(sum(terms), rel=1e-5)
        assert float(r['lr']) == pytest.approx(3e-4 * max(0, 1 - max(0, int(r['step']) - 8) / 4))
    table = validations(unbroken)
    assert [int(r['step']) for r in table] == [6, 12]
    assert float(table[-1]['best_psnr']) == max(float(r['val_psnr']) for r in table)
    for r in table:
        by_frame = [float(r[f'psnr_{t}']) for t in (3, 4)]
        assert float(r['val_psnr']) == pytest.approx(np.mean(by_frame), rel=1e-5)
        assert -1 < float(r['val_ssim']) < 1 and len(r) == 6


def test_tensorboard_shows_the_log_and_pictures(unbroken, monkeypatch):
    # Otherwise, it imports TensorFlow
    monkeypatch.setitem(sys.modules, 'tensorboard.compat.notf', ModuleType('notf'))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(unbroken), {'images': 0, 'scalars': 0}).Reload()
    for folder, table in (('train', rows(unbroken)), ('validation', validations(unbroken))):
        for name in table[0].keys() - {'step', 'psnr_3', 'psnr_4'}:
            found = events.Scalars(f'{folder}/{name}')
            assert [e.step for e in found] == [int(r['step']) for r in table]
            np.testing.assert_allclose([e.value for e in found],
                                       [float(r[name]) for r in table], 1e-5)
    assert [e.step for e in events.Images('validation/futures')] == [6, 12]


def test_log_averages_over_its_interval(unbroken, tmp_path):
    """Also across a state, and the end of a process, in the middle of the interval."""
    folder = tmp_path / 'run'
    with failing(train, 'loss', nth(6)), pytest.raises(KeyboardInterrupt):
        train.main(options(folder, '--log_interval', '6'))
    assert step_of(folder) == 4 and resume(folder) == 0
    found, steps_ = rows(folder), rows(unbroken)
    assert [r['step'] for r in found] == ['6', '12']
    for row, part in zip(found, (steps_[:6], steps_[6:])):
        for name in ('loss', 'nll', 'kl_z', 'res'):
            expected = np.mean([float(r[name]) for r in part])
            assert float(row[name]) == pytest.approx(expected, rel=1e-6)


def test_what_a_run_prints(tmp_path, call):
    folder = tmp_path / 'run'
    code, out, err = call(train.main, *options(folder, *steps(6, 0)))
    last, (scores,) = rows(folder)[-1], validations(folder)
    shown = dict(re.findall(r'([\w/]+)=([-.\de]+)', err.splitlines()[-1]))
    assert list(shown) == ['loss/pixel', 'nll/pixel', 'kl_y_0', 'kl_z', 'val']
    for name, size in (('loss/pixel', 5 * 32 ** 2), ('nll/pixel', 5 * 32 ** 2), ('kl_z', 1)):
        value = float(last[name.split('/')[0]]) / size
        assert float(shown[name]) == pytest.approx(value, rel=1e-3) and len(shown[name]) < 8
    psnr, ssim = float(scores['val_psnr']), float(scores['val_ssim'])
    assert code == 0 and '\x1b' not in err and 'note' not in out
    assert re.search(r'^training on CPU .* parameters, steps 1 to 6, float32, seed 3', out, re.M)
    assert f'step 6: validation PSNR {psnr:.2f} dB, best {psnr:.2f} dB, SSIM {ssim:.4f}\n' in out
    assert f'done: best validation PSNR {psnr:.2f} dB' in out


def test_learning_rate_of_each_update():
    def rates(updates, n_iter):
        config = SimpleNamespace(lr=2., lr_scheduling_burnin=3, lr_scheduling_n_iter=n_iter)
        return [train.learning_rate(k, config) for k in updates]
    assert rates(range(1, 9), 4) == [2, 2, 2, 1.5, 1, 0.5, 0, 0]
    assert rates([3], 0) == [2]


def test_slow_run_saves_states_by_time_and_says_how_long_it_takes(tmp_path, monkeypatch, capsys):
    """With steps of 200 seconds, which are logged as such."""
    folder, saved, clock = tmp_path / 'run', [], [0]

    def draw(*args, **kwargs):
        clock[0] += 200
        return stream_generator(*args, **kwargs)
    stream_generator, write_state = train.stream_generator, train.write_state
    monkeypatch.setattr(train, 'stream_generator', draw)
    monkeypatch.setattr(train, 'time', SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(train, 'write_state', lambda *args: [
        saved.append(args[-1].step), write_state(*args)])
    argv = options(folder, *steps(2005, 0), *NO_STATE, '--val_interval', '3000',
                   '--log_interval', '2')
    with failing(train, 'loss', nth(13)), pytest.raises(KeyboardInterrupt):
        train.main(argv)
    assert saved == [4, 8, 12] and train.STATE_SECONDS == 600
    with open(folder / 'log.csv', newline='') as f:
        assert {float(r['steps_per_s']) for r in csv.DictReader(f)} == {1 / 200}
    note = 'note: at this speed, the rest takes 111 hours; configs/smmnist_cpu.yaml is a small'
    assert capsys.readouterr().out.count(note) == 1


@pytest.mark.parametrize('more', [
    ['--archi', 'vgg', '--skipco', '--n_euler_steps', '2'], ['--skipco', '--deterministic']])
def test_other_architectures_train(more, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    folder = tmp_path / 'run'
    assert train.main(options(folder, *more, *steps(1, 1), '--val_interval', '2')) == 0
    assert len(validations(folder)) == 1
    assert torch.backends.cudnn.benchmark  # shapes are constant


def test_runs_are_repeatable_and_seeds_differ(unbroken, tmp_path):
    assert train.main(options(tmp_path / 'same')) == 0  # with another number of workers
    assert_same_end(tmp_path / 'same', unbroken)
    folder = tmp_path / 'other'
    assert train.main([*WITHOUT_SEED, *steps(1, 0), '--data_dir', str(tmp_path),
                       '--save_path', str(folder)]) == 0
    assert 0 <= json.loads((folder / 'config.json').read_text())['seed'] < 2 ** 32
    assert rows(folder)[0]['loss'] != rows(unbroken)[0]['loss']


def test_dry_run_writes_nothing(tmp_path, capsys):
    assert train.main(options(tmp_path / 'run', '--dry_run')) == 0
    out = capsys.readouterr().out
    config, _ = json.JSONDecoder().raw_decode(out)
    assert config['nf'] == 2 and re.search(r'^[\d,]+ parameters; nothing was written', out, re.M)
    assert not list(tmp_path.iterdir())


# Ends of all kinds, after which a run resumes bit for bit

KILLS = {
    'in the first steps': ("kill(train, 'loss', 3)", None),
    'while its first state is written': ('''
def half(value, f):
    f.write(b'half of a state')
    f.flush()
    os.kill(os.getpid(), signal.SIGKILL)
train.torch.save = half
''', None),
    'before its first state is renamed': ("kill(os, 'replace', 1, 'state.pt')", None),
    'between its first state and model': ("kill(os, 'replace', 1, 'model.pt')", 4),
    'in a validation': ("kill(validation, 'score_futures', 1)", 4),
    'after a validation': ("kill(train, 'loss', 4)", 4),
    'between a later state and model': ("kill(os, 'replace', 2, 'model.pt')", 8),
    'in a later step': ("kill(train, 'loss', 3)", 8),
    'before the last validation is in the state': ("kill(train, 'write_state', 3)", 12),
}


def test_killed_run_resumes_bit_for_bit(unbroken, tmp_path):
    """Killed again and again, at each of these places: nothing is lost but steps."""
    folder, out = tmp_path / 'run', {}
    for place, (code, step) in KILLS.items():
        script = patched(tmp_path, f"""
def kill(owner, name, n, file=None):
    function, calls = getattr(owner, name), []
    def call(*args, **kwargs):
        calls.append(file is None or args[1].name == file)
        if sum(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    setattr(owner, name, call)
{code}
validation.N_SHOWN = 1
""")
        argv = ['--resume', '--save_path', folder] if out else options(folder)
        job = Script(script, *argv)
        out[place], err = job.communicate()
        assert job.returncode == -signal.SIGKILL, (place, err)
        assert (step_of(folder) if (folder / 'state.pt').exists() else None) == step, place
        with open(folder / 'log.csv', 'a') as f:
            f.write('11,1.0,2')  # a truncated row
    assert resume(folder) == 0
    assert not list(folder.glob('*.tmp')) and not list(folder.glob('.*.tmp'))
    assert_same_end(folder, unbroken)
    # What had been printed arrived in the file, and a start from step 1 was announced
    note = 'the run ended before its first state, and starts again at step 1'
    assert [note in text for text in out.values()] == [False, *[True] * 3, *[False] * 5]
    assert 'step 6: validation PSNR' in out['after a validation']


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signalled_run_saves_its_state_and_resumes_bit_for_bit(
        number, code, unbroken, tmp_path, call):
    folder = tmp_path / 'run'
    before = signal.getsignal(number)

    def signalled(*args):
        if when(*args):
            signal.raise_signal(number)
    when = nth(7)
    with failing(train, 'loss', signalled):
        result = call(train.main, *options(folder, *NO_STATE, '--n_workers', '1'))
    assert result.code == code and step_of(folder) == 7 and signal.getsignal(number) == before
    assert ('stopped after step 7; continue with: '
            f'python train.py --resume --save_path {folder}\n') in result.out
    # Where it was saved, and how often, does not matter
    assert resume(folder, '--n_workers', '0', '--state_interval', '4') == 0
    assert_same_end(folder, unbroken)


@pytest.mark.parametrize('step', [6, 12])  # the first validation, and the one at the end
def test_run_stopped_during_validation_repeats_it(step, unbroken, tmp_path):
    folder = tmp_path / 'run'

    def signalled(*args):
        if when(*args):
            signal.raise_signal(signal.SIGTERM)
    when = nth(2 * step // 6 - 1)  # first of the two batches
    with failing(validation, 'score_futures', signalled):
        assert train.main(options(folder)) == 143
    progress = load(folder / 'state.pt')['progress']
    assert progress['step'] == step and progress['validated'] == step - 6
    assert resume(folder) == 0
    assert_same_end(folder, unbroken)


# Failures

def test_full_disk_while_saving_is_a_sentence_and_loses_nothing(unbroken, tmp_path, call):
    folder = tmp_path / 'run'
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for name, call_of_save, step, argv in (
            ('model_best.pt', 3, 4, options(folder)),
            ('model.pt', 5, 8, ['--resume', '--save_path', folder])):
        with failing(torch, 'save', nth(call_of_save), full):
            result = call(train.main, *argv)
        message = f'^error: {folder}/{name}(: | cannot be written .)No space left on device'
        assert result.code == 2 and re.search(message, result.err, re.M)
        assert step_of(folder) == step and not list(folder.glob('.*.tmp'))
    with failing(torch, 'save', nth(1), full), pytest.raises(
            UserError, match='state.pt cannot be written .No space left on device.; free space, '
                             'or check permissions, then continue with --resume'):
        resume(folder, '--state_interval', '9')
    assert step_of(folder) == 8 and resume(folder) == 0
    assert_same_end(folder, unbroken)


def test_truncated_file_is_reported(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 1000, before[1]))  # an almost full disk
    try:
        with pytest.raises(OSError, match='File too large: .*weights.pt'):
            save(tmp_path / 'weights.pt', {str(i): torch.zeros(500) for i in range(7)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def assert_finite(folder, *names):
    assert {p.name for p in folder.glob('*.pt')} == set(names)
    for name in names:
        value = load(folder / name)
        assert all(v.isfinite().all() for v in value.get('model', value).values())


@pytest.mark.parametrize('more, interval', [
    ([], '1 to 8'), (['--log_interval', '3'], '7 to 8'), (['--log_interval', '1'], '7 to 7'),
    (['--chkpt_interval', '7'], '1 to 7'), (['--val_interval', '7'], '1 to 7')])
def test_loss_that_is_not_finite_ends_the_run(more, interval, tmp_path, monkeypatch, call):
    """Before anything of it is saved, whatever would be saved first."""
    folder, loss, when = tmp_path / 'run', train.loss, nth(7)

    def spoiled(*args, **kwargs):
        losses = loss(*args, **kwargs)
        return losses._replace(loss=losses.loss * math.nan) if when() else losses
    monkeypatch.setattr(train, 'loss', spoiled)
    never = ['--log_interval', '100', '--val_interval', '4']
    result = call(train.main, *options(folder, *never, *more))
    assert result.code == 1
    assert (f'error: the loss of steps {interval} is not finite; the last good state is of step 4; '
            'a lower --lr may help') in result.err
    best = ['model_best.pt'] if '--val_interval' not in more else []
    assert_finite(folder, 'state.pt', 'model.pt', *best)
    assert step_of(folder) == 4


@pytest.mark.parametrize('more', [[], ['--chkpt_interval', '7'], ['--val_interval', '7']])
def test_weights_that_are_not_finite_are_not_saved(more, tmp_path, monkeypatch, call):
    """Although all losses are finite."""
    folder, step, when = tmp_path / 'run', torch.optim.Adam.step, nth(7 if more else 8)

    def spoiling(self, *args, **kwargs):
        step(self, *args, **kwargs)
        if when():
            self.param_groups[0]['params'][0].data[0] = math.inf
    monkeypatch.setattr(torch.optim.Adam, 'step', spoiling)
    result = call(train.main, *options(folder, '--val_interval', '4', *more))
    assert result.code == 1
    assert (f'error: a weight after step {7 if more else 8} is not finite; '
            'the last good state is of step 4') in result.err
    best = ['model_best.pt'] if '--val_interval' not in more else []
    assert_finite(folder, 'state.pt', 'model.pt', *best)


def test_run_that_saved_nothing_makes_way_for_another(tmp_path, call):
    folder = tmp_path / 'run'
    folder.mkdir()
    for name in ('events.out.tfevents.1.other', 'notes.txt'):
        (folder / name).write_text(name)
    before = contents(folder)
    result = call(train.main, *options(folder, '--obs_scale', '1e-30'))
    assert result.code == 1
    assert 'the loss of steps 1 to 1 is not finite; check --obs_scale' in result.err
    assert train.main(options(folder, *steps(2, 0), '--log_interval', '1')) == 0
    assert before.items() <= contents(folder).items()
    assert [row['step'] for row in rows(folder)] == ['1', '2']
    assert json.loads((folder / 'config.json').read_text())['obs_scale'] == 1


# Weights to start from

def test_new_run_starts_from_weights(unbroken, tmp_path):
    weights = load(unbroken / 'model.pt')
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    save(tmp_path / 'half.pt', half)
    for file, expected in ((unbroken / 'model.pt', weights), (tmp_path / 'half.pt', half)):
        folder = tmp_path / file.stem
        argv = ['--weights', str(file), *steps(1, 0), '--lr', '1e-30']  # too small to matter
        assert train.main(options(folder, *argv)) == 0
        assert json.loads((folder / 'config.json').read_text())['weights'] == str(file)
        for name, value in load(folder / 'model.pt').items():
            assert value.dtype == (torch.int64 if 'tracked' in name else torch.float32)
            if 'running' not in name and 'tracked' not in name:
                assert torch.equal(value, expected[name].float())


def test_run_from_weights_resumes_without_them(unbroken, tmp_path):
    file, whole, cut = tmp_path / 'start.pt', tmp_path / 'whole', tmp_path / 'cut'
    shutil.copy(unbroken / 'model_best.pt', file)
    argv = [*steps(6, 0), '--weights', str(file)]
    assert train.main(options(whole, *argv)) == 0
    with failing(train, 'loss', nth(5)), pytest.raises(KeyboardInterrupt):
        train.main(options(cut, *argv))
    file.unlink()
    with pytest.raises(UserError, match='--resume: the run was started with weights .*start.pt, '
                                        'found other.pt'):
        resume(cut, '--weights', 'other.pt')
    assert resume(cut) == 0
    assert_same_end(cut, whole)
    assert rows(whole)[0]['loss'] != rows(unbroken)[0]['loss']


@pytest.mark.parametrize('argv, message', [
    (['model.pt', '--ny', '5'], 'model.pt does not fit the configuration .* parameters differ'),
    (['state.pt'], 'it is no plain state_dict'),
    (['none.pt'], 'No such file or directory: .*none.pt')])
def test_weights_that_do_not_fit_are_refused_before_files(argv, message, unbroken, tmp_path):
    argv = ['--weights', str(unbroken / argv[0]), *argv[1:]]
    with pytest.raises((UserError, OSError), match=message):
        train.main(options(tmp_path / 'run', *argv))
    assert [p.name for p in tmp_path.rglob('*') if p.is_file()] == ['.train.lock']


# What is refused

def test_errors_come_before_files(tmp_path):
    for more, message in (
            (['--device', '99'], '--device 99: .* CUDA devices found'),
            (['--batch_size', '3', '--accumulate', '4'], '--batch_size 3: 4 parts'),
            (['--torch_amp', '--amp_dtype', 'float16'], 'this CPU does not compute in float16'),
            (['--nt_cond', '1'], '--nt_cond 1 is less than --nt_inf 2')):
        with pytest.raises(UserError, match=message):
            train.main(options(tmp_path / 'run', *more))
    with pytest.raises(UserError, match='--resume needs --save_path'):
        train.main(['--resume'])
    assert not list(tmp_path.iterdir())


def test_complete_run_is_not_overwritten(unbroken, capsys):
    before = contents(unbroken)
    with pytest.raises(UserError, match='holds another run; continue it with --resume'):
        train.main(options(unbroken))
    assert resume(unbroken) == 0
    assert 'is complete: 12 steps' in capsys.readouterr().out
    assert contents(unbroken) == before


def test_logs_without_weights_are_not_lost(unbroken, tmp_path):
    for name in ('config.json', 'log.csv', 'validation.csv'):
        shutil.copy(unbroken / name, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match='holds another run'):
        train.main(options(tmp_path))
    assert before.items() <= contents(tmp_path).items()


def test_weights_without_a_state_are_not_lost(unbroken, tmp_path):
    for name in ('config.json', 'model.pt'):  # as those of a published model
        shutil.copy(unbroken / name, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match='--resume: .*state.pt is missing, but .*model.pt is there; '
                                        'start a new run from it, with --weights'):
        resume(tmp_path)
    assert before.items() <= contents(tmp_path).items()


def test_resume_refuses_another_configuration(cut):
    for more, message in ((['--ny', '5'], 'the run was started with ny 4, found 5'),
                          (['--weights', 'a.pt'], 'started with weights None, found a.pt')):
        with pytest.raises(UserError, match=message):
            resume(cut, *more)
    config = json.loads((cut / 'config.json').read_text())
    (cut / 'config.json').write_text(json.dumps({**config, 'lr': 0.5}))
    with pytest.raises(UserError, match='state.pt does not match config.json'):
        resume(cut)


def test_damaged_state_is_refused(cut):
    state = load(cut / 'state.pt')
    for content in (torch.zeros(3), {'model': {}}, {**state, 'optimizer': None},
                    {**state, 'progress': {}}, {**state, 'model': {}}):
        save(cut / 'state.pt', content)
        with pytest.raises(UserError, match='state.pt (is not a state of this run|does not match)'):
            resume(cut)
    with open(cut / 'state.pt', 'r+b') as f:
        f.truncate(1000)
    with pytest.raises(UserError, match='state.pt is not a readable weights file'):
        resume(cut)


def test_unreadable_log_is_reported(cut):
    (cut / 'log.csv').write_bytes(b'\xff\xfe')
    with pytest.raises(UserError, match='log.csv is not the log of a run .*; move it away'):
        resume(cut)
    assert (cut / 'log.csv').read_bytes() == b'\xff\xfe'


def test_a_run_is_trained_by_one_process_at_a_time(cut, unbroken):
    message = '--save_path .*cut: another process is training there; stop it, or use another'
    with filelock.FileLock(cut / '.train.lock'), pytest.raises(UserError, match=message):
        resume(cut)
    assert resume(cut) == 0
    assert (cut / '.train.lock').exists()  # removing it would let two others lock two files
    assert_same_end(cut, unbroken)
