"""Clips of videos on disk: the random ones of training and validation, the fixed ones of a test."""

import numpy as np

from data.stream import get_fold
from files import UserError


class Clips:
    """Source of random clips: a random video, a random start.

    Parameters
    ----------
    videos : list of Video (see `data.video`)
    nx, nc : int
        Width and height, and channels, of frames. Of videos with more channels the first are taken.
    nt : int
        Frames of the clips that will be drawn.
    subsampling : int
        One frame in this many is taken.

    Raises
    ------
    UserError
        A video is too short, or its frames are of another size.
    """

    def __init__(self, videos, nx, nc, nt, subsampling=1):
        self.videos, self.nx, self.nc, self.step = videos, nx, nc, subsampling
        check_videos(videos, nx, nc, self.span(nt))

    def span(self, nt):
        """Frames that a clip of `nt` covers."""
        return (nt - 1) * self.step + 1

    def draw(self, rngs, nt):
        """Clips uint8 (nt, len(rngs), nx, nx, nc), one from each `np.random.RandomState`."""
        clips = np.empty((nt, len(rngs), self.nx, self.nx, self.nc), np.uint8)
        for b, rng in enumerate(rngs):
            video = self.videos[rng.randint(len(self.videos))]
            start = rng.randint(len(video) - self.span(nt) + 1)
            clips[:, b] = video.clip(start, nt, self.step)[..., :self.nc]
        return clips


def fold_clips(videos, config, subsampling=1):
    """Sources of training and validation clips, from the two folds of training videos."""
    if len(videos) < 2:
        raise UserError(f'{videos[0].path} is the only training video; at least 2 are needed, for training and validation')
    return [Clips([videos[i] for i in get_fold(len(videos), train)], config.nx, config.nc, nt, subsampling)
            for train, nt in ((True, config.seq_len), (False, config.seq_len_test))]


def check_videos(videos, nx, nc, span):
    """Stop at the first video that has not `span` frames of nx x nx and at least nc channels."""
    for video in videos:
        H, W, *C = video.frame_shape
        if (H, W) != (nx, nx) or (C or [1])[0] < nc:
            raise UserError(f'{video.path} has frames {"x".join(map(str, video.frame_shape))}, but {nx}x{nx} with {nc} channels are needed; '
                            'convert the videos again, or give the right --nc')
        if len(video) < span:
            raise UserError(f'{video.path} has {len(video)} frames, but clips of this configuration cover {span}; '
                            'remove the video, or ask for shorter clips (--seq_len, --seq_len_test; --nt_gen of test.py)')


class FirstFrames:
    """Test set of the first frames of videos."""

    def __init__(self, videos, nx, nc, nt):
        self.clips, self.nc, self.nt = videos, nc, nt
        check_videos(videos, nx, nc, nt)

    def __len__(self):
        return len(self.clips)

    def videos(self, indices):
        """uint8 (nt, len(indices), H, W, nc)"""
        return np.stack([self.clips[i].clip(0, self.nt)[..., :self.nc] for i in indices], 1)


class Sequences:
    """Test set in memory.

    Parameters
    ----------
    sequences : np.ndarray of uint8 (T, N, H, W)
    """

    def __init__(self, sequences):
        self.sequences = sequences

    def __len__(self):
        return self.sequences.shape[1]

    def videos(self, indices):
        """uint8 (T, len(indices), H, W, 1)"""
        return self.sequences[:, indices, :, :, None]


def longer_set(folder, pattern, nt):
    """Shortest test set of at least `nt` frames: path and length, or None.

    Parameters
    ----------
    folder : Path
    pattern : compiled regular expression
        Of its name; group 1 is the number of frames.
    """
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := pattern.fullmatch(path.name))] if folder.is_dir() else []
    fitting = sorted((length, path) for length, path in found if length >= nt)
    return fitting[0] if fitting else None
