"""Errors, progress, files and cores: what every script needs, without PyTorch (a script that imports TensorFlow must not)."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # what a disk without space answers, to whatever is written


class UserError(Exception):
    """Bad input. The message is one sentence: option or file, what was found, what to do."""


class WriteError(UserError):
    """A file that cannot be written: like bad input, for the user to mend, whenever it is met."""

    @classmethod
    def of(cls, path, error):
        """That of a path for which the system gave an OSError."""
        return cls(f'{path} cannot be written ({error.strerror}); {"free space" if error.errno in FULL else "change that"}')


def is_out_of_memory(error):
    """Whether an error tells that there is too little memory, of a GPU or of the system, in the words of PyTorch or of Python."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search("can't allocate memory|out of memory", str(error))))


def run_script(main):
    """Run the `main` of a script; a `UserError`, a full disk or too little memory becomes a sentence on stderr and exit code 2, Ctrl-C exit code 130."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors='backslashreplace')  # names of files may be no text
    try:
        sys.exit(main())
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # of `| head`, or of `| tee` after Ctrl-C
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f'error: {WriteError.of(error.filename or "a file", error)}', file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition('\n')[0]
        print(f'error: memory does not suffice ({reason}); give fewer videos at a time (--batch_size), fewer samples or a smaller model', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)


class _Lines:
    """stderr that is no terminal: a bar cannot be redrawn there, each of its states gets a line."""

    def write(self, text):
        if text := text.strip('\r\n '):
            sys.stderr.write(f'{text}\n')

    def flush(self):
        sys.stderr.flush()

    def isatty(self):
        return False


def progress_bar(*args, **kwargs):
    """Progress bar, as `tqdm`, on stderr; where that is no terminal, a line every half minute."""
    if not sys.stderr.isatty():
        kwargs |= {'file': _Lines(), 'mininterval': 30}
    return tqdm(*args, dynamic_ncols=True, **kwargs)


@contextlib.contextmanager
def writing(path, *files):
    """Context of writing `path`, by temporary `files`: what the system has against it is a WriteError. Errors of other files go through."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL | {errno.EROFS} and str(error.filename) not in map(str, (path, *files)):
            raise
        raise WriteError.of(path, error) from None


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`, renamed to it at the end: `path` is never seen half-written."""
    path = Path(path)
    tmp = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with writing(path, tmp):
            yield tmp
            os.replace(tmp, path)
    finally:
        with contextlib.suppress(OSError):  # an error says more that came before
            tmp.unlink()


@contextlib.contextmanager
def held(path, otherwise):
    """Context of the only process that holds the file `path`, made for that; in any other one, a UserError with the sentence `otherwise`.

    Unlike that of `locked`, which may be held at the same time, the lock is not that of processes that this one starts: it ends when this one is killed.
    """
    import fcntl
    with open(path, 'a') as f:
        try:
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(otherwise) from None
            raise UserError(f'{path} cannot be locked ({error.strerror}); give a folder on another disk') from None
        yield


@contextlib.contextmanager
def locked(folder, otherwise):
    """Context of the only process that works in a folder; in any other one, a UserError with the sentence `otherwise`."""
    import fcntl  # of Linux and macOS; what needs no lock works elsewhere too
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(otherwise) from None
        except OSError as error:  # of some network disks
            raise UserError(f'{folder} cannot be locked ({error.strerror}); give a folder on another disk') from None
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing_results(folder, patterns):
    """Yield a temporary folder in `folder` for new files, which replace at the end all of those that match `patterns`: results never mix."""
    with locked(folder, f'another call is writing its results to {folder}; wait until it has ended, or give another --out_dir'):
        for pattern in patterns:
            parent = (folder / pattern).parent
            if parent.exists() and not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
                raise UserError(f'{parent} is not a folder that can be written to; remove it, or give another --out_dir')
            for path in folder.glob(pattern):
                if path.is_dir():
                    raise UserError(f'{path} is a folder, in the way of a result; remove it, or give another --out_dir')
        tmp = folder / '.results.partial'  # no .tmp, which a training run that goes on in the same folder removes
        shutil.rmtree(tmp, ignore_errors=True)  # left behind by a run that was killed
        if os.path.lexists(tmp):
            raise UserError(f'{tmp} is in the way of results; remove it, or give another --out_dir')
        tmp.mkdir()
        try:
            yield tmp
            new = {folder / path.relative_to(tmp): path for path in tmp.rglob('*') if path.is_file()}
            old = {path for pattern in patterns for path in folder.glob(pattern)} - new.keys()
            for path in new:  # over the old ones, so that at no time is a result lost
                path.parent.mkdir(exist_ok=True)
                os.replace(new[path], path)
            for path in old:
                path.unlink()
        finally:
            shutil.rmtree(tmp)


def make_folder(path, option):
    """Create the folder that `option` names, if it is not there, and return its path."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{option} {path} cannot be created ({error.strerror}); give another folder') from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f'{option} {path} cannot be written to; give another folder')
    return Path(path)


@contextlib.contextmanager
def reading(path, complaint, advice):
    """Context that reads an untrusted file, which may be cut or foreign: whatever that raises is a UserError, "`path` `complaint` …; `advice`".

    Too little memory is no fault of the file, and what the system refuses none of its content: the advice, to replace it, is not for them.
    """
    try:
        yield
    except Exception as error:  # NumPy, zipfile, zlib, Pillow and PyTorch raise many kinds
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno:
            raise UserError(f'{path} cannot be read ({error.strerror}); check its path, its permissions and the disk') from None
        reason = str(error).strip().partition('\n')[0] or type(error).__name__
        if re.search('pickle|weights.only', reason, re.I):  # they explain how to read it unsafely
            reason = 'it holds more than numbers and plain values'
        raise UserError(f'{path} {complaint} ({reason}); {advice}') from None


def write_json(path, value):
    """Write `value` as indented JSON. Numbers must be finite: JSON has no others."""
    with replacing(path) as tmp:
        tmp.write_text(json.dumps(value, indent=2, allow_nan=False) + '\n')


def read_json(path):
    """Read a JSON file that must hold one object."""
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; name a folder with a trained model') from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f'{path} is not readable as JSON ({error})') from None
    if not isinstance(value, dict):
        raise UserError(f'{path} must hold one JSON object, found {type(value).__name__}')
    return value


def write_csv(path, rows):
    """Write rows, dictionaries with the same keys, as a table with a head."""
    with replacing(path) as tmp, open(tmp, 'w', newline='') as f:
        table = csv.DictWriter(f, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


def write_npz(path, **arrays):
    """Write arrays as a compressed `.npz`."""
    with replacing(path) as tmp, open(tmp, 'wb') as f:
        np.savez_compressed(f, **arrays)


def sha256(path):
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing_folder(path):
    """As `replacing`, a folder: yield a new temporary one, renamed to `path`, which does not exist, at the end."""
    tmp = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    shutil.rmtree(tmp, ignore_errors=True)  # of a run that was killed
    tmp.mkdir()
    try:
        yield tmp
        tmp.rename(path)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def cores():
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
