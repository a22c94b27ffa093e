"""Validation during training: its scores against plain loops, and the videos that it shows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from args import parse_train
from conftest import TINY, stirred
from data.stream import BatchStream
from distributed import World
from evaluation.futures import Futures, draw_noise, quantise
from metrics.frame import psnr, ssim
from model import build_model
from training.validation import validate
from utils import to_video

CPU = torch.device('cpu')
RUNNING = SimpleNamespace(received=None)


class RandomPixels:
    """Source of videos of random pixels."""

    def draw(self, rngs, nt):
        return np.stack([rng.randint(0, 256, (nt, 32, 32, 1)) for rng in rngs], 1).astype(np.uint8)


def scored(n_samples):
    """Scores of 6 validation videos of 5 frames, and what they were computed from."""
    config = parse_train([*TINY, '--data_dir', 'd', '--save_path', 's', '--n_iter_test', '3',
                          '--n_samples_test', str(n_samples), '--n_workers', '0', '--nx', '32'])
    model = stirred(build_model(config), 1)
    stream = BatchStream(RandomPixels(), config.seed, 'val', config.seq_len_test)
    return validate(model, stream, config, CPU, World(), RUNNING), config, model, stream


@pytest.mark.parametrize('n_samples', [1, 3])
def test_scores_and_videos_are_those_of_plain_loops(n_samples):
    scores, config, model, stream = scored(n_samples)
    assert len(scores.psnr) == len(scores.ssim) == 6
    labels = ['truth', 'best', 'random 1', 'random 2'][:2 + n_samples]
    assert list(scores.shown) == [f'{i}: {label}' for i in range(4) for label in labels]
    for i in range(6):
        video = torch.from_numpy(stream[[i]])
        x = to_video(video, CPU)
        futures = Futures(model, x[:3], 2, draw_noise(model, config.seed, 'val', [i], n_samples, 5))
        clips = [torch.cat([futures.given(s), future]) for s, future in enumerate(futures)]
        best = max(clips, key=lambda clip: psnr(clip, x).mean())  # over the whole clip
        by_frame = psnr(best, x)[3:, 0, 0]
        np.testing.assert_allclose(scores.psnr_t[i], by_frame, rtol=1e-4)
        assert scores.psnr[i] == pytest.approx(by_frame.mean().item(), rel=1e-4)
        assert scores.ssim[i] == pytest.approx(ssim(best, x)[3:].mean().item(), abs=1e-4)
        for label, clip in zip(labels, [x, best, *clips[:2]]) if i < 4 else ():
            found = scores.shown[f'{i}: {label}'].astype(int)
            assert abs(found - quantise(clip[:, 0]).permute(0, 2, 3, 1).numpy()).max() <= 1


def test_each_process_scores_its_part_and_the_first_shows_videos():
    scores, config, model, stream = scored(1)
    for rank in range(2):
        class Half(World):
            def sum(self, values):  # nothing comes from the other process
                return values
        half = validate(model, stream, config, CPU, Half(rank, 2), RUNNING)
        own, other = (slice(0, 3), slice(3, 6))[::1 - 2 * rank]
        np.testing.assert_allclose(half.psnr_t[own], scores.psnr_t[own], rtol=1e-4)
        assert (half.psnr[other] == 0).all() and bool(half.shown) == (rank == 0)
