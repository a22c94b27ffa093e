"""Convert videos of your own, for `--dataset folder`.

`python preprocessing/folder/convert.py --data_dir IN --out_dir OUT`
"""

import argparse
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from data.folder import FOLDS
from files import UserError, cores, make_folder, progress_bar, run_script, write_json
from parsing import Parser, nonnegative_int, number, positive_float, seed
from preprocessing.convert import (
    add_check_option,
    add_size_option,
    check_converted,
    converting,
    is_done,
    read_record,
    run_locked,
    write_blocks,
)
from preprocessing.decoding import Unreadable
from preprocessing.folder.frames import CROPS, FrameFormat, find_images, open_frames
from preprocessing.folder.sources import describe_left_out, find_sources, listed
from preprocessing.folder.split import (
    check_given,
    check_groups,
    cut,
    given_folds,
    grouping,
    move_converted,
    read_split,
    split,
)

VERSION = 2  # of the frames; in version 1, Pillow resized them
EARLIER = {'crop': 'centre', 'fps': None, 'split': 'video', 'version': 1}  # not in its records


# Options

def regex(text):
    """Argument type: a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f'expected a regular expression, found {text!r} ({error})'
                                         ) from None


def get_parser():
    parser = Parser('Convert video files and folders of frames for --dataset folder: OUT/train, '
                    'OUT/val and OUT/test. Videos in folders train, test and val of IN stay in '
                    'these folds; without a folder val, some of train are taken. Otherwise, videos '
                    'are assigned to folds at random.')
    parser.add_argument('--data_dir', required=True, help='folder of your videos')
    parser.add_argument('--out_dir', required=True,
                        help='output folder, the --data_dir of train.py and test.py')
    add_size_option(parser)
    parser.add_argument('--gray', action='store_true', help='one channel instead of three')
    parser.add_argument('--crop', choices=CROPS, default='centre',
                        help='centre: the central square; none: the whole frame, in black bars')
    parser.add_argument('--fps', type=positive_float, metavar='F',
                        help='frames per second that all video files are brought to; default: '
                             'each stored frame once. Folders of pictures have no rate')
    parser.add_argument('--split', choices=['video', 'time'], default='video',
                        help='video: each video is in one fold; time: each is cut into three '
                             'pieces along time, for a few long videos')
    parser.add_argument('--group', type=regex, metavar='REGEX',
                        help='keep videos in one fold in whose names, as in split.json, this finds '
                             'the same; groups in parentheses count instead of the whole')
    share = number(float, 0, 1)
    parser.add_argument('--val', type=share, default=0.05,
                        help='fraction of videos, or of their time, for validation; at least one '
                             'video')
    parser.add_argument('--test', type=share, default=0.1,
                        help='fraction for testing; at least one video')
    parser.add_argument('--gap', type=nonnegative_int, default=100,
                        help='frames left out between the pieces of --split time')
    parser.add_argument('--seed', type=seed, default=42, help='seed of the split')
    add_check_option(parser)
    return parser


def recorded_format(data_dir, image_size, gray):
    """Format of the frames of a converted folder, as far as it is recorded there."""
    path = Path(data_dir or '.') / 'conversion.json'
    record = EARLIER | (read_record(path, 'restore it') if data_dir else {})
    try:
        fps = None if record['fps'] is None else positive_float(record['fps'])
    except (argparse.ArgumentTypeError, TypeError):
        fps = record['crop'] = None
    if record['crop'] not in CROPS:
        raise UserError(f'{path} has wrong values of crop or fps; restore it')
    return FrameFormat(image_size, gray, record['crop'], fps)


# Jobs

@dataclass
class FolderJob:
    """Conversion of one source frame by frame, as `preprocessing.convert.Job`.

    Attributes
    ----------
    source : Path
    targets : list of Path
        One file, or one for each piece along time.
    form : FrameFormat
    cut : function, optional
        From the number of frames to the slices of the pieces (see `split.cut`).
    bar : tqdm
        Counts frames.
    """
    source: Path
    targets: list
    form: FrameFormat
    cut: Any = None
    bar: Any = None

    def __call__(self):
        self.targets[0].parent.mkdir(parents=True, exist_ok=True)
        write = self.write if self.cut is None else self.write_pieces
        try:
            blocks = open_frames(self.source, self.form)
            return write(self.counted(blocks)), blocks.note
        except Unreadable as error:
            return None, str(error)

    def counted(self, blocks):
        for block in blocks:
            self.bar.update(len(block))
            yield block

    def write(self, blocks):
        return write_blocks(self.targets[0], blocks)

    def write_pieces(self, blocks):
        whole = self.targets[0].with_name(f'.{self.targets[0].name}.whole.tmp')
        try:
            n_frames = write_blocks(whole, blocks)
            try:
                pieces = self.cut(n_frames).values()
            except ValueError as error:
                raise Unreadable(f'{error}; use a smaller --gap') from None
            for target, piece in zip(self.targets, pieces):
                target.parent.mkdir(exist_ok=True)
                write_blocks(target, (  # mapped for each block, which bounds the memory
                    np.load(whole, mmap_mode='r')[i:min(i + 100, piece.stop)]
                    for i in range(piece.start, piece.stop, 100)))
            return n_frames
        finally:
            whole.unlink(missing_ok=True)


def get_targets(name, out, folds):
    """Files of a converted video: one in its fold, or three pieces along time (no folds)."""
    if folds is None:
        return [out / fold / f'{name}-{fold}.npy' for fold in FOLDS]
    return [out / folds[name] / f'{name}.npy']


def converted_names(out, along_time):
    """Names of the videos that are converted already."""
    names = {fold: {path.stem for path in (out / fold).glob('[!.]*.npy')} for fold in FOLDS}
    if not along_time:
        return set().union(*names.values())
    return set.intersection(*({name.removesuffix(f'-{fold}') for name in names[fold]}
                              for fold in FOLDS))


def expected_frames(job, content):
    """Number of frames of a source according to its headers, 0 if they do not tell."""
    if job.source.is_dir():
        return len(find_images(job.source))
    return round(content.duration * (job.form.fps or content.rate)) if content else 0


# Script

def assign(found, args, path):
    """Folds of all videos by name, and `split.json` (`path`) with them."""
    before, group, folder = read_split(path), grouping(args.group), Path(args.data_dir)
    folds = given_folds(found.sources, folder)
    if folds:
        has_val = (folder / 'val').is_dir()
        check_given(folds, before, has_val, path)
        if not has_val:
            names = [name for name, fold in folds.items() if fold == 'train']
            folds |= split(names, args.val, None, args.seed,
                           {name: before[name] for name in names if name in before}, group)
    else:
        folds = split(list(found.sources), args.val, args.test, args.seed, before, group)
    check_groups(before | folds, group, path)
    if 'train' not in folds.values():
        raise UserError(f'--val {args.val} and --test {args.test} leave none of '
                        f'{len(folds)} videos for training; use smaller fractions')
    return folds, before | folds  # of removed videos too: they may return


def check_sources(found, args, folder):
    """Raise a UserError if there are too few videos, or options contradict the folders."""
    given = given_folds(found.sources, folder)
    if args.split == 'time':
        if given or args.group:
            what = '--group' if args.group else f'folders train and test in {folder}'
            raise UserError(f'--split time cuts each video into pieces for all folds, found {what}'
                            '; leave one of them out')
        needed, what = 1, 'videos'
    else:
        needed, what = 2 if given else 3, 'groups of videos' if args.group else 'videos'
    n = len(set(map(grouping(args.group), given or found.sources)))
    if n < needed:
        raise UserError(f'--data_dir {folder} has {n} {what} (files that ffmpeg reads, or folders '
                        f'of images); at least {needed} are needed, for training, validation and '
                        'testing; --split time cuts a few long ones')


def get_options(args):
    """Options that determine the converted files, as recorded with them."""
    options = {name: getattr(args, name) for name in ('image_size', 'gray', 'crop', 'fps', 'split')}
    if args.split == 'time':
        options |= {name: getattr(args, name) for name in ('val', 'test', 'gap')}
    return options


def convert(found, args, out):
    """Convert all that is found, inside `converting`; returns the exit code, and all targets."""
    folds, form = None, FrameFormat(args.image_size, args.gray, args.crop, args.fps)
    cut_pieces = None
    if args.split == 'time':
        def cut_pieces(n_frames):
            return cut(n_frames, args.val, args.test, args.gap)
    else:
        folds, record = assign(found, args, out / 'split.json')
        for name in move_converted(out, record):
            print(f'moved to {record[name]}, as split.json says: {name}')
    names = [name for name in found.sources if folds is None or name in folds]
    jobs = {name: FolderJob(found.sources[name], get_targets(name, out, folds), form, cut_pieces)
            for name in names}
    waiting = {name: job for name, job in jobs.items() if not is_done(job)}
    record_path = out / 'conversion.json'
    version = read_record(record_path, 'restore it').get('version', 1) if record_path.exists() \
        else VERSION
    if waiting and version != VERSION:
        raise UserError(f'{out} was converted by an earlier version, whose frames differ slightly: '
                        'it remains valid, but cannot be added to; convert all videos to another '
                        '--out_dir')
    if folds is not None:
        write_json(out / 'split.json', record)
    total = sum(expected_frames(job, found.contents.get(name)) for name, job in waiting.items())
    with progress_bar(desc='converting', total=total or None, unit='frame',
                      disable=not waiting) as bar:
        for job in waiting.values():
            job.bar = bar
        code = run_locked(list(jobs.values()), ThreadPoolExecutor(cores()), out,
                          get_options(args) | {'version': version}, silent=True)
    return code, [target for job in jobs.values() for target in job.targets]


def report(found, args, out, targets):
    """Print what was left out, and what is there without a source."""
    left_out = list(found.left_out)
    if given := args.split == 'video' and given_folds(found.sources, Path(args.data_dir)):
        left_out += [(path, 'outside of the folders train, val and test')
                     for name, path in found.sources.items() if name not in given]
    print(*describe_left_out(left_out), sep='\n', end='\n' if left_out else '')
    targets = set(targets)
    kept = sorted(str(path) for fold in FOLDS for path in (out / fold).glob('[!.]*.npy')
                  if path not in targets)
    if kept:
        print(f'kept, though not in --data_dir any more: {listed(kept)}; delete them unless they '
              'are to be used')
    for fold in FOLDS:
        if not any((out / fold).glob('*.npy')):
            raise UserError(f'{out}/{fold} has no videos; repair unreadable ones or add more, and '
                            'run again')


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder, out = Path(args.data_dir), Path(args.out_dir)
    if args.check:
        return check_converted(out)
    if not folder.is_dir():
        raise UserError(f'--data_dir {folder} is not a folder; use the one with your videos')
    found = find_sources(folder, converted_names(out, args.split == 'time'), out)
    check_sources(found, args, folder)
    make_folder(out, '--out_dir')
    with converting(out, get_options(args), EARLIER):  # the lock covers the split too
        code, targets = convert(found, args, out)
    report(found, args, out, targets)
    return code


if __name__ == '__main__':
    run_script(main)
