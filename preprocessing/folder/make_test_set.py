"""Make a test set of several clips of each of your own videos.

`python preprocessing/folder/make_test_set.py --data_dir DIR`, after `convert.py`.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from data.clips import note_short
from data.video import find_videos
from files import UserError, count, run_script, write_json
from parsing import frames, positive_int, seed
from preprocessing.convert import dataset_parser


def draw_clips(lengths, n_clips, seq_len, seed):
    """Draw clips with different first frames from each video.

    Parameters
    ----------
    lengths : dict
        Number of frames by name, at least `seq_len`.
    n_clips : int
        Of each video; fewer if it has fewer first frames.
    seq_len, seed : int

    Returns
    -------
    list of [name, first frame from 0]
    """
    rng = np.random.RandomState(seed)
    clips = []
    for name, length in lengths.items():
        n_starts = length - seq_len + 1
        starts = rng.choice(n_starts, min(n_clips, n_starts), replace=False)
        clips += [[name, int(start)] for start in sorted(starts)]
    return clips


def get_parser():
    parser = dataset_parser('Draw clips of the converted test videos and write '
                            'DIR/test_set_<seq_len>.json, which names them.')
    parser.add_argument('--clips', type=positive_int, default=5, metavar='N',
                        help='clips of each video')
    parser.add_argument('--seq_len', type=frames, default=40, help='frames per clip')
    parser.add_argument('--seed', type=seed, default=42, help='seed of the draws')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    path = Path(args.data_dir) / f'test_set_{args.seq_len}.json'
    if path.exists():
        raise UserError(f'{path} exists already; remove it to make the test set again')
    found = find_videos(Path(args.data_dir) / 'test')
    if not found:
        raise UserError(f'{args.data_dir}/test has no videos; convert your videos first with: '
                        'python preprocessing/folder/convert.py --data_dir YOUR_VIDEOS '
                        f'--out_dir {args.data_dir}')
    long_enough = set(note_short(list(found.values()), args.seq_len, '--seq_len'))
    lengths = {name: len(video) for name, video in found.items() if video in long_enough}
    clips = draw_clips(lengths, args.clips, args.seq_len, args.seed)
    write_json(path, {'seed': args.seed, 'clips': clips})
    print(f'{path}: {count(len(clips), "clip")} of {args.seq_len} frames, '
          f'of {count(len(lengths), "video")}')


if __name__ == '__main__':
    run_script(main)
