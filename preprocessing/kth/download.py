"""Download KTH Actions: `python -m preprocessing.kth.download DIR`."""

import shlex

from parsing import Parser
from files import make_folder, run_script
from preprocessing.download import fetch, remove_empty, unzip

URL = 'http://www.csc.kth.se/cvap/actions/'
N_VIDEOS = 599
CLASSES = ['boxing', 'handclapping', 'handwaving', 'jogging', 'running', 'walking']


def get_parser():
    parser = Parser('Download the videos of KTH to DIR/raw/<class>. What is there is not downloaded again, and a '
                    'broken download is continued.')
    parser.add_argument('data_dir', metavar='DIR', help='folder of the dataset; created')
    parser.add_argument('--url', default=URL, help='address of the folder with <class>.zip, for mirrors')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = make_folder(args.data_dir, 'DIR')
    for name in CLASSES:
        target, archive = folder / 'raw' / name, folder / f'{name}.zip'
        if any(target.glob('*.avi')):
            print(f'{target} is there', flush=True)
            continue
        remove_empty(target)
        fetch(f'{args.url.rstrip("/")}/{name}.zip', archive)
        unzip(archive, target)
        archive.unlink()
    n = sum(1 for _ in folder.glob('raw/*/*.avi'))
    print(f'{folder / "raw"}: {n:,} videos of {len(CLASSES)} classes{f" (the whole set has {N_VIDEOS})" if n != N_VIDEOS else ""}; next: '
          f'python preprocessing/kth/convert.py --data_dir {shlex.quote(args.data_dir)}')


if __name__ == '__main__':
    run_script(main)
