"""Metrics of predicted frames. Each prepares its target once, for any number of predictions."""

from metrics.frame import PSNR, SSIM
from metrics.lpips import LPIPS, find_backbone

METRICS = {'psnr': PSNR, 'ssim': SSIM, 'lpips': LPIPS}


def build_metrics(names, lpips_dir, device):
    """Metrics by name, on `device`. Raises a UserError if weights of LPIPS are missing."""
    build = METRICS | {'lpips': lambda: LPIPS(find_backbone(lpips_dir)).to(device)}
    return {name: build[name]() for name in METRICS if name in names}
