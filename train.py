"""Train SRVP: `python train.py --preset smmnist --data_dir DATA --save_path RUN --device 0`.

On several GPUs: `torchrun --nproc_per_node=2 train.py … --device 0 1`.
"""

import os

from args import parse_train
from files import run_script


def main(argv=None):
    """Train; returns the exit code."""
    # --help and wrong options are answered before PyTorch is imported. Processes of a launcher
    # parse together instead, so that an error is printed once.
    if 'LOCAL_RANK' not in os.environ:
        parse_train(argv)
    from training.job import run
    return run(argv)


if __name__ == '__main__':
    run_script(main)
