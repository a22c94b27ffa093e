"""Scripts in their own processes, forked from one that has imported PyTorch: they start at once.

With the environment variables of a launcher they form a job.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent

_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['preloaded'])


def _main(script, argv, env, out, err):
    """What the new process does."""
    multiprocessing.set_start_method(None, force=True)  # not this one's forkserver
    for fd, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY), fd)
    # Buffered, as files are
    sys.stdout, sys.stderr = (open(fd, 'w', closefd=False) for fd in (1, 2))
    os.environ.update(env)
    sys.argv = [str(script), *argv]
    try:
        runpy.run_path(str(ROOT / script), run_name='__main__')
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


class Script:
    """A running script, with the interface of `subprocess.Popen` as far as tests need it."""

    def __init__(self, script, *argv, env=None):
        # Of the first process, which preloads modules
        os.environ['PYTHONPATH'] = f'{ROOT}{os.pathsep}{ROOT / "tests"}'
        self._files = [tempfile.NamedTemporaryFile('r') for _ in range(2)]
        out, err = (f.name for f in self._files)
        self._process = _context.Process(
            target=_main, args=(script, list(map(str, argv)), env or {}, out, err))
        # Not to import pytest, the main module, in the new process
        with mock.patch.dict(sys.modules, {'__main__': types.ModuleType('__main__')}):
            self._process.start()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def communicate(self, timeout=240):
        """Wait for the end; returns what was printed to stdout and to stderr."""
        self._process.join(timeout)
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)
            raise TimeoutError(f'still running after {timeout} s: {self._read()}')
        return self._read()

    def _read(self):
        return tuple(Path(f.name).read_text() for f in self._files)


def patched(folder, code):
    """Path of a script in `folder` that is train.py after some changes."""
    path = folder / 'patched.py'
    path.write_text('import os, signal, sys, time\nimport train\nfrom training import validation\n'
                    f'{code}\ntrain.run_script(train.main)\n')
    return path


def start_job(script, *argvs, local_size=None):
    """Start the processes of a job, one per argument list, on machines of `local_size` processes.

    By default they are all on one machine. Returns the list of `Script`.
    """
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    size = len(argvs)
    local_size = local_size or size
    return [Script(script, *argv, env={
        'RANK': str(rank), 'WORLD_SIZE': str(size), 'LOCAL_RANK': str(rank % local_size),
        'LOCAL_WORLD_SIZE': str(local_size), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)})
        for rank, argv in enumerate(argvs)]


def run_job(script, *argvs, **kwargs):
    """Run a job to its end. Returns exit codes, stdout and stderr of its processes, as lists."""
    jobs = start_job(script, *argvs, **kwargs)
    outs, errs = zip(*(job.communicate() for job in jobs))
    return [job.returncode for job in jobs], list(outs), list(errs)
