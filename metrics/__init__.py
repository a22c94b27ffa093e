"""Scores of predicted frames. Each metric prepares its target once and scores any number of predictions against it."""

from metrics.frame import PSNR, SSIM
from metrics.lpips import LPIPS, find_backbone

METRICS = {'psnr': PSNR, 'ssim': SSIM, 'lpips': LPIPS}


def build_metrics(names, lpips_dir, device):
    """Metrics by name, on `device`. Raises UserError if LPIPS is among them and its weights are nowhere."""
    return {name: LPIPS(find_backbone(lpips_dir)).to(device) if name == 'lpips' else METRICS[name]() for name in METRICS
            if name in names}
