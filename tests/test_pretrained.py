"""`pretrained.py`, with the real huggingface_hub and a server on this machine that acts as the hub.

Weights have the published names and shapes, but repeat one number: their files are small.
"""

import hashlib
import http.server
import io
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import pretrained
from args import preset_config
from conftest import GOLDEN, ROOT
from pretrained import MODELS, REPO
from utils import load_model

STATES = json.loads((GOLDEN / 'state_dicts.json').read_text())
FILES = ['config.json', 'model.pt']
CONFIG_KEYS = ['archi', 'dataset', 'deterministic', 'max_speed', 'n_euler_steps', 'nc', 'nf',
               'nh_inf', 'nh_res', 'nhx', 'nlayers_inf', 'nlayers_res', 'nt_cond', 'nt_inf',
               'ndigits', 'nx', 'ny', 'nz', 'seq_len_test', 'skipco', 'subsampling']


class Hub(http.server.ThreadingHTTPServer):
    """Server of `files`, {path in REPO: bytes}, which records the files that are requested."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.requests = {}, []

    def publish(self, name, config=None, weights=None):
        folder, _ = MODELS[name]
        self.files |= {f'{folder}/config.json': config or published_config(name),
                       f'{folder}/model.pt': weights or published_weights(name)}


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        hub = self.server
        self.body = hub.files.get(self.path.removeprefix(f'/{REPO}/resolve/main/'), b'')
        self.send_response(200 if self.body else 404)
        self.send_header('Content-Length', str(len(self.body)))
        self.send_header('ETag', f'"{hashlib.sha256(self.body).hexdigest()}"')
        self.send_header('X-Repo-Commit', '0123456789abcdef0123456789abcdef01234567')
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.body)
        self.server.requests.append(self.path.rpartition('/')[2])


def published_config(name, **changes):
    """`config.json` of a published model: the keys of the published ones only."""
    config = vars(preset_config(name))
    return json.dumps({key: config[key] for key in CONFIG_KEYS} | changes).encode()


def published_weights(name, **changes):
    """`model.pt` of a published model, all numbers 1, but for tensors that are replaced."""
    shapes = STATES[name.removesuffix('_deterministic')]['state_dict']
    state = {key: torch.ones(()).expand(shape) if shape else torch.tensor(1)
             for key, shape in shapes.items()}
    file = io.BytesIO()
    torch.save(state | {key.replace('__', '.'): v for key, v in changes.items()}, file)
    return file.getvalue()


@pytest.fixture
def environ(tmp_path, monkeypatch):
    """Environment of a user in an empty folder, with an empty cache."""
    for name, value in {'HF_HOME': 'cache', 'NO_PROXY': '127.0.0.1', 'HF_HUB_DISABLE_XET': '1',
                        'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_OFFLINE': '0'}.items():
        monkeypatch.setenv(name, value)
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
        environ.setenv('HF_ENDPOINT', f'http://127.0.0.1:{hub.server_port}')
        yield hub
        hub.shutdown()


def check_error(result, *words):
    """Check that a call ended with one sentence that has these words, and placed nothing."""
    message = result.err.splitlines()[-1]
    assert result.code == 2 and message.startswith('error: ') and not Path('pretrained').exists()
    assert [word for word in words if word not in message] == [], message


def test_list(call):
    code, out, _ = call(pretrained.main)
    rows = {line.split()[0]: line for line in out.splitlines()[1:6]}
    assert code == 0 and list(rows) == list(MODELS)
    for text in ('23,877,854', '96', 'KTH', '29.69 ± 0.32', '0.8697 ± 0.0046', '0.0736 ± 0.0029'):
        assert text in rows['kth']
    for name, (_, parameters) in MODELS.items():
        assert parameters == STATES[name.removesuffix('_deterministic')]['parameters']


@pytest.mark.parametrize('name', MODELS)
def test_download(name, hub, call):
    hub.publish(name)
    code, out, _ = call(pretrained.main, name)
    assert code == 0 and hub.requests == FILES
    folder = Path('pretrained') / name
    assert sorted(os.listdir(folder)) == FILES
    for file in FILES:
        body = hub.files[f'{MODELS[name][0]}/{file}']
        assert (folder / file).read_bytes() == body
        assert f'SHA-256 {hashlib.sha256(body).hexdigest()}  {file}' in out
    lengths = {'smmnist': 25, 'smmnist_deterministic': 100, 'kth': 40, 'human': 53, 'bair': 30}
    n_samples = 1 if name == 'smmnist_deterministic' else 100
    assert (f'python test.py --xp_dir pretrained/{name} --data_dir DATA '
            f'--nt_gen {lengths[name]} --n_samples {n_samples}\n') in out
    assert (f'python train.py --preset {name} --data_dir DATA --save_path RUN --weights '
            f'pretrained/{name}/model.pt\n') in out
    state = load_model(preset_config(name), folder / 'model.pt', 'cpu').state_dict()
    assert all((value == 1).all() for value in state.values())


def test_files_are_downloaded_once(hub, call, environ):
    hub.publish('smmnist')
    assert call(pretrained.main, 'smmnist', '--out_dir', 'model').code == 0
    Path('model/results.json').touch()  # of test.py
    assert call(pretrained.main, 'smmnist', '--out_dir', 'model').code == 0
    environ.setenv('HF_HUB_OFFLINE', '1')
    forget_hub(environ)
    assert call(pretrained.main, 'smmnist', '--out_dir', 'copy').code == 0
    assert sorted(os.listdir('copy')) == FILES and hub.requests == FILES


def test_hub_entry_downloads_into_its_own_folder(hub):
    hub.publish('smmnist')
    ignored = shutil.ignore_patterns('.*', 'tests', 'docs', 'runs', '__pycache__')
    copy = shutil.copytree(ROOT, Path('elsewhere') / 'srvp', ignore=ignored)
    for _ in range(2):
        srvp = torch.hub.load(str(copy), 'srvp', 'smmnist', source='local')
        assert srvp.w(torch.rand(5, 64, 64, 1)).shape == (256,)
        assert sorted(os.listdir(copy / 'pretrained' / 'smmnist')) == FILES
    assert hub.requests == FILES
    assert sys.modules['pretrained'] is pretrained and not Path('pretrained').exists()


def test_no_network_and_missing_file(hub, call, environ):
    check_error(call(pretrained.main, 'kth'), 'kth cannot be downloaded', '404',
                'https://data.lip6.fr/srvp/')
    environ.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    forget_hub(environ)
    check_error(call(pretrained.main, 'kth'), 'cannot be downloaded', 'refused', 'HF_ENDPOINT')


@pytest.mark.parametrize('weights, reason', [
    (lambda: b'<!DOCTYPE html>', 'is a web page'),
    (lambda: published_weights('kth'), 'does not fit'),
    (lambda: published_weights('smmnist', q_z__bias=torch.full((40,), float('nan'))), 'not finite'),
    (lambda: published_weights('smmnist', more=pretrained.install), 'is not a readable')])
def test_wrong_weights(weights, reason, hub, call):
    hub.publish('smmnist', weights=weights())
    check_error(call(pretrained.main, 'smmnist'), 'model.pt', reason)


@pytest.mark.parametrize('name, key, value', [
    ('smmnist', 'nf', 32), ('smmnist', 'deterministic', True), ('smmnist', 'nt_cond', 6),
    ('smmnist_deterministic', 'deterministic', False), ('kth', 'skipco', False)])
def test_wrong_configuration(name, key, value, hub, call):
    hub.publish(name, config=published_config(name, **{key: value}))
    check_error(call(pretrained.main, name), 'https://data.lip6.fr/srvp/',
                f'config.json has {key} {value}, but the preset {name} has')


def test_another_model_is_kept(hub, call):
    hub.publish('smmnist')
    Path('model').mkdir()
    Path('model/model.pt').write_bytes(b'mine')
    check_error(call(pretrained.main, 'smmnist', '--out_dir', 'model'),
                '--out_dir model holds another model (model.pt differs); use another folder')
    assert os.listdir('model') == ['model.pt']
    assert Path('model/model.pt').read_bytes() == b'mine'
