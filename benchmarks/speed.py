"""Training steps and evaluation against the plain formulation (`tests/plain.py`).

Each variant runs in a process of its own: `python -m benchmarks.speed KIND PRESET VARIANT`.
"""

import contextlib
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import test as test_script
from args import config_dict, parse_train
from checkpoint import save
from data import load_test
from data.digits import load_digits
from data.mmnist import make_test_set
from distributed import World
from files import count
from metrics.lpips import CONVOLUTIONS, LPIPS
from model import build_model, loss
from published import PUBLISHED
from sampling import draw_noise
from tests import plain
from training.loop import Trainer
from utils import get_device, to_video


class Sizes(NamedTuple):
    """How much is computed."""
    batch: dict     # videos per training step, by preset
    n_steps: int    # training steps per run
    n_videos: int   # of an evaluation
    n_samples: int  # of an evaluation
    n_plain: int    # videos of the plain evaluation, of one sample; its time is scaled


ON_GPU = torch.cuda.is_available()
if ON_GPU:
    DEVICE, SIZES = torch.device('cuda', 0), Sizes({'smmnist': 128, 'kth': 100}, 20, 1000, 100, 16)
else:
    DEVICE, SIZES = torch.device('cpu'), Sizes({'smmnist': 16, 'kth': 4}, 1, 16, 20, 16)
SIZED_BATCH = {'smmnist': 16, 'kth': 4} if ON_GPU else {'smmnist': 4, 'kth': 1}
NARROW = 16  # width of networks for large frames on CPUs
NAMES = {'smmnist': 'Moving MNIST', 'kth': 'KTH'}
VARIANTS = {'here': 'here', 'half': 'here, bfloat16', 'compiled': 'here, bfloat16, --compile'}


def synchronize():
    """Wait for the GPU, if there is one."""
    if ON_GPU:
        torch.cuda.synchronize()


def get_config(preset, *options):
    return parse_train(['--preset', preset, '--data_dir', '-', '--save_path', '-', '--seed', '1',
                        *options])


def contiguous(module):
    """Module on the device, in the default memory layout of PyTorch."""
    return module.to(DEVICE, memory_format=torch.contiguous_format)


# Training

def training(preset, variant):
    """Function that takes a training step and returns its loss."""
    options = ['--torch_amp'] if variant in ('half', 'compiled') else []
    config = get_config(preset, '--batch_size', str(SIZES.batch[preset]), *options)
    if variant == 'plain':
        return plain_training(config, random_batch(config))
    return trainer_step(config, variant == 'compiled')


def random_batch(config):
    """Random frames of a training step, uint8 (T, B, H, W, C)."""
    size = (config.seq_len, config.batch_size, config.nx, config.nx, config.nc)
    batch = torch.randint(256, size, dtype=torch.uint8)
    return batch.pin_memory() if ON_GPU else batch  # as from the loader


def trainer_step(config, compiled=False):
    """Function that takes a step of `train.py` and returns its loss."""
    run, batch = Trainer(config, (None, None), DEVICE, World()), random_batch(config)
    run.model.train()
    if compiled:
        run.model.compile_networks()
    not_stopped = SimpleNamespace(received=None)
    return lambda: run.train_step(batch, not_stopped)['loss']


def sized_training(preset, nx):
    """Function that takes a training step on frames of nx x nx, and returns the memory it took.

    That is, the largest so far, in MB; on CPUs, above what there was before the first step.
    """
    width = [] if ON_GPU else ['--nf', str(NARROW)]
    config = get_config(preset, '--nx', nx, '--batch_size', str(SIZED_BATCH[preset]), *width)
    step, before = trainer_step(config), peak_memory()

    def run():
        step()
        return peak_memory() - (0 if ON_GPU else before)
    return run


def peak_memory():
    """Largest memory of this process so far, on its device, in MB."""
    if ON_GPU:
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def plain_training(config, batch):
    torch.manual_seed(1)
    model = contiguous(build_model(config)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    weights = {k: getattr(config, k) for k in ('obs_scale', 'beta_y', 'beta_z', 'l2_res')}

    def step():
        x = to_video(batch, DEVICE).contiguous()
        optimizer.zero_grad()
        value = plain.loss(x, plain.forward(model, x, config.seq_len), **weights)
        value.backward()
        optimizer.step()
        return value.item()
    return step


# Evaluation

def evaluation(preset, variant, folder):
    """Function that evaluates a model and returns its mean best PSNR."""
    config = write_experiment(preset, folder)
    if variant == 'plain':
        return plain_evaluation(config, preset, folder)
    n_videos, n_samples = SIZES.n_plain, 1
    if variant == 'here':
        n_videos, n_samples = SIZES.n_videos, SIZES.n_samples
    argv = ['--xp_dir', folder, '--data_dir', folder, '--lpips_dir', folder,
            '--out_dir', folder / 'out', '--nt_gen', PUBLISHED[preset].nt_gen, '--n_pictures', 0,
            '--n_videos', n_videos, '--n_samples', n_samples]
    if ON_GPU:
        argv += ['--device', 0]

    def run():
        test_script.main(list(map(str, argv)))
        results = json.loads((folder / 'out' / 'results.json').read_text())
        return results['scores']['psnr']['mean']
    return run


def plain_evaluation(config, preset, folder):
    n, nt = SIZES.n_plain, PUBLISHED[preset].nt_gen
    model = contiguous(untrained(config)).eval()
    network = contiguous(LPIPS(torch.load(folder / 'alexnet.pth', weights_only=True)))
    videos = torch.from_numpy(load_test(config, folder, nt).videos(range(n)))
    x = to_video(videos, DEVICE).contiguous()
    noise = draw_noise(model, 1, 'test', range(n), 1, nt).of(slice(None), DEVICE)
    return lambda: plain.evaluate(model, network, x, config.nt_cond, noise)['psnr'].mean().item()


def untrained(config):
    """Model with random weights whose samples differ visibly."""
    torch.manual_seed(1)
    model = build_model(config).requires_grad_(False)
    last, *_ = list(model.decoder.steps())[-1]
    last.weight.mul_(30)
    return model


def write_experiment(preset, folder):
    """Write an untrained model, a random AlexNet and a test set; returns the configuration."""
    options = ['--digits', 'mnist5k'] if preset == 'smmnist' else []
    config = get_config(preset, *options)
    (folder / 'config.json').write_text(json.dumps(config_dict(config)))
    save(folder / 'model.pt', untrained(config).state_dict())
    alexnet = {}
    for i, (n_in, n_out, size, *_), _ in CONVOLUTIONS:
        alexnet[f'features.{i}.weight'] = 0.05 * torch.randn(n_out, n_in, size, size)
        alexnet[f'features.{i}.bias'] = 0.05 * torch.randn(n_out)
    save(folder / 'alexnet.pth', alexnet)
    digits, labels = load_digits('mnist5k', None, True)
    n = 2 * SIZES.n_videos
    arrays = make_test_set(digits[:n], labels[:n], PUBLISHED[preset].nt_gen)
    if preset == 'kth':  # moving digits too: the content does not affect the time
        np.savez(folder / 'svg_test_set_40.npz', sequences=arrays['sequences'].swapaxes(0, 1))
    else:
        np.savez(folder / 'smmnist5k_test_2digits_64.npz', **arrays)
    return config


# Processes

def serve(kind, preset, variant):
    """On each line of input, run a variant; print seconds per step or evaluation, and result."""
    if ON_GPU or variant != 'plain':  # the plain variant does not keep memory on CPUs
        get_device(DEVICE.index)
    n = 1 if kind == 'evaluation' else SIZES.n_steps
    silence = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(silence):
        with contextlib.redirect_stdout(silence):
            if kind == 'training':
                run = training(preset, variant)
            elif kind == 'size':
                run = sized_training(preset, variant)
            else:
                run = evaluation(preset, variant, Path(folder))
        for _ in sys.stdin:
            with contextlib.redirect_stdout(silence):
                if ON_GPU and kind != 'evaluation':
                    run()  # allocates memory again
                synchronize()
                start = time.perf_counter()
                for _ in range(n):
                    result = run()
                synchronize()
                seconds = (time.perf_counter() - start) / n
            print(seconds, result, flush=True)
            if ON_GPU:
                torch.cuda.empty_cache()  # for the other variants


class Variant:
    """A variant in a process of its own."""

    def __init__(self, *argv):
        self.process = subprocess.Popen([sys.executable, '-m', 'benchmarks.speed', *argv],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self):
        """Seconds and result of a run."""
        self.process.stdin.write('\n')
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f'{" ".join(self.process.args)} failed')
        return tuple(map(float, line.split()))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(kind, preset, variants, repeats, scale=1):
    """Run the plain variant and others in turn.

    Returns
    -------
    seconds : list
        Medians, first that of the plain variant, times `scale`.
    ratios : list
        Medians of the speed-up of each other variant.
    results : list
        Of the last runs.
    """
    runs = [Variant(kind, preset, variant) for variant in ('plain', *variants)]
    if kind == 'training':
        for run in runs:  # warm up
            run()
    rounds = np.array([[run() for run in runs] for _ in range(repeats)])
    for run in runs:
        run.close()
    seconds = rounds[:, :, 0]
    seconds[:, 0] *= scale
    ratios = seconds[:, :1] / seconds[:, 1:]
    medians = [list(map(statistics.median, columns.T)) for columns in (seconds, ratios)]
    return *medians, rounds[-1, :, 1].tolist()


def training_rows(repeats):
    """Yield the rows of the table: what, plain, here, ratio."""
    variants = [v for v in VARIANTS if ON_GPU or v != 'compiled']
    for preset, name in NAMES.items():
        (plain_s, *found), ratios, _ = compare('training', preset, variants, repeats)
        for variant, seconds, ratio in zip(variants, found, ratios):
            yield (f'{name}, training step of {SIZES.batch[preset]} videos, seconds: plain / '
                   f'{VARIANTS[variant]}', f'{plain_s:.3g}', f'{seconds:.3g}', f'{ratio:.2f}')


def count_operations(preset, nx):
    """TFLOP of a training step of one video, at full width."""
    config = get_config(preset, '--nx', str(nx))
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        x = torch.empty(config.seq_len, 1, config.nc, nx, nx)
        out = build_model(config).train()(x, config.seq_len)
        loss(x, out, obs_scale=1, beta_y=1, beta_z=1, l2_res=1).loss.backward()
    return counter.get_total_flops() / 1e12


def size_rows(repeats):
    """Yield the rows of the table: what, at 64 x 64, at a larger size, ratio."""
    for preset, name in NAMES.items():
        operations = {nx: count_operations(preset, nx) for nx in (64, 128, 256)}
        for nx in (128, 256):
            yield (f'{name}, full width, TFLOP of a training step of 1 video: 64 x 64 / {nx} x '
                   f'{nx}, {(nx // 64) ** 2} times the pixels', f'{operations[64]:.3g}',
                   f'{operations[nx]:.3g}', f'{operations[nx] / operations[64]:.2f}')
        runs = [Variant('size', preset, str(nx)) for nx in (64, 128, 256)]
        for run in runs:  # warm up
            run()
        rounds = np.array([[run() for run in runs] for _ in range(repeats)])  # (…, size, 2)
        for run in runs:
            run.close()
        medians, ratios = np.median(rounds, 0), np.median(rounds / rounds[:, :1], 0)
        for i, nx in ((1, 128), (2, 256)):
            for k, unit in enumerate(('seconds', 'MB of memory')):
                yield (f'{name}, training step of {count(SIZED_BATCH[preset], "video")}, {unit}: '
                       f'64 x 64 / {nx} x {nx}, {(nx // 64) ** 2} times the pixels',
                       f'{medians[0, k]:.3g}', f'{medians[i, k]:.3g}', f'{ratios[i, k]:.2f}')


def evaluation_rows(repeats):
    """Yield the rows of the table: what, plain, here, ratio."""
    scale = SIZES.n_samples * SIZES.n_videos / SIZES.n_plain
    for preset, name in NAMES.items():
        (plain_s, here), (ratio,), _ = compare('evaluation', preset, ['here'], repeats, scale)
        yield (f'{name}, test.py, {SIZES.n_videos:,} videos, {SIZES.n_samples} samples, all '
               f'metrics, seconds: plain (from 1 sample of {SIZES.n_plain}) / here',
               f'{plain_s:.0f}', f'{here:.0f}', f'{ratio:.2f}')
        *_, (expected, found) = compare('evaluation', preset, ['few'], 1)
        if abs(expected - found) > 1e-3:
            raise RuntimeError(f'the scores differ: {expected} dB, {found} dB')
        yield (f'{name}, difference of both scores of 1 sample, dB', '',
               f'{abs(expected - found):.1e}', '')


if __name__ == '__main__':
    serve(*sys.argv[1:])
