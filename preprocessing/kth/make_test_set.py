"""Make the test set of KTH: `python preprocessing/kth/make_test_set.py --data_dir DIR`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from files import UserError, replacing, run_script

import numpy as np

from data.kth import CLASSES, TEST_PERSONS, find_converted, test_set_name
from preprocessing.common import check_lengths, check_new, dataset_parser


def draw_clips(lengths, size, seq_len, seed):
    """Draw clips as published: list of (class index, person, trial, first frame from 0)."""
    rng = np.random.RandomState(seed)
    clips = []
    for _ in range(size):
        c, person, trial = rng.randint(len(CLASSES)), rng.randint(21, 26), rng.randint(1, 5)
        clips.append((c, person, trial, rng.randint(lengths(c, person, trial) - seq_len + 1)))
    return clips


def get_parser():
    return dataset_parser(
        'Draw clips of the test persons and write DIR/svg_test_set_<seq_len>.npz, or '
        'DIR/svg_test_set_<seq_len>_<image_size>.npz unless that is 64.',
        '--image_size', '--size', '--seed', '--seq_len')


def main(argv=None):
    args = get_parser().parse_args(argv)
    path = Path(args.data_dir) / test_set_name(args.seq_len, args.image_size)
    check_new(path, args.overwrite)
    videos = {v.path.stem: v for v in find_converted(args.data_dir, args.image_size, TEST_PERSONS)}
    if len(videos) < 120:
        raise UserError(f'{args.data_dir}/processed_{args.image_size} has {len(videos)} of the 120 '
                        'videos of persons 21 to 25; complete the download and convert again')
    check_lengths(videos.values(), args.seq_len)

    def video(c, person, trial):
        return videos[f'person{person}_{CLASSES[c]}_d{trial}']

    clips = draw_clips(lambda *v: len(video(*v)), args.size, args.seq_len, args.seed)
    with replacing(path) as tmp, open(tmp, 'wb') as f:
        np.savez_compressed(
            f, sequences=np.stack([video(*v).clip(start, args.seq_len)[..., 0]
                                   for *v, start in clips]),
            persons=np.array([person for _, person, _, _ in clips]),
            actions=np.array([CLASSES[c] for c, _, _, _ in clips]))
    print(f'{path}: {args.size} clips of {args.seq_len} frames')


if __name__ == '__main__':
    run_script(main)
