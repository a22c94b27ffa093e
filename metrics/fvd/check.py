"""Whether weights of I3D are those of published distances, by a public figure of these."""

import numpy as np

from files import progress_bar
from metrics.fvd import compute_features
from metrics.fvd.frechet import frechet_distance

# Distance in TensorFlow between `N_VIDEOS` random videos of either seed (universome/fvd-comparison)
REFERENCE = 10.13808536529541
TOLERANCE = 1e-4  # relative
N_VIDEOS, SHAPE, SEEDS = 128, (16, 224, 224, 3), (1, 2)
CHUNK = 4  # videos drawn at a time: 40 MB, of 1.2 GB


def random_videos(seed, n_videos):
    """Yield `RandomState(seed).rand(n_videos, *SHAPE)` as float32 arrays of `CHUNK` videos."""
    rng = np.random.RandomState(seed)
    for start in range(0, n_videos, CHUNK):
        yield rng.rand(min(CHUNK, n_videos - start), *SHAPE).astype(np.float32)


def random_distance(embed, n_videos):
    """Distance of the random videos, given to the network of an embedding as they are, in [0, 1].

    Parameters
    ----------
    embed : Embedding or TFHub
    n_videos : int
        Of each seed; `REFERENCE` is for `N_VIDEOS`.
    """
    features = []
    with progress_bar(total=len(SEEDS) * n_videos, desc='I3D', unit='video') as bar:
        for seed in SEEDS:
            found = []
            for videos in random_videos(seed, n_videos):
                found.append(compute_features(embed, videos))
                bar.update(len(videos))
            features.append(np.concatenate(found))
    return frechet_distance(*features)
