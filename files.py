"""Errors, progress bars, files and locks, for scripts with and without PyTorch."""

import contextlib
import csv
import errno
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


# Errors

MAX_MESSAGE = 500  # characters


class UserError(Exception):
    """Bad input. The message is one sentence: option or file, what was found, what to do."""

    def __str__(self):
        """The message, without the middle of what was found if that is very long."""
        text = super().__str__()
        if len(text) <= MAX_MESSAGE:
            return text
        return f'{text[:MAX_MESSAGE - 100]} […] {text[-95:]}'


class WriteError(UserError):
    """A file that cannot be written, for a reason that the user can fix."""

    @classmethod
    def of(cls, path, error):
        """The error for an OSError on `path`."""
        advice = 'free space' if error.errno in DISK_FULL else 'check permissions and free space'
        return cls(f'{path} cannot be written ({error.strerror}); {advice}')


def is_out_of_memory(error):
    """Whether an error of Python or PyTorch means that a GPU or the system is out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and bool(re.search("can't allocate memory|out of memory", str(error))))


def run_script(main):
    """Run the `main` of a script and exit.

    A `UserError`, a full disk or running out of memory prints one sentence and exits with code 2,
    Ctrl-C exits with 130; other exceptions keep their traceback.
    """
    for fd in (0, 1, 2):  # a file opened under the number of a closed stream would get its output
        with contextlib.suppress(OSError):
            os.fstat(fd)
            continue
        os.open(os.devnull, os.O_RDWR)
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is not None and getattr(sys, name) is getattr(sys, f'__{name}__'):
            setattr(sys, name, open_output(getattr(sys, name)))
    try:
        sys.exit(main())
    except BrokenPipeError:  # `| head`, or `| tee` after Ctrl-C
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f'error: {message}', file=sys.stderr)
        sys.exit(2)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # while the interpreter shuts down


class _Output(io.FileIO):
    """File of an output stream that drops what cannot be written: a full disk ends no run."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in DISK_FULL | {errno.EIO}:
                raise
            return len(data)


def open_output(stream):
    """Standard output stream that survives a full disk and names of files that are no text."""
    raw = _Output(stream.fileno(), 'w', closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, 'backslashreplace',
                            line_buffering=stream.line_buffering)


def explain(error):
    """Sentence for an error that the user can fix, None for any other."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return str(WriteError.of(error.filename or 'a file', error))
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f'{error.filename} is too long a name; use a shorter one'
    if isinstance(error, OSError | RuntimeError) and 'Too many open files' in str(error):
        return 'too many open files; raise the limit with ulimit -n'
    if is_out_of_memory(error):
        reason = str(error).strip().partition('\n')[0] or type(error).__name__
        return (f'out of memory ({reason}); use a smaller --batch_size, fewer samples or a smaller '
                'model')
    return None


def count(n, noun, plural=None):
    """Number with its noun, such as '1 sample' or '2 samples'."""
    return f'{n} {noun if n == 1 else plural or noun + "s"}'


# Progress

class _LineStream:
    """stderr for a progress bar outside a terminal: prints each state on a line of its own."""

    def write(self, text):
        if text := text.strip('\r\n '):
            sys.stderr.write(f'{text}\n')

    def flush(self):
        sys.stderr.flush()

    def isatty(self):
        return False


def progress_bar(*args, **kwargs):
    """`tqdm` on stderr; outside a terminal, one line every 30 seconds."""
    if sys.stderr is None:  # closed
        kwargs['disable'] = True
    elif not sys.stderr.isatty():
        kwargs |= {'file': _LineStream(), 'mininterval': 30}
    return tqdm(*args, dynamic_ncols=True, **kwargs)


# Writing

@contextlib.contextmanager
def writing(path, *files):
    """Context in which an OSError on `path`, or on its temporary `files`, becomes a WriteError."""
    try:
        yield
    except OSError as error:
        ours = str(error.filename) in map(str, (path, *files))
        if not ours and error.errno not in DISK_FULL | {errno.EROFS}:
            raise
        raise WriteError.of(path, error) from None


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path, renamed to `path` at the end: `path` is never seen half-written."""
    path = Path(path)
    tmp = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with writing(path, tmp):
            yield tmp
            os.replace(tmp, path)
    finally:
        with contextlib.suppress(OSError):  # would hide the original error
            tmp.unlink()


@contextlib.contextmanager
def replacing_folder(path):
    """Like `replacing`, for a folder `path` that does not exist yet."""
    tmp = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    shutil.rmtree(tmp, ignore_errors=True)  # left by a killed process
    tmp.mkdir()
    try:
        yield tmp
        tmp.rename(path)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


@contextlib.contextmanager
def exclusive(path, message, patience=1):
    """Context that one process at a time can enter; others get a UserError with `message`.

    They wait `patience` seconds: workers of a killed process may hold the lock till they end. The
    lock file `path` is removed at the end. A killed process releases its lock.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience, poll_interval=0.1)
    except Timeout:
        raise UserError(message) from None
    except (OSError, NotImplementedError) as error:  # no permission, or no locks on this disk
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{path} cannot be locked ({reason}); check permissions, '
                        'or use a folder on another disk') from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)  # before the release, while nobody else holds it
        lock.release()


def make_folder(path, option):
    """Create the folder given by `option` unless it exists, and return its path."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{option} {path} cannot be created ({error.strerror}); '
                        'use another folder') from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f'{option} {path} is not writable; use another folder')
    return Path(path)


def write_json(path, value):
    """Write `value` as indented JSON. Numbers must be finite, as in JSON."""
    with replacing(path) as tmp:
        tmp.write_text(json.dumps(value, indent=2, allow_nan=False) + '\n')


def write_csv(path, rows):
    """Write dictionaries with the same keys as the rows of a table with a header."""
    with replacing(path) as tmp, open(tmp, 'w', newline='') as f:
        table = csv.DictWriter(f, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


def write_npz(path, **arrays):
    """Write arrays as a compressed `.npz`."""
    with replacing(path) as tmp, open(tmp, 'wb') as f:
        np.savez_compressed(f, **arrays)


def write_npz_parts(path, name, n, parts):
    """Write an array of n rows as a compressed `.npz`, from its parts along the first axis.

    The memory is that of one part.
    """
    parts = iter(parts)
    first = next(parts)
    header = {'descr': np.lib.format.dtype_to_descr(first.dtype), 'fortran_order': False,
              'shape': (n, *first.shape[1:])}
    with replacing(path) as tmp, zipfile.ZipFile(tmp, 'w', zipfile.ZIP_DEFLATED) as archive, \
            archive.open(f'{name}.npy', 'w', force_zip64=True) as f:
        np.lib.format.write_array_header_1_0(f, header)
        for part in itertools.chain([first], parts):
            f.write(np.ascontiguousarray(part))


# Reading

@contextlib.contextmanager
def reading(path, complaint, advice):
    """Context that reads an untrusted file, which may be truncated or of another format.

    Any exception becomes a UserError, "`path` `complaint` (reason); `advice`", except running out
    of memory. An error of the operating system gets advice of its own.
    """
    try:
        yield
    except Exception as error:  # NumPy, zipfile, zlib, Pillow and PyTorch raise many kinds
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        # PyTorch gives EINVAL for a truncated file
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise UserError(f'{path} cannot be read ({error.strerror}); '
                            'check path, permissions and disk') from None
        reason = str(error).strip().partition('\n')[0]
        if ' ' not in reason:  # such as the key of a KeyError
            reason = f'{type(error).__name__} {reason}'.strip()
        if re.search('pickle|weights.only', reason, re.I):  # would suggest an unsafe way
            reason = 'it holds more than tensors and plain values'
        raise UserError(f'{path} {complaint} ({reason}); {advice}') from None


def check_archive(path):
    """Raise a ValueError if a member of a zip archive (.pt, .npz) does not match its checksum.

    Neither PyTorch nor NumPy look at the checksums.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f'{damaged} in it does not match its checksum: the file is damaged')


def read_npz(path, prefix=''):
    """Arrays of an `.npz` by name, of those whose names start with `prefix`.

    Unlike those of `np.load`, they match checksums.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith(prefix) and name.endswith('.npy'):
                with archive.open(name) as f:
                    arrays[name.removesuffix('.npy')] = read_npy(f)
    return arrays


def npz_header(path, name):
    """Shape and dtype of an array of an `.npz`, which is not read."""
    with zipfile.ZipFile(path) as archive, archive.open(f'{name}.npy') as f:
        shape, _, dtype = npy_header(f)
        return shape, dtype


def npy_header(f):
    """Shape, order (whether it is that of Fortran) and dtype from the begin of an `.npy` file."""
    if np.lib.format.read_magic(f) == (1, 0):
        return np.lib.format.read_array_header_1_0(f)
    return np.lib.format.read_array_header_2_0(f)


def read_npy(f):
    """Array of an open `.npy` file, block by block; to its end, where an archive checks its sum."""
    shape, fortran, dtype = npy_header(f)
    if dtype.hasobject:
        raise ValueError('it holds Python objects')
    data = bytearray(math.prod(shape) * dtype.itemsize)
    view, start = memoryview(data), 0
    while block := f.read(1 << 20):
        view[start:start + len(block)] = block
        start += len(block)
    if start < len(data):
        raise ValueError('an array ends early')
    return np.frombuffer(data, dtype).reshape(shape, order='F' if fortran else 'C')


def read_json(path):
    """Read a JSON file that must hold one object."""
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; use the folder of a trained model') from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f'{path} is not readable as JSON ({error})') from None
    if not isinstance(value, dict):
        raise UserError(f'{path} must hold one JSON object, found {type(value).__name__}')
    return value


def sha256(path):
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def memory():
    """Memory of the machine, in bytes."""
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def check_memory(needed, advice, available=None, where='the machine'):
    """Raise a UserError if a lower bound of what is needed exceeds the memory, in bytes."""
    available = available or memory()
    if needed > available:
        raise UserError(f'this takes at least {needed / 1e9:,.0f} GB of memory, '
                        f'but {where} has {available / 1e9:,.0f} GB; {advice}')


def cores():
    """Number of cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
