"""The TensorFlow module of I3D, in a process of its own: reference of the Fréchet video distance, and source of its weights.

This file is run as a script by the processes that want TensorFlow's numbers: it imports no PyTorch, they no TensorFlow.
"""

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # instead of this folder

from files import UserError, run_script, sha256, write_npz

FILES = ('saved_model.pb', 'tfhub_module.pb', 'variables/variables.index', 'variables/variables.data-00000-of-00001')


def is_module(path):
    """Whether `path` looks like a TF-Hub module: a folder or an archive of it."""
    return (path / 'saved_model.pb').is_file() or (path.is_file() and path.name.endswith(('.tar.gz', '.tgz', '.tar')))


def module_sha256(module):
    """SHA-256 of the files of a module, the same for its folder and its archive."""
    with _folder(module) as folder:
        return hashlib.sha256(''.join(f'{name} {sha256(folder / name)}\n' for name in FILES if (folder / name).is_file()).encode()).hexdigest()


def variables_sha256(variables):
    """SHA-256 of names and values, in the order of names: the same wherever the weights come from."""
    digest = hashlib.sha256()
    for name in sorted(variables):
        digest.update(name.encode() + np.ascontiguousarray(variables[name], np.float32).tobytes())
    return digest.hexdigest()


# In the process that wants the numbers

def _start(*arguments, **kwargs):
    # TensorFlow would take a whole GPU beside PyTorch, and talks much
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'TF_CPP_MIN_LOG_LEVEL': '3'}
    return subprocess.Popen([sys.executable, __file__, *map(str, arguments)], env=env, **kwargs)


def _failure(path, code, log):
    log.seek(0)
    lines = [line for line in log.read().decode(errors='replace').splitlines() if line.strip()]
    reason = lines[-1].removeprefix('error: ') if lines else f'exit code {code}'
    return UserError(reason if code == 2 else f'{path} could not be run by TensorFlow ({reason}); check that it is the whole module')


def export(module, path):
    """Write the module's variables to `path` (.npz), by a process with TensorFlow."""
    with tempfile.TemporaryFile() as log:
        code = _start('export', module, path, stdin=subprocess.DEVNULL, stderr=log).wait()
        if code:
            raise _failure(module, code, log)


class TFHub:
    """Embedding by the TensorFlow module itself: the interface of `Embedding`.

    Parameters
    ----------
    module : path
        Its folder or archive.
    """

    def __init__(self, module):
        self.path = Path(module)
        self._log = tempfile.TemporaryFile()
        self._process = _start('serve', module, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        self.sha256 = bytes(self._receive()).decode()

    def __call__(self, videos):
        """Features, float64 (N, 400), of videos, uint8 (N, T, H, W, C)."""
        try:
            _write(self._process.stdin, videos)
        except BrokenPipeError:
            pass  # the answer tells why
        return self._receive().astype(np.float64)

    def _receive(self):
        try:
            return _read(self._process.stdout)
        except EOFError:
            raise _failure(self.path, self._process.wait(), self._log) from None

    def close(self):
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


def _write(pipe, array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    pipe.write(len(buffer.getbuffer()).to_bytes(8, 'little'))
    pipe.write(buffer.getbuffer())
    pipe.flush()


def _read(pipe):
    """What `_write` wrote; EOFError at the end."""
    size = int.from_bytes(pipe.read(8), 'little')
    data = pipe.read(size)
    if not size or len(data) < size:
        raise EOFError
    return np.load(io.BytesIO(data), allow_pickle=False)


# In the process with TensorFlow

def _tensorflow():
    try:
        import tensorflow
    except ImportError:
        raise UserError('the TF-Hub module of I3D needs TensorFlow; pip install tensorflow') from None
    return tensorflow


@contextlib.contextmanager
def _folder(module):
    """Folder of a module, unpacked if it is an archive: only the files that are needed, to where they belong."""
    if module.is_dir():
        yield module
        return
    with tempfile.TemporaryDirectory() as tmp:
        try:
            with tarfile.open(module) as tar:
                for member in tar:
                    name = next((f for f in FILES if member.isfile() and f'/{member.name}'.endswith(f'/{f}')), None)
                    if name:
                        target = Path(tmp, name)
                        target.parent.mkdir(exist_ok=True)
                        target.write_bytes(tar.extractfile(member).read())
        except (tarfile.TarError, zlib.error, EOFError, OSError):
            raise UserError(f'{module} is no tar archive or is damaged; download it again') from None
        yield Path(tmp)


def _variables(tf, folder):
    missing = [name for name in FILES if name != 'tfhub_module.pb' and not (folder / name).is_file()]
    if missing:
        raise UserError(f'the TF-Hub module of I3D lacks {", ".join(missing)}; download it again')
    reader = tf.train.load_checkpoint(str(folder / 'variables' / 'variables'))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def _serve(tf, folder):
    """Answer each array of videos on stdin by its logits on stdout; first of all, tell the hash of the variables."""
    out = os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)  # what TensorFlow prints is not an answer
    model = tf.saved_model.load(str(folder), tags=[]).signatures['default']  # as tensorflow_hub loads modules of TensorFlow 1
    _write(out, np.frombuffer(variables_sha256(_variables(tf, folder)).encode(), np.uint8))
    with contextlib.suppress(EOFError):
        while True:
            videos = _read(sys.stdin.buffer)
            videos = np.repeat(videos, 3, -1) if videos.shape[-1] == 1 else videos
            logits = []
            for video in videos:
                frames = tf.compat.v1.image.resize_bilinear(video.astype(np.float32), (224, 224))
                logits.append(model(rgb_input=(2. * frames / 255. - 1.)[None])['default'].numpy())
            _write(out, np.concatenate(logits))


def main():
    verb, module, *path = sys.argv[1:]
    tf = _tensorflow()
    with _folder(Path(module)) as folder:
        if verb == 'serve':
            _serve(tf, folder)
        else:
            write_npz(path[0], **_variables(tf, folder))


if __name__ == '__main__':
    run_script(main)
