"""Download BAIR robot pushing: `python -m preprocessing.bair.download DIR`."""

import functools
import shlex

from files import make_folder, run_script
from parsing import Parser
from preprocessing.download import install, untar

URL = 'http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar'
SIZE = 32_274_964_480
SHA256 = 'c6f8d164ab2be07174ef597e3e070d7466f3142caddc467b6af119b9458cd9cd'
NAME = 'softmotion30_44k'  # folder in the archive


def get_parser():
    parser = Parser(f'Download the videos of BAIR (30 GiB) to DIR/{NAME}; unpacking needs 60 GiB. '
                    'Existing videos are kept, interrupted downloads resumed.')
    parser.add_argument('data_dir', metavar='DIR', help='folder of the dataset; created')
    parser.add_argument('--url', default=URL, help='address of the archive, for mirrors')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = make_folder(args.data_dir, 'DIR')
    target = folder / NAME
    if all(any((target / fold).glob('*.tfrecords')) for fold in ('train', 'test')):
        print(f'{target} exists already', flush=True)
    else:
        install(args.url, folder / 'bair_robot_pushing_dataset_v0.tar', target,
                functools.partial(untar, top=NAME), SIZE, SHA256)
    n = len(list(target.glob('*/*.tfrecords')))
    print(f'{target}: {n:,} files of training and test videos; next: '
          f'python preprocessing/bair/convert.py --data_dir {shlex.quote(args.data_dir)}')


if __name__ == '__main__':
    run_script(main)
