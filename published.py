"""The published evaluations of SRVP: lengths of the videos, and scores."""

from typing import NamedTuple


class Published(NamedTuple):
    """An evaluation of the paper, best of `n_samples`.

    Scores are the mean ± half-width of its 95% interval, over videos, or over five samples for the
    Fréchet video distance (`fvd`), which is as a later paper quotes it (Akan et al., 2021).
    """
    name: str      # of the test set
    nt_cond: int   # conditioning frames
    nt_gen: int    # all frames, these included
    n_videos: int  # in the test set
    scores: dict
    n_samples: int = 100


PUBLISHED = {  # by preset
    'smmnist': Published('Stochastic Moving MNIST', 5, 25, 5000, {
        'psnr': '16.93 ± 0.07', 'ssim': '0.7799 ± 0.0020'}),
    'smmnist_deterministic': Published('Deterministic Moving MNIST', 5, 100, 5000, {}, 1),
    'kth': Published('KTH', 10, 40, 1000, {
        'psnr': '29.69 ± 0.32', 'ssim': '0.8697 ± 0.0046', 'lpips': '0.0736 ± 0.0029',
        'fvd': '222 ± 3'}),
    'human': Published('Human3.6M', 8, 53, 1000, {}),
    'bair': Published('BAIR robot pushing', 2, 30, 256, {
        'psnr': '19.59 ± 0.27', 'ssim': '0.8196 ± 0.0084', 'lpips': '0.0574 ± 0.0032',
        'fvd': '163 ± 4'}),
}


def find(facts):
    """Published evaluation on the test set of a configuration, or of a protocol.

    Parameters
    ----------
    facts : dict
        With `dataset`, the width of frames as `nx` or `size` (default: 64) and, for smmnist,
        `deterministic`, `digits` and `ndigits`.

    Returns
    -------
    Published
        None if there is none.
    """
    size = facts.get('size') or facts.get('nx') or 64
    if (size, facts.get('digits', 'mnist'), facts.get('ndigits', 2)) != (64, 'mnist', 2):
        return None
    suffix = '_deterministic' if facts.get('deterministic') else ''
    return PUBLISHED.get(f'{facts["dataset"]}{suffix}')


def find_scores(protocol):
    """Published evaluation with the lengths of a protocol (see `results.json`), or None.

    Without its Fréchet video distance if the protocol has one with other weights.
    """
    published = find(protocol)
    if published is None or (published.nt_cond, published.nt_gen - published.nt_cond) != (
            protocol['conditioning_frames'], protocol['predicted_frames']):
        return None
    if protocol.get('fvd', {}).get('weights', 'published') != 'published':
        scores = {name: text for name, text in published.scores.items() if name != 'fvd'}
        return published._replace(scores=scores)
    return published
