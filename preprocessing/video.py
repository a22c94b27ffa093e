"""Any video as input of a trained model, converted like the model's dataset."""

from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from files import UserError

import numpy as np

from data import DATASETS
from preprocessing.folder.frames import FrameFormat, read_frames


def read_video(path, config, t_0, nt, crop='centre', fps=None):
    """Read converted frames t_0, t_0 + 1, …, nt at most, of a video file or a folder of pictures.

    If `preprocessing/<dataset>/convert.py` of the model's dataset has a function `read_any(path,
    size, n_frames, notes)`, it yields the frames; otherwise, they are converted like own videos,
    with `crop` and `fps`, grey if `nc` is 1. Of Human3.6M, one in `subsampling` is taken. Returns
    uint8 (T, nx, nx, nc), T ≤ nt, and the first error that the decoder survived, or ''.
    """
    path, notes, step = Path(path), [], DATASETS[config.dataset].step(config)
    name, stop = f'preprocessing.{config.dataset}', (t_0 + nt - 1) * step + 1
    converter = import_module(f'{name}.convert') if find_spec(name) else None
    if hasattr(converter, 'read_any'):
        frames = converter.read_any(path, config.nx, stop, notes)
    else:
        frames = read_frames(path, FrameFormat(config.nx, config.nc == 1, crop, fps), notes)
    try:
        found = list(islice(frames, t_0 * step, stop, step))
    except Exception as error:  # decoders raise many kinds
        raise UserError(f'{path} cannot be read as a video of {config.dataset} ({error}); '
                        'name another video file, or a folder of pictures') from None
    found = np.array(found, np.uint8).reshape(-1, config.nx, config.nx, config.nc)
    return found, notes[0] if notes else ''
