"""`pretrained.py`, with the real huggingface_hub and a server on this machine that acts as the hub.

Weights have the published names and shapes, but repeat one number: their files are small.
"""

import contextlib
import fcntl
import hashlib
import http.server
import io
import json
import os
import pty
import re
import resource
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import torch

import pretrained
from args import parse_train, preset_config
from checkpoint import load_model
from conftest import GOLDEN, ROOT
from files import exclusive
from pretrained import FILES, MODELS, REPO
from published import PUBLISHED

STATES = json.loads((GOLDEN / 'state_dicts.json').read_text())
COMMIT = '0123456789abcdef0123456789abcdef01234567'
CONFIG_KEYS = ['archi', 'dataset', 'deterministic', 'max_speed', 'n_euler_steps', 'nc', 'nf',
               'nh_inf', 'nh_res', 'nhx', 'nlayers_inf', 'nlayers_res', 'nt_cond', 'nt_inf',
               'ndigits', 'nx', 'ny', 'nz', 'seq_len_test', 'skipco', 'subsampling']


class Hub(http.server.ThreadingHTTPServer):
    """Server of `files`, {path in REPO: bytes}. It records GET requests as (path, Range)."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files = {}
        self.requests = []
        self.cuts = []      # bytes after which the next responses to GET break off
        self.status = None  # of all responses, instead of the file

    @property
    def endpoint(self):
        return f'http://127.0.0.1:{self.server_port}'

    def publish(self, name, config=None, weights=None):
        folder = MODELS[name].folder
        self.files |= {f'{folder}/config.json': config or published_config(name),
                       f'{folder}/model.pt': weights or published_weights(name)}


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        hub, body = self.server, self.answer()
        hub.requests.append((self.path.rpartition('/')[2], self.headers['Range']))
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[:hub.cuts.pop(0) if hub.cuts else None])

    def answer(self):
        """Send status and headers; return the body."""
        hub = self.server
        body = hub.files.get(self.path.removeprefix(f'/{REPO}/resolve/main/'))
        if hub.status or body is None:
            self.send_response(hub.status or 404)
            self.send_header('X-Error-Code', 'EntryNotFound')
            self.send_header('Content-Length', '0')
            self.end_headers()
            return b''
        etag, size, start = hashlib.sha256(body).hexdigest(), len(body), 0
        if wanted := self.headers['Range']:
            start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1])
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header('Content-Range', f'bytes {start}-{size - 1}/{size}')
        self.send_header('Accept-Ranges', 'bytes')
        self.send_header('Content-Length', str(size - start))
        self.send_header('ETag', f'"{etag}"')
        self.send_header('X-Repo-Commit', COMMIT)
        self.end_headers()
        return body[start:]


def published_config(name, **changes):
    """`config.json` of a published model: the keys of the published ones only."""
    config = vars(preset_config(name))
    return json.dumps({key: config[key] for key in CONFIG_KEYS} | changes).encode()


def published_state(name):
    """State dict of a published model, all numbers 1."""
    shapes = STATES[name.removesuffix('_deterministic')]['state_dict']
    whole, real = torch.ones(1, dtype=torch.int64), torch.ones(1)
    return {key: (real if shape else whole).expand(shape) if shape else whole[0]
            for key, shape in shapes.items()}


def published_weights(name, **changes):
    """`model.pt` of a published model, with some tensors replaced, or removed by None."""
    state = published_state(name) | {key.replace('__', '.'): v for key, v in changes.items()}
    file = io.BytesIO()
    torch.save({key: value for key, value in state.items() if value is not None}, file)
    return file.getvalue()


@pytest.fixture
def environ(tmp_path, monkeypatch):
    """Environment of a user with an empty cache, in which huggingface_hub is yet to be imported."""
    for name in [name for name in os.environ if name.startswith('HF_')]:
        monkeypatch.delenv(name)
    for name, value in {'HF_HOME': 'cache', 'NO_PROXY': '127.0.0.1',
                        'HF_HUB_DISABLE_TELEMETRY': 1, 'HF_HUB_DISABLE_XET': 1,
                        'HF_HUB_ETAG_TIMEOUT': 2, 'HF_HUB_DOWNLOAD_TIMEOUT': 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(time, 'sleep', lambda _: None)  # between the attempts of huggingface_hub
    forget_hub(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def forget_hub(monkeypatch):
    """Let the next import of huggingface_hub read its environment again."""
    for name in [name for name in sys.modules if name.split('.')[0] == 'huggingface_hub']:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def hub(environ):
    """The hub, at HF_ENDPOINT."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        environ.setenv('HF_ENDPOINT', hub.endpoint)
        yield hub
        hub.shutdown()


def check_error(result, *words):
    """Check that a call ended with one sentence that has these words, and placed nothing."""
    assert result.code == 2 and not result.out
    (message,) = re.findall(r'^error: (.*)\n\Z', result.err, re.M)
    assert [word for word in map(str, words) if word not in message] == [], message
    placed = Path('pretrained')
    assert not placed.exists() or not list(placed.iterdir())


# The list

def test_list_and_help_need_neither_pytorch_nor_the_hub():
    code = ('import sys, pretrained; pretrained.main([]); sys.argv[1:] = ["--help"]\n'
            'try: pretrained.main()\n'
            'finally: print(*{"torch", "huggingface_hub"} & sys.modules.keys(), file=sys.stderr)')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, '\n')
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[1:6]}
    assert list(rows) == list(PUBLISHED)
    for text in ('10,678,284', '43', 'Stochastic Moving MNIST', '16.93 ± 0.07', '0.7799 ± 0.0020'):
        assert text in rows['smmnist']
    for text in ('23,877,854', '96', '29.69 ± 0.32', '0.8697 ± 0.0046', '0.0736 ± 0.0029'):
        assert text in rows['kth']
    for text in (REPO, 'https://data.lip6.fr/srvp/', '--out_dir'):
        assert text in done.stdout


def test_table():
    assert list(MODELS) == list(PUBLISHED)
    for name, model in MODELS.items():
        assert model.parameters == STATES[name.removesuffix('_deterministic')]['parameters']
    assert {name for name, paper in PUBLISHED.items() if paper.n_samples == 1} == {
        'smmnist_deterministic'}


def test_options(call):
    result = call(pretrained.main, 'mnist')
    assert result.code == 2 and "invalid choice: 'mnist'" in result.err
    result = call(pretrained.main, '--out_dir', 'x')
    assert result.code == 2 and '--out_dir x needs the NAME of a model' in result.err


# Whole

@pytest.mark.parametrize('name', PUBLISHED)
def test_download(name, hub, call):
    hub.publish(name)
    code, out, _ = call(pretrained.main, name)
    assert code == 0
    folder = Path('pretrained') / name
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert os.listdir('pretrained') == [name]
    assert hub.requests == [(file, None) for file in FILES]
    for file in FILES:
        body = hub.files[f'{MODELS[name].folder}/{file}']
        assert (folder / file).read_bytes() == body
        assert f'SHA-256 {hashlib.sha256(body).hexdigest()}  {file}' in out
    n_samples = 1 if name == 'smmnist_deterministic' else 100
    assert (f'python test.py --xp_dir pretrained/{name} --data_dir DATA '
            f'--nt_gen {PUBLISHED[name].nt_gen} --n_samples {n_samples}\n') in out
    weights = f'pretrained/{name}/model.pt'
    command = f'python train.py --preset {name} --data_dir DATA --save_path RUN --weights {weights}'
    assert f'{command}\n' in out
    config = parse_train(command.split()[2:])  # what --weights accepts
    state = load_model(config, config.weights, 'cpu').state_dict()
    assert all((value == 1).all() for value in state.values())


def test_command_line(hub):
    hub.publish('smmnist')
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('4H', 25, 100, 0, 0))
    done = subprocess.run([sys.executable, ROOT / 'pretrained.py', 'smmnist', '--out_dir', 'a b'],
                          text=True, stdout=subprocess.PIPE, stderr=terminal)
    shown = os.read(reader, 10_000).decode()
    os.close(reader)
    os.close(terminal)
    assert done.returncode == 0, shown
    assert "--xp_dir 'a b' " in done.stdout and sorted(os.listdir('a b')) == FILES
    assert re.search('model.pt: 100%', shown)  # progress


def test_again(hub, call, environ):
    hub.publish('smmnist')
    first = call(pretrained.main, 'smmnist')
    Path('pretrained/smmnist/results.json').touch()  # of test.py
    n_requests = len(hub.requests)
    again = call(pretrained.main, 'smmnist')
    assert again.code == 0 and 'already holds the published model smmnist' in again.out
    assert again.out.splitlines()[1:] == first.out.splitlines()[1:]
    assert len(hub.requests) == n_requests  # nothing downloaded

    environ.setenv('HF_HUB_OFFLINE', '1')
    forget_hub(environ)
    assert call(pretrained.main, 'smmnist').out == again.out
    assert call(pretrained.main, 'smmnist', '--out_dir', 'copy').code == 0
    assert sorted(os.listdir('copy')) == FILES


def test_empty_folder_is_used(hub, call):
    hub.publish('smmnist')
    os.makedirs('model')
    assert call(pretrained.main, 'smmnist', '--out_dir', 'model').code == 0
    assert sorted(os.listdir('model')) == FILES


def test_hub_entry_downloads_into_its_own_folder(hub, environ):
    """Of a copy of the repository, loaded beside this one; once."""
    hub.publish('smmnist')
    ignored = shutil.ignore_patterns('.*', 'tests', 'docs', 'runs', '__pycache__')
    copy = shutil.copytree(ROOT, Path('elsewhere') / 'srvp', ignore=ignored)
    for _ in range(2):
        srvp = torch.hub.load(str(copy), 'srvp', 'smmnist', source='local')
        assert srvp.w(torch.rand(5, 64, 64)).shape == (256,)
        assert sorted(os.listdir(copy / 'pretrained' / 'smmnist')) == FILES
        hub.files.clear()
    assert [file for file, _ in hub.requests] == FILES
    assert sys.modules['pretrained'] is pretrained and not Path('pretrained').exists()


# Broken

def test_broken_connection_is_resumed(hub, call, environ):
    """Within the call, or by the next one: this depends on the version of huggingface_hub."""
    hub.publish('smmnist')
    hub.cuts = [None, 3000, 2000]
    environ.setattr('huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE', 1000)
    for _ in range(3):
        result = call(pretrained.main, 'smmnist')
        if result.code:
            check_error(result, 'model.pt cannot be downloaded', 'run the command again')
    assert result.code == 0 and not hub.cuts
    ranges = [wanted for file, wanted in hub.requests if file == 'model.pt']
    assert ranges == [None, 'bytes=3000-', 'bytes=5000-']
    weights = hub.files['mmnist/stochastic/model.pt']
    assert Path('pretrained/smmnist/model.pt').read_bytes() == weights


def test_connection_that_breaks_all_the_time(hub, call):
    hub.publish('smmnist')
    hub.cuts = [None, *[0] * 20]
    check_error(call(pretrained.main, 'smmnist'), hub.endpoint, 'mmnist/stochastic/model.pt cannot',
                'HF_ENDPOINT', 'https://data.lip6.fr/srvp/')
    hub.cuts.clear()
    assert call(pretrained.main, 'smmnist').code == 0


# No hub

def test_missing_file(hub, call):
    check_error(call(pretrained.main, 'smmnist'), f'{hub.endpoint}/{REPO}/resolve/main/mmnist/'
                'stochastic/config.json cannot be downloaded', '404')


def test_server_error(hub, call):
    hub.publish('smmnist')
    hub.status = 503
    check_error(call(pretrained.main, 'smmnist'), 'cannot be downloaded', '503')


def test_offline(hub, call, environ):
    hub.publish('smmnist')
    environ.setenv('HF_HUB_OFFLINE', '1')
    check_error(call(pretrained.main, 'smmnist'), 'mmnist/stochastic/config.json', 'HF_HUB_OFFLINE',
                'cache/hub')
    assert not hub.requests


@pytest.mark.parametrize('endpoint, reason', [
    ('http://127.0.0.1:9', 'refused'), ('127.0.0.1', 'protocol|meant https:')])
def test_no_network(endpoint, reason, call, environ):
    environ.setenv('HF_ENDPOINT', endpoint)
    result = call(pretrained.main, 'kth')
    check_error(result, f'{endpoint}/{REPO}/resolve/main/kth/config.json', 'check the network')
    assert re.search(reason, result.err)


# No space

@contextlib.contextmanager
def disk_of(size):
    """Files cannot be larger than `size` bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_space_in_the_cache(hub, call):
    hub.publish('smmnist')
    with disk_of(5000):
        result = call(pretrained.main, 'smmnist')
    check_error(result, 'cache/hub', 'cannot be written', 'free space')
    assert call(pretrained.main, 'smmnist').code == 0


def test_no_space_for_the_copy(hub, call):
    hub.publish('smmnist')
    assert call(pretrained.main, 'smmnist', '--out_dir', 'model').code == 0  # fills the cache
    with disk_of(5000):
        result = call(pretrained.main, 'smmnist')
    check_error(result, 'pretrained/smmnist/model.pt cannot be written', 'free space')


def test_folder_that_cannot_be_created(call, environ):
    Path('file').touch()
    check_error(call(pretrained.main, 'smmnist', '--out_dir', 'file/model'), '--out_dir', 'file',
                'cannot be created')


# Wrong files

def wrong_weights(name, **changes):
    return lambda: published_weights(name, **changes)


@pytest.mark.parametrize('weights, reason', [
    (lambda: b'<!DOCTYPE html>', 'is not a readable weights file'),
    (lambda: published_weights('smmnist', more=torch.ones(50_000))[:100_000],
     'is not a readable weights file'),
    (wrong_weights('kth'), 'does not fit the configuration'),
    (wrong_weights('smmnist', q_z__bias=None), 'the first is q_z.bias'),
    (wrong_weights('smmnist', q_z__bias=torch.ones(41)), 'the first is q_z.bias'),
    (wrong_weights('smmnist', more=torch.ones(1)), 'the first is more'),
    (wrong_weights('smmnist', q_z__bias=torch.tensor(float('nan')).expand(40)),
     'q_z.bias has values that are not finite'),
    (wrong_weights('smmnist', more=pretrained.Model), 'more than tensors and plain values')])
def test_wrong_weights(weights, reason, hub, call):
    hub.publish('smmnist', weights=weights())
    check_error(call(pretrained.main, 'smmnist'),
                f'{REPO}/mmnist/stochastic/model.pt is not as published: model.pt', reason,
                'delete its copy in cache/hub')


@pytest.mark.parametrize('name, changes, reason', [
    ('smmnist', {'nf': 32}, 'has nf 32, expected 64'),
    ('smmnist', {'deterministic': True}, 'has deterministic True, expected False'),
    ('smmnist_deterministic', {'deterministic': False}, 'has deterministic False, expected True'),
    ('smmnist', {'max_speed': 5}, 'has max_speed 5, expected 4'),
    ('smmnist', {'nt_cond': 6}, 'has nt_cond 6, expected 5'),
    ('kth', {'dataset': 'smmnist'}, 'has dataset smmnist, expected kth'),
    ('kth', {'skipco': False}, 'has skipco False, expected True'),
    ('kth', {'n_euler_steps': 1}, 'has n_euler_steps 1, expected 2'),
    ('smmnist', {'dynamics': 'mlp'}, 'has dynamics mlp, expected residual'),
    ('human', {'subsampling': 4}, 'has subsampling 4, expected 8'),
    ('kth', {'ny': 'many'}, "ny: expected a whole number of at least 1 and at most 10000, found "
                            "'many'")])
def test_wrong_configuration(name, changes, reason, hub, call):
    hub.publish(name, config=published_config(name, **changes))
    check_error(call(pretrained.main, name),
                f'{REPO}/{MODELS[name].folder}/config.json is not as published: config.json',
                reason)
    assert [file for file, _ in hub.requests] == ['config.json']


def test_what_does_not_matter_may_differ(hub, call):
    hub.publish('kth', config=published_config('kth', max_speed=8, seq_len_test=40, lr=1e-3))
    assert call(pretrained.main, 'kth').code == 0


def test_damaged_cache_is_repaired_as_advised(hub, call):
    hub.publish('smmnist')
    right = hub.files['mmnist/stochastic/model.pt']
    assert call(pretrained.main, 'smmnist', '--out_dir', 'model').code == 0
    (cached,) = Path('cache').rglob('model.pt')
    cached.resolve().write_bytes(b'damaged')
    result = call(pretrained.main, 'smmnist')
    check_error(result, 'is not a readable weights file')
    cache = Path(re.search('delete its copy in (.*)', result.err)[1])
    shutil.rmtree(cache / f'models--{REPO.replace("/", "--")}')
    assert call(pretrained.main, 'smmnist').code == 0
    assert Path('pretrained/smmnist/model.pt').read_bytes() == right


# A folder that exists

def test_another_model_is_kept(hub, call):
    hub.publish('smmnist')
    assert call(pretrained.main, 'smmnist', '--out_dir', 'model').code == 0
    Path('model/model.pt').write_bytes(b'mine')
    check_error(call(pretrained.main, 'smmnist', '--out_dir', 'model'),
                '--out_dir', 'holds another model (model.pt differs)', 'use another folder')
    assert Path('model/model.pt').read_bytes() == b'mine'


@pytest.mark.parametrize('file', ['model/config.json', 'model'])
def test_other_files_are_kept(file, hub, call):
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text('mine')
    check_error(call(pretrained.main, 'smmnist', '--out_dir', 'model'), '--out_dir', 'model exists',
                'use another folder')
    assert Path(file).read_text() == 'mine' and not hub.requests


def test_one_process_at_a_time(hub, call):
    hub.publish('smmnist')
    os.makedirs('pretrained')
    with exclusive(Path('pretrained/.smmnist.lock'), 'locked'):
        result = call(pretrained.main, 'smmnist')
    check_error(result, '--out_dir', 'another process is downloading there')
