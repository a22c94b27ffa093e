"""Measure what the code claims, as ratios in one run: `python -m benchmarks`. See benchmarks/README.md."""

import argparse
import itertools
import platform
import re
import tempfile
from pathlib import Path

import torch

from benchmarks import data, fvd, roofline, speed

PARTS = ['data', 'training', 'evaluation', 'roofline', 'fvd']


def processor():
    """Name of the processor."""
    try:
        return re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())[1]
    except (OSError, TypeError):  # not Linux
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--gigabytes', type=float, default=4, help='size of the dataset on disk in the test of memory')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS, help='what to measure')
    parser.add_argument('--repeats', type=int, default=5, help='alternating repetitions of training and evaluation, of which the median is given')
    args = parser.parse_args()
    print(f'{processor()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, '
          f'torch {torch.__version__}' + (f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else '') + '\n\n| what | plain | here | ratio |\n|---|---|---|---|', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows = {'data': lambda: data.rows(folder, args.gigabytes), 'training': lambda: speed.training_rows(args.repeats),
                'evaluation': lambda: speed.evaluation_rows(args.repeats), 'roofline': roofline.rows, 'fvd': lambda: fvd.rows(folder)}
        for row in itertools.chain.from_iterable(rows[part]() for part in args.parts):
            print('| ' + ' | '.join(row) + ' |', flush=True)


if __name__ == '__main__':
    main()
