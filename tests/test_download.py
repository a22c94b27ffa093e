"""Downloads from a local server that can misbehave."""

import contextlib
import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

import download
from conftest import DATA, ROOT, refused
from download import DownloadError, fetch
from files import UserError
from preprocessing import download as archives
from preprocessing.bair import download as bair
from preprocessing.download import untar, unzip
from preprocessing.kth import download as kth

SHA256 = hashlib.sha256(DATA).hexdigest()
WRONG = '0' * 64


def fails(*words):
    """Expect a UserError with all `words`, in one line."""
    @contextlib.contextmanager
    def check():
        with pytest.raises(UserError) as caught:
            yield
        message = str(caught.value)
        assert '\n' not in message
        assert [w for w in map(str, words) if w not in message] == [], message
    return check()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def ranges(site):
    return [requested for _, requested in site.requests]


# Downloads

@pytest.mark.parametrize('known', [{}, {'size': 5000}, {'size': 5000, 'sha256': SHA256}])
def test_fetch(site, tmp_path, known):
    fetch(site.url(), tmp_path / 'a', **known)
    assert (tmp_path / 'a').read_bytes() == DATA
    fetch(site.url(), tmp_path / 'a', **known)
    assert site.requests == [('data', None)] and names(tmp_path) == ['a']


def test_broken_connections_are_resumed(site, tmp_path, capsys):
    site.cuts = [1000, 1, 2000]
    fetch(site.url(), tmp_path / 'a', sha256=SHA256)
    assert ranges(site) == [None, 'bytes=1000-', 'bytes=1001-', 'bytes=3001-']
    assert (tmp_path / 'a').read_bytes() == DATA and names(tmp_path) == ['a']
    assert 'broke after 1,000 of 5,000 bytes' in capsys.readouterr().err


def test_any_number_of_breaks_that_make_progress(site, tmp_path):
    site.cuts = [10] * (3 * download.TRIES)
    fetch(site.url(), tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == DATA


def test_next_call_resumes(site, tmp_path):
    (tmp_path / 'a.part').write_bytes(DATA[:1234])
    fetch(site.url(), tmp_path / 'a')
    assert ranges(site) == ['bytes=1234-']
    assert (tmp_path / 'a').read_bytes() == DATA and names(tmp_path) == ['a']


@pytest.mark.parametrize('size, requested', [(None, ['bytes=5000-']), (5000, [])])
def test_complete_but_not_renamed(site, tmp_path, size, requested):
    (tmp_path / 'a.part').write_bytes(DATA)
    fetch(site.url(), tmp_path / 'a', size, SHA256)
    assert ranges(site) == requested
    assert (tmp_path / 'a').read_bytes() == DATA and names(tmp_path) == ['a']


@pytest.mark.parametrize('size, requested', [(None, ['bytes=6000-', None]), (5000, [None])])
def test_too_long_a_part_starts_over(site, tmp_path, size, requested):
    (tmp_path / 'a.part').write_bytes(bytes(6000))
    fetch(site.url(), tmp_path / 'a', size)
    assert ranges(site) == requested
    assert (tmp_path / 'a').read_bytes() == DATA


def test_server_without_ranges_starts_over(site, tmp_path):
    site.ranges, site.cuts = False, [1000]
    fetch(site.url(), tmp_path / 'a')
    assert ranges(site) == [None, 'bytes=1000-']
    assert (tmp_path / 'a').read_bytes() == DATA


def test_server_that_never_makes_progress(site, tmp_path):
    site.ranges, site.cuts = False, [1000] * 20
    with fails(site.url(), 'broke after 1,000 of 5,000', 'run again', tmp_path / 'a.part'):
        fetch(site.url(), tmp_path / 'a')
    assert len(site.requests) == download.TRIES
    assert (tmp_path / 'a.part').read_bytes() == DATA[:1000]


def test_interruption_keeps_the_part(site, tmp_path, monkeypatch):
    site.cuts = [1000]
    monkeypatch.setattr(download.time, 'sleep', Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fetch(site.url(), tmp_path / 'a')
    assert names(tmp_path) == ['a.part'] and (tmp_path / 'a.part').read_bytes() == DATA[:1000]


def test_server_that_lies_about_the_length(site, tmp_path):
    site.longer = [10] * 20
    with fails(site.url(), '5,000 of 5,010', 'run again'):
        fetch(site.url(), tmp_path / 'a')
    assert names(tmp_path) == ['a.part']


def test_server_that_changes_the_length(site, tmp_path):
    site.longer = [10]
    with fails(site.url(), '5,000 bytes', 'expected 5,010'):
        fetch(site.url(), tmp_path / 'a')
    assert names(tmp_path) == ['a.part']


def test_wrong_size_is_seen_before_the_download(site, tmp_path):
    with fails(site.url(), '5,000 bytes', 'expected 5,001', 'check the address'):
        fetch(site.url(), tmp_path / 'a', size=5001)
    assert names(tmp_path) == [] and len(site.requests) == 1


def test_length_not_announced(site, tmp_path):
    site.send_length = False
    fetch(site.url(), tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == DATA
    with fails(site.url(), '5,000 bytes', 'expected 4,999', 'removed'):
        fetch(site.url(), tmp_path / 'b', size=4999)
    assert names(tmp_path) == ['a']


def test_wrong_sha256(site, tmp_path):
    with fails(site.url(), SHA256, WRONG, 'removed', 'run again'):
        fetch(site.url(), tmp_path / 'a', sha256=WRONG)
    with pytest.raises(DownloadError) as caught:
        fetch(site.url(), tmp_path / 'a', sha256=WRONG)
    assert caught.value.reason == f'it has the SHA-256 {SHA256}, expected {WRONG}'
    assert names(tmp_path) == []


@pytest.mark.parametrize('known, words', [
    ({'size': 4}, ['3 bytes', 'expected 4']), ({'size': 3, 'sha256': WRONG}, [WRONG])])
def test_wrong_file_is_there(site, tmp_path, known, words):
    (tmp_path / 'a').write_bytes(b'own')
    with fails(tmp_path / 'a', 'delete it', *words):
        fetch(site.url(), tmp_path / 'a', **known)
    assert (tmp_path / 'a').read_bytes() == b'own' and site.requests == []


def test_not_found(site, tmp_path):
    with fails(site.url('none'), '(404 Client Error: Not Found)', 'check the address'):
        fetch(site.url('none'), tmp_path / 'a')
    assert names(tmp_path) == [] and len(site.requests) == 1


def test_server_errors_are_retried(site, tmp_path):
    site.statuses = [503]
    fetch(site.url(), tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == DATA
    site.statuses = [503] * download.TRIES
    with fails(site.url(), '503', 'run again'):
        fetch(site.url(), tmp_path / 'b')


def test_no_server(site, tmp_path):
    url = refused()
    with fails(url, '(Connection refused)', 'the network'):
        fetch(url, tmp_path / 'a')
    assert names(tmp_path) == []


def test_patience(site, tmp_path, monkeypatch):
    """An address that may be out of reach is asked once."""
    site.statuses = [503, 503]
    with fails(site.url(), '503'):
        fetch(site.url(), tmp_path / 'a', patience=1)
    assert len(site.requests) == 1
    site.statuses, site.cuts = [], [1000, 1000]
    fetch(site.url(), tmp_path / 'a', patience=1)  # while bytes come, it goes on
    assert (tmp_path / 'a').read_bytes() == DATA
    with socket.create_server(('127.0.0.1', 0)) as silent:
        url, start = f'http://127.0.0.1:{silent.getsockname()[1]}/data', time.perf_counter()
        with fails(url, 'cannot be downloaded'):
            fetch(url, tmp_path / 'b', patience=0.1)
        assert time.perf_counter() - start < 2


def test_names_that_take_long_to_resolve(tmp_path, monkeypatch):
    end = threading.Event()
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: end.wait(10) and [])
    with pytest.raises(DownloadError, match='no answer within 0.1 s') as caught:
        fetch('http://nowhere.example/data', tmp_path / 'a', patience=0.1)
    assert caught.value.reason == 'no answer within 0.1 s'
    end.set()


@pytest.mark.parametrize('url', ['kth.zip', 'file:///etc/passwd', 'http://', 'http://127.0.0.1:x/'])
def test_invalid_address(tmp_path, url):
    with fails(url, 'cannot be downloaded', 'check the address (--url)'):
        fetch(url, tmp_path / 'a')


def test_space_in_an_address(site, tmp_path):
    site.files['a%20b'] = DATA
    fetch(site.url('a b'), tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == DATA


def free(monkeypatch, n_bytes):
    """Pretend that this many bytes are free on any disk."""
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=n_bytes))


def test_no_space(site, tmp_path, monkeypatch):
    free(monkeypatch, 4999)
    with fails(tmp_path, site.url(), '4,999', '5,000', 'free some space'):
        fetch(site.url(), tmp_path / 'a')
    assert names(tmp_path) == []
    (tmp_path / 'a.part').write_bytes(DATA[:1])  # needs no more space
    fetch(site.url(), tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == DATA


def test_unwritable_part(site, tmp_path):
    (tmp_path / 'a.part').mkdir()
    with fails(tmp_path / 'a.part', 'cannot be written', 'Is a directory'):
        fetch(site.url(), tmp_path / 'a', size=5000)


# Archives

def zipped(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as f:
        for name, content in files.items():
            f.writestr(name, content)
    return data.getvalue()


def tarred(files, link=None):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode='w') as f:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            f.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo('link')
            info.type, info.linkname = tarfile.SYMTYPE, link
            f.addfile(info)
    return data.getvalue()


FILES = {'a.avi': b'first' * 1000, 'b/c.avi': b'second'}
KINDS = pytest.mark.parametrize(
    'pack, unpack', [(zipped, unzip), (tarred, untar)], ids=['zip', 'tar'])


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.fixture
def archive(tmp_path):
    return tmp_path / 'archive'


@KINDS
def test_unpack(archive, pack, unpack):
    archive.write_bytes(pack(FILES))
    folder = archive.with_name('new') / 'folder'
    unpack(archive, folder)
    assert contents(folder) == FILES and names(folder.parent) == ['folder']
    with fails(folder, 'exists already'):
        unpack(archive, folder)


@KINDS
@pytest.mark.parametrize('name', ['/tmp/srvp_evil', '../evil', 'a/../../evil', '..\\evil'])
def test_unsafe_member(archive, pack, unpack, name):
    archive.write_bytes(pack({**FILES, name: b'evil'}))
    with fails(archive, repr(name), 'delete it'):
        unpack(archive, archive.with_name('folder'))
    assert names(archive.parent) == ['archive'] and not os.path.exists('/tmp/srvp_evil')


def test_unsafe_link(archive):
    archive.write_bytes(tarred(FILES, link='../../outside'))
    with fails(archive, "'link'", 'delete it'):
        untar(archive, archive.with_name('folder'))
    assert names(archive.parent) == ['archive']


def test_links_in_older_python(archive, monkeypatch):
    monkeypatch.delattr(tarfile, 'data_filter', raising=False)
    archive.write_bytes(tarred(FILES, link='a.avi'))
    with fails(archive, "'link'", 'delete it'):
        untar(archive, archive.with_name('folder'))


@KINDS
@pytest.mark.parametrize(
    'damage', [lambda b: b[:3000], lambda b: b'<html>not found</html>' * 100, lambda b: b''],
    ids=['short', 'page', 'empty'])
def test_damaged(archive, pack, unpack, damage):
    archive.write_bytes(damage(pack(FILES)))
    with fails(archive, 'is damaged', 'delete it and run again'):
        unpack(archive, archive.with_name('folder'))
    assert names(archive.parent) == ['archive']


def test_damaged_content(archive):
    archive.write_bytes(zipped(FILES).replace(b'second', b'sEcond'))
    with fails(archive, 'is damaged', 'b/c.avi', 'delete it and run again'):
        unzip(archive, archive.with_name('folder'))
    assert names(archive.parent) == ['archive']


@KINDS
def test_interrupted(archive, pack, unpack, monkeypatch):
    archive.write_bytes(pack(FILES))
    folder, done = archive.with_name('folder'), []

    def interrupt(members, *_, **__):
        yield members[0]
        done.extend(contents(archive.parent))
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(archives, 'progress_bar', interrupt)
        unpack(archive, folder)
    assert sorted(done) == ['.folder.unpacking/a.avi', 'archive']
    assert names(archive.parent) == ['archive']
    unpack(archive, folder)
    assert contents(folder) == FILES


@KINDS
def test_killed(archive, pack, unpack, monkeypatch):
    archive.write_bytes(pack(FILES))
    folder = archive.with_name('folder')
    with monkeypatch.context() as patch:  # a killed process cleans nothing up
        patch.setattr(shutil, 'rmtree', lambda *args, **kwargs: None)
        patch.setattr(os, 'rename', lambda *args: sys.exit(1))
        with pytest.raises(SystemExit):
            unpack(archive, folder)
    left, = set(names(archive.parent)) - {'archive'}
    (archive.parent / left / 'half').write_bytes(b'half')
    unpack(archive, folder)
    assert contents(folder) == FILES and names(archive.parent) == ['archive', 'folder']


@KINDS
def test_no_space_to_unpack(archive, pack, unpack, monkeypatch):
    archive.write_bytes(pack(FILES))
    free(monkeypatch, 5005)
    with fails(archive, '5,005', '5,006', 'free some space'):
        unpack(archive, archive.with_name('folder'))
    assert names(archive.parent) == ['archive']


# Scripts

def bash(script, *args, cwd, **env):
    command = ['bash', str(ROOT / 'preprocessing' / script / 'download.sh'), *args]
    env = {**os.environ, 'PYTHON': sys.executable, 'no_proxy': '*', **env}
    return subprocess.run(command, cwd=cwd, timeout=60, text=True, capture_output=True, env=env)


def test_kth(site, tmp_path):
    videos = {name: {f'person01_{name}.avi': name.encode()} for name in kth.CLASSES}
    site.files = {f'actions/{name}.zip': zipped(files) for name, files in videos.items()}
    site.cuts = [60]
    if sys.version_info >= (3, 11):
        (tmp_path / 'files.py').write_text('raise SystemExit("module of the caller")')
    result = bash('kth', 'my data', '--url', site.url('actions'), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {name: contents(tmp_path / 'my data' / 'raw' / name) for name in videos} == videos
    assert names(tmp_path / 'my data') == ['raw']
    assert result.stdout.splitlines()[-1] == (
        "my data/raw: 6 videos of 6 classes (of 599 in the whole dataset); next: "
        "python preprocessing/kth/convert.py --data_dir 'my data'")
    assert site.requests == [('actions/boxing.zip', None), ('actions/boxing.zip', 'bytes=60-'),
                             *((f'actions/{name}.zip', None) for name in kth.CLASSES[1:])]


def test_kth_downloads_only_what_is_missing(site, tmp_path, capsys):
    site.files = {f'{name}.zip': zipped({f'{name}.avi': b''}) for name in kth.CLASSES}
    kth.main([str(tmp_path), '--url', site.url('')])
    site.requests.clear()
    kth.main([str(tmp_path), '--url', site.url('')])
    assert site.requests == [] and names(tmp_path) == ['raw']
    shutil.rmtree(tmp_path / 'raw' / 'jogging')
    kth.main([str(tmp_path), '--url', site.url('')])
    assert site.requests == [('jogging.zip', None)] and names(tmp_path / 'raw') == kth.CLASSES
    (tmp_path / 'raw' / 'jogging' / 'jogging.avi').unlink()  # an empty folder does not count
    kth.main([str(tmp_path), '--url', site.url('')])
    assert len(site.requests) == 2 and (tmp_path / 'raw' / 'jogging' / 'jogging.avi').exists()
    (tmp_path / 'raw' / 'jogging' / 'jogging.avi').rename(tmp_path / 'raw' / 'jogging' / 'notes')
    with fails(tmp_path / 'raw' / 'jogging', 'without the videos that belong in it', 'delete it'):
        kth.main([str(tmp_path), '--url', site.url('')])


@pytest.fixture
def small_bair(site, monkeypatch):
    files = {'softmotion30_44k/train/a.tfrecords': b'train',
             'softmotion30_44k/test/b.tfrecords': b'test'}
    data = site.files['bair.tar'] = tarred(files)
    monkeypatch.setattr(bair, 'SIZE', len(data))
    monkeypatch.setattr(bair, 'SHA256', hashlib.sha256(data).hexdigest())
    return files


def test_bair(site, small_bair, tmp_path, capsys):
    args = [str(tmp_path), '--url', site.url('bair.tar')]
    bair.main(args)
    assert contents(tmp_path) == small_bair and names(tmp_path) == ['softmotion30_44k']
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (f'{tmp_path}/softmotion30_44k: 2 files of training and test videos; next: '
                    f'python preprocessing/bair/convert.py --data_dir {tmp_path}')
    bair.main(args)
    assert len(site.requests) == 1 and capsys.readouterr().out.splitlines()[-1] == last


def test_bair_space_for_both(site, small_bair, tmp_path, monkeypatch):
    free(monkeypatch, 2 * bair.SIZE - 1)
    with fails(tmp_path, f'{2 * bair.SIZE:,}', 'unpacked', 'free some space'):
        bair.main([str(tmp_path), '--url', site.url('bair.tar')])
    assert site.requests == []
    (tmp_path / 'bair_robot_pushing_dataset_v0.tar.part').write_bytes(site.files['bair.tar'][:1])
    bair.main([str(tmp_path), '--url', site.url('bair.tar')])
    assert contents(tmp_path) == small_bair


def test_bair_other_archive(site, small_bair, tmp_path, monkeypatch):
    data = tarred({'other/train/a.tfrecords': b'train', 'b.tfrecords': b'test'})
    site.files['bair.tar'] = data
    with fails(site.url('bair.tar'), bair.SHA256, 'removed'):
        bair.main([str(tmp_path), '--url', site.url('bair.tar')])
    monkeypatch.setattr(bair, 'SHA256', hashlib.sha256(data).hexdigest())
    with fails('softmotion30_44k', 'delete it'):
        bair.main([str(tmp_path), '--url', site.url('bair.tar')])
    assert names(tmp_path) == ['bair_robot_pushing_dataset_v0.tar']


@pytest.mark.parametrize('script, args, env, words', [
    ('kth', ['file'], {}, 'DIR file cannot be created'),
    ('bair', ['file'], {}, 'DIR file cannot be created'),
    ('kth', [], {}, 'DIR'),
    ('bair', ['d', '--urk', 'x'], {}, 'mean --url?'),
    ('kth', ['d'], {'PYTHON': './nowhere'}, './nowhere is not found'),
    ('bair', ['d'], {'PYTHON': '/bin/false'}, '/bin/false does not run'),
    ('kth', ['d'], {'PYTHON': './bare', 'PYTHONPATH': ''},
     'configargparse, filelock, numpy, PIL, requests, tqdm')])
def test_errors_of_the_shell_scripts(script, args, env, words, tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    (tmp_path / 'bare').write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (tmp_path / 'bare').chmod(0o755)
    result = bash(script, *args, cwd=tmp_path, **env)
    assert result.returncode == 2 and result.stderr.startswith('error: '), result.stderr
    assert words in result.stderr and result.stderr.count('\n') == 1, result.stderr
    assert names(tmp_path) == ['bare', 'file']


def test_no_frameworks():
    code = ('import sys, preprocessing.kth.download, preprocessing.bair.download\n'
            'sys.exit(bool({"torch", "tensorflow"} & set(sys.modules)))')
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
