"""Convert BAIR robot pushing: `python preprocessing/bair/convert.py --data_dir DIR`, after `download.sh`.

Reads the TFRecords by TensorFlow, in processes without PyTorch.
"""

import functools
import importlib.util
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # called by its path, as published

from parsing import Parser
from files import UserError, cores, replacing_folder, run_script
from preprocessing.convert import Job, Unreadable, follow_parent, run_jobs, write_array, write_pngs

N_FRAMES, SIZE = 30, 64


def read(source):
    """Videos of a record file: list of uint8 (30, 64, 64, 3)."""
    import tensorflow as tf
    videos = []
    try:
        for record in tf.data.TFRecordDataset(str(source)):
            feature = tf.train.Example.FromString(record.numpy()).features.feature
            frames = [feature[f'{i}/image_aux1/encoded'].bytes_list.value[0] for i in range(N_FRAMES)]
            videos.append(np.frombuffer(b''.join(frames), np.uint8).reshape(N_FRAMES, SIZE, SIZE, 3))
    except (tf.errors.OpError, IndexError, ValueError) as error:
        raise Unreadable(f'it is no record file of BAIR or is damaged: {str(error).splitlines()[0]}') from None
    if not videos:
        raise Unreadable('it has no video')
    return videos, ''


def n_frames(videos):
    return sum(map(len, videos))


def write(target, videos, published):
    """Write the videos of a record file as a folder, 001.npy … or folders 001 … of PNG frames 000.png …"""
    with replacing_folder(target) as tmp:
        for k, video in enumerate(videos, 1):
            if published:
                write_pngs(tmp / f'{k:03d}', video, lambda i: f'{i:03d}.png')
            else:
                write_array(tmp / f'{k:03d}.npy', video)


def get_parser():
    parser = Parser('Convert DIR/softmotion30_44k/{train,test}/*.tfrecords to DIR/processed_data/{train,test}/.')
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    parser.add_argument('--layout', choices=['array', 'published'], default='array',
                        help='one .npy a video, or, as published, a folder of PNG frames a video')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = Path(args.data_dir)
    jobs = []
    for fold in ('train', 'test'):
        sources = sorted((folder / 'softmotion30_44k' / fold).glob('*.tfrecords'))
        if not sources:
            raise UserError(f'{folder}/softmotion30_44k/{fold} has no .tfrecords file; get them with: '
                            f'bash preprocessing/bair/download.sh {folder}')
        writer = functools.partial(write, published=args.layout == 'published')
        jobs += [Job(s, folder / 'processed_data' / fold / s.stem, read, writer, n_frames) for s in sources]
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ['CUDA_VISIBLE_DEVICES'] = ''  # TensorFlow would take a whole GPU to read files
    if importlib.util.find_spec('tensorflow') is None:
        raise UserError('reading TFRecords needs TensorFlow; pip install tensorflow')
    executor = ProcessPoolExecutor(cores(), multiprocessing.get_context('spawn'), follow_parent)
    return run_jobs(jobs, executor, {'layout': args.layout}, 'record file')


if __name__ == '__main__':
    run_script(main)
