"""Errors and files: what every script needs, without PyTorch (a script that imports TensorFlow must not)."""

import contextlib
import csv
import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np


class UserError(Exception):
    """Bad input. The message is one sentence: option or file, what was found, what to do."""


def run_script(main):
    """Run the `main` of a script; a `UserError` becomes its sentence on stderr and exit code 2, Ctrl-C exit code 130."""
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
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`, renamed to it at the end: `path` is never seen half-written."""
    path = Path(path)
    tmp = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        yield tmp
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


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
        tmp = folder / '.results.tmp'
        shutil.rmtree(tmp, ignore_errors=True)  # left behind by a run that was killed
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
