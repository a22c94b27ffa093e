"""What limits a training step: its share of the peak FLOP/s, and the slowest operations."""

import time

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import DEVICE, NAMES, ON_GPU, SIZES, synchronize, training

N_STEPS = 10                     # timed and profiled
SIDE = 8192 if ON_GPU else 1024  # of the matrices whose product gives the peak
N_OPERATIONS = 8                 # printed


def seconds(function, n=N_STEPS):
    """Seconds per call, after one call to warm up."""
    function()
    synchronize()
    start = time.perf_counter()
    for _ in range(n):
        function()
    synchronize()
    return (time.perf_counter() - start) / n


def operation_seconds(step):
    """Seconds per step by operation."""
    activities = [ProfilerActivity.CPU]
    if ON_GPU:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        for _ in range(N_STEPS):
            step()
        synchronize()
    total = f'self_{"device" if ON_GPU else "cpu"}_time_total'
    return {e.key: getattr(e, total) / 1e6 / N_STEPS for e in found.key_averages()}


def rows():
    """Yield the rows of the table: what, '', figure, share."""
    a = torch.randn(SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16)
    peak = 2 * SIDE ** 3 / seconds(lambda: a @ a)
    yield (f'product of two bfloat16 matrices of {SIDE:,} x {SIDE:,}, TFLOP/s', '',
           f'{peak / 1e12:.3g}', '')
    for preset, name in NAMES.items():
        step = training(preset, 'half')
        taken = seconds(step)
        with FlopCounterMode(display=False) as counter:  # convolutions, products; no LSTM
            step()
        flops = counter.get_total_flops()
        yield (f'{name}, training step of {SIZES.batch[preset]} videos, bfloat16: TFLOP', '',
               f'{flops / 1e12:.3g}', '')
        yield (f'{name}, the same: TFLOP/s, and share of those of the product', '',
               f'{flops / taken / 1e12:.3g}', f'{flops / taken / peak:.0%}')
        spent = operation_seconds(step)
        total = sum(spent.values())
        if ON_GPU:
            yield (f'{name}, the same: share of the time that the GPU is busy', '', '',
                   f'{total / taken:.0%}')
        for key in sorted(spent, key=spent.get, reverse=True)[:N_OPERATIONS]:
            yield (f'{name}, the same: `{key[:90]}`, seconds', '', f'{spent[key]:.3g}',
                   f'{spent[key] / total:.0%}')
