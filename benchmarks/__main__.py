"""Measure what the code claims, as ratios in one run: `python -m benchmarks`. See benchmarks/README.md."""

import argparse
import itertools
import platform
import tempfile
from pathlib import Path

import torch

from benchmarks import data, fvd


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--gigabytes', type=float, default=4, help='size of the dataset on disk in the test of memory')
    args = parser.parse_args()
    print(f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, '
          f'torch {torch.__version__}\n\n| what | plain | here | ratio |\n|---|---|---|---|', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in itertools.chain(data.rows(Path(folder), args.gigabytes), fvd.rows(Path(folder))):
            print('| ' + ' | '.join(row) + ' |', flush=True)


if __name__ == '__main__':
    main()
