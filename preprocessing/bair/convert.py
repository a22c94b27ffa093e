"""Convert BAIR robot pushing: `python preprocessing/bair/convert.py --data_dir DIR`.

Run it after `download.sh`. TensorFlow reads the TFRecords, in processes without PyTorch.
"""

import functools
import importlib.util
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from data.workers import follow_parent
from files import UserError, cores, replacing_folder, run_script
from preprocessing.convert import (
    Job,
    add_check_option,
    add_layout_option,
    check_converted,
    dataset_parser,
    run_jobs,
    write_array,
    write_pngs,
)
from preprocessing.decoding import Unreadable

N_FRAMES, SIZE = 30, 64


def read(source):
    """Videos of a record file: list of uint8 (30, 64, 64, 3)."""
    import tensorflow as tf
    videos = []
    try:
        for record in tf.data.TFRecordDataset(str(source)):
            feature = tf.train.Example.FromString(record.numpy()).features.feature
            frames = [feature[f'{i}/image_aux1/encoded'].bytes_list.value[0]
                      for i in range(N_FRAMES)]
            video = np.frombuffer(b''.join(frames), np.uint8)
            videos.append(video.reshape(N_FRAMES, SIZE, SIZE, 3))
    except (tf.errors.OpError, IndexError, ValueError) as error:
        raise Unreadable('it is not a record file of BAIR or is damaged: '
                         f'{str(error).splitlines()[0]}') from None
    if not videos:
        raise Unreadable('it has no videos')
    return videos, ''


def write(target, videos, published):
    """Write the videos of a file as a folder: 001.npy …, or folders 001 … of PNG frames."""
    with replacing_folder(target) as tmp:
        for k, video in enumerate(videos, 1):
            if published:
                write_pngs(tmp / f'{k:03d}', video, lambda i: f'{i:03d}.png')
            else:
                write_array(tmp / f'{k:03d}.npy', video)


def count(videos):
    return sum(map(len, videos))


def init_worker():
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ['CUDA_VISIBLE_DEVICES'] = ''  # TensorFlow would reserve a whole GPU
    follow_parent()


def get_parser():
    parser = dataset_parser('Convert DIR/softmotion30_44k/{train,test}/*.tfrecords to '
                            'DIR/processed_data/{train,test}/.')
    add_layout_option(parser, 'a folder of PNG frames')
    add_check_option(parser)
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = Path(args.data_dir)
    if args.check:
        return check_converted(folder / 'processed_data')
    writer = functools.partial(write, published=args.layout == 'published')
    jobs = []
    for fold in ('train', 'test'):
        sources = sorted((folder / 'softmotion30_44k' / fold).glob('*.tfrecords'))
        if not sources:
            raise UserError(f'{folder}/softmotion30_44k/{fold} has no .tfrecords file; download '
                            f'them with: bash preprocessing/bair/download.sh {folder}')
        target = folder / 'processed_data' / fold
        jobs += [Job(source, target / source.stem, read, writer, count) for source in sources]
    if importlib.util.find_spec('tensorflow') is None:
        raise UserError('reading TFRecords needs TensorFlow; pip install tensorflow')
    context = multiprocessing.get_context('spawn')
    executor = ProcessPoolExecutor(cores(), context, init_worker)
    return run_jobs(jobs, executor, {'layout': args.layout}, 'record file')


if __name__ == '__main__':
    run_script(main)
