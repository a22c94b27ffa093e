"""Any video as input of a trained model, converted like the model's dataset."""

from pathlib import Path

import cv2
import numpy as np

from files import UserError
from preprocessing.decoding import Unreadable, decode
from preprocessing.folder.convert import recorded_format
from preprocessing.folder.frames import Pictures, find_images, open_frames, read_image
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
        `subsampling`; folder does as recorded in its `data_dir`; others take the central square,
        grey if `nc` is 1.
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
    read = {'kth': read_kth, 'human': read_human}.get(config.dataset, read_folder)
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
    for image in find_images(path)[:nt]:
        try:  # ffmpeg resizes images too; of animated ones, it takes the first frame
            size = config.nx, config.nx, 3
            frames.append(decode(image, size, '-s', '{}x{}'.format(*size), '-frames:v', '1')[0])
        except Unreadable as error:
            raise Unreadable(f'{image.name}: {error}') from None
    return np.concatenate(frames), ''


def read_human(path, config, nt):
    """First nt frames converted like Human3.6M, one in `subsampling`, and a note."""
    span = (nt - 1) * config.subsampling + 1
    if path.is_dir():
        frames, note = [human.cut(cv2.cvtColor(read_image(image), cv2.COLOR_BGR2RGB), config.nx)
                        for image in find_images(path)[:span]], ''
    else:
        frames, note = human.read(path, config.nx, '-frames:v', str(span))
    return np.asarray(frames)[::config.subsampling], note


def read_folder(path, config, nt):
    """First nt frames converted like a folder of videos, and a note."""
    data_dir = config.data_dir if config.dataset == 'folder' else None
    form = recorded_format(data_dir, config.nx, config.nc == 1)
    if path.is_dir():
        blocks = Pictures(find_images(path)[:nt], form)
    else:
        blocks = open_frames(path, form, '-frames:v', str(nt))
    return np.concatenate(list(blocks)), blocks.note
