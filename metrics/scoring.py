"""Score predictions of a test set: best and worst sample of each video."""

import numpy as np
import torch

from args import note_lengths
from data import load_test
from data.stream import chunks
from files import UserError, count
from metrics import build_metrics
from metrics.lpips import VERSION
from utils import to_video


def quantise(x):
    """uint8 frames from frames in [0, 1], by truncation of 255 x."""
    return (255 * x).to(torch.uint8)


class Best:
    """Best sample so far of each video, according to a score.

    Parameters
    ----------
    higher : bool
        Whether higher scores are better.
    """

    def __init__(self, higher=True):
        self.sign, self.score, self.kept = 1 if higher else -1, None, None

    def update(self, score, *kept):
        """Compare the score (B,) of a sample; `kept`, (T, B, …) each, is what to keep of it."""
        if self.score is None:
            self.score, self.kept = score.clone(), [part.clone() for part in kept]
            return
        better = (self.sign * score > self.sign * self.score).nonzero()[:, 0]
        if len(better):
            for ours, theirs in zip((self.score[None], *self.kept), (score[None], *kept)):
                ours[:, better] = theirs[:, better]


class FixedFutures:
    """Predictions from elsewhere, with the interface of `sampling.Futures`.

    Parameters
    ----------
    x : tensor (T_o, B, C, H, W)
        Conditioning frames.
    samples : list of tensors (nt, B, C, H, W)
    """

    def __init__(self, x, samples):
        self.x, self.samples = x, samples

    def __len__(self):
        return len(self.samples)

    def given(self, s):
        return self.x

    def __getitem__(self, s):
        return self.samples[s]


class LastFrame(FixedFutures):
    """Baseline: one future of `nt` frames that repeats the last conditioning frame."""

    def __init__(self, x, nt):
        super().__init__(x, [x[-1:].expand(nt, *x.shape[1:])])


@torch.no_grad()
def evaluate_batch(futures, target, metrics, n_random=5, on_sample=lambda n_videos: None):
    """Score all futures of a batch of videos.

    Parameters
    ----------
    futures : Futures
        Of the model, or others with its interface.
    target : tensor (nt, B, C, H, W)
        True frames after the conditioning frames.
    metrics : dict of metrics by name
    n_random : int
        Number of samples to return; all samples if there are fewer.
    on_sample : function
        Called after each sample with the number of videos.

    Returns
    -------
    scores : dict of tensors
        Best score (B,) of each video by metric and, as `<metric>_t`, its frames' scores (B, nt).
    frames : dict of uint8 tensors (T, B, C, H, W)
        `<metric>_best` and `<metric>_worst` (if there are several samples), `random_1`,
        `random_2`, … (the first samples), `cond_rec` (reconstructed conditioning frames).
    """
    prepared = {name: metric.prepare(target) for name, metric in metrics.items()}
    best = {name: Best(metric.higher_is_better) for name, metric in metrics.items()}
    worst = {name: Best(not metric.higher_is_better) for name, metric in metrics.items()}
    frames = {'cond_rec': quantise(futures.given(0))}
    for s, x in enumerate(futures):
        kept = quantise(x)
        if s < n_random:
            frames[f'random_{s + 1}'] = kept
        for name, metric in metrics.items():
            per_frame = metric(x, prepared[name])  # (nt, B)
            best[name].update(per_frame.mean(0), kept, per_frame)
            worst[name].update(per_frame.mean(0), kept)
        on_sample(target.shape[1])
    scores = {}
    for name in metrics:
        scores[name], scores[f'{name}_t'] = best[name].score, best[name].kept[1].T
        if len(futures) > 1:  # a single sample is kept once
            frames[f'{name}_best'] = best[name].kept[0]
            frames[f'{name}_worst'] = worst[name].kept[0]
    return scores, frames


def concatenate(scores):
    """Scores of all videos by name, from the list of those of each batch."""
    return {name: np.concatenate([batch[name] for batch in scores]) for name in scores[0]}


class Scorer:
    """Scores predictions of a test set, or of its first videos.

    Parameters
    ----------
    args : argparse.Namespace
        With data_dir, nt_cond, nt_gen, n_videos, batch_size, metrics and lpips_dir.
    config : argparse.Namespace
        Configuration that names the test set.
    device : torch.device

    Raises
    ------
    UserError
        The test set or the weights of LPIPS are missing, or there are fewer than n_videos videos.
    """

    def __init__(self, args, config, device):
        self.args, self.config, self.device = args, config, device
        self.testset = load_test(config, args.data_dir, args.nt_gen)
        self.n_videos = args.n_videos or len(self.testset)
        if self.n_videos > len(self.testset):
            raise UserError(f'--n_videos {self.n_videos}: the test set has {len(self.testset)} '
                            'videos; use at most that many')
        self.metrics = build_metrics(args.metrics, args.lpips_dir, device)

    def announce(self, what, details=''):
        """Print what is about to be computed."""
        args = self.args
        print(f'{what}: {count(self.n_videos, "video")} of {self.config.dataset}, '
              f'{self.config.nx} x {self.config.nx}, '
              f'{count(args.nt_cond, "conditioning frame")}, '
              f'{count(args.nt_gen - args.nt_cond, "predicted frame")}{details}\n'
              f'test set: {self.testset.path}', flush=True)
        note_lengths(args, self.config)
        if 'lpips' in args.metrics:
            print(f'LPIPS: AlexNet, version {VERSION}')

    def protocol(self, n_samples):
        """What all scores depend on, as saved with them."""
        names = ['dataset']
        if self.config.dataset == 'smmnist':
            names += ['digits', 'ndigits', 'max_speed', 'deterministic']
        return {**{name: getattr(self.config, name) for name in names}, 'size': self.config.nx,
                'test_set': self.testset.path.name, 'clips': self.n_videos,
                'conditioning_frames': self.args.nt_cond,
                'predicted_frames': self.args.nt_gen - self.args.nt_cond, 'samples': n_samples,
                'lpips_version': VERSION if 'lpips' in self.args.metrics else None}

    def batches(self):
        """Ranges of videos that are scored together."""
        return chunks(range(self.n_videos), self.args.batch_size)

    def score(self, indices, predict, n_random=0, on_sample=lambda n_videos: None):
        """Score a batch of the test set.

        Parameters
        ----------
        indices : range
        predict : function
            Takes the indices and conditioning frames (T_o, B, C, H, W) of a batch, and returns its
            `Futures`.
        n_random, on_sample
            See `evaluate_batch`.

        Returns
        -------
        truth : uint8 array (nt_gen, B, H, W, C)
        scores : dict of arrays (B,) and (B, nt)
        frames : dict of uint8 arrays (T, B, H, W, C)
            Both as in `evaluate_batch`.
        """
        nt_cond = self.args.nt_cond
        truth = self.testset.videos(indices)
        x = to_video(torch.from_numpy(truth), self.device)
        futures = predict(indices, x[:nt_cond])
        scores, frames = evaluate_batch(futures, x[nt_cond:], self.metrics, n_random, on_sample)
        return (truth, {name: score.cpu().numpy() for name, score in scores.items()},
                {name: x.permute(0, 1, 3, 4, 2).cpu().numpy() for name, x in frames.items()})
