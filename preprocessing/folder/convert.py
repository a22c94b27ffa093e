"""Convert videos of your own: `python preprocessing/folder/convert.py --data_dir IN --out_dir OUT`; then `--dataset folder`."""

import functools
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from args import Parser, count, number, seed
from files import UserError, make_folder, run_script
from preprocessing.convert import Job, Unreadable, cores, decode, resized, run_jobs, write_array

VIDEOS = {'.avi', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ogv', '.webm', '.wmv'}
PICTURES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}


def find_sources(folder):
    """Video files, and folders with pictures, anywhere below a folder: sorted list of Path."""
    sources = set()
    for path in folder.rglob('*'):
        if path.name.startswith('.') or not path.is_file():
            continue
        if path.suffix.lower() in VIDEOS:
            sources.add(path)
        elif path.suffix.lower() in PICTURES and path.parent != folder:
            sources.add(path.parent)
    return sorted(sources)


def decode_pictures(folder, transform):
    """As `decode`, of a folder of pictures, in the order of the last number in their names, then of the names."""
    def order(path):
        numbers = re.findall(r'\d+', path.stem)
        return int(numbers[-1]) if numbers else -1, path.name
    frames = []
    for path in sorted((p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith('.')), key=order):
        try:
            with Image.open(path) as picture:
                frames.append(transform(np.asarray(picture.convert('RGB'))))
        except (OSError, ValueError) as error:
            raise Unreadable(f'{path.name}: {error}') from None
    return np.stack(frames), ''


def read(source, image_size, gray):
    """Frames, cut to the largest centred square and resized: uint8 (T, image_size, image_size[, 3])."""
    def transform(frame):
        H, W = frame.shape[:2]
        side = min(H, W)
        left, upper = (W - side) // 2, (H - side) // 2
        frame = resized(frame, image_size, (left, upper, left + side, upper + side))
        return np.asarray(Image.fromarray(frame).convert('L')) if gray else frame
    return (decode_pictures if source.is_dir() else decode)(source, transform=transform)


def split(names, val, test, seed):
    """Assign each name, by a seeded shuffle, to 'train', 'val' or 'test': dict. Each fold has at least one."""
    order = np.random.RandomState(seed).permutation(len(names))
    n_test, n_val = (max(1, round(share * len(names))) for share in (test, val))
    folds = ['test'] * n_test + ['val'] * n_val
    return {names[i]: folds[k] if k < len(folds) else 'train' for k, i in enumerate(order)}


def get_parser():
    parser = Parser('Convert a folder of video files and of folders of frames for --dataset folder: OUT/train, OUT/val and '
                    'OUT/test, split at random by video.')
    parser.add_argument('--data_dir', required=True, help='folder of your videos')
    parser.add_argument('--out_dir', required=True, help='folder of the result, for --data_dir of train.py and test.py')
    parser.add_argument('--image_size', type=count, default=64, help='width and height of frames (the model takes 64)')
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
    # One name a source: its path below the folder, extension included, so that no two fall together
    sources = {}
    for path in find_sources(folder):
        name = '-'.join(path.relative_to(folder).parts)
        if name in sources:
            raise UserError(f'{path} and {sources[name]} would both be called {name}; rename one')
        sources[name] = path
    if len(sources) < 3:
        raise UserError(f'--data_dir {folder} holds {len(sources)} videos (files {", ".join(sorted(VIDEOS))}, or folders of pictures); '
                        'at least 3 are needed, for training, validation and test')
    folds = split(list(sources), args.val, args.test, args.seed)
    if 'train' not in folds.values():
        raise UserError(f'--val {args.val} and --test {args.test} leave none of {len(sources)} videos for training; give smaller shares')
    out = make_folder(args.out_dir, '--out_dir')
    moved = [p for name, fold in folds.items() for other in ('train', 'val', 'test') if other != fold and (p := out / other / f'{name}.npy').exists()]
    if moved:
        raise UserError(f'{moved[0]} belongs to another fold by this --seed and these videos; convert to an empty --out_dir')
    reader = functools.partial(read, image_size=args.image_size, gray=args.gray)
    jobs = [Job(source, out / folds[name] / f'{name}.npy', reader, write_array) for name, source in sources.items()]
    return run_jobs(jobs, ThreadPoolExecutor(cores()))


if __name__ == '__main__':
    run_script(main)
