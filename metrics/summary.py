"""Summary of the scores of all videos."""

import math

import numpy as np

from metrics import METRICS


def summary(scores):
    """Mean over videos and half-width of its 95% interval, 1.96 std / √N.

    Parameters
    ----------
    scores : dict of arrays (N,) by metric

    Returns
    -------
    dict of {'mean': float, 'ci95': float} by metric
        One video has no interval: None.
    """
    def interval(s):
        return float(1.96 * s.std() / math.sqrt(len(s))) if len(s) > 1 else None
    with np.errstate(invalid='ignore'):  # the PSNR of a perfect prediction is infinite
        return {name: {'mean': float(s.mean()), 'ci95': interval(s)} for name, s in scores.items()}


def score_lines(table):
    """One line of text per metric of a summary."""
    lines = []
    for name, score in table.items():
        digits, unit = METRICS[name].digits, METRICS[name].unit
        line = f'{name.upper():>5} {score["mean"]:.{digits}f}'
        if math.isinf(score['mean']):
            line = f'{name.upper():>5} inf (identical)'
        elif score['ci95'] is None:
            line += f' {unit} (one video)'.replace('  ', ' ')
        else:
            line += f' ± {score["ci95"]:.{digits}f} {unit}'
        lines.append(line.rstrip())
    return lines


def finite(table):
    """A summary for JSON, with None in place of infinity and NaN."""
    def number(v):
        return v if v is not None and math.isfinite(v) else None
    return {name: {k: number(v) for k, v in score.items()} for name, score in table.items()}
