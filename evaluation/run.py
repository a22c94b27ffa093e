"""An evaluation, shared by the processes of a job, batch by batch."""

import contextlib
import io
import signal

import numpy as np
import torch

import metrics.fvd
from distributed import PER_PROCESS_OPTIONS, Stopped, StopSignal, join, share_tasks
from evaluation.output import merge_scores, report_interruption, write_results
from evaluation.task import N_RANDOM, announce, facts, open_results, prepare
from files import UserError, progress_bar
from metrics.scoring import LastFrame
from metrics.summary import summary
from sampling import Chunk, Futures, draw_noise
from utils import release_memory


def run(resolve):
    """Evaluate a model, together with the other processes of the job, if any.

    Parameters
    ----------
    resolve : function
        Returns options and configuration.

    Returns
    -------
    int
        Exit code.
    """
    with join() as world, contextlib.ExitStack() as stack:
        task = world.local_main_first(lambda: prepare(*resolve(), world))
        world.check_equal(facts(task), PER_PROCESS_OPTIONS)
        partial = world.local_main_first(
            lambda: open_results(stack, task) if world.main else None)
        if world.main:
            announce(task, partial, world)
        received = evaluate(task, partial, world)
        if task.fvd is not None:
            task.fvd.close()
        if received is not None:
            if world.main:
                report_interruption(task, partial)
            raise SystemExit(128 + received)  # of all processes together
        if world.main:
            write_results(task, partial)


def predictor(task):
    """Function that predicts a batch: (indices, conditioning frames) -> Futures."""
    args = task.args
    nt = args.nt_gen - args.nt_cond
    if task.model is None:
        return lambda indices, x: LastFrame(x, nt)
    chunk = Chunk(task.model, args.chunk)
    dtype = torch.bfloat16 if args.torch_amp else torch.float32

    def predict(indices, x):
        noise = draw_noise(task.model, args.test_seed, 'test', indices, args.n_samples, args.nt_gen)
        futures = Futures(task.model, x, nt, noise, args.n_euler_steps, chunk=chunk, dtype=dtype)
        futures.check_states()
        return futures
    return predict


def evaluate(task, partial, world):
    """Evaluate the batches that are not done yet, on all processes.

    Returns
    -------
    int
        Number of the signal that interrupted it, None if it was not.
    """
    batches, predict, mine = task.scorer.batches(), predictor(task), set()
    with StopSignal(world, 'keeping the finished batches') as stop, progress_bar(
            total=task.scorer.n_videos * task.args.n_samples, unit='sample',
            disable=not world.main) as bar:
        def on_sample(n_videos):
            if stop.received is not None:
                raise Stopped
            bar.update(n_videos)

        def run_batch(k):
            mine.add(k)
            data = evaluate_batch(task, batches[k], predict, on_sample)
            release_memory()
            return data

        def deliver(k, data):
            partial.add(k, data)
            if k not in mine:
                bar.update(len(batches[k]) * task.args.n_samples)
            bar.set_postfix({name: f'{score["mean"]:.4f}'
                             for name, score in summary(merge_scores(partial)).items()})

        todo = []
        if world.main:
            todo = [k for k in range(len(batches)) if k not in partial.scores]
            bar.update(sum(len(batches[k]) for k in partial.scores) * task.args.n_samples)
        stopped = share_tasks(world, todo, run_batch, deliver)
    signals = [number for number in world.gather(stop.received) if number is not None]
    return max(signals, default=signal.SIGTERM) if stopped else None


def evaluate_batch(task, indices, predict, on_sample):
    """Evaluate the videos of a range.

    Returns
    -------
    bytes
        An `.npz` of `scores/<name>`, (B) or (B, nt), `frames/<name>`, uint8 (B, T, H, W, C), and
        features for the Fréchet video distance, `fvd/true` and `fvd/<k>`, (B, 400).
    """
    args = task.args
    n_random = max(N_RANDOM, args.fvd_samples)
    truth, scores, frames = task.scorer.score(indices, predict, n_random, on_sample)
    if any(np.isnan(score).any() for score in scores.values()):
        raise UserError(f'{args.model_name} predicts NaN: its activations grow beyond '
                        'float32; use another checkpoint')
    arrays = {f'scores/{name}': score for name, score in scores.items()}
    if task.fvd is not None:
        given, true = truth[:args.nt_cond], truth[args.nt_cond:]
        videos = [true, *(frames[f'random_{k + 1}'] for k in range(args.fvd_samples))]
        for name, video in zip(['true', *range(args.fvd_samples)], videos):
            arrays[f'fvd/{name}'] = metrics.fvd.embed_continued(task.fvd, given, video)
    for k in range(N_RANDOM, args.fvd_samples):
        del frames[f'random_{k + 1}']  # not saved
    arrays |= {f'frames/{name}': video.swapaxes(0, 1) for name, video in frames.items()}
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return data.getvalue()
