"""Strips and animations of videos, and charts."""

import math
from pathlib import Path

from files import UserError

import imageio_ffmpeg
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from conftest import read_video
from metrics import METRICS
from pictures import charts, frames
from pictures.frames import GIVEN, PREDICTED, SIDE

RNG = np.random.RandomState(0)


def read_rgb(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert('RGB')).astype(int)


def gif(path):
    """Frames (T, H, W, 3) of a GIF, and their duration in milliseconds."""
    found = []
    with Image.open(path) as picture:
        for t in range(picture.n_frames):
            picture.seek(t)
            found.append(np.asarray(picture.convert('RGB')).astype(int))
        return np.stack(found), picture.info['duration']


# Frames

@pytest.mark.parametrize('C', [1, 3])
def test_strip_shows_each_frame_enlarged_with_its_time(tmp_path, monkeypatch, C):
    headings, table = [], frames.table
    monkeypatch.setattr(frames, 'table', lambda cells, heads, names: (
        headings.extend(heads), table(cells, heads, names))[1])
    truth = RNG.randint(0, 256, (8, 64, 64, C)).astype(np.uint8)
    best = RNG.randint(0, 256, (5, 64, 64, C)).astype(np.uint8)
    frames.draw_rows([tmp_path / 'a.png'], {'truth': truth, 'best': best}, 3)
    picture = read_rgb(tmp_path / 'a.png')
    pitch = SIDE + frames.GAP
    left, top = picture.shape[1] - 8 * pitch, picture.shape[0] - 2 * pitch
    for i, video in enumerate((truth, np.concatenate([truth[:3], best]))):
        for t in range(8):
            y, x = top + i * pitch, left + t * pitch + frames.GAP // 2
            assert (picture[y:y + SIDE, x:x + SIDE] == video[t].repeat(3, 0).repeat(3, 1)).all()
    assert [h.text for h in headings[2:4]] == ['t = 2 (given)', 't = 3 (predicted)']
    assert [h.colour for h in headings[2:4]] == [GIVEN, PREDICTED]
    for nt_cond, T in ((5, 15), (10, 40), (8, 53), (1, 12), (2, 130)):  # longer ones
        times = frames.spaced(nt_cond, T)
        assert nt_cond in times and len(times) <= frames.COLUMNS and max(times) < T


@pytest.mark.parametrize('C', [1, 3])
def test_gif_has_the_colours_of_frames_and_labels(tmp_path, C):
    """One frame has a colour that no other has."""
    video = RNG.randint(0, 64, (9, 64, 64, C)).astype(np.uint8)
    video[6, 20:40, 20:40] = (0, 255, 0)[-C:]
    frames.draw_rows([tmp_path / 'a.gif'], {'a': video}, 3, fps=4)
    found, duration = gif(tmp_path / 'a.gif')
    assert len(found) == 9 and duration == 250
    for t, colour in ((2, GIVEN), (3, PREDICTED)):
        assert abs(found[t, 26, 10:190] - colour).max() <= 3  # the border
    error = abs(found[:, 28:28 + SIDE, 6:6 + SIDE] - video.repeat(3, 1).repeat(3, 2))
    assert error.max() <= (1 if C == 1 else 40) and error.mean() < (0.01 if C == 1 else 4)
    assert error[6, 62:118, 62:118].max() <= 3


def test_videos_of_any_size_and_speed(tmp_path):
    """MP4 needs even sizes; players slow down GIFs of more than 50 frames a second."""
    video = np.zeros((7, 63, 65, 3), np.uint8)
    video[3:] = 200
    frames.write_video(tmp_path / 'a.mp4', iter(video), 10)
    found, fps = read_video(tmp_path / 'a.mp4')
    assert found.shape == (7, 64, 66, 3) and fps == 10
    assert abs(found[:, :63, :65].astype(int) - video).max() <= 3
    frames.write_video(tmp_path / 'a.gif', RNG.randint(0, 256, (3, 8, 8, 3), np.uint8), 100)
    found, duration = gif(tmp_path / 'a.gif')
    assert len(found) == 3 and duration == 20


def test_failed_encoder_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / 'a.mp4'
    path.write_text('earlier')
    monkeypatch.setattr(imageio_ffmpeg, 'get_ffmpeg_exe', lambda: 'false')
    with pytest.raises(UserError, match=f'{path} could not be encoded .*; check the free'):
        frames.write_video(path, np.zeros((30, 64, 66, 3), np.uint8), 25)
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == 'earlier'


def test_labels_are_not_clipped():
    long = frames.Heading('a heading much longer than its frame is wide')
    frame = np.zeros((64, 64, 1), np.uint8)
    names = ['row', 'another long name of a row']
    picture = np.asarray(frames.table([[frame, None], [None, frame]], [long, long], names))
    assert (picture[:, [0, 1, -1, -2]] == 255).all() and (picture[[0, 1]] == 255).all()
    middle = picture.shape[1] // 2
    assert (picture[:28, middle - 40:].min((0, 2)) < 128).any()
    assert frames.shortened('a' * 24) == 'a' * 24
    assert frames.shortened('a' * 12 + 'b' * 13) == 'a' * 11 + '…' + 'b' * 12


# Charts

@pytest.fixture
def drawn(monkeypatch):
    """Figures, instead of their files."""
    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path, **_: figures.append(figure)
                        or Path(path).touch())
    return figures


def test_bands_leave_out_infinite_values():
    values = np.array([[1., math.inf, math.inf, math.nan], [3, math.inf, 5, 5]])
    mean, std = charts.band(values)
    assert mean.tolist() == [2, None, 5, None]  # NaNs are not skipped
    assert std[:3].tolist() == [1, None, 0]
    np.testing.assert_allclose(charts.band(values, interval=True)[1][0], 1.96 / 2 ** .5)


def test_score_curves_are_those_of_the_registry(drawn, tmp_path, monkeypatch):
    class Error:
        label, unit, digits, higher_is_better = 'Error', 'px', 1, False
    monkeypatch.setitem(METRICS, 'error', Error)
    methods = {name: {f'{m}_t': RNG.rand(20, 5).astype(np.float32) for m in names}
               for name, names in (('a', ['psnr', 'error']), ('b', ['error']))}
    charts.score_curves(tmp_path / 'a.png', methods, 3, {'paper': {'psnr': 17.5, 'ssim': 1}})
    psnr, error = drawn[0].axes
    assert [axes.get_title() for axes in (psnr, error)] == ['PSNR (dB)', 'Error (px)']
    assert [line.get_label() for line in psnr.lines] == ['a', 'paper', 'first predicted frame']
    assert psnr.lines[1].get_ydata() == [17.5, 17.5] and psnr.lines[2].get_xdata() == [3, 3]
    assert [line.get_label() for line in error.lines[:2]] == ['a', 'b']
    assert error.lines[0].get_color() == psnr.lines[0].get_color() != error.lines[1].get_color()
    assert error.lines[1].get_xdata().tolist() == [3, 4, 5, 6, 7]
    np.testing.assert_allclose(error.lines[1].get_ydata(), methods['b']['error_t'].mean(0), 1e-6)


def test_training_curves_of_a_finished_run_and_one_that_has_just_begun(drawn, tmp_path):
    row = {'nll': 1, 'kl_y_0': 2, 'kl_z': 3, 'res': 4, 'lr': 0.1, 'steps_per_s': 1}
    rows = [{'step': str(i), 'loss': str(i), **row} for i in range(1, 41)]
    rows[0]['loss'] = '9e9'  # of the first step, which does not set the scale
    validation = [{'step': '20', 'val_psnr': '12.5', 'best_psnr': '12.5', 'val_ssim': '0.5',
                   'psnr_3': '13', 'psnr_4': '12'}]
    runs = {'a': (rows, validation), 'b': ([{'step': '5', 'loss': '1', **row}], [])}
    charts.training_curves(tmp_path / 'a.png', runs)
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    assert list(panels) == [*charts.TERMS.values(), 'validation: PSNR (dB)', 'validation: SSIM',
                            'last validation: PSNR (dB)']
    assert [len(line.get_xdata()) for line in panels['loss'].lines] == [40, 1]
    assert panels['loss'].get_ylim()[0] < 2 and 30 < panels['loss'].get_ylim()[1] < 50
    assert panels['validation: PSNR (dB)'].lines[0].get_ydata().tolist() == [12.5]
    last = panels['last validation: PSNR (dB)'].lines[0]
    assert last.get_xdata().tolist() == [3, 4] and last.get_ydata().tolist() == [13, 12]
