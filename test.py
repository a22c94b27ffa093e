"""Evaluate a trained SRVP model: `python test.py --xp_dir RUN --data_dir DATA`; see --help and the README.

Several processes share the videos: `torchrun --nproc_per_node=2 test.py … --device 0 1`.
"""

import contextlib
import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

import metrics.fvd
import metrics.lpips
from pictures import frames as pictures
from args import check_local_rank, fill_from_config, load_config, note_lengths, METRICS, add_i3d_options, add_local_rank_option
from data import load_test
from data.stream import chunks
from parsing import Parser, add_device_option, euler_steps, frames, nonnegative_int, positive_int, seed
from distributed import PER_PROCESS_OPTIONS, join
from files import UserError, make_folder, progress_bar, read_json, replacing_results, run_script, sha256, write_json, write_npz
from metrics import build_metrics
from metrics.summary import finite, score_lines, summary
from model import build_model
from sampling import Chunk, Futures, LastFrame, draw_noise, evaluate_batch
from checkpoint import load_model
from utils import describe, to_video

N_RANDOM = 5  # samples saved as random_1.npz …
RESULTS = ['results.json', 'results.npz', *(f'{name}_{end}.npz' for name in metrics.METRICS for end in ('best', 'worst')),
           f'random_[1-{N_RANDOM}].npz', 'cond_rec.npz', 'pictures/video_[0-9]*.png', 'pictures/video_[0-9]*.gif']


def test_parser():
    """Parser of `test.py`."""
    parser = Parser('Evaluate a trained model on the test set that its configuration names.')
    parser.add_argument('--xp_dir', required=True, help='folder of the trained model: config.json and the weights')
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    parser.add_argument('--model_name', default='model.pt', help='weights, in --xp_dir')
    parser.add_argument('--out_dir', help='where results go; --xp_dir if absent, or its folder baseline_<name> for a --baseline. Earlier results there '
                                          'are replaced, at the end, if they are of the same protocol; else the call stops before any work')
    parser.add_argument('--overwrite', action='store_true', help='replace the earlier results in --out_dir, whatever their protocol')
    parser.add_argument('--metrics', nargs='+', choices=METRICS, default=METRICS, help='scores to compute; the first one chooses what pictures show')
    parser.add_argument('--lpips_dir', help="folder with torchvision's AlexNet, whole or its features only; torchvision's cache or "
                                            'download if absent')
    parser.add_argument('--fvd', action='store_true', help='also compute the Fréchet video distance, of the first random sample')
    parser.add_argument('--fvd_samples', type=positive_int, default=1, help='random samples of which the mean distance is reported')
    add_i3d_options(parser)
    parser.add_argument('--n_samples', type=positive_int, default=100, help='predictions a video, of which the best counts')
    parser.add_argument('--n_videos', type=positive_int, help='evaluate the first videos of the test set only')
    parser.add_argument('--nt_cond', type=frames, help='given frames; as trained if absent')
    parser.add_argument('--nt_gen', type=frames, help='frames, given ones included; as trained (seq_len_test) if absent')
    parser.add_argument('--n_euler_steps', type=euler_steps, help='Euler steps a predicted frame; as trained if absent')
    parser.add_argument('--batch_size', type=positive_int, default=16, help='videos at a time; does not change the scores')
    parser.add_argument('--chunk', type=positive_int, help='frames decoded at a time, at least one of each video of a batch; chosen from the free memory if '
                                                    'absent, and halved where it does not suffice')
    add_device_option(parser, several=True)
    add_local_rank_option(parser)
    parser.add_argument('--test_seed', '--seed', type=seed, default=1, help='of the noise of all samples; of the weights too, in --baseline untrained')
    parser.add_argument('--n_pictures', type=nonnegative_int, default=5, help='videos drawn as a strip (PNG) and an animation (GIF)')
    parser.add_argument('--baseline', choices=['last_frame', 'untrained'],
                        help='score, instead of the model, the repetition of the last given frame or the model before training')
    return parser


def resolve(argv=None):
    """Options of the call and configuration of the model, checked; what was left out comes from the configuration."""
    args = test_parser().parse_args(argv)
    check_local_rank(args)
    config = load_config(args.xp_dir)
    fill_from_config(args, config)
    if args.baseline == 'last_frame':
        args.n_samples = 1  # it has one future only
    if not args.fvd and (args.i3d_path or args.fvd_samples != 1 or args.fvd_backend != 'torch'):
        raise UserError('--i3d_path, --fvd_samples and --fvd_backend need --fvd')
    if args.fvd_samples > args.n_samples:
        raise UserError(f'--fvd_samples {args.fvd_samples} is more than the {args.n_samples} samples (--n_samples) that are drawn')
    args.out_dir = Path(args.out_dir or Path(args.xp_dir) / (f'baseline_{args.baseline}' if args.baseline else ''))
    return args, config


def get_model(args, config, device):
    """Model to evaluate, and the SHA-256 of its checkpoint (None for baselines)."""
    if args.baseline == 'last_frame':
        return None, None
    if args.baseline == 'untrained':
        torch.manual_seed(args.test_seed)
        return build_model(config).to(device).eval().requires_grad_(False), None
    path = Path(args.xp_dir) / args.model_name
    return load_model(config, path, device), sha256(path)


def evaluate(model, testset, scorers, fvd, args, device, part, bar):
    """Scores (N,) by metric and videos uint8 (N, T, H, W, C) by name, of the `part` (a range) of the test set; `fvd` is updated."""
    scores, videos = defaultdict(list), {}
    chunk = Chunk(model, args.chunk) if model else None
    for indices in chunks(part, args.batch_size):
        truth = testset.videos(indices)
        x = to_video(torch.from_numpy(truth), device)
        given, target = x[:args.nt_cond], x[args.nt_cond:]
        if args.baseline == 'last_frame':
            futures = LastFrame(given, len(target))
        else:
            noise = draw_noise(model, args.test_seed, 'test', indices, args.n_samples, args.nt_gen)
            futures = Futures(model, given, len(target), noise, args.n_euler_steps, chunk=chunk)
        batch_scores, frames = evaluate_batch(futures, target, scorers, max(N_RANDOM, args.fvd_samples), lambda: bar.update(len(indices)))
        frames = {name: video.permute(0, 1, 3, 4, 2).cpu().numpy() for name, video in frames.items()}  # (T, B, H, W, C)
        if fvd is not None:
            fvd.update(truth[:args.nt_cond], truth[args.nt_cond:], [frames[f'random_{k + 1}'] for k in range(args.fvd_samples)])
        for k in range(N_RANDOM, args.fvd_samples):
            del frames[f'random_{k + 1}']
        for name, score in batch_scores.items():
            scores[name].append(score.cpu().numpy())
        for name, video in frames.items():
            if name not in videos:
                videos[name] = np.empty((len(part), len(video), *video.shape[2:]), np.uint8)
            first = indices.start - part.start
            videos[name][first:first + len(indices)] = video.swapaxes(0, 1)
        if any(np.isnan(s[-1]).any() for s in scores.values()):
            raise UserError(f'{args.model_name} predicts frames that are not numbers; the weights are damaged, take another checkpoint')
        bar.set_postfix({k: f'{np.concatenate(s).mean():.4f}' for k, s in scores.items()})
    return {k: np.concatenate(v) for k, v in scores.items()}, videos


def draw_pictures(folder, testset, videos, metric, args):
    """Draw the first videos: truth, best, worst and random samples. Returns the files' paths."""
    folder.mkdir()
    names = {'best': f'{metric}_best', 'worst': f'{metric}_worst'}
    names |= {f'random {i}': f'random_{i}' for i in (1, 2, 3) if f'random_{i}' in videos}
    files = []
    for i in range(min(args.n_pictures, len(videos['cond_rec']))):
        truth = testset.videos([i])[:, 0]
        predicted = {name: videos[key][i] for name, key in names.items()}
        files += [folder / f'video_{i:04d}.png', folder / f'video_{i:04d}.gif']
        pictures.strip(files[-2], {'truth': truth, **predicted}, args.nt_cond)
        given = truth[:args.nt_cond]
        pictures.animation(files[-1], {'truth': truth, **{k: np.concatenate([given, v]) for k, v in predicted.items()}}, args.nt_cond)
    return files


def build_fvd(args, n_videos, device):
    """The Fréchet video distance, to be updated; None if it is not asked for."""
    if not args.fvd:
        return None
    metrics.fvd.check_sizes(n_videos, args.nt_gen, 'the test set, by --n_videos and --nt_gen,')
    return metrics.fvd.FVD(metrics.fvd.build_embedding(args.i3d_path, args.fvd_backend, device), args.fvd_samples)


def get_protocol(args, config, testset, n_videos, digest, fvd):
    """What the scores depend on."""
    protocol = {
        'dataset': config.dataset, 'test_set': testset.path.name, 'clips': n_videos, 'conditioning_frames': args.nt_cond,
        'predicted_frames': args.nt_gen - args.nt_cond, 'samples': args.n_samples, 'n_euler_steps': args.n_euler_steps,
        'seed': args.test_seed, 'lpips_version': metrics.lpips.VERSION if 'lpips' in args.metrics else None,
        'baseline': args.baseline, 'checkpoint': None if args.baseline else args.model_name, 'checkpoint_sha256': digest}
    if config.dataset == 'smmnist':
        protocol |= {k: getattr(config, k) for k in ('digits', 'ndigits', 'max_speed', 'deterministic')}
    if fvd is not None:
        protocol['fvd'] = {
            'frames': args.nt_gen, 'conditioning_frames_included': True, 'resolution': [config.nx, config.nx],
            'clips': n_videos, 'samples': args.fvd_samples, 'seed': args.test_seed, 'embedding': metrics.fvd.EMBEDDING,
            'backend': args.fvd_backend, 'weights_sha256': fvd.embed.sha256}
    return protocol


def check_earlier(args, protocol):
    """Stop if --out_dir holds results of another protocol, or scores that there will not be; what older results do not tell is no difference."""
    def flat(protocol):
        return {k: v for key, value in protocol.items()
                for k, v in ({f'{key} {name}': v for name, v in value.items()} if isinstance(value, dict) else {key: value}).items()}
    path, otherwise = args.out_dir / 'results.json', 'give another --out_dir, or --overwrite'
    if not path.exists():
        if (args.out_dir / 'results.npz').exists():
            raise UserError(f'{args.out_dir} has results.npz of an unknown protocol, without results.json; {otherwise}')
        return
    try:
        earlier = read_json(path)
    except UserError as error:
        raise UserError(f'{error}; {otherwise}') from None
    if not all(isinstance(earlier.get(part), dict) for part in ('scores', 'protocol')):
        raise UserError(f'{path} is not of an evaluation: it lacks scores or protocol; {otherwise}')
    before, now = flat(earlier['protocol']), flat(protocol)
    if before.get('checkpoint_sha256') == now['checkpoint_sha256']:
        now.pop('checkpoint')  # another name of the same weights
    if None in (before.get('lpips_version'), now['lpips_version']):
        now.pop('lpips_version')  # no score has two
    for key, value in now.items():
        if before.get(key, value) != value:
            raise UserError(f'{path} is of an evaluation with {key} {before[key]}, found {value} now; {otherwise}')
    if lost := earlier['scores'].keys() - {*args.metrics, *['fvd'] * args.fvd}:
        raise UserError(f'{path} has scores of {", ".join(sorted(lost))}, which are not computed now; {otherwise}')


def open_results(stack, args, protocol):
    """Folder in --out_dir for results, which replace earlier ones when the stack is closed."""
    folder = stack.enter_context(replacing_results(make_folder(args.out_dir, '--out_dir'), RESULTS))
    if not args.overwrite:
        check_earlier(args, protocol)
    return folder


def print_fvd(protocol):
    """Print the protocol of the Fréchet video distance."""
    p = protocol['fvd']
    print(f'FVD: {p["frames"]} frames, the {protocol["conditioning_frames"]} given ones included, {p["resolution"][0]} x {p["resolution"][1]}, '
          f'{p["clips"]} clips, {p["samples"]} random sample{"s" if p["samples"] > 1 else ""}, seed {p["seed"]}\n'
          f'     {p["embedding"]}, by {"TensorFlow" if p["backend"] == "tfhub" else "PyTorch"}, weights {p["weights_sha256"]}', flush=True)


def prepare(args, config, device, world):
    """What an evaluation needs: metrics, model, SHA-256 of its checkpoint, test set, number of videos, Fréchet distance or None."""
    scorers = build_metrics(args.metrics, args.lpips_dir, device)
    model, digest = get_model(args, config, device)
    testset = load_test(config, args.data_dir, args.nt_gen)
    n_videos = args.n_videos or len(testset)
    if n_videos > len(testset):
        raise UserError(f'--n_videos {n_videos}: the test set has {len(testset)}; give at most as many')
    if n_videos < world.size:
        raise UserError(f'{n_videos} videos cannot be shared by {world.size} processes; start fewer')
    return scorers, model, digest, testset, n_videos, build_fvd(args, n_videos, device)


def announce(args, config, protocol, testset, device, world):
    """Print what is going to be computed."""
    print(f'evaluating {args.baseline or args.model_name} on {describe(device)}' + f' and {world.size - 1} more' * (world.size > 1)
          + f': {protocol["clips"]} videos of {protocol["dataset"]}, {args.nt_cond} frames given, {args.nt_gen - args.nt_cond} predicted, '
          f'{args.n_samples} samples, {args.n_euler_steps} Euler steps a frame, seed {args.test_seed}\ntest set: {testset.path}', flush=True)
    note_lengths(args, config)
    if 'lpips' in args.metrics:
        print(f'LPIPS: AlexNet, version {metrics.lpips.VERSION}')
    if 'fvd' in protocol:
        print_fvd(protocol)


def write_scores(folder, scores, fvd, protocol, args):
    """Print the scores, and write them to `folder`; if --out_dir holds no earlier results, to it too, whatever becomes of the videos."""
    table = summary(scores)
    lines = score_lines(table)
    if fvd is not None:
        mean, std = fvd.result()
        table['fvd'] = {'mean': mean, 'std': std}
        lines.append(f'  FVD {mean:.2f}' + (f' ± {std:.2f} (standard deviation over {args.fvd_samples} samples)' if args.fvd_samples > 1 else ''))
    print('\n'.join(lines), flush=True)
    for place in [folder] if any(any(args.out_dir.glob(pattern)) for pattern in RESULTS) else [args.out_dir, folder]:
        write_npz(place / 'results.npz', **scores)
        write_json(place / 'results.json', {'scores': finite(table), 'protocol': protocol})


def main(argv=None):
    with join() as world, contextlib.ExitStack() as stack:
        args, config = world.local_main_first(lambda: resolve(argv))
        world.check_equal(vars(args), PER_PROCESS_OPTIONS)
        device = world.local_main_first(lambda: world.device(args.device))
        scorers, model, digest, testset, n_videos, fvd = world.local_main_first(lambda: prepare(args, config, device, world))
        protocol = get_protocol(args, config, testset, n_videos, digest, fvd)
        world.check_equal(protocol | {'a test set with first video': hashlib.sha256(testset.videos([0]).tobytes()).hexdigest()[:8]})
        folder = world.local_main_first(lambda: open_results(stack, args, protocol) if world.main else None)
        part = world.part(n_videos)
        if world.main:
            announce(args, config, protocol, testset, device, world)
        with progress_bar(total=len(part) * args.n_samples, unit='sample', disable=not world.main) as bar:
            scores, videos = evaluate(model, testset, scorers, fvd, args, device, part, bar)
        scores = {name: world.collect(score, n_videos) for name, score in scores.items()}
        videos = {name: world.collect(videos.pop(name), n_videos) for name in list(videos)}
        if fvd is not None:
            fvd.embed.close()
            fvd.collect(world, n_videos)
        if world.main:
            if args.n_samples == 1:
                videos |= {f'{name}_{end}': videos['random_1'] for name in scores for end in ('best', 'worst')}
            write_scores(folder, scores, fvd, protocol, args)  # first, for a disk that is full
            for name, samples in videos.items():
                write_npz(folder / f'{name}.npz', samples=samples)
            drawn = draw_pictures(folder / 'pictures', testset, videos, args.metrics[0], args)
            stack.close()
            print(f'results in {args.out_dir}: results.json, results.npz, {", ".join(f"{k}.npz" for k in sorted(videos))}')
            if drawn:
                print('pictures: ' + ', '.join(str(args.out_dir / path.relative_to(folder)) for path in drawn))


if __name__ == '__main__':
    run_script(main)
