"""Download KTH Actions: `python -m preprocessing.kth.download DIR`."""

import shlex

from data.kth import CLASSES
from files import make_folder, run_script
from parsing import Parser
from preprocessing.download import install, unzip

URL = 'http://www.csc.kth.se/cvap/actions/'
N_VIDEOS = 599


def get_parser():
    parser = Parser('Download the videos of KTH to DIR/raw/<class>. Existing videos are kept, '
                    'interrupted downloads resumed.')
    parser.add_argument('data_dir', metavar='DIR', help='folder of the dataset; created')
    parser.add_argument('--url', default=URL, help='folder of <class>.zip, for mirrors')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = make_folder(args.data_dir, 'DIR')
    for name in CLASSES:
        target = folder / 'raw' / name
        if any(target.glob('*.avi')):
            print(f'{target} exists already', flush=True)
        else:
            install(f'{args.url.rstrip("/")}/{name}.zip', folder / f'{name}.zip', target, unzip)
    n = len(list(folder.glob('raw/*/*.avi')))
    missing = '' if n == N_VIDEOS else f' (of {N_VIDEOS} in the whole dataset)'
    print(f'{folder / "raw"}: {n:,} videos of {len(CLASSES)} classes{missing}; next: '
          f'python preprocessing/kth/convert.py --data_dir {shlex.quote(args.data_dir)}')


if __name__ == '__main__':
    run_script(main)
