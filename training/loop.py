"""A training run: steps, validation, logs and checkpoints."""

import contextlib
import math
import signal
import statistics
import time
from pathlib import Path

import torch

from checkpoint import save
from data.stream import BatchStream, make_loader
from distributed import Stopped, StopSignal
from files import UserError, progress_bar
from logs import TERMS
from model import build_model, loss
from training.log import RunLog
from training.parallel import distribute
from training.precision import Precision, amp_dtype, build_precision
from training.state import (
    FORMAT,
    check_identity,
    describe_split,
    identity,
    restore_optimizer,
    write_state,
)
from training.validation import draw, validate
from utils import stream_generator, to_video


class NotFinite(Exception):
    """The loss or a weight is infinite or not a number."""


def learning_rate(k, config):
    """Learning rate of update k = 1, 2, …: constant for `burnin` updates, then linear to 0."""
    decay = max(0, k - config.lr_scheduling_burnin) / max(1, config.lr_scheduling_n_iter)
    return config.lr * max(0., 1 - decay)


class Trainer:
    """A run: model, optimiser, place in the data, logs and files.

    Several processes train one model: each processes its part of every batch and of the validation
    videos.

    Parameters
    ----------
    config : argparse.Namespace
    sources : pair of sources of training and validation videos (see `data`)
    device : torch.device
    world : distributed.World
    """

    def __init__(self, config, sources, device, world):
        self.config, self.device, self.world = config, device, world
        self.folder = Path(config.save_path)
        self.n_steps = config.lr_scheduling_burnin + config.lr_scheduling_n_iter
        self.train_stream = BatchStream(sources[0], config.seed, 'train', config.seq_len)
        self.val_stream = BatchStream(sources[1], config.seed, 'val', config.seq_len_test)
        torch.manual_seed(config.seed)
        self.model = build_model(config).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, fused=True)
        self.precision = build_precision(config, self.model, self.optimizer, device)
        self.network = self.model   # wrapped by DistributedDataParallel once it runs
        self.step = 0               # updates done
        self.validated = 0          # step of the last validation
        self.score = self.best = -math.inf
        self.sums, self.n_summed = [0.] * len(TERMS), 0  # loss terms since the last row of the log
        self.saved = None           # (step, validated) of the last state on disk
        self.stopped = False

    @property
    def complete(self):
        """Whether nothing is left to do."""
        return self.step == self.validated == self.n_steps

    # State

    def state(self):
        """All that a resumed run needs."""
        return {
            'format': FORMAT, 'config': identity(self.config),
            'model': self.model.state_dict(), 'optimizer': self.optimizer.state_dict(),
            'precision': self.precision.state_dict(), 'dtype': self.precision.name,
            'step': self.step, 'validated': self.validated, 'score': self.score, 'best': self.best,
            'sums': self.sums, 'n_summed': self.n_summed,
            'processes': self.world.size, 'accumulate': self.config.accumulate}

    def restore(self, state):
        """Continue from a state. UserError if it is not a state of this run."""
        path = self.folder / 'state.pt'
        try:
            processes, accumulate = self._restore(dict(state))
        except (KeyError, IndexError, AttributeError, TypeError, ValueError, OverflowError,
                RuntimeError) as error:
            raise UserError(f'--resume: {path} is not a state of this run ({error}); '
                            'it cannot be continued') from None
        if not 0 <= self.step <= self.n_steps:
            raise UserError(f'--resume: {path} is of step {self.step:,}, but the run has '
                            f'{self.n_steps:,} steps; was config.json changed?')
        self.saved = self.step, self.validated
        now = self.world.size, self.config.accumulate
        if now != (processes, accumulate) and self.world.main:
            print(f'note: {describe_split(*now)} instead of {describe_split(processes, accumulate)}'
                  ' share a batch from now on; the run continues exactly, except that sums are '
                  'rounded in another order and, with --accumulate, batch normalisation sees other '
                  'parts of a batch')

    def _restore(self, state):
        """Restore everything; returns the numbers of processes and parts that shared a batch."""
        check_identity(state, self.config)
        self.model.load_state_dict(state['model'])
        scaled = bool(state['precision'])
        restore_optimizer(self.optimizer, state['optimizer'], scaled)
        if self.config.torch_amp and self.config.amp_dtype == 'auto':
            self.precision = Precision(self.device, amp_dtype(state['dtype'], self.device))
        self.precision.load_state_dict(state['precision'])
        for name in ('step', 'validated', 'n_summed'):
            setattr(self, name, int(state[name]))
        self.score, self.best = float(state['score']), float(state['best'])
        if self.n_summed < 0:
            raise ValueError(f'n_summed is {self.n_summed}')
        self.sums = [float(v) for _, v in zip(TERMS, state['sums'], strict=True)]
        return int(state['processes']), int(state['accumulate'])

    def save_state(self):
        """Save the state, unless it is on disk already."""
        if self.saved == (self.step, self.validated):
            return
        state = self.state()
        if not all(v.isfinite().all() for v in state['model'].values()):
            raise NotFinite(f'a weight after step {self.step:,}')
        if self.world.main:
            write_state(self.folder, state)
            self.saved = self.step, self.validated

    # Steps

    def train_step(self, batch, stop):
        """One update on this process's part of a batch, uint8 (T, B', H, W, C).

        The random numbers of a step are drawn for the whole batch and depend on seed and step
        only, so that a run does not depend on how its batches are split. Afterwards,
        `self.stopped` says whether any process was asked to stop.

        Returns
        -------
        dict
            Loss and its terms (`logs.TERMS`), float, of the whole batch.

        Raises
        ------
        NotFinite
        """
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate(self.step + 1, self.config)
        self.optimizer.zero_grad()
        values = self.accumulate_gradients(batch)
        *values, stopped = self.world.sum([*values.tolist(), stop.received is not None])
        if not all(map(math.isfinite, values)):
            raise NotFinite(f'the loss of step {self.step + 1:,}')
        self.precision.step(self.optimizer)
        self.step += 1
        self.sums = [s + v for s, v in zip(self.sums, values)]
        self.n_summed += 1
        self.stopped = bool(stopped)
        return dict(zip(TERMS, values))

    def accumulate_gradients(self, batch):
        """Gradients of this process's part of a batch; returns its share of the loss terms."""
        c, world = self.config, self.world
        generator = stream_generator(c.seed, 'noise', self.step)
        noise = self.model.draw_noise(c.seq_len, c.batch_size, generator=generator)
        frames = self.model.draw_frames(c.seq_len, c.batch_size, generator=generator)
        mine = world.part(c.batch_size)
        values = 0
        for k in range(c.accumulate):
            videos = mine[len(mine) * k // c.accumulate:len(mine) * (k + 1) // c.accumulate]
            part, last = slice(videos.start, videos.stop), k == c.accumulate - 1
            x = to_video(batch[:, videos.start - mine.start:videos.stop - mine.start], self.device)
            synchronised = last or world.size == 1
            with contextlib.nullcontext() if synchronised else self.network.no_sync():
                with self.precision.autocast():
                    out = self.network(x, c.seq_len, noise=noise.of(part, x.device),
                                       frames=frames.of(part, x.device))
                losses = loss(x, out, obs_scale=c.obs_scale, beta_y=c.beta_y, beta_z=c.beta_z,
                              l2_res=c.l2_res)
                share = len(videos) / c.batch_size
                # DDP averages gradients over processes: hence the factor
                self.precision.backward(losses.loss * share * world.size, last)
            values += share * torch.stack(losses).detach()
        return values

    # Validation

    def validate(self, stop):
        """Score the validation videos; save the best model so far. Returns the `Scores`."""
        self.model.eval()
        scores = validate(self.model, self.val_stream, self.config, self.device, self.world, stop)
        self.model.train()
        self.score, self.validated = statistics.fmean(scores.psnr), self.step
        if self.score > self.best:
            self.best = self.score
            if self.world.main:
                save(self.folder / 'model_best.pt', self.model.state_dict())
        return scores

    def report_validation(self, scores, log, bar):
        """Log the scores of a validation, draw its pictures, and print a line."""
        if not self.world.main:
            return
        ssim = statistics.fmean(scores.ssim)
        log.write_validation(
            self.step, {'val_psnr': self.score, 'best_psnr': self.best, 'val_ssim': ssim},
            scores.psnr_t.mean(0).tolist(),
            draw(self.folder / 'validation', scores, self.step, self.config.nt_cond))
        bar.write(f'step {self.step:,}: validation PSNR {self.score:.2f} dB, '
                  f'best {self.best:.2f} dB, SSIM {ssim:.4f}')

    # The run

    def run(self):
        """Train to the end, or to a signal; returns the signal's number, or None."""
        if self.config.compile:
            self.model.compile_networks()
        if self.world.size > 1:
            self.network = distribute(self.model, self.device, self.world)
        self.model.train()
        main, times = self.world.main, range(self.config.nt_cond, self.config.seq_len_test)
        with StopSignal(self.world, 'saving the state') as stop, \
                RunLog(self.folder, self.step, self.validated, times, main) as log, \
                progress_bar(total=self.n_steps, initial=self.step, unit='step', smoothing=0.05,
                             disable=not main) as bar, self.make_train_loader() as loader:
            try:
                self.loop(iter(loader), stop, log, bar)
            except Stopped:
                self.save_state()
                return stop.received or signal.SIGTERM  # sent to another process
            except BrokenPipeError:  # nobody reads the output any more
                self.save_state()
                raise
        return None

    def loop(self, batches, stop, log, bar):
        """Take the remaining steps, with validations, logs and states when they are due."""
        c, clock = self.config, Clock(self.step)
        while True:
            self.save_due_state()  # before the validation too, which may take long
            if self.is_due(c.val_interval) and self.validated != self.step:
                with clock.paused():
                    self.report_validation(self.validate(stop), log, bar)
            self.save_due_state()
            if self.step == self.n_steps:
                return
            terms = self.train_step(next(batches), stop)
            if self.is_due(c.log_interval):
                self.log_terms(log, clock.speed(self.step))
            if c.chkpt_interval and self.step % c.chkpt_interval == 0 and self.world.main:
                save(self.folder / f'model_{self.step}.pt', self.model.state_dict())
            self.show_progress(bar, terms)
            if self.stopped:
                raise Stopped

    def make_train_loader(self):
        """Loader of this process's parts of the remaining batches."""
        c, world = self.config, self.world
        mine = world.part(c.batch_size)
        videos = (range(i * c.batch_size + mine.start, i * c.batch_size + mine.stop)
                  for i in range(self.step, self.n_steps))
        return make_loader(self.train_stream, videos, c.n_workers, self.device.type == 'cuda',
                           world.local_size)

    def is_due(self, interval):
        """Whether something done every `interval` steps, and at the end, is due."""
        return self.step > 0 and (self.step % interval == 0 or self.step == self.n_steps)

    def save_due_state(self):
        if self.is_due(self.config.state_interval):
            self.save_state()

    def log_terms(self, log, speed):
        """Log the means of the loss terms since the last row, and the speed in steps/s."""
        log.write(self.step, **{k: s / self.n_summed for k, s in zip(TERMS, self.sums)},
                  lr=learning_rate(self.step, self.config), steps_per_s=speed)
        self.sums, self.n_summed = [0.] * len(TERMS), 0

    def show_progress(self, bar, terms):
        c = self.config
        n = c.seq_len * c.nc * c.nx ** 2
        shown = {'loss/pixel': terms['loss'] / n, 'nll/pixel': terms['nll'] / n,
                 'kl_y_0': terms['kl_y_0'], 'kl_z': terms['kl_z']}
        shown = {name: f'{value:.4g}' for name, value in shown.items()}
        shown['val'] = f'{self.score:.2f} dB' if self.validated else '-'
        bar.set_postfix(shown, refresh=False)
        bar.update()


class Clock:
    """Measures training speed, pauses not counted."""

    def __init__(self, step):
        self.step, self.since = step, time.monotonic()

    @contextlib.contextmanager
    def paused(self):
        start = time.monotonic()
        yield
        self.since += time.monotonic() - start

    def speed(self, step):
        """Steps per second since the last call."""
        now = time.monotonic()
        speed = (step - self.step) / (now - self.since)
        self.step, self.since = step, now
        return speed
