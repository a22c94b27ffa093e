"""Download files: interrupted downloads resume, files appear only when complete."""

import os
import re
import shutil
import sys
import threading
import time
from concurrent.futures import Future, TimeoutError

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import HTTPError

import files
from files import UserError, WriteError, progress_bar

TRIES = 5      # requests in a row that fail or bring no new byte
PAUSE = 1.     # seconds, growing with the number of failures
TIMEOUT = 60   # seconds without data after which a connection counts as broken


class DownloadError(UserError):
    """An address that cannot be reached, or that has something else; `reason` says why."""

    def __init__(self, message, reason):
        super().__init__(message)
        self.reason = reason


def fetch(url, path, size=None, sha256=None, patience=None):
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
    patience : float, optional
        Seconds to wait for the one answer of a server that may be out of reach. Default: a minute
        for each of its addresses, several times.

    Raises
    ------
    DownloadError
    UserError
        The file that exists is another one, or it cannot be written.
    """
    if path.exists():
        if difference := compare(path, size, sha256):
            raise UserError(f'{path} {difference}; delete it and run again to download it')
        return
    part = part_of(path)
    download(url, part, size, patience)
    if difference := compare(part, size, sha256):
        part.unlink()
        raise DownloadError(f'{url}: the download {difference}, and was removed; check the address '
                            'and run again', f'it {difference}')
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


def download(url, part, size, patience=None):
    """Download to `part`, in as many requests as needed while they bring new bytes."""
    retry = Retry(TRIES - 1 if patience is None else 0, backoff_factor=PAUSE,
                  status_forcelist=range(500, 600), raise_on_status=False,
                  respect_retry_after_header=False)
    if size is not None and size_of(part) > size:
        part.unlink()
    best, failures = size_of(part), 0
    with requests.Session() as session:
        for scheme in ('http://', 'https://'):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        while size is None or size_of(part) < size:
            reason, size = request_rest(session, url, part, size, patience)
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
    return DownloadError(f'{url} cannot be downloaded ({reason}); check the address (--url) and '
                         f'the network, and run again{kept}', reason)


def request_rest(session, url, part, size, patience=None):
    """Request the bytes that `part` lacks and append them.

    Returns
    -------
    reason : str or None
        Why the file is still incomplete.
    size : int or None
        Of the whole file, as far as known.
    """
    have = size_of(part)
    with get(session, url, part, have, patience) as response:
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


def get(session, url, part, have, patience=None):
    """Response to a request for the bytes from `have` on."""
    headers = {'Accept-Encoding': 'identity'} | ({'Range': f'bytes={have}-'} if have else {})
    try:
        response = within(patience, session.get, url, headers=headers, stream=True,
                          timeout=patience or TIMEOUT)
        if response.status_code != 416:  # range not satisfiable
            response.raise_for_status()
        return response
    except requests.RequestException as error:
        while error.__context__ is not None:  # the cause, below the layers of the client
            error = error.__context__
        reason = getattr(error, 'strerror', None) or str(error).partition(' for url')[0]
        raise failure(url, part, reason) from None
    except TimeoutError:
        raise failure(url, part, f'no answer within {patience:g} s') from None


def within(seconds, function, *args, **kwargs):
    """Result of a function, or a TimeoutError after `seconds`, which leaves it to its thread.

    Names that are not resolved and addresses that do not answer, of which a name may have many,
    have time limits of their own, which add up.
    """
    future = Future()

    def run():
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


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


def check_space(folder, need, what):
    """Raise a UserError if `what` needs more bytes than are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(f'the disk of {folder} has {free:,} bytes free, but {what} needs {need:,}; '
                        'free some space or use another folder')
