"""Any video as input of a trained model, converted like the model's dataset."""

from itertools import islice
from pathlib import Path

from files import UserError

import numpy as np

from preprocessing.common import Unreadable, open_video
from preprocessing.folder.frames import FrameFormat, find_pictures, pictures, read_frames
from preprocessing.human import convert as human
from preprocessing.kth import convert as kth


def read_video(path, config, t_0, nt, crop='centre', fps=None):
    """Read converted frames t_0, t_0 + 1, …, nt at most, of a video file or a folder of pictures.

    The dataset of the model's `config` selects the conversion: kth takes 25 frames per second,
    resized by ffmpeg, and their first channel; human takes the crop of its studio and one frame in
    `subsampling`; others do as the conversion of own videos with `crop` and `fps`, grey if `nc`
    is 1.

    Returns
    -------
    uint8 (T, nx, nx, nc), T ≤ nt, and the first error that the decoder survived, or ''
    """
    path, notes, step = Path(path), [], 1
    if config.dataset == 'kth':
        frames = read_kth(path, config.nx, t_0 + nt, notes)
    elif config.dataset == 'human':
        step = config.subsampling
        frames = (human.cut(image, config.nx) for *_, image in pictures(path)) \
            if path.is_dir() else human.read(path, config.nx, notes)
    else:
        frames = read_frames(path, FrameFormat(config.nx, config.nc == 1, crop, fps), notes)
    try:
        found = list(islice(frames, t_0 * step, (t_0 + nt - 1) * step + 1, step))
    except Exception as error:  # decoders raise many kinds
        raise UserError(f'{path} cannot be read as a video of {config.dataset} ({error}); '
                        'name another video file, or a folder of pictures') from None
    found = np.array(found, np.uint8).reshape(-1, config.nx, config.nx, config.nc)
    return found, notes[0] if notes else ''


def read_kth(path, nx, n_frames, notes):
    """The first frames of a video, or all of a folder, whose pictures ffmpeg resizes too."""
    if not path.is_dir():
        with open_video(path):  # raises an error if it holds no video itself
            pass
        # If the sound begins before, ffmpeg would repeat the first frame until then
        yield from kth.read(path, nx, notes, options=('-vf', 'setpts=PTS-STARTPTS', '-frames:v',
                                                      str(n_frames)))
        return
    for picture in find_pictures(path):
        try:
            yield from kth.read(picture, nx, notes, options=('-frames:v', '1'))
        except Unreadable as error:
            raise Unreadable(f'{picture.name}: {error}') from None
