"""Progress bars, locks and arrays."""

import errno
import fcntl
import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import files
from conftest import ROOT
from files import UserError, exclusive, progress_bar, read_npz

# Holds a lock, also during the life of a forked child, until it is killed
HOLD = '''
import multiprocessing, sys, time
from files import exclusive
with exclusive(sys.argv[1], 'in use'):
    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(30,))
    child.start()
    print(child.pid, flush=True)
    time.sleep(30)
'''


def test_progress_outside_a_terminal_is_a_few_lines(capsys):
    with progress_bar(total=200, desc='work', unit='step') as bar:
        for i in range(200):
            bar.update()
            if i == 100:
                bar.write('a result')
    out, err = capsys.readouterr()
    assert out == 'a result\n' and '\r' not in err and '\x1b' not in err
    first, *_, last = err.splitlines()
    assert first.startswith('work:   0%') and last.startswith('work: 100%')
    assert '200/200' in last and len(err.splitlines()) < 5


def test_progress_on_a_terminal_is_redrawn(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    with progress_bar(total=2, desc='work') as bar:
        bar.update(2)
    assert '\rwork' in capsys.readouterr().err


def test_nested_bars_are_for_terminals_only(capsys):
    for _ in progress_bar(range(3), disable=None):
        pass
    assert capsys.readouterr().err == ''


def test_lock_is_exclusive_and_leaves_no_file(tmp_path):
    path = tmp_path / 'lock'
    with exclusive(path, 'in use'):
        with pytest.raises(UserError, match='in use'), exclusive(path, 'in use'):
            pass
        assert path.exists()
    assert not path.exists()
    with exclusive(path, 'in use'):
        pass


def test_lock_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / 'lock'
    with subprocess.Popen([sys.executable, '-c', HOLD, path], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        try:
            with pytest.raises(UserError, match='in use'), exclusive(path, 'in use'):
                pass
            process.kill()
            process.wait()
            with exclusive(path, 'in use'):  # although the child is still running
                assert path.exists()
        finally:
            process.kill()
            subprocess.run(['kill', str(child)], check=False)


def test_disk_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'flock', flock)
    message = r'cannot be locked \(No locks available\); .* another disk'
    with pytest.raises(UserError, match=message), exclusive(tmp_path / 'lock', ''):
        pass


@pytest.mark.parametrize('array', [np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.float64(3),
                                   np.asfortranarray(np.random.rand(3, 2)), np.array(['a', 'bc']),
                                   np.zeros((0, 3), np.uint8)])
def test_arrays_are_read_as_numpy_reads_them(array, tmp_path):
    np.savez_compressed(tmp_path / 'a.npz', **{'a/x': array, 'b': array})
    found = read_npz(tmp_path / 'a.npz', 'a/')
    assert list(found) == ['a/x'] and found['a/x'].dtype == array.dtype
    np.testing.assert_array_equal(found['a/x'], array, strict=True)


def test_arrays_that_are_damaged(tmp_path):
    path = tmp_path / 'a.npz'
    np.savez(path, a=np.array([{}], object))
    with pytest.raises(ValueError, match='Python objects'):
        read_npz(path)
    for shape, message in (((3,), 'an array ends early'), ((1,), 'memoryview assignment')):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {'descr': '<i4', 'fortran_order': False, 'shape': shape})
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('a.npy', header.getvalue() + b'01234567')
        with pytest.raises(ValueError, match=message):
            read_npz(path)
    np.savez(path, a=np.arange(1000))
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match='CRC'):
        read_npz(path)


def test_array_written_in_parts(tmp_path):
    whole = np.random.RandomState(0).randint(0, 256, (7, 3, 5)).astype(np.uint8)
    files.write_npz_parts(tmp_path / 'a.npz', 'samples', 7, (whole[i:i + 3] for i in (0, 3, 6)))
    with np.load(tmp_path / 'a.npz', allow_pickle=False) as f:
        assert f.files == ['samples']
        np.testing.assert_array_equal(f['samples'], whole, strict=True)
