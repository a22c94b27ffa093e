"""Convert KTH: `python preprocessing/kth/convert.py --data_dir DIR`, after `download.sh`."""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from files import positive_int, run_script

import imageio_ffmpeg
import numpy as np

from data.kth import CLASSES
from preprocessing.common import Unreadable, dataset_parser, find_files, open_video, run_jobs
from preprocessing.folder.frames import find_pictures


def read(source, size, notes, rate=25, options=()):
    """Frames, resized by ffmpeg as published: uint8 (size, size), the first channel of RGB."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), '-nostdin', '-v', 'error', '-threads', '1',
               '-i', f'file:{source}', '-r', str(rate), '-s', f'{size}x{size}', *options,
               '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-']
    done = subprocess.run(command, capture_output=True)
    errors = done.stderr.decode(errors='replace').splitlines()
    if done.returncode:
        raise Unreadable(errors[0] if errors else 'ffmpeg was stopped')
    notes += errors
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, size, size, 3)[..., 0]


def read_any(path, size, n_frames, notes):
    """The first frames of any video, or all of a folder, whose pictures ffmpeg resizes too."""
    if not path.is_dir():
        with open_video(path):  # raises an error if it holds no video itself
            pass
        # If the sound begins before, ffmpeg would repeat the first frame until then
        yield from read(path, size, notes, options=('-vf', 'setpts=PTS-STARTPTS', '-frames:v',
                                                    str(n_frames)))
        return
    for picture in find_pictures(path):
        try:
            yield from read(picture, size, notes, options=('-frames:v', '1'))
        except Unreadable as error:
            raise Unreadable(f'{picture.name}: {error}') from None


def get_parser():
    parser = dataset_parser('Convert the videos DIR/raw/<class>/*.avi to '
                            'DIR/processed_<image_size>/<class>/.', '--image_size')
    parser.add_argument('--frame_rate', type=positive_int, default=25, help='frames per second')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = Path(args.data_dir)
    advice = f'download them with: bash preprocessing/kth/download.sh {folder}'
    sources = {}
    for name in CLASSES:
        target = folder / f'processed_{args.image_size}' / name
        for source in find_files(folder / 'raw' / name, '*.avi', advice):
            sources[target / f'{source.stem.removesuffix("_uncomp")}.npy'] = source
    return run_jobs(sources, lambda source, notes: read(source, args.image_size, notes,
                                                        args.frame_rate), args.overwrite)


if __name__ == '__main__':
    run_script(main)
