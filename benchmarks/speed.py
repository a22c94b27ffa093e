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

import numpy as np
import torch

import test as test_script
from args import config_dict, parse_train
from benchmarks import plain
from data import load_test
from data.digits import load_digits
from data.mmnist import make_test_set
from distributed import World
from metrics.lpips import CONVOLUTIONS, LPIPS
from model import build_model
from sampling import draw_noise
from trainer import Trainer
from utils import keep_memory, save

REPEATS = 5
BATCH = {'smmnist': 16, 'kth': 4}             # of a training step
NT_GEN = {'smmnist': 25, 'kth': 40}           # frames of an evaluation
N_VIDEOS, N_SAMPLES, N_PLAIN = 16, 20, 1      # of an evaluation; samples that the plain one draws, the time being scaled


def get_config(preset, *more):
    return parse_train(['--preset', preset, '--data_dir', '-', '--save_path', '-', '--seed', '1', *more])


class NotStopped:
    received = None


def training(preset, variant, device):
    """Function that takes one training step."""
    config = get_config(preset, '--batch_size', str(BATCH[preset]), *['--torch_amp'] * (variant == 'half'))
    batch = torch.randint(256, (config.seq_len, config.batch_size, 64, 64, config.nc), dtype=torch.uint8)
    if variant == 'plain':
        torch.manual_seed(1)
        model = build_model(config).to(device, memory_format=torch.contiguous_format).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)

        def step():
            x = batch.to(device).permute(0, 1, 4, 2, 3).contiguous().float() / 255
            optimizer.zero_grad()
            loss = plain.loss(x, plain.forward(model, x, config.seq_len), config.obs_scale, config.beta_y, config.beta_z, config.l2_res)
            loss.backward()
            optimizer.step()
            return loss.item()
        return step
    run = Trainer(config, (None, None), device, World())
    run.model.train()
    return lambda: run.train_step(batch, NotStopped)['loss']


def untrained(config):
    """Model with random weights, whose samples differ visibly."""
    torch.manual_seed(1)
    model = build_model(config).requires_grad_(False)
    list(model.decoder.layers())[-1][0].weight.mul_(30)
    return model


def write_experiment(preset, folder):
    """Folder with an untrained model, AlexNet of random weights and a test set of 16 videos; returns the configuration."""
    config = get_config(preset, *['--digits', 'mnist5k'] * (preset == 'smmnist'))
    (folder / 'config.json').write_text(json.dumps(config_dict(config)))
    save(folder / 'model.pt', untrained(config).state_dict())
    save(folder / 'alexnet.pth', {f'features.{i}.{k}': 0.05 * torch.randn(n_out, *[n_in, size, size][:3 * (k == 'weight')])
                                  for i, (n_in, n_out, size, _, _), _ in CONVOLUTIONS for k in ('weight', 'bias')})
    digits, labels = load_digits('mnist5k', None, False)
    arrays = make_test_set(digits[:2 * N_VIDEOS], labels[:2 * N_VIDEOS], NT_GEN[preset])
    if preset == 'kth':  # moving digits again: the time does not depend on what is seen
        np.savez(folder / 'svg_test_set_40.npz', sequences=arrays['sequences'].swapaxes(0, 1))
    else:
        np.savez(folder / 'smmnist5k_test_2digits_64.npz', **arrays)
    return config


def evaluation(preset, variant, folder, device):
    """Function that evaluates a model; returns its mean best PSNR."""
    torch.backends.cudnn.allow_tf32 = False
    config = write_experiment(preset, folder)
    if variant != 'plain':
        def run():
            argv = ['--xp_dir', folder, '--data_dir', folder, '--lpips_dir', folder, '--out_dir', folder / 'out', '--nt_gen', NT_GEN[preset], '--n_pictures', 0,
                    '--n_videos', N_VIDEOS, '--n_samples', N_SAMPLES if variant == 'here' else N_PLAIN, *['--device', '0'] * (device.type == 'cuda')]
            test_script.main(list(map(str, argv)))
            return json.loads((folder / 'out' / 'results.json').read_text())['scores']['psnr']['mean']
        return run
    model = untrained(config).to(device, memory_format=torch.contiguous_format).eval()
    network = LPIPS(torch.load(folder / 'alexnet.pth', weights_only=True)).to(device, memory_format=torch.contiguous_format)
    testset = load_test(config, folder, NT_GEN[preset])
    x = torch.from_numpy(testset.videos(range(N_VIDEOS))).permute(0, 1, 4, 2, 3).contiguous().to(device).float() / 255
    noise = draw_noise(model, 1, 'test', range(N_VIDEOS), N_PLAIN, NT_GEN[preset])
    noise = type(noise)(*(part.to(device) for part in noise))
    return lambda: plain.evaluate(model, network, x, config.nt_cond, noise)['psnr'].mean().item()


def serve(kind, preset, variant):
    """Run a variant each time that a line is read, and print the seconds and the result."""
    device = torch.device('cuda', 0) if torch.cuda.is_available() else torch.device('cpu')
    if device.type == 'cpu' and variant != 'plain':
        keep_memory()  # as the scripts do
    with tempfile.TemporaryDirectory() as folder:
        run = training(preset, variant, device) if kind == 'training' else evaluation(preset, variant, Path(folder), device)
        for _ in sys.stdin:
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                result = run()
            if device.type == 'cuda':
                torch.cuda.synchronize()
            print(time.perf_counter() - start, result, flush=True)


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


def compare(kind, preset, variants, repeats=REPEATS, scale=1):
    """Median seconds of the plain variant and of others, in alternating repetitions, and of their ratios; last results."""
    runs = [Variant(kind, preset, variant) for variant in ('plain', *variants)]
    for run in runs if kind == 'training' else []:
        run()  # to warm up
    rounds = [[run() for run in runs] for _ in range(repeats)]
    for run in runs:
        run.close()
    seconds = np.array(rounds)[:, :, 0] * [scale, *[1] * len(variants)]
    return [statistics.median(column) for column in seconds.T], [statistics.median(column) for column in (seconds[:, :1] / seconds[:, 1:]).T], rounds[-1]


def rows():
    for preset, name in (('smmnist', 'Moving MNIST'), ('kth', 'KTH')):
        (plain_s, here, half), ratios, _ = compare('training', preset, ['here', 'half'])
        what = f'{name}, training step of {BATCH[preset]} videos, seconds: plain / '
        yield what + 'here', f'{plain_s:.2f}', f'{here:.2f}', f'{ratios[0]:.2f}'
        yield what + 'here, bfloat16', f'{plain_s:.2f}', f'{half:.2f}', f'{ratios[1]:.2f}'
    for preset, name in (('smmnist', 'Moving MNIST'), ('kth', 'KTH')):
        (plain_s, here), ratios, _ = compare('evaluation', preset, ['here'], scale=N_SAMPLES / N_PLAIN)
        yield (f'{name}, test.py, {N_VIDEOS} videos, {N_SAMPLES} samples, all metrics, seconds: plain (from {N_PLAIN} sample) / here',
               f'{plain_s:.0f}', f'{here:.0f}', f'{ratios[0]:.2f}')
        _, _, ((_, expected), (_, found)) = compare('evaluation', preset, ['few'], 1)
        if abs(expected - found) > 1e-3:
            raise RuntimeError(f'the scores differ: {expected} dB, {found} dB')
        yield f'{name}, difference of both scores of {N_PLAIN} sample, dB', '', f'{abs(expected - found):.1e}', ''


if __name__ == '__main__':
    serve(*sys.argv[1:])
