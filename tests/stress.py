"""Try to break the scripts at random: `make stress`.

Kills and signals, flipped bits, full disks and wrong command lines must end in the right result or
in one sentence; nothing on disk may be lost. Each try is a function of the seed and its number.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from processes import Script

import damage
import export
import test
import visualize
from args import train_parser
from conftest import TINY, steps
from preprocessing.mmnist import make_test_set

ROOT = Path(__file__).resolve().parent.parent

TIMEOUT = 120  # seconds; a script that takes longer hangs
STRANGE = ['', ' ', '-1', '0', 'nan', 'inf', '-1e3', '1e308', '9' * 30, 'x' * 300, '/dev/null', '/',
           'ä\udcff', '--', '[1, 2]', 'true', '1000000000000000000', '../..', 'a\nb']


class Failure(Exception):
    """A try that was not held; the message says what happened."""


class Bench:
    """Folder with a dataset, a trained model and its results, which tries copy."""

    def __init__(self, folder):
        self.folder, self.data = Path(folder), Path(folder) / 'data'
        self.data.mkdir()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            make_test_set.main(['--data_dir', str(self.data), '--seq_len', '8',
                                '--digit_source', 'mnist5k'])
        self.reference = self.folder / 'reference'
        start = time.time()
        self.run('train.py', *self.train_options(self.reference), codes=[0])
        self.duration = time.time() - start
        self.run('test.py', *self.test_options(self.reference), codes=[0])
        self.run('damage.py', *self.damage_options(self.reference), codes=[0])
        self.scores = self.read_scores(self.reference)

    def train_options(self, folder):
        return [*TINY, *steps(12, 6), '--data_dir', str(self.data), '--save_path', str(folder)]

    def test_options(self, folder):
        return ['--xp_dir', folder, '--data_dir', self.data, '--nt_gen', 8, '--n_samples', 2,
                '--n_videos', 4, '--metrics', 'psnr', 'ssim', '--n_pictures', 1]

    def damage_options(self, folder):
        return ['--xp_dir', folder, '--data_dir', self.data, '--nt_gen', 6, '--n_iterations', 3]

    def read_scores(self, folder):
        return {k: v.tolist() for k, v in np.load(folder / 'results.npz').items()}

    def run(self, script, *argv, codes=(0, 1, 2)):
        """Run a script; a traceback, another exit code or a hang is a Failure."""
        command = ' '.join(map(repr, map(str, [script, *argv])))
        job = Script(script, *argv)
        try:
            out, err = job.communicate(TIMEOUT)
        except TimeoutError:
            raise Failure(f'{command} takes more than {TIMEOUT} s') from None
        if 'Traceback' in err or job.returncode not in codes:
            raise Failure(f'{command} ended with {job.returncode}:\n{err[-2000:]}')
        if job.returncode == 2 and err.count('error: ') != 1:
            raise Failure(f'{command} printed no sentence, or several:\n{err[-2000:]}')
        return job.returncode, out, err


def same_state(a, b):
    """Whether two runs ended with the same weights and log."""
    for name in ('model.pt', 'model_best.pt'):
        x, y = (torch.load(f / name, weights_only=True) for f in (a, b))
        if any(not torch.equal(x[k], y[k]) for k in x):
            return False

    def rows(folder):
        return [{**row, 'steps_per_s': ''} for name in ('log.csv', 'validation.csv')
                for row in csv.DictReader((folder / name).read_text().splitlines())]
    return rows(a) == rows(b)


# Tries

def kill(bench, rng, tmp):
    """Signal a training run at random moments and resume it."""
    folder = tmp / 'run'
    for _ in range(rng.randint(1, 4)):
        resume = (folder / 'config.json').exists()
        argv = ['--resume', '--save_path', folder] if resume else bench.train_options(folder)
        job = Script('train.py', *argv)
        time.sleep(rng.uniform(0, bench.duration))
        if job.poll() is None:
            number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            with contextlib.suppress(ProcessLookupError):
                job.send_signal(int(number))
        _, err = job.communicate(TIMEOUT)
        if 'Traceback' in err:
            raise Failure(f'a signal gave a traceback:\n{err[-2000:]}')
    resume = (folder / 'config.json').exists()
    argv = ['--resume', '--save_path', folder] if resume else bench.train_options(folder)
    bench.run('train.py', *argv, codes=[0])
    if not same_state(folder, bench.reference):
        raise Failure('the resumed run ended with other weights or another log')


def flip(bench, rng, tmp):
    """Flip a bit of a file, then use it."""
    folder = Path(shutil.copytree(bench.reference, tmp / 'run'))
    name = rng.choice(['model.pt', 'state.pt', 'log.csv', 'damage/damage.npz', 'data'])
    if name == 'data':
        data = Path(shutil.copytree(bench.data, tmp / 'data'))
        path = next(data.glob('*.npz'))
    else:
        data, path = bench.data, folder / name
    before = path.read_bytes()
    content = bytearray(before)
    bit = rng.randint(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    where = f'with bit {bit} of {path.name} flipped, '
    if name in ('state.pt', 'log.csv'):
        # The state is that of the end: nothing is left to do, but all of it is read
        code, _, _ = bench.run('train.py', '--resume', '--save_path', folder)
        if code == 0 and name == 'state.pt' and not same_state(folder, bench.reference):
            raise Failure(where + 'the run ended with other weights')
        kept = [p.read_bytes() for p in folder.glob('log.csv*')]
        if name == 'log.csv' and bytes(content) not in kept:
            raise Failure(where + 'the log was replaced')
    elif name == 'damage/damage.npz':
        bench.run('damage.py', *bench.damage_options(folder)[:6], '--replay', path,
                  '--out_dir', tmp / 'out')
    else:
        argv = bench.test_options(folder)
        argv[3] = data
        code, _, _ = bench.run('test.py', *argv, '--out_dir', tmp / 'out')
        if code == 0 and bench.read_scores(tmp / 'out') != bench.scores:
            raise Failure(where + 'test.py gave other scores without an error')
    if name not in ('log.csv', 'state.pt') and path.read_bytes() != bytes(content):
        raise Failure(where + 'the file was changed')


def fill(bench, rng, tmp):
    """Let the disk be full after a random number of bytes, then run again with space."""
    script = tmp / 'limited.py'
    folder = Path(shutil.copytree(bench.reference, tmp / 'run'))
    what = rng.choice(['train', 'test', 'damage', 'export'])
    argv = {'train': bench.train_options(tmp / 'new'), 'test': bench.test_options(folder),
            'damage': bench.damage_options(folder),
            'export': ['--xp_dir', folder, '--out_dir', tmp / 'exported']}[what]
    script.write_text(f'''
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
from files import run_script
from {what} import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({rng.randint(200_000)}, resource.RLIM_INFINITY))
run_script(main)
''')
    code, _, err = bench.run(script, *argv)
    if code == 2 and 'cannot be written' not in err and 'free space' not in err:
        raise Failure(f'a full disk was not named:\n{err[-1000:]}')
    if bench.read_scores(folder) != bench.scores:
        raise Failure('earlier results were lost')
    if what == 'train' and (tmp / 'new' / 'config.json').exists():
        argv = ['--resume', '--save_path', tmp / 'new']
    if code == 0 and what == 'export':
        return  # done, and not again
    bench.run(f'{what}.py', *argv, codes=[0])
    if what == 'train' and not same_state(tmp / 'new', bench.reference):
        raise Failure('the run that met a full disk ended with other weights')


def mistype(bench, rng, tmp):
    """Give a script a strange value of a random option."""
    folder = Path(shutil.copytree(bench.reference, tmp / 'run'))
    sample = visualize.visualize_parser()._subparsers._group_actions[0].choices['samples']
    scripts = {
        'train.py': (train_parser(), bench.train_options(tmp / 'new')),
        'test.py': (test.test_parser(), bench.test_options(folder)),
        'damage.py': (damage.damage_parser(), bench.damage_options(folder)),
        'export.py': (export.export_parser(), ['--xp_dir', folder, '--out_dir', tmp / 'exported']),
        'visualize.py': (sample, ['samples', '--xp_dir', folder, '--data_dir', bench.data,
                                  '--nt_gen', 6, '--n_samples', 2])}
    script = rng.choice(list(scripts))
    parser, argv = scripts[script]
    options = [a.option_strings[0] for a in parser._actions
               if a.option_strings and a.dest not in ('help', 'compile', 'n_iterations')]
    for _ in range(rng.randint(1, 3)):
        argv = [*argv, rng.choice(options), rng.choice(STRANGE)]
    if script == 'train.py':
        argv = [*argv, '--dry_run'] if rng.randint(2) else argv
    bench.run(script, *argv, codes=(0, 1, 2))


TRIES = [kill, flip, flip, fill, mistype, mistype, mistype]


def get_parser():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--seed', type=int, default=int(time.time()))
    parser.add_argument('--only', type=int, help='number of a single try, to repeat it')
    return parser


def main():
    args = get_parser().parse_args()
    failed, i, end = 0, 0, time.time() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where strange relative paths lead
        bench = Bench(folder)
        while time.time() < end:
            i = i if args.only is None else args.only
            rng = np.random.RandomState([args.seed, i])
            attempt = TRIES[rng.randint(len(TRIES))]
            try:
                with tempfile.TemporaryDirectory(dir=folder) as tmp:
                    attempt(bench, rng, Path(tmp))
            except Failure as failure:
                failed += 1
                print(f'try {i} ({attempt.__name__}) failed: {failure}', flush=True)
            i += 1
            if args.only is not None:
                break
    print(json.dumps({'tried': i, 'held': i - failed, 'failed': failed, 'seed': args.seed}))
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
