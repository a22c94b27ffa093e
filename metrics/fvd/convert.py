"""Convert the TF-Hub module of I3D to PyTorch: `python -m metrics.fvd.convert MODULE`.

TensorFlow runs in its own process.
"""

from files import run_script
from metrics.fvd import weights
from parsing import Parser


def main(argv=None):
    parser = Parser('Convert the TF-Hub module deepmind/i3d-kinetics-400/1 to a .pt file next to '
                    'it.', prog='python -m metrics.fvd.convert')
    parser.add_argument('module', nargs='?', metavar='MODULE',
                        help=f'its folder or archive, from {weights.URL}; '
                             'default: searched for in the cache, or downloaded')
    module = weights.find(parser.parse_args(argv).module, 'tfhub', 'MODULE')
    path = weights.convert(module, 'MODULE')
    state, _ = weights.load_state(path)
    print(f'{path}: SHA-256 of the weights {weights.sha256(state)}')


if __name__ == '__main__':
    run_script(main)
