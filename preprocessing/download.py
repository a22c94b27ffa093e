"""Download and unpack archives: interrupted downloads resume, results appear only when complete."""

import contextlib
import os
import re
import shutil
import sys
import tarfile
import time
import zipfile
import zlib

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import HTTPError

import files
from files import UserError, WriteError, progress_bar

TRIES = 5      # requests in a row that fail or bring no new byte
PAUSE = 1.     # seconds, growing with the number of failures
TIMEOUT = 60   # seconds without data after which a connection counts as broken


def install(url, archive, target, unpack, size=None, sha256=None):
    """Download `archive` from `url`, unpack it to the folder `target` and remove it."""
    if any(not path.is_dir() for path in target.rglob('*')):
        raise UserError(f'{target} exists, without the videos that belong in it; delete it, or use '
                        'another folder, and run again')
    shutil.rmtree(target, ignore_errors=True)
    if size is not None and not archive.exists():  # better now than after hours of download
        check_space(archive.parent, 2 * size - size_of(part_of(archive)), f'{url}, unpacked,')
    fetch(url, archive, size, sha256)
    unpack(archive, target)
    archive.unlink()


def check_space(folder, need, what):
    """Raise a UserError if `what` needs more bytes than are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(f'the disk of {folder} has {free:,} bytes free, but {what} needs {need:,}; '
                        'free some space or use another folder')


# Download

def fetch(url, path, size=None, sha256=None):
    """Download `url` to `path`, or verify a `path` that exists.

    Until the download is complete and verified, it is `<path>.part`, which a later call resumes.

    Parameters
    ----------
    url : str
    path : Path
    size : int, optional
        Expected number of bytes; default: what the server announces.
    sha256 : str, optional
        Expected SHA-256, in hexadecimal.

    Raises
    ------
    UserError
    """
    if path.exists():
        if difference := compare(path, size, sha256):
            raise UserError(f'{path} {difference}; delete it and run again to download it')
        return
    part = part_of(path)
    download(url, part, size)
    if difference := compare(part, size, sha256):
        part.unlink()
        raise UserError(f'{url}: the download {difference}, and was removed; check the address and '
                        'run again')
    os.replace(part, path)


def compare(path, size, sha256):
    """How a file differs from what is expected of it, None if it does not."""
    if size is not None and size_of(path) != size:
        return f'has {size_of(path):,} bytes, expected {size:,}'
    if sha256 is not None:
        print(f'verifying {path}', flush=True)
        if (found := files.sha256(path)) != sha256:
            return f'has the SHA-256 {found}, expected {sha256}'
    return None


def part_of(path):
    """Path of an incomplete download of `path`."""
    return path.with_name(f'{path.name}.part')


def size_of(path):
    """Size of a file in bytes, 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def download(url, part, size):
    """Download to `part`, in as many requests as needed while they bring new bytes."""
    retry = Retry(TRIES - 1, backoff_factor=PAUSE, status_forcelist=range(500, 600),
                  raise_on_status=False, respect_retry_after_header=False)
    if size is not None and size_of(part) > size:
        part.unlink()
    best, failures = size_of(part), 0
    with requests.Session() as session:
        for scheme in ('http://', 'https://'):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        while size is None or size_of(part) < size:
            reason, size = request_rest(session, url, part, size)
            if reason is None:
                return
            # Compared with the best: a server that ignores ranges starts over each time
            failures = 1 if size_of(part) > best else failures + 1
            best = max(best, size_of(part))
            if failures == TRIES:
                raise failure(url, part, reason)
            print(f'{url}: {reason}; trying again', file=sys.stderr, flush=True)
            time.sleep(failures * PAUSE)


def failure(url, part, reason):
    """Error of a download that cannot go on for now."""
    kept = f', which resumes after the {size_of(part):,} bytes in {part}' if part.exists() else ''
    return UserError(f'{url} cannot be downloaded ({reason}); check the address (--url) and the '
                     f'network, and run again{kept}')


def request_rest(session, url, part, size):
    """Request the bytes that `part` lacks and append them.

    Returns
    -------
    reason : str or None
        Why the file is still incomplete.
    size : int or None
        Of the whole file, as far as known.
    """
    have = size_of(part)
    with get(session, url, part, have) as response:
        start, total = content_range(response, have)
        if None not in (size, total) and total != size:
            raise UserError(f'{url} has {total:,} bytes, expected {size:,}: it is another file; '
                            'check the address, or use a mirror with --url')
        if start is None:
            if total == have:
                return None, total
            part.unlink(missing_ok=True)
            return 'the server cannot resume the download', size
        size = size or total
        if size is not None:
            check_space(part.parent, size - start, f'the rest of {url}' if start else url)
        broken = receive(response, part, start, size)
    if broken or (size is not None and size_of(part) < size):
        expected = '?' if size is None else f'{size:,}'
        return f'the connection broke after {size_of(part):,} of {expected} bytes', size
    return None, size


def get(session, url, part, have):
    """Response to a request for the bytes from `have` on."""
    headers = {'Accept-Encoding': 'identity'} | ({'Range': f'bytes={have}-'} if have else {})
    try:
        response = session.get(url, headers=headers, timeout=TIMEOUT, stream=True)
        if response.status_code != 416:  # range not satisfiable
            response.raise_for_status()
        return response
    except requests.RequestException as error:
        while error.__context__ is not None:  # the cause, below the layers of the client
            error = error.__context__
        raise failure(url, part, getattr(error, 'strerror', None) or error) from None


def content_range(response, have):
    """First byte of a response, None if it does not continue `have` bytes, and size of the file."""
    if response.status_code == 200:
        return 0, response.raw.length_remaining
    match = re.fullmatch(r'bytes (\*|\d+)(?:-\d+)?/(\*|\d+)',
                         response.headers.get('Content-Range', '').strip())
    start, total = match.groups() if match else ('*', '*')
    return have if start == str(have) else None, None if total == '*' else int(total)


def receive(response, part, start, size):
    """Write a response to `part` from byte `start` on; returns whether the connection broke."""
    try:
        with open(part, 'ab' if start else 'wb') as f, \
                progress_bar(desc=part.stem, initial=start, total=size, unit='B',
                             unit_scale=True) as bar:
            # Unlike iter_content, read1 returns everything that came before a break
            while block := response.raw.read1(1 << 20):
                bar.update(f.write(block))
    except HTTPError:
        return True
    except OSError as error:
        raise WriteError.of(part, error) from None
    return False


# Unpacking

def unzip(archive, folder):
    """Unpack a zip archive to `folder`, which must not exist and appears only when complete."""
    with unpacking(archive, folder) as tmp, zipfile.ZipFile(archive) as f:
        members = f.infolist()
        check_members(archive, tmp, [(m.filename, m.file_size, True) for m in members])
        f.extractall(tmp, progress_bar(members, 'unpacking', unit='file', delay=1))


def untar(archive, folder, top=''):
    """Unpack the folder `top` of an uncompressed tar archive as `folder`, as `unzip` does."""
    with unpacking(archive, folder, top) as tmp, tarfile.open(archive, 'r:') as f:
        members = f.getmembers()
        check_members(archive, tmp, [(m.name, m.size, m.isfile() or m.isdir()) for m in members])
        f.extraction_filter = getattr(tarfile, 'data_filter', None)  # unknown to older Python
        f.extractall(tmp, progress_bar(members, 'unpacking', unit='file', delay=1))


@contextlib.contextmanager
def unpacking(archive, folder, top=''):
    """Yield a temporary folder, of which `top` becomes `folder` at the end."""
    if folder.exists():
        raise UserError(f'{folder} exists already; delete it to unpack {archive} again')
    tmp = folder.with_name(f'.{folder.name}.unpacking')
    try:
        shutil.rmtree(tmp, ignore_errors=True)  # left by a killed process
        tmp.mkdir(parents=True)
        yield tmp
        if not (tmp / top).is_dir():
            raise UserError(f'{archive} has no folder {top}: it is not the expected archive; '
                            'delete it and run again')
        os.rename(tmp / top, folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f'{archive} is damaged ({str(error) or "it ends early"}); delete it and '
                        'run again') from None
    except OSError as error:
        raise UserError(f'{archive} cannot be unpacked to {folder} ({error.strerror or error}); '
                        'check permissions and free space, and run again') from None
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def check_members(archive, tmp, members):
    """Check the (name, size, is file or folder) of what would be unpacked to `tmp`."""
    for name, _, is_plain in members:
        parts = re.split(r'[/\\]', name)
        if '..' in parts or not parts[0] or not is_plain:
            raise UserError(f'{archive} holds {name!r}, which may lead out of the folder: do not '
                            'trust it, delete it and download it from elsewhere')
    check_space(tmp.parent, sum(size for _, size, _ in members), f'unpacking {archive}')
