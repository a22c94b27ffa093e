"""Your own videos: which files and folders are videos, and why others are not."""

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from files import UserError, cores, progress_bar
from preprocessing.decoding import Unreadable, probe
from preprocessing.folder.frames import IMAGES

# Names of videos: if such a file cannot be read, it is damaged rather than something else
VIDEOS = {'.avi', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ogv', '.webm', '.wmv'}
MAX_EXAMPLES = 10  # of files in a message


class Found(NamedTuple):
    """What is below a folder.

    Attributes
    ----------
    sources : dict
        Paths of videos, files or folders of images, by name, in order of paths.
    contents : dict
        What the headers say (`decoding.Content`) of new video files that are readable, by name.
    left_out : list of (Path, str)
        Everything else, and the reason.
    """
    sources: dict
    contents: dict
    left_out: list


def find_sources(folder, known=(), ignored=None):
    """Find all videos below a folder.

    These are files in which ffmpeg finds a video, and folders of at least two images without video
    files. Hidden files are not looked at.

    Parameters
    ----------
    folder : Path
    known : container of str
        Names of videos that need not be looked into again.
    ignored : Path, optional
        A folder that is not searched.

    Returns
    -------
    Found
    """
    files, pictures = walk(folder, ignored)
    contents, reasons = {}, {}

    def look(path):
        if get_name(path, folder) in known:
            return
        try:
            contents[path] = probe(path)
        except Unreadable as error:
            reasons[path] = str(error)

    with ThreadPoolExecutor(cores()) as pool:
        list(progress_bar(pool.map(look, files), 'looking', len(files), unit='file',
                          leave=False, disable=not files))
    left_out = [(path, reasons[path]) for path in files
                if path in reasons and path.suffix.lower() not in VIDEOS]
    videos = [path for path in files
              if path not in reasons or path.suffix.lower() in VIDEOS]
    parents = {path.parent for path in videos}
    for parent, paths in pictures.items():
        if parent == folder:
            left_out += [(path, 'pictures of a video need a folder of their own')
                         for path in paths]
        elif parent in parents:
            left_out += [(path, 'a picture beside video files') for path in paths]
        elif len(paths) == 1:
            left_out.append((*paths, 'a single picture is no video'))
        else:
            videos.append(parent)
    sources = by_name(videos, folder)
    return Found(sources, {name: contents[path] for name, path in sources.items()
                           if path in contents}, left_out)


def walk(folder, ignored):
    """Visible files below a folder: list of those that are no images, lists of images by folder."""
    files, pictures, visited = [], {}, set()
    if ignored is not None:
        visited.add(os.path.realpath(ignored))
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # links may form a cycle
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith('.')]
        paths = sorted(Path(parent, name) for name in names if not name.startswith('.'))
        images = [path for path in paths if path.suffix.lower() in IMAGES]
        files += [path for path in paths if path.suffix.lower() not in IMAGES]
        if images:
            pictures[Path(parent)] = images
    return files, pictures


def by_name(paths, folder):
    """Paths by the name that they get, in order of paths."""
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


def listed(paths):
    """Paths for a message, at most MAX_EXAMPLES of them."""
    more = f' and {len(paths) - MAX_EXAMPLES:,} more' if len(paths) > MAX_EXAMPLES else ''
    return ', '.join(paths[:MAX_EXAMPLES]) + more


def describe_left_out(left_out):
    """Lines on what was left out, a few examples for each reason."""
    groups = defaultdict(list)
    for path, reason in left_out:
        groups[reason].append(str(path))
    for reason, paths in sorted(groups.items()):
        yield f'left out: {listed(sorted(paths))} ({reason})'
