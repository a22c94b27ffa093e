"""Make the test set of Human3.6M: `python preprocessing/human/make_test_set.py --data_dir DIR`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from files import positive_int, progress_bar, replacing, run_script

import numpy as np

from data.human import find_converted
from preprocessing.common import check_lengths, check_new, dataset_parser


def draw_clips(lengths, size, span, seed):
    """Draw `size` clips of `span` frames as published: list of (video index, first frame)."""
    rng = np.random.RandomState(seed)
    clips = []
    for _ in range(size):
        video = rng.randint(len(lengths))
        clips.append((video, rng.randint(lengths[video] - span + 1)))
    return clips


def get_parser():
    parser = dataset_parser(
        'Draw clips of test videos and write DIR/test_set_<seq_len>_<subsampling>/test_<i>.npz.',
        '--size', '--seed')
    parser.add_argument('--seq_len', type=positive_int, default=53,
                        help='frames per clip, after subsampling')
    parser.add_argument('--subsampling', type=positive_int, default=8,
                        help='use one frame in this many; those in between are saved too')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    span = (args.seq_len - 1) * args.subsampling + 1
    folder = Path(args.data_dir) / f'test_set_{args.seq_len}_{args.subsampling}'
    check_new(folder, args.overwrite)
    found = find_converted(args.data_dir, 'test')
    names, videos = list(found), list(found.values())
    check_lengths(videos, span)
    clips = draw_clips(list(map(len, videos)), args.size, span, args.seed)
    with replacing(folder) as tmp:
        tmp.mkdir()
        for i, (v, start) in enumerate(progress_bar(clips, 'writing', unit='clip')):
            subject, filename = names[v].split('-', 1)  # S9-Walking.54138969
            np.savez_compressed(tmp / f'test_{i}.npz', image=videos[v].clip(start, span),
                                filename=np.array(f'{filename}.mp4'),
                                subject=np.array(int(subject[1:])), frame=np.array(start))
    print(f'{folder}: {args.size} clips of {span} frames')


if __name__ == '__main__':
    run_script(main)
