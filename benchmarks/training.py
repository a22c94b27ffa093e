"""Training steps of `train.py` against the plain formulation, what limits them, and clips."""

import contextlib
import io
import statistics
import tempfile
import time

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import train
from args import preset_config
from data import load_train
from data.stream import BatchStream
from model import build_model, loss
from tests import plain
from training.log import read_log
from utils import to_video

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device('cuda', 0) if ON_GPU else torch.device('cpu')
ON_DEVICE = ['--device', '0'] if ON_GPU else []
NAMES = {'smmnist': 'Moving MNIST', 'kth': 'KTH'}
# Videos per step, and steps per run
BATCH, N_STEPS = ({'smmnist': 128, 'kth': 100}, 100) if ON_GPU else ({'smmnist': 16, 'kth': 4}, 4)
SIDE = 8192 if ON_GPU else 1024  # of the matrices whose product gives the peak


def loss_weights(config):
    return {name: getattr(config, name) for name in ('obs_scale', 'beta_y', 'beta_z', 'l2_res')}


def train_py(preset, n_steps, folder, *options):
    """Seconds per step of `train.py`, in the second half of a run."""
    digits = ['--digit_source', 'mnist5k'] if preset == 'smmnist' else []
    with tempfile.TemporaryDirectory(dir=folder) as run, contextlib.redirect_stdout(io.StringIO()):
        train.main([
            '--preset', preset, '--data_dir', str(folder), '--save_path', f'{run}/run', '--seed',
            '1', '--batch_size', str(BATCH[preset]), '--lr_scheduling_burnin', str(n_steps),
            '--lr_scheduling_n_iter', '0', '--log_interval', str(n_steps // 2), '--n_iter_test',
            '1', '--batch_size_test', '1', '--n_samples_test', '1', *digits,
            *ON_DEVICE, *options])
        return 1 / float(read_log(f'{run}/run')[0][-1]['steps_per_s'])


def plain_step(preset):
    """Function that takes a training step of the plain formulation."""
    config = preset_config(preset)
    size = config.seq_len, BATCH[preset], config.nx, config.nx, config.nc
    batch = torch.randint(256, size, dtype=torch.uint8)
    model = build_model(config).to(DEVICE, memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)

    @torch.backends.cudnn.flags(enabled=True, allow_tf32=True)
    def step():
        x = to_video(batch, DEVICE).contiguous()
        optimizer.zero_grad()
        value = plain.loss(x, plain.forward(model, x, config.seq_len), **loss_weights(config))
        value.backward()
        optimizer.step()
        return value.item()
    return step


def seconds(function, n=1, warm_up=True):
    """Seconds per call of a function, by default after one call to warm up."""
    for i in range(n + warm_up):
        if i == warm_up:
            start = time.perf_counter()
        function()
        if ON_GPU:
            torch.cuda.synchronize()
    return (time.perf_counter() - start) / n


def step_rows(folder, repeats):
    for preset, name in NAMES.items():
        step = plain_step(preset)
        runs = [(seconds(step, N_STEPS // 4), train_py(preset, N_STEPS, folder),
                 train_py(preset, N_STEPS, folder, '--torch_amp')) for _ in range(repeats)]
        for i, dtype in ((1, 'float32'), (2, 'half precision')):
            before, here = (statistics.median(run[k] for run in runs) for k in (0, i))
            ratio = statistics.median(run[0] / run[i] for run in runs)
            yield (f'{name}, step of {BATCH[preset]} videos, {dtype}, s', f'{before:.3g}',
                   f'{here:.3g} ({1 / here:.3g} steps/s)', f'{ratio:.2f}')


def profiled(preset, n_steps, folder):
    """Seconds and calls {name: (s, n)} of all operations, or GPU kernels and waits for them."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * ON_GPU
    with profile(activities=activities) as found:
        train_py(preset, n_steps, folder, '--torch_amp', '--n_workers', '0')
    kind, total = ((DeviceType.CUDA, 'self_device_time_total') if ON_GPU else
                   (DeviceType.CPU, 'self_cpu_time_total'))
    return {e.key: (getattr(e, total) / 1e6, e.count) for e in found.key_averages()
            if e.device_type == kind or e.key == 'cudaStreamSynchronize'}


def roofline_rows(folder, repeats):
    a = torch.randn(SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16)
    peak = 2 * SIDE ** 3 / seconds(lambda: a @ a, 10)
    yield f'product of bfloat16 matrices, {SIDE:,}², TFLOP/s', '', f'{peak / 1e12:.3g}', ''
    for preset, name in NAMES.items():
        what = f'{name}, step of {BATCH[preset]} videos, half precision'
        step = statistics.median(train_py(preset, N_STEPS, folder, '--torch_amp')
                                 for _ in range(repeats))
        config = preset_config(preset)
        with torch.device('meta'), FlopCounterMode(display=False) as counter:
            x = torch.empty(config.seq_len, BATCH[preset], config.nc, config.nx, config.nx)
            out = build_model(config).train()(x, config.seq_len)
            loss(x, out, **loss_weights(config)).loss.backward()
        speed = counter.get_total_flops() / step  # of all but the LSTM
        yield (f'{what}: TFLOP/s, and share of those of the product', '', f'{speed / 1e12:.3g}',
               f'{speed / peak:.0%}')
        # The difference of two runs leaves out start, validation and end
        few, many = (profiled(preset, n, folder) for n in (2, N_STEPS + 2))
        spent, calls = ({key: (value[k] - few.get(key, (0, 0))[k]) / N_STEPS
                         for key, value in many.items()} for k in (0, 1))
        total = sum(spent.values())
        if ON_GPU:
            yield f'{what}: share of the time that the GPU is busy', '', '', f'{total / step:.0%}'
            yield (f'{what}: host synchronisations per step', '',
                   f'{calls.get("cudaStreamSynchronize", 0):.1f}', '')
        for key in sorted(spent, key=spent.get, reverse=True)[:5]:
            yield f'{what}: `{key[:90]}`, s', '', f'{spent[key]:.3g}', f'{spent[key] / total:.0%}'


def clips_per_second(config, n_batches):
    """Rate at which one worker draws training clips, its start excluded."""
    B = config.batch_size
    stream = BatchStream(load_train(config)[0], 0, 'train', config.seq_len)
    batches = iter(DataLoader(stream, batch_size=None, num_workers=1, sampler=[
        range(i * B, (i + 1) * B) for i in range(n_batches + 1)]))
    next(batches)
    return n_batches * B / seconds(lambda: list(batches), warm_up=False)


def clip_rows(folder, repeats):
    kth, png, mnist = preset_config('kth'), preset_config('kth'), preset_config('smmnist')
    kth.data_dir, png.data_dir, mnist.digit_source = folder, folder / 'png', 'mnist5k'
    runs = [(clips_per_second(png, 6), clips_per_second(kth, 60)) for _ in range(repeats)]
    plain, here = (statistics.median(rates) for rates in zip(*runs))
    yield ('KTH, 20-frame clips per second, one worker: PNG frames / memory map', f'{plain:,.0f}',
           f'{here:,.0f}', f'{statistics.median(b / a for a, b in runs):.1f}')
    rate = statistics.median(clips_per_second(mnist, 20) for _ in range(repeats))
    yield 'Moving MNIST, 15-frame clips per second, one worker', '', f'{rate:,.0f}', ''
