"""Download and unpack archives of datasets: broken downloads are continued, and nothing is ever seen half-done."""

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from pathlib import Path

from files import UserError, progress_bar

TRIES = 5      # attempts in a row that bring no new byte
PAUSE = 1.     # seconds before the second of them; n times as much before the (n + 1)-th
TIMEOUT = 60   # seconds without a byte after which a connection counts as broken
BLOCK = 1 << 20


class _Broken(Exception):
    """An attempt ended early and may be repeated. `total` is the size of the whole file, None if unknown."""

    def __init__(self, reason, total=None):
        super().__init__(reason)
        self.total = total


def fetch(url, path, size=None, sha256=None):
    """Download `url` to `path`, which appears only when complete and checked; until then the bytes are in `<path>.part`.

    A `.part` file that is there is continued. A `path` that is there is checked, and nothing is downloaded.

    Parameters
    ----------
    url : str
    path : str or Path
    size : int, optional
        Bytes of the file; what the server says if absent.
    sha256 : str, optional
        SHA-256 of the file, in hexadecimal.

    Raises
    ------
    UserError
    """
    path = Path(path)
    if path.exists():
        _check_present(path, size, sha256)
        return
    part = _part(path)
    _download(url, part, size)
    if sha256 is not None and (found := _sha256(part)) != sha256:
        part.unlink()
        raise UserError(f'{url}: the file downloaded has the SHA-256 {found}, expected {sha256}, and was removed; run again to '
                        'download it anew')
    os.replace(part, path)


def downloaded(path):
    """Bytes of an unfinished download of `path`."""
    return _size(_part(Path(path)))


def check_space(folder, need, what):
    """Stop if the disk of `folder` has less than `need` bytes free, which are wanted for `what`."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(f'{folder} is on a disk with {free:,} bytes free, but {what} needs {need:,}; free some space or give '
                        'another folder')


def remove_empty(folder):
    """Remove a folder in which there is no file; stop if it holds some, which unpacking would have to replace."""
    if folder.exists():
        if any(not path.is_dir() for path in folder.rglob('*')):
            raise UserError(f'{folder} is there, but not the videos that belong in it; delete it, or give another folder, and run again')
        shutil.rmtree(folder)


def unzip(archive, folder):
    """Unpack a zip archive to `folder`, which must not exist, and which appears only when complete."""
    with _unpacking(archive, folder) as tmp, zipfile.ZipFile(archive) as f:
        members = f.infolist()
        for member in members:
            _check_member(archive, member.filename)
        _unpack(archive, tmp, [(m, m.file_size) for m in members], f.extract)
        os.rename(tmp, folder)


def untar(archive, folder, top=None):
    """Unpack a tar archive, not compressed, to `folder`, which must not exist, and which appears only when complete.

    `top` names a folder of the archive: it becomes `folder`, and the rest is dropped. Without it, `folder` holds everything.
    """
    # Older Python has no filter, and could follow a link out of the folder: there, links are refused
    filtered = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}

    def extract(member, tmp):
        f.extract(member, tmp, set_attrs=False, **filtered)

    with _unpacking(archive, folder) as tmp, tarfile.open(archive, 'r:') as f:
        members = f.getmembers()
        for member in members:
            _check_member(archive, member.name, filtered or member.isfile() or member.isdir())
        _unpack(archive, tmp, [(m, m.size) for m in members], extract)
        if top is not None and not (tmp / top).is_dir():
            raise UserError(f'{archive} has no folder {top}: it is not the archive expected; delete it and run again')
        os.rename(tmp / (top or ''), folder)


def _part(path):
    return path.with_name(f'{path.name}.part')


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _bar(name, total, **kwargs):
    return progress_bar(desc=name, total=total, unit='B', unit_scale=True, **kwargs)


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as f, _bar(f'checking {path.name}', _size(path), delay=1) as bar:
        while block := f.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _check_present(path, size, sha256):
    """Check a file that was there before. It may be the user's own, and is therefore never removed here."""
    if size is not None and (found := _size(path)) != size:
        raise UserError(f'{path} has {found:,} bytes, expected {size:,}; delete it and run again to download it')
    if sha256 is not None and (found := _sha256(path)) != sha256:
        raise UserError(f'{path} has the SHA-256 {found}, expected {sha256}; delete it and run again to download it')


def _download(url, part, size):
    """Download to `part`, in as many attempts as needed, while they get any further."""
    most, failures = _size(part), 0
    while True:
        try:
            _attempt(url, part, size)
            return
        except _Broken as broken:
            reason, size = broken, size or broken.total
        # More bytes than ever: without that comparison, a server that always starts anew would be asked for ever
        failures = 1 if _size(part) > most else failures + 1
        most = max(most, _size(part))
        if failures >= TRIES:
            kept = f', which continues from the {_size(part):,} bytes in {part}' if _size(part) else ''
            raise UserError(f'{url} cannot be downloaded ({reason}); check the network and the address, and run again{kept}')
        print(f'{url}: {reason}; trying again in {failures * PAUSE:g} s', file=sys.stderr, flush=True)
        time.sleep(failures * PAUSE)


def _attempt(url, part, size):
    """Ask for what `part` lacks and append it; `_Broken` if it is still incomplete then."""
    have = _size(part)
    if size is not None and have == size:
        return
    if size is not None and have > size:
        part.unlink()
        have = 0
    with _open(url, have) as response:
        start, total = _extent(response, have)
        if size is not None and total is not None and total != size:
            raise UserError(f'{url} has {total:,} bytes, expected {size:,}: it is another file; check the address, or give that of '
                            'a mirror by --url')
        if start is None:  # nothing in the answer fits what is there
            if total == have:
                return
            part.unlink()
            raise _Broken('the server cannot continue the download', size)
        total = total if size is None else size
        if total is not None:
            check_space(part.parent, total - have, f'the rest of {url}' if have else url)
        _write(response, part, start, total)
    have = _size(part)
    if total is not None and have < total:
        raise _Broken(f'the connection broke after {have:,} of {total:,} bytes', total)
    if total is not None and have > total:
        part.unlink()
        raise UserError(f'{url}: {have:,} bytes were downloaded, expected {total:,}, and removed; check the address and run again')


def _open(url, start):
    """Response of the server to a request for the bytes from `start` on; its status is 200, 206 or 416."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ('http', 'https') or not parts.netloc:
            raise ValueError('it must start with http:// or https://')
        request = urllib.request.Request(url, headers={'Range': f'bytes={start}-'} if start else {})
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            return error
        error.close()
        reason = f'the server answers {error.code} {error.reason}'
        if error.code >= 500:  # often passes
            raise _Broken(reason) from None
        raise UserError(f'{url} cannot be downloaded ({reason}); check the address, or give that of a mirror by --url') from None
    except (ValueError, http.client.InvalidURL) as error:
        raise UserError(f'{url} is not an address to download from ({error}); check --url') from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f'no connection: {_text(error)}') from None


def _text(error):
    """What happened, without the number of the error."""
    error = getattr(error, 'reason', error)
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__


def _extent(response, have):
    """First byte that a response brings, None if it cannot follow the `have` bytes that are there, and size of the whole file."""
    if response.status not in (206, 416):
        return 0, response.length
    match = re.fullmatch(r'bytes (?:(\d+)-\d+|\*)/(\d+|\*)', response.headers.get('Content-Range', '').strip())
    if not match:
        return None, None
    return (have if match[1] == str(have) else None), (None if match[2] == '*' else int(match[2]))


def _write(response, part, start, total):
    """Append the body of a response to `part`, or replace it if `start` is 0."""
    try:
        with open(part, 'ab' if start else 'wb') as f, _bar(part.stem, total, initial=start) as bar:
            for block in _blocks(response, total):
                f.write(block)
                bar.update(len(block))
    except OSError as error:
        raise UserError(f'{part} cannot be written ({_text(error)}); free some space or give another folder') from None


def _blocks(response, total):
    """Blocks of the body, as they come. Apart from `_write`, as errors of the network and of the disk are of one class."""
    try:
        while block := response.read1(BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f'the connection broke: {_text(error)}', total) from None


@contextlib.contextmanager
def _unpacking(archive, folder):
    """Yield an empty folder beside `folder` to unpack into, removed at the end; a damaged archive becomes a `UserError`."""
    folder = Path(folder)
    if folder.exists():
        raise UserError(f'{folder} exists already; delete it to unpack {archive} again')
    tmp = folder.with_name(f'.{folder.name}.unpacking')
    try:
        if tmp.exists():  # of a killed run
            shutil.rmtree(tmp)
        tmp.mkdir(parents=True)
        yield tmp
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        if isinstance(error, getattr(tarfile, 'FilterError', ())):
            raise _unsafe(archive, error.tarinfo.name) from None
        raise UserError(f'{archive} is damaged ({str(error) or "it ends early"}); delete it and run again') from None
    except OSError as error:
        raise UserError(f'{archive} cannot be unpacked to {folder} ({_text(error)}); mend that and run again') from None
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _unsafe(archive, name):
    return UserError(f'{archive} holds {name!r}, which could land outside of the folder: do not trust this archive, delete it and '
                     'download it from elsewhere')


def _check_member(archive, name, kind_ok=True):
    """Stop at a member of an archive that may land outside of the folder."""
    parts = re.split(r'[/\\]', name)
    if not kind_ok or '..' in parts or parts[0] == '':
        raise _unsafe(archive, name)


def _unpack(archive, tmp, members, extract):
    """Unpack pairs of a member and its size into `tmp`."""
    total = sum(size for _, size in members)
    check_space(tmp.parent, total, f'unpacking {archive}')
    with _bar(f'unpacking {Path(archive).name}', total, delay=1) as bar:
        for member, size in members:
            extract(member, tmp)
            bar.update(size)
