"""Files of videos that are scored."""

from pathlib import Path

import numpy as np

from files import UserError, reading


def read_videos(path):
    """Videos of a file, uint8 (N, T, H, W, C); those of .npy files stay on disk."""
    path = Path(path)
    if not path.exists():
        raise UserError(f'{path} does not exist')
    with reading(path, 'is not a .npy or .npz file of an array, as its name says', 'take another one'):
        if path.suffix == '.npy':
            videos = np.load(path, mmap_mode='r', allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as f:
                name = 'samples' if 'samples' in f.files else f.files[0]
                if name != 'samples' and len(f.files) > 1:
                    raise UserError(f'{path} holds {", ".join(f.files)}; expected one array, or one named samples')
                videos = f[name]
        videos.dtype, videos.shape  # an archive under the name of an array has neither
    if videos.dtype != np.uint8 or videos.ndim not in (4, 5) or (videos.ndim == 5 and videos.shape[-1] not in (1, 3)):
        raise UserError(f'{path} holds {videos.dtype} of shape {videos.shape}; expected uint8 (N, T, H, W) or (N, T, H, W, C), C 1 or 3')
    return videos if videos.ndim == 5 else videos[..., None]
