"""Results of an evaluation in a folder. Their videos are read one after the other."""

import contextlib
import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from args import METRICS, load_config, preset_config
from data import load_test
from files import UserError, npy_header, read_json, read_npz, reading
from published import PUBLISHED

N_RANDOM = 3  # futures shown besides the best and the worst one
# What makes the videos of two evaluations the same
SAME = ['dataset', 'digits', 'ndigits', 'max_speed', 'deterministic', 'test_set',
        'conditioning_frames', 'predicted_frames']


class Run(NamedTuple):
    """Results of `test.py` or `python -m metrics`."""
    name: str
    folder: Path
    record: dict   # results.json
    scores: dict   # arrays (N,) by metric, and (N, predicted frames) by <metric>_t
    videos: dict   # paths of predictions, by their role: psnr_best, random_1, …

    @property
    def protocol(self):
        return self.record['protocol']


class VideoFile:
    """Videos uint8 (N, T, H, W, C) of an `.npz` or `.npy` file, read one after the other.

    The file may be larger than the memory.

    Raises
    ------
    UserError
        It is not such a file, or is damaged.
    """

    def __init__(self, path, stack):
        self.path = path
        with self._reading():
            self.file = stack.enter_context(self._open(stack))
            self.shape, fortran, dtype = npy_header(self.file)
            if len(self.shape) == 4:
                self.shape = *self.shape, 1
            if dtype != np.uint8 or fortran or len(self.shape) != 5:
                raise ValueError(f'it holds {dtype} {self.shape}')

    def _reading(self):
        return reading(self.path, 'is not a file of videos, uint8 (N, T, H, W, C)',
                       'evaluate again')

    def _open(self, stack):
        if self.path.suffix == '.npy':
            return open(self.path, 'rb')
        archive = stack.enter_context(zipfile.ZipFile(self.path))
        names = archive.namelist()
        return archive.open('samples.npy' if 'samples.npy' in names else names[0])

    def __next__(self):
        """Next video, uint8 (T, H, W, C)."""
        with self._reading():
            data = self.file.read(math.prod(self.shape[1:]))
            return np.frombuffer(data, np.uint8).reshape(self.shape[1:])


# Reading

def read_run(folder, name):
    """Results of an evaluation, checked."""
    folder = Path(folder)
    path = folder / 'results.json'
    if not path.exists():
        hint = ''
        if (folder / 'damage' / 'damage.json').exists():
            hint = f'; its damage is shown with --xp_dir {folder / "damage"}'
        raise UserError(f'{folder} has no results.json; evaluate first, with test.py{hint}')
    record = read_json(path)
    with reading(path, 'is not from an evaluation', 'evaluate again'):
        protocol = record['protocol']
        n, nt = protocol['clips'], protocol['predicted_frames']
        samples, given = protocol['samples'], protocol['conditioning_frames']
        if not all(isinstance(v, int) and v > 0 for v in (n, nt, samples, given)):
            raise ValueError('its protocol has numbers that are none')
        if not isinstance(record['scores'], dict) or not isinstance(protocol['dataset'], str):
            raise ValueError('it lacks scores or the dataset')
    path = folder / 'results.npz'
    with reading(path, 'is not a file of scores', 'evaluate again'):
        scores = read_npz(path)
        for metric in METRICS:
            for key, shape in ((metric, (n,)), (f'{metric}_t', (n, nt))):
                if key in scores and scores[key].shape != shape:
                    raise ValueError(f'{key} is {scores[key].shape}, expected {shape}')
    if not any(metric in scores for metric in METRICS):
        raise UserError(f'{path} has no scores; evaluate again')
    return Run(name, folder, record, scores, find_videos(folder, record, scores))


def find_videos(folder, record, scores):
    """Paths of the predictions of an evaluation, by role.

    A single future has the role random_1. The scores of another method's predictions name their
    files instead of saving them.
    """
    files = {f'random_{k + 1}': Path(path)
             for k, path in enumerate(record.get('predictions', [])[:N_RANDOM])}
    if not files:
        roles = [f'random_{k + 1}' for k in range(N_RANDOM)] + ['cond_rec']
        if record['protocol']['samples'] > 1:
            roles += [f'{m}_{end}' for m in METRICS if m in scores for end in ('best', 'worst')]
        files = {role: folder / f'{role}.npz' for role in roles}
    return {role: path for role, path in files.items() if path.exists()}


def check_same_videos(runs):
    """Raise a UserError unless all runs predict the same frames of the same test set."""
    first = runs[0]
    for run in runs[1:]:
        for key in SAME:
            values = run.protocol.get(key), first.protocol.get(key)
            if None not in values and values[0] != values[1]:
                raise UserError(f'{run.folder} was evaluated with {key} {values[0]}, '
                                f'{first.folder} with {values[1]}; show them on separate pages')


def load_truth(runs, data_dir=None):
    """Test set of the evaluations."""
    protocol = runs[0].protocol
    recorded = next((run.record['data_dir'] for run in runs if run.record.get('data_dir')), None)
    if data_dir is None and recorded is None:
        raise UserError(f'{runs[0].folder}/results.json does not name the folder of the test set; '
                        'give it as --data_dir')
    if data_dir is None and not Path(recorded).is_dir():
        raise UserError(f'the folder of the test set, {recorded}, is not here; give it as '
                        '--data_dir')
    nt = protocol['conditioning_frames'] + protocol['predicted_frames']
    testset = load_test(find_config(runs), data_dir or recorded, nt)
    name, n = protocol.get('test_set') or testset.path.name, min(r.protocol['clips'] for r in runs)
    if testset.path.name != name or len(testset) < n:
        raise UserError(f'the evaluation was on {n:,} videos of {name}, found '
                        f'{len(testset):,} in {testset.path}; give its folder as --data_dir')
    return testset


def find_config(runs):
    """Configuration that names the test set of evaluations: of a run, or of a preset."""
    for folder in [folder for run in runs for folder in (run.folder, run.folder.resolve().parent)]:
        if (folder / 'config.json').is_file():
            return load_config(folder)
    protocol = runs[0].protocol
    deterministic = '_deterministic' if protocol.get('deterministic') else ''
    preset = f'{protocol["dataset"]}{deterministic}'
    if preset not in PUBLISHED:
        raise UserError(f'{runs[0].folder} has no config.json, which tells how to read its test '
                        'set; put it there from the folder of the model')
    config = preset_config(preset)
    vars(config).update((key, protocol[key]) for key in ('digits', 'ndigits', 'max_speed')
                        if key in protocol)
    config.nx = protocol.get('size', config.nx)
    return config


@contextlib.contextmanager
def open_videos(runs, shape):
    """Context with the open files of all runs: list of dicts of VideoFile by role.

    Parameters
    ----------
    shape : (nt, H, W, C)
        Of the videos of the test set.

    Raises
    ------
    UserError
        A file holds videos of another shape.
    """
    with contextlib.ExitStack() as stack:
        opened = []
        for run in runs:
            nt_cond, n = run.protocol['conditioning_frames'], run.protocol['clips']
            opened.append({role: VideoFile(path, stack) for role, path in run.videos.items()})
            for role, file in opened[-1].items():
                nt = nt_cond if role == 'cond_rec' else shape[0] - nt_cond
                if file.shape[1:] != (nt, *shape[1:]) or file.shape[0] < n:
                    raise UserError(f'{file.path} has {file.shape[0]} videos (T, H, W, C) of '
                                    f'{file.shape[1:]}, expected {n} of {(nt, *shape[1:])}; '
                                    'evaluate again')
        yield opened
