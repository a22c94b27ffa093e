"""The processes of a job: one, or several that torchrun or torch.distributed.launch started on one machine or many."""

import contextlib
import os
import re
import signal
import sys
import threading
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn

from files import UserError
from utils import get_device

START, TIMEOUT = timedelta(minutes=1), timedelta(hours=2)  # of waiting for a slower process; one that dies later is noticed at once


@dataclass(frozen=True)
class World:
    """Place of this process among all of a job, and what they do together. The defaults are those of a single process.

    Attributes
    ----------
    rank, size : int
        Number of this process, from 0, and of all. Process 0 alone writes files and prints.
    local_rank, local_size : int
        The same on this machine.
    """
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    group: object = field(default=None, compare=False)  # of torch.distributed

    @property
    def main(self):
        """Whether this process writes files and prints."""
        return self.rank == 0

    def part(self, n, rank=None):
        """Range of the items among n that fall to this process, or to `rank`: consecutive, of sizes that differ by one at most."""
        rank = self.rank if rank is None else rank
        return range(n * rank // self.size, n * (rank + 1) // self.size)

    def sum(self, values):
        """Sums of numbers over all processes: list of float, the same in each."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def gather(self, value):
        """Values, of any picklable kind, of all processes: list by rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, self.group)
        return values

    def share(self, value):
        """Value of process 0, in all of them."""
        if self.size > 1:
            box = [value]
            dist.broadcast_object_list(box, 0, self.group)
            value, = box
        return value

    def collect(self, part, n):
        """Array of n items in process 0 from the `part(n)` of each process, along the first axis; None in the others."""
        if self.size == 1:
            return part
        if self.rank > 0:
            dist.send(torch.from_numpy(np.ascontiguousarray(part)), 0, self.group)
            return None
        whole = np.empty((n, *part.shape[1:]), part.dtype)
        whole[:len(part)] = part
        for rank in range(1, self.size):
            theirs = self.part(n, rank)
            dist.recv(torch.from_numpy(whole[theirs.start:theirs.stop]), rank, self.group)
        return whole

    def call(self, function):
        """Result of `function`, called by the first process of each machine, then, which may use what those downloaded, by the others.

        Bad input (UserError) or the end of the program (SystemExit) in any process ends all; its sentence is printed once.
        """
        if self.size == 1:
            return function()
        result, end = None, None
        for turn in (True, False):
            if turn == (self.local_rank == 0):
                try:
                    result = function()
                except UserError as error:
                    end = 2, str(error)
                except SystemExit as error:
                    end = error.code, None
            ends = self.gather(end)
            rank = next((r for r, e in enumerate(ends) if e is not None), None)
            if rank is not None:
                code, message = ends[rank]
                if self.main and message is not None:
                    print(f'error: {message}' + f' (process {rank} of {self.size})' * (rank > 0), file=sys.stderr, flush=True)
                self.gather(None)  # before the launcher sees one end and ends the others, the sentence is out
                raise SystemExit(code)
        return result

    def device(self, devices):
        """Device of this process, of the list given by `--device`: one each on this machine. The CPU if there is none."""
        if devices in (None, ['cpu']):
            return get_device('cpu')
        if len(devices) != self.local_size:
            found = '--device ' + ' '.join(map(str, devices))
            raise UserError(f'{found}: {len(devices)} devices, but {self.local_size} processes on this machine; give one for each, as by '
                            f'torchrun --nproc_per_node={len(devices)} … {found}')
        if len(set(devices)) < len(devices) and 'cpu' not in devices:
            raise UserError(f'--device {" ".join(map(str, devices))}: a CUDA device can serve one process only; name different ones')
        device = get_device(devices[self.local_rank])
        if device.type == 'cuda':
            torch.cuda.set_device(device)
        return device

    def agree(self, facts, own=()):
        """Stop unless the facts (by name) are the same in all processes, those named in `own` aside."""
        everyone = self.gather(facts)

        def compare():
            for rank, theirs in enumerate(everyone):
                for key in sorted(facts.keys() - set(own)):
                    if theirs[key] != facts[key]:
                        raise UserError(f'process {rank} has {key} {theirs[key]}, process {self.rank} has {facts[key]}; they must be the same')
        self.local_main_first(compare)


PER_PROCESS_OPTIONS = {'data_dir', 'save_path', 'device', 'n_workers', 'local_rank', 'config', 'xp_dir', 'out_dir', 'lpips_dir', 'i3d_path', 'weights'}  # of a machine


class Ring:
    """Watch over the other processes: each waits for a word of the next one, which says it at its end; one that dies closes the line.

    The launcher ends the processes of a machine only, and those of other machines may compute alone for long.
    """

    def __init__(self, world):
        self.world, self.group = world, dist.new_group(backend='gloo', timeout=timedelta(days=365))
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self):
        try:
            dist.recv(torch.zeros(1), (self.world.rank + 1) % self.world.size, self.group)
        except RuntimeError as error:
            leave(self.world, error)

    def end(self):
        """Wait for the end of all."""
        dist.send(torch.zeros(1), (self.world.rank - 1) % self.world.size, self.group)
        self.thread.join()


_leaving = threading.Lock()


def leave(world, error):
    """End this process, for another one has ended; told in a line, that the message of that one is seen."""
    _leaving.acquire()  # once: neither the watch nor the main thread comes back
    print(f'process {world.rank} ends, for it has lost another one ({str(error).splitlines()[0]})', file=sys.stderr, flush=True)
    os._exit(1)


@contextlib.contextmanager
def join():
    """Context in which the processes of a job are connected, as their launcher describes them in the environment.

    Yields
    ------
    World
    """
    env = os.environ
    if 'LOCAL_RANK' not in env or env.get('WORLD_SIZE') in (None, '', '1'):
        yield World()
        return
    names = 'RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_PORT', 'MASTER_ADDR'
    if wrong := [name for name in names if not re.fullmatch(r'.+' if name == 'MASTER_ADDR' else r'\d{1,9}', env.get(name, ''))]:
        raise UserError(f'the environment has LOCAL_RANK, as from a launcher, but {wrong[0]} {env.get(wrong[0], "")!r}; start the processes by torchrun, '
                        'or unset LOCAL_RANK for a single one')
    place = [int(env[name]) for name in names[:4]]
    backend = 'cpu:gloo,cuda:nccl' if torch.cuda.is_available() and dist.is_nccl_available() else 'gloo'
    try:
        dist.init_process_group(backend, timeout=START)
        world = World(*place, dist.new_group(backend=backend, timeout=TIMEOUT))
        ring = Ring(world)
        try:
            yield world
        except SystemExit:  # of all together, see `call`
            ring.end()
            dist.destroy_process_group()
            raise
        ring.end()
        dist.destroy_process_group()
    except UserError as error:  # of this process alone
        print(f'error: {error} (process {place[0]} of {place[1]})', file=sys.stderr, flush=True)
        os._exit(2)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and 'gloo' not in str(error):
            raise
        leave(World(*place), error)


class StopSignal:
    """Context that notes SIGINT (Ctrl-C) and SIGTERM, to be answered between two steps; a second one ends the run at once.

    Under a launcher, which repeats signals and in the end kills by itself, a second one is ignored.
    """

    def __init__(self, world):
        self.world = world

    def __enter__(self):
        self.received = None
        self.before = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self, number, frame):
        self.received = number
        signal.signal(number, signal.SIG_IGN if self.world.size > 1 else signal.SIG_DFL)
        if self.world.main:
            with contextlib.suppress(OSError):  # Ctrl-C also ends the reader of a pipe
                os.write(2, f'\n{signal.Signals(number).name} received: saving the state\n'.encode())


class AllReduce(torch.autograd.Function):
    """Sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group, total = group, x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad):
        return AllReduce.forward(ctx, grad, ctx.group), None


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes' batches, on CPUs, where PyTorch has none."""
    group = None  # of torch.distributed

    def forward(self, x):
        """(N, C, H, W) -> (N, C, H, W)"""
        if not self.training:
            return super().forward(x)
        dims = 0, 2, 3
        x_ = x.float()
        total = AllReduce.apply(torch.cat([x_.sum(dims), x_.new_tensor([x_.numel() / x_.shape[1]])]), self.group)
        mean, count = total[:-1] / total[-1], total[-1]
        centred = x_ - mean[:, None, None]
        var = AllReduce.apply((centred ** 2).sum(dims), self.group) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)  # the unbiased one
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def distribute(model, device, world):
    """Model whose gradients are means over all processes and whose batch normalisations see all their batches."""
    if device.type == 'cuda':
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model, world.group)
    else:
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.__class__, m.group = SyncBatchNorm, world.group  # the same state, another forward
    for p in model.parameters():
        if p.ndim == 4 and p.shape[1] == 1:  # one channel may have any stride: in a gradient the parameter's, or DDP warns of another layout
            p.register_hook(lambda grad, strides=p.stride(): grad.as_strided(grad.shape, strides))
    return nn.parallel.DistributedDataParallel(model, process_group=world.group, gradient_as_bucket_view=True)
