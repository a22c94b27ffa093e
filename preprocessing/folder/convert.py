"""Convert videos of your own: `python preprocessing/folder/convert.py --data_dir IN --out_dir OUT`; then `--dataset folder`."""

import functools
import hashlib
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from parsing import Parser, number, positive_int, seed
from files import UserError, cores, make_folder, run_script, write_json
from preprocessing.convert import Job, Unreadable, converting, decode, read_record, resized, run_locked, write_array

VIDEOS = {'.avi', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ogv', '.webm', '.wmv'}
FOLDS = ('train', 'val', 'test')
PICTURES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}


def find_sources(folder):
    """Video files, and folders of two pictures or more without videos, anywhere below a folder: sorted list of Path."""
    sources, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [name for name in folders if not name.startswith('.')] if real not in seen else []  # links may form a circle
        if real in seen:
            continue
        seen.add(real)
        kinds = {name: Path(name).suffix.lower() for name in names if not name.startswith('.')}
        videos = [Path(parent, name) for name, kind in kinds.items() if kind in VIDEOS]
        pictures = sum(kind in PICTURES for kind in kinds.values())
        sources += videos or ([Path(parent)] if pictures > 1 and Path(parent) != folder else [])
    return sorted(sources)


def get_name(path, folder):
    """Name of a source in the result: its path below the folder, extension included, so that no two fall together."""
    name = '-'.join(path.relative_to(folder).parts)
    if len(os.fsencode(name)) > 200:  # file systems allow 255 bytes
        name = f'{os.fsencode(name)[:160].decode(errors="ignore")}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}'
    return name


def to_rgb(picture):
    """RGB of a picture of any mode; of 16 bits, the upper 8."""
    if picture.mode == 'F':
        raise Unreadable('pictures of floating-point numbers have no range')
    if picture.mode.startswith('I'):
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8))
    return np.asarray(picture.convert('RGB'))


def find_pictures(folder):
    """Pictures in a folder, in the order of the last number in their names, then of the names: list of Path."""
    def order(path):
        numbers = re.findall(r'\d+', path.stem)
        return int(numbers[-1]) if numbers else -1, path.name
    return sorted((p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith('.')), key=order)


def decode_pictures(paths, transform):
    """As `decode`, of pictures."""
    frames = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                frames.append(transform(to_rgb(picture)))
        except Exception as error:  # Pillow raises several kinds
            raise Unreadable(f'{path.name}: {error}') from None
    return np.stack(frames), ''


def cut(frame, image_size, gray):
    """A frame, cut to its largest centred square and resized: uint8 (image_size, image_size[, 3])."""
    H, W = frame.shape[:2]
    side = min(H, W)
    left, upper = (W - side) // 2, (H - side) // 2
    frame = resized(frame, image_size, (left, upper, left + side, upper + side))
    return np.asarray(Image.fromarray(frame).convert('L')) if gray else frame


def read(source, image_size, gray):
    """Frames of a video file or of a folder of pictures, cut and resized: uint8 (T, image_size, image_size[, 3])."""
    transform = functools.partial(cut, image_size=image_size, gray=gray)
    return decode_pictures(find_pictures(source), transform) if source.is_dir() else decode(source, transform=transform)


def read_split(path):
    """Folds by name that an earlier call assigned."""
    advice = f'restore it, or remove it and the folders {", ".join(FOLDS)} beside it to split anew'
    before = read_record(path, advice)
    for name, fold in before.items():
        if fold not in FOLDS:
            raise UserError(f'{path} assigns {name} to {fold!r}, expected one of {", ".join(FOLDS)}; {advice}')
    return before


def split(names, val, test, seed, before):
    """Assign each name, by a seeded shuffle, to 'train', 'val' or 'test': dict. Each fold has at least one.

    Names in `before`, the result of an earlier call, keep their fold; the others fill up.
    """
    folds = {name: before[name] for name in names if name in before}
    missing = []
    for fold, share in (('test', test), ('val', val)):
        missing += [fold] * max(0, max(1, round(share * len(names))) - list(folds.values()).count(fold))
    new = [name for name in names if name not in folds]
    order = np.random.RandomState(seed).permutation(len(new))
    return folds | {new[i]: missing[k] if k < len(missing) else 'train' for k, i in enumerate(order)}


def get_parser():
    parser = Parser('Convert a folder of video files and of folders of frames for --dataset folder: OUT/train, OUT/val and '
                    'OUT/test, split at random by video.')
    parser.add_argument('--data_dir', required=True, help='folder of your videos')
    parser.add_argument('--out_dir', required=True, help='folder of the result, for --data_dir of train.py and test.py')
    parser.add_argument('--image_size', type=positive_int, default=64, help='width and height of frames (the model takes 64)')
    parser.add_argument('--gray', action='store_true', help='one channel instead of three')
    parser.add_argument('--val', type=number(float, 0, 1), default=0.05, help='share of the videos for validation; at least one')
    parser.add_argument('--test', type=number(float, 0, 1), default=0.1, help='share of the videos for the test; at least one')
    parser.add_argument('--seed', type=seed, default=42, help='of the split')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = Path(args.data_dir)
    if not folder.is_dir():
        raise UserError(f'--data_dir {folder} is not a folder; name the one with your videos')
    sources = {}
    for path in find_sources(folder):
        name = get_name(path, folder)
        if name in sources:
            raise UserError(f'{path} and {sources[name]} would both be called {name}; rename one')
        sources[name] = path
    if len(sources) < 3:
        raise UserError(f'--data_dir {folder} holds {len(sources)} videos (files {", ".join(sorted(VIDEOS))}, or folders of pictures); '
                        'at least 3 are needed, for training, validation and test')
    out = Path(args.out_dir)
    make_folder(out, '--out_dir')
    with converting(out, {'image_size': args.image_size, 'gray': args.gray}):  # the split too belongs to one call at a time
        before = read_split(out / 'split.json')
        folds = split(list(sources), args.val, args.test, args.seed, before)
        if 'train' not in folds.values():
            raise UserError(f'--val {args.val} and --test {args.test} leave none of {len(sources)} videos for training; give smaller shares')
        write_json(out / 'split.json', before | folds)  # before the first video: the split stays when more videos come
        reader = functools.partial(read, image_size=args.image_size, gray=args.gray)
        jobs = [Job(source, out / folds[name] / f'{name}.npy', reader, write_array) for name, source in sources.items()]
        code = run_locked(jobs, ThreadPoolExecutor(cores()))
    for fold in FOLDS:
        if not any((out / fold).glob('*.npy')):
            raise UserError(f'{out}/{fold} has no video; mend those that are unreadable or add some, and run again')
    return code


if __name__ == '__main__':
    run_script(main)
