"""Clips of videos on disk: random ones for training and validation, fixed ones for testing."""

import functools
import os
import re
import sys

import numpy as np

from files import UserError

AGAIN = 'convert the videos again'


def get_fold(n, train):
    """Indices of the training (95%) or validation fold of n items, as published, in order.

    Returns
    -------
    np.ndarray of int
    """
    indices = np.arange(n)
    np.random.RandomState(42).shuffle(indices)
    split = int(0.95 * n)
    return np.sort(indices[:split] if train else indices[split:])


class Clips:
    """Source of random clips: a random start in a random video among those long enough.

    Parameters
    ----------
    videos : list of Video (see `data.video`)
    nx, nc : int
        Width and height of frames, and channels to keep.
    nt : int
        Frames of the clips that will be drawn.
    subsampling : int
        Keep one frame in this many.
    advice : str
        What to do about frames of another size.

    Raises
    ------
    UserError
        If the frames of a video have another size, or no video is long enough.
    """

    def __init__(self, videos, nx, nc, nt, subsampling=1, advice=AGAIN):
        self.nx, self.nc, self.step = nx, nc, subsampling
        check_frames(videos, nx, nc, advice)
        self.videos = note_short(videos, self.span(nt), '--seq_len, --seq_len_test')

    def span(self, nt):
        """Frames of the video that a clip of `nt` covers."""
        return (nt - 1) * self.step + 1

    def draw(self, rngs, nt):
        """Clips uint8 (nt, len(rngs), nx, nx, nc), one from each `np.random.RandomState`."""
        clips = np.empty((nt, len(rngs), self.nx, self.nx, self.nc), np.uint8)
        for b, rng in enumerate(rngs):
            video = self.videos[rng.randint(len(self.videos))]
            start = rng.randint(len(video) - self.span(nt) + 1)
            clips[:, b] = video.clip(start, nt, self.step)[..., :self.nc]
        return clips


def fold_clips(videos, config, advice, subsampling=1):
    """Sources of training and validation clips, from the two folds of training videos."""
    if len(videos) < 2:
        raise UserError(f'{videos[0].path} is the only training video; at least 2 are needed, for '
                        'training and validation')
    return [Clips([videos[i] for i in get_fold(len(videos), train)], config.nx, config.nc, nt,
                  subsampling, advice)
            for train, nt in ((True, config.seq_len), (False, config.seq_len_test))]


def check_frames(videos, nx, nc, advice=AGAIN):
    """Raise a UserError unless all videos have frames of nx x nx with nc channels or more."""
    for video in videos:
        H, W, C = (*video.frame_shape, 1)[:3]
        if (H, W) != (nx, nx) or C < nc:
            raise UserError(f'{video.path} has frames {"x".join(map(str, video.frame_shape))}, but '
                            f'{nx}x{nx} with --nc {nc} is needed; {advice}, or use the right --nx '
                            'and --nc')


def convert_again(command):
    """What to do about videos of another size than `command` converts to."""
    return f'remove these and convert again with: {command}'


def describe_short(videos, span):
    """Description of the videos with fewer than `span` frames; empty if there are none."""
    short = [f'{video.path} ({len(video)})' for video in videos if len(video) < span]
    if not short:
        return ''
    examples = ', '.join(short[:3]) + (' …' if len(short) > 3 else '')
    return (f'{len(short):,} of {len(videos):,} videos have fewer than the {span} frames of a clip:'
            f' {examples}')


def note_short(videos, span, options):
    """The videos of at least `span` frames; the others are named in a note.

    Without any, this is a UserError, which names the `options` of the length.
    """
    short = describe_short(videos, span)
    found = [video for video in videos if len(video) >= span]
    if not found:
        raise UserError(f'{short}; use shorter clips ({options}), or add longer videos')
    if short and os.environ.get('RANK', '0') == '0':  # once per job
        print(f'note: {short}; no clips are drawn from these', file=sys.stderr)
    return found


def check_videos(videos, nx, nc, span, advice=AGAIN):
    """As `check_frames`, and that all videos have at least `span` frames."""
    check_frames(videos, nx, nc, advice)
    if short := describe_short(videos, span):
        raise UserError(f'{short}; remove them, or use shorter clips (--nt_gen; --seq_len of '
                        'make_test_set.py)')


class FirstFrames:
    """Test set of the first `nt` frames of videos, one in `subsampling`, from `path`.

    With `starts`, their first frames, it holds later clips; videos may then repeat.
    """

    def __init__(self, videos, nx, nc, nt, path, subsampling=1, advice=AGAIN, starts=None):
        check_videos(videos, nx, nc, (nt - 1) * subsampling + 1, advice)
        self.starts = starts or [0] * len(videos)
        self.clips, self.nc, self.nt, self.path, self.step = videos, nc, nt, path, subsampling

    def __len__(self):
        return len(self.clips)

    def name(self, i):
        """Path of a video below `path`, without its extension."""
        root = self.path if self.path.is_dir() else self.path.parent
        name = self.clips[i].path.relative_to(root).as_posix()
        name = name.removesuffix('.npy').removesuffix('.npz')
        return f'{name} from {self.starts[i]}' if self.starts[i] else name

    def videos(self, indices):
        """uint8 (nt, len(indices), H, W, nc)"""
        return np.stack([self.clips[i].clip(self.starts[i], self.nt, self.step)[..., :self.nc]
                         for i in indices], 1)


class Sequences:
    """Test set of n videos in one file, `path`, read when it is first needed.

    Parameters
    ----------
    path : Path
    n : int
    read : function
        Returns the videos, uint8 (T, n, H, W).
    """

    def __init__(self, path, n, read):
        self.path, self.n, self.read = path, n, functools.cache(read)

    def __len__(self):
        return self.n

    def name(self, i):
        return f'video {i}'

    def videos(self, indices):
        """uint8 (T, len(indices), H, W, 1)"""
        return self.read()[:, indices, :, :, None]


def shortest_set(folder, name, nt, command):
    """Shortest test set of at least `nt` frames: path and number of frames.

    A longer one holds other clips. In its `name`, <frames> stands for the number of frames;
    `command` makes one.
    """
    pattern = re.compile(re.escape(name).replace('<frames>', r'(\d+)'))
    found = [(int(m[1]), path) for path in folder.glob('*') if (m := pattern.fullmatch(path.name))]
    long_enough = [(length, path) for length, path in found if length >= nt]
    if not long_enough:
        raise UserError(f'--data_dir {folder}: there is no {name} of at least {nt} frames; make '
                        f'it with: {command}')
    length, path = min(long_enough)
    return path, length
