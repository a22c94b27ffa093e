"""Convert videos of your own, for `--dataset folder`.

`python preprocessing/folder/convert.py --data_dir IN --out_dir OUT`
"""

import functools
import hashlib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from files import UserError, cores, make_folder, run_script, write_json
from parsing import Parser, number, seed
from preprocessing.convert import (
    Job,
    Unreadable,
    add_check_option,
    add_size_option,
    check_converted,
    converting,
    decode,
    read_record,
    resized,
    run_locked,
    write_array,
)

VIDEOS = {'.avi', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ogv', '.webm', '.wmv'}
IMAGES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}
FOLDS = ('train', 'val', 'test')


# Sources

def find_sources(folder):
    """Names and paths of all videos below a folder, in order of paths.

    These are video files, and folders of at least two images without video files.
    """
    paths, visited = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # links may form a cycle
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith('.')]
        visible = [Path(parent, name) for name in names if not name.startswith('.')]
        videos = [path for path in visible if path.suffix.lower() in VIDEOS]
        n_images = sum(path.suffix.lower() in IMAGES for path in visible)
        if not videos and n_images > 1 and Path(parent) != folder:
            videos = [Path(parent)]
        paths += videos
    sources = {}
    for path in sorted(paths):
        other = sources.setdefault(get_name(path, folder), path)
        if other != path:
            raise UserError(f'{path} and {other} would both be called {get_name(path, folder)}; '
                            'rename one')
    return sources


def get_name(path, folder):
    """Name of a converted video: the source's path below the folder, including its extension."""
    name = '-'.join(path.relative_to(folder).parts)
    encoded = os.fsencode(name)
    if len(encoded) > 200:  # file systems allow 255 bytes
        digest = hashlib.sha256(encoded).hexdigest()
        name = f'{encoded[:160].decode(errors="ignore")}-{digest[:16]}'
    return name


# Decoding

def find_images(folder):
    """Paths of the images in a folder, ordered by the last number in their names, then by name."""
    def order(path):
        return int((re.findall(r'\d+', path.stem) or [-1])[-1]), path.name
    paths = [path for path in folder.glob('[!.]*') if path.suffix.lower() in IMAGES]
    if not paths:
        raise Unreadable(f'a folder without images ({", ".join(sorted(IMAGES))})')
    return sorted(paths, key=order)


def decode_images(paths, transform):
    """As `decode`, for the frames in image files."""
    frames = []
    for path in paths:
        try:
            with Image.open(path) as image:
                frames.append(transform(to_rgb(image)))
        except Exception as error:  # Pillow raises many kinds
            raise Unreadable(f'{path.name}: {error}') from None
    return np.stack(frames), ''


def to_rgb(image):
    """RGB values of an image of any mode; the upper 8 bits of 16."""
    if image.mode == 'F':
        raise Unreadable('floating-point images have no defined range')
    if image.mode.startswith('I'):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return np.asarray(image.convert('RGB'))


def cut(frame, image_size, gray):
    """Crop a frame to its central square and resize it: uint8 (image_size, image_size[, 3])."""
    H, W, _ = frame.shape
    side = min(H, W)
    left, upper = (W - side) // 2, (H - side) // 2
    frame = resized(frame, image_size, (left, upper, left + side, upper + side))
    return np.asarray(Image.fromarray(frame).convert('L')) if gray else frame


def read(source, image_size, gray):
    """Frames of a video file or a folder of images: uint8 (T, image_size, image_size[, 3])."""
    transform = functools.partial(cut, image_size=image_size, gray=gray)
    if source.is_dir():
        return decode_images(find_images(source), transform)
    return decode(source, transform=transform)


# Split

def read_split(path):
    """Folds by name, as assigned by an earlier call."""
    advice = f'restore it, or remove it and the folders {", ".join(FOLDS)} next to it to split anew'
    before = read_record(path, advice)
    for name, fold in before.items():
        if fold not in FOLDS:
            raise UserError(f'{path} assigns {name} to {fold!r}, expected one of '
                            f'{", ".join(FOLDS)}; {advice}')
    return before


def split(names, val, test, seed, before):
    """Assign each name to 'train', 'val' or 'test' with a seeded shuffle: dict.

    Names in `before`, the result of an earlier call, keep their fold. The others fill the test and
    validation folds up to their shares, of one video at least; the rest is for training.
    """
    folds = {name: before[name] for name in names if name in before}
    missing = []
    for fold, share in (('test', test), ('val', val)):
        n = max(1, round(share * len(names))) - list(folds.values()).count(fold)
        missing += [fold] * max(0, n)
    new = [name for name in names if name not in folds]
    for k, i in enumerate(np.random.RandomState(seed).permutation(len(new))):
        folds[new[i]] = missing[k] if k < len(missing) else 'train'
    return folds


# Script

def get_parser():
    parser = Parser('Convert video files and folders of frames for --dataset folder: OUT/train, '
                    'OUT/val and OUT/test, split by video at random.')
    parser.add_argument('--data_dir', required=True, help='folder of your videos')
    parser.add_argument('--out_dir', required=True,
                        help='output folder, the --data_dir of train.py and test.py')
    add_size_option(parser)
    parser.add_argument('--gray', action='store_true', help='one channel instead of three')
    share = number(float, 0, 1)
    parser.add_argument('--val', type=share, default=0.05,
                        help='fraction of videos for validation; at least one video')
    parser.add_argument('--test', type=share, default=0.1,
                        help='fraction of videos for testing; at least one video')
    parser.add_argument('--seed', type=seed, default=42, help='seed of the split')
    add_check_option(parser)
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = Path(args.data_dir)
    if args.check:
        return check_converted(Path(args.out_dir))
    if not folder.is_dir():
        raise UserError(f'--data_dir {folder} is not a folder; use the one with your videos')
    sources = find_sources(folder)
    if len(sources) < 3:
        raise UserError(f'--data_dir {folder} has {len(sources)} videos (files '
                        f'{", ".join(sorted(VIDEOS))}, or folders of images); at least 3 are '
                        'needed, for training, validation and testing')
    out = make_folder(args.out_dir, '--out_dir')
    # The lock covers the split too
    options = {'image_size': args.image_size, 'gray': args.gray}
    with converting(out, options):
        before = read_split(out / 'split.json')
        folds = split(list(sources), args.val, args.test, args.seed, before)
        if 'train' not in folds.values():
            raise UserError(f'--val {args.val} and --test {args.test} leave none of '
                            f'{len(sources)} videos for training; use smaller fractions')
        write_json(out / 'split.json', before | folds)  # of removed videos too: they may return
        reader = functools.partial(read, image_size=args.image_size, gray=args.gray)
        jobs = [Job(source, out / folds[name] / f'{name}.npy', reader, write_array)
                for name, source in sources.items()]
        code = run_locked(jobs, ThreadPoolExecutor(cores()), out, options)
    for fold in FOLDS:
        if not any((out / fold).glob('*.npy')):
            raise UserError(f'{out}/{fold} has no videos; repair unreadable ones or add more, and '
                            'run again')
    return code


if __name__ == '__main__':
    run_script(main)
