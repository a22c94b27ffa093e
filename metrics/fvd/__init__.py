"""Fréchet video distance (Unterthiner et al., 2019): Fréchet distance of the logits of I3D on two sets of videos."""

import statistics

import numpy as np
import torch

from files import UserError, progress_bar
from metrics.fvd import tfhub, weights
from metrics.fvd.frechet import frechet_distance
from metrics.fvd.i3d import I3D, MIN_FRAMES, preprocess

MIN_VIDEOS = 16
EMBEDDING = 'logits of I3D, Kinetics-400 (TF-Hub deepmind/i3d-kinetics-400/1, RGB/inception_i3d/Mean:0)'
AT_ONCE = 4  # clips in the network, 40 frames of which take 0.5 GB


class Embedding:
    """I3D in PyTorch, as a function of videos.

    Parameters
    ----------
    state : dict of tensors
        What `weights.load_state` returns.
    device : torch.device
    """

    def __init__(self, state, device='cpu'):
        self.device = torch.device(device)
        self.sha256 = weights.sha256(state)
        self._i3d = I3D(state).to(self.device)

    @torch.inference_mode()
    def __call__(self, videos):
        """Features, float64 array (N, 400), of videos, uint8 array (N, T, H, W, C) of one channel or three."""
        features = []
        for batch in torch.from_numpy(videos).split(AT_ONCE):
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # full float32
                features.append(self._i3d(preprocess(batch.to(self.device))).double().cpu().numpy())
        return np.concatenate(features)

    def close(self):
        pass


def build_embedding(path=None, backend='torch', device='cpu'):
    """Embedding of videos by the weights at `path`, by default in the cache, by PyTorch or ('tfhub') TensorFlow."""
    path = weights.find(path, backend)
    return tfhub.TFHub(path) if backend == 'tfhub' else Embedding(weights.load_state(path), device)


def check_sizes(n_videos, n_frames, what='the set'):
    """Stop at videos too few or too short."""
    if n_videos < MIN_VIDEOS:
        raise UserError(f'{what} has {n_videos} videos, but the Fréchet video distance needs at least {MIN_VIDEOS}; give more')
    if n_frames < MIN_FRAMES:
        raise UserError(f'{what} has videos of {n_frames} frames, but the Fréchet video distance needs at least {MIN_FRAMES}; give '
                        'longer ones')


def check_sets(x, y):
    """Stop at sets of videos that have no distance."""
    for videos, what in ((x, 'the first set'), (y, 'the second set')):
        if videos.ndim != 5 or videos.shape[-1] not in (1, 3) or 0 in videos.shape[2:] or str(videos.dtype).removeprefix('torch.') != 'uint8':
            raise UserError(f'{what} has shape {tuple(videos.shape)} and type {videos.dtype}; expected uint8 (N, T, H, W, C), H and W at least 1, C 1 or 3')
        check_sizes(*videos.shape[:2], what)
    if x.shape[1] != y.shape[1]:
        raise UserError(f'the sets have videos of {x.shape[1]} and {y.shape[1]} frames; distances are defined for one length: cut the longer')


class FVD:
    """FVD of a test set against random predictions of it, batch by batch: only features are kept.

    Parameters
    ----------
    embed : Embedding or TFHub
    n_samples : int
        Random samples, the distances of which are averaged.
    """

    def __init__(self, embed, n_samples=1):
        self.embed = embed
        self._true, self._samples = [], [[] for _ in range(n_samples)]

    def update(self, given, target, samples):
        """Add a batch.

        Parameters
        ----------
        given, target : uint8 arrays (T, B, H, W, C)
        samples : sequence of `n_samples` uint8 arrays (T, B, H, W, C)
            Predictions of `target`.
        """
        for features, end in zip([self._true, *self._samples], [target, *samples]):
            features.append(_embed(self.embed, np.concatenate([given, end]).swapaxes(0, 1)))

    def collect(self, world, n):
        """Bring the features of all n videos, of which each process of `world` has its part, to the first one, which has the result."""
        self._true, *self._samples = ([world.collect(np.concatenate(features), n)] for features in (self._true, *self._samples))

    def result(self):
        """Mean over samples, and their standard deviation (divisor n; 0 for one)."""
        distances = [_distance(self._true, sample) for sample in self._samples]
        return statistics.fmean(distances), statistics.pstdev(distances)


def _embed(embed, videos):
    features = embed(videos)
    if not np.isfinite(features).all():
        raise UserError('the features of I3D hold values that are not finite numbers; its weights are damaged, take others (--i3d_path)')
    return features


def _distance(x, y):
    return frechet_distance(np.concatenate(x), np.concatenate(y))


def fvd(x, y, embed, batch_size=16, progress=False):
    """Fréchet video distance of two sets of videos, not necessarily of one size.

    Parameters
    ----------
    x, y : uint8 arrays or tensors (N, T, H, W, C), of one channel or three
        At least 16 videos of at least 9 frames.
    embed : Embedding or TFHub
        What `build_embedding` returns.
    batch_size : int
        Videos read at a time.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    float

    Raises
    ------
    UserError
    """
    check_sets(x, y)
    features = [[], []]
    with progress_bar(total=len(x) + len(y), desc='I3D', unit='video', disable=not progress) as bar:
        for videos, found in zip((x, y), features):
            for start in range(0, len(videos), batch_size):
                batch = videos[start:start + batch_size]
                found.append(_embed(embed, batch.cpu().numpy() if isinstance(batch, torch.Tensor) else np.array(batch)))
                bar.update(len(batch))
    return _distance(*features)
