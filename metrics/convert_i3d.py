"""Convert the TF-Hub module of I3D for PyTorch: `python -m metrics.convert_i3d MODULE.tar.gz`.

The weights pass in an `.npz` file from TensorFlow to PyTorch, which share no process.
"""

import os
import sys
import tarfile
import tempfile
from pathlib import Path

if __name__ == '__main__':
    if 'torch' in sys.modules:  # -m has imported the package: start again by path
        os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:]])
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # instead of this folder

from files import Parser, reading, replacing, run_script, sha256

import numpy as np

# The module with which published distances are computed
URL = 'https://storage.googleapis.com/tfhub-modules/deepmind/i3d-kinetics-400/1.tar.gz'
SHA256 = 'bafe29bb4528badad428207d8fe86ca2a998b5b1386b82e42175339f12ea2ff5'

CONVERTED = 'i3d-kinetics-400.npz'  # in the cache

# Parts of the names of variables, and of parameters in PyTorch ports
NAMES = {
    'RGB/inception_i3d/': '', 'Logits/Conv3d_0c_1x1': 'logits', 'Branch_0/Conv3d_0a_1x1': 'b0',
    'Branch_1/Conv3d_0a_1x1': 'b1a', 'Branch_1/Conv3d_0b_3x3': 'b1b',
    'Branch_2/Conv3d_0a_1x1': 'b2a', 'Branch_2/Conv3d_0b_3x3': 'b2b',
    'Branch_2/Conv3d_0a_3x3': 'b2b',  # in Mixed_5b
    'Branch_3/Conv3d_0b_1x1': 'b3b', 'conv_3d/w': 'conv3d.weight', 'conv_3d/b': 'conv3d.bias',
    'batch_norm/beta': 'bn.bias', 'batch_norm/moving_mean': 'bn.running_mean',
    'batch_norm/moving_variance': 'bn.running_var', '/': '.'}


def cached(name):
    """Path of a file in $SRVP_CACHE (~/.cache/srvp), where weights are searched for."""
    return Path(os.environ.get('SRVP_CACHE') or Path.home() / '.cache' / 'srvp', name)


def to_pytorch(variables):
    """Parameters of I3D by name in PyTorch ports, from the variables of the module (arrays)."""
    state = {}
    for name, value in variables.items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        # A kernel is (t, h, w, in, out) in TensorFlow
        state[name] = value.transpose(4, 3, 0, 1, 2) if name.endswith('weight') else value.ravel()
        if name.endswith('bn.bias'):
            state[name.replace('bias', 'weight')] = np.ones_like(state[name])  # it has no scale
    return state


def get_parser():
    parser = Parser('Convert the TF-Hub module of I3D to the weights of the Fréchet video '
                    f'distance, an .npz file. Get it from {URL} (50 MB).',
                    prog='python -m metrics.convert_i3d')
    parser.add_argument('module', metavar='MODULE', help='its archive, whose SHA-256 is recorded')
    parser.add_argument('--out', metavar='FILE', type=Path, default=cached(CONVERTED),
                        help='weights; by default, where they are searched for')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    digest = sha256(args.module)
    os.environ |= {'CUDA_VISIBLE_DEVICES': '', 'TF_CPP_MIN_LOG_LEVEL': '3'}
    import tensorflow as tf
    with tempfile.TemporaryDirectory() as folder, reading(
            args.module, 'is not the TF-Hub module of I3D, or is damaged', 'download it again'):
        with tarfile.open(args.module) as archive:
            archive.extractall(folder, filter='data')
        reader = tf.train.load_checkpoint(f'{folder}/variables/variables')
        names = reader.get_variable_to_shape_map()
        state = to_pytorch({name: reader.get_tensor(name) for name in names})

    args.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.out) as tmp, open(tmp, 'wb') as f:
        np.savez(f, module_sha256=digest, **state)
    origin = 'the published weights' if digest == SHA256 else 'of unknown origin'
    print(f'{args.out}: {origin} (SHA-256 of {args.module}: {digest})')


if __name__ == '__main__':
    run_script(main)
