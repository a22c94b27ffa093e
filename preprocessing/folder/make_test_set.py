"""Make a test set of own videos: `python preprocessing/folder/make_test_set.py --data_dir DIR`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from files import UserError, count, positive_int, run_script, write_json

import numpy as np

from preprocessing.common import check_new, dataset_parser


def draw_clips(lengths, n_clips, seq_len, seed):
    """Draw clips with different first frames from each video: list of [name, first frame]."""
    rng = np.random.RandomState(seed)
    clips = []
    for name, length in lengths.items():
        n_starts = length - seq_len + 1
        starts = rng.choice(n_starts, min(n_clips, n_starts), replace=False)
        clips += [[name, int(start)] for start in sorted(starts)]
    return clips


def get_parser():
    parser = dataset_parser('Draw clips of the converted test videos and write '
                            'DIR/test_set_<seq_len>.json, which names them.', '--seed', '--seq_len')
    parser.add_argument('--clips', type=positive_int, default=5, metavar='N',
                        help='clips of each video')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    path = Path(args.data_dir) / f'test_set_{args.seq_len}.json'
    check_new(path, args.overwrite)
    videos = sorted((Path(args.data_dir) / 'test').glob('[!.]*.npy'))
    lengths = {video.stem: len(np.load(video, mmap_mode='r', allow_pickle=False))
               for video in videos}
    lengths = {name: n for name, n in lengths.items() if n >= args.seq_len}
    if not lengths:
        raise UserError(f'none of {count(len(videos), "video")} in {args.data_dir}/test has '
                        f'{args.seq_len} frames (--seq_len); use a smaller number, or convert '
                        'longer videos with preprocessing/folder/convert.py')
    clips = draw_clips(lengths, args.clips, args.seq_len, args.seed)
    write_json(path, {'seed': args.seed, 'clips': clips})
    print(f'{path}: {count(len(clips), "clip")} of {args.seq_len} frames, from the '
          f'{len(lengths)} of {count(len(videos), "video")} that are long enough')


if __name__ == '__main__':
    run_script(main)
