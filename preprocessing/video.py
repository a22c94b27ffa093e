"""Any video as input of a trained model, converted like the model's dataset."""

import functools
from pathlib import Path

import numpy as np

from files import UserError
from preprocessing.convert import Unreadable, decode
from preprocessing.folder import convert as folder
from preprocessing.human import convert as human
from preprocessing.kth import convert as kth


def read_video(path, config, t_0, nt):
    """Read frames t_0, t_0 + 1, …, nt at most, of a video: uint8 (T, nx, nx, nc), T ≤ nt.

    Parameters
    ----------
    path : path
        Any file that ffmpeg reads, or a folder of images.
    config : argparse.Namespace
        Of the model. Its dataset selects the conversion: kth takes 25 frames per second, resized
        by ffmpeg, and their first channel; human takes the crop of its studio and one frame in
        `subsampling`; others take the central square, grey if `nc` is 1.
    t_0, nt : int
        Counted in converted frames.

    Returns
    -------
    frames : np.ndarray
    note : str
        First error that ffmpeg reported but survived, or empty.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f'--video {path} does not exist; name a video file, or a folder of images')
    read = read_kth if config.dataset == 'kth' else read_frames
    try:
        frames, note = read(path, config, t_0 + nt)
    except (Unreadable, OSError) as error:
        raise UserError(f'--video {path} cannot be read as a video of {config.dataset} ({error}); '
                        'name another one') from None
    if frames.ndim == 3:
        frames = frames[..., None]
    return frames[t_0:, ..., :config.nc], note


def read_kth(path, config, nt):
    """First nt frames converted like KTH, and a note."""
    if not path.is_dir():
        return kth.read(path, config.nx, kth.FRAME_RATE, '-frames:v', str(nt))
    frames = []
    for image in folder.find_images(path)[:nt]:
        try:  # ffmpeg resizes images too; of animated ones, it takes the first frame
            size = f'{config.nx}x{config.nx}'
            frames.append(decode(image, '-s', size, '-frames:v', '1')[0])
        except Unreadable as error:
            raise Unreadable(f'{image.name}: {error}') from None
    return np.concatenate(frames), ''


def read_frames(path, config, nt):
    """First nt frames converted like Human3.6M or a folder of videos, and a note."""
    step = 1
    transform = functools.partial(folder.cut, image_size=config.nx, gray=config.nc == 1)
    if config.dataset == 'human':
        step = config.subsampling
        transform = functools.partial(human.cut, image_size=config.nx)
    span = (nt - 1) * step + 1
    if path.is_dir():
        frames, note = folder.decode_images(folder.find_images(path)[:span], transform)
    else:
        frames, note = decode(path, '-frames:v', str(span), transform=transform)
    return frames[::step], note
