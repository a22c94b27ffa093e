"""Train SRVP: `python train.py --preset smmnist --data_dir DATA --save_path RUN --device 0`.

On several GPUs: `torchrun --nproc_per_node=2 train.py … --device 0 1`.
"""

import contextlib
import json
import math
import secrets
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from files import UserError, progress_bar, reading, run_script, write_json

import filelock
import numpy as np
import torch
from PIL import Image

from args import FREE_ON_RESUME, config_dict, parse_train
from data import load_train
from data.stream import BatchStream, make_loader
from distributed import StopSignal, distribute, join
from model import Losses, build_model, loss
from pictures import frames as drawing
from training.log import RunLog, read_table
from training.validation import validate
from utils import describe, half_dtype, load, load_model, save, stream_generator, to_video

STATE_SECONDS = 600  # a state is saved at least this often
SYNC_STEPS = 10      # steps after which processes tell each other about signals and the clock


@dataclass
class Progress:
    """Position of a run: all that --resume needs besides model, optimiser and gradient scale."""
    sums: torch.Tensor        # (5,): of the loss and its terms since the last row of the log
    step: int = 0             # updates done
    logged: int = 0           # step of the last row of the log
    validated: int = 0        # step of the last validation
    score: float = -math.inf  # mean PSNR of that validation
    best: float = -math.inf   # best one so far


class NotFinite(Exception):
    """The loss or a weight is infinite or not a number."""


def main(argv=None):
    """Train in this process, one of those of a job; returns the exit code."""
    with join() as world, contextlib.ExitStack() as stack:
        config = None
        if world.main:  # decides for all
            config = parse_train(argv)
            if config.seed is None:
                config.seed = secrets.randbelow(2 ** 32)
        config = world.share(config)
        if config.dry_run:
            with torch.device('meta'):  # takes no memory
                n = n_parameters(build_model(config))
            say(world, f'{json.dumps(config_dict(config), indent=2)}\n{n:,} parameters; nothing '
                'was written (--dry_run)')
            return 0
        return train(config, world, stack)


def train(c, world, stack):
    """Train with a configuration, to the end, a signal or a failure; returns the exit code.

    What is opened here goes to `stack`, and is closed when `main` returns.
    """
    folder = Path(c.save_path)
    if c.batch_size < world.size * c.accumulate:
        raise UserError(f'--batch_size {c.batch_size}: {world.size * c.accumulate} parts '
                        '(processes times --accumulate) need at least one video each')

    # Data: video i is a function of the seed and i, whatever the workers and processes
    device = world.device(c.device, allow_tf32=True)
    with world.local_main_first():  # which may download
        train_source, val_source = load_train(c)
    train_stream = BatchStream(train_source, c.seed, 'train', c.seq_len)
    val_stream = BatchStream(val_source, c.seed, 'val', c.seq_len_test)

    # Model and optimiser
    torch.backends.cudnn.benchmark = True  # shapes are constant
    torch.manual_seed(c.seed)
    model = build_model(c).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=c.lr, fused=True)
    dtype = half_dtype(c.amp_dtype, device) if c.torch_amp else torch.float32
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    apex = start_apex(c, model, optimizer) if c.apex_amp else None
    scaling = scaler if apex is None else apex  # which keeps the gradient scale

    # The run: a new one, or one to resume
    n_steps = c.lr_scheduling_burnin + c.lr_scheduling_n_iter
    p = Progress(sums=torch.zeros(len(Losses._fields), dtype=torch.float64, device=device))
    if world.main:
        claim(folder, c, stack)
    state = world.share(read_state(folder, c) if c.resume and world.main else None)
    if state is not None:
        with reading(folder / 'state.pt', 'is not a state of this run', 'it cannot be continued'):
            model.load_state_dict(state['model'])
            optimizer.load_state_dict(state['optimizer'])
            scaling.load_state_dict(state['scaling'])
            p = Progress(**state['progress'])
            p.sums = p.sums.to(device) * world.main  # they are those of all processes
    elif c.weights and world.main:  # `distribute` copies them to other processes
        model.load_state_dict(load_model(c, c.weights, 'cpu').state_dict())
    if p.step == p.validated == n_steps:
        say(world, f'the run in {folder} is complete: {n_steps:,} steps')
        return 0
    others = f' and {world.size - 1} more' if world.size > 1 else ''
    precision = f'apex {c.amp_opt_lvl}' if apex else str(dtype).removeprefix('torch.')
    say(world, f'training on {describe(device)}{others}: {n_parameters(model):,} parameters, '
        f'steps {p.step + 1:,} to {n_steps:,}, {precision}, seed {c.seed}, files in {folder}')

    # Batches: of each, this process takes the videos `mine`
    network = distribute(model) if world.size > 1 else model
    mine = world.part(c.batch_size)
    batches = iter(make_loader(
        train_stream, (range(i * c.batch_size + mine.start, i * c.batch_size + mine.stop)
                       for i in range(p.step, n_steps)),
        c.n_workers, pin_memory=device.type == 'cuda', n_processes=world.local_size))

    def is_due(interval):
        return p.step > 0 and (p.step % interval == 0 or p.step == n_steps)

    def save_state():
        check_finite(model, p, world)
        if world.main:
            write_state(folder, c, model, optimizer, scaling, p)

    model.train()
    stopped, first_step = False, p.step
    log_step, log_time = p.step, time.monotonic()  # begin of the present interval of the log
    next_state = log_time + STATE_SECONDS
    stop = stack.enter_context(StopSignal(world, 'saving the state'))
    bar = stack.enter_context(progress_bar(total=n_steps, initial=p.step, unit='step',
                                           smoothing=0.05, disable=not world.main))
    log = None
    if world.main:
        if not c.resume:
            write_json(folder / 'config.json', config_dict(c))
        log = RunLog(folder, p.logged, p.validated, times=range(c.nt_cond, c.seq_len_test))
        stack.callback(log.events.close)
    try:
        while True:
            if is_due(c.state_interval):
                save_state()  # before the validation too, which may take long
            if is_due(c.val_interval) and p.validated != p.step:
                paused_at = time.monotonic()
                check_finite(model, p, world)
                model.eval()
                scores = validate(model, val_stream, c, device, world, stop)
                model.train()
                if scores is None:  # interrupted
                    stopped = True
                else:
                    p.score, p.validated = float(scores.psnr.mean()), p.step
                    if p.score > p.best:
                        p.best = p.score
                        if world.main:
                            save(folder / 'model_best.pt', model.state_dict())
                    if world.main:
                        report(scores, p, log, folder, c, bar)
                    if is_due(c.state_interval):
                        save_state()
                log_time += time.monotonic() - paused_at
            if stopped or p.step == n_steps:
                break

            # One update. Random numbers are a function of the seed and the step: all processes
            # draw those of the whole batch, and each part of it takes its own
            for group in optimizer.param_groups:
                group['lr'] = learning_rate(p.step + 1, c)
            optimizer.zero_grad()
            generator = stream_generator(c.seed, 'noise', p.step)
            noise = model.draw_noise(c.seq_len, c.batch_size, generator=generator)
            chosen = model.draw_frames(c.seq_len, c.batch_size, generator=generator)
            batch = next(batches)  # uint8 (T, B', H, W, C), the videos `mine`
            for k in range(c.accumulate):
                part = mine[len(mine) * k // c.accumulate:len(mine) * (k + 1) // c.accumulate]
                videos, last = slice(part.start, part.stop), k == c.accumulate - 1
                x = to_video(batch[:, part.start - mine.start:part.stop - mine.start], device)
                synchronised = last or world.size == 1
                with contextlib.nullcontext() if synchronised else network.no_sync():
                    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                        out = network(x, c.seq_len, noise=noise.of(videos, device),
                                      frames=chosen.of(videos, device))
                    losses = loss(x, out, obs_scale=c.obs_scale, beta_y=c.beta_y, beta_z=c.beta_z,
                                  l2_res=c.l2_res)
                    weight = len(part) / c.batch_size
                    # DistributedDataParallel averages over processes: hence the factor
                    objective = losses.loss * weight * world.size
                    if apex is None:
                        scaler.scale(objective).backward()
                    else:
                        with apex.scale_loss(objective, optimizer, delay_unscale=not last) as o:
                            o.backward()
                p.sums += weight * torch.stack(losses).detach()  # stays on the device
            scaler.step(optimizer)
            scaler.update()
            p.step += 1

            if p.step == first_step + 5 and device.type == 'cpu':
                seconds = (time.monotonic() - log_time) / (p.step - log_step) * (n_steps - p.step)
                if seconds > 2 * 86400:
                    say(world, f'note: at this speed, the rest takes {seconds / 3600:,.0f} hours; '
                        'configs/smmnist_cpu.yaml is a small configuration for CPUs (--config)')
            if is_due(c.log_interval):
                terms = mean_terms(p, world)
                speed = (p.step - log_step) / (time.monotonic() - log_time)
                log_step, log_time = p.step, time.monotonic()
                if world.main:
                    log.write(p.step, **terms, lr=learning_rate(p.step, c), steps_per_s=speed)
                show(bar, terms, p, c)
                p.logged = p.step
                p.sums.zero_()
            if c.chkpt_interval and p.step % c.chkpt_interval == 0:
                check_finite(model, p, world)
                if world.main:
                    save(folder / f'model_{p.step}.pt', model.state_dict())
            bar.update()
            if world.size == 1 or p.step % SYNC_STEPS == 0:
                stopped = world.any(stop.received is not None)
                if world.any(world.main and time.monotonic() > next_state):
                    save_state()
                    next_state = time.monotonic() + STATE_SECONDS
        if stopped:
            save_state()
            launcher = (f'torchrun --nproc_per_node={world.local_size}' if world.size > 1
                        else 'python')
            say(world, f'stopped after step {p.step:,}; continue with: {launcher} train.py '
                f'--resume --save_path {folder}')
            return 128 + (stop.received or signal.SIGTERM)  # received by another process
    except NotFinite as error:
        if world.main:
            advice = 'check --obs_scale, --beta_y, --beta_z, --l2_res, --lr and --weights'
            if (folder / 'state.pt').exists():
                good = load(folder / 'state.pt')['progress']['step']
                advice = f'the last good state is of step {good:,}; a lower --lr may help'
            print(f'error: {error} is not finite; {advice}', file=sys.stderr)
        return 1
    say(world, f'done: best validation PSNR {p.best:.2f} dB; weights in {folder}: model.pt (last), '
        'model_best.pt')
    return 0


def learning_rate(k, c):
    """Learning rate of update k = 1, 2, …: constant for `burnin` updates, then linear to 0."""
    decay = max(0, k - c.lr_scheduling_burnin) / max(1, c.lr_scheduling_n_iter)
    return c.lr * max(0., 1 - decay)


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def say(world, text):
    if world.main:
        print(text, flush=True)


def start_apex(c, model, optimizer):
    """NVIDIA apex's module amp, which has modified model and optimiser."""
    try:
        from apex import amp
    except ImportError:
        raise UserError('--apex_amp needs NVIDIA apex with its module amp, which is not installed: '
                        'see https://github.com/NVIDIA/apex (pip install apex is another package); '
                        'or use --torch_amp') from None
    # Part by part: from O2 on, apex casts inputs and outputs, but does not know NamedTuples
    amp.initialize(list(model.children()), optimizer, opt_level=c.amp_opt_lvl,
                   keep_batchnorm_fp32=c.keep_batchnorm_fp32, verbosity=int(c.apex_verbose))
    return amp


# States

def identity(c):
    """What a run cannot change when it is resumed, as it stands in its state."""
    return {k: v for k, v in config_dict(c).items() if k not in FREE_ON_RESUME}


def claim(folder, c, stack):
    """Create the folder of a run and lock it for `stack`; weights or logs there are another run."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / '.train.lock')
    try:
        stack.enter_context(lock.acquire(timeout=1))
    except filelock.Timeout:
        raise UserError(f'--save_path {folder}: another process is training there; stop it, or use '
                        'another folder') from None
    log = folder / 'log.csv'
    if not c.resume and (any(folder.glob('*.pt')) or log.exists() and read_table(log)):
        raise UserError(f'--save_path {folder} holds another run; continue it with --resume, or '
                        'use another folder')


def read_state(folder, c):
    """State of a run to continue, on the CPU; None if it ended before the first one."""
    for tmp in folder.glob('.*.pt.*.tmp'):  # left by a kill while saving
        tmp.unlink()
    path = folder / 'state.pt'
    if not path.exists():
        if (folder / 'model.pt').exists():  # written after the state
            raise UserError(f'--resume: {path} is missing, but {folder}/model.pt is there; start a '
                            'new run from it, with --weights and another --save_path')
        print(f'note: {path} does not exist: the run ended before its first state, and starts '
              'again at step 1')
        return None
    state = load(path)
    if not isinstance(state, dict) or state.get('config') != identity(c):
        raise UserError(f'--resume: {path} does not match config.json; was one of them '
                        'changed?')
    return state


def write_state(folder, c, model, optimizer, scaling, p):
    """Write all that a resumed run needs, `state.pt`, and then the weights, `model.pt`."""
    path = folder / 'state.pt'
    try:
        save(path, {'config': identity(c), 'model': model.state_dict(),
                    'optimizer': optimizer.state_dict(), 'scaling': scaling.state_dict(),
                    'progress': vars(p)})
        path = folder / 'model.pt'
        save(path, model.state_dict())
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror}); free space, or check '
                        'permissions, then continue with --resume') from None


def mean_terms(p, world):
    """Means of the loss and its terms since the last row of the log; called in all processes."""
    sums = world.sum(p.sums.cpu())
    p.sums = sums.to(p.sums.device) * world.main  # process 0, which saves the state, has all
    terms = sums / max(1, p.step - p.logged)
    if not terms.isfinite().all():
        raise NotFinite(f'the loss of steps {p.logged + 1:,} to {p.step:,}')
    return dict(zip(Losses._fields, terms.tolist()))


def check_finite(model, p, world):
    """Raise NotFinite if a loss since the last row of the log, or a weight, is not finite."""
    mean_terms(p, world)
    if not all(v.isfinite().all() for v in model.state_dict().values()):
        raise NotFinite(f'a weight after step {p.step:,}')


# What a user sees

def show(bar, terms, p, c):
    """Show the terms of the loss in the progress bar; NLL and loss by pixel."""
    n = c.seq_len * c.nc * c.nx ** 2
    shown = {'loss/pixel': terms['loss'] / n, 'nll/pixel': terms['nll'] / n,
             'kl_y_0': terms['kl_y_0'], 'kl_z': terms['kl_z']}
    shown = {name: f'{value:.4g}' for name, value in shown.items()}
    shown['val'] = f'{p.score:.2f} dB' if p.validated else '-'
    bar.set_postfix(shown, refresh=False)


def report(scores, p, log, folder, c, bar):
    """Log the scores of a validation, draw some of its videos, and print a line."""
    strip, ssim = None, float(scores.ssim.mean())
    if scores.shown:  # unless there are more processes than videos
        (folder / 'validation').mkdir(exist_ok=True)
        path = folder / 'validation' / f'step_{p.step}.png'
        drawing.draw_rows([path], scores.shown, c.nt_cond)
        strip = np.asarray(Image.open(path).convert('RGB'))
    log.write_validation(p.step, {'val_psnr': p.score, 'best_psnr': p.best, 'val_ssim': ssim},
                         scores.psnr_t.mean(0).tolist(), strip)
    bar.write(f'step {p.step:,}: validation PSNR {p.score:.2f} dB, best {p.best:.2f} dB, '
              f'SSIM {ssim:.4f}')


if __name__ == '__main__':
    run_script(main)
