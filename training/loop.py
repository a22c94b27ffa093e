"""A training run: steps, validation, logs, checkpoints, and the state from which it goes on."""

import contextlib
import math
import os
import signal
import statistics
import time
from pathlib import Path

import torch

from data.stream import BatchStream, chunks, make_loader
from distributed import StopSignal, distribute
from files import UserError, progress_bar, replacing
from training.log import TERMS, RunLog
from model import build_model, loss
from training.precision import Precision, amp_dtype, build_precision
from sampling import Chunk, draw_noise, validation_psnr
from checkpoint import load, load_model, save, write
from utils import stream_generator, to_video


class Stopped(Exception):
    """The run was asked to stop by a signal."""


class NotFinite(Exception):
    """The loss or a weight is infinite or not a number."""


def learning_rate(k, config):
    """Learning rate of update k = 1, 2, …: constant for `burnin` updates, then linear to 0 in `n_iter`."""
    decay = max(0, k - config.lr_scheduling_burnin) / max(1, config.lr_scheduling_n_iter)
    return config.lr * max(0., 1 - decay)


class Trainer:
    """A run: model, optimiser, place in the data, logs and files.

    Several processes train one model: each takes its part of every batch and of the validation videos.

    Parameters
    ----------
    config : argparse.Namespace
        Resolved configuration.
    sources : pair of sources of training and validation videos (see `data`)
    device : torch.device
    world : distributed.World
    state : dict
        What a continued run takes over (`read_state`).
    weights : dict
        `state_dict` that a new run starts from (`read_weights`).
    """

    def __init__(self, config, sources, device, world, state=None, weights=None):
        self.config, self.device, self.world = config, device, world
        self.folder = Path(config.save_path)
        self.n_steps = config.lr_scheduling_burnin + config.lr_scheduling_n_iter
        self.train_stream = BatchStream(sources[0], config.seed, 'train', config.seq_len)
        self.val_stream = BatchStream(sources[1], config.seed, 'val', config.seq_len_test)
        torch.manual_seed(config.seed)
        self.model = build_model(config)
        if weights is not None:
            self.model.load_state_dict(weights)
        self.model.to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, fused=True)
        self.precision = build_precision(config, self.model, self.optimizer, device)
        self.network = self.model   # with the other processes, once it runs
        self.step = 0               # updates done
        self.validated = 0          # step of the last validation
        self.score = self.best = -math.inf
        self.sums, self.n_summed = [0.] * len(TERMS), 0  # loss terms since the last line of the log
        self.saved = None           # (step, validated) of the last state on disk
        self.stopped = False
        if state is not None:
            self.restore(state)

    # State

    def restore(self, state):
        """Take over model, optimiser, precision and place from a state (`save_state`); one of another run is a UserError."""
        path = self.folder / 'state.pt'
        try:
            state = dict(state)
            self.model.load_state_dict(state['model'])
            self.restore_optimizer(state['optimizer'], scaled=bool(state['precision']))
            if self.config.torch_amp and self.config.amp_dtype == 'auto':
                self.precision = Precision(self.device, amp_dtype(state['dtype'], self.device))
            self.precision.load_state_dict(state['precision'])
            for name, kind in (('step', int), ('validated', int), ('score', float), ('best', float), ('n_summed', int)):
                setattr(self, name, kind(state[name]))
            if self.n_summed < 0:
                raise ValueError(f'n_summed is {self.n_summed}')
            self.sums = [float(v) for _, v in zip(TERMS, state['sums'], strict=True)]
            processes, accumulate = int(state['processes']), int(state['accumulate'])
        except (KeyError, IndexError, AttributeError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise UserError(f'--resume: {path} is not a state of this run ({error}); it cannot be continued') from None
        if not 0 <= self.step <= self.n_steps:
            raise UserError(f'--resume: {path} is of step {self.step:,}, but the run has {self.n_steps:,} steps; was config.json changed?')
        self.saved = self.step, self.validated
        now = self.world.size, self.config.accumulate
        if now != (processes, accumulate) and self.world.main:
            print(f'note: {describe_split(*now)} instead of {describe_split(processes, accumulate)} share a batch from now on; weights, optimiser, '
                  'schedule, videos and random numbers go on exactly, but sums are rounded in another order'
                  + ', and batch normalisation sees other parts of a batch' * (max(accumulate, now[1]) > 1))

    def restore_optimizer(self, state, scaled):
        """Take over Adam's means, which fused Adam would not check; its options are those of the configuration. There are none yet if all steps of a run with
        `scaled` gradients were left out."""
        parameters = [p for group in self.optimizer.param_groups for p in group['params']]
        for i, p in enumerate(parameters) if state['state'] or not scaled else ():
            found = {name: (tuple(v.shape), v.dtype) for name, v in state['state'][i].items()}
            expected = {'step': ((), torch.float32), 'exp_avg': (tuple(p.shape), p.dtype), 'exp_avg_sq': (tuple(p.shape), p.dtype)}
            if found != expected:
                raise ValueError(f'optimizer: of parameter {i}, {found} was found, expected {expected}')
        self.optimizer.load_state_dict({'state': state['state'], 'param_groups': self.optimizer.state_dict()['param_groups']})

    def save_state(self):
        """Save all that a continued run needs, and the weights by themselves as `model.pt`."""
        if self.saved == (self.step, self.validated):
            return
        weights = self.model.state_dict()
        if not all(v.isfinite().all() for v in weights.values()):
            raise NotFinite(f'a weight after step {self.step:,}')
        if not self.world.main:
            return
        state = {
            'model': weights, 'optimizer': self.optimizer.state_dict(), 'precision': self.precision.state_dict(), 'step': self.step,
            'validated': self.validated, 'score': self.score, 'best': self.best, 'sums': self.sums, 'n_summed': self.n_summed,
            'dtype': self.precision.name, 'processes': self.world.size, 'accumulate': self.config.accumulate}
        # A run killed before the last line repeats both; where there was no state, that is complete beside model.pt (`read_state`)
        with replacing(self.folder / 'state.pt') as tmp:
            write(tmp, state)
            save(self.folder / 'model.pt', weights)
        self.saved = self.step, self.validated

    # Steps

    def train_step(self, batch, stop):
        """One update on this process's part of a batch, uint8 (T, B', H, W, C).

        The random numbers are drawn for the whole batch and depend on seed and step only, so that a run does not depend on how its
        batches are split. Afterwards, `self.stopped` tells whether any process was asked to stop.

        Returns
        -------
        dict
            Loss and its terms (`log.TERMS`), float, of the whole batch.

        Raises
        ------
        NotFinite
        """
        c, world = self.config, self.world
        generator = stream_generator(c.seed, 'noise', self.step)
        noise = self.model.draw_noise(c.seq_len, c.batch_size, generator=generator)
        frames = self.model.draw_frames(c.seq_len, c.batch_size, generator=generator)
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate(self.step + 1, c)
        self.optimizer.zero_grad()
        mine = world.part(c.batch_size)
        values = 0
        for k in range(c.accumulate):
            videos = mine[len(mine) * k // c.accumulate:len(mine) * (k + 1) // c.accumulate]
            part, last = slice(videos.start, videos.stop), k == c.accumulate - 1
            x = to_video(batch[:, videos.start - mine.start:videos.stop - mine.start], self.device)
            with contextlib.nullcontext() if last or world.size == 1 else self.network.no_sync():
                with self.precision.autocast():
                    out = self.network(x, c.seq_len, noise=noise.of(part, x.device), frames=frames.of(part, x.device))
                losses = loss(x, out, obs_scale=c.obs_scale, beta_y=c.beta_y, beta_z=c.beta_z, l2_res=c.l2_res)
                share = len(videos) / c.batch_size
                self.precision.backward(losses.loss * share * world.size, last)  # gradients become means over processes
            values += share * torch.stack(losses).detach()
        *values, stopped = world.sum([*values.tolist(), stop.received is not None])
        if not all(map(math.isfinite, values)):
            raise NotFinite(f'the loss of step {self.step + 1:,}')
        self.precision.step(self.optimizer)
        self.step += 1
        self.sums = [s + v for s, v in zip(self.sums, values)]
        self.n_summed += 1
        self.stopped = bool(stopped)
        return dict(zip(TERMS, values))

    def validate(self, stop):
        """Score the best of N predictions of the validation videos (`validation_psnr`) and keep the best model so far."""
        c, world = self.config, self.world
        self.model.eval()
        chunk = Chunk(self.model)
        scores = torch.zeros(c.n_iter_test * c.batch_size_test, dtype=torch.float64)
        batches = chunks(world.part(len(scores)), c.batch_size_test)
        loader = iter(make_loader(self.val_stream, batches, min(c.n_workers, 1)))
        rounds = -(-len(world.part(len(scores), world.size - 1)) // c.batch_size_test)  # the last part is the largest
        for i in progress_bar(range(rounds), 'validation', leave=False, unit='batch', disable=None if world.main else True):
            self.stopped = any(world.sum([stop.received is not None]))
            if self.stopped:
                raise Stopped
            if i < len(batches):
                videos, x = batches[i], to_video(next(loader), self.device)
                noise = draw_noise(self.model, c.seed, 'val', videos, c.n_samples_test, c.seq_len_test)
                scores[videos.start:videos.stop] = validation_psnr(self.model, x, c.nt_cond, noise, chunk)
        self.model.train()
        scores = world.sum(scores.tolist())
        self.score, self.validated = statistics.fmean(scores), self.step
        if self.score > self.best:
            self.best = self.score
            if world.main:
                save(self.folder / 'model_best.pt', self.model.state_dict())

    def due(self, interval):
        """Whether something done every `interval` steps, and at the end, is due."""
        return self.step > 0 and (self.step % interval == 0 or self.step == self.n_steps)

    def log_terms(self, log, speed):
        """Write the means of the loss terms since the last line, and the `speed` in steps a second."""
        log.write(self.step, **{k: s / self.n_summed for k, s in zip(TERMS, self.sums)}, lr=learning_rate(self.step, self.config),
                  steps_per_s=speed)
        self.sums, self.n_summed = [0.] * len(TERMS), 0

    def run(self):
        """Train to the end, or to a signal; returns the signal's number, or None."""
        c, world = self.config, self.world
        if c.compile:
            self.model.compile_networks()
        if world.size > 1:
            self.network = distribute(self.model, self.device, world)
        mine = world.part(c.batch_size)
        videos = (range(i * c.batch_size + mine.start, i * c.batch_size + mine.stop) for i in range(self.step, self.n_steps))
        loader = make_loader(self.train_stream, videos, c.n_workers, self.device.type == 'cuda', world.local_size)
        self.model.train()
        with StopSignal(world) as stop, RunLog(self.folder, self.step, self.validated, world.main) as log, \
                progress_bar(total=self.n_steps, initial=self.step, unit='step', smoothing=0.05, disable=not world.main) as bar:
            batches, since, before = iter(loader), time.monotonic(), self.step  # the clock has seen the steps after `before`
            try:
                while True:
                    if self.due(c.state_interval):
                        self.save_state()  # before a validation too, which may take long
                    if self.due(c.val_interval) and self.validated != self.step:
                        started = time.monotonic()
                        self.validate(stop)
                        log.write(self.step, val_psnr=self.score, best_psnr=self.best)
                        if world.main:
                            bar.write(f'step {self.step:,}: validation PSNR {self.score:.2f} dB, best {self.best:.2f} dB')
                        since += time.monotonic() - started
                    if self.due(c.state_interval):
                        self.save_state()
                    if self.step == self.n_steps:
                        return None
                    terms = self.train_step(next(batches), stop)
                    if self.due(c.log_interval):
                        now = time.monotonic()
                        self.log_terms(log, (self.step - before) / (now - since))
                        since, before = now, self.step
                    if world.main and c.chkpt_interval and self.step % c.chkpt_interval == 0:
                        save(self.folder / f'model_{self.step}.pt', self.model.state_dict())
                    bar.set_postfix({k: f'{terms[k]:.5g}' for k in TERMS[:4]}
                                    | {'val': f'{self.score:.2f} dB' if self.validated else '-'}, refresh=False)
                    bar.update()
                    if self.stopped:
                        raise Stopped
            except Stopped:
                self.save_state()
                return stop.received or signal.SIGTERM  # of another process
            except BrokenPipeError:  # nobody reads the output any more
                self.save_state()
                raise


def describe_split(processes, accumulate):
    """What a batch is split into, for people."""
    return f'{processes} process{"es" if processes > 1 else ""}' + f' with {accumulate} parts each' * (accumulate > 1)


def read_weights(config):
    """Weights, a float32 `state_dict`, that a new run starts from; None if --weights names none. Those of another configuration are a UserError."""
    return load_model(config, config.weights, 'cpu').state_dict() if config.weights else None


def remove_temporary(folder):
    """Remove what a run that was killed while saving left behind; temporary files of other scripts stay."""
    for name in ('state.pt', 'model*.pt', 'log.csv', 'config.json'):
        for tmp in Path(folder).glob(f'.{name}.*.tmp'):
            tmp.unlink()


def read_state(folder):
    """State of a run that is continued; None if it ended before its first one: then configuration and seed are all there is.

    Raises
    ------
    UserError
        There are weights, which are not to be lost, but no state that belongs to them.
    """
    path, model = Path(folder) / 'state.pt', Path(folder) / 'model.pt'
    if model.exists() and not path.exists():
        for tmp in path.parent.glob('.state.pt.*.tmp'):  # of a run killed while saving its first state: complete, or there were no weights yet
            state = load(tmp)
            os.replace(tmp, path)
            return state
        raise UserError(f'--resume: {path} is missing, without which a run cannot be continued; start a new one in another folder by --weights {model}')
    remove_temporary(folder)
    return load(path) if path.exists() else None
