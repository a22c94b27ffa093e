"""Compare results of several methods or checkpoints on one test set.

`python compare.py RUN OTHER --out FOLDER`; see --help.
"""

from pathlib import Path

import published
from files import (
    UserError,
    make_folder,
    read_json,
    read_npz,
    reading,
    replacing,
    run_script,
    write_csv,
    write_json,
)
from parsing import Parser
from results import EARLIER, default_names, lock_results, replacing_results

RESULTS = ['curves.png', 'table.md', 'table.csv', 'table.tex', 'compare.json']
# Of the protocol: what methods may differ in
OWN = {'samples', 'n_euler_steps', 'seed', 'baseline', 'checkpoint', 'checkpoint_sha256', 'fvd',
       'lpips_version'}
OWN_FVD = {'samples', 'seed', 'backend', 'embedding', 'weights', 'note'}
METRICS = {'psnr': ('PSNR', '↑', r'$\uparrow$'), 'ssim': ('SSIM', '↑', r'$\uparrow$'),
           'lpips': ('LPIPS', '↓', r'$\downarrow$'), 'fvd': ('FVD', '↓', r'$\downarrow$')}
PAPER = 'SRVP (paper)'


def compare_parser():
    """Parser of `compare.py`."""
    parser = Parser('Compare results of test.py or python -m metrics on one test set: curves over '
                    'time in one figure, and one table (Markdown, CSV, LaTeX), next to the scores '
                    'of the paper.')
    parser.add_argument('results', nargs='+', metavar='RUN',
                        help='folder with results.json and results.npz')
    parser.add_argument('--names', nargs='+', metavar='NAME',
                        help='of the methods; default: the names of the folders')
    parser.add_argument('--out', required=True, metavar='FOLDER',
                        help='folder for the comparison, which replaces an earlier one')
    return parser


def resolve(argv=None):
    """Checked options."""
    args = compare_parser().parse_args(argv)
    if args.names is None:
        args.names = default_names(args.results)
    if len(args.names) != len(args.results):
        raise UserError(f'--names: {len(args.names)} names for {len(args.results)} results; '
                        'give one each')
    if len({*args.names, PAPER}) <= len(args.names):
        raise UserError(f'--names {" ".join(args.names)}: names must differ, also from {PAPER}')
    return args


# Reading

def read_results(folder):
    """Scores by metric, protocol, and arrays of the results in a folder."""
    path = Path(folder) / 'results.json'
    record = read_json(path)
    if not all(isinstance(record.get(part), dict) for part in ('scores', 'protocol')):
        raise UserError(f'{path} is not from an evaluation: it lacks scores or protocol')
    path = path.with_suffix('.npz')
    with reading(path, 'is not a file of scores', 'evaluate again'):
        arrays = read_npz(path)
    if not any(name.endswith('_t') for name in arrays):
        raise UserError(f'{path} has no scores over time, as of an earlier version; evaluate again')
    return record['scores'], record['protocol'], arrays


def check_protocols(args, protocols):
    """Raise a UserError unless scores were computed in the same way."""
    known = {}  # value and path by name
    for path, protocol in zip(args.results, protocols):
        for key, value in facts(protocol).items():
            before, where = known.setdefault(key, (value, path))
            if value != before:
                raise UserError(f'{path} has {key} {value}, {where} has {before}: '
                                'their scores cannot be compared')
    # A method with a single future is scored by that
    several = {p['samples'] for p in protocols} - {1}
    if len(several) > 1:
        raise UserError(f'the results are the best of {" and ".join(map(str, sorted(several)))} '
                        'samples, which cannot be compared; evaluate with the same --n_samples')


def facts(protocol):
    """What must be the same in all protocols, by name."""
    fvd = {f'fvd {k}': v for k, v in protocol.get('fvd', {}).items() if k not in OWN_FVD}
    found = {k: v for k, v in protocol.items() if k not in OWN} | fvd
    if protocol.get('lpips_version'):
        found['lpips_version'] = protocol['lpips_version']
    return EARLIER | found


# Writing

def get_rows(args, every, paper):
    """Rows of the table: dicts of texts, by column."""
    from metrics.summary import score_text
    names = [m for m in METRICS if any(m in scores for scores, _, _ in every)]
    rows = [{'method': name, 'samples': str(protocol['samples']),
             **{m: score_text(m, scores[m]) if m in scores else '' for m in names}}
            for name, (scores, protocol, _) in zip(args.names, every)]
    if paper is not None and paper.scores:
        rows.append({'method': PAPER, 'samples': str(paper.n_samples),
                     **{m: paper.scores.get(m, '') for m in names}})
    return rows


def caption(protocol, paper):
    """What was compared, in words."""
    size = (EARLIER | protocol)['size']
    text = (f'{protocol["dataset"]}: {protocol["clips"]:,} videos of {size} x {size}, '
            f'{protocol["conditioning_frames"]} conditioning and {protocol["predicted_frames"]} '
            'predicted frames; mean and 95% interval over videos of the best sample of each')
    if 'fvd' in protocol:
        text += '; FVD: mean and 95% interval over samples'
        if note := protocol['fvd'].get('note'):
            text += f' ({note})'
    if paper is not None and paper.scores and protocol['clips'] != paper.n_videos:
        text += f'; {PAPER}: {paper.n_videos:,} videos'
    return f'{text}.'


def markdown(rows, text):
    """Table in Markdown."""
    columns = list(rows[0])
    heads = [' '.join(METRICS[c][:2]) if c in METRICS else c for c in columns]
    lines = [heads, ['---', *['---:'] * (len(columns) - 1)], *(list(row.values()) for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + f'\n\n{text}\n'


def latex(rows, text):
    """Table in LaTeX, for the package booktabs."""
    def escaped(value):
        for a, b in (('\\', r'\textbackslash '), ('_', r'\_'), ('%', r'\%'), ('&', r'\&'),
                     ('#', r'\#'), ('$', r'\$'), ('{', r'\{'), ('}', r'\}'), (' ± ', r' $\pm$ ')):
            value = value.replace(a, b)
        return value
    columns = list(rows[0])
    heads = [f'{METRICS[c][0]} {METRICS[c][2]}' if c in METRICS else c for c in columns]
    body = [' & '.join(map(escaped, row.values())) + r' \\' for row in rows]
    return '\n'.join([f'% {text}', rf'\begin{{tabular}}{{l{"r" * (len(columns) - 1)}}}',
                      r'\toprule', ' & '.join(heads) + r' \\', r'\midrule', *body, r'\bottomrule',
                      r'\end{tabular}', ''])


def main(argv=None):
    args = resolve(argv)
    every = [read_results(folder) for folder in args.results]
    protocols = [protocol for _, protocol, _ in every]
    check_protocols(args, protocols)
    protocol = next((p for p in protocols if 'fvd' in p), protocols[0])
    paper = published.find_scores(protocol)
    out = make_folder(args.out, '--out')
    rows, text = get_rows(args, every, paper), caption(protocol, paper)
    from pictures import charts
    with lock_results(out), replacing_results(out, RESULTS, 'compare.json') as folder:
        methods = {name: arrays for name, (_, _, arrays) in zip(args.names, every)}
        dashed = {}
        if paper is not None:
            dashed[f'{PAPER}, mean'] = {m: float(score.split()[0])
                                        for m, score in paper.scores.items()}
        charts.score_curves(folder / 'curves.png', methods, protocol['conditioning_frames'], dashed)
        write_csv(folder / 'table.csv', rows)
        for name, content in (('table.md', markdown(rows, text)), ('table.tex', latex(rows, text))):
            with replacing(folder / name) as tmp:
                tmp.write_text(content)
        write_json(folder / 'compare.json', {'results': args.results, 'names': args.names,
                                             'protocols': protocols})
    print(markdown(rows, text), end='')
    print(f'results in {args.out}: {", ".join(RESULTS)}')


if __name__ == '__main__':
    run_script(main)
