"""Datasets: the registry, and clips of converted videos. Frames are uint8."""

import difflib
from pathlib import Path

from files import UserError, count

from data import bair, folder, human, kth, mmnist
from data.clips import FirstFrames
from data.video import find_video, video_names

DATASETS = {'smmnist': mmnist.DATASET, 'kth': kth.DATASET, 'human': human.DATASET,
            'bair': bair.DATASET, 'folder': folder.DATASET}


def find_size(dataset, data_dir):
    """Width and height of the converted videos of a dataset; 64 without any, or a `data_dir`."""
    entry = DATASETS[dataset]
    if not data_dir or entry.videos is None or len(entry.sizes) == 1:
        return 64
    if '{nx}' in entry.videos:
        found = [nx for nx in entry.sizes if Path(data_dir, entry.videos.format(nx=nx)).exists()]
    else:
        folder = Path(data_dir, entry.videos, 'train')
        found = [find_video(folder, name).frame_shape[0] for name in video_names(folder)[:1]]
    if len(found) > 1:
        names = ' and '.join(entry.videos.format(nx=nx) for nx in found)
        raise UserError(f'--data_dir {data_dir} has {names}; choose a size with --nx')
    return next((nx for nx in found if nx in entry.sizes), 64)


def load_train(config):
    """Training and validation sources of a dataset, for `data.stream.BatchStream`."""
    return DATASETS[config.dataset].load_folds(config)


def load_test(config, data_dir, nt):
    """Test set of a dataset, cut to `nt` frames (see `data.clips.Dataset`)."""
    return DATASETS[config.dataset].load_test(config, data_dir, nt)


def load_videos(config, data_dir, index, nt):
    """Videos `index` of the test set, uint8 (nt, len(index), H, W, C), and their names."""
    testset = load_test(config, data_dir, nt)
    if max(index) >= len(testset):
        raise UserError(f'--index {max(index)}: the test set has '
                        f'{count(len(testset), "video")}, numbered from 0')
    return testset.videos(index), [testset.name(i) for i in index]


def load_clip(config, data_dir, name, t_0, nt):
    """Clip of a converted video of any fold, from frame t_0 on: uint8 (nt, H, W, C).

    Its name is a path below the folder of converted videos, as running/person01_running_d4 of KTH.
    From Human3.6M, every `subsampling`-th frame is taken.
    """
    entry = DATASETS[config.dataset]
    if entry.videos is None:
        raise UserError(f'--video {name}: videos of {config.dataset} are not files; use --index')
    root = Path(data_dir) / entry.videos.format(nx=config.nx)
    path = root / name.removesuffix('.npy').removesuffix('.npz')
    video = find_video(path.parent, path.name)
    if video is None:
        near = difflib.get_close_matches(path.name, video_names(path.parent), 1, 0)
        example = f', such as {Path(name).with_name(near[0])}' if near else ''
        raise UserError(f'{path} does not exist as .npy, .npz or folder of frames; '
                        f'give the path of a converted video below {root}{example}')
    return FirstFrames([video], config, nt, root, entry.step(config), [t_0]).videos([0])[:, 0]
