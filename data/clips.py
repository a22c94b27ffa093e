"""Registry entries of datasets; random clips of videos on disk, and test sets of fixed ones."""

import os
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

from files import UserError

import numpy as np

SIZES = (32, 64, 128, 256)  # widths and heights of frames that models can have


class Dataset(NamedTuple):
    """All that the program knows about a dataset.

    Attributes
    ----------
    channels : tuple of int
        Possible numbers of channels.
    load_folds : function
        (config) -> sources of training and of validation videos: objects with `draw(rngs, nt)` ->
        uint8 (nt, len(rngs), H, W, C), one video drawn with each `np.random.RandomState`.
    load_test : function
        (config, data_dir, nt) -> test set: an object with a length, `videos(indices)` -> uint8
        (nt, len(indices), H, W, C), `name(i)` of a video, and `path`, its file or folder.
    options : dict
        Options of `train.py` for this dataset only: arguments of `add_argument` by name. They are
        part of the protocol of an evaluation.
    test_options : tuple of str
        Those that `test.py` and other scripts have as well: they name another test set.
    sizes : tuple of int
        Possible widths and heights of frames.
    videos : str
        Folder of converted videos in --data_dir, where {nx} stands for their size; None if videos
        are generated on the fly.
    """
    channels: tuple
    load_folds: Callable
    load_test: Callable
    options: dict = {}
    test_options: tuple = ()
    sizes: tuple = SIZES
    videos: str | None = None

    def step(self, config):
        """Of how many frames of a video one is used."""
        return config.subsampling if 'subsampling' in self.options else 1


def get_fold(n, train):
    """Indices of the training (95%) or validation fold of n items, as published, in order."""
    indices = np.arange(n)
    np.random.RandomState(42).shuffle(indices)
    split = int(0.95 * n)
    return np.sort(indices[:split] if train else indices[split:])


class Clips:
    """Source of random clips: a random start in a random video among those long enough.

    Of the videos (list of `data.video.Video`), one frame in `subsampling` is kept; the clips that
    will be drawn have `nt` frames.
    """

    def __init__(self, videos, config, nt, subsampling=1):
        self.nx, self.nc, self.step = config.nx, config.nc, subsampling
        check_frames(videos, config)
        self.videos = long_enough(videos, (nt - 1) * subsampling + 1, '--seq_len, --seq_len_test')

    def draw(self, rngs, nt):
        """Clips uint8 (nt, len(rngs), nx, nx, nc), one from each `np.random.RandomState`."""
        clips = np.empty((nt, len(rngs), self.nx, self.nx, self.nc), np.uint8)
        for b, rng in enumerate(rngs):
            video = self.videos[rng.randint(len(self.videos))]
            start = rng.randint(len(video) - (nt - 1) * self.step)
            clips[:, b] = video.clip(start, nt, self.step)[..., :self.nc]
        return clips


def fold_clips(videos, config, subsampling=1):
    """Sources of training and validation clips, from the two folds of training videos."""
    if len(videos) < 2:
        raise UserError(f'{videos[0].path} is the only training video; at least 2 are needed, for '
                        'training and validation')
    return [Clips([videos[i] for i in get_fold(len(videos), train)], config, nt, subsampling)
            for train, nt in ((True, config.seq_len), (False, config.seq_len_test))]


def check_frames(videos, c):
    """Raise a UserError unless the frames of all videos have the size and channels of `c`."""
    for video in videos:
        H, W, C = (*video.frame_shape, 1)[:3]
        if (H, W) != (c.nx, c.nx) or C < c.nc:
            raise UserError(f'{video.path} has frames {"x".join(map(str, video.frame_shape))}, but '
                            f'{c.nx}x{c.nx} with --nc {c.nc} is needed; use the right --nx and '
                            f'--nc, or {remake(c.dataset)}')


def remake(dataset):
    """What to do about wrong or missing videos."""
    return f'make them with preprocessing/{dataset}/convert.py, see docs/data.md'


def found(videos, data_dir, example, dataset):
    """The videos, which a loader found as `example` says; a UserError if there are none."""
    if not videos:
        raise UserError(f'--data_dir {data_dir}: no videos as {example} were found; '
                        f'{remake(dataset)}')
    return videos


def long_enough(videos, span, options):
    """The videos of at least `span` frames; the others are named in a note."""
    short = [f'{video.path} ({len(video)})' for video in videos if len(video) < span]
    if short:
        text = (f'{len(short):,} of {len(videos):,} videos have fewer than the {span} frames of a '
                f'clip: {", ".join(short[:3])}{" …" * (len(short) > 3)}')
        if len(short) == len(videos):
            raise UserError(f'{text}; use shorter clips ({options}), or add longer videos')
        if os.environ.get('RANK', '0') == '0':  # once per job
            print(f'note: {text}; they are left out', file=sys.stderr)
    return [video for video in videos if len(video) >= span]


class FirstFrames:
    """Test set of clips of `nt` frames, one for each of the videos, which may repeat.

    The file or folder `path` defines it. One frame in `subsampling` is kept; `starts` are the first
    frames of the clips, 0 by default.
    """

    def __init__(self, videos, config, nt, path, subsampling=1, starts=None):
        check_frames(videos, config)
        span = (nt - 1) * subsampling + 1
        starts = starts or [0] * len(videos)
        for video, start in zip(videos, starts):
            if start + span > len(video):
                raise UserError(f'{video.path} has {len(video)} frames, but the clip covers {span} '
                                f'from frame {start} on; use a smaller --nt_gen or --t_0')
        self.clips, self.starts, self.step = videos, starts, subsampling
        self.nc, self.nt, self.path = config.nc, nt, path

    def __len__(self):
        return len(self.clips)

    def name(self, i):
        """Path of a video below `path`, without its extension; its number in an array of all."""
        if self.clips[i].path == self.path:
            return f'video {i}'
        root = self.path if self.path.is_dir() else self.path.parent
        name = self.clips[i].path.relative_to(root).with_suffix('').as_posix()
        return f'{name} from {self.starts[i]}' if self.starts[i] else name

    def videos(self, indices):
        """uint8 (nt, len(indices), H, W, nc)"""
        return np.stack([self.clips[i].clip(self.starts[i], self.nt, self.step)[..., :self.nc]
                         for i in indices], 1)


class Sequences:
    """Test set: `nt` frames of videos in one array, uint8 (T, N, nx, nx), of the file `path`."""

    def __init__(self, path, sequences, nt, nx):
        shape, dtype = sequences.shape, sequences.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[0] < nt or shape[2:] != (nx, nx):
            raise ValueError(f'sequences must be uint8, {nt} frames or more of {nx} x {nx}, found '
                             f'{dtype}, (frames, videos, height, width) = {shape}')
        self.path, self.sequences = path, sequences[:nt]

    def __len__(self):
        return self.sequences.shape[1]

    def name(self, i):
        return f'video {i}'

    def videos(self, indices):
        """uint8 (T, len(indices), H, W, 1)"""
        return self.sequences[:, indices, :, :, None]


def shortest_set(folder, name, nt, command):
    """Path of the shortest test set of at least `nt` frames; a longer one holds other clips.

    In its `name`, <frames> stands for the number of frames; `command` makes one.
    """
    pattern = re.compile(re.escape(name).replace('<frames>', r'(\d+)'))
    found = [(int(m[1]), path) for path in folder.glob('*')
             if (m := pattern.fullmatch(path.name)) and int(m[1]) >= nt]
    if not found:
        raise UserError(f'--data_dir {folder}: there is no {name} of at least {nt} frames; make '
                        f'it with: {command}')
    return min(found)[1]
