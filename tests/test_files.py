"""Files written whole, what is said about bad ones, weights, and progress bars."""

import errno
import json
import sys

import files
from files import UserError, progress_bar, read_json, replacing, write_json

import pytest
import torch

from args import load_config
from model import build_model
from utils import load, load_model, load_weights, save


def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path):
    path = tmp_path / 'a.json'
    write_json(path, {'a': 1})
    with pytest.raises(KeyboardInterrupt), replacing(path) as tmp:
        tmp.write_text('half')
        assert read_json(path) == {'a': 1}
        raise KeyboardInterrupt
    with pytest.raises(ValueError):
        write_json(path, {'a': float('nan')})
    assert read_json(path) == {'a': 1} and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError) as caught, replacing(path) as tmp:
        raise OSError(errno.ENOSPC, 'No space left on device', str(tmp))
    assert files.explain(caught.value) == f'{path}: No space left on device'


def test_a_folder_replaces_another_one(tmp_path):
    path = tmp_path / 'folder'
    for name in ('one', 'two'):
        with replacing(path) as tmp:
            tmp.mkdir()
            (tmp / name).touch()
            assert not (path / name).exists()
    assert [p.name for p in path.iterdir()] == ['two'] and list(tmp_path.iterdir()) == [path]


def test_reading_says_what_is_wrong_with_a_file(tmp_path):
    path = tmp_path / 'a.json'
    for text, message in (('{"a"', r'is not a JSON file of one object \(.+\); use another one'),
                          ('[1]', r'\(it holds a list\)')):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_json(path)
    with pytest.raises(FileNotFoundError):  # the operating system says it well
        read_json(tmp_path / 'b.json')
    with pytest.raises(UserError, match='it holds more than tensors and plain values'), \
            files.reading('f', 'is bad', 'do this'):
        raise ValueError('Object arrays cannot be loaded when allow_pickle=False')
    with pytest.raises(MemoryError), files.reading('f', 'is bad', 'do this'):
        raise MemoryError  # not the file's fault


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
    for _ in progress_bar(range(3), disable=None):  # within another one: for terminals only
        pass
    assert capsys.readouterr().err == ''


def test_progress_on_a_terminal_is_redrawn(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    with progress_bar(total=2, desc='work') as bar:
        bar.update(2)
    assert '\rwork' in capsys.readouterr().err


# Weights

@pytest.fixture(scope='module')
def weights(run_dir):
    return load(run_dir / 'model.pt')


def test_a_model_is_loaded_without_being_initialised(run_dir, monkeypatch):
    """Foreign sizes take neither memory nor time; right ones give the same model and layout."""
    config = load_config(run_dir)
    expected = build_model(config)
    load_weights(expected, run_dir / 'model.pt')
    monkeypatch.setattr(torch.nn.init, 'orthogonal_', None)
    found = load_model(config, run_dir / 'model.pt', 'cpu')
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    pairs = zip(expected.state_dict().items(), found.state_dict().items(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other and torch.equal(a, b) and a.dtype == b.dtype, name
        strides = zip(a.stride(), b.stride(), a.shape)  # arbitrary in dimensions of size 1
        assert all(m == n for m, n, size in strides if size > 1), name
    config.nh_res = 10 ** 6  # 4 TB
    with pytest.raises(UserError, match='does not fit the configuration'):
        load_model(config, run_dir / 'model.pt', 'cpu')


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.'])
def test_names_of_distributed_and_compiled_models(prefix, run_dir, weights, tmp_path):
    save(tmp_path / 'model.pt', {prefix + name: v for name, v in weights.items()})
    found = load_model(load_config(run_dir), tmp_path / 'model.pt', 'cpu').state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_weights_in_half_precision(run_dir, weights, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    save(tmp_path / 'model.pt', half)
    found = load_model(load_config(run_dir), tmp_path / 'model.pt', 'cpu')
    assert all(v.dtype == weights[k].dtype for k, v in found.state_dict().items())


def test_other_weights(run_dir, weights, tmp_path):
    def fails(state, message, **changes):
        config = json.loads((run_dir / 'config.json').read_text())
        (tmp_path / 'config.json').write_text(json.dumps({**config, **changes}))
        save(tmp_path / 'model.pt', state)
        with pytest.raises(UserError, match=message):
            load_model(load_config(tmp_path), tmp_path / 'model.pt', 'cpu')
    fails(weights, 'does not fit the configuration .* as decoder.first_upconv.0.weight: .*; use '
                   'the options of its own training, such as --nf', ny=7)
    fails({k: v for k, v in weights.items() if k != 'w_inf.0.bias'},
          r'1 of \d+ parameters differ, as w_inf.0.bias: missing, expected \(8,\)')
    for state in ([1, 2], {'a': 1}):
        fails(state, 'it is no plain state_dict')


def test_a_full_disk_is_said_by_the_operating_system(tmp_path, monkeypatch):
    def write(value, f):
        try:
            raise OSError(28, 'No space left on device')
        except OSError:
            raise RuntimeError('PytorchStreamWriter failed')  # noqa: B904, as PyTorch does
    monkeypatch.setattr(torch, 'save', write)
    with pytest.raises(OSError, match='No space left'):
        save(tmp_path / 'model.pt', {})
    assert not list(tmp_path.iterdir())
