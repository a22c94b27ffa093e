"""Progress bars and locks."""

import errno
import fcntl
import subprocess
import sys

import pytest

from conftest import ROOT
from files import UserError, exclusive, progress_bar

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
