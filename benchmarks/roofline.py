"""What limits a training step: its products, the share of the peak that they reach, and the operations that take the time."""

import time

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import DEVICE, NAMES, SIZES, training

N_STEPS = 10    # timed and profiled
SIDE = 8192 if DEVICE.type == 'cuda' else 1024  # of the matrices whose product gives the peak
N_OPERATIONS = 8  # shown


def synchronize():
    if DEVICE.type == 'cuda':
        torch.cuda.synchronize()


def seconds(function, n=N_STEPS):
    """Seconds of a call, after one to warm up."""
    function()
    synchronize()
    start = time.perf_counter()
    for _ in range(n):
        function()
    synchronize()
    return (time.perf_counter() - start) / n


def rows():
    """Yield the rows of the table: what, '', figure, ''."""
    a = torch.randn(SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16)
    peak = 2 * SIDE ** 3 / seconds(lambda: a @ a)
    yield f'product of two bfloat16 matrices of {SIDE:,} x {SIDE:,}, TFLOP/s', '', f'{peak / 1e12:.3g}', ''
    for preset, name in NAMES.items():
        step = training(preset, 'half')
        taken = seconds(step)
        with FlopCounterMode(display=False) as counter:  # of convolutions and matrix products; an LSTM's are left out
            step()
        flops = counter.get_total_flops()
        yield f'{name}, training step of {SIZES.batch[preset]} videos, bfloat16: TFLOP', '', f'{flops / 1e12:.3g}', ''
        yield f'{name}, the same: TFLOP/s, and their share of that product\'s', '', f'{flops / taken / 1e12:.3g}', f'{flops / taken / peak:.0%}'
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE.type == 'cuda')
        with profile(activities=activities) as found:
            for _ in range(N_STEPS):
                step()
            synchronize()
        kind = 'device' if DEVICE.type == 'cuda' else 'cpu'
        spent = {event.key: getattr(event, f'self_{kind}_time_total') / 1e6 / N_STEPS for event in found.key_averages()}
        if DEVICE.type == 'cuda':
            yield f'{name}, the same: share of the time in which the GPU computes', '', '', f'{sum(spent.values()) / taken:.0%}'
        for key in sorted(spent, key=spent.get, reverse=True)[:N_OPERATIONS]:
            yield f'{name}, the same: `{key[:90]}`, seconds', '', f'{spent[key]:.3g}', f'{spent[key] / sum(spent.values()):.0%}'
