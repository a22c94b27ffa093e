"""Validation during training: its scores against plain loops, its pictures pixel by pixel."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_visualize import gif

from args import parse_train
from conftest import TINY, stirred
from data.stream import BatchStream
from distributed import World
from metrics.frame import psnr, ssim
from metrics.scoring import quantise
from model import build_model
from pictures import frames
from sampling import Futures, draw_noise
from training import validation
from utils import to_video

CPU = torch.device('cpu')
RUNNING = SimpleNamespace(received=None)


class Noise:
    """Source of videos of random pixels."""

    def __init__(self, nc):
        self.nc = nc

    def draw(self, rngs, nt):
        return np.stack([rng.randint(0, 256, (nt, 64, 64, self.nc)) for rng in rngs],
                        1).astype(np.uint8)


def scored(nc, n_samples=3):
    """Scores of 6 validation videos of 5 frames, their configuration, and the model."""
    config = parse_train([*TINY, '--data_dir', 'd', '--save_path', 's', '--n_iter_test', '3',
                          '--n_samples_test', str(n_samples), '--n_workers', '0'])
    config.nc = nc
    model = stirred(build_model(config), nc)
    stream = BatchStream(Noise(nc), config.seed, 'val', config.seq_len_test)
    scores = validation.validate(model, stream, config, CPU, World(), RUNNING)
    return scores, config, model, stream


@pytest.mark.parametrize('n_samples', [1, 3])
def test_scores_and_videos_are_those_of_plain_loops(n_samples):
    scores, config, model, stream = scored(1, n_samples)
    assert len(scores.psnr) == len(scores.ssim) == 6 and len(scores.shown) == 4
    for i in range(6):
        video = torch.from_numpy(stream[[i]])
        x = to_video(video, CPU)
        noise = draw_noise(model, config.seed, 'val', [i], n_samples, 5)
        futures = Futures(model, x[:3], 2, noise)
        clips = [torch.cat([futures.given(s), future]) for s, future in enumerate(futures)]
        best = max(clips, key=lambda clip: psnr(clip, x).mean())[3:]
        by_frame = psnr(best, x[3:])[:, 0, 0]
        np.testing.assert_allclose(scores.psnr_t[i], by_frame, rtol=1e-4)
        assert scores.psnr[i] == pytest.approx(by_frame.mean().item(), rel=1e-4)
        assert scores.ssim[i] == pytest.approx(ssim(best, x[3:]).mean().item(), abs=1e-4)
        if i < 4:
            expected = {'truth': video[3:], 'best': best, **{
                f'random {s + 1}': future for s, future in zip(range(2), futures)}}
            assert scores.shown[i].keys() == expected.keys()
            for name, found in scores.shown[i].items():
                np.testing.assert_array_equal(found[:3], video[:3, 0])
                frame = expected[name][:, 0]
                if name != 'truth':
                    frame = quantise(frame).permute(0, 2, 3, 1)
                assert abs(found[3:].astype(int) - frame.numpy()).max() <= 1


def test_other_processes_show_nothing():
    scores, config, model, stream = scored(1)

    class Second(World):
        def sum(self, values):
            return list(values)
    part = validation.validate(model, stream, config, CPU, Second(1, 2), RUNNING)
    assert part.shown == [] and (part.psnr[:3] == 0).all()
    np.testing.assert_allclose(part.psnr[3:], scores.psnr[3:], rtol=1e-4)


def test_no_video_of_process_0_is_no_picture(tmp_path):
    """There are more processes than validation videos."""
    scores = scored(1)[0]._replace(shown=[])
    assert list(validation.draw(tmp_path / 'validation', scores, 6, 3)) == ['psnr_by_frame']
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('nc', [1, 3])
def test_strip_shows_the_frames(nc, tmp_path):
    scores, config, _, _ = scored(nc)
    pictures = validation.draw(tmp_path / 'validation', scores, 1200, config.nt_cond)
    path = tmp_path / 'validation' / 'step_1200.png'
    assert path.read_bytes() == pictures['strip']
    with Image.open(path) as picture:
        strip = np.asarray(picture.convert('RGB'))
    pitch, caption = 64 + frames.GAP, frames.CAPTION
    left, top = strip.shape[1] - 5 * pitch + frames.GAP // 2, strip.shape[0] - caption - 16 * pitch
    for i, videos in enumerate(scores.shown):
        assert list(videos) == ['truth', 'best', 'random 1', 'random 2']
        for k, video in enumerate(videos.values()):
            for t in range(5):
                y, x = top + (4 * i + k) * pitch, left + t * pitch
                np.testing.assert_array_equal(strip[y:y + 64, x:x + 64],
                                              np.broadcast_to(video[t], (64, 64, 3)))


@pytest.mark.parametrize('nc, most', [(1, 6), (3, 90)])  # 64 levels; 255 colours for noise
def test_mosaic_plays_the_videos(nc, most, tmp_path):
    scores, config, _, _ = scored(nc)
    pictures = validation.draw(tmp_path, scores, 6, config.nt_cond)
    assert (tmp_path / 'step_6.gif').read_bytes() == pictures['videos']
    played, duration = gif(tmp_path / 'step_6.gif')
    pitch = 64 + frames.GAP
    assert played.shape == (5, 4 * pitch, 4 * pitch, 3) and duration == 200
    for t, frame in enumerate(played.astype(int)):
        colour = frames.GIVEN if t < 3 else frames.PREDICTED
        assert abs(frame[0] - colour).max() <= 30 and abs(frame[:, pitch] - colour).max() <= 30
        for i, videos in enumerate(scores.shown):
            for k, video in enumerate(videos.values()):
                y, x = i * pitch + frames.GAP // 2, k * pitch + frames.GAP // 2
                assert abs(frame[y:y + 64, x:x + 64] - video[t]).max() <= most


@pytest.mark.parametrize('psnr', [[12., 14, 13], [9.], [np.inf, 20], [np.nan, 20], [15., 15]])
def test_curve_marks_each_frame(psnr):
    picture = np.asarray(validation.draw_curve(np.array(psnr), 5)).astype(int)
    inked = (abs(picture - frames.PREDICTED) < 30).all(-1)
    columns = np.flatnonzero(inked[:, 50:].sum(0) >= 5) + 50  # dots are thicker than the line
    dots = 1 + (np.diff(columns) > 1).sum()
    assert dots >= len(psnr)
    if psnr == [12., 14, 13]:  # from 12 to 15 dB
        for x, value in zip(np.linspace(55, 400, 3).astype(int), psnr):
            y = np.flatnonzero(inked[:, x]).mean()
            assert y == pytest.approx(30 + 200 * (15 - value) / 3, abs=3)
