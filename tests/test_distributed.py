"""Several processes on CPUs: the numbers of one process, files written once, ends reported once.

A few jobs are started by the real launchers; the others by `processes`, without importing PyTorch
anew in each process.
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from processes import Script, free_port, patched, run_job, start_job
from test_evaluation import PATCH

import train
from checkpoint import load
from conftest import ROOT, TINY, steps, wait_for_rows
from distributed import World, join
from files import UserError

# Five videos per batch: parts of different sizes for two and three processes
OPTIONS = [*TINY, *steps(8, 4), '--batch_size', '5', '--val_interval', '6', '--n_samples_test', '3']
TORCHRUN = [sys.executable, '-m', 'torch.distributed.run']
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}
LOST = 'process 0 exits because it lost another one'


def options(folder, *more):
    return [*OPTIONS, '--data_dir', str(folder.parent), '--save_path', str(folder), *more]


def launch(launcher, *argv, script='train.py'):
    return subprocess.Popen([*launcher, str(script), *map(str, argv)], cwd=ROOT, env=ENV, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


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
        assert expected.keys() == found.keys()
        difference = torch.cat([(expected[k] - found[k]).double().flatten().abs()
                                for k in expected])
        # Where a gradient is all rounding, Adam still moves the weight by the learning rate
        assert (difference > 1e-5).double().mean() < 0.01 and difference.max() < 2e-3
    expected, found = (
        torch.cat([s['exp_avg'].flatten()
                   for s in load(f / 'state.pt')['optimizer']['state'].values()])
        for f in (reference, folder))
    assert (expected - found).norm() < 1e-4 * expected.norm()  # mean gradients, at their scale
    for expected, found in zip(rows(reference), rows(folder), strict=True):
        for column in expected.keys() - {'steps_per_s'}:
            if expected[column]:
                value = pytest.approx(float(expected[column]), rel=1e-5)
                assert float(found[column]) == value
            else:
                assert not found[column]


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
    message = ('--device 0 1: 2 devices, but 1 process .* '
               'torchrun --nproc_per_node=2 … --device 0 1')
    with pytest.raises(UserError, match=message):
        World().device([0, 1])
    with pytest.raises(UserError, match='--device 0: 1 device, but 2 processes'):
        World(0, 2, 0, 2).device([0])
    with pytest.raises(UserError, match='a CUDA device can serve only one process'):
        World(0, 2, 0, 2).device([1, 1])
    with pytest.raises(UserError, match='--device 97: '):
        second.device([96, 97])


# Real launchers

def test_torchrun_trains_as_one_process(alone, tmp_path):
    folder = tmp_path / 'run'
    job = launch([*TORCHRUN, '--standalone', '--nproc_per_node=2'], *options(folder))
    out, err = job.communicate(timeout=240)
    assert job.returncode == 0, err
    assert_same_run(folder, alone)
    assert 'strides' not in err  # no warning of DDP about the strides of gradients
    assert out.count('training on') == out.count('done:') == 1 and 'and 1 more' in out

    def names(f):
        return {p.name for p in f.iterdir() if 'tfevents' not in p.name}
    assert names(folder) == names(alone)
    assert len(list(folder.glob('*tfevents*'))) == 1


def test_published_launcher_with_a_list_of_devices(alone, tmp_path):
    """`torch.distributed.launch` passes --local-rank."""
    folder = tmp_path / 'run'
    launcher = [sys.executable, '-m', 'torch.distributed.launch', '--nproc_per_node=2',
                f'--master_port={free_port()}']
    job = launch(launcher, '--device', 'cpu', 'cpu', *options(folder))
    _, err = job.communicate(timeout=240)
    assert job.returncode == 0, err
    assert_same_run(folder, alone)


def test_failing_machine_ends_the_other_one(tmp_path):
    """Even during a long validation; a launcher only stops the processes of its own machine."""
    script = patched(tmp_path, '''
def best_futures(*args):
    if os.environ['RANK'] == '1':
        raise ValueError('a message of process 1')
    time.sleep(600)
validation.best_futures = best_futures
''')
    launcher = [*TORCHRUN, '--nnodes=2', '--nproc_per_node=1', '--rdzv_backend=c10d',
                '--rdzv_id=job', f'--rdzv_endpoint=127.0.0.1:{free_port()}']
    jobs = [launch(launcher, *options(tmp_path / name / 'run', *steps(1, 0)), script=script)
            for name in ('one', 'two')]
    text = ''.join(job.communicate(timeout=240)[1] for job in jobs)
    assert [job.returncode for job in jobs] == [1, 1]
    assert 'ValueError: a message of process 1' in text and text.count(LOST) == 1


def test_sigterm_to_the_launcher_saves_the_state_once(tmp_path):
    folder, saves = tmp_path / 'run', tmp_path / 'saves'
    script = patched(tmp_path, f'''
def counting(function):
    def call(path, value):
        open({str(saves)!r}, 'a').write(path.name.strip('.').split('.pt')[0] + '.pt\\n')
        function(path, value)
    return call
state.save, state.write = counting(state.save), counting(state.write)
''')
    never = ['--state_interval', '10000', '--val_interval', '10000']
    job = launch([*TORCHRUN, '--standalone', '--nproc_per_node=2'],
                 *options(folder, *steps(5000, 0), *never), script=script)
    wait_for_rows(job, folder, 5)
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate(timeout=240)
    ours = err.split('SignalException')[0].split('torch/distributed')[0]  # not the launcher's
    assert 'Traceback' not in ours
    step = load(folder / 'state.pt')['step']
    assert 5 <= step < 5000 and out.count(f'stopped after step {step}; continue with') == 1
    assert saves.read_text() == 'state.pt\nmodel.pt\n'


def test_bad_input_reaches_the_launcher(tmp_path):
    job = launch([*TORCHRUN, '--standalone', '--nproc_per_node=2'],
                 *options(tmp_path / 'run', '--nt_cond', '1'))
    _, err = job.communicate(timeout=240)
    assert job.returncode == 1 and re.search(r'exitcode\s*: 2', err)
    assert len(re.findall('^error: --nt_cond 1 is less than --nt_inf 2', err, re.M)) == 1


# Machines and processes, without launchers

def test_two_machines_without_a_common_disk_train_as_one_process(alone, tmp_path):
    folders = [tmp_path / 'one' / 'run', tmp_path / 'two' / 'run']
    codes, _, errs = run_job('train.py', *map(options, folders), local_size=1)
    assert codes == [0, 0], errs
    assert [f.exists() for f in folders] == [True, False]  # process 0 writes
    assert_same_run(folders[0], alone)


def test_two_machines_start_from_the_weights_of_one(alone, tmp_path):
    """Only process 0 needs the file."""
    folders = [tmp_path / 'one' / 'run', tmp_path / 'two' / 'run']
    weights = [alone / 'model.pt', tmp_path / 'missing.pt']
    argvs = [options(f, '--weights', w) for f, w in zip(folders, weights)]
    codes, _, errs = run_job('train.py', *argvs, local_size=1)
    assert codes == [0, 0], errs
    reference = tmp_path / 'three' / 'run'
    assert train.main(options(reference, '--weights', str(weights[0]))) == 0
    loss, expected, scratch = (float(rows(f)[0]['loss']) for f in (folders[0], reference, alone))
    assert loss == pytest.approx(expected, rel=1e-6) and loss != pytest.approx(scratch, rel=1e-5)


@pytest.mark.parametrize('more', [['--lr', '0.5'], ['--dry_run']])
def test_machines_started_with_different_options_stop(more, tmp_path):
    argv = options(tmp_path / 'run')
    codes, _, errs = run_job('train.py', argv, [*argv, *more], local_size=1)
    assert 0 not in codes
    message = f'error: process \\d has {more[0].removeprefix("--")} '
    assert len(re.findall(message, ''.join(errs))) == 1
    assert not (tmp_path / 'run').exists()


def test_machines_with_different_weights_stop(run_dir, data_dir, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'config.json').write_text((run_dir / 'config.json').read_text())
    torch.save({k: v + 1 for k, v in load(run_dir / 'model.pt').items()}, other / 'model.pt')
    argv = ['--data_dir', data_dir, '--nt_gen', '8', '--n_samples', '1', '--n_videos', '2',
            '--metrics', 'psnr', '--out_dir', tmp_path / 'out']
    codes, _, errs = run_job('test.py', [*argv, '--xp_dir', run_dir], [*argv, '--xp_dir', other],
                             local_size=1)
    assert 0 not in codes and ''.join(errs).count('checkpoint_sha256') == 1
    assert not list(tmp_path.glob('out/*'))


def test_missing_seed_is_chosen_once_and_shared(tmp_path):
    """Each seed has its own first loss. (Gradients of a seed that nobody chose cannot be compared:
    where an activation lies on the kink of a ReLU, they depend on rounding.)"""
    folder, again = tmp_path / 'run', tmp_path / 'again' / 'run'
    argv = options(folder, *steps(1, 0))
    position = argv.index('--seed')
    run_together(2, *argv[:position], *argv[position + 2:])
    seed = json.loads((folder / 'config.json').read_text())['seed']
    assert train.main(options(again, *steps(1, 0), '--seed', str(seed))) == 0
    expected, found = (float(rows(f)[0]['loss']) for f in (again, folder))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('more, sentence', [
    (['--batch_size', '3', '--accumulate', '2'],
     r'--batch_size 3: 2 processes with 2 parts each need at least one video each'),
    (['--device', '0'], r'--device 0: 1 device, but 2 processes'),
])
def test_bad_input_is_reported_once(more, sentence, tmp_path):
    _, err = run_together(2, *options(tmp_path / 'run'), *more, code=2)
    assert len(re.findall('^error: ', err, re.M)) == 1
    assert re.search(f'^error: {sentence}', err, re.M)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('changes, found', [
    ({'WORLD_SIZE': 'x'}, "WORLD_SIZE is 'x'"), ({'RANK': None}, "RANK is ''"),
    ({'LOCAL_RANK': '-1'}, "LOCAL_RANK is '-1'"), ({'MASTER_ADDR': None}, "MASTER_ADDR is ''")])
def test_incomplete_environment_of_a_launcher(changes, found, monkeypatch):
    whole = {'RANK': '0', 'WORLD_SIZE': '2', 'LOCAL_RANK': '0', 'LOCAL_WORLD_SIZE': '2',
             'MASTER_ADDR': 'localhost', 'MASTER_PORT': '9'}
    for name, value in {**whole, **changes}.items():
        monkeypatch.delenv(name, False) if value is None else monkeypatch.setenv(name, value)
    message = f'but {found}; start the processes with torchrun'
    with pytest.raises(UserError, match=message), join():
        pass


@pytest.mark.parametrize('before, after', [(1, 3), (2, 1)])
def test_resume_with_another_number_of_processes(before, after, alone, tmp_path):
    folder = tmp_path / 'run'
    script = patched(tmp_path, '''
step = loop.Trainer.train_step
def stopping(self, *args):
    if self.step == 6 and self.world.rank == self.world.size - 1:  # only one process is signalled
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, *args)
loop.Trainer.train_step = stopping
''')

    def run(n, *argv, script='train.py', code=0):
        if n > 1:
            return run_together(n, *argv, script=script, code=code)[0]
        job = Script(script, *argv)
        out, err = job.communicate()
        assert job.returncode == code, err
        return out
    out = run(before, *options(folder), script=script, code=143)
    assert out.count('stopped after step 7') == 1
    assert load(folder / 'state.pt')['step'] == 7
    out = run(after, '--resume', '--save_path', folder)
    names = {1: '1 process', 2: '2 processes', 3: '3 processes'}
    assert out.count(f'note: {names[after]} instead of {names[before]} share a batch') == 1
    assert_same_run(folder, alone)


def test_killed_process_ends_the_job(tmp_path):
    folder = tmp_path / 'run'
    jobs = start_job('train.py', *[options(folder, *steps(5000, 0), '--n_workers', '0')] * 2)
    wait_for_rows(jobs[0], folder, 3)
    jobs[1].send_signal(signal.SIGKILL)
    (_, err), _ = (job.communicate() for job in jobs)
    assert jobs[0].returncode == 1 and LOST in err


def test_failing_process_ends_the_job_with_its_message(tmp_path):
    script = patched(tmp_path, '''
step = loop.Trainer.train_step
def failing(self, *args):
    if self.step == 3 and self.world.rank == 1:
        raise ValueError('a message of process 1')
    return step(self, *args)
loop.Trainer.train_step = failing
''')
    _, err = run_together(2, *options(tmp_path / 'run', *steps(5000, 0)), script=script, code=1)
    assert 'ValueError: a message of process 1' in err and LOST in err


def test_dead_data_worker_ends_the_job(tmp_path):
    script = patched(tmp_path, '''
from data import stream
getitem = stream.BatchStream.__getitem__
def dying(self, videos):
    if self.stream == 'train' and videos.start >= 20 and os.environ['RANK'] == '1':
        os.kill(os.getpid(), signal.SIGKILL)
    return getitem(self, videos)
stream.BatchStream.__getitem__ = dying
''')
    argv = options(tmp_path / 'run', *steps(5000, 0), '--n_workers', '1')
    codes, _, errs = run_job(script, argv, argv)
    assert codes == [1, 2] and LOST in errs[0]
    assert 'error: a process that loads data died (' in errs[1] and 'Traceback' not in errs[1]


def contents(folder):
    return {p.relative_to(folder): p for p in folder.rglob('*') if p.is_file()}


def test_evaluation_is_shared(run_dir, data_dir, tmp_path):
    argv = ['--xp_dir', run_dir, '--data_dir', data_dir, '--nt_gen', '8', '--n_samples', '3',
            '--n_videos', '10', '--batch_size', '3', '--metrics', 'psnr', 'ssim',
            '--n_pictures', '1', '--no-report', '--out_dir']
    job = Script('test.py', *argv, tmp_path / 'one')
    assert job.communicate() and job.returncode == 0
    out, _ = run_together(3, *argv, tmp_path / 'three', script='test.py')
    assert out.count('PSNR') == 1 and 'and 2 more' in out
    one, three = contents(tmp_path / 'one'), contents(tmp_path / 'three')
    assert one.keys() == three.keys() and len(one) == 13
    for name in (n for n in one if n.suffix == '.npz'):
        atol = 0 if name.name == 'results.npz' else 1  # levels of quantised frames
        with np.load(one[name]) as expected, np.load(three[name]) as found:
            assert expected.files == found.files
            for key in expected.files:
                np.testing.assert_allclose(found[key].astype(float), expected[key].astype(float),
                                           rtol=1e-5, atol=atol)
    expected, found = (json.loads((tmp_path / n / 'results.json').read_text())['protocol']
                       for n in ('one', 'three'))
    assert expected == found


def test_evaluation_of_another_protocol_stops_all_processes(run_dir, data_dir, tmp_path):
    """Also where there are fewer batches than processes."""
    argv = ['--xp_dir', run_dir, '--data_dir', data_dir, '--nt_gen', '8', '--metrics', 'psnr',
            '--n_pictures', '0', '--out_dir', tmp_path, '--n_videos']
    run_together(2, *argv, '4', '--n_samples', '1', script='test.py')
    before = {name: path.read_bytes() for name, path in contents(tmp_path).items()}
    _, err = run_together(2, *argv, '4', '--n_samples', '2', script='test.py', code=2)
    message = '^error: .*/results.json is .* samples 1, .* 2'
    assert len(re.findall(message, err, re.M)) == err.count('error: ') == 1
    assert {name: path.read_bytes() for name, path in contents(tmp_path).items()} == before


def test_interrupted_evaluation_continues_with_more_processes(run_dir, data_dir, tmp_path):
    argv = ['--xp_dir', run_dir, '--data_dir', data_dir, '--nt_gen', '8', '--n_samples', '3',
            '--n_videos', '10', '--batch_size', '2', '--metrics', 'psnr', '--no-report',
            '--out_dir']
    one, several = tmp_path / 'one', tmp_path / 'several'
    patched = tmp_path / 'patched.py'
    patched.write_text(PATCH)
    threads = {'OMP_NUM_THREADS': '1'}
    assert Script('test.py', *argv, one, env=threads).communicate()
    job = Script(patched, *argv, several, env={'SIGNAL': '15', **threads})
    assert 'of 2 of 10 videos' in job.communicate()[0] and job.returncode == 143
    out, _ = run_together(3, *argv, several, script='test.py')
    assert 'continuing: 2 of 10 videos are done' in out and out.count('PSNR') == 1
    expected, found = ({name: path.read_bytes() for name, path in contents(folder).items()}
                       for folder in (one, several))
    assert found == expected and len(found) == 19


TASKS = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from distributed import Stopped, join, share_tasks

with join() as world:
    done = {{}}
    def run(task):
        if world.rank == 1:
            time.sleep(2)
        if len(sys.argv) > 1 and task == 5:
            raise Stopped
        time.sleep(0.02)
        return f'{{task}} by {{world.rank}}'.encode() * 1000
    stopped = share_tasks(world, range(40), run, done.__setitem__)
    if world.main:
        print(stopped, sorted(done))
        ranks = [int(result[-1:]) for task, result in done.items()]
        assert all(r == f'{{t}} by {{k}}'.encode() * 1000 for (t, r), k in zip(done.items(), ranks))
        print(*map(ranks.count, range(3)))
"""


def test_free_processes_take_the_next_task(tmp_path):
    """One that is a hundred times slower than the others gets fewer tasks, and none is lost."""
    script = tmp_path / 'tasks.py'
    script.write_text(TASKS)
    out, _ = run_together(3, script=script)
    stopped, counts = out.splitlines()
    assert stopped == f'False {list(range(40))}'
    first, slow, last = map(int, counts.split())
    assert first + slow + last == 40 and 1 <= slow < min(first, last)
    out, _ = run_together(3, 'stop', script=script)
    stopped, tasks = out.splitlines()[0].split(' ', 1)
    assert stopped == 'True' and '5' not in tasks.strip('[]').split(', ')


def test_error_of_a_delivery_ends_the_job(tmp_path):
    script = tmp_path / 'tasks.py'
    script.write_text(TASKS.replace('done.__setitem__', 'lambda task, result: 1 / 0'))
    codes, _, errs = run_job(script, *[[]] * 3)
    assert all(codes) and 'ZeroDivisionError' in errs[0]
