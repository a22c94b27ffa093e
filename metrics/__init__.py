"""Scores of predicted frames. Each metric prepares its target once and scores any number of predictions against it."""

from metrics.frame import PSNR, SSIM
from metrics.lpips import LPIPS

METRICS = {'psnr': PSNR, 'ssim': SSIM, 'lpips': LPIPS}
