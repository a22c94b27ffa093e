"""Evaluate a trained SRVP model: `python test.py --xp_dir RUN --data_dir DATA`; see --help.

Several processes share the videos: `torchrun --nproc_per_node=2 test.py … --device 0 1`.
"""

from pathlib import Path

from files import (Parser, UserError, count, nonnegative_int, positive_int, progress_bar,
                   remove, run_script, sha256)

import numpy as np
import torch

from args import (FLAG, add_dataset_options, add_device_option, add_model_options,
                  fill_from_config, load_config)
from data.stream import chunks
from distributed import StopSignal, join
from evaluation.futures import Chunk, Futures, draw_noise, quantise, score_futures
from evaluation.results import (FinishedBatches, check_earlier, draw_pictures, write_results,
                                write_samples)
from evaluation.scoring import (add_score_options, get_protocol, load_test_set, note_differences,
                                score_lines, summarise, summary)
from metrics import METRICS, build_metrics
from model import build_model
from utils import describe, half_dtype, load_model, release_memory, to_video

N_RANDOM = 5  # futures saved as random_1.npz, …


def get_parser():
    parser = Parser('Evaluate a trained model on the test set that its configuration names.')
    g = parser.add_argument_group('Model and data')
    add_model_options(g)
    g.add_argument('--data_dir', required=True, help='folder of the dataset')
    add_dataset_options(g)
    g.add_argument('--baseline', choices=['last_frame', 'untrained'],
                   help='instead of the model, evaluate the repetition of the last conditioning '
                        'frame, or the model before training')
    add_device_option(g, several=True)
    g = parser.add_argument_group('Sampling')
    g.add_argument('--n_samples', type=positive_int, default=100,
                   help='predictions per video, of which the best counts')
    g.add_argument('--n_euler_steps', type=positive_int,
                   help='Euler steps per predicted frame; default: as trained')
    g.add_argument('--chunk', type=positive_int,
                   help='frames decoded at a time, at least one per video of a batch; default: '
                        'chosen from the free memory, and halved when out of memory')
    g.add_argument('--torch_amp', action=FLAG, default=False,
                   help='networks in bfloat16; the metrics stay in float32')
    g.add_argument('--test_seed', '--seed', type=nonnegative_int, default=1,
                   help='seed of all samples, and of the weights of --baseline untrained')
    g = parser.add_argument_group('Scores')
    add_score_options(g)
    g.add_argument('--fvd_samples', type=positive_int, default=1,
                   help='report the mean distance over this many random samples, and its 95%% '
                        'interval; published ones are over 5')
    g = parser.add_argument_group('Output')
    g.add_argument('--out_dir',
                   help='folder of the results; default: --xp_dir, or its subfolder '
                        'baseline_<name> with --baseline. An interrupted evaluation continues '
                        'there; results of another protocol need --overwrite')
    g.add_argument('--n_pictures', type=nonnegative_int, default=5,
                   help='videos drawn as a strip (PNG) and an animation (GIF)')
    g.add_argument('--report', action=FLAG, default=True,
                   help='make a page of the results, report/index.html, as report.py does')
    return parser


def resolve(argv=None):
    """Options, completed from the configuration of the model, and that configuration."""
    args = get_parser().parse_args(argv)
    config = load_config(args.xp_dir)
    fill_from_config(args, config)
    if args.baseline == 'last_frame':
        args.n_samples, args.torch_amp = 1, False  # there is one future, and no network
    if args.fvd_samples > args.n_samples:
        raise UserError(f'--fvd_samples {args.fvd_samples} is more than --n_samples '
                        f'{args.n_samples}; use at most that many')
    folder = f'baseline_{args.baseline}' if args.baseline else ''
    args.out_dir = Path(args.out_dir or Path(args.xp_dir) / folder)
    return args, config


def main(argv=None):
    with join() as world:
        args, config = world.share(resolve(argv) if world.main else None)
        return evaluate(args, config, world)


def evaluate(args, config, world):
    """Evaluate a model in this process, one of those of a job; returns the exit code."""
    # What is evaluated
    device = world.device(args.device)
    dtype = half_dtype('bfloat16', device) if args.torch_amp else torch.float32
    with world.local_main_first():  # which may download weights
        metrics = build_metrics(args.metrics, args.lpips_dir, device)
        embed = None
        if args.fvd:
            from metrics import fvd  # here and below: only with --fvd
            embed = fvd.build_embedding(args.i3d_path, device)
    testset, n_videos = load_test_set(args, config)
    nt_pred, n_random = args.nt_gen - args.nt_cond, max(N_RANDOM, args.fvd_samples)
    model, weights = None, None
    if args.baseline == 'untrained':
        torch.manual_seed(args.test_seed)
        model = build_model(config).to(device).eval().requires_grad_(False)
    elif args.baseline is None:
        weights = Path(args.xp_dir) / args.model_name
        model = load_model(config, weights, device)
    protocol = get_protocol(args, config, testset, n_videos, args.n_samples) | {
        'n_euler_steps': args.n_euler_steps, 'seed': args.test_seed, 'baseline': args.baseline,
        'checkpoint_sha256': weights and sha256(weights),
        'precision': 'bfloat16' if args.torch_amp else 'float32'}
    if embed is not None:
        fvd.check_sizes(n_videos, args.nt_gen, 'the test set (--n_videos, --nt_gen)')
        protocol |= {'fvd_samples': args.fvd_samples, 'fvd_weights_sha256': embed.sha256,
                     'fvd_note': embed.note}
    batches = chunks(range(n_videos), args.batch_size)
    finished = FinishedBatches(args.out_dir, {**protocol, 'batch_size': args.batch_size})
    names = [f'{name}_{end}' for name in args.metrics for end in ('best', 'worst')]
    names += [f'random_{k + 1}' for k in range(min(N_RANDOM, args.n_samples))]
    lengths = dict.fromkeys(names, nt_pred) | {'cond_rec': args.nt_cond}  # of what is saved
    if world.main:
        args.out_dir.mkdir(parents=True, exist_ok=True)
        check_earlier(args.out_dir, protocol, args.overwrite)
        finished.create({name: (n_videos, nt, config.nx, config.nx, config.nc)
                         for name, nt in lengths.items()})
        announce(args, protocol, device, world)
    # Process 0 lists what is left for all: the others may already write batches
    done = world.share(set(finished.done()) if world.main else None)
    todo = [k for k in range(len(batches)) if k not in done][world.rank::world.size]

    # Scores, batch by batch
    chunk = None if model is None else Chunk(model, args.chunk)
    total = sum(len(batches[k]) for k in todo) * args.n_samples
    with StopSignal(world, 'keeping the finished batches') as stop, \
            progress_bar(total=total, unit='sample', disable=not world.main) as bar:
        def on_sample(n):
            bar.update(n)
            if stop.received is not None:
                raise KeyboardInterrupt  # leaves score_futures

        for k in todo:
            truth = testset.videos(batches[k])  # uint8 (nt_gen, B, H, W, C)
            x = to_video(torch.from_numpy(truth), device)
            given, target = x[:args.nt_cond], x[args.nt_cond:]
            if model is None:  # one future, which repeats the last frame
                futures = [given[-1:].expand(nt_pred, *given.shape[1:])]
            else:
                noise = draw_noise(model, args.test_seed, 'test', batches[k], args.n_samples,
                                   args.nt_gen)
                futures = Futures(model, given, nt_pred, noise, args.n_euler_steps, chunk=chunk,
                                  dtype=dtype)
            try:
                scores, frames = score_futures(futures, target, metrics, n_random,
                                               on_sample=on_sample)
            except KeyboardInterrupt:
                break
            frames['cond_rec'] = quantise(given if model is None else futures.given(0))
            scores = {name: score.cpu().numpy() for name, score in scores.items()}
            frames = {name: video.permute(0, 1, 3, 4, 2).cpu().numpy()
                      for name, video in frames.items()}
            if any(np.isnan(scores[f'{name}_t']).any() for name in args.metrics):
                raise UserError(f'{args.model_name} predicts NaN: its activations grow beyond '
                                'float32; use another checkpoint')
            if embed is not None:
                samples = [frames[f'random_{i + 1}'] for i in range(args.fvd_samples)]
                scores |= fvd.embed_samples(embed, truth, samples)
            finished.write(k, batches[k], scores, {name: frames[name] for name in lengths})
            release_memory()
    if stop.received is not None:  # in all processes: launchers and terminals signal each of them
        if world.main:
            if scores := finished.scores():
                n_done = len(next(iter(scores.values())))
                print(f'scores so far, of {n_done:,} of {count(n_videos, "video")}:')
                print('\n'.join(score_lines(summary(scores), protocol)))
            print('repeat the command to continue', flush=True)
        return 128 + stop.received
    world.wait()
    if not world.main:
        return 0

    # Results
    scores = finished.scores()
    table = summary(scores)
    if embed is not None:
        table['fvd'] = summarise(fvd.pop_distances(scores))
    print('\n'.join(score_lines(table, protocol)), flush=True)
    write_samples(args.out_dir, finished, lengths)
    rows = {'best': f'{args.metrics[0]}_best', 'worst': f'{args.metrics[0]}_worst'}
    rows |= {f'random {i}': f'random_{i}' for i in (1, 2, 3) if f'random_{i}' in names}
    n_pictures = min(args.n_pictures, n_videos)
    draw_pictures(args.out_dir / 'pictures', testset, finished, rows, n_pictures, args.nt_cond)
    write_results(args.out_dir, table, protocol, scores, args.nt_cond,
                  data_dir=str(args.data_dir), checkpoint=args.model_name, channels=config.nc)
    remove(finished.folder)
    print(f'results in {args.out_dir}: results.json, results.npz, curves.png, pictures of '
          f'{count(n_pictures, "video")}, frames of all videos ({names[0]}.npz …)')
    if args.report and n_pictures:
        from pictures import page
        run = page.read_run(args.out_dir, args.baseline or Path(args.xp_dir).resolve().name)
        index = page.write_evaluation([run], args.out_dir / 'report', overwrite=args.overwrite,
                                      testset=testset)
        print(f'page: {index}')
    return 0


def announce(args, protocol, device, world):
    """Print what is about to be computed."""
    what = f'evaluating {args.baseline or args.model_name} on {describe(device)}'
    if world.size > 1:
        what += f' and {world.size - 1} more'
    print(f'{what}: {count(protocol["clips"], "video")} of {protocol["dataset"]}, '
          f'{protocol["size"]} x {protocol["size"]}, '
          f'{count(args.nt_cond, "conditioning frame")}, '
          f'{count(protocol["predicted_frames"], "predicted frame")}, '
          f'{count(args.n_samples, "sample")}, '
          f'{count(args.n_euler_steps, "Euler step")} per frame, seed {args.test_seed}, '
          f'{protocol["precision"]}\ntest set: {protocol["test_set"]}', flush=True)
    for name in args.metrics:
        if version := protocol.get(f'{name}_version'):
            print(f'{METRICS[name].label}: version {version}', flush=True)
    note_differences(protocol)


if __name__ == '__main__':
    run_script(main)
