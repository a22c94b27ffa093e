"""Folders of results, which replace those of an earlier call as a whole."""

import contextlib
import os
import shutil
from pathlib import Path

from files import UserError, exclusive, read_json, read_npz, reading, replacing, write_json

# Of protocols of earlier versions, which do not say
EARLIER = {'precision': 'float32', 'size': 64}


def lock_results(folder):
    """Context in which no other process writes results to `folder`."""
    return exclusive(folder / '.results.lock', 'another process is writing results to '
                     f'{folder}; wait, or use another --out_dir')


def default_names(folders):
    """Names of folders with results, or their paths where these are equal."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else list(map(str, folders))


@contextlib.contextmanager
def replacing_results(folder, patterns, record, overwrite=False):
    """Yield a temporary folder for results, moved to `folder`, which is locked, at the end.

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
    earlier = check_results(folder, patterns, record, overwrite)
    # Not .tmp, which a training run resumed in the same folder removes
    tmp = empty_folder(folder / '.results.new')
    try:
        yield tmp
        move_results(tmp, folder, earlier, record)
    finally:
        shutil.rmtree(tmp)


def empty_folder(path):
    """Empty the folder `path`, which a killed process may have left, and return it."""
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        raise UserError(f'{path} is in the way of results; remove it, or use another --out_dir')
    path.mkdir()
    return path


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


class PartialResults:
    """Finished batches of an evaluation, on disk, where a later call finds them.

    Parameters
    ----------
    folder : path
    task : dict
        What the results depend on, and how the videos are split into batches.
    overwrite : bool
        Whether to discard batches of another task. Otherwise, they are a UserError.

    Attributes
    ----------
    scores : dict of dicts of arrays
        Scores by name, by number of the batch.
    """

    def __init__(self, folder, task, overwrite=False):
        self.folder, self.scores = folder, {}
        record = folder / 'task.json'
        if record.exists() and not (difference := self._compare(read_json(record), task)):
            for path in sorted(folder.glob('[0-9]*.npz')):
                self.scores[int(path.stem)] = self._read_scores(int(path.stem))
            return
        if record.exists() and not overwrite:
            raise UserError(f'{folder} holds an interrupted evaluation with {difference} now; '
                            'repeat its command, or discard it with --overwrite')
        empty_folder(folder)
        write_json(record, task)

    @staticmethod
    def _compare(before, now):
        """First difference of two tasks, None if they are equal."""
        before, now = EARLIER | before, EARLIER | now
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                return f'{name} {before.get(name)}, found {now.get(name)}'
        return None

    def path(self, k):
        return self.folder / f'{k:06d}.npz'

    def add(self, k, data):
        """Add batch k, the bytes of an `.npz`. Names of its scores start with `scores/`."""
        with replacing(self.path(k)) as tmp:
            tmp.write_bytes(data)
        self.scores[k] = self._read_scores(k)

    def _read_scores(self, k):
        found = self.read(k, 'scores/')
        return {name.removeprefix('scores/'): value for name, value in found.items()}

    def read(self, k, prefix):
        """Arrays of batch k whose names start with `prefix`, by name."""
        with reading(self.path(k), 'is damaged', 'delete it and repeat the command'):
            return read_npz(self.path(k), prefix)

    def column(self, name):
        """Yield an array of all batches, in their order."""
        return (self.read(k, name)[name] for k in sorted(self.scores))

    def remove(self):
        shutil.rmtree(self.folder)
