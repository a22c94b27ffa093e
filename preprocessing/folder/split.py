"""The split of your own videos into folds: `split.json`, and where converted files are."""

import os
import re
from collections import Counter

import numpy as np

from data.folder import FOLDS
from files import UserError, replacing
from preprocessing.convert import CHECKSUMS, read_checksums, read_record


def read_split(path):
    """Folds by name, as assigned by an earlier call, or edited since."""
    advice = f'restore it, or remove it and the folders {", ".join(FOLDS)} next to it to split anew'
    before = read_record(path, advice)
    for name, fold in before.items():
        if fold not in FOLDS:
            raise UserError(f'{path} assigns {name} to {fold!r}, expected one of '
                            f'{", ".join(FOLDS)}; {advice}')
        if '/' in name:
            raise UserError(f'{path} has {name}, which is no name of a converted video; {advice}')
    return before


def grouping(regex):
    """Function from the name of a video to its group: what `regex`, if any, finds in the name.

    If the expression has groups, these count instead of all that it matches. Videos in which it
    finds nothing stand for themselves.
    """
    def group(name):
        match = regex.search(name) if regex else None
        return (match.groups() or match[0]) if match else name
    return group


def split(names, val, test, seed, before, group=str):
    """Assign each name to 'train', 'val' or 'test' with a seeded shuffle: dict.

    Names of a group are in one fold. Groups in `before`, the result of an earlier call, keep their
    fold. The others fill the test and validation folds up to their shares of the names, of one
    video at least; the rest is for training. A share that is None has no fold.
    """
    taken = {group(name): fold for name, fold in before.items()}
    folds, new = {}, {}
    for name in names:
        if name in before or group(name) in taken:
            folds[name] = before.get(name) or taken[group(name)]
        else:
            new.setdefault(group(name), []).append(name)
    sizes = Counter(folds.values())
    shares = {'test': test, 'val': val}
    wanted = {fold: max(1, round(share * len(names)))
              for fold, share in shares.items() if share is not None}
    groups = list(new.values())
    for i in np.random.RandomState(seed).permutation(len(groups)):
        fold = next((fold for fold, n in wanted.items() if sizes[fold] < n), 'train')
        sizes[fold] += len(groups[i])
        folds |= dict.fromkeys(groups[i], fold)
    return folds


def check_groups(folds, group, path):
    """Raise a UserError if a group is in two folds."""
    taken = {}
    for name, fold in folds.items():
        other, other_fold = taken.setdefault(group(name), (name, fold))
        if other_fold != fold:
            raise UserError(f'--group: {other} is in {other_fold}, and {name} of the same group in '
                            f'{fold}; give them one fold in {path} (converted files follow), or '
                            'use another expression')


def given_folds(sources, folder):
    """Folds of videos in folders train, test and perhaps val: dict, empty without such folders."""
    if not all((folder / fold).is_dir() for fold in ('train', 'test')):
        return {}
    top = {name: path.relative_to(folder).parts[0] for name, path in sources.items()}
    return {name: fold for name, fold in top.items() if fold in FOLDS}


def check_given(given, before, has_val, path):
    """Raise a UserError if `split.json` contradicts the folders of the sources."""
    for name, fold in given.items():
        fits = {fold} if has_val or fold != 'train' else {'train', 'val'}
        if before.get(name, fold) not in fits:
            raise UserError(f'{path} assigns {name} to {before[name]}, but it is in the folder '
                            f'{fold}, which is taken as it is; move the video, or set {path} right')


def move_converted(out, folds):
    """Move converted videos to their folds, wherever they are, and their checksums; returns names.

    Of two copies, as left by earlier versions when `split.json` was edited, one stays.
    """
    moved = []
    for name, fold in folds.items():
        for other in FOLDS:
            path = out / other / f'{name}.npy'
            if other != fold and path.exists():
                (out / fold).mkdir(exist_ok=True)
                os.replace(path, out / fold / path.name)
                moved.append(name)
    if (out / CHECKSUMS).exists():
        before = read_checksums(out)
        after = {right_path(name, folds): digest for name, digest in before.items()}
        if after != before:
            with replacing(out / CHECKSUMS) as tmp:
                tmp.write_text(''.join(f'{digest}  {name}\n' for name, digest in after.items()))
    return moved


def right_path(path, folds):
    """Path below the output folder of a file that may have been moved."""
    match = re.fullmatch(r'\w+/(.+)\.npy', path)
    return f'{folds[match[1]]}/{match[1]}.npy' if match and match[1] in folds else path


def cut(n_frames, val, test, gap):
    """Ranges of frames for folds along time, `gap` frames apart: dict of slice, in order.

    Raises a ValueError if there is no frame for a fold.
    """
    used = n_frames - 2 * gap
    n_val, n_test = (max(1, round(share * used)) for share in (val, test))
    n_train = used - n_val - n_test
    if n_train < 1:
        raise ValueError(f'{n_frames} frames are too few for three folds')
    starts = {'train': 0, 'val': n_train + gap, 'test': n_train + n_val + 2 * gap}
    lengths = {'train': n_train, 'val': n_val, 'test': n_test}
    return {fold: slice(start, start + lengths[fold]) for fold, start in starts.items()}
