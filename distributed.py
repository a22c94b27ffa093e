"""The processes of a job: one, or several started by torchrun on one machine or many."""

import contextlib
import functools
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

from files import UserError, count, explain
from utils import get_device

# How long to wait for a slower process, at the start and later; a dead one is noticed at once
START_TIMEOUT, TIMEOUT = timedelta(minutes=1), timedelta(hours=2)

# Options that may differ between the processes of a job
PER_PROCESS_OPTIONS = {
    'data_dir', 'save_path', 'device', 'n_workers', 'local_rank', 'config', 'xp_dir', 'out_dir',
    'lpips_dir', 'i3d_path', 'weights'}


@dataclass(frozen=True)
class World:
    """Place of this process in the job, and collective operations. By default a single process.

    Attributes
    ----------
    rank, size : int
        Number of this process, from 0, and of all. Process 0 alone writes files and prints.
    local_rank, local_size : int
        The same on this machine.
    group : torch.distributed.ProcessGroup
    """
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    group: object = field(default=None, compare=False)

    @property
    def main(self):
        """Whether this process writes files and prints."""
        return self.rank == 0

    def part(self, n, rank=None):
        """Range of the items among n that belong to this process, or to `rank`."""
        rank = self.rank if rank is None else rank
        return range(n * rank // self.size, n * (rank + 1) // self.size)

    def sum(self, values):
        """Sums of numbers over all processes: list of float."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def gather(self, value):
        """Picklable values of all processes: list by rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, self.group)
        return values

    def share(self, value):
        """Picklable value of process 0, in all processes."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, self.group)
        return box[0]

    def collect(self, part, n):
        """Concatenate the `part(n)` of each process, arrays, in process 0; None in the others."""
        if self.size == 1:
            return part
        if not self.main:
            dist.send(torch.from_numpy(np.ascontiguousarray(part)), 0, self.group)
            return None
        whole = np.empty((n, *part.shape[1:]), part.dtype)
        whole[:len(part)] = part
        for rank in range(1, self.size):
            theirs = self.part(n, rank)
            dist.recv(torch.from_numpy(whole[theirs.start:theirs.stop]), rank, self.group)
        return whole

    def local_main_first(self, function):
        """Result of `function`, called first by process 0 of each machine, then by the others.

        The others may use what the first one downloaded. A UserError or SystemExit in any process
        ends all of them; its message is printed once.
        """
        if self.size == 1:
            return function()
        result, end = None, None
        for turn in (True, False):
            if turn == (self.local_rank == 0):
                try:
                    result = function()
                except SystemExit as error:
                    end = error.code, None
                except Exception as error:
                    if explain(error) is None:
                        raise
                    end = 2, explain(error)
            ends = self.gather(end)
            rank = next((r for r, e in enumerate(ends) if e is not None), None)
            if rank is not None:
                self._exit_together(rank, *ends[rank])
        return result

    def _exit_together(self, rank, code, message):
        """Exit, as all processes do, for a reason met by process `rank`."""
        if self.main and message is not None:
            where = f' (process {rank} of {self.size})' if rank > 0 else ''
            print(f'error: {message}{where}', file=sys.stderr, flush=True)
        self.gather(None)  # the launcher kills the others when one exits: not before the message
        raise SystemExit(code)

    def device(self, devices, **kwargs):
        """Device of this process, from the list given as `--device`: one per local process."""
        if devices in (None, ['cpu']):
            return get_device('cpu')
        found = '--device ' + ' '.join(map(str, devices))
        if len(devices) != self.local_size:
            raise UserError(f'{found}: {count(len(devices), "device")}, but '
                            f'{count(self.local_size, "process", "processes")} on this machine; '
                            'start one per device, with '
                            f'torchrun --nproc_per_node={len(devices)} … {found}')
        if len(set(devices)) < len(devices) and 'cpu' not in devices:
            raise UserError(f'{found}: a CUDA device can serve only one process; '
                            'choose different ones')
        return get_device(devices[self.local_rank], **kwargs)

    def check_equal(self, facts, ignore=()):
        """Raise a UserError in all processes if a fact that all of them have, by name, differs."""
        everyone = self.gather(facts)

        def compare():
            for rank, theirs in enumerate(everyone):
                for key in sorted((facts.keys() & theirs.keys()) - set(ignore)):
                    if theirs[key] != facts[key]:
                        raise UserError(f'process {rank} has {key} {theirs[key]}, process '
                                        f'{self.rank} has {facts[key]}; they must be the same')
        self.local_main_first(compare)


class Ring:
    """Watches over the other processes: each waits for a message that the next sends at its end.

    If a process dies, the connection closes. (The launcher stops the processes of one machine
    only; those on other machines could compute on alone for a long time.)
    """

    def __init__(self, world):
        self.world = world
        self.group = dist.new_group(backend='gloo', timeout=timedelta(days=365))
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self):
        try:
            dist.recv(torch.zeros(1), (self.world.rank + 1) % self.world.size, self.group)
        except RuntimeError as error:
            exit_after_loss(self.world, error)

    def end(self):
        """Wait until all processes have ended their work."""
        dist.send(torch.zeros(1), (self.world.rank - 1) % self.world.size, self.group)
        self.thread.join()


_exiting = threading.Lock()


def exit_after_loss(world, error):
    """Exit at once because another process died, with one line on stderr."""
    _exiting.acquire()  # never released: the watcher or the main thread, whichever comes first
    reason = str(error).splitlines()[0]
    print(f'process {world.rank} exits because it lost another one ({reason})', file=sys.stderr,
          flush=True)
    os._exit(1)


@contextlib.contextmanager
def join():
    """Context in which the processes of a job are connected, as the launcher's environment says.

    Yields
    ------
    World
    """
    env = os.environ
    if 'LOCAL_RANK' not in env or env.get('WORLD_SIZE') in (None, '', '1'):
        yield World()
        return
    place = read_place(env)
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    backend = 'cpu:gloo,cuda:nccl' if has_nccl else 'gloo'
    try:
        dist.init_process_group(backend, timeout=START_TIMEOUT)
        world = World(*place, dist.new_group(backend=backend, timeout=TIMEOUT))
        ring = Ring(world)
        try:
            yield world
        except SystemExit:  # of all processes together
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
        exit_after_loss(World(*place), error)


def read_place(env):
    """Rank, world size, local rank and local world size from the launcher's environment."""
    names = 'RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_PORT', 'MASTER_ADDR'
    for name in names:
        pattern = r'.+' if name == 'MASTER_ADDR' else r'\d{1,9}'
        if not re.fullmatch(pattern, env.get(name, '')):
            raise UserError(f'LOCAL_RANK is set, as by a launcher, but {name} is '
                            f'{env.get(name, "")!r}; start the processes with torchrun, '
                            'or unset LOCAL_RANK for a single process')
    return [int(env[name]) for name in names[:4]]


class Stopped(Exception):
    """A signal asked to stop."""


class StopSignal:
    """Context that notes SIGINT (Ctrl-C) and SIGTERM, to be obeyed between two steps.

    A second signal ends the run at once, except under a launcher, which repeats signals and
    finally kills.

    Parameters
    ----------
    world : World
    doing : str
        What is done about the signal, for the message.
    """

    def __init__(self, world, doing):
        self.world, self.doing = world, doing

    def __enter__(self):
        self.received = None
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
            with contextlib.suppress(OSError):  # Ctrl-C also ends the reader of a pipe
                os.write(2, f'\n{signal.Signals(number).name}: {self.doing}\n'.encode())


class Desk:
    """Hands out tasks and takes their results; in process 0."""

    def __init__(self, tasks, deliver):
        self.tasks, self.deliver, self.lock = iter(tasks), deliver, threading.Lock()
        self.stopped, self.error = False, None

    def exchange(self, task, result, stopped):
        """Take the result (bytes, may be empty) of a task; returns the next task, -1 at the end."""
        with self.lock:
            try:
                if result:
                    self.deliver(task, result)
            except Exception as error:  # raised later, by the main thread
                self.error = error
            self.stopped |= bool(stopped)
            return -1 if self.stopped or self.error else next(self.tasks, -1)

    def serve(self, world, group):
        """Exchange with all other processes, until they have all been told to end."""
        try:
            self._serve(world.size - 1, group)
        except RuntimeError as error:  # a process died
            self.error = error

    def _serve(self, working, group):
        while working:
            header = torch.zeros(3, dtype=torch.int64)
            rank = dist.recv(header, group=group)
            task, size, stopped = header.tolist()
            result = torch.empty(size, dtype=torch.uint8)
            if size:
                dist.recv(result, rank, group)
            reply = self.exchange(task, result.numpy().tobytes(), stopped)
            dist.send(torch.tensor([reply]), rank, group)
            working -= reply < 0


def exchange_with_desk(group, task, result, stopped):
    """`Desk.exchange` of process 0, called from another process."""
    dist.send(torch.tensor([task, len(result), stopped]), 0, group)
    if result:
        dist.send(torch.frombuffer(bytearray(result), dtype=torch.uint8), 0, group)
    reply = torch.zeros(1, dtype=torch.int64)
    dist.recv(reply, 0, group)
    return int(reply)


def work(exchange, run):
    """Run tasks, as they are handed out, to the end."""
    task, result = -1, b''
    while (task := exchange(task, result, False)) >= 0:
        try:
            result = run(task)
        except Stopped:
            exchange(task, b'', True)
            return


def share_tasks(world, tasks, run, deliver):
    """Run tasks on all processes, each of which takes the next one as soon as it is free.

    Parameters
    ----------
    world : World
    tasks : list of int ≥ 0
        Only those of process 0 count.
    run : function
        Returns the result of a task, as bytes. May raise `Stopped`, which ends the work of all
        processes after their present tasks.
    deliver : function
        Called with each task and its result, in process 0.

    Returns
    -------
    bool
        Whether the work was stopped; the same in all processes.
    """
    desk = Desk(tasks, deliver)
    if world.size == 1:
        work(desk.exchange, run)
    else:
        group = dist.new_group(backend='gloo', timeout=TIMEOUT)
        if world.main:
            server = threading.Thread(target=desk.serve, args=(world, group), daemon=True)
            server.start()
            work(desk.exchange, run)
            server.join()
        else:
            work(functools.partial(exchange_with_desk, group), run)
    if desk.error:
        raise desk.error
    return world.share(desk.stopped)
