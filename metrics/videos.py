"""Files of videos to score."""

from pathlib import Path

import numpy as np

from files import UserError, read_npz, reading


def read_videos(path):
    """Videos of a file: uint8 (N, T, H, W, C), C 1 or 3. Those of a `.npy` file stay on disk."""
    path = Path(path)
    if not path.exists():
        raise UserError(f'{path} does not exist')
    with reading(path, 'is not a .npy or .npz file of an array, as its name says',
                 'use another one'):
        videos = read_array(path)
    if videos.dtype != np.uint8 or not (
            videos.ndim == 4 or (videos.ndim == 5 and videos.shape[-1] in (1, 3))):
        raise UserError(f'{path} holds {videos.dtype} of shape {videos.shape}; expected uint8 '
                        '(N, T, H, W) or (N, T, H, W, C), C 1 or 3')
    return videos if videos.ndim == 5 else videos[..., None]


def read_array(path):
    """Array of a `.npy` file, as a memory map, or of an `.npz` file."""
    if path.suffix == '.npy':
        videos = np.load(path, mmap_mode='r', allow_pickle=False)
        if not isinstance(videos, np.ndarray):
            raise ValueError('it is an archive')
        return videos
    arrays = read_npz(path)
    if 'samples' not in arrays and len(arrays) != 1:
        raise UserError(f'{path} holds {", ".join(arrays)}; '
                        'expected one array, or one named samples')
    return arrays.get('samples', next(iter(arrays.values())))
