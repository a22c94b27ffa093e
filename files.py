"""What scripts need before and without PyTorch: errors, progress bars, files written whole.

Every module imports this one before third-party packages.
"""

import argparse
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

# PyTorch's threads would wait actively, which slows down whatever else the machine does
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')


class UserError(Exception):
    """Bad input. The message is one sentence: option or file, what was found, what to do."""


def name_missing_package(kind, error, trace):
    """Exception hook that answers a missing package with one sentence."""
    if kind is not ModuleNotFoundError:
        return sys.__excepthook__(kind, error, trace)
    print(f'error: the package {error.name} is not installed here; activate the environment '
          '(source .venv/bin/activate), or pip install -r requirements.txt', file=sys.stderr)
    raise SystemExit(2)


sys.excepthook = name_missing_package


def explain(error):
    """Sentence for an error that the user can fix, None for any other."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
        return f'{error.filename or "a file"}: {error.strerror}'
    if is_out_of_memory(error):
        reason = str(error).strip().partition('\n')[0] or type(error).__name__
        return (f'out of memory ({reason}); use a smaller --batch_size, fewer samples or a smaller '
                'model')
    return None


def is_out_of_memory(error):
    """Whether an error of Python or PyTorch means that a GPU or the system is out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and bool(re.search("can't allocate memory|out of memory", str(error))))


def run_script(main):
    """Run the `main` of a script and exit: with code 2 and one sentence after a user's mistake."""
    sys.stdout.reconfigure(line_buffering=True)  # lines in time, also in a file
    try:
        sys.exit(main())
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
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


def count(n, noun, plural=None):
    """Number with its noun, such as '1 sample' or '2 samples'."""
    return f'{n:,} {noun if n == 1 else plural or noun + "s"}'


# Progress

class Lines(io.TextIOBase):
    """stderr for a progress bar outside a terminal: prints each state on a line of its own."""

    def write(self, text):
        if text := text.strip('\r\n '):
            sys.stderr.write(f'{text}\n')


def progress_bar(*args, **kwargs):
    """`tqdm` on stderr; outside a terminal, one line every 30 seconds."""
    from tqdm import tqdm
    if not sys.stderr.isatty():
        kwargs |= {'file': Lines(), 'mininterval': 30}
    return tqdm(*args, dynamic_ncols=True, **kwargs)


# Files

@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path, renamed to `path` at the end: `path` is never seen half-written.

    Yield a path where nothing is yet, for a file or a folder. A folder replaces an earlier one.
    """
    path = Path(path)
    tmp = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    remove(tmp)
    try:
        yield tmp
        if tmp.is_dir():
            remove(path)
        os.replace(tmp, path)
    except OSError as error:
        if error.filename is None or str(tmp) in (str(error.filename), str(error.filename2)):
            error.filename = str(path)  # the name that the user knows
        raise
    finally:
        remove(tmp)


def remove(path):
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path, value):
    """Write `value` as indented JSON. Numbers must be finite, as in JSON."""
    with replacing(path) as tmp:
        tmp.write_text(json.dumps(value, indent=2, allow_nan=False) + '\n')


def read_json(path):
    """Read a JSON file that must hold one object."""
    with reading(path, 'is not a JSON file of one object', 'use another one'):
        value = json.loads(Path(path).read_text())
        if not isinstance(value, dict):
            raise ValueError(f'it holds a {type(value).__name__}')
        return value


@contextlib.contextmanager
def reading(path, complaint, advice):
    """Context that reads an untrusted file, which may be truncated or of another format.

    Any exception becomes a UserError, "`path` `complaint` (reason); `advice`", except those of the
    operating system and running out of memory.
    """
    try:
        yield
    except Exception as error:  # NumPy, zipfile, zlib, Pillow and PyTorch raise many kinds
        if isinstance(error, OSError) and error.filename is not None or explain(error):
            raise
        reason = str(error).strip().partition('\n')[0]
        if ' ' not in reason:  # such as the key of a KeyError
            reason = f'{type(error).__name__} {reason}'.strip()
        if re.search('pickle|weights.only', reason, re.I):  # would suggest an unsafe way
            reason = 'it holds more than tensors and plain values'
        raise UserError(f'{path} {complaint} ({reason}); {advice}') from None


def sha256(path):
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cores():
    """Number of cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Command lines

class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Formatter that shows defaults other than None."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Parser of a script: one sentence for an error, no abbreviations, defaults in --help."""

    def __init__(self, description, **kwargs):
        super().__init__(description=description, formatter_class=Formatter, allow_abbrev=False,
                         **kwargs)

    def error(self, message):
        raise UserError(f'{" ".join(message.split())}; --help lists all options')


def number(kind, low, exclusive=False):
    """Argument type: a finite number of `kind` (int or float), at least `low` or above it."""
    what = (f'{"a whole number" if kind is int else "a number"} '
            f'{"above" if exclusive else "of at least"} {low}')

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = float('nan')
        if not (low < value < float('inf') or value == low and not exclusive):
            raise argparse.ArgumentTypeError(f'expected {what}, found {text!r}')
        return value
    return parse


positive_int = number(int, 1)
nonnegative_int = number(int, 0)
positive_float = number(float, 0, exclusive=True)
nonnegative_float = number(float, 0)


def device(text):
    """Argument type: 'cpu', or the index of a CUDA device."""
    return text if text == 'cpu' else nonnegative_int(text)
