"""Write a page of results, and compare several: `python report.py RUN [OTHER …]`; see --help."""

from pathlib import Path

from files import Parser, UserError, nonnegative_int, run_script

from pictures import charts, page

# What methods may differ in
OWN = {'metrics', 'n_euler_steps', 'seed', 'baseline', 'checkpoint_sha256', 'fvd_samples',
       'fvd_note'}


def report_parser():
    parser = Parser('Write a page of results that opens from disk in any browser: scores, curves '
                    'over time, and the videos. Several runs or methods stand side by side, also '
                    'in table.md. Damage (damage.py) is shown along a slider of iterations.')
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN',
                        help='folders with results of test.py or python -m metrics on one test '
                             'set, or one folder with results of damage.py')
    parser.add_argument('--names', nargs='+', metavar='NAME',
                        help='of these results; default: the names of the folders')
    parser.add_argument('--out_dir', type=Path, metavar='DIR',
                        help='folder of the page, which replaces an earlier one; default: the '
                             'folder report in the first RUN')
    parser.add_argument('--data_dir', help='folder of the dataset; default: where it was')
    parser.add_argument('--n_videos', type=nonnegative_int, default=page.N_VIDEOS,
                        help='first videos of the test set to show; 0 needs no dataset')
    parser.add_argument('--overwrite', action='store_true',
                        help='write the page to --out_dir also if it holds other files')
    return parser


def check_comparable(runs):
    """Raise a UserError unless scores were computed in the same way, on the same test set."""
    known = {}  # value and folder by name
    for run in runs:
        for key, value in run.protocol.items():
            if key in OWN or value is None or (key, value) == ('samples', 1):
                continue  # a method with a single future is scored by that
            before, where = known.setdefault(key, (value, run.folder))
            if value != before:
                raise UserError(f'{run.folder} was evaluated with {key.replace("_", " ")} {value}, '
                                f'{where} with {before}: they cannot be compared; give results of '
                                'one protocol')


def main(argv=None):
    args = report_parser().parse_args(argv)
    first, *others = args.runs
    out_dir = args.out_dir or first / 'report'
    if not others and not (first / 'results.json').exists() and (first / 'damage.json').exists():
        name = args.names[0] if args.names else None
        print(f'page: {page.write_damage(first, out_dir, name, args.overwrite)}')
        return
    runs = [page.read_run(folder, name)
            for name, folder in charts.by_name(args.runs, args.names).items()]
    check_comparable(runs)
    index = page.write_evaluation(runs, out_dir, args.data_dir, args.n_videos, args.overwrite)
    if len(runs) > 1:
        print((out_dir / 'table.md').read_text(encoding='utf-8'), end='')
    print(f'page: {index}')


if __name__ == '__main__':
    run_script(main)
