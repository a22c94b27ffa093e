"""Moving MNIST (published bytes, batches by seed and step, digits, test sets) and data workers."""

import gzip
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

from args import load_config
from conftest import GOLDEN, ROOT
from data import load_test, mmnist
from data.clips import get_fold
from data.digits import load_digits
from data.stream import BatchStream, chunks, make_loader
from files import UserError, exclusive
from preprocessing.mmnist import make_test_set as script
from utils import stream_rng

SETTINGS = {
    'stochastic': dict(nt=25),
    'deterministic': dict(nt=100, deterministic=True),
    'three_fast': dict(nt=40, max_speed=9, n_digits=3, frame_size=48),
}


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


@pytest.mark.parametrize('name', SETTINGS)
def test_generator_is_the_published_one(name, digits):
    g = np.load(GOLDEN / 'data.npz', allow_pickle=False)
    made = mmnist.make_test_set(digits, np.zeros(40, np.uint8), **SETTINGS[name])
    np.testing.assert_array_equal(made['latents'], g[f'{name}_latents'])
    assert sha256(made['sequences']) == str(g[f'{name}_sha256'])
    np.testing.assert_array_equal(made['sequences'][-1].sum((1, 2)), g[f'{name}_last_frame_sum'])


@pytest.mark.parametrize('n', [100, 599, 43264])
def test_folds_are_the_published_ones(n):
    expected = np.load(GOLDEN / 'data.npz', allow_pickle=False)[f'val_ids_{n}']
    np.testing.assert_array_equal(get_fold(n, train=False), expected)
    np.testing.assert_array_equal(np.union1d(get_fold(n, train=True), expected), np.arange(n))
    assert len(get_fold(n, train=True)) == int(0.95 * n)


@pytest.mark.parametrize('deterministic, nt', [(False, 25), (True, 100)])
def test_published_test_sets_from_the_real_mnist(deterministic, nt, tmp_path):
    """Byte for byte, if $SRVP_MNIST is a folder with MNIST/raw, which is not part of this code."""
    if 'SRVP_MNIST' not in os.environ:
        pytest.skip('SRVP_MNIST is not set to a folder with MNIST')
    (tmp_path / 'MNIST').symlink_to(Path(os.environ['SRVP_MNIST']).resolve() / 'MNIST')
    options = ['--deterministic'] if deterministic else []
    script.main(['--data_dir', str(tmp_path), '--seq_len', str(nt), *options])
    name = mmnist.test_set_name(deterministic, 'mnist', 2, 64)
    digests = json.loads((GOLDEN / 'official_mmnist_digests.json').read_text())
    with np.load(tmp_path / name, allow_pickle=False) as arrays:
        for key, expected in digests[name.removesuffix('.npz')].items():
            array = arrays[key]
            found = {'shape': list(array.shape), 'dtype': str(array.dtype), 'sha256': sha256(array)}
            assert found == expected, key


def test_names_of_test_sets():
    assert mmnist.test_set_name(False, 'mnist', 2, 64) == 'smmnist_test_2digits_64.npz'
    assert mmnist.test_set_name(True, 'mnist', 3, 48) == 'mmnist_test_3digits_48.npz'
    assert mmnist.test_set_name(False, 'mnist5k', 2, 64) == 'smmnist5k_test_2digits_64.npz'


def test_render_is_the_plain_loop(digits):
    rng = np.random.RandomState(1)
    latents = rng.randint(0, 37, (5, 4, 3, 4))
    chosen = digits[rng.randint(40, size=(4, 3))]
    plain = np.zeros((5, 4, 64, 64), np.int64)
    for t, i, d in np.ndindex(5, 4, 3):
        x, y = latents[t, i, d, :2]
        plain[t, i, x:x + 28, y:y + 28] += chosen[i, d]
    np.testing.assert_array_equal(mmnist.render(chosen, latents, 64), plain.clip(0, 255))


@pytest.mark.parametrize('deterministic', [False, True])
def test_motions_of_a_batch_are_those_of_the_plain_loop(deterministic):
    limit, max_speed, n_digits, nt = 36, 4, 3, 40
    rngs = [stream_rng(0, 'train', i) for i in range(20)]
    found = mmnist.draw_motions(rngs, nt, n_digits, 64, max_speed, deterministic)
    bounces = 0
    for i in range(20):
        rng = stream_rng(0, 'train', i)
        digits = []
        for x, y, dx, dy in rng.random_sample((n_digits, 4)):
            digits.append((int(x * (limit + 1)), int(y * (limit + 1)),
                           int(dx * (2 * max_speed + 1)) - max_speed,
                           int(dy * (2 * max_speed + 1)) - max_speed))
        for t in range(nt):
            for d, (x, y, dx, dy) in enumerate(digits):
                if not (0 <= x <= limit and 0 <= y <= limit):
                    bounces += 1
                x, y, dx, dy = mmnist.bounce(x, y, dx, dy, limit, max_speed, deterministic, rng)
                assert found[t, i, d].tolist() == [round(x), round(y)]
                digits[d] = x + dx, y + dy, dx, dy
    assert bounces > 100


def test_initial_positions_and_velocities_are_uniform():
    rngs = [stream_rng(0, 'train', i) for i in range(3000)]
    positions = mmnist.draw_motions(rngs, 2, 1, 64, 2, True)[:, :, 0]
    for axis in (0, 1):
        values, counts = np.unique(positions[0, :, axis], return_counts=True)
        assert values.tolist() == list(range(37)) and counts.min() > 40
        inside = (positions[0, :, axis] > 1) & (positions[0, :, axis] < 35)
        steps, counts = np.unique((positions[1] - positions[0])[inside, axis], return_counts=True)
        assert steps.tolist() == [-2, -1, 0, 1, 2] and counts.min() > 400


def test_digits_stay_inside_and_deterministic_ones_keep_their_speed():
    rng = np.random.RandomState(3)
    for max_speed in (1, 4, 9, 50):
        for deterministic in (False, True):
            for size in (29, 48, 64):
                path = np.array(mmnist.draw_trajectory(rng, 200, size, max_speed, deterministic))
                assert path[:, :2].min() >= 0 and path[:, :2].max() <= size - 28
                if deterministic:
                    assert len(np.unique(abs(path[:, 2:]), axis=0)) == 1


@pytest.fixture
def source(digits):
    return mmnist.MovingDigits(digits, 64, 4, 2, False)


def test_batch_is_a_function_of_seed_and_step(source):
    def batches(n_workers, start, seed=5, stream='train'):
        torch.rand(start + 1)  # the global generators are not used
        np.random.seed(start)
        stream = BatchStream(source, seed, stream, 6)
        with make_loader(stream, chunks(range(24), 3)[start:], n_workers) as loader:
            return [batch.numpy() for batch in loader]
    reference = batches(0, 0)
    assert reference[0].shape == (6, 3, 64, 64, 1) and reference[0].dtype == np.uint8
    assert len({sha256(b) for b in reference}) == 8
    for other in (batches(1, 0), batches(3, 0), batches(2, 5)):
        for expected, found in zip(reference[-len(other):], other):
            np.testing.assert_array_equal(found, expected)
    assert sha256(batches(0, 0, seed=6)[0]) != sha256(reference[0])
    assert sha256(batches(0, 0, stream='val')[0]) != sha256(reference[0])


def test_videos_do_not_depend_on_how_they_are_batched(source):
    stream = BatchStream(source, 5, 'train', 4)
    whole, halves = stream[range(7)], [stream[range(3)], stream[range(3, 7)]]
    assert chunks(range(7), 3) == [range(3), range(3, 6), range(6, 7)]
    np.testing.assert_array_equal(whole, np.concatenate(halves, 1))


def test_loader_leaves_the_global_generator_alone(source):
    before = torch.get_rng_state()
    with make_loader(BatchStream(source, 5, 'train', 3), [range(2)], 1) as loader:
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_are_independent_for_any_seed():
    draws = {stream_rng(seed, stream, i).randint(2 ** 62) for seed in (0, 1, 2 ** 32 - 1)
             for stream in ('train', 'val', 'test', 'noise') for i in (0, 1, 2, 10 ** 9)}
    assert len(draws) == 3 * 4 * 4


def test_training_videos_are_those_of_a_uniform_generator(source):
    batch = BatchStream(source, 0, 'train', 1)[range(400)][0, ..., 0] > 0
    rows, columns = batch.any((0, 2)), batch.any((0, 1))
    assert rows.all() and columns.all()  # digits reach every part of the frame
    mean = batch.mean((0, 1))
    np.testing.assert_allclose(mean, mean[::-1], atol=0.1)


def test_mnist5k_digits_are_disjoint_and_real():
    train, train_labels = load_digits('mnist5k', None, True)
    test, test_labels = load_digits('mnist5k', None, False)
    assert train.shape == (4000, 28, 28) and test.shape == (1000, 28, 28)
    assert train.dtype == test.dtype == np.uint8
    assert len({d.tobytes() for d in train} | {d.tobytes() for d in test}) == 5000
    assert set(train_labels) == set(test_labels) == set(range(10))
    assert train.max() == 255 and 20 < train.mean() < 50


def idx_files():
    """Seven random digits in MNIST's file format: contents by name, and the digits."""
    images = np.random.RandomState(0).randint(0, 256, (7, 28, 28)).astype(np.uint8)
    files = {}
    for fold in ('train', 't10k'):
        header = np.array([2051, 7, 28, 28], '>i4').tobytes()
        files[f'{fold}-images-idx3-ubyte'] = header + images.tobytes()
        files[f'{fold}-labels-idx1-ubyte'] = np.array([2049, 7], '>i4').tobytes() + bytes(range(7))
    return files, images


def md5_of(files):
    return {name: hashlib.md5(content).hexdigest() for name, content in files.items()}


def test_mnist_is_found_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, 'mirrors', ['http://127.0.0.1:9/'])  # no server
    raw = tmp_path / 'MNIST' / 'raw'
    with pytest.raises(UserError, match='MNIST can be neither read from .*/raw nor downloaded'):
        load_digits('mnist', tmp_path, True)
    raw.mkdir(parents=True, exist_ok=True)
    files, images = idx_files()
    for name, content in files.items():
        (raw / name).write_bytes(content)
    for train, name in ((True, 'train-images'), (False, 't10k-images')):
        with pytest.raises(UserError, match=f'/raw/{name}-idx3-ubyte has the MD5 .* download it '):
            load_digits('mnist', tmp_path, train)
    monkeypatch.setattr('data.digits.MNIST_MD5', md5_of(files))
    found, labels = load_digits('mnist', tmp_path, True)
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(labels, range(7))
    for n, size in ((6, 28), (7, 32)):  # fewer than labels, larger
        header = np.array([2051, n, size, size], '>i4').tobytes()
        files['train-images-idx3-ubyte'] = header + bytes(n * size * size)
        (raw / 'train-images-idx3-ubyte').write_bytes(files['train-images-idx3-ubyte'])
        monkeypatch.setattr('data.digits.MNIST_MD5', md5_of(files))
        message = rf'/raw holds images \({n}, {size}, {size}\) and labels \(7,\), expected'
        with pytest.raises(UserError, match=message):
            load_digits('mnist', tmp_path, True)
    (raw / 'train-images-idx3-ubyte').write_bytes(b'cut')
    with pytest.raises(UserError, match='MNIST can be neither read from'):
        load_digits('mnist', tmp_path, True)


def test_mnist_is_downloaded_when_missing(tmp_path, monkeypatch, server):
    folder, address = server
    files, images = idx_files()
    resources = []
    for name, content in files.items():
        content = gzip.compress(content)
        (folder / f'{name}.gz').write_bytes(content)
        resources.append((f'{name}.gz', hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(MNIST, 'mirrors', [address])
    monkeypatch.setattr(MNIST, 'resources', resources)
    monkeypatch.setattr('data.digits.MNIST_MD5', md5_of(files))
    np.testing.assert_array_equal(load_digits('mnist', tmp_path, False)[0], images)
    assert (tmp_path / 'MNIST' / 'raw' / 't10k-images-idx3-ubyte').exists()


def test_script_writes_the_set_and_refuses_bad_options(tmp_path, data_dir):
    with np.load(data_dir / 'smmnist5k_test_2digits_64.npz', allow_pickle=False) as arrays:
        assert arrays['sequences'].shape == (8, 500, 64, 64)
        assert arrays['latents'].dtype == np.int64 and arrays['latents'].shape == (8, 500, 2, 4)
        digits = arrays['digits'].reshape(1000, 28, 28)
        assert len({d.tobytes() for d in digits}) == 1000  # each digit once
    options = ['--data_dir', str(tmp_path), '--seq_len', '5']
    again = [*options, '--digit_source', 'mnist5k', '--digits', '500']
    script.main(again)
    script.main([*again, '--force'])
    for argv, message in (
            ([*options, '--frame_size', '20'],
             '--frame_size 20 leaves no room for digits to move; use at least 29'),
            ([*options, '--frame_size', '28'],
             '--frame_size 28 leaves no room for digits to move; use at least 29'),
            ([*options, '--max_speed', '100000'],
             '--max_speed: expected a whole number of at least 1 and at most 64'),
            (again, 'exists already; replace it with --force'),
            ([*options, '--digits', 'mnist5k'], '--digits'),
            ([*again, '--digits', '2000'], '1,000 test digits')):
        with pytest.raises(UserError, match=message):
            script.main(argv)


def test_loading_a_test_set(data_dir, run_dir, tmp_path, monkeypatch, capsys):
    config = load_config(run_dir)
    testset = load_test(config, data_dir, 6)
    assert len(testset) == 500 and testset.name(3) == 'video 3'
    assert testset.read.cache_info().misses == 0  # so far, for quick answers
    assert testset.videos([4, 2]).shape == (6, 2, 64, 64, 1)
    with np.load(data_dir / 'smmnist5k_test_2digits_64.npz', allow_pickle=False) as arrays:
        expected = arrays['sequences'][:6, 3:5]
        np.testing.assert_array_equal(testset.videos(range(3, 5))[..., 0], expected)
    with pytest.raises(UserError, match='videos of 8 frames, but --nt_gen 9'):
        load_test(config, data_dir, 9)
    command = 'python -m preprocessing.mmnist.make_test_set'
    with pytest.raises(UserError, match=f'does not exist; make it with: {command}'):
        load_test(config, tmp_path, 6)
    config.max_speed = 50  # models trained at any speed can be scored on the published set
    capsys.readouterr()
    assert len(load_test(config, data_dir, 6)) == 500 and not capsys.readouterr().err
    config.max_speed = 3
    assert len(load_test(config, data_dir, 6)) == 500
    note = 'note: .* has digits of speed 4, but the model was trained with max_speed 3\n'
    assert re.fullmatch(note, capsys.readouterr().err)


def test_command_for_a_test_set():
    config = SimpleNamespace(deterministic=False, digits='mnist', ndigits=2, max_speed=4, nx=64)
    parse = script.get_parser().parse_args
    command = mmnist.make_command(config, 'DIR', 8)
    assert command.startswith('python -m preprocessing.mmnist.make_test_set --data_dir DIR ')
    assert parse(command.split()[3:]) == parse(['--data_dir', 'DIR', '--seq_len', '25'])
    config = SimpleNamespace(deterministic=True, digits='mnist5k', ndigits=3, max_speed=9, nx=128)
    args = parse(mmnist.make_command(config, 'DIR', 30).split()[3:])
    assert (args.deterministic, args.digit_source, args.digits, args.max_speed, args.seq_len,
            args.frame_size) == (True, 'mnist5k', 3, 9, 30, 128)


WHOLE = np.zeros((6, 2, 64, 64), np.uint8)


@pytest.mark.parametrize('arrays', [
    {'sequences': np.array([{}], object)}, {'other': np.zeros(3)},
    {'sequences': np.zeros((6, 2, 32, 32), np.uint8)}, {'sequences': WHOLE[:, :0]},
    {'sequences': WHOLE, 'latents': np.full((6, 2, 2, 4), '4')},
    {'sequences': WHOLE, 'latents': np.full((6, 2, 2, 4), np.nan)}])
def test_foreign_test_sets(arrays, run_dir, tmp_path):
    np.savez(tmp_path / 'smmnist5k_test_2digits_64.npz', **arrays)
    with pytest.raises(UserError, match='make it again with: .* --force') as caught:
        load_test(load_config(run_dir), tmp_path, 6)
    assert 'pickle' not in str(caught.value)  # as NumPy advises


def test_damaged_test_sets(run_dir, tmp_path, monkeypatch):
    config, path = load_config(run_dir), tmp_path / 'smmnist5k_test_2digits_64.npz'
    path.write_bytes(b'PK\x03\x04 cut')
    with pytest.raises(UserError, match='make it again'):
        load_test(config, tmp_path, 6)
    with pytest.raises(MemoryError), monkeypatch.context() as m:  # not the file's fault
        m.setattr('zipfile.ZipFile', Mock(side_effect=MemoryError))
        load_test(config, tmp_path, 6)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match='cannot be read .Is a directory.; check') as caught:
        load_test(config, tmp_path, 6)
    assert '--force' not in str(caught.value)


# Workers

def alive(pid):
    """Whether a process runs, zombies not counted."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_loader_ends_its_workers_only(source):
    other = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,), daemon=True)
    other.start()
    batches = (range(i, i + 2) for i in itertools.count())
    with pytest.raises(ZeroDivisionError) as kept_alive:  # the traceback refers to the iterator
        with make_loader(BatchStream(source, 5, 'train', 3), batches, 1) as loader:
            for _ in loader:
                workers = set(multiprocessing.active_children()) - {other}
                assert len(workers) == 1
                raise ZeroDivisionError
    assert kept_alive.traceback and multiprocessing.active_children() == [other]
    other.kill()
    other.join()


def test_loader_kills_workers_that_hang(source, monkeypatch, tmp_path):
    def hang(rngs, nt):
        (tmp_path / 'hanging').touch()
        time.sleep(60)
    monkeypatch.setattr(source, 'draw', hang)
    monkeypatch.setattr(torch.utils.data._utils, 'MP_STATUS_CHECK_INTERVAL', 0.1)
    with make_loader(BatchStream(source, 5, 'train', 3), [range(2)], 1) as loader:
        iter(loader)
        worker, = multiprocessing.active_children()
        while not (tmp_path / 'hanging').exists():
            time.sleep(0.01)
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL


LOADING = """
import itertools, multiprocessing, sys
import numpy as np
from data.stream import BatchStream, make_loader
from files import exclusive

class Source:
    def draw(self, rngs, nt):
        return np.zeros((nt, len(rngs), 64, 64, 1), np.uint8)

stream = BatchStream(Source(), 0, 'train', 5)
batches = (range(i, i + 50) for i in itertools.count())
with exclusive(sys.argv[1], ''), make_loader(stream, batches, 2) as loader:
    for i, _ in enumerate(loader):
        if i == 3:
            print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
"""


def test_workers_end_after_the_main_process_is_killed(tmp_path):
    """Soon, silently, and releasing the locks that they inherited."""
    process = subprocess.Popen([sys.executable, '-c', LOADING, tmp_path / 'lock'], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    workers = process.stdout.readline().split()
    process.kill()
    killed = time.monotonic()
    assert workers and process.communicate()[1] == ''
    while any(map(alive, workers)):  # they close stderr before they have ended
        assert time.monotonic() - killed < 4
        time.sleep(0.01)
    with exclusive(tmp_path / 'lock', 'the lock is held'):
        pass
