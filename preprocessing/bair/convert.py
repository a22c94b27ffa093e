"""Convert BAIR: `python preprocessing/bair/convert.py --data_dir DIR`, after `download.sh`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by path

from files import run_script

import numpy as np

from preprocessing.common import Unreadable, dataset_parser, find_files, run_jobs

N_FRAMES, SIZE = 30, 64


def read(folder, notes):
    """Videos of the record files in a folder, in order of their names: uint8 (30, 64, 64, 3)."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ['CUDA_VISIBLE_DEVICES'] = ''  # TensorFlow would reserve a whole GPU
    import tensorflow as tf
    for path in sorted(folder.glob('[!.]*.tfrecords'), key=lambda path: path.stem):
        try:
            for record in tf.data.TFRecordDataset(str(path)):
                feature = tf.train.Example.FromString(record.numpy()).features.feature
                frames = [feature[f'{i}/image_aux1/encoded'].bytes_list.value[0]
                          for i in range(N_FRAMES)]
                video = np.frombuffer(b''.join(frames), np.uint8)
                yield video.reshape(N_FRAMES, SIZE, SIZE, 3)
        except Exception as error:  # TensorFlow, protobuf and NumPy raise many kinds
            raise Unreadable(f'{path.name} is not a record file of BAIR, or is damaged: '
                             f'{str(error).splitlines()[0]}') from None


def get_parser():
    return dataset_parser('Convert DIR/softmotion30_44k/{train,test}/*.tfrecords to '
                          'DIR/processed_data/{train,test}.npy, uint8 (N, 30, 64, 64, 3).')


def main(argv=None):
    args = get_parser().parse_args(argv)
    folder = Path(args.data_dir)
    sources = {}
    for fold in ('train', 'test'):
        source = folder / 'softmotion30_44k' / fold
        find_files(source, '*.tfrecords',
                   f'download them with: bash preprocessing/bair/download.sh {folder}')
        sources[folder / 'processed_data' / f'{fold}.npy'] = source
    return run_jobs(sources, read, args.overwrite, 'fold', 'video')


if __name__ == '__main__':
    run_script(main)
