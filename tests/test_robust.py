"""What hostile users, damaged files and full disks must not achieve: wrong results in silence."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Script, patched

import damage
import export
import files
import test as evaluation_script
import train
import visualize
from args import load_config, parse_train, preset_config
from checkpoint import load, save
from conftest import ROOT, TINY, steps
from data import load_test
from data.video import NpzVideo
from distributed import World
from files import MAX_MESSAGE, UserError, check_archive, run_script, write_npz
from perturbation import DamageFile, draw_damage
from preprocessing.decoding import find_ffmpeg
from preprocessing.folder import convert as folder_convert
from preprocessing.mmnist import make_test_set
from sampling import check_memory
from training import job


def flip(path, rng):
    """Flip a random bit of a file."""
    data = bytearray(path.read_bytes())
    bit = rng.randint(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def same(a, b):
    """Whether two values, tensors in dictionaries and lists, are equal."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return a == b


def options(folder, *more):
    return [*TINY, *steps(4, 0), '--n_workers', '0', '--data_dir', str(folder.parent),
            '--save_path', str(folder), *more]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained') / 'run'
    assert train.main(options(folder)) == 0
    return folder


# Damaged files

@pytest.mark.parametrize('name', ['model.pt', 'state.pt'])
def test_flipped_bits_of_tensors_are_found_or_without_effect(name, trained, tmp_path):
    expected = load(trained / name)
    rng, found = np.random.RandomState(0), 0
    for i in range(40):
        path = shutil.copy(trained / name, tmp_path / f'{i}.pt')
        flip(tmp_path / f'{i}.pt', rng)
        try:
            value = load(path)
        except UserError as error:
            assert str(tmp_path / f'{i}.pt') in str(error)
            found += 1
            continue
        assert same(value, expected)  # the bit was in padding
    assert found > 10


def test_checksums_of_archives(tmp_path):
    path = tmp_path / 'a.npz'
    np.savez(path, samples=np.arange(10_000))
    check_archive(path)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match='samples.npy in it does not match its checksum'):
        check_archive(path)


@pytest.mark.parametrize('value, sentence', [
    (float('inf'), 'has values that are not finite'), (float('nan'), 'has values that are not'),
    (-1., 'has negative variances')])
@pytest.mark.parametrize('script', [evaluation_script, damage, export])
def test_absurd_weights_are_refused(script, value, sentence, trained, data_dir, tmp_path, call):
    folder = shutil.copytree(trained, tmp_path / 'run')
    state = load(folder / 'model.pt')
    name = next(k for k in state if k.endswith('running_var'))
    state[name][0] = value
    save(folder / 'model.pt', state)
    argv = ['--xp_dir', folder, '--out_dir', tmp_path / 'out']
    if script is not export:
        argv += ['--data_dir', data_dir, '--nt_gen', 5]
    if script is evaluation_script:
        argv += ['--metrics', 'psnr']
    result = call(script.main, *argv)
    assert result.code == 2 and f'model.pt: {name} {sentence}' in result.err
    assert not (tmp_path / 'out').exists()


def test_flipped_bits_of_a_damage_file_are_found(trained, data_dir, tmp_path):
    argv = ['--xp_dir', str(trained), '--data_dir', str(data_dir), '--nt_gen', '5']
    shapes = {name: tuple(v.shape) for name, v in load(trained / 'model.pt').items()}
    args = damage.damage_parser().parse_args([*argv, '--n_iterations', '4'])
    names = list(shapes)
    draws = draw_damage([shapes[name] for name in names], args)
    write_npz(tmp_path / 'a.npz', names=np.array(names), mode='scale', draws=draws)
    rng, found = np.random.RandomState(3), 0
    for _ in range(40):
        path = Path(shutil.copy(tmp_path / 'a.npz', tmp_path / 'b.npz'))
        flip(path, rng)
        try:
            file = DamageFile(path, shapes)
            read = file.mode(), file.names(), file.draws(names)
        except UserError:
            found += 1
            continue
        assert read[:2] == ('scale', names) and (read[2] == draws).all()
    assert found > 10


def test_reasons_are_not_bare_keys(tmp_path):
    with pytest.raises(UserError, match=r'a is damaged \(KeyError 105\); use another'):
        with files.reading('a', 'is damaged', 'use another'):
            {}[105]


# States of other runs

def test_state_of_another_run_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / 'run')
    state = load(folder / 'state.pt')
    assert state['config']['seed'] == 3
    for key, value in (('seed', 4), ('lr', 0.5), ('beta_z', 7.)):
        save(folder / 'state.pt', {**state, 'config': {**state['config'], key: value}, 'step': 2})
        with pytest.raises(UserError, match=f'it has {key} {value}, config.json has '):
            train.main(['--resume', '--save_path', str(folder)])
    save(folder / 'state.pt', {**state, 'format': 3})
    with pytest.raises(UserError, match='its format is 3, expected 2'):
        train.main(['--resume', '--save_path', str(folder)])
    old = {k: v for k, v in state.items() if k not in ('format', 'config')}  # of version 1
    save(folder / 'state.pt', {**old, 'step': 2, 'validated': 0})
    assert train.main(['--resume', '--save_path', str(folder)]) == 0


def test_run_without_a_step_leaves_nothing_behind(tmp_path, call):
    folder = tmp_path / 'run'
    for more in (['--obs_scale', '1e-30'], ['--beta_z', '1e308']):
        result = call(train.main, *options(folder, *more))
        assert result.code == 1
        assert 'the loss of step 1 is not finite; check --obs_scale' in result.err
        assert not list(folder.iterdir())
    assert train.main(options(folder)) == 0


# Command lines

@pytest.mark.parametrize('argv', [
    ['--weights', ''], ['--save_path', ''], ['--data_dir', ''], ['--config', '']])
def test_empty_values_are_errors(argv, tmp_path):
    with pytest.raises(UserError, match='--config|expected a value, found an empty string'):
        parse_train([*options(tmp_path / 'run'), *argv])


def test_exponents_are_values(tmp_path):
    args = damage.damage_parser().parse_args(
        ['--xp_dir', 'a', '--data_dir', 'b', '--damage_low', '-1e3', '--damage_high', '-1.5E-2'])
    assert (args.damage_low, args.damage_high) == (-1000, -0.015)


@pytest.mark.parametrize('content', [
    '1: 2', 'ny: {a: 1}', '? [1, 2]\n: 3', '[' * 5000, 'ny: 2024-99-99', '\x00', '- a', 'ny: [[1]]',
    'a: &a [x, x]\nb: &b [*a, *a]\nny: [*b, *b]', 'a' * 1_000_000])
def test_strange_configuration_files_are_sentences(content, tmp_path):
    path = tmp_path / 'options.yaml'
    path.write_text(content)
    with pytest.raises(UserError, match='options.yaml') as error:
        parse_train([*options(tmp_path / 'run'), '--config', str(path)])
    assert len(str(error.value)) <= MAX_MESSAGE + 10 and '\n' not in str(error.value)


def test_long_values_are_shortened_in_messages(tmp_path):
    with pytest.raises(UserError, match='--nf') as error:
        parse_train(options(tmp_path / 'run', '--nf', '9' * 100_000 + 'x'))
    assert len(str(error.value)) <= MAX_MESSAGE + 10


@pytest.mark.parametrize('more', [
    ['--batch_size', '10000000000'], ['--seq_len', '100000'], ['--nf', '10000'],
    ['--n_samples_test', '1000000000']])
def test_more_than_the_memory_is_refused_before_any_file(more, tmp_path, call):
    result = call(train.main, '--preset', 'smmnist', '--digits', 'mnist5k', '--data_dir', tmp_path,
                  '--save_path', tmp_path / 'run', *more)
    assert result.code == 2 and not (tmp_path / 'run').exists()
    assert 'this takes at least ' in result.err and 'use a smaller --' in result.err


def test_presets_need_far_less_than_a_small_machine(monkeypatch):
    monkeypatch.setattr(files, 'memory', lambda: 8e9)
    for preset in ('smmnist', 'kth', 'human', 'bair'):
        config, cpu = preset_config(preset), torch.device('cpu')
        job.check_step_memory(config, cpu, World())
        check_memory(config, cpu, config.batch_size_test, config.seq_len_test,
                     config.n_samples_test, config.n_euler_steps)


# Outputs and logs

@pytest.mark.parametrize('redirection', ['>/dev/full', '2>/dev/full', '>&-', '2>&-', '>&- 2>&-'])
def test_full_and_closed_outputs_do_not_end_a_run(redirection, tmp_path):
    done, script = tmp_path / 'done', tmp_path / 'script.py'
    script.write_text(f'''
import sys
sys.path.insert(0, {str(ROOT)!r})
from files import progress_bar, run_script
def main():
    for _ in progress_bar(range(3)):
        print('x' * 10_000, flush=True)
    with open({str(done)!r}, 'w') as f:
        f.write(str(f.fileno()))
run_script(main)
''')
    code = subprocess.run(['bash', '-c', f'{sys.executable} {script} {redirection}'],
                          capture_output=True).returncode
    assert code == 0 and int(done.read_text()) > 2


def test_unexpected_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)


def test_unreadable_log_is_moved_aside(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / 'run')
    state = load(folder / 'state.pt')
    rows = (folder / 'log.csv').read_bytes()
    for i, content in enumerate((b'\xff' + rows, rows.replace(b'kl_z', b'kl_{', 1)), 1):
        (folder / 'log.csv').write_bytes(content)
        save(folder / 'state.pt', {**state, 'step': 2, 'validated': 0})
        assert train.main(['--resume', '--save_path', str(folder)]) == 0
        assert (folder / f'log.csv.{i}').read_bytes() == content
        assert f'it is now {folder}/log.csv.{i}, and a new one begins' in capsys.readouterr().out


def reset_connection():
    raise ConnectionResetError('Connection reset by peer')


class CutOff:
    """Batch whose sender dies while the main process takes it."""

    def __reduce__(self):
        return reset_connection, ()


@pytest.mark.parametrize('death', [lambda: os.kill(os.getpid(), 9), CutOff])
def test_dead_data_worker_is_a_sentence(tmp_path, call, monkeypatch, death):
    from data import stream
    real = stream.BatchStream.__getitem__

    def getitem(self, videos):
        if self.stream == 'train' and videos.start >= 6:
            return death()
        return real(self, videos)
    monkeypatch.setattr(stream.BatchStream, '__getitem__', getitem)
    folder = tmp_path / 'run'
    argv = options(folder, '--n_workers', '1', '--state_interval', '1')
    result = call(train.main, *argv)
    assert result.code == 1 and 'Traceback' not in result.err
    assert 'error: a process that loads data died (' in result.err
    assert 'continue with --resume' in result.err
    assert load(folder / 'state.pt')['step'] >= 1
    monkeypatch.setattr(stream.BatchStream, '__getitem__', real)
    assert train.main(['--resume', '--save_path', str(folder)]) == 0


# Converted videos and published archives

def make_videos(folder, n):
    folder.mkdir()
    for i in range(n):
        source = f'testsrc2=size=64x64:rate={9 + i}'
        command = [find_ffmpeg(), '-v', 'error', '-f', 'lavfi', '-i', source, '-t', '1',
                   str(folder / f'{i}.mp4')]
        subprocess.run(command, check=True)


def test_converted_videos_are_checked(tmp_path, capsys):
    make_videos(tmp_path / 'videos', 3)
    argv = ['--data_dir', str(tmp_path / 'videos'), '--out_dir', str(tmp_path / 'out')]
    with pytest.raises(UserError, match='checksums.sha256 does not exist; convert the videos'):
        folder_convert.main([*argv, '--check'])
    with pytest.raises(UserError, match='leave none of 3 videos for training'):
        folder_convert.main([*argv, '--val', '0.9', '--test', '0.9', '--gray'])
    assert folder_convert.main(argv) == 0  # not bound to the options of the refused call
    capsys.readouterr()
    assert folder_convert.main([*argv, '--check']) == 0
    assert capsys.readouterr().out == '3 files, 0 damaged or missing\n'
    lines = subprocess.run(['sha256sum', '--check', 'checksums.sha256'], cwd=tmp_path / 'out',
                           capture_output=True, text=True).stdout
    assert lines.count(': OK') == 3
    first, second, _ = sorted((tmp_path / 'out').glob('*/*.npy'))
    flip(first, np.random.RandomState(0))
    second.unlink()
    assert folder_convert.main([*argv, '--check']) == 1
    out = capsys.readouterr().out
    assert f'damaged: {first}; delete it' in out and f'missing: {second}' in out
    first.unlink()
    assert folder_convert.main(argv) == 0 == folder_convert.main([*argv, '--check'])


@pytest.mark.parametrize('compressed', [False, True])
def test_flipped_bits_of_archives_of_videos_are_found(compressed, tmp_path):
    frames = np.random.RandomState(0).randint(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    write = np.savez_compressed if compressed else np.savez
    write(tmp_path / 'S1-a.npz', image=frames, filename='a.mp4', subject=1)
    rng, found = np.random.RandomState(1), 0
    for i in range(40):
        path = Path(shutil.copy(tmp_path / 'S1-a.npz', tmp_path / f'{i}.npz'))
        flip(path, rng)
        try:
            clip = NpzVideo(path).clip(3, 5)
        except UserError as error:
            assert str(path) in str(error)
            found += 1
            continue
        np.testing.assert_array_equal(clip, frames[3:8])
    assert found > 10


def test_flipped_bits_of_a_test_set_are_found(data_dir, trained, tmp_path):
    config, name = load_config(trained), 'smmnist5k_test_2digits_64.npz'
    expected = load_test(config, data_dir, 8).videos(range(500))
    content, rng = (data_dir / name).read_bytes(), np.random.RandomState(2)
    for bit in [177 * 8, *rng.randint(8 * len(content), size=10)]:  # once a header was accepted
        data = bytearray(content)
        data[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(data)
        try:
            found = load_test(config, tmp_path, 8).videos(range(500))
        except UserError:
            continue
        np.testing.assert_array_equal(found, expected)


def test_full_shared_memory_ends_a_run_instead_of_hanging(tmp_path):
    script = patched(tmp_path, """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
""")
    job = Script(script, *options(tmp_path / 'run', '--n_workers', '1'))
    _, err = job.communicate(60)
    assert job.returncode == 1 and 'Traceback' not in err
    assert 'cannot send a batch (' in err and 'free space in /dev/shm, or use --n_workers 0' in err
    assert not list((tmp_path / 'run').iterdir())


# Limits of the system

def test_interrupt_while_pytorch_is_imported(tmp_path):
    (tmp_path / 'torch.py').write_text('import time\nprint("importing", flush=True)\n'
                                       'time.sleep(60)\n')
    env = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    commands = [['train.py', *options(tmp_path / 'run')],
                ['test.py', '--xp_dir', 'a', '--data_dir', 'b']]
    for argv in commands:
        process = subprocess.Popen([sys.executable, *argv], cwd=ROOT, env=env, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout.readline() == 'importing\n'
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (130, 'interrupted\n')


def test_names_beyond_the_limits_of_file_systems(trained, data_dir, tmp_path, call):
    name = tmp_path / ('x' * 300)
    for main, argv in (
            (train.main, options(name)), (train.main, ['--resume', '--save_path', name]),
            (train.main, options(tmp_path / 'run', '--weights', str(name))),
            (evaluation_script.main, ['--xp_dir', name, '--data_dir', data_dir]),
            (evaluation_script.main, ['--xp_dir', trained, '--data_dir', name]),
            (evaluation_script.main, ['--xp_dir', trained, '--data_dir', data_dir, '--nt_gen', 5,
                                      '--metrics', 'psnr', '--out_dir', name]),
            (damage.main, ['--xp_dir', trained, '--data_dir', data_dir, '--nt_gen', 5,
                           '--replay', name]),
            (export.main, ['--xp_dir', trained, '--out_dir', name])):
        result = call(main, *argv)
        assert result.code == 2 and 'error: ' in result.err and 'Traceback' not in result.err


def test_too_many_open_files_is_a_sentence(tmp_path):
    command = (f'ulimit -n 16; {sys.executable} train.py ' + ' '.join(
        options(tmp_path / 'run', '--n_workers', '2')))
    result = subprocess.run(['bash', '-c', command], cwd=ROOT, capture_output=True, text=True,
                            timeout=120)
    assert result.returncode == 2 and 'Traceback' not in result.stderr
    assert 'error: 16 open files (ulimit -n) are too few' in result.stderr


def test_ffmpeg_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv('IMAGEIO_FFMPEG_EXE', '/nowhere/ffmpeg')
    with pytest.raises(UserError, match='IMAGEIO_FFMPEG_EXE is /nowhere/ffmpeg, which cannot'):
        find_ffmpeg()


def test_more_samples_than_memory_are_refused(trained, data_dir, tmp_path, call):
    common = ['--xp_dir', trained, '--data_dir', data_dir]
    for main, argv in (
            (evaluation_script.main, [*common, '--nt_gen', 8, '--n_samples', 10 ** 9,
                                      '--metrics', 'psnr', '--out_dir', tmp_path / 'out']),
            (visualize.main, ['framerate', *common, '--nt_gen', 8, '--n_euler_steps', 10 ** 9]),
            (make_test_set.main, ['--data_dir', tmp_path / 'data', '--digit_source', 'mnist5k',
                                  '--seq_len', 100_000])):
        result = call(main, *argv)
        assert result.code == 2 and 'this takes at least ' in result.err
    assert not (tmp_path / 'out').exists()


def test_full_disk_does_not_block_the_next_export(trained, tmp_path, call):
    out_dir = tmp_path / 'out'
    out_dir.mkdir()
    for name in ('model.pt', 'config.json'):
        (out_dir / f'.{name}.{os.getpid()}.tmp').symlink_to('/dev/full')
        result = call(export.main, '--xp_dir', trained, '--out_dir', out_dir)
        assert result.code == 2 and f'{name} cannot be written (No space left' in result.err
        assert not list(out_dir.iterdir())
    assert call(export.main, '--xp_dir', trained, '--out_dir', out_dir).code == 0
