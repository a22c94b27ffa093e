"""Training steps and evaluation, against the plain formulation. Each variant runs in a process of its own, which computes when told to."""

import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import test as test_script
from args import NT_GEN, config_dict, parse_train
from tests import plain
from data import load_test
from data.digits import load_digits
from data.mmnist import make_test_set
from distributed import World
from metrics.lpips import CONVOLUTIONS, LPIPS
from model import build_model
from sampling import draw_noise
from training.loop import Trainer
from checkpoint import save
from utils import keep_memory


class Sizes(NamedTuple):
    """How much is computed."""
    batch: dict             # videos of a training step
    n_steps: int            # training steps of a repetition
    n_videos: int           # of an evaluation
    n_samples: int
    n_plain: int            # videos of the plain evaluation, which draws one sample of them, the time being scaled


DEVICE = torch.device('cuda', 0) if torch.cuda.is_available() else torch.device('cpu')
SIZES = {'cpu': Sizes({'smmnist': 16, 'kth': 4}, 1, 16, 20, 16), 'cuda': Sizes({'smmnist': 128, 'kth': 100}, 20, 1000, 100, 16)}[DEVICE.type]
NAMES = {'smmnist': 'Moving MNIST', 'kth': 'KTH'}
VARIANTS = {'here': 'here', 'half': 'here, bfloat16', 'compiled': 'here, bfloat16, --compile'}  # of training


def get_config(preset, *more):
    return parse_train(['--preset', preset, '--data_dir', '-', '--save_path', '-', '--seed', '1', *more])


class NotStopped:
    received = None


def training(preset, variant):
    """Function that takes one training step."""
    config = get_config(preset, '--batch_size', str(SIZES.batch[preset]), *['--torch_amp'] * (variant in ('half', 'compiled')))
    batch = torch.randint(256, (config.seq_len, config.batch_size, 64, 64, config.nc), dtype=torch.uint8)
    if DEVICE.type == 'cuda':
        batch = batch.pin_memory()  # as the loader gives it
    if variant == 'plain':
        torch.manual_seed(1)
        model = build_model(config).to(DEVICE, memory_format=torch.contiguous_format).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)

        def step():
            x = batch.to(DEVICE).permute(0, 1, 4, 2, 3).contiguous().float() / 255
            optimizer.zero_grad()
            loss = plain.loss(x, plain.forward(model, x, config.seq_len), config.obs_scale, config.beta_y, config.beta_z, config.l2_res)
            loss.backward()
            optimizer.step()
            return loss.item()
        return step
    run = Trainer(config, (None, None), DEVICE, World())
    run.model.train()
    if variant == 'compiled':
        run.model.compile_networks()
    return lambda: run.train_step(batch, NotStopped)['loss']


def untrained(config):
    """Model with random weights, whose samples differ visibly."""
    torch.manual_seed(1)
    model = build_model(config).requires_grad_(False)
    list(model.decoder.layers())[-1][0].weight.mul_(30)
    return model


def write_experiment(preset, folder):
    """Folder with an untrained model, AlexNet of random weights and a test set; returns the configuration."""
    config = get_config(preset, *['--digits', 'mnist5k'] * (preset == 'smmnist'))
    (folder / 'config.json').write_text(json.dumps(config_dict(config)))
    save(folder / 'model.pt', untrained(config).state_dict())
    save(folder / 'alexnet.pth', {f'features.{i}.{k}': 0.05 * torch.randn(n_out, *[n_in, size, size][:3 * (k == 'weight')])
                                  for i, (n_in, n_out, size, _, _), _ in CONVOLUTIONS for k in ('weight', 'bias')})
    digits, labels = load_digits('mnist5k', None, True)
    arrays = make_test_set(digits[:2 * SIZES.n_videos], labels[:2 * SIZES.n_videos], NT_GEN[preset])
    if preset == 'kth':  # moving digits again: the time does not depend on what is seen
        np.savez(folder / 'svg_test_set_40.npz', sequences=arrays['sequences'].swapaxes(0, 1))
    else:
        np.savez(folder / 'smmnist5k_test_2digits_64.npz', **arrays)
    return config


def evaluation(preset, variant, folder):
    """Function that evaluates a model; returns its mean best PSNR."""
    torch.backends.cudnn.allow_tf32 = False
    config = write_experiment(preset, folder)
    if variant != 'plain':
        def run():
            argv = ['--xp_dir', folder, '--data_dir', folder, '--lpips_dir', folder, '--out_dir', folder / 'out', '--nt_gen', NT_GEN[preset], '--n_pictures', 0,
                    *(['--n_videos', SIZES.n_videos, '--n_samples', SIZES.n_samples] if variant == 'here' else ['--n_videos', SIZES.n_plain, '--n_samples', 1]),
                    *['--device', '0'] * (DEVICE.type == 'cuda')]
            test_script.main(list(map(str, argv)))
            return json.loads((folder / 'out' / 'results.json').read_text())['scores']['psnr']['mean']
        return run
    model = untrained(config).to(DEVICE, memory_format=torch.contiguous_format).eval()
    network = LPIPS(torch.load(folder / 'alexnet.pth', weights_only=True)).to(DEVICE, memory_format=torch.contiguous_format)
    testset = load_test(config, folder, NT_GEN[preset])
    x = torch.from_numpy(testset.videos(range(SIZES.n_plain))).permute(0, 1, 4, 2, 3).contiguous().to(DEVICE).float() / 255
    noise = draw_noise(model, 1, 'test', range(SIZES.n_plain), 1, NT_GEN[preset]).of(slice(None), DEVICE)
    return lambda: plain.evaluate(model, network, x, config.nt_cond, noise)['psnr'].mean().item()


def serve(kind, preset, variant):
    """Run a variant each time that a line is read, and print the seconds of a step or an evaluation, and the result."""
    if DEVICE.type == 'cpu' and variant != 'plain':
        keep_memory()  # as the scripts do
    n = SIZES.n_steps if kind == 'training' else 1
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        with contextlib.redirect_stdout(io.StringIO()):
            run = training(preset, variant) if kind == 'training' else evaluation(preset, variant, Path(folder))
        for _ in sys.stdin:
            with contextlib.redirect_stdout(io.StringIO()):
                if DEVICE.type == 'cuda' and kind == 'training':
                    run()  # takes the memory that was given back
                    torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(n):
                    result = run()
                if DEVICE.type == 'cuda':
                    torch.cuda.synchronize()
                seconds = (time.perf_counter() - start) / n
            print(seconds, result, flush=True)
            if DEVICE.type == 'cuda':
                torch.cuda.empty_cache()  # for the other variants


class Variant:
    """A variant in its process."""

    def __init__(self, *argv):
        self.process = subprocess.Popen([sys.executable, '-m', 'benchmarks.speed', *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self):
        """Seconds and result of one run."""
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
    """Median seconds of the plain variant and of others, in alternating repetitions, and of their ratios; last results."""
    runs = [Variant(kind, preset, variant) for variant in ('plain', *variants)]
    for run in runs if kind == 'training' else []:
        run()  # to warm up
    rounds = [[run() for run in runs] for _ in range(repeats)]
    for run in runs:
        run.close()
    seconds = np.array(rounds)[:, :, 0] * [scale, *[1] * len(variants)]
    return [statistics.median(column) for column in seconds.T], [statistics.median(column) for column in (seconds[:, :1] / seconds[:, 1:]).T], rounds[-1]


def training_rows(repeats):
    """Yield the rows of the table: what, plain, here, ratio."""
    variants = [v for v in VARIANTS if DEVICE.type == 'cuda' or v != 'compiled']
    for preset, name in NAMES.items():
        (plain_s, *found), ratios, _ = compare('training', preset, variants, repeats)
        for variant, seconds, ratio in zip(variants, found, ratios):
            yield (f'{name}, training step of {SIZES.batch[preset]} videos, seconds: plain / {VARIANTS[variant]}',
                   f'{plain_s:.3g}', f'{seconds:.3g}', f'{ratio:.2f}')


def evaluation_rows(repeats):
    """Yield the rows of the table: what, plain, here, ratio."""
    for preset, name in NAMES.items():
        (plain_s, here), ratios, _ = compare('evaluation', preset, ['here'], repeats, scale=SIZES.n_samples * SIZES.n_videos / SIZES.n_plain)
        yield (f'{name}, test.py, {SIZES.n_videos:,} videos, {SIZES.n_samples} samples, all metrics, seconds: '
               f'plain (from 1 sample of {SIZES.n_plain}) / here', f'{plain_s:.0f}', f'{here:.0f}', f'{ratios[0]:.2f}')
        _, _, ((_, expected), (_, found)) = compare('evaluation', preset, ['few'], 1)
        if abs(expected - found) > 1e-3:
            raise RuntimeError(f'the scores differ: {expected} dB, {found} dB')
        yield f'{name}, difference of both scores of 1 sample, dB', '', f'{abs(expected - found):.1e}', ''


if __name__ == '__main__':
    serve(*sys.argv[1:])
