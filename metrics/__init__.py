"""Metrics of predicted frames: `METRICS`, and FVD, a distance of sets of videos, in `fvd.py`."""

from metrics.frame import LPIPS, PSNR, SSIM

# One class a metric, in the order of tables and charts
METRICS = {'psnr': PSNR, 'ssim': SSIM, 'lpips': LPIPS}


class FVD:
    """How the distance of `fvd.py` is shown: the attributes of a `Metric`."""
    label, unit, digits, higher_is_better = 'FVD', '', 2, False


LABELS = METRICS | {'fvd': FVD}


def build_metrics(names, lpips_dir=None, device='cpu'):
    """Metrics on `device` by name, in the order of `METRICS`."""
    return {name: metric.build(device, lpips_dir)
            for name, metric in METRICS.items() if name in names}
