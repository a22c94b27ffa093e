"""Evaluate a trained SRVP model: `python test.py --xp_dir RUN --data_dir DATA`; see --help.

Several processes share the videos: `torchrun --nproc_per_node=2 test.py … --device 0 1`.
"""

import os
from pathlib import Path

from args import (
    METRICS,
    add_i3d_options,
    add_model_options,
    fill_from_config,
    load_config,
)
from files import UserError, run_script
from parsing import (
    Parser,
    add_device_option,
    add_local_rank_option,
    check_local_rank,
    euler_steps,
    flag,
    frames,
    nonnegative_int,
    positive_int,
    seed,
)


def test_parser():
    """Parser of `test.py`."""
    parser = Parser('Evaluate a trained model on the test set that its configuration names.')
    add_run_options(parser.add_argument_group('Model and data'))
    add_sampling_options(parser.add_argument_group('Sampling'))
    add_score_options(parser.add_argument_group('Scores'))
    add_output_options(parser.add_argument_group('Output'))
    return parser


def add_run_options(g):
    add_model_options(g)
    g.add_argument('--data_dir', required=True, help='folder of the dataset')
    g.add_argument('--baseline', choices=['last_frame', 'untrained'],
                   help='instead of the model, evaluate the repetition of the last conditioning '
                        'frame, or the model before training')
    add_device_option(g, several=True)
    add_local_rank_option(g)


def add_sampling_options(g):
    g.add_argument('--n_samples', type=positive_int, default=100,
                   help='predictions per video, of which the best counts')
    g.add_argument('--n_videos', type=positive_int,
                   help='evaluate only the first videos of the test set')
    g.add_argument('--nt_cond', type=frames, help='conditioning frames; default: as trained')
    g.add_argument('--nt_gen', type=frames,
                   help='number of frames, conditioning frames included; '
                        'default: as trained (seq_len_test)')
    g.add_argument('--n_euler_steps', type=euler_steps,
                   help='Euler steps per predicted frame; default: as trained')
    g.add_argument('--batch_size', type=positive_int, default=16,
                   help='videos at a time; does not change the scores')
    g.add_argument('--chunk', type=positive_int,
                   help='frames decoded at a time, at least one per video of a batch; default: '
                        'chosen from the free memory, and halved when out of memory')
    flag(g, '--torch_amp', help='networks in bfloat16; the metrics stay in float32')
    g.add_argument('--test_seed', '--seed', type=seed, default=1,
                   help='seed of all samples, and of the weights of --baseline untrained')


def add_score_options(g):
    g.add_argument('--metrics', nargs='+', choices=METRICS, default=METRICS,
                   help='scores to compute; pictures show the best samples by the first one')
    g.add_argument('--lpips_dir',
                   help="folder with torchvision's AlexNet, all of it or its features only; "
                        "default: torchvision's cache, or a download")
    g.add_argument('--fvd', action='store_true',
                   help='also compute the Fréchet video distance, of the first random sample')
    g.add_argument('--fvd_samples', type=positive_int, default=1,
                   help='report the mean distance over this many random samples, and its 95%% '
                        'interval; published ones are over 5')
    add_i3d_options(g)


def add_output_options(g):
    g.add_argument('--out_dir',
                   help='folder of the results; default: --xp_dir, or its subfolder '
                        'baseline_<name> with --baseline. Earlier results there are replaced at '
                        'the end if their protocol is the same; otherwise the call stops before '
                        'any work. An interrupted evaluation continues there')
    g.add_argument('--overwrite', action='store_true',
                   help='replace earlier results in --out_dir whatever their protocol, and '
                        'discard an interrupted evaluation of another one')
    g.add_argument('--n_pictures', type=nonnegative_int, default=5,
                   help='videos drawn as a strip (PNG) and an animation (GIF)')
    flag(g, '--report', default=None,
         help='make a page of the results, report/index.html, as report.py does; default: unless '
              '--n_pictures is 0')


def resolve(argv=None):
    """Checked options, completed from the configuration of the model, and this configuration."""
    args = test_parser().parse_args(argv)
    check_local_rank(args)
    config = load_config(args.xp_dir)
    fill_from_config(args, config)
    if args.baseline == 'last_frame':
        args.n_samples = 1  # there is only one future
        if args.torch_amp:
            raise UserError('--torch_amp: --baseline last_frame has no network; leave it out')
    if not args.fvd and (args.i3d_path or args.i3d_other or args.fvd_samples != 1
                         or args.fvd_backend != 'torch'):
        raise UserError('--i3d_path, --i3d_other, --fvd_samples and --fvd_backend need --fvd')
    if args.fvd_samples > args.n_samples:
        raise UserError(f'--fvd_samples {args.fvd_samples} is more than --n_samples '
                        f'{args.n_samples}; use at most that many')
    if args.report is None:
        args.report = args.n_pictures > 0
    folder = f'baseline_{args.baseline}' if args.baseline else ''
    args.out_dir = Path(args.out_dir or Path(args.xp_dir) / folder)
    return args, config


def main(argv=None):
    # --help and misspelt options are answered before PyTorch is imported. Processes of a launcher
    # parse together instead, so that an error is printed once.
    if 'LOCAL_RANK' not in os.environ:
        test_parser().parse_args(argv)
    from evaluation.run import run
    return run(lambda: resolve(argv))


if __name__ == '__main__':
    run_script(main)
