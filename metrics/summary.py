"""Summary of the scores of all videos."""

import math

import numpy as np

import published
from metrics import METRICS

FORMATS = {name: (metric.digits, metric.unit) for name, metric in METRICS.items()}
FORMATS['fvd'] = 2, ''


def summarise(values):
    """Mean of values (N,) and half-width of its 95% interval, 1.96 std / √N, as `mean` and `ci95`.

    Infinite values, such as the PSNR of equal frames, give NaN as half-width; one value gives None.
    """
    with np.errstate(invalid='ignore'):
        mean, half = float(values.mean(0)), float(1.96 * values.std(0) / math.sqrt(len(values)))
    return {'mean': mean, 'ci95': half if len(values) > 1 else None}


def summary(scores):
    """Summary of the scores (N,) of all videos by metric."""
    return {name: summarise(scores[name]) for name in METRICS if name in scores}


def score_text(name, score):
    """Text of a summary, as in a table."""
    digits, _ = FORMATS[name]
    if score['mean'] is None or math.isinf(score['mean']):
        return 'inf'
    half = '' if score['ci95'] is None else f' ± {score["ci95"]:.{digits}f}'
    return f'{score["mean"]:.{digits}f}{half}'


def score_lines(table, protocol=None):
    """One line of text per score of a table, next to the published one of the same `protocol`."""
    paper = published.find_scores(protocol) if protocol else None
    known = paper.scores if paper else {}
    lines = []
    for name, score in table.items():
        text = f'{score_text(name, score)} {FORMATS[name][1]}'.strip()
        if math.isinf(score['mean']):
            text = 'inf (identical)'
        elif score['ci95'] is None:
            text += ' (one sample)' if name == 'fvd' else ' (one video)'
        beside = f'   published: {known[name]}' if name in known else ''
        lines.append(f'{name.upper():>5} {text}{beside}')
    if any(name in known for name in table):
        found = protocol['clips'], protocol['samples']
        if found != (paper.n_videos, paper.n_samples):
            lines.append(f'published: {paper.n_videos:,} videos, best of {paper.n_samples}; '
                         f'here: {found[0]:,}, best of {found[1]}')
    if protocol and (note := protocol.get('fvd', {}).get('note')):
        lines.append(f'note: {note}')
    return lines


def finite(table):
    """A summary for JSON, with None in place of infinity and NaN."""
    def number(v):
        return v if v is not None and math.isfinite(v) else None
    return {name: {k: number(v) for k, v in score.items()} for name, score in table.items()}
