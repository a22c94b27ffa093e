"""Write a page of results: `python report.py --xp_dir RUN [OTHER …]`; see --help."""

from pathlib import Path

from files import UserError, run_script
from parsing import Parser, positive_int
from pictures.report import N_VIDEOS, build


def report_parser():
    """Parser of `report.py`."""
    parser = Parser('Write a page of results that opens from disk in any browser: scores, curves '
                    'over time, and the videos, next to those of other runs or methods. Damage '
                    '(damage.py) is shown along a slider of iterations.')
    parser.add_argument('--xp_dir', nargs='+', required=True, metavar='RUN',
                        help='folders with results of test.py or python -m metrics on one test '
                             'set, or one folder with results of damage.py')
    parser.add_argument('--names', nargs='+', metavar='NAME',
                        help='of these results; default: the names of the folders')
    parser.add_argument('--out', metavar='DIR',
                        help='folder of the page, which replaces an earlier one; default: the '
                             'folder report in the first --xp_dir')
    parser.add_argument('--data_dir', help='folder of the dataset; default: where it was for the '
                                           'evaluation')
    parser.add_argument('--n_videos', type=positive_int, default=N_VIDEOS,
                        help='videos to show, at most: the first ones of the test set')
    parser.add_argument('--overwrite', action='store_true',
                        help='also replace files in --out that an earlier call did not write')
    return parser


def resolve(argv=None):
    """Checked options."""
    args = report_parser().parse_args(argv)
    if args.names and len(args.names) != len(args.xp_dir):
        raise UserError(f'--names: {len(args.names)} names for {len(args.xp_dir)} results; '
                        'give one each')
    if args.names and len(set(args.names)) < len(args.names):
        raise UserError(f'--names {" ".join(args.names)}: names must differ')
    args.out = Path(args.out or Path(args.xp_dir[0]) / 'report')
    return args


def main(argv=None):
    args = resolve(argv)
    page = build(args.xp_dir, args.out, args.names, args.data_dir, args.n_videos, args.overwrite)
    print(f'page: {page}')


if __name__ == '__main__':
    run_script(main)
