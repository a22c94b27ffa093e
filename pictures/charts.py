"""Charts by matplotlib: curves with bands."""

from typing import NamedTuple

from files import UserError, replacing

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from metrics import METRICS

# One a curve; neither blue nor red, the colours of given and predicted frames
COLOURS = ['#ff7f0e', '#2ca02c', '#9467bd', '#8c564b', '#e377c2', '#17becf', '#bcbd22']


class Panel(NamedTuple):
    """Curves in one chart."""
    title: str
    xlabel: str
    lines: dict           # by name: (x, y) or (x, y, half-width of a band), arrays (n) each; or
                          # a number y, drawn as a dashed line
    limits: tuple = None  # of y


def curves(path, panels, mark=None):
    """Draw panels (PNG); a name has one colour. `mark` is (x, name) of a vertical line."""
    names = dict.fromkeys(name for panel in panels for name, line in panel.lines.items()
                          if isinstance(line, tuple))
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}
    across = 2 if len(panels) == 4 else min(len(panels), 3)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(5.5 * across, 3.5 * down), layout='constrained')
    for k, panel in enumerate(panels, 1):
        axes = figure.add_subplot(down, across, k, title=panel.title, xlabel=panel.xlabel)
        for name, line in panel.lines.items():
            if not isinstance(line, tuple):
                axes.axhline(line, label=name, color='gray', linestyle='--')
                continue
            x, y, *half = line
            axes.plot(x, y, color=colours[name], label=name, lw=1.3,
                      marker='.' if len(x) < 50 else '', markersize=4)
            if half:
                axes.fill_between(x, y - half[0], y + half[0], color=colours[name], alpha=0.25,
                                  linewidth=0)
        if mark is not None:
            axes.axvline(mark[0], label=mark[1], color='black', linestyle=':', linewidth=1)
        if panel.limits is not None:
            axes.set_ylim(panel.limits)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=''))
        axes.grid(alpha=0.3)
        if any(panel.lines) or mark is not None:  # not for a single curve without a name
            axes.legend(fontsize='small')
    with replacing(path) as tmp:
        figure.savefig(tmp, format='png', dpi=120)


def band(values, interval=False):
    """Mean of values (N, T) over N, and half-width of a band around it.

    This is a standard deviation, or half a 95% interval of the mean, 1.96 std / √N. Infinite
    values, such as the PSNR of equal frames, are left out.
    """
    values = np.ma.masked_equal(values, np.inf)
    return values.mean(0), values.std(0) * (1.96 / np.sqrt(len(values)) if interval else 1)


def label(name):
    metric = METRICS[name]
    return f'{metric.label} ({metric.unit})' if metric.unit else metric.label


def by_name(folders, names=None):
    """Folders of runs by name; default: their own names, or their paths if these are equal."""
    if names is None:
        names = [folder.resolve().name for folder in folders]
        if len(set(names)) < len(names):
            names = list(map(str, folders))
    if not len(folders) == len(names) == len(set(names)):
        raise UserError(f'{len(folders)} different names are needed, one for each RUN, found '
                        f'{" ".join(names)}; give them as --names')
    return dict(zip(names, folders))


def score_curves(path, methods, nt_cond, levels=None):
    """Draw scores against time: mean over videos and its 95% interval (PNG).

    `methods` are dicts by name with arrays <metric>_t (N, nt) of predicted frames; `levels` are
    means over time by name, then by metric.
    """
    panels = []
    for metric in METRICS:
        lines = {}
        for name, scores in methods.items():
            if f'{metric}_t' in scores:
                mean, half = band(scores[f'{metric}_t'], interval=True)
                lines[name] = np.arange(nt_cond, nt_cond + len(mean)), mean, half
        if lines:
            lines |= {name: means[metric] for name, means in (levels or {}).items()
                      if metric in means}
            panels.append(Panel(label(metric), 'frame t', lines))
    curves(path, panels, (nt_cond, 'first predicted frame'))


TERMS = {'loss': 'loss', 'nll': 'negative log-likelihood', 'kl_y_0': 'KL divergence of y_0',
         'kl_z': 'KL divergence of z', 'res': 'norm of the residuals', 'lr': 'learning rate'}
BEGIN = 0.05  # share of the steps that the scale of the loss and its terms does not depend on


def points(pairs):
    """x and y, arrays (n), of n pairs; those without y are left out."""
    return tuple(np.array([(float(x), float(y)) for x, y in pairs if y]).reshape(-1, 2).T)


def training_curves(path, runs):
    """Draw training runs (PNG): by name, rows (dicts of str) of log.csv and of validation.csv."""
    panels = []
    for column, title in TERMS.items():
        lines = {name: points((row['step'], row[column]) for row in rows)
                 for name, (rows, _) in runs.items()}
        last = max(x.max(initial=0) for x, _ in lines.values())
        later = np.concatenate([y[x >= BEGIN * last] for x, y in lines.values()])
        low, high = np.percentile(later, [1, 99]) if len(later) else (0, 1)
        margin = 0.1 * (high - low) or 1
        panels.append(Panel(title, 'step', lines, (low - margin, high + margin)))
    for metric in 'psnr', 'ssim':
        lines = {name: points((row['step'], row.get(f'val_{metric}')) for row in rows)
                 for name, (_, rows) in runs.items()}
        panels.append(Panel(f'validation: {label(metric)}', 'step', lines))
    lines = {name: points((column.removeprefix('psnr_'), value) for row in rows[-1:]
                          for column, value in row.items() if column.startswith('psnr_'))
             for name, (_, rows) in runs.items()}
    panels.append(Panel(f'last validation: {label("psnr")}', 'frame t', lines))
    curves(path, [panel for panel in panels if any(len(x) for x, _ in panel.lines.values())]
           or panels[:1])
