"""Any video as a trained model takes it: cut and resized as in the conversion of the model's dataset."""

import functools
from pathlib import Path

import numpy as np

from files import UserError
from preprocessing.convert import Unreadable, decode
from preprocessing.folder import convert as folder
from preprocessing.human import convert as human
from preprocessing.kth import convert as kth


def _decode_picture(path, *options):
    try:
        return decode(path, *options)[0]
    except Unreadable as error:
        raise Unreadable(f'{path.name}: {error}') from None


def _read(source, config, nt):
    """Frames, as many as there are of the first nt, uint8 (T, nx, nx[, C]), and ffmpeg's complaint."""
    pictures = folder.find_pictures(source) if source.is_dir() else None
    if pictures == []:
        raise Unreadable(f'a folder without pictures ({", ".join(sorted(folder.PICTURES))})')
    if config.dataset == 'kth':
        if pictures is None:
            return kth.read(source, config.nx, kth.FRAME_RATE, '-frames:v', str(nt))
        options = '-s', f'{config.nx}x{config.nx}', '-frames:v', '1'  # pictures too are resized by ffmpeg's scaler; of moving ones the first frame
        return np.concatenate([_decode_picture(path, *options) for path in pictures[:nt]]), ''
    if config.dataset == 'human':
        transform, step = functools.partial(human.cut, image_size=config.nx), config.subsampling
    else:  # Moving MNIST and BAIR are not converted from videos of another shape
        transform, step = functools.partial(folder.cut, image_size=config.nx, gray=config.nc == 1), 1
    span = (nt - 1) * step + 1
    frames, note = decode(source, '-frames:v', str(span), transform=transform) if pictures is None else \
        folder.decode_pictures(pictures[:span], transform)
    return frames[::step], note


def read_video(path, config, t_0, nt):
    """Frames t_0, t_0 + 1, …, at most nt, of a video: uint8 (T, nx, nx, nc), T ≤ nt.

    Parameters
    ----------
    path : path
        File of any kind that ffmpeg reads, or folder of pictures.
    config : argparse.Namespace
        Of the model. Its dataset decides: kth takes 25 frames a second, resized by ffmpeg, and their first channel; human the
        box of its studio and one frame in `subsampling`; the others the centred square, grey if `nc` is 1.
    t_0, nt : int
        Counted in frames of the result.

    Returns
    -------
    frames : np.ndarray
    note : str
        What ffmpeg complained about, though it went on; empty if nothing.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f'--video {path} does not exist; name a video file, or a folder of pictures')
    try:
        frames, note = _read(path, config, t_0 + nt)
    except (Unreadable, OSError) as error:
        raise UserError(f'--video {path} cannot be read as a video of {config.dataset} ({error}); name another one') from None
    frames = frames[t_0:, ..., None] if frames.ndim == 3 else frames[t_0:, ..., :config.nc]
    return frames, note
