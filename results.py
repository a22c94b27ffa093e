"""Folders of results, which replace those of an earlier call as a whole."""

import contextlib
import os
import shutil

from files import UserError, exclusive, read_json, write_json


@contextlib.contextmanager
def replacing_results(folder, patterns, record, overwrite=False):
    """Yield a temporary folder for results, moved to `folder` at the end.

    They replace those of an earlier call, which are all removed: results never mix. Other files in
    their way are a UserError, unless `overwrite` is set.

    Parameters
    ----------
    folder : Path
    patterns : list of str
        Names that results may have.
    record : str
        Name of the JSON file among the results, which gets the list of all as `files`.
    overwrite : bool
    """
    message = f'another process is writing results to {folder}; wait, or use another --out_dir'
    with exclusive(folder / '.results.lock', message):
        earlier = check_results(folder, patterns, record, overwrite)
        # Not .tmp, which a training run resumed in the same folder removes
        tmp = folder / '.results.partial'
        shutil.rmtree(tmp, ignore_errors=True)  # left by a killed process
        if os.path.lexists(tmp):
            raise UserError(f'{tmp} is in the way of results; remove it, or use another --out_dir')
        tmp.mkdir()
        try:
            yield tmp
            move_results(tmp, folder, earlier, record)
        finally:
            shutil.rmtree(tmp)


def check_results(folder, patterns, record, overwrite):
    """Raise a UserError unless results can be written to `folder`; returns earlier ones (paths)."""
    for pattern in patterns:
        parent = (folder / pattern).parent
        if parent.exists() and not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            raise UserError(f'{parent} is not a writable folder; remove it, '
                            'or use another --out_dir')
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    listed = {folder / name for name in listed_results(folder / record)}
    for path in sorted(found):
        if path.is_dir():
            raise UserError(f'{path} is a folder, in the way of a result; remove it, '
                            'or use another --out_dir')
        if path not in listed and not overwrite:
            raise UserError(f'{path} is not listed as a result in {folder / record}; '
                            'move it, use another --out_dir, or --overwrite')
    return found


def listed_results(path):
    """Names of the files that the record of earlier results lists."""
    try:
        names = read_json(path)['files']
        return [path.name, *(name for name in names if isinstance(name, str))]
    except (UserError, KeyError, TypeError):
        return []


def move_results(tmp, folder, earlier, record):
    """Move all files below `tmp` to `folder`, and remove other earlier results."""
    new = {folder / path.relative_to(tmp): path for path in tmp.rglob('*') if path.is_file()}
    names = sorted(str(path.relative_to(folder)) for path in new)
    write_json(tmp / record, {**read_json(tmp / record), 'files': names})
    for path in new:  # before the removal: no result is ever missing
        path.parent.mkdir(exist_ok=True)
        os.replace(new[path], path)
    for path in earlier - new.keys():
        path.unlink()
