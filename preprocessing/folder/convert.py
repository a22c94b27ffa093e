"""Convert your own videos: `python preprocessing/folder/convert.py --data_dir IN --out_dir OUT`."""

import argparse
import os
import re
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from files import UserError, cores, count, number, positive_float, progress_bar, run_script

import numpy as np
from natsort import natsorted

from preprocessing.common import NoVideo, dataset_parser, open_video, printable, run_jobs
from preprocessing.folder.frames import CROPS, FrameFormat, count_pictures, read_frames

FOLDS = ('train', 'val', 'test')
# Names of folders of a split, in lower case: train, Training, test_set, validation videos …
FOLD_NAMES = re.compile('(?:(train|training)|(val|valid|validation|dev)|(test|testing))'
                        '(?:[ _-]?(?:set|data|videos?|clips|split))?')
# Names of videos: if such a file cannot be read, it is damaged rather than something else
VIDEOS = {'.avi', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ogv', '.webm', '.wmv'}
PICTURE = 'pictures of a video need a folder of their own, of two or more'


def expression(text):
    """Argument type: a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f'{text!r} is no regular expression ({error})') from None


def get_parser():
    parser = dataset_parser(
        'Convert video files and folders of pictures for --dataset folder: OUT/train, OUT/val and '
        'OUT/test. Videos in folders train, val and test of IN stay in these folds; without a '
        'folder val, some of train are taken. Otherwise, videos are assigned to folds at random.',
        '--image_size', '--seed')
    parser.add_argument('--out_dir', required=True,
                        help='output folder, the --data_dir of train.py and test.py')
    parser.add_argument('--gray', action='store_true', help='one channel instead of three')
    parser.add_argument('--crop', choices=CROPS, default='centre',
                        help='centre: the central square; none: the whole frame, in black bars')
    parser.add_argument('--fps', type=positive_float, metavar='F',
                        help='frames per second that all videos are brought to; default: each '
                             'stored frame once. Folders of pictures have no rate')
    parser.add_argument('--group', type=expression, metavar='REGEX',
                        help='keep videos in one fold in whose names, as below OUT, this finds the '
                             'same; groups in parentheses count instead of the whole')
    share = number(float, 0, 1)
    parser.add_argument('--val', type=share, default=0.05,
                        help='fraction of videos for validation; at least one video')
    parser.add_argument('--test', type=share, default=0.1,
                        help='fraction of videos for testing; at least one video')
    return parser


def find_sources(folder, out):
    """Find all videos below a folder that are not hidden, nor in the folder `out`.

    They are files in which ffmpeg finds a video, files of several pictures, and folders of at least
    two pictures without such files. Returns their paths by name, which is the path below the
    folder, in natural order, and the reasons by path of all other files.
    """
    files, visited = [], {os.path.realpath(out)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in visited:  # links may form a cycle
            folders.clear()
            continue
        visited.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if not name.startswith('.')]
        files += [Path(parent, name) for name in names if not name.startswith('.')]

    with ThreadPoolExecutor(cores()) as pool:
        found = progress_bar(pool.map(look, files), 'looking', len(files), unit='file',
                             leave=False, disable=not files)
        reasons = dict(zip(files, found))
    videos = {path for path, reason in reasons.items() if not reason}
    pictures = Counter(path.parent for path, reason in reasons.items() if reason == PICTURE)
    parents = {parent for parent, n in pictures.items() if n > 1}
    parents -= {folder, *(path.parent for path in videos)}
    left_out = {path: reason for path, reason in reasons.items()
                if reason and (reason != PICTURE or path.parent not in parents)}

    sources = {}
    for path in natsorted(videos | parents, str):
        name = printable('-'.join(path.relative_to(folder).parts))
        other = sources.setdefault(name, path)
        if other != path:
            raise UserError(f'{printable(path)} and {printable(other)} would both be called '
                            f'{name}; rename one')
    return sources, left_out


def look(path):
    """Why a file is no video by itself; empty if it is one, maybe a damaged one."""
    n_pictures = count_pictures(path)
    if n_pictures:
        return PICTURE if n_pictures == 1 else ''
    try:
        with open_video(path):
            return ''
    except NoVideo as error:
        return str(error)
    except Exception as error:  # ffmpeg raises many kinds
        return '' if path.suffix.lower() in VIDEOS else str(error)


def given_fold(path, folder):
    """Fold of a video in a folder of a split, such as Train or Test, or else None."""
    parts = path.relative_to(folder).parts
    for part in parts if path.is_dir() else parts[:-1]:
        if match := FOLD_NAMES.fullmatch(part.lower()):
            return FOLDS[match.lastindex - 1]


def split(names, shares, seed, before, group=str):
    """Assign each name to a fold, those of a group to the same: dict.

    Groups in `before`, the folds of videos converted earlier, keep theirs. The others fill, in
    random order, the folds of `shares` up to these fractions, of one video at least, then `train`.
    """
    taken = {group(name): fold for name, fold in before.items()}
    folds = {name: taken[group(name)] for name in names if group(name) in taken}
    sizes = Counter(folds.values())
    wanted = {fold: max(1, round(share * len(names))) for fold, share in shares.items()}
    groups = defaultdict(list)
    for name in names:
        if name not in folds:
            groups[group(name)].append(name)
    groups = list(groups.values())
    for i in np.random.RandomState(seed).permutation(len(groups)):
        fold = next((fold for fold, n in wanted.items() if sizes[fold] < n), 'train')
        sizes[fold] += len(groups[i])
        folds |= dict.fromkeys(groups[i], fold)
    return folds


def assign(names, given, converted, args):
    """Folds of all names: those `given`, those of videos `converted` earlier, or random ones.

    `converted` may have videos that are no sources any more.
    """
    def group(name):
        match = args.group.search(name) if args.group else None
        return (match.groups() or match[0]) if match else name

    if args.group and not any(map(args.group.search, names)):
        raise UserError(f'--group {args.group.pattern} finds nothing in the names of videos, '
                        f'{listed(names)}; use another expression')
    folds = given
    if not given:
        folds = split(names, {'test': args.test, 'val': args.val}, args.seed, converted, group)
    elif 'val' not in given.values():
        training = [name for name in names if given[name] == 'train']
        before = {name: fold for name, fold in converted.items() if fold != 'test'}
        folds = given | split(training, {'val': args.val}, args.seed, before, group)

    places = {}
    for name, fold in [*converted.items(), *folds.items()]:
        other, place = places.setdefault(group(name), (name, fold))
        if place != fold:
            raise UserError(f'{name} belongs to {fold}, but {other} of the same --group, or itself,'
                            f' to {place}; remove what was converted to {args.out_dir} before, or '
                            'use another --group')
    for fold in FOLDS:
        if fold not in folds.values():
            raise UserError(f'{args.data_dir} has {count(len(names), "video")} in '
                            f'{count(len(set(map(group, names))), "group")}, of which none is left '
                            f'for {fold}; add more, use smaller fractions --val and --test, or name'
                            ' the folders of a split train, val and test')
    return folds


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder, out = Path(args.data_dir), Path(args.out_dir)
    if folder.resolve() == out.resolve():
        raise UserError(f'--out_dir {out} is --data_dir too; use another folder')
    sources, left_out = find_sources(folder, out)
    given = {name: fold for name, path in sources.items() if (fold := given_fold(path, folder))}
    if given:
        for name in sources.keys() - given.keys():
            left_out[sources.pop(name)] = 'outside of the folders of the split'
    for reason in sorted(set(left_out.values())):
        paths = [path for path, other in left_out.items() if other == reason]
        print(f'left out: {listed(paths)} ({printable(reason)})')

    converted = {path.stem: fold for fold in FOLDS for path in (out / fold).glob('[!.]*.npy')}
    folds = assign(list(sources), given, converted, args)
    form = FrameFormat(args.image_size, args.gray, args.crop, args.fps)
    code = run_jobs({out / fold / f'{name}.npy': sources[name] for name, fold in folds.items()},
                    lambda source, notes: read_frames(source, form, notes), args.overwrite)
    numbers = [f'{len(list((out / fold).glob("[!.]*.npy")))} in {fold}' for fold in FOLDS]
    print(f'{out}: {", ".join(numbers)}')
    return code


def listed(paths):
    """Paths for a message, at most ten of them."""
    more = f' and {len(paths) - 10} more' if len(paths) > 10 else ''
    return ', '.join(map(printable, natsorted(paths, str)[:10])) + more


if __name__ == '__main__':
    run_script(main)
