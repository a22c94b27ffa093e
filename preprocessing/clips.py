"""Common parts of the scripts that draw test clips from converted videos."""

from files import UserError
from parsing import positive_int, seed
from preprocessing.convert import dataset_parser


def clips_parser(description, seq_len):
    """Parser with the options of a test set; `seq_len` is the default number of frames."""
    parser = dataset_parser(description)
    parser.add_argument('--size', type=positive_int, default=1000, help='number of clips')
    parser.add_argument('--seq_len', type=positive_int, default=seq_len,
                        help='frames per clip, after subsampling if any')
    parser.add_argument('--seed', type=seed, default=42, help='seed of the draws')
    return parser


def check_absent(path):
    """Raise a UserError if a test set exists already."""
    if path.exists():
        raise UserError(f'{path} exists already; remove it to make the test set again')
