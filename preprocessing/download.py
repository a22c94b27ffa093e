"""Download and unpack archives: folders appear only when complete."""

import contextlib
import os
import re
import shutil
import tarfile
import zipfile
import zlib

from download import check_space, fetch, part_of, size_of
from files import UserError, progress_bar


def install(url, archive, target, unpack, size=None, sha256=None):
    """Download `archive` from `url`, unpack it to the folder `target` and remove it."""
    if any(not path.is_dir() for path in target.rglob('*')):
        raise UserError(f'{target} exists, without the videos that belong in it; delete it, or use '
                        'another folder, and run again')
    shutil.rmtree(target, ignore_errors=True)
    if size is not None and not archive.exists():  # better now than after hours of download
        check_space(archive.parent, 2 * size - size_of(part_of(archive)), f'{url}, unpacked,')
    fetch(url, archive, size, sha256)
    unpack(archive, target)
    archive.unlink()


# Unpacking

def unzip(archive, folder):
    """Unpack a zip archive to `folder`, which must not exist and appears only when complete."""
    with unpacking(archive, folder) as tmp, zipfile.ZipFile(archive) as f:
        members = f.infolist()
        check_members(archive, tmp, [(m.filename, m.file_size, True) for m in members])
        f.extractall(tmp, progress_bar(members, 'unpacking', unit='file', delay=1))


def untar(archive, folder, top=''):
    """Unpack the folder `top` of an uncompressed tar archive as `folder`, as `unzip` does."""
    with unpacking(archive, folder, top) as tmp, tarfile.open(archive, 'r:') as f:
        members = f.getmembers()
        check_members(archive, tmp, [(m.name, m.size, m.isfile() or m.isdir()) for m in members])
        f.extraction_filter = getattr(tarfile, 'data_filter', None)  # unknown to older Python
        f.extractall(tmp, progress_bar(members, 'unpacking', unit='file', delay=1))


@contextlib.contextmanager
def unpacking(archive, folder, top=''):
    """Yield a temporary folder, of which `top` becomes `folder` at the end."""
    if folder.exists():
        raise UserError(f'{folder} exists already; delete it to unpack {archive} again')
    tmp = folder.with_name(f'.{folder.name}.unpacking')
    try:
        shutil.rmtree(tmp, ignore_errors=True)  # left by a killed process
        tmp.mkdir(parents=True)
        yield tmp
        if not (tmp / top).is_dir():
            raise UserError(f'{archive} has no folder {top}: it is not the expected archive; '
                            'delete it and run again')
        os.rename(tmp / top, folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f'{archive} is damaged ({str(error) or "it ends early"}); delete it and '
                        'run again') from None
    except OSError as error:
        raise UserError(f'{archive} cannot be unpacked to {folder} ({error.strerror or error}); '
                        'check permissions and free space, and run again') from None
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def check_members(archive, tmp, members):
    """Check the (name, size, is file or folder) of what would be unpacked to `tmp`."""
    for name, _, is_plain in members:
        parts = re.split(r'[/\\]', name)
        if '..' in parts or not parts[0] or not is_plain:
            raise UserError(f'{archive} holds {name!r}, which may lead out of the folder: do not '
                            'trust it, delete it and download it from elsewhere')
    check_space(tmp.parent, sum(size for _, size, _ in members), f'unpacking {archive}')
