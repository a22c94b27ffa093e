"""Several processes on CPUs, started by the launchers: the same numbers as one, files written once, ends told."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

import train
from conftest import ROOT, TINY, steps, wait_for_rows
from distributed import World, join
from files import UserError
from checkpoint import load

# Five videos a batch: parts of two and three. Batches by one process first, that downloads and errors happen once.
OPTIONS = [*TINY, *steps(8, 4), '--batch_size', '5', '--val_interval', '6', '--n_samples_test', '3']
RUN = [sys.executable, '-m', 'torch.distributed.run']
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}


def options(folder, *more):
    return [*OPTIONS, '--data_dir', str(folder.parent), '--save_path', str(folder), *more]


def start(*argv, launcher=(*RUN, '--standalone', '--nproc_per_node=2'), script='train.py'):
    return subprocess.Popen([*launcher, str(script), *map(str, argv)], cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*argv, code=0, **kwargs):
    process = start(*argv, **kwargs)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return out, err


def rows(folder):
    with open(folder / 'log.csv', newline='') as f:
        return list(csv.DictReader(f))


def assert_same_run(folder, reference):
    """Gradients, weights, loss curve, schedule and validation scores of two runs agree within the rounding of float32."""
    for name in ('model.pt', 'model_best.pt'):
        expected, found = load(reference / name), load(folder / name)
        assert expected.keys() == found.keys()
        difference = torch.cat([(expected[k] - found[k]).double().flatten().abs() for k in expected])
        # Adam moves a weight by the rate whichever sign its gradient has, also in the few places where that is rounding
        assert (difference > 1e-5).double().mean() < 0.01 and difference.max() < 2e-3
    expected, found = (torch.cat([s['exp_avg'].flatten() for s in load(f / 'state.pt')['optimizer']['state'].values()]) for f in (reference, folder))
    assert (expected - found).norm() < 1e-4 * expected.norm()  # means of gradients, which tell their scale
    for expected, found in zip(rows(reference), rows(folder), strict=True):
        for column in expected.keys() - {'steps_per_s'}:
            assert (float(found[column]) == pytest.approx(float(expected[column]), rel=1e-5)) if expected[column] else not found[column]


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
    cpu = torch.device('cpu')
    assert World().device(None) == World().device(['cpu']) == World(1, 2, 1, 2).device(['cpu']) == World(1, 2, 1, 2).device(['cpu', 'cpu']) == cpu
    with pytest.raises(UserError, match='--device 0 1: 2 devices, but 1 processes .* torchrun --nproc_per_node=2 … --device 0 1'):
        World().device([0, 1])
    with pytest.raises(UserError, match='1 devices, but 2 processes'):
        World(0, 2, 0, 2).device([0])
    with pytest.raises(UserError, match='a CUDA device can serve one process only'):
        World(0, 2, 0, 2).device([1, 1])
    with pytest.raises(UserError, match='--device 97: '):
        World(1, 2, 1, 2).device([96, 97])


def test_two_processes_train_as_one(alone, tmp_path):
    folder = tmp_path / 'run'
    out, err = run(*options(folder))
    assert_same_run(folder, alone)
    assert 'strides' not in err  # of gradients, of which DDP warns
    assert out.count('training on') == out.count('done:') == 1 and 'and 1 more' in out
    assert {p.name for p in folder.iterdir() if 'tfevents' not in p.name} == {p.name for p in alone.iterdir() if 'tfevents' not in p.name}
    assert len(list(folder.glob('*tfevents*'))) == 1


def test_published_launch_with_a_list_of_devices(alone, tmp_path):
    """It passes --local-rank."""
    folder = tmp_path / 'run'
    run('--device', 'cpu', 'cpu', *options(folder),
        launcher=[sys.executable, '-m', 'torch.distributed.launch', '--nproc_per_node=2', f'--master_port={free_port()}'])
    assert_same_run(folder, alone)


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def machines(*options, script='train.py'):
    """A job of a process on each of two machines, both of which are this one."""
    where = f'--rdzv_endpoint=127.0.0.1:{free_port()}'
    jobs = [start(*argv, launcher=[*RUN, '--nnodes=2', '--nproc_per_node=1', '--rdzv_backend=c10d', '--rdzv_id=job', where], script=script)
            for argv in options]
    ends = [job.communicate(timeout=240) for job in jobs]
    return [job.returncode for job in jobs], ends


def test_two_machines_without_a_common_disk_train_as_one(alone, tmp_path):
    folders = [tmp_path / 'one' / 'run', tmp_path / 'two' / 'run']
    codes, ends = machines(*map(options, folders))
    assert codes == [0, 0], ends
    written = [f for f in folders if f.exists()]  # that of process 0, whichever machine has it
    assert len(written) == 1
    assert_same_run(written[0], alone)


def test_two_machines_start_from_the_weights_of_one(alone, tmp_path):
    """Of process 0; no other one needs the file."""
    folders = [tmp_path / 'one' / 'run', tmp_path / 'two' / 'run']
    weights = tmp_path / 'weights.pt'
    script = tmp_path / 'other_disk.py'
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import train
if os.environ['RANK'] == '1':
    sys.argv = [a.replace('weights.pt', 'not_there.pt') for a in sys.argv]
sys.exit(train.main())
""")
    weights.write_bytes((alone / 'model.pt').read_bytes())
    codes, ends = machines(*(options(f, '--weights', weights) for f in folders), script=script)
    assert codes == [0, 0], ends
    reference = tmp_path / 'three' / 'run'
    assert train.main(options(reference, '--weights', str(weights))) == 0
    folder, = [f for f in folders if f.exists()]
    loss, expected, scratch = (float(rows(f)[0]['loss']) for f in (folder, reference, alone))
    assert loss == pytest.approx(expected, rel=1e-6) and loss != pytest.approx(scratch, rel=1e-5)


def test_machines_started_with_different_options_stop(tmp_path):
    codes, ends = machines(options(tmp_path / 'run'), options(tmp_path / 'run', '--lr', '0.5'))
    text = ''.join(err for _, err in ends)
    assert 0 not in codes and len(re.findall(r'error: process \d has lr ', text)) == 1
    assert not (tmp_path / 'run').exists()


def test_machine_that_fails_ends_the_other_one(tmp_path):
    """Here alone in a long validation, while a launcher ends the processes of its own machine only."""
    script = tmp_path / 'fail.py'
    script.write_text(f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import train
from training import loop as trainer
def validation_psnr(*args):
    if os.environ['RANK'] == '1':
        raise ValueError('a message of process 1')
    time.sleep(600)
trainer.validation_psnr = validation_psnr
sys.exit(train.main())
""")
    codes, ends = machines(*(options(tmp_path / name / 'run', *steps(1, 0)) for name in ('one', 'two')), script=script)
    text = ''.join(err for _, err in ends)
    assert codes == [1, 1] and 'ValueError: a message of process 1' in text
    assert text.count('process 0 ends, for it has lost another one') == 1


def test_machines_with_different_weights_stop(run_dir, data_dir, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'config.json').write_text((run_dir / 'config.json').read_text())
    torch.save({k: v + 1 for k, v in load(run_dir / 'model.pt').items()}, other / 'model.pt')
    argv = ['--data_dir', data_dir, '--nt_gen', '8', '--n_samples', '1', '--n_videos', '2', '--metrics', 'psnr', '--out_dir', tmp_path / 'out']
    codes, ends = machines([*argv, '--xp_dir', run_dir], [*argv, '--xp_dir', other], script='test.py')
    assert 0 not in codes and ''.join(err for _, err in ends).count('checkpoint_sha256') == 1 and not list(tmp_path.glob('out/*'))


def test_absent_seed_is_chosen_once_and_shared(tmp_path):
    """The first loss tells it, for no other seed gives that one. A gradient cannot be compared where nobody has chosen the seed: rounding
    decides over it wherever an activation comes to lie on the kink of a ReLU."""
    folder, again = tmp_path / 'run', tmp_path / 'again' / 'run'
    argv = options(folder, *steps(1, 0))
    position = argv.index('--seed')
    run(*argv[:position], *argv[position + 2:])
    seed = json.loads((folder / 'config.json').read_text())['seed']
    assert train.main(options(again, *steps(1, 0), '--seed', str(seed))) == 0
    expected, found = (float(rows(f)[0]['loss']) for f in (again, folder))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('more, sentence', [
    (['--nt_cond', '1'], r'--nt_cond 1 is less than --nt_inf 2'),
    (['--batch_size', '3', '--accumulate', '2'], r'--batch_size 3: 2 processes with 2 parts each need a video each'),
    (['--device', '0'], r'--device 0: 1 devices, but 2 processes'),
])
def test_bad_input_is_told_once(more, sentence, tmp_path):
    _, err = run(*options(tmp_path / 'run'), *more, code=1)  # of the launcher; it tells the processes' 2
    assert len(re.findall('^error: ', err, re.M)) == 1 and re.search(f'^error: {sentence}', err, re.M)
    assert re.search(r'exitcode\s*: 2', err) and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('changes, found', [({'WORLD_SIZE': 'x'}, "WORLD_SIZE 'x'"), ({'RANK': None}, "RANK ''"), ({'LOCAL_RANK': '-1'}, "LOCAL_RANK '-1'"),
                                            ({'MASTER_ADDR': None}, "MASTER_ADDR ''")])
def test_incomplete_environment_of_a_launcher(changes, found, monkeypatch):
    whole = {'RANK': '0', 'WORLD_SIZE': '2', 'LOCAL_RANK': '0', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': '9'}
    for name, value in {**whole, **changes}.items():
        monkeypatch.delenv(name, False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f'but {found}; start the processes by torchrun'), join():
        pass


@pytest.mark.parametrize('before, after', [(1, 3), (2, 1)])
def test_resume_with_another_number_of_processes(before, after, alone, tmp_path, capfd):
    folder = tmp_path / 'run'
    launcher = [*RUN, '--standalone', f'--nproc_per_node={max(before, after)}']
    script = tmp_path / 'stop_early.py'
    script.write_text(f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import train
from training import loop as trainer
step = trainer.Trainer.train_step
def stopping(self, *args):
    if self.step == 6 and self.world.rank == self.world.size - 1:  # one process alone is told
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, *args)
trainer.Trainer.train_step = stopping
sys.exit(train.main())
""")
    if before == 1:
        done = subprocess.run([sys.executable, script, *options(folder)], env=ENV, capture_output=True, text=True, timeout=240)
        assert done.returncode == 143, done.stderr
    else:
        out, err = run(*options(folder), launcher=launcher, script=script, code=1)
        assert out.count('stopped after step 7') == 1, err
    assert load(folder / 'state.pt')['step'] == 7
    if after == 1:
        assert train.main(['--resume', '--save_path', str(folder)]) == 0
        out = capfd.readouterr().out
    else:
        out, _ = run('--resume', '--save_path', folder, launcher=launcher)
    words = {1: '1 process', 2: '2 processes', 3: '3 processes'}
    assert out.count(f'note: {words[after]} instead of {words[before]} share a batch') == 1
    assert_same_run(folder, alone)


def test_sigterm_to_the_launcher_saves_the_state_once(tmp_path):
    folder, saves = tmp_path / 'run', tmp_path / 'saves'
    script = tmp_path / 'count_saves.py'
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import train
from training import loop as trainer
for name in ('save', 'write'):
    def counting(path, value, function=getattr(trainer, name)):
        open({str(saves)!r}, 'a').write(path.name.strip('.').split('.pt')[0] + '.pt\\n')
        function(path, value)
    setattr(trainer, name, counting)
sys.exit(train.main())
""")
    process = start(*options(folder, *steps(5000, 0), '--state_interval', '10000', '--val_interval', '10000'), script=script)
    wait_for_rows(process, folder, 5)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert 'Traceback' not in err.split('SignalException')[0].split('torch/distributed')[0]
    step = load(folder / 'state.pt')['step']
    assert 5 <= step < 5000 and out.count(f'stopped after step {step}; continue with') == 1
    assert saves.read_text() == 'state.pt\nmodel.pt\n'


def test_process_that_is_killed_ends_the_job(tmp_path):
    folder = tmp_path / 'run'
    process = start(*options(folder, *steps(5000, 0), '--n_workers', '0'))
    wait_for_rows(process, folder, 3)
    children = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert 'SIGKILL' in err and 'process 0 ends, for it has lost another one' in err


def test_process_that_fails_ends_the_job_with_its_message(tmp_path):
    script = tmp_path / 'fail.py'
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import train
from training import loop as trainer
step = trainer.Trainer.train_step
def failing(self, *args):
    if self.step == 3 and self.world.rank == 1:
        raise ValueError('a message of process 1')
    return step(self, *args)
trainer.Trainer.train_step = failing
sys.exit(train.main())
""")
    _, err = run(*options(tmp_path / 'run', *steps(5000, 0)), script=script, code=1)
    assert 'ValueError: a message of process 1' in err
    assert 'process 0 ends, for it has lost another one' in err


def test_evaluation_is_shared(run_dir, data_dir, tmp_path):
    argv = ['--xp_dir', run_dir, '--data_dir', data_dir, '--nt_gen', '8', '--n_samples', '3', '--n_videos', '10', '--batch_size', '3',
            '--metrics', 'psnr', 'ssim', '--n_pictures', '1', '--out_dir']
    run(*argv, tmp_path / 'one', script='test.py', launcher=[sys.executable])
    out, _ = run(*argv, tmp_path / 'three', script='test.py', launcher=[*RUN, '--standalone', '--nproc_per_node=3'])
    assert out.count('PSNR') == 1 and 'and 2 more' in out
    one, three = ({p.relative_to(f): p for p in f.rglob('*') if p.is_file()} for f in (tmp_path / 'one', tmp_path / 'three'))
    assert one.keys() == three.keys() and len(one) == 12
    for name, path in one.items():
        if path.suffix == '.npz':
            with np.load(path) as expected, np.load(three[name]) as found:
                assert expected.files == found.files
                for key in expected.files:
                    np.testing.assert_allclose(found[key].astype(float), expected[key].astype(float), rtol=1e-5, atol=1 if name.name != 'results.npz' else 0)
    expected, found = (json.loads(files[next(n for n in files if n.name == 'results.json')].read_text()) for files in (one, three))
    assert expected['protocol'] == found['protocol']
    with pytest.raises(AssertionError, match='2 videos cannot be shared by 3 processes'):
        run(*argv, tmp_path / 'four', '--n_videos', '2', script='test.py', launcher=[*RUN, '--standalone', '--nproc_per_node=3'])
    _, err = run(*argv, tmp_path / 'three', '--n_samples', '2', script='test.py', launcher=[*RUN, '--standalone', '--nproc_per_node=3'], code=1)
    assert len(re.findall('^error: .*/results.json is of an evaluation with samples 3, found 2 now', err, re.M)) == err.count('error: ') == 1
    assert {p.relative_to(tmp_path / 'three'): p for p in (tmp_path / 'three').rglob('*') if p.is_file()} == three


def test_features_of_fvd_are_brought_together(tmp_path):
    script = tmp_path / 'features.py'
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from distributed import join
from metrics.fvd import FVD
videos = np.random.RandomState(0).randint(0, 256, (12, 3, 20, 2, 2, 1)).astype(np.uint8)  # given, target, two samples, …
embed = lambda v: v.reshape(len(v), -1)[:, :4].astype(float)
def distance(part, world):
    fvd = FVD(embed, 1)
    for i in part:
        true, given, sample = (videos[:, k, i:i + 1] for k in range(3))
        fvd.update(given, true, [sample])
    fvd.collect(world, 20)
    return fvd
with join() as world:
    fvd = distance(world.part(20), world)
    if world.main:
        from distributed import World
        assert fvd.result() == distance(range(20), World()).result()
        print('equal')
""")
    out, _ = run(script=script, launcher=[*RUN, '--standalone', '--nproc_per_node=3'])
    assert out.split() == ['equal']
