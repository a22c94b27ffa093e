"""Fréchet distance of Gaussians fitted to two sets of features."""

import numpy as np


def frechet_distance(x, y):
    """Fréchet distance |m_x - m_y|² + Tr(S_x + S_y - 2·√(S_x·S_y)) with unbiased covariances S.

    Tr √(S_x·S_y) is the nuclear norm of Xc·Ycᵀ / √((n_x - 1)(n_y - 1)), with the centred features Xc and Yc: no square root
    of a matrix, which is inexact where covariances are singular (fewer videos than features).

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
        If a feature is not a finite number, or shapes do not fit.
    """
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f'expected two arrays of at least 2 rows and as many columns, found shapes {x.shape} and {y.shape}')
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError('the features hold values that are not finite numbers')
    mean = x.mean(0) - y.mean(0)
    # Qᵀ of a QR decomposition on either side does not change the norm and leaves at most D rows
    roots = [np.linalg.qr((a - a.mean(0)) / np.sqrt(len(a) - 1), 'r') for a in (x, y)]
    overlap = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return max(float(mean @ mean + sum((r ** 2).sum() for r in roots) - 2 * overlap), 0.)
