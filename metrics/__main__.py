"""Score predictions of any method on the published test sets.

`python -m metrics --preset kth --data_dir DIR A.npz B.npz`
"""

import os
from pathlib import Path

import numpy as np
import torch

from args import METRICS, NT_GEN, PRESETS, preset_config
from files import UserError, progress_bar, run_script, write_json
from metrics.scoring import FixedFutures, Scorer, concatenate
from metrics.summary import finite, score_lines, summary
from metrics.videos import read_videos
from parsing import Parser, add_device_option, positive_int
from utils import describe, get_device, to_video


def get_parser():
    parser = Parser(
        'Score predictions of any method on a published test set, as test.py scores its own. Each '
        'FILE holds one prediction of every video, in the order of the test set: uint8 '
        '(N, T, H, W, C), the T frames after the conditioning frames, as an .npy file, or as an '
        '.npz file of one array or one named samples, such as random_1.npz of test.py. Of several '
        'files, the best counts for each video and metric. '
        'Example: python -m metrics --preset kth --data_dir DATA A.npz B.npz',
        prog='python -m metrics')
    parser.add_argument('files', nargs='+', metavar='FILE',
                        help='predictions of all videos; put -- first if --metrics comes last')
    parser.add_argument('--preset', choices=PRESETS, required=True,
                        help='published configuration: its test set and conditioning frames')
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    published = ', '.join(f'{nt} ({preset})' for preset, nt in NT_GEN.items())
    parser.add_argument('--nt_gen', type=positive_int,
                        help='number of frames, conditioning frames included; '
                             f'default: as published, {published}')
    parser.add_argument('--metrics', nargs='+', choices=METRICS, default=METRICS,
                        help='scores to compute')
    parser.add_argument('--lpips_dir', help="folder with torchvision's AlexNet, as for test.py")
    parser.add_argument('--n_videos', type=positive_int,
                        help='score only the first videos of the test set; '
                             'files may hold just these')
    parser.add_argument('--batch_size', type=positive_int, default=16,
                        help='videos at a time; does not change the scores')
    parser.add_argument('--out', metavar='FILE.json', help='new file for scores and protocol')
    add_device_option(parser)
    return parser


def resolve(argv=None):
    """Checked options, and the configuration of the preset."""
    args = get_parser().parse_args(argv)
    config = preset_config(args.preset)
    args.nt_cond, args.nt_gen = config.nt_cond, args.nt_gen or NT_GEN[args.preset]
    if args.nt_gen <= args.nt_cond:
        raise UserError(f'--nt_gen {args.nt_gen} leaves no frame to predict after the '
                        f'{args.nt_cond} conditioning frames of {args.preset}; '
                        'use a larger --nt_gen')
    if args.out is not None:
        check_new_file(args.out)
    return args, config


def check_new_file(path):
    """Raise a UserError unless `path`, given by --out, is a JSON file that can be created."""
    if not path.endswith('.json'):
        raise UserError(f'--out {path} is not a .json file; name a new .json file')
    if os.path.lexists(path):
        raise UserError(f'--out {path} already exists; name a new .json file')
    folder = Path(path).parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f'--out {path}: {folder} is not a writable folder; use another one')


def check_shape(path, shape, scorer):
    """Raise a UserError unless a file has predictions of all videos, or of those to score."""
    args, config, size = scorer.args, scorer.config, len(scorer.testset)
    expected = args.nt_gen - args.nt_cond, config.nx, config.nx, config.nc
    if shape[1:] != expected:
        raise UserError(f'{path} has videos (T, H, W, C) of {shape[1:]}, expected {expected}: '
                        f'{args.preset} has {args.nt_cond} conditioning frames of --nt_gen '
                        f'{args.nt_gen}; give predicted frames only, or the right --nt_gen')
    if shape[0] not in (scorer.n_videos, size):
        hint = f' (--n_videos: {scorer.n_videos})' if scorer.n_videos < size else ''
        raise UserError(f'{path} has {shape[0]} videos, but the test set has {size}{hint}; give '
                        'one prediction per video, or --n_videos if the file has the first ones')


def score(path, scorer, on_sample):
    """Scores (N,) by metric of the predictions in a file."""
    predictions = read_videos(path)

    def predict(indices, given):
        batch = np.array(predictions[indices.start:indices.stop]).swapaxes(0, 1)
        return FixedFutures(given, [to_video(torch.from_numpy(batch), scorer.device)])
    batches = scorer.batches(range(scorer.n_videos), predict, on_sample=on_sample)
    return concatenate([scores for _, _, scores, _ in batches])


def main(argv=None):
    args, config = resolve(argv)
    scorer = Scorer(args, config, get_device(args.device))
    for path in args.files:  # all of them, before the work starts
        check_shape(path, read_videos(path).shape, scorer)
    what = args.files[0] if len(args.files) == 1 else f'the best of {len(args.files)} files'
    scorer.announce(f'scoring {what} on {describe(scorer.device)}')

    with progress_bar(total=len(args.files) * scorer.n_videos, unit='video') as bar:
        every = [score(path, scorer, bar.update) for path in args.files]  # one file in memory
    best = {name: (np.max if metric.higher_is_better else np.min)([s[name] for s in every], 0)
            for name, metric in scorer.metrics.items()}
    table = summary(best)
    print('\n'.join(score_lines(table)))
    if args.out is not None:
        write_json(args.out, {'scores': finite(table), 'protocol': scorer.protocol(len(every)),
                              'files': args.files})
        print(f'results in {args.out}')


if __name__ == '__main__':
    run_script(main)
