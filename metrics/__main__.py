"""Score predictions of any method as `test.py` scores its own: see --help."""

import sys
from pathlib import Path

if __package__ in (None, ''):  # run by path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from files import Parser, UserError, positive_int, progress_bar, run_script

import numpy as np
import torch

from args import PUBLISHED, add_device_option, fill_from_config, load_config, preset_config
from data.stream import chunks
from data.video import VideoFile
from evaluation.futures import score_futures
from evaluation.results import check_earlier, write_results
from evaluation.scoring import (add_score_options, get_protocol, load_test_set, note_differences,
                                score_lines, summarise, summary)
from metrics import build_metrics, fvd
from utils import describe, get_device, to_video


def get_parser():
    parser = Parser(
        'Score predictions of any method on a published test set, or on that of a run, as test.py '
        'scores its own. Each FILE holds one prediction of every video, in the order of the test '
        'set: uint8 (N, T, H, W, C), the T frames after the conditioning frames, as an .npy file, '
        'or as an .npz file of one array or one named samples, such as random_1.npz of test.py. '
        'Of several files, the best counts for each video and metric.', prog='python -m metrics')
    parser.add_argument('files', nargs='+', metavar='FILE',
                        help='predictions of all videos; put -- first if --metrics comes last')
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('--preset', choices=list(PUBLISHED),
                       help='published configuration: its test set and lengths')
    which.add_argument('--xp_dir', metavar='RUN',
                       help='folder of a run: those of its config.json; no model is needed')
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    parser.add_argument('--nx', type=positive_int,
                        help='width and height of frames; default: as in --xp_dir, or 64')
    add_score_options(parser, lengths='as published, or as trained')
    parser.add_argument('--out_dir', help='folder for results.json, results.npz and curves.png')
    add_device_option(parser)
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    config = preset_config(args.preset) if args.preset else load_config(args.xp_dir)
    config.nx = args.nx or config.nx
    if args.preset:
        args.nt_gen = args.nt_gen or PUBLISHED[args.preset]['nt_gen']
        config.nt_inf = 1  # of other methods, nothing is known
    fill_from_config(args, config)
    device = get_device(args.device)
    testset, n_videos = load_test_set(args, config)
    expected = args.nt_gen - args.nt_cond, config.nx, config.nx, config.nc
    files = list(map(VideoFile, args.files))
    for file in files:
        if file.shape[1:] != expected or file.shape[0] not in (n_videos, len(testset)):
            raise UserError(f'{file.path} has videos (N, T, H, W, C) of {file.shape}, expected '
                            f'{(n_videos, *expected)}: --nt_gen {args.nt_gen} counts '
                            f'{args.nt_cond} conditioning frames (--nt_cond), which files do not '
                            'hold; give one prediction per video')
    metrics = build_metrics(args.metrics, args.lpips_dir, device)
    protocol = get_protocol(args, config, testset, n_videos, len(args.files))
    embed = None
    if args.fvd:
        fvd.check_sizes(n_videos, args.nt_gen, 'the test set (--n_videos, --nt_gen)')
        embed = fvd.build_embedding(args.i3d_path, device)
        protocol |= {'fvd_samples': len(args.files), 'fvd_weights_sha256': embed.sha256,
                     'fvd_note': embed.note}
    if args.out_dir:
        Path(args.out_dir).mkdir(parents=True, exist_ok=True)
        check_earlier(Path(args.out_dir), protocol, args.overwrite)
    print(f'scoring {len(args.files)} predictions of {n_videos:,} videos on {describe(device)}; '
          f'test set: {testset.path}', flush=True)
    note_differences(protocol)

    found = []
    with progress_bar(total=len(files) * n_videos, unit='video') as bar:
        for indices in chunks(range(n_videos), args.batch_size):
            truth = testset.videos(indices)  # uint8 (nt_gen, B, H, W, C)
            samples = [file.read(len(indices)).swapaxes(0, 1) for file in files]
            target = to_video(torch.from_numpy(truth[args.nt_cond:]), device)
            futures = (to_video(torch.from_numpy(sample.copy()), device) for sample in samples)
            scores, _ = score_futures(futures, target, metrics, n_random=0, on_sample=bar.update)
            scores = {name: score.cpu().numpy() for name, score in scores.items()}
            if embed is not None:
                scores |= fvd.embed_samples(embed, truth, samples)
            found.append(scores)
    scores = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    table = summary(scores)
    if embed is not None:
        table['fvd'] = summarise(fvd.pop_distances(scores))
    print('\n'.join(score_lines(table, protocol)))
    if args.out_dir:
        write_results(Path(args.out_dir), table, protocol, scores, args.nt_cond,
                      data_dir=args.data_dir, predictions=args.files, channels=config.nc)


if __name__ == '__main__':
    run_script(main)
