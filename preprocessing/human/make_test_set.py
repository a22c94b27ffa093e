"""Make the test set of Human3.6M: `python preprocessing/human/make_test_set.py --data_dir DIR`.

Run it after `convert.py`.
"""

import re
import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from data.clips import check_videos
from data.human import find_converted
from files import UserError, progress_bar, replacing_folder, run_script, write_npz
from parsing import positive_int
from preprocessing.convert import clips_parser


def draw_clips(lengths, size, span, seed):
    """Draw the clips of the test set.

    Parameters
    ----------
    lengths : list of int
        Number of frames of each test video.
    size, span, seed : int
        Number of clips, and frames that each covers.

    Returns
    -------
    list of tuples (video index, first frame)
    """
    rng = np.random.RandomState(seed)
    clips = []
    for _ in range(size):
        video = rng.randint(len(lengths))
        clips.append((video, rng.randint(lengths[video] - span + 1)))
    return clips


def get_parser():
    parser = clips_parser('Draw clips of the test videos and write '
                          'DIR/test_set_<seq_len>_<subsampling>/test_<i>.npz.', 53)
    parser.add_argument('--subsampling', type=positive_int, default=8,
                        help='use one frame in this many; those in between are saved too')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    span = (args.seq_len - 1) * args.subsampling + 1
    found = find_converted(args.data_dir, 'test')
    names, videos = list(found), list(found.values())
    for name in names:
        if not re.fullmatch(r'S\d+-.+', name):
            raise UserError(f'{found[name].path} is not called S<id>-<video>, as converted test '
                            'videos are; move it elsewhere')
    check_videos(videos, videos[0].frame_shape[0], 3, span)
    folder = Path(args.data_dir) / f'test_set_{args.seq_len}_{args.subsampling}'
    if folder.exists():
        raise UserError(f'{folder} exists already; remove it to make the test set again')
    for old in folder.parent.glob(f'.{folder.name}.*.tmp'):  # left by a killed process
        shutil.rmtree(old)
    with replacing_folder(folder) as tmp:
        clips = draw_clips(list(map(len, videos)), args.size, span, args.seed)
        for i, (v, start) in enumerate(progress_bar(clips, 'writing', unit='clip')):
            subject, filename = names[v].split('-', 1)  # S9-Walking.54138969
            write_npz(tmp / f'test_{i}.npz', image=videos[v].clip(start, span),
                      filename=np.array(f'{filename}.mp4'), subject=np.array(int(subject[1:])),
                      frame=np.array(start))
    print(f'{folder}: {args.size:,} clips of {span} frames')


if __name__ == '__main__':
    run_script(main)
