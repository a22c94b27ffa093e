"""Charts: paths of states in a plane, and curves. Matplotlib, slow to import, is imported late."""

import numpy as np
from PIL import Image

from files import replacing


def plane(y, times, share, size=800):
    """Draw paths of states along their first two principal components.

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
    from matplotlib.patheffects import withStroke
    palette = matplotlib.colormaps['tab10'].colors
    figure = Figure((size / 100, size / 100), dpi=100, layout='constrained')
    axes = figure.add_subplot()
    nt_cond, outline = times[1], [withStroke(linewidth=3, foreground='white')]
    for path, colour in zip(y.swapaxes(0, 1), palette):
        axes.plot(*path.T, color=colour, lw=1.2, alpha=0.5)
        axes.plot(*path[:nt_cond].T, 'o', color=colour, ms=7)
        axes.plot(*path[nt_cond:].T, 'o', color=colour, ms=6, mfc='white')
        for t in times:
            axes.annotate(str(t), path[t], (5, 5), textcoords='offset points', color=colour,
                          size=12, weight='bold', zorder=5, path_effects=outline)
    axes.set(xlabel=f'first principal component ({share[0]:.0%} of the variance)',
             ylabel=f'second principal component ({share[1]:.0%})',
             title='States y_t: dots given, rings predicted, numbers are t')
    axes.grid(alpha=0.3)
    axes.set_aspect('equal', 'datalim')
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')
    return picture, [tuple(round(255 * c) for c in colour) for colour in palette]


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
