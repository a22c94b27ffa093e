"""Metrics computed from the pixels of single frames: PSNR and SSIM."""

import torch

K1, K2 = 0.01, 0.03
WINDOW, SIGMA = 11, 1.5


def psnr(x, y):
    """Peak signal-to-noise ratio, 10 log10(1 / MSE).

    Parameters
    ----------
    x, y : tensors (…, H, W), in [0, 1]

    Returns
    -------
    tensor (…)
        In dB; infinite where x = y.
    """
    return -10 * ((x - y) ** 2).mean((-2, -1)).log10()


def blur_matrix(n, device=None):
    """Matrix (n-10, n) of the 1D Gaussian blur with 11 taps, at its valid positions.

    The 2D window is separable: blur(x) = A x Bᵀ, two small matrix products instead of a
    convolution.
    """
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    taps = torch.exp(-offsets ** 2 / (2 * SIGMA ** 2))
    matrix = torch.zeros(n - WINDOW + 1, n, dtype=torch.float64)
    for i in range(len(matrix)):
        matrix[i, i:i + WINDOW] = taps / taps.sum()
    return matrix.float().to(device)


def ssim(x, y, moments=None):
    """Structural similarity (Wang et al., 2004), for a peak of 1, averaged over the map.

    11 x 11 Gaussian window, valid positions, population moments.

    Parameters
    ----------
    x, y : tensors (…, H, W), in [0, 1]
    moments : tuple
        `ssim_moments(y)`, if already computed.

    Returns
    -------
    tensor (…)
    """
    mean_y, square_y, rows, columns = moments or ssim_moments(y)
    mean_x = rows @ x @ columns
    square_x = rows @ (x * x) @ columns
    cov = rows @ (x * y) @ columns - mean_x * mean_y
    var = square_x - mean_x ** 2 + square_y - mean_y ** 2
    c1, c2 = K1 ** 2, K2 ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x ** 2 + mean_y ** 2 + c1)
    return (luminance * (2 * cov + c2) / (var + c2)).mean((-2, -1))


def ssim_moments(y):
    """What SSIM needs from y alone: blurred y and y², and the two blur matrices."""
    rows, columns = blur_matrix(y.shape[-2], y.device), blur_matrix(y.shape[-1], y.device).T
    return rows @ y @ columns, rows @ (y * y) @ columns, rows, columns


class PSNR:
    """PSNR of frames, averaged over channels."""
    higher_is_better = True
    digits, unit = 2, 'dB'

    def prepare(self, y):
        """Target for `__call__`, from true frames y (T, B, C, H, W)."""
        return y

    def __call__(self, x, target):
        """PSNR (T, B) of videos x (T, B, C, H, W), in [0, 1]."""
        return psnr(x, target).mean(2)


class SSIM:
    """SSIM of frames, averaged over channels."""
    higher_is_better = True
    digits, unit = 4, ''

    def prepare(self, y):
        """Target for `__call__`, from true frames y (T, B, C, H, W)."""
        return y, ssim_moments(y)

    def __call__(self, x, target):
        """SSIM (T, B) of videos x (T, B, C, H, W), in [0, 1]."""
        return ssim(x, *target).mean(2)
