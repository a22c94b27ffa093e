"""Clips of videos on disk: the random ones of training and validation, the fixed ones of a test."""

import os
import sys

import numpy as np

from files import UserError


def get_fold(n, train):
    """Indices of the training (95%) or validation fold among n items, in order, as published.

    Returns
    -------
    np.ndarray of int
    """
    indices = np.arange(n)
    np.random.RandomState(42).shuffle(indices)
    split = int(0.95 * n)
    return np.sort(indices[:split] if train else indices[split:])


class Clips:
    """Source of random clips: a random video of those long enough, a random start.

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
        The frames of a video are of another size, or no video is long enough.
    """

    def __init__(self, videos, nx, nc, nt, subsampling=1):
        self.nx, self.nc, self.step = nx, nc, subsampling
        check_frames(videos, nx, nc)
        self.videos = [video for video in videos if len(video) >= self.span(nt)]
        short = describe_short(videos, self.span(nt))
        if not self.videos:
            raise UserError(f'{short}; ask for shorter clips (--seq_len, --seq_len_test), or add longer videos')
        if short and os.environ.get('RANK', '0') == '0':  # of the processes of a job, one tells
            print(f'note: {short}; no clips are drawn from these', file=sys.stderr)

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


def check_frames(videos, nx, nc):
    """Stop at the first video that has not frames of nx x nx and at least nc channels."""
    for video in videos:
        H, W, *C = video.frame_shape
        if (H, W) != (nx, nx) or (C or [1])[0] < nc:
            raise UserError(f'{video.path} has frames {"x".join(map(str, video.frame_shape))}, but {nx}x{nx} with {nc} channels are needed; '
                            'convert the videos again, or give the right --nc')


def describe_short(videos, span):
    """How many videos have fewer than `span` frames, and which are the first three; empty if there are none."""
    short = [f'{video.path} ({len(video)})' for video in videos if len(video) < span]
    return short and f'{len(short):,} of {len(videos):,} videos have fewer than the {span} frames of a clip: {", ".join(short[:3])}{" …" * (len(short) > 3)}'


def check_videos(videos, nx, nc, span):
    """Stop at videos that have not `span` frames of nx x nx and at least nc channels."""
    check_frames(videos, nx, nc)
    if short := describe_short(videos, span):
        raise UserError(f'{short}; remove them, or ask for shorter clips (--nt_gen; --seq_len of make_test_set.py)')


class FirstFrames:
    """Test set of the first `nt` frames of videos, one in `subsampling`, those of the folder `path`."""

    def __init__(self, videos, nx, nc, nt, path, subsampling=1):
        self.clips, self.nc, self.nt, self.path, self.step = videos, nc, nt, path, subsampling
        check_videos(videos, nx, nc, (nt - 1) * subsampling + 1)

    def __len__(self):
        return len(self.clips)

    def videos(self, indices):
        """uint8 (nt, len(indices), H, W, nc)"""
        return np.stack([self.clips[i].clip(0, self.nt, self.step)[..., :self.nc] for i in indices], 1)


class Sequences:
    """Test set in memory.

    Parameters
    ----------
    sequences : np.ndarray of uint8 (T, N, H, W)
    path : Path
        Of its file.
    """

    def __init__(self, sequences, path):
        self.sequences, self.path = sequences, path

    def __len__(self):
        return self.sequences.shape[1]

    def videos(self, indices):
        """uint8 (T, len(indices), H, W, 1)"""
        return self.sequences[:, indices, :, :, None]


def shortest_set(folder, pattern, nt):
    """Shortest test set of at least `nt` frames: length and path, or None. A longer one than asked for holds other clips.

    Parameters
    ----------
    folder : Path
    pattern : compiled regular expression
        Of its name; group 1 is the number of frames.
    """
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := pattern.fullmatch(path.name))] if folder.is_dir() else []
    fitting = sorted((length, path) for length, path in found if length >= nt)
    return fitting[0] if fitting else None
