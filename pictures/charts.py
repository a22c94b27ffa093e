"""Charts: states in a plane, and curves."""

import numpy as np
from PIL import Image

from files import replacing


def plane(y, times, share, size=800):
    """Draw paths of states in two dimensions.

    Parameters
    ----------
    y : np.ndarray (T, B, 2)
    times : list of int
        Numbered states: the first one, that of the first predicted frame, and the last one if it is another. Dots are those of given
        frames, rings the others.
    share : np.ndarray (2,)
        Share of the variance that each dimension has.
    size : int
        Width and height in pixels.

    Returns
    -------
    picture : PIL.Image.Image
        In RGB.
    colours : list of B tuples
        Of each path.
    """
    import matplotlib  # takes as long to import as PyTorch, and few need it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    palette = matplotlib.colormaps['tab10'].colors
    figure = Figure((size / 100, size / 100), dpi=100, layout='constrained')
    axes = figure.add_subplot()
    for path, colour in zip(y.swapaxes(0, 1), palette):
        axes.plot(*path.T, color=colour, lw=1.2, alpha=0.5)
        axes.plot(*path[:times[1]].T, 'o', color=colour, ms=7)
        axes.plot(*path[times[1]:].T, 'o', color=colour, ms=6, mfc='white')
        for t in times:
            axes.annotate(str(t), path[t], (5, 5), textcoords='offset points', color=colour, size=12, weight='bold', zorder=5,
                          path_effects=[withStroke(linewidth=3, foreground='white')])
    axes.set(xlabel=f'first principal component ({share[0]:.0%} of the variance)',
             ylabel=f'second principal component ({share[1]:.0%})', title='States y_t: dots given, rings predicted, numbers are t')
    axes.grid(alpha=0.3)
    axes.set_aspect('equal', 'datalim')
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB'), [tuple(round(255 * c) for c in colour) for colour in palette]


def curves(path, xlabel, x, panels):
    """Draw curves, of several runs their mean and a band of a standard deviation on either side. Infinite values are left out.

    Parameters
    ----------
    path : path
        PNG file.
    xlabel : str
    x : array (N)
    panels : dict of dicts of arrays (runs, N)
        By the label of their axis, then by their name in its legend.
    """
    from matplotlib.figure import Figure  # takes as long to import as PyTorch, and few need it
    from matplotlib.ticker import MaxNLocator
    figure = Figure(figsize=(11, 3.5 * -(-len(panels) // 2)), layout='constrained')
    for i, (label, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(-(-len(panels) // 2), 2, i + 1)
        for name, values in lines.items():
            values = np.ma.masked_equal(values, np.inf)  # of equal frames
            mean, std = values.mean(0), values.std(0)
            axes.plot(x, mean, '.-', label=name, markersize=4)
            axes.fill_between(x, mean - std, mean + std, alpha=0.25, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if any(lines):
            axes.legend()
    with replacing(path) as tmp:
        figure.savefig(tmp, format='png', dpi=120)
