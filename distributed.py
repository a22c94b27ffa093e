"""The processes of a job: one, or several started by torchrun on one machine or many."""

import contextlib
import functools
import os
import signal
import time
from dataclasses import dataclass
from datetime import timedelta

from files import UserError, count

import torch
import torch.distributed as dist
import torch.nn as nn

from utils import get_device

TIMEOUT = timedelta(hours=2)  # for a slower process; torchrun ends the others of a dead one


@dataclass(frozen=True)
class World:
    """Place of this process in the job, and collective operations. By default a single process."""
    rank: int = 0        # number of this process, from 0
    size: int = 1        # number of processes
    local_rank: int = 0  # the same on this machine
    local_size: int = 1

    @property
    def main(self):
        """Whether this process writes states and logs, and prints."""
        return self.rank == 0

    def part(self, n):
        """Range of the items among n that belong to this process."""
        return range(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum(self, values):
        """Sum of a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag):
        """Whether a flag is set in any process."""
        return bool(self.sum(torch.tensor(float(flag))))

    def share(self, value):
        """Picklable value of process 0, in all processes."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def wait(self):
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def local_main_first(self):
        """Context that process 0 of each machine passes first, such as for downloads."""
        if self.local_rank > 0:
            self.wait()
        yield
        if self.local_rank == 0:
            self.wait()

    def device(self, devices, **kwargs):
        """Device of this process, from the list given as `--device`: one per local process."""
        if devices in (None, ['cpu']):
            return get_device('cpu')
        if len(devices) != self.local_size:
            found = '--device ' + ' '.join(map(str, devices))
            raise UserError(f'{found}: {count(len(devices), "device")}, but '
                            f'{count(self.local_size, "process", "processes")} on this machine; '
                            'start one per device, with '
                            f'torchrun --nproc_per_node={len(devices)} … {found}')
        return get_device(devices[self.local_rank], **kwargs)


@contextlib.contextmanager
def join():
    """Context that connects the processes of a job, as the launcher says; yields the `World`."""
    env = os.environ
    if int(env.get('WORLD_SIZE', 1)) == 1 or 'LOCAL_RANK' not in env:
        yield World()
        return
    dist.init_process_group('cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo',
                            timeout=TIMEOUT)
    world = World(dist.get_rank(), dist.get_world_size(), int(env['LOCAL_RANK']),
                  int(env.get('LOCAL_WORLD_SIZE', dist.get_world_size())))
    try:
        yield world
    except UserError:
        if not world.main:  # if process 0 fails as well, the launcher ends this one meanwhile
            time.sleep(3)
        raise
    dist.destroy_process_group()


# Signals

class StopSignal:
    """Context that notes SIGINT (Ctrl-C) and SIGTERM, to be obeyed between two steps.

    A second signal ends the run at once, except under a launcher, which repeats signals. `doing`
    says what is done about the signal, for the message.
    """

    def __init__(self, world, doing):
        self.world, self.doing, self.received = world, doing, None

    def __enter__(self):
        self.previous = {number: signal.signal(number, self)
                         for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __call__(self, number, frame):
        self.received = number
        signal.signal(number, signal.SIG_IGN if self.world.size > 1 else signal.SIG_DFL)
        if self.world.main:
            with contextlib.suppress(OSError):  # stderr is a pipe whose reader got the signal too
                os.write(2, f'\n{signal.Signals(number).name}: {self.doing}\n'.encode())


# Training

class AllReduce(torch.autograd.Function):
    """Sum of a tensor over all processes; its gradient is the sum of theirs.

    PyTorch's own, `torch.distributed.nn.functional.all_reduce`, is deprecated.
    """

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        return AllReduce.forward(ctx, grad)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes.

    PyTorch's own has no CPU version, and waits for the GPU three times a layer.
    """

    def forward(self, x):
        """(N, C, H, W) -> (N, C, H, W)"""
        if not self.training:
            return super().forward(x)
        dims = 0, 2, 3
        x_ = x.float()
        n = x_.new_full([1], x_.numel() / x_.shape[1])
        total = AllReduce.apply(torch.cat([x_.sum(dims), n]))
        mean, n = total[:-1] / total[-1], total[-1]
        centred = x_ - mean[:, None, None]
        var = AllReduce.apply((centred ** 2).sum(dims)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)  # unbiased
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def distribute(model):
    """Model with gradients averaged, and batch statistics computed, over all processes."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.__class__ = SyncBatchNorm  # same state, other forward
    for p in model.parameters():
        # The stride of an axis of length 1 is arbitrary; DDP warns unless the gradient has p's
        if p.ndim == 4 and p.shape[1] == 1:
            p.register_hook(functools.partial(torch.as_strided, size=p.shape, stride=p.stride()))
    for b in model.buffers():  # of --weights; DDP copies parameters only
        dist.broadcast(b, 0)
    return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False,
                                               gradient_as_bucket_view=True)
