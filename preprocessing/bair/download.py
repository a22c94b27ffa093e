"""Download BAIR robot pushing: `python -m preprocessing.bair.download DIR`."""

import shlex

from parsing import Parser
from files import make_folder, run_script
from preprocessing.download import check_space, downloaded, fetch, remove_empty, untar

URL = 'http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar'
SIZE = 32_274_964_480
SHA256 = 'c6f8d164ab2be07174ef597e3e070d7466f3142caddc467b6af119b9458cd9cd'
NAME = 'softmotion30_44k'  # of the folder in the archive


def get_parser():
    parser = Parser(f'Download the videos of BAIR, 30 GiB, to DIR/{NAME}; 60 GiB are needed while they are unpacked. '
                    'What is there is not downloaded again, and a broken download is continued.')
    parser.add_argument('data_dir', metavar='DIR', help='folder of the dataset; created')
    parser.add_argument('--url', default=URL, help='address of the archive, for mirrors')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = make_folder(args.data_dir, 'DIR')
    target, archive = folder / NAME, folder / 'bair_robot_pushing_dataset_v0.tar'
    if all(any((target / fold).glob('*.tfrecords')) for fold in ('train', 'test')):
        print(f'{target} is there', flush=True)
    else:
        remove_empty(target)
        if not archive.exists():  # better now than after hours of download
            check_space(folder, 2 * SIZE - downloaded(archive), f'{args.url}, with the files unpacked from it,')
        fetch(args.url, archive, SIZE, SHA256)
        untar(archive, target, top=NAME)
        archive.unlink()
    n = sum(1 for _ in target.glob('*/*.tfrecords'))
    print(f'{target}: {n:,} files of train and test videos; next: '
          f'python preprocessing/bair/convert.py --data_dir {shlex.quote(args.data_dir)}')


if __name__ == '__main__':
    run_script(main)
