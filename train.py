"""Train SRVP: `python train.py --preset smmnist --data_dir DATA --save_path RUN [--device 0]`; see --help and the README."""

import contextlib
import json
import math
import os
import secrets
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from args import config_dict, parse_train
from data import load_train
from data.stream import BatchStream, make_loader
from files import UserError, make_folder, run_script, write_json
from log import TERMS, RunLog
from model import build_model, loss
from sampling import draw_noise, validation_psnr
from utils import describe, get_device, load, random_state, save, set_random_state, to_video


class Stopped(Exception):
    """The run was asked to stop by a signal."""


class NotFinite(Exception):
    """The loss or a weight is infinite or not a number."""


class StopSignal:
    """Context that notes SIGINT (Ctrl-C) and SIGTERM, to be answered between two steps; a second one ends the run at once."""

    def __enter__(self):
        self.received = None
        self.before = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self, number, frame):
        self.received = number
        signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # Ctrl-C also ends the reader of a pipe
            os.write(2, f'\n{signal.Signals(number).name} received: saving the state\n'.encode())

    def check(self):
        if self.received is not None:
            raise Stopped


def learning_rate(k, config):
    """Learning rate of update k = 1, 2, …: constant for `burnin` updates, then linear to 0 in `n_iter`."""
    decay = max(0, k - config.lr_scheduling_burnin) / max(1, config.lr_scheduling_n_iter)
    return config.lr * max(0., 1 - decay)


class Trainer:
    """A run: model, optimiser, place in the data, logs and files.

    Parameters
    ----------
    config : argparse.Namespace
        Resolved configuration.
    sources : pair of sources of training and validation videos (see `data`)
    device : torch.device
    """

    def __init__(self, config, sources, device):
        self.config, self.device = config, device
        self.folder = Path(config.save_path)
        self.n_steps = config.lr_scheduling_burnin + config.lr_scheduling_n_iter
        self.train_stream = BatchStream(sources[0], config.seed, 'train', config.batch_size, config.seq_len)
        self.val_stream = BatchStream(sources[1], config.seed, 'val', config.batch_size_test, config.seq_len_test)
        torch.manual_seed(config.seed)
        self.model = build_model(config).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr)
        self.step = 0               # updates done
        self.validated = 0          # step of the last validation
        self.score = self.best = -math.inf
        self.sums, self.n_summed = [0.] * len(TERMS), 0  # loss terms since the last line of the log
        self.saved = None           # (step, validated) of the last state on disk
        if config.resume:
            self.restore()

    # State

    def restore(self):
        for tmp in self.folder.glob('.*.tmp'):
            tmp.unlink()  # what a run that was killed while saving left behind
        path = self.folder / 'state.pt'
        if not path.exists():
            return  # the run ended before its first state: configuration and seed are all there is to continue
        state = load(path)
        try:
            state = dict(state)
            self.model.load_state_dict(state['model'])
            self.optimizer.load_state_dict(state['optimizer'])
            for name in ('step', 'validated', 'score', 'best', 'sums', 'n_summed'):
                setattr(self, name, state[name])
            set_random_state(state['random'])
        except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f'--resume: {path} is not a state of this run ({error}); it cannot be continued') from None
        if self.step > self.n_steps:
            raise UserError(f'--resume: {path} is of step {self.step:,}, but the run has {self.n_steps:,} steps; was config.json changed?')
        self.saved = self.step, self.validated

    def save_state(self):
        """Save all that a continued run needs, and the weights by themselves as `model.pt`."""
        if self.saved == (self.step, self.validated):
            return
        weights = self.model.state_dict()
        if not all(v.isfinite().all() for v in weights.values()):
            raise NotFinite(f'a weight after step {self.step:,}')
        save(self.folder / 'model.pt', weights)  # first: a run killed in between repeats both
        save(self.folder / 'state.pt', {
            'model': weights, 'optimizer': self.optimizer.state_dict(), 'step': self.step, 'validated': self.validated,
            'score': self.score, 'best': self.best, 'sums': self.sums, 'n_summed': self.n_summed, 'random': random_state()})
        self.saved = self.step, self.validated

    # Steps

    def train_step(self, batch):
        """One update on a batch, uint8 (T, B, H, W, C)."""
        c = self.config
        x = to_video(batch, self.device)
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate(self.step + 1, c)
        losses = loss(x, self.model(x, c.seq_len), obs_scale=c.obs_scale, beta_y=c.beta_y, beta_z=c.beta_z, l2_res=c.l2_res)
        values = torch.stack(losses).tolist()
        if not all(map(math.isfinite, values)):
            raise NotFinite(f'the loss of step {self.step + 1:,}')
        self.optimizer.zero_grad()
        losses.loss.backward()
        self.optimizer.step()
        self.step += 1
        self.sums = [s + v for s, v in zip(self.sums, values)]
        self.n_summed += 1
        return dict(zip(TERMS, values))

    def validate(self, stop):
        """Score the best of N predictions of the validation videos (`validation_psnr`) and keep the best model so far."""
        c = self.config
        self.model.eval()
        scores = []
        batches = make_loader(self.val_stream, 0, c.n_iter_test, min(c.n_workers, 1))
        for i, batch in enumerate(tqdm(batches, 'validation', leave=False, unit='batch', dynamic_ncols=True)):
            stop.check()
            videos = range(i * c.batch_size_test, (i + 1) * c.batch_size_test)
            noise = draw_noise(self.model, c.seed, 'val', videos, c.n_samples_test, c.seq_len_test)
            scores.append(validation_psnr(self.model, to_video(batch, self.device), c.nt_cond, noise))
        self.model.train()
        self.score, self.validated = torch.cat(scores).mean().item(), self.step
        if self.score > self.best:
            self.best = self.score
            save(self.folder / 'model_best.pt', self.model.state_dict())

    def due(self, interval):
        """Whether something done every `interval` steps, and at the end, is due."""
        return self.step > 0 and (self.step % interval == 0 or self.step == self.n_steps)

    def log_terms(self, log, seconds):
        """Write the means of the loss terms since the last line, over `seconds`."""
        log.write(self.step, **{k: s / self.n_summed for k, s in zip(TERMS, self.sums)}, lr=learning_rate(self.step, self.config),
                  steps_per_s=self.n_summed / seconds)
        self.sums, self.n_summed = [0.] * len(TERMS), 0

    def run(self):
        """Train to the end, or to a signal; returns the signal's number, or None."""
        c = self.config
        loader = make_loader(self.train_stream, self.step, self.n_steps, c.n_workers, self.device.type == 'cuda')
        self.model.train()
        with StopSignal() as stop, RunLog(self.folder, self.step) as log, \
                tqdm(total=self.n_steps, initial=self.step, unit='step', dynamic_ncols=True, smoothing=0.05) as bar:
            batches, since = iter(loader), time.monotonic()
            try:
                while True:
                    if self.due(c.val_interval) and self.validated != self.step:
                        started = time.monotonic()
                        self.validate(stop)
                        log.write(self.step, val_psnr=self.score, best_psnr=self.best)
                        since += time.monotonic() - started
                    if self.due(c.state_interval):
                        self.save_state()
                    if self.step == self.n_steps:
                        return None
                    terms = self.train_step(next(batches))
                    if self.due(c.log_interval):
                        now = time.monotonic()
                        self.log_terms(log, now - since)
                        since = now
                    if c.chkpt_interval and self.step % c.chkpt_interval == 0:
                        save(self.folder / f'model_{self.step}.pt', self.model.state_dict())
                    bar.set_postfix({k: f'{terms[k]:.5g}' for k in TERMS[:4]}
                                    | {'val': f'{self.score:.2f} dB' if self.validated else '-'}, refresh=False)
                    bar.update()
                    stop.check()
            except (Stopped, BrokenPipeError):  # the latter: nobody reads the output any more
                self.save_state()
                return stop.received or signal.SIGPIPE


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def prepare_folder(config):
    """Create the folder of a new run and write `config.json` there; never over another run."""
    if config.resume:
        return
    folder = make_folder(config.save_path, '--save_path')
    for name in ('config.json', 'state.pt', 'model.pt'):
        if (folder / name).exists():
            raise UserError(f'--save_path {folder} holds another run ({name}); continue it by --resume, or give another folder')
    try:
        write_json(folder / 'config.json', config_dict(config))
    except OSError as error:
        raise UserError(f'--save_path {folder} cannot be written ({error.strerror}); give another folder') from None


def main(argv=None):
    config = parse_train(argv)
    if config.seed is None:
        config.seed = secrets.randbelow(2 ** 32)
    if config.dry_run:
        print(json.dumps(config_dict(config), indent=2))
        print(f'{n_parameters(build_model(config)):,} parameters; nothing was written (--dry_run)')
        return 0
    device = get_device(config.device[0] if config.device else None)
    sources = load_train(config)
    prepare_folder(config)
    trainer = Trainer(config, sources, device)
    if trainer.step == trainer.validated == trainer.n_steps:
        print(f'the run in {config.save_path} is complete: {trainer.step:,} steps')
        return 0
    print(f'training on {describe(device)}: {n_parameters(trainer.model):,} parameters, steps '
          f'{trainer.step + 1:,} to {trainer.n_steps:,}, seed {config.seed}, files in {config.save_path}', flush=True)
    try:
        received = trainer.run()
    except NotFinite as error:
        last = f'the last good state is of step {trainer.saved[0]:,}' if trainer.saved else 'no state was saved'
        print(f'error: {error} is not finite; {last}; a lower --lr may help', file=sys.stderr)
        return 1
    if received is not None:
        print(f'stopped after step {trainer.step:,}; continue with: python train.py --resume --save_path {config.save_path}')
        return 128 + received
    print(f'done: best validation PSNR {trainer.best:.2f} dB; weights in {config.save_path}: model.pt (last), model_best.pt')
    return 0


if __name__ == '__main__':
    run_script(main)
