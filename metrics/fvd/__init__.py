"""Fréchet video distance (Unterthiner et al., 2019), on the logits of I3D."""

import numpy as np
import torch

from files import UserError, progress_bar
from metrics.fvd import tfhub, weights
from metrics.fvd.frechet import frechet_distance
from metrics.fvd.i3d import I3D, MIN_FRAMES, preprocess

MIN_VIDEOS = 16
EMBEDDING = ('logits of I3D, Kinetics-400 '
             '(TF-Hub deepmind/i3d-kinetics-400/1, RGB/inception_i3d/Mean:0)')
BATCH_SIZE = 4  # clips per forward pass: 0.5 GB for 40 frames


class Embedding:
    """I3D in PyTorch, as a function of videos.

    Parameters
    ----------
    state : dict of tensors
        As returned by `weights.load_state`.
    device : torch.device
        From `utils.get_device`, which sets full float32.
    identity : {'published', 'other', 'unknown'}
        Whether these are the weights of published distances.
    """

    def __init__(self, state, device='cpu', identity='unknown'):
        self.device, self.identity = torch.device(device), identity
        self.sha256 = weights.sha256(state)
        self._i3d = I3D(state).to(self.device)

    @property
    def comparable(self):
        """Whether published distances can be compared with those of this embedding."""
        return self.identity == 'published'

    @property
    def note(self):
        """What a reader of distances that are not comparable must know, or else None."""
        return weights.NOTES[self.identity]

    @torch.inference_mode()
    def __call__(self, videos):
        """Features, float64 (N, 400), of videos, uint8 array (N, T, H, W, C), C 1 or 3.

        Also of float32 (N, T, 224, 224, C), which the network gets as they are.
        """
        def features(batch):
            x = batch.to(self.device)
            return self._i3d(preprocess(x) if x.dtype == torch.uint8 else x)
        batches = torch.from_numpy(videos).split(BATCH_SIZE)
        return torch.cat([features(batch) for batch in batches]).double().cpu().numpy()

    def close(self):
        pass


def build_embedding(path=None, backend='torch', device='cpu', other=False):
    """Embedding with the weights at `path`, by default those in the cache or downloaded.

    Parameters
    ----------
    path : path
    backend : {'torch', 'tfhub'}
    device : torch.device
        Of the backend 'torch'; TensorFlow runs on the CPU.
    other : bool
        Whether weights are accepted that are known not to be those of published distances.

    Returns
    -------
    Embedding or TFHub
        To be closed after use.
    """
    if other and path is None:
        raise UserError('--i3d_other needs --i3d_path, the file of other weights')
    path = weights.find(path, backend)
    if backend == 'tfhub':
        return tfhub.TFHub(path)
    state, identity = weights.load_state(path, other)
    return Embedding(state, device, identity)


def facts(args, config, n_clips, n_samples, embed):
    """What the distances of an evaluation depend on, for the protocol saved with them."""
    return {'frames': args.nt_gen, 'conditioning_frames_included': True,
            'resolution': [config.nx, config.nx], 'clips': n_clips, 'samples': n_samples,
            'embedding': EMBEDDING, 'backend': args.fvd_backend,
            'weights_sha256': embed.sha256, 'weights': embed.identity, 'note': embed.note}


def check_sizes(n_videos, n_frames, what='the set'):
    """Raise a UserError for too few or too short videos."""
    if n_videos < MIN_VIDEOS:
        raise UserError(f'{what} has {n_videos} videos, but the Fréchet video distance needs '
                        f'at least {MIN_VIDEOS}; use more')
    if n_frames < MIN_FRAMES:
        raise UserError(f'{what} has videos of {n_frames} frames, but the Fréchet video distance '
                        f'needs at least {MIN_FRAMES}; use longer ones')


def check_sets(x, y):
    """Raise a UserError for two sets of videos, arrays or tensors, without a distance."""
    for videos, what in ((x, 'the first set'), (y, 'the second set')):
        if (videos.dtype not in (np.uint8, torch.uint8) or videos.ndim != 5
                or videos.shape[-1] not in (1, 3) or 0 in videos.shape[2:]):
            raise UserError(f'{what} has shape {tuple(videos.shape)} and type {videos.dtype}; '
                            'expected uint8 (N, T, H, W, C), H and W at least 1, C 1 or 3')
        check_sizes(*videos.shape[:2], what)
    if x.shape[1] != y.shape[1]:
        raise UserError(f'the sets have videos of {x.shape[1]} and {y.shape[1]} frames; '
                        'cut the longer ones to the same length')


def embed_continued(embed, given, frames):
    """Features (B, 400) of videos, of conditioning frames and frames after them.

    Parameters
    ----------
    embed : Embedding or TFHub
    given, frames : uint8 arrays (T, B, H, W, C)
    """
    return compute_features(embed, np.concatenate([given, frames]).swapaxes(0, 1))


def compute_features(embed, videos):
    """Features of videos, checked to be finite."""
    features = embed(videos)
    if not np.isfinite(features).all():
        raise UserError('the features of I3D are not finite: its weights are damaged; '
                        'use others (--i3d_path)')
    return features


def fvd(x, y, embed, batch_size=16, progress=False):
    """Fréchet video distance of two sets of videos, whose sizes may differ.

    Parameters
    ----------
    x, y : uint8 arrays or tensors (N, T, H, W, C), C 1 or 3
        At least 16 videos of at least 9 frames.
    embed : Embedding or TFHub
        As returned by `build_embedding`.
    batch_size : int
        Videos read at a time.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    float

    Raises
    ------
    UserError
    """
    check_sets(x, y)
    features = [], []
    with progress_bar(total=len(x) + len(y), desc='I3D', unit='video',
                      disable=not progress) as bar:
        for videos, found in zip((x, y), features):
            for start in range(0, len(videos), batch_size):
                batch = videos[start:start + batch_size]
                is_tensor = isinstance(batch, torch.Tensor)
                batch = batch.cpu().numpy() if is_tensor else np.array(batch)
                found.append(compute_features(embed, batch))
                bar.update(len(batch))
    return frechet_distance(*map(np.concatenate, features))
