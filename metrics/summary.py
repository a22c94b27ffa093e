"""Scores of all videos, in short."""

import math

import numpy as np

from metrics import METRICS


def summary(scores):
    """Mean over videos and half-width of its 95% interval, 1.96·std/√N."""
    with np.errstate(invalid='ignore'):  # the PSNR of a perfect prediction is infinite
        return {name: {'mean': float(s.mean()), 'ci95': float(1.96 * s.std() / math.sqrt(len(s)))} for name, s in scores.items()}


def score_lines(table):
    """Lines that tell what `summary` returned."""
    return [f'{name.upper():>5} {score["mean"]:.{METRICS[name].digits}f} ± {score["ci95"]:.{METRICS[name].digits}f} {METRICS[name].unit}'.rstrip()
            for name, score in table.items()]


def finite(table):
    """What `summary` returned, for JSON: None in place of what is no finite number."""
    return {name: {k: v if math.isfinite(v) else None for k, v in score.items()} for name, score in table.items()}
