"""The TensorFlow module of I3D, run in its own process.

It is the reference of the Fréchet video distance, and the source of its weights. This file is the
script of that process, which imports no PyTorch; the process that starts it imports no TensorFlow.
"""

import contextlib
import hashlib
import importlib.util
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import types
import zlib
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import numpy as np

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # instead of this folder

from files import UserError, run_script, sha256, write_npz

VARIABLES = 'variables/variables.index', 'variables/variables.data-00000-of-00001'
FILES = 'saved_model.pb', 'tfhub_module.pb', *VARIABLES
TIMEOUT = 10  # seconds without data after which a download by tensorflow_hub ends


def is_module(path):
    """Whether `path` looks like a TF-Hub module: its folder or archive."""
    is_archive = path.is_file() and path.name.endswith(('.tar.gz', '.tgz', '.tar'))
    return is_archive or (path / 'saved_model.pb').is_file()


def module_sha256(module):
    """SHA-256 of the files of a module, the same for folder and archive."""
    with unpacked(module) as folder:
        found = [name for name in FILES if (folder / name).is_file()]
        text = ''.join(f'{name} {sha256(folder / name)}\n' for name in found)
    return hashlib.sha256(text.encode()).hexdigest()


def variables_sha256(variables):
    """SHA-256 of variables, names and float32 values, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(variables):
        value = np.ascontiguousarray(variables[name], np.float32)
        digest.update(name.encode() + value.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def unpacked(module):
    """Folder of a module. From an archive, only the necessary files are unpacked."""
    if module.is_dir():
        yield module
        return
    with tempfile.TemporaryDirectory() as tmp:
        try:
            with tarfile.open(module) as tar:
                for member in tar:
                    unpack(tar, member, tmp)
        except (tarfile.TarError, zlib.error, EOFError, OSError):
            raise UserError(f'{module} is not a tar archive or is damaged; '
                            'download it again') from None
        yield Path(tmp)


def unpack(tar, member, folder):
    """Write a member of an archive to its place in `folder` if it is one of `FILES`."""
    for name in FILES:
        if member.isfile() and f'/{member.name}'.endswith(f'/{name}'):
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(tar.extractfile(member).read())


# In the calling process

def start(*arguments, **kwargs):
    """Start this script: a `subprocess.Popen`."""
    # TensorFlow would reserve a whole GPU next to PyTorch, and logs a lot
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'TF_CPP_MIN_LOG_LEVEL': '3',
           'TFHUB_DOWNLOAD_PROGRESS': '1'}
    return subprocess.Popen([sys.executable, __file__, *map(str, arguments)], env=env, **kwargs)


def failure(path, code, log):
    """The UserError for a process that ended with this exit code."""
    log.seek(0)
    text = log.read().decode(errors='replace')
    lines = [line for line in text.splitlines() if line.strip()] or [f'exit code {code}']
    reason = lines[-1].removeprefix('error: ')
    if code != 2:
        reason = f'{path} could not be run by TensorFlow ({reason}); check that it is complete'
    return UserError(reason)


def export(module, path):
    """Write the variables of a module to `path` (.npz)."""
    with tempfile.TemporaryFile() as log:
        code = start('export', module, path, stdin=subprocess.DEVNULL, stderr=log).wait()
        if code:
            raise failure(module, code, log)


def resolve(handle):
    """Folder of a module by its address: in the cache of tensorflow_hub, which downloads it there.

    Raises
    ------
    UserError
        With the reason only.
    """
    with tempfile.TemporaryDirectory() as tmp, tempfile.TemporaryFile() as log:
        target = Path(tmp, 'path')
        code = start('resolve', handle, target, stdin=subprocess.DEVNULL, stdout=2,  # the progress
                     stderr=log).wait()
        if code:
            raise failure(handle, code, log)
        return Path(target.read_text())


class TFHub:
    """Embedding by the TensorFlow module itself, with the interface of `Embedding`.

    Parameters
    ----------
    module : path
        Its folder or archive.
    """
    identity, comparable, note = 'published', True, None  # see `Embedding`

    def __init__(self, module):
        self.path, self._log = Path(module), tempfile.TemporaryFile()
        self._pipe, theirs = Pipe()
        with theirs:
            fd = theirs.fileno()
            self._process = start('serve', module, fd, pass_fds=[fd], stdin=subprocess.DEVNULL,
                                  stdout=self._log, stderr=self._log)
        self.sha256 = self._receive()

    def __call__(self, videos):
        """Features, float64 (N, 400), of videos, as of `Embedding`."""
        with contextlib.suppress(BrokenPipeError):  # `_receive` says why
            self._pipe.send(videos)
        return self._receive().astype(np.float64)

    def _receive(self):
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise failure(self.path, self._process.wait(), self._log) from None

    def close(self):
        """End the process."""
        self._pipe.close()
        self._process.wait()
        self._log.close()


# In the TensorFlow process

def import_tensorflow():
    try:
        import tensorflow
    except ImportError:
        raise UserError('the TF-Hub module of I3D needs TensorFlow; '
                        'pip install tensorflow') from None
    return tensorflow


def import_tensorflow_hub():
    import_tensorflow()  # tensorflow_hub would print a paragraph
    if importlib.util.find_spec('pkg_resources') is None:
        # setuptools 82 dropped it; tensorflow_hub 0.16 imports this function of it
        from packaging.version import parse
        sys.modules['pkg_resources'] = types.SimpleNamespace(parse_version=parse)
    try:
        import tensorflow_hub
    except ImportError as error:
        raise UserError(f'tensorflow_hub cannot be imported ({error}); '
                        'pip install tensorflow_hub') from None
    return tensorflow_hub


def write_path(handle, target):
    """Write to `target` the path of the folder that tensorflow_hub finds, or downloads."""
    hub = import_tensorflow_hub()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        path = hub.resolve(handle)
    except Exception as error:  # of urllib, tarfile or TensorFlow
        cause = getattr(error, 'reason', error)  # of an error of urllib
        reason = getattr(cause, 'strerror', None) or str(error) or type(error).__name__
        raise UserError(reason.splitlines()[0]) from None
    Path(target).write_text(path)


def check_files(folder):
    """Raise a UserError for an incomplete module."""
    missing = [name for name in ('saved_model.pb', *VARIABLES) if not (folder / name).is_file()]
    if missing:
        raise UserError(f'the TF-Hub module of I3D lacks {", ".join(missing)}; download it again')


def read_variables(tf, folder):
    """Variables of a module by name."""
    reader = tf.train.load_checkpoint(str(folder / 'variables' / 'variables'))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def serve(tf, folder, fd):
    """Send the hash of the variables to the pipe `fd`, then the logits of videos received."""
    pipe = Connection(int(fd))
    # As tensorflow_hub loads modules of TensorFlow 1
    model = tf.saved_model.load(str(folder), tags=[]).signatures['default']
    pipe.send(variables_sha256(read_variables(tf, folder)))
    with contextlib.suppress(EOFError):
        while True:
            videos = pipe.recv()
            if videos.shape[-1] == 1:
                videos = np.repeat(videos, 3, -1)
            pipe.send(np.concatenate([compute_logits(tf, model, video) for video in videos]))


def compute_logits(tf, model, video):
    """Logits float32 (1, 400) of a video, uint8 (T, H, W, 3) or float32, taken as it is."""
    if video.dtype == np.uint8:
        frames = tf.compat.v1.image.resize_bilinear(video.astype(np.float32), (224, 224))
        video = 2. * frames / 255. - 1.
    return model(rgb_input=video[None])['default'].numpy()


def main():
    verb, module, target = sys.argv[1:]
    if verb == 'resolve':
        return write_path(module, target)
    with unpacked(Path(module)) as folder:
        check_files(folder)
        tf = import_tensorflow()
        if verb == 'serve':
            serve(tf, folder, target)
        else:
            write_npz(target, **read_variables(tf, folder))


if __name__ == '__main__':
    run_script(main)
