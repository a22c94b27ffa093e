"""Fréchet distance of Gaussians fitted to two sets of features."""

import numpy as np


def frechet_distance(x, y):
    """Fréchet distance |m_x - m_y|² + Tr(S_x + S_y - 2 √(S_x S_y)), with unbiased covariances S.

    Tr √(S_x S_y) is the nuclear norm of X Yᵀ / √((n_x - 1)(n_y - 1)), X and Y being the centred
    features. This avoids matrix square roots, inaccurate for singular covariances (fewer videos
    than features).

    Parameters
    ----------
    x, y : arrays (n_x, D), (n_y, D)
        At least two rows each.

    Returns
    -------
    float, ≥ 0

    Raises
    ------
    ValueError
        The shapes do not fit, or a feature is not finite.
    """
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError('expected two arrays with at least 2 rows and as many columns, '
                         f'found shapes {x.shape} and {y.shape}')
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError('some features are not finite')
    mean = x.mean(0) - y.mean(0)
    # Qᵀ of a QR decomposition on either side keeps the norm and leaves at most D rows
    roots = [np.linalg.qr((a - a.mean(0)) / np.sqrt(len(a) - 1), 'r') for a in (x, y)]
    overlap = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    traces = sum((r ** 2).sum() for r in roots)
    return max(float(mean @ mean + traces - 2 * overlap), 0.)
