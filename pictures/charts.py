"""Charts: paths of states in a plane, and curves. Matplotlib, slow to import, is imported late."""

import math

import numpy as np
from PIL import Image

from files import replacing
from logs import TERMS

DISTANT = 0.25  # size of the largest path, relative to all, below which each is drawn by itself


def plane(y, times, share, size=800):
    """Draw paths of states along their first two principal components.

    Paths that are small compared with their distances are also drawn one by one.

    Parameters
    ----------
    y : np.ndarray (T, B, 2)
    times : list of int
        Times to label: 0, the first predicted frame, and the last frame if it is another one.
        States of conditioning frames are dots, those of predicted frames rings.
    share : np.ndarray (2,)
        Share of the variance of each component.
    size : int
        Width and height in pixels.

    Returns
    -------
    picture : PIL.Image.Image
        In RGB.
    colours : list of tuples
        Of the paths.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    palette = matplotlib.colormaps['tab10'].colors
    figure = Figure((size / 100, size / 100), dpi=100, layout='constrained')
    paths = list(zip(y.swapaxes(0, 1), palette))
    panels = [paths]
    if np.ptp(y, 0).max() < DISTANT * np.ptp(y, (0, 1)).max():
        panels += [[path] for path in paths]
    n = math.ceil(math.sqrt(len(panels)))
    for i, shown in enumerate(panels, 1):
        axes = figure.add_subplot(-(-len(panels) // n), n, i)
        draw_paths(axes, shown, times[1], times if len(panels) == 1 or i > 1 else [])
    figure.suptitle('States y_t: dots given, rings predicted, numbers are t')
    figure.supxlabel(f'first principal component ({share[0]:.0%} of the variance)', fontsize=10)
    figure.supylabel(f'second principal component ({share[1]:.0%})', fontsize=10)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')
    return picture, [tuple(round(255 * c) for c in colour) for colour in palette]


def draw_paths(axes, paths, nt_cond, times):
    """Draw pairs of a path (T, 2) and its colour, with labels at some times."""
    from matplotlib.patheffects import withStroke
    outline = [withStroke(linewidth=3, foreground='white')]
    for path, colour in paths:
        axes.plot(*path.T, color=colour, lw=1.2, alpha=0.5)
        axes.plot(*path[:nt_cond].T, 'o', color=colour, ms=7)
        axes.plot(*path[nt_cond:].T, 'o', color=colour, ms=6, mfc='white')
        for t in times:
            axes.annotate(str(t), path[t], (5, 5), textcoords='offset points', color=colour,
                          size=12, weight='bold', zorder=5, path_effects=outline)
    axes.grid(alpha=0.3)
    axes.set_aspect('equal', 'datalim')


def band(values, interval=False):
    """Mean of values (N, T) over the first axis, and what to draw on both sides of it.

    That is a standard deviation, or half a 95% interval of the mean, 1.96 std / √N. Infinite
    values, such as the PSNR of equal frames, are left out.
    """
    values = np.ma.masked_equal(values, np.inf)
    return values.mean(0), values.std(0) * (1.96 / np.sqrt(len(values)) if interval else 1)


def curves(path, xlabel, x, panels, mark=None):
    """Draw curves in bands.

    Parameters
    ----------
    path : path
        PNG file.
    xlabel : str
    x : array (T)
    panels : dict of dicts of pairs of arrays (T)
        Centre and half-width of bands (see `band`), by the label of their axis, then by their name
        in the legend. A centre of one value is a dashed line.
    mark : tuple
        Position and name of a vertical line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    n_columns = len(panels) if len(panels) < 4 else 2
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(5.5 * n_columns, 3.5 * n_rows), layout='constrained')
    for i, (label, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(n_rows, n_columns, i + 1)
        for name, (mean, half) in lines.items():
            if np.ndim(mean) == 0:
                axes.axhline(mean, label=name, color='gray', linestyle='--')
                continue
            axes.plot(x, mean, '.-', label=name, markersize=4)
            axes.fill_between(x, mean - half, mean + half, alpha=0.25, linewidth=0)
        if mark:
            axes.axvline(mark[0], label=mark[1], color='black', linestyle=':', linewidth=1)
        axes.set(xlabel=xlabel, ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if any(lines) or mark:
            axes.legend(fontsize='small')
    with replacing(path) as tmp:
        figure.savefig(tmp, format='png', dpi=120)


AXES = {'psnr': 'PSNR (dB)', 'ssim': 'SSIM', 'lpips': 'LPIPS'}


def score_curves(path, methods, nt_cond, dashed=None):
    """Draw scores against time: mean over videos and its 95% interval.

    Parameters
    ----------
    path : path
        PNG file.
    methods : dict of dicts of arrays (N, nt)
        Scores `<metric>_t` of predicted frames, by name of the method.
    nt_cond : int
        Number of conditioning frames: the first predicted frame is t = nt_cond.
    dashed : dict of dicts of float
        Means over time by name, then by metric, drawn as lines.
    """
    panels = {label: {name: band(scores[f'{metric}_t'], interval=True)
                      for name, scores in methods.items() if f'{metric}_t' in scores}
              for metric, label in AXES.items()}
    panels = {label: lines for label, lines in panels.items() if lines}
    for name, means in (dashed or {}).items():
        for metric, mean in means.items():
            if AXES.get(metric) in panels:
                panels[AXES[metric]][name] = mean, None
    nt = next(value.shape[1] for scores in methods.values()
              for key, value in scores.items() if key.endswith('_t'))
    curves(path, 'frame t', np.arange(nt_cond, nt_cond + nt), panels,
           (nt_cond, 'first predicted frame'))


# Training

TITLES = {'loss': 'loss', 'nll': 'negative log-likelihood', 'kl_y_0': 'KL divergence of y_0',
          'kl_z': 'KL divergence of z', 'res': 'norm of the residuals', 'lr': 'learning rate',
          'val_psnr': 'validation: PSNR (dB)', 'val_ssim': 'validation: SSIM'}
BEGIN = 0.05  # share of the steps that the scale of the loss and its terms does not depend on


def training_curves(path, runs):
    """Draw the logs of training runs.

    Parameters
    ----------
    path : path
        PNG file.
    runs : dict of pairs of lists of dicts, by name
        Rows of training and of validation (see `logs.read_log`).
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator
    panels = {title: [column(rows, name) for rows in runs.values()]
              for name, title in TITLES.items()}
    panels['last validation: PSNR (dB) by frame t'] = [by_frame(rows[1]) for rows in runs.values()]
    panels = {title: lines for title, lines in panels.items() if any(len(x) for x, _ in lines)}
    figure = Figure(figsize=(15, 3.5 * -(-len(panels) // 3)), layout='constrained')
    for i, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(-(-len(panels) // 3), 3, i + 1, title=title)
        for k, (name, (x, y)) in enumerate(zip(runs, lines)):
            axes.plot(x, y, color=f'C{k}', lw=1, marker='.' if len(x) < 20 else '', label=name)
        if title in [TITLES[term] for term in TERMS]:
            axes.set_ylim(later_limits(lines))
        if 'by frame' in title:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            axes.set_xlabel('step')
            axes.xaxis.set_major_formatter(EngFormatter(sep=''))
        axes.grid(alpha=0.3)
        if i == 0 and len(runs) > 1:
            axes.legend(fontsize='small')
    with replacing(path) as tmp:
        figure.savefig(tmp, format='png', dpi=100)


def column(rows, name):
    """Steps and values of a column of the rows of training or of validation, where it is."""
    found = [row for part in rows for row in part if row.get(name)]
    return (np.array([int(row['step']) for row in found]),
            np.array([float(row[name]) for row in found]))


def by_frame(validation):
    """Times and PSNR of predicted frames, of the last of the rows of validation."""
    found = {int(name[5:]): float(value) for name, value in (validation or [{}])[-1].items()
             if name.startswith('psnr_') and value}
    return np.array(list(found)), np.array(list(found.values()))


def later_limits(lines):
    """Limits of an axis: almost all values of curves (x, y), but for the first steps."""
    first = BEGIN * max(x[-1] for x, _ in lines if len(x))
    low, high = np.percentile(np.concatenate([y[x >= first] for x, y in lines]), [1, 99])
    margin = 0.1 * (high - low) or 1
    return low - margin, high + margin
