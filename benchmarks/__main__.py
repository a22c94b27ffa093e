"""Measure the speed that the code claims, as ratios in one run: see benchmarks/README.md."""

import argparse
import itertools
import platform
import re
import tempfile
from pathlib import Path

import torch

from benchmarks import data, fvd, roofline, speed

PARTS = ['data', 'training', 'sizes', 'evaluation', 'roofline', 'fvd']


def processor():
    """Name of the processor."""
    try:
        return re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())[1]
    except (OSError, TypeError):  # not Linux
        return platform.processor() or platform.machine()


def machine():
    """Hardware and versions in one line."""
    parts = [processor(), f'{torch.get_num_threads()} threads',
             f'Python {platform.python_version()}', f'torch {torch.__version__}']
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ', '.join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--gigabytes', type=float, default=4,
                        help='size of the dataset on disk that workers read')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS, help='what to measure')
    parser.add_argument('--repeats', type=int, default=5,
                        help='alternating runs of training and evaluation; medians are printed')
    args = parser.parse_args()
    print(machine(), '', '| what | plain | here | ratio |', '|---|---|---|---|', sep='\n',
          flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows = {'data': lambda: data.rows(folder, args.gigabytes),
                'training': lambda: speed.training_rows(args.repeats),
                'sizes': lambda: speed.size_rows(args.repeats),
                'evaluation': lambda: speed.evaluation_rows(args.repeats),
                'roofline': roofline.rows,
                'fvd': lambda: fvd.rows(folder)}
        for row in itertools.chain.from_iterable(rows[part]() for part in args.parts):
            print('| ' + ' | '.join(row) + ' |', flush=True)


if __name__ == '__main__':
    main()
