"""Make the test set of KTH: `python preprocessing/kth/make_test_set.py --data_dir DIR`, after `convert.py`."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # called by its path, as published

from parsing import Parser, positive_int, seed
from data.clips import check_videos
from data.kth import CLASSES, find_converted
from files import UserError, run_script, write_npz

TEST_PERSONS = range(21, 26)


def draw_clips(lengths, size, seq_len, seed):
    """Draw the clips of the test set.

    Parameters
    ----------
    lengths : function (class index, person, trial) -> number of frames
    size, seq_len, seed : int

    Returns
    -------
    list of tuples (class index, person, trial, first frame from 0)
    """
    rng = np.random.RandomState(seed)
    clips = []
    for _ in range(size):
        video = rng.randint(len(CLASSES)), rng.randint(TEST_PERSONS[0], TEST_PERSONS[-1] + 1), rng.randint(1, 5)
        clips.append((*video, rng.randint(lengths(*video) - seq_len + 1)))
    return clips


def get_parser():
    parser = Parser('Draw clips of the test persons and write DIR/svg_test_set_<seq_len>.npz.')
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    parser.add_argument('--size', type=positive_int, default=1000, help='clips')
    parser.add_argument('--seq_len', type=positive_int, default=40, help='frames a clip')
    parser.add_argument('--image_size', type=positive_int, default=64, help='width and height of frames')
    parser.add_argument('--seed', type=seed, default=42)
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    path = Path(args.data_dir) / f'svg_test_set_{args.seq_len}.npz'
    if path.exists():
        raise UserError(f'{path} is already there; remove it to make the test set again')
    found = {v.path.stem: v for v in find_converted(args.data_dir, args.image_size, TEST_PERSONS)}
    check_videos(found.values(), args.image_size, 1, args.seq_len)

    def video(c, person, trial):
        name = f'person{person:02d}_{CLASSES[c]}_d{trial}'
        if name not in found:
            raise UserError(f'{args.data_dir}/processed_{args.image_size}/{CLASSES[c]} has no {name}, which the test set draws from; '
                            'complete the download and convert again')
        return found[name]
    clips = draw_clips(lambda *v: len(video(*v)), args.size, args.seq_len, args.seed)
    write_npz(path, sequences=np.stack([video(c, p, t).clip(t_0, args.seq_len)[..., 0] for c, p, t, t_0 in clips]),
              persons=np.array([p for _, p, _, _ in clips]), actions=np.array([CLASSES[c] for c, _, _, _ in clips]))
    print(f'{path}: {args.size:,} clips of {args.seq_len} frames')


if __name__ == '__main__':
    run_script(main)
