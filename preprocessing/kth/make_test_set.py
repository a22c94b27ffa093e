"""Make the test set of KTH: `python preprocessing/kth/make_test_set.py --data_dir DIR`.

Run it after `convert.py`.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from data.clips import check_videos, convert_again
from data.kth import CLASSES, TEST_PERSONS, convert_command, find_converted, test_set_name
from files import UserError, run_script, write_npz
from preprocessing.convert import add_size_option, clips_parser


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
        c, person, trial = rng.randint(len(CLASSES)), rng.randint(21, 26), rng.randint(1, 5)
        clips.append((c, person, trial, rng.randint(lengths(c, person, trial) - seq_len + 1)))
    return clips


def get_parser():
    parser = clips_parser('Draw clips of the test persons and write '
                          'DIR/svg_test_set_<seq_len>.npz, or '
                          'DIR/svg_test_set_<seq_len>_<image_size>.npz unless that is 64.', 40)
    add_size_option(parser)
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    path = Path(args.data_dir) / test_set_name(args.seq_len, args.image_size)
    if path.exists():
        raise UserError(f'{path} exists already; remove it to make the test set again')
    videos = {v.path.stem: v for v in find_converted(args.data_dir, args.image_size, TEST_PERSONS)}
    again = convert_again(convert_command(args.data_dir, args.image_size))
    check_videos(videos.values(), args.image_size, 1, args.seq_len, again)

    def video(c, person, trial):
        name = f'person{person:02d}_{CLASSES[c]}_d{trial}'
        if name not in videos:
            raise UserError(f'{args.data_dir}/processed_{args.image_size}/{CLASSES[c]} has no '
                            f'{name}, which the test set needs; complete the download and convert '
                            'again')
        return videos[name]

    clips = draw_clips(lambda *v: len(video(*v)), args.size, args.seq_len, args.seed)
    write_npz(path,
              sequences=np.stack([video(*v).clip(start, args.seq_len)[..., 0]
                                  for *v, start in clips]),
              persons=np.array([person for _, person, _, _ in clips]),
              actions=np.array([CLASSES[c] for c, _, _, _ in clips]))
    print(f'{path}: {args.size:,} clips of {args.seq_len} frames')


if __name__ == '__main__':
    run_script(main)
