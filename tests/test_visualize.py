"""`visualize.py`: each WHAT on tiny models, pixel by pixel, against plain computations; errors."""

import json
import shutil
import subprocess
import sys
import weakref
from argparse import Namespace
from pathlib import Path
from unittest.mock import Mock

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from test_datasets import encode

import logs
import visualize
from args import config_dict, load_config, parse_train
from checkpoint import load_model
from conftest import ROOT, read_video, stirred
from data import load_test
from files import UserError, write_json
from metrics.frame import psnr
from metrics.scoring import quantise
from model import SRVP, build_model
from pictures import charts, views
from pictures import frames as pictures
from pictures.encoding import Palette, write_gif
from preprocessing.decoding import find_ffmpeg
from preprocessing.folder.frames import FrameFormat, open_frames
from preprocessing.human import convert as human_convert
from preprocessing.kth import convert as kth_convert
from preprocessing.video import read_video as read_given
from sampling import Chunk, Futures, draw_noise
from utils import to_video
from visualize import VISUALS

SIDE = pictures.SIDE
PITCH = SIDE + pictures.GAP  # of cells without borders


def write_model(folder, *options):
    """Folder of a tiny model with random weights, of visibly different futures and contents."""
    config = parse_train([
        *options, '--data_dir', 'd', '--save_path', 's', '--nf', '2', '--nhx', '8', '--ny', '4',
        '--nz', '3', '--nt_inf', '2', '--nt_cond', '3', '--nh_inf', '8', '--nh_res', '8',
        '--seq_len', '6', '--archi', 'vgg', '--skipco', '--n_euler_steps', '2'])
    torch.manual_seed(0)
    model = stirred(build_model(config), config.nc)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / 'model.pt')
    write_json(folder / 'config.json', config_dict(config))
    return folder


@pytest.fixture(scope='module')
def colour(tmp_path_factory):
    """Colour model with skip connections and two Euler steps per frame, and its videos.

    The first video is red.
    """
    folder = write_model(tmp_path_factory.mktemp('colour'), '--dataset', 'folder', '--nc', '3')
    (folder / 'data' / 'test').mkdir(parents=True)
    videos = np.random.RandomState(0).randint(0, 256, (4, 8, 64, 64, 3)).astype(np.uint8)
    videos[0] = 200, 0, 0
    for i, video in enumerate(videos):
        np.save(folder / 'data' / 'test' / f'{i}.npy', video)
    return folder, folder / 'data'


@pytest.fixture(scope='module')
def grey(tmp_path_factory):
    """Grey model, whose test set is that of `data_dir`."""
    return write_model(tmp_path_factory.mktemp('grey'), '--dataset', 'smmnist',
                       '--digits', 'mnist5k', '--nc', '1')


def draw(what, xp_dir, *more):
    visualize.main([what, '--xp_dir', str(xp_dir), *map(str, more)])


def plain(xp_dir, data_dir, index, n_samples, nt_gen, n_euler_steps=None, nt_cond=3):
    """Model, true videos uint8 (T, B, H, W, C), and futures as `test.py` computes them."""
    config = load_config(xp_dir)
    model = load_model(config, xp_dir / 'model.pt', 'cpu')
    truth = load_test(config, data_dir, nt_gen).videos(index)
    x = to_video(torch.from_numpy(truth[:nt_cond]), 'cpu')
    noise = draw_noise(model, 1, 'test', index, n_samples, nt_gen)
    return model, truth, Futures(model, x, nt_gen - nt_cond, noise, n_euler_steps)


def as_frames(x):
    return quantise(x.clamp(0, 1)).movedim(-3, -1).numpy()


def read_rgb(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert('RGB'))


def cells(path, rows, columns, apart=()):
    """Frames (rows, columns, 64, 64, 3) of a table without borders; checks the enlargement.

    apart : columns followed by a wider gap
    """
    picture, wide = read_rgb(path), 4 * pictures.GAP
    left = picture.shape[1] - columns * PITCH - wide * len(apart)
    top = picture.shape[0] - rows * PITCH
    found = np.empty((rows, columns, 64, 64, 3), np.uint8)
    for i in range(rows):
        for j in range(columns):
            y = top + i * PITCH
            x = left + j * PITCH + pictures.GAP // 2 + wide * sum(j > a for a in apart)
            cell = picture[y:y + SIDE, x:x + SIDE]
            found[i, j] = cell[::3, ::3]
            np.testing.assert_array_equal(cell, found[i, j].repeat(3, 0).repeat(3, 1))
    return found


def assert_same(found, expected, most=1):
    """Equal up to the last bit before truncation; grey frames have three equal channels."""
    assert np.std(expected) > 2  # not vacuous
    assert abs(found.astype(int) - expected.astype(int)).max() <= most


def gif(path):
    """Frames (T, H, W, 3) of a GIF, and their duration in milliseconds."""
    with Image.open(path) as picture:
        frames = []
        for t in range(picture.n_frames):
            picture.seek(t)
            frames.append(np.asarray(picture.convert('RGB')))
        return np.stack(frames), picture.info['duration']


@pytest.fixture
def shown(monkeypatch):
    """Frames of the last animation, before quantisation and coding, and their captions."""
    frames, captions = [], []

    def recording(write):
        def record(path, drawn, *args):
            captions.clear()
            frames[:] = drawn
            write(path, iter(frames), *args)
        return record

    def stacked(parts, caption, colour, stacked=pictures.stacked):
        captions.append(caption)
        return stacked(parts, caption, colour)
    monkeypatch.setattr(pictures, 'write_gif', recording(pictures.write_gif))
    monkeypatch.setattr(pictures, 'write_mp4', recording(pictures.write_mp4))
    monkeypatch.setattr(pictures, 'stacked', stacked)
    return frames, captions


def bordered(picture, colour):
    """Frames (N, 64, 64, 3) with a border of this colour in a picture, row by row."""
    mask, side = (picture == colour).all(-1), SIDE + 4
    across, down = (np.lib.stride_tricks.sliding_window_view(mask, side, axis).all(-1)
                    for axis in (1, 0))
    corners = np.argwhere(across[:1 - side] & down[:, :1 - side]) + 2
    found = np.stack([picture[y:y + SIDE:3, x:x + SIDE:3] for y, x in corners])
    for (y, x), frame in zip(corners, found):
        enlarged = frame.repeat(3, 0).repeat(3, 1)
        np.testing.assert_array_equal(picture[y:y + SIDE, x:x + SIDE], enlarged)
    return found


# Each WHAT

def test_samples_are_those_of_evaluation_with_their_moments(grey, data_dir, tmp_path, shown):
    out = tmp_path / 'new' / 'samples.png'
    draw('samples', grey, '--data_dir', data_dir, '--index', 4, '--n_samples', 6, '--nt_gen', 8,
         '--out', out, out.with_suffix('.gif'), '--fps', 4)
    _, truth, futures = plain(grey, data_dir, [4], 6, 8)
    x = torch.stack([future[:, 0] for future in futures])  # (S, nt, C, H, W)
    target = to_video(torch.from_numpy(truth[3:]), 'cpu')[:, 0]
    score = psnr(x, target.expand_as(x)).mean((1, 2))
    mean, variance = x.numpy().mean(0), x.numpy().var(0)
    expected = [x[score.argmax()], x[score.argmin()], x[0], x[1], x[2], torch.from_numpy(mean),
                torch.from_numpy(2 * np.sqrt(variance))]
    found = cells(out, 8, 8)
    np.testing.assert_array_equal(found[0], truth[:, 0].repeat(3, -1))
    np.testing.assert_array_equal(found[1:7, :3], found[:1, :3].repeat(6, 0))  # those given
    assert (found[7, :3] == 0).all()  # their standard deviation
    for row, video in zip(found[1:], expected):
        assert abs(row[3:].astype(int) - as_frames(video)).max() <= 1
    assert found[7, 3:].max() > 0 and score.max() > score.min()
    frames, duration = gif(out.with_suffix('.gif'))
    assert len(frames) == 8 and duration == 250 and frames.shape[2] > 4 * SIDE
    assert shown[1] == [f't = {t} ({"given" if t < 3 else "predicted"})' for t in range(8)]
    np.testing.assert_array_equal(bordered(shown[0][6], pictures.PREDICTED), found[:, 6])
    given = [*found[:1, 1].repeat(7, 0), 0 * found[0, 1]]  # their standard deviation is 0
    np.testing.assert_array_equal(bordered(shown[0][1], pictures.GIVEN), given)


def test_several_videos_have_a_file_each(grey, data_dir, tmp_path, capsys):
    shutil.copytree(grey, tmp_path / 'run')
    draw('samples', tmp_path / 'run', '--data_dir', data_dir, '--index', 3, 0, '--n_samples', 2)
    out = tmp_path / 'run' / 'visualize'
    names = {f'samples_{i}.{e}' for i in (0, 3) for e in ('png', 'gif')}
    assert {p.name for p in out.iterdir()} == names
    assert f'samples: {out}/samples_3.png' in capsys.readouterr().out
    draw('samples', grey, '--data_dir', data_dir, '--index', 3, '--n_samples', 2,
         '--out', tmp_path / 'one.PNG')
    np.testing.assert_array_equal(read_rgb(tmp_path / 'one.PNG'), read_rgb(out / 'samples_3.png'))


def test_videos_of_other_digits(grey, colour, data_dir, tmp_path):
    shutil.copytree(grey, tmp_path / 'run')
    config = json.loads((grey / 'config.json').read_text())
    (tmp_path / 'run' / 'config.json').write_text(json.dumps({**config, 'digits': 'mnist'}))
    options = ['--data_dir', data_dir, '--n_samples', 2, '--out']
    with pytest.raises(UserError, match='smmnist_test_2digits_64.npz does not exist'):
        draw('samples', tmp_path / 'run', *options, tmp_path / 'a.png')
    draw('samples', tmp_path / 'run', *options, tmp_path / 'a.png', '--digits', 'mnist5k')
    draw('samples', grey, *options, tmp_path / 'b.png')
    np.testing.assert_array_equal(read_rgb(tmp_path / 'a.png'), read_rgb(tmp_path / 'b.png'))
    with pytest.raises(UserError, match='--digits mnist belongs to Moving MNIST, but .* of folder'):
        draw('samples', colour[0], '--data_dir', colour[1], '--digits', 'mnist')


def test_framerate_decodes_the_states_between_frames(colour, tmp_path, shown):
    xp_dir, data_dir = colour
    options = ('framerate', xp_dir, '--data_dir', data_dir, '--index', 1, '--n_euler_steps', 4,
               '--nt_gen', 8, '--n_samples', 3, '--sample', 2)
    draw(*options, '--out', tmp_path / 'a.png', tmp_path / 'a.gif')
    model, truth, futures = plain(xp_dir, data_dir, [1], 3, 8, 4)
    noise = draw_noise(model, 1, 'test', [1], 3, 8)
    x = to_video(torch.from_numpy(truth[:3]), 'cpu')
    between = Futures(model, x, 5, noise, 4, between=True)
    assert between.y.shape == (20, 3, 1, 4) and torch.equal(between.y[3::4], futures.y)
    # All Euler states of the second future
    y, _, _ = model.evolve(futures.y_given[-1, 1], noise.z[:0, 1], 6, noise.z[2:, 1], 4)
    states = as_frames(model.decode(futures.cond.w, y, futures.cond.skips)[:, 0])
    found = cells(tmp_path / 'a.png', 5, 5)  # t = 2, …, 6: truth, t, t + 1/4, …
    np.testing.assert_array_equal(found[:, 0], truth[2:7, 0])
    np.testing.assert_array_equal(found[0, 1], truth[2, 0])
    assert_same(found[1:, 1], as_frames(futures[1][:4, 0]))
    assert_same(found[:, 1:].reshape(20, 64, 64, 3)[1:], states[1:20])
    frames, duration = gif(tmp_path / 'a.gif')
    assert len(frames) == 7 * 4 + 1 and duration == 100
    assert shown[1][4] == 't = 1 (given)' and shown[1][18] == 't = 4 + 2/4 (predicted)'
    expected = [truth[4, 0], *found[2, [1, 3]]]
    np.testing.assert_array_equal(bordered(shown[0][18], pictures.PREDICTED), expected)
    np.testing.assert_array_equal(bordered(shown[0][4], pictures.GIVEN), truth[[1, 1, 1], 0])
    draw(*options, '--out', tmp_path / 'a.mp4')
    frames, fps = read_video(tmp_path / 'a.mp4')
    assert len(frames) == 7 * 4 + 1 and fps == 10


def test_swap_has_the_plain_prediction_on_its_diagonal(colour, tmp_path, shown):
    xp_dir, data_dir = colour
    out = tmp_path / 'swap.png'
    draw('swap', xp_dir, '--data_dir', data_dir, '--index', 2, 1, '--nt_gen', 6, '--n_samples', 2,
         '--out', out, out.with_suffix('.gif'))
    model, truth, futures = plain(xp_dir, data_dir, [2, 1], 2, 6)
    found = cells(out, 3, 13, apart=(0, 6))
    assert (found[0, 0] == 255).all()
    np.testing.assert_array_equal(found[1:, 0], truth[2])  # frames of content and skip connections
    expected = [*found[0, [5, 11]], *found[1, [0, 5, 11]], *found[2, [0, 5, 11]]]
    np.testing.assert_array_equal(bordered(shown[0][4], pictures.PREDICTED), expected)
    assert shown[1][2:4] == ['t = 2 (given)', 't = 3 (predicted)']
    found = found[:, 1:].reshape(3, 2, 6, 64, 64, 3)
    np.testing.assert_array_equal(found[0], truth.swapaxes(0, 1))
    x = torch.cat([futures.given(0), futures[0]])
    for b in range(2):
        assert_same(found[1 + b, b], as_frames(x[:, b]))
    y = torch.cat([futures.y_given, futures.y])[:, 0]
    w, skips = futures.cond.w.flip(0), [s.flip(0) for s in futures.cond.skips]
    other = as_frames(model.decode(w, y, skips))
    for b in range(2):
        assert_same(found[2 - b, b], other[:, b])
        assert (found[2 - b, b] != found[1 + b, b]).mean() > 0.1
    assert len(gif(out.with_suffix('.gif'))[0]) == 6


def test_interpolation_ends_at_the_decodings_of_both_videos(colour, tmp_path, shown):
    xp_dir, data_dir = colour
    out = tmp_path / 'line.png'
    draw('interpolate', xp_dir, '--data_dir', data_dir, '--index', 3, 1, '--steps', 5,
         '--n_samples', 2, '--nt_gen', 5, '--out', out, out.with_suffix('.gif'))
    model, truth, futures = plain(xp_dir, data_dir, [3, 1], 2, 5)
    own = as_frames(futures.given(0)[0])
    found = cells(out, 3, 7)
    np.testing.assert_array_equal(found[:, [0, -1]], truth[0][None].repeat(3, 0))
    assert_same(found[:2, 1], own[[0, 0]])
    assert_same(found[1:, -2], own[[1, 1]])
    y = futures.y_given[0, 0].mean(0).expand(1, 1, -1)
    w, skips = futures.cond.w, futures.cond.skips
    first = model.decode(w[:1], y, [s[:1] for s in skips])
    between = model.decode(w.mean(0)[None], y, [s.mean(0)[None] for s in skips])
    assert_same(found[0, 3], as_frames(first)[0, 0])
    assert_same(found[1, 3], as_frames(between)[0, 0])
    assert len(gif(out.with_suffix('.gif'))[0]) == 8  # there and back
    values = ('0', '0.25', '0.5', '0.75', '1', '0.75', '0.5', '0.25')
    assert shown[1] == [f'a = {a}' for a in values]
    for frame, a in zip(shown[0], values):
        expected = [truth[0, 0], *found[:, 1 + round(4 * float(a))], truth[0, 1]]
        np.testing.assert_array_equal(bordered(frame, pictures.INK), expected)


@pytest.mark.parametrize('what', ['swap', 'latent'])
def test_frames_are_decoded_in_chunks(colour, tmp_path, monkeypatch, what):
    xp_dir, data_dir = colour
    options = what, xp_dir, '--data_dir', data_dir, '--index', 1, 2, '--n_samples', 2
    draw(*options, '--out', tmp_path / 'whole.png')
    rows, decode = [], SRVP.decode

    def watched(model, w, y, skips):
        rows.append(len(y))
        return decode(model, w, y, skips)
    monkeypatch.setattr(SRVP, 'decode', watched)
    monkeypatch.setattr(views, 'Chunk', lambda model: Chunk(model, 4))
    draw(*options, '--out', tmp_path / 'chunks.png')
    assert max(rows) == 2
    whole, chunks = (read_rgb(tmp_path / f'{name}.png').astype(int) for name in ('whole', 'chunks'))
    assert abs(whole - chunks).max() <= 1


def test_samples_are_not_kept_in_memory(grey, data_dir, tmp_path, monkeypatch):
    seen = []

    class Watched:
        def __init__(self, futures):
            self.futures = futures

        def __len__(self):
            return len(self.futures)

        def __iter__(self):
            for x in self.futures:
                x = x.numpy().copy()
                seen.append(weakref.ref(x))  # lives as long as a tensor that shares its memory
                assert sum(ref() is not None for ref in seen) <= 3
                yield torch.from_numpy(x)
    get_futures = views.get_futures
    monkeypatch.setattr(views, 'get_futures', lambda *args: Watched(get_futures(*args)))
    draw('samples', grey, '--data_dir', data_dir, '--n_samples', 12, '--out', tmp_path / 'a.png')
    assert len(seen) == 12


def test_pca_is_that_of_the_covariance():
    y = np.random.RandomState(0).randn(50, 6) @ np.diag([5, 1, 0.3, 2, 0.1, 0.5]) + 7
    flat, share = views.pca(y)
    values, vectors = np.linalg.eigh(np.cov(y.T))
    expected = (y - y.mean(0)) @ vectors[:, [-1, -2]]
    np.testing.assert_allclose(abs(flat), abs(expected), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(share, values[[-1, -2]] / values.sum(), rtol=1e-9)
    np.testing.assert_allclose(views.pca(-y)[0], -flat)  # signs do not depend on the solver
    flat, share = views.pca(y[:, :1])
    assert (flat[:, 1] == 0).all() and share.tolist() == [1, 0]


@pytest.mark.parametrize('nt_cond', [1, 3, 5])
def test_plane_has_dots_for_conditioning_frames_only(nt_cond):
    y = np.stack([np.arange(8.), np.arange(8.) ** 2 / 8], 1)[:, None]  # from left to right
    picture, colours = charts.plane(y, [0, nt_cond, 7], [0.9, 0.1])
    inked = (np.asarray(picture) == colours[0]).all(-1)
    filled = np.lib.stride_tricks.sliding_window_view(inked, (5, 5)).all((-1, -2))
    x = np.flatnonzero(filled.any(0))
    left = x[np.diff(x, prepend=-99) > 9]
    assert len(left) == nt_cond and left[0] < 150
    assert np.ptp(left) < (picture.width - 100) * nt_cond / 8


def test_plane_shows_distant_paths_one_by_one():
    """In panels of their own, where they are as large as two paths that are near each other."""
    angle = np.linspace(0, 6, 20)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)[:, None]  # of diameter 2
    shares = {}
    for distance in (1, 5, 9, 1000):
        picture, colours = charts.plane(np.concatenate([circle, circle + [distance, 0]], 1),
                                        [0, 3, 19], [0.9, 0.1])
        places = [np.argwhere((np.asarray(picture) == colour).all(-1)) for colour in colours[:2]]
        shares[distance] = [np.ptp(place[:, 0]) / 800 for place in places]
    assert min(shares[1]) > 0.5 and 0.2 < min(shares[5]) <= max(shares[5]) < 0.3
    for far in (9, 1000):  # also in the panel of all paths
        assert min(shares[far]) > 0.3


def test_latent_shows_paths_and_frames(grey, data_dir, tmp_path, monkeypatch):
    seen, plane = [], charts.plane

    def watched(*args):
        seen.append(args)
        return plane(*args)
    monkeypatch.setattr(charts, 'plane', watched)
    draw('latent', grey, '--data_dir', data_dir, '--index', 5, 2, '--nt_gen', 8, '--n_samples', 3,
         '--out', tmp_path / 'a.png')
    model, _, futures = plain(grey, data_dir, [5, 2], 3, 8)
    y = torch.cat([futures.y_given, futures.y])[:, 0]
    (flat, times, share, size), = seen
    expected, _ = views.pca(y.flatten(0, 1).numpy())
    np.testing.assert_allclose(flat, expected.reshape(8, 2, 2), rtol=1e-4, atol=1e-5)
    assert times == [0, 3, 7] and 0 < share[1] <= share[0] <= 1
    picture = Image.open(tmp_path / 'a.png').convert('RGB')
    assert picture.height == size == 800 and picture.width > 800 + 3 * SIDE
    top = (800 - 28 - 2 * PITCH) // 2
    picture.crop((800, top, picture.width, 800 - top)).save(tmp_path / 'frames.png')
    x = as_frames(model.decode(futures.cond.w, y[times], futures.cond.skips))
    assert_same(cells(tmp_path / 'frames.png', 2, 3), x.swapaxes(0, 1).repeat(3, -1))


def test_latent_shows_a_single_predicted_frame_once(grey, data_dir, tmp_path, monkeypatch):
    seen, plane, table = [], charts.plane, pictures.table

    def watched_plane(*args):
        seen.append(args[1])
        return plane(*args)

    def watched_table(cells, headings, names):
        seen.append([h.text for h in headings])
        return table(cells, headings, names)
    monkeypatch.setattr(charts, 'plane', watched_plane)
    monkeypatch.setattr(pictures, 'table', watched_table)
    draw('latent', grey, '--data_dir', data_dir, '--index', 5, '--nt_gen', 4, '--n_samples', 2,
         '--out', tmp_path / 'a.png')
    assert seen == [[0, 3], ['t = 0 (given)', 't = 3 (predicted)']]


# Any video

@pytest.fixture(scope='module')
def video(tmp_path_factory):
    """0.8 seconds, 20 frames, in colour, coded as RGB."""
    path = tmp_path_factory.mktemp('videos') / 'own clip.mkv'
    encode(path, '160x120', 25, 0.8, '-c:v', 'ffv1', '-pix_fmt', 'bgr0')
    return path


def converted(source, *form):
    """Frames converted like a folder of videos."""
    return np.concatenate(list(open_frames(source, FrameFormat(64, *form))))


def predicted(xp_dir, source, tmp_path, *more):
    draw('predict', xp_dir, '--video', source, '--out', tmp_path / 'p.npz', *more)
    with np.load(tmp_path / 'p.npz', allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ['given', 'samples']
        return arrays['given'], arrays['samples']


def test_predict_takes_the_frames_of_the_conversion(colour, video, tmp_path):
    given, samples = predicted(colour[0], video, tmp_path, '--t_0', 4, '--nt_gen', 7,
                               '--n_samples', 2)
    frames = converted(video)
    np.testing.assert_array_equal(given, frames[4:7])
    assert samples.dtype == np.uint8 and samples.shape == (2, 4, 64, 64, 3)
    model = load_model(load_config(colour[0]), colour[0] / 'model.pt', 'cpu')
    x = to_video(torch.from_numpy(frames[4:7, None]), 'cpu')
    futures = Futures(model, x, 4, draw_noise(model, 1, 'test', [0], 2, 7))
    assert_same(samples, as_frames(torch.stack([future[:, 0] for future in futures])))
    assert (samples[0] != samples[1]).any()


def test_predict_for_the_other_datasets(video, tmp_path):
    kth = write_model(tmp_path / 'kth', '--dataset', 'kth', '--nc', '1')
    given, samples = predicted(kth, video, tmp_path, '--nt_gen', 5)
    frames, _ = kth_convert.read(video, 64, 25)
    np.testing.assert_array_equal(given, frames[:3, ..., :1])
    assert samples.shape == (5, 2, 64, 64, 1)

    mnist = write_model(tmp_path / 'mnist', '--dataset', 'smmnist', '--nc', '1')
    given, samples = predicted(mnist, video, tmp_path)
    frames = converted(video, True)
    np.testing.assert_array_equal(given, frames[:3, ..., None])
    assert samples.shape == (5, 3, 64, 64, 1)

    bair = write_model(tmp_path / 'bair', '--dataset', 'bair', '--nc', '3')
    given, _ = predicted(bair, video, tmp_path)
    np.testing.assert_array_equal(given, converted(video)[:3])


def test_predict_for_human_takes_one_frame_in_eight_of_the_box(tmp_path):
    xp_dir = write_model(tmp_path / 'human', '--dataset', 'human', '--nc', '3')
    path = tmp_path / 'human.mkv'
    encode(path, '1000x1000', 25, 1.2, '-c:v', 'ffv1')
    frames, _ = human_convert.read(path, 64)
    given, _ = predicted(xp_dir, path, tmp_path, '--nt_gen', 4)
    np.testing.assert_array_equal(given, frames[[0, 8, 16]])
    given, _ = predicted(xp_dir, path, tmp_path, '--nt_gen', 4, '--t_0', 1)
    np.testing.assert_array_equal(given, frames[[8, 16, 24]])
    encode(tmp_path / 'small.mkv', '160x120', 25, 1.2)
    with pytest.raises(UserError, match='frames of 1000 x 1000 are expected, found 160 x 120'):
        predicted(xp_dir, tmp_path / 'small.mkv', tmp_path)


def test_predict_takes_folders_of_pictures(colour, video, tmp_path):
    folder = tmp_path / 'frames'
    folder.mkdir()
    subprocess.run([find_ffmpeg(), '-v', 'error', '-i', str(video), '-start_number', '7',
                    str(folder / 'f%d.png')], check=True)
    given, _ = predicted(colour[0], folder, tmp_path, '--t_0', 2)  # f9, f10, f11
    np.testing.assert_array_equal(given, converted(folder)[2:5])
    assert abs(given - converted(video)[2:5].astype(int)).mean() < 4
    kth = write_model(tmp_path / 'kth', '--dataset', 'kth', '--nc', '1')
    given, _ = predicted(kth, folder, tmp_path, '--t_0', 2)
    expected, _ = kth_convert.read(video, 64, 25)
    assert_same(given, expected[2:5, ..., :1])


@pytest.mark.parametrize('dataset', ['kth', 'folder'])
def test_a_bad_picture_is_named(tmp_path, dataset):
    Image.fromarray(np.zeros((80, 60, 3), np.uint8)).save(tmp_path / '0.png')
    (tmp_path / '1.png').write_bytes(b'no picture')
    message = rf'cannot be read as a video of {dataset} \(1.png: .*\); '
    with pytest.raises(UserError, match=message):
        read_given(tmp_path, Namespace(dataset=dataset, nx=64, nc=1, data_dir=None), 0, 2)


@pytest.mark.parametrize('dataset', ['kth', 'folder'])
def test_predict_takes_one_frame_of_moving_pictures(tmp_path, dataset):
    xp_dir = write_model(tmp_path / 'run', '--dataset', dataset, '--nc', '1')
    (tmp_path / 'frames').mkdir()
    for i in range(4):
        first, *others = [Image.new('L', (96, 64), 50 * i + k) for k in range(9)]
        first.save(tmp_path / 'frames' / f'{i}.png', save_all=True, append_images=others)
    given, _ = predicted(xp_dir, tmp_path / 'frames', tmp_path, '--t_0', 1)
    assert given.shape == (3, 64, 64, 1) and given[:, 0, 0, 0].tolist() == [50, 100, 150]


@pytest.mark.parametrize('suffix', ['gif', 'mp4', 'png'])
def test_predict_draws_a_video_of_any_length(colour, tmp_path, shown, suffix):
    """A red video of 5 frames, continued to 7: it stays red, then turns white."""
    (tmp_path / 'red').mkdir()
    for t in range(5):
        Image.new('RGB', (96, 64), (255, 0, 0)).save(tmp_path / 'red' / f'{t}.png')
    out = tmp_path / f'p.{suffix}'
    draw('predict', colour[0], '--video', tmp_path / 'red', '--nt_gen', 7, '--n_samples', 2,
         '--out', out, tmp_path / 'p.npz')
    if suffix == 'png':
        found = cells(out, 3, 7)[0]
    else:
        frames, rate = gif(out) if suffix == 'gif' else read_video(out)
        assert len(frames) == 7 and rate == (200 if suffix == 'gif' else 5)
        found = frames[:, 40:200, 20:180]
        with np.load(tmp_path / 'p.npz') as arrays:
            samples, given = arrays['samples'], arrays['given']
        future = bordered(shown[0][5], pictures.PREDICTED)[1:]
        np.testing.assert_array_equal(future, samples[:, 2])
        past = bordered(shown[0][1], pictures.GIVEN)[1:]
        np.testing.assert_array_equal(past, given[[1, 1]])
    error = abs(found[:5].astype(int) - (255, 0, 0)).max()
    assert error <= (5 if suffix == 'mp4' else 0) and found[5:].min() >= 252


# Training

def test_training_curves_of_runs(run_dir, tmp_path, monkeypatch):
    """Of one that goes on, of one of an earlier version, and of one without validation so far."""
    shutil.copytree(run_dir, tmp_path / 'run')
    with open(tmp_path / 'run' / 'log.csv', 'a') as f:
        f.write('16,2')  # as it is being written
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old' / 'log.csv').write_text(
        'step,loss,nll,kl_y_0,kl_z,res,lr,steps_per_s,val_psnr,best_psnr\n'
        '1,9e9,9e9,1,2,3,0.1,1,,\n' + ''.join(f'{i},{i},1,2,3,4,0.1,1,,\n' for i in range(2, 41))
        + '40,,,,,,,,12.5,13\n')
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new' / 'log.csv').write_text(','.join(logs.TRAINING) + '\n5,1,1,1,1,1,1,1\n')
    monkeypatch.chdir(tmp_path)
    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path, **_: figures.append(figure)
                        or Path(path).touch())
    visualize.main(['training', '--xp_dir', 'run', 'old', 'new'])
    assert (tmp_path / 'run' / 'visualize' / 'training.png').exists()
    panels = {axes.get_title(): axes for axes in figures[0].axes}
    assert list(panels) == [*charts.TITLES.values(), 'last validation: PSNR (dB) by frame t']
    for title, length, old in (('loss', 15, 40), ('validation: PSNR (dB)', 2, 1),
                               ('validation: SSIM', 2, 0)):
        run, before, new = panels[title].lines
        assert [len(line.get_xdata()) for line in (run, before)] == [length, old]
        assert new.get_label() == 'new' and len(new.get_xdata()) == (title == 'loss')
    assert panels['validation: PSNR (dB)'].lines[1].get_ydata().tolist() == [12.5]
    assert panels['last validation: PSNR (dB) by frame t'].lines[0].get_xdata().tolist() == [3, 4]
    low, high = panels['loss'].get_ylim()
    assert low < 2 and 20_000 < high < 50_000  # not the first loss of the second run
    texts = [text.get_text() for text in panels['loss'].get_legend().get_texts()]
    assert texts == ['run', 'old', 'new']


def test_training_picture(run_dir, tmp_path, call):
    path = tmp_path / 'new' / 'a.PNG'
    done = call(visualize.main, 'training', '--xp_dir', run_dir, '--names', 'tiny', '--out', path)
    assert done == (0, f'training: {path}\n', '')
    assert np.ptp(read_rgb(path)) > 200


@pytest.mark.parametrize('argv, message', [
    (['--xp_dir', 'nowhere'], 'nowhere/log.csv does not exist; use the folder of a run of train'),
    (['--xp_dir', 'begun'], 'begun/log.csv has no rows yet; wait for the first one'),
    (['--xp_dir', 'other'], r'other/log.csv is not the log of a run \(it has no column step\); '),
    (['--xp_dir', 'begun', 'begun'], '--names: begun begun has duplicates; use different ones'),
    (['--xp_dir', 'begun', '--names', 'a', 'b'], '--names: found 2 for 1 run .--xp_dir.; give'),
    (['--xp_dir', 'begun', '--out', 'a.gif'], '--out a.gif: training is written as .png; use one'),
    (['--xp_dir', 'begun', '--index', '3'], '--index belongs to samples, .*, found training')])
def test_errors_of_training(argv, message, tmp_path, monkeypatch):
    for folder, text in (('begun', 'step,loss\n'), ('other', 'a,b\n1,2\n')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'log.csv').write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        visualize.main(['training', *argv])
    assert not list(tmp_path.rglob('*.png'))


# Animations

def test_gif_has_the_right_greys_and_colours(tmp_path):
    ramp = np.arange(4096).reshape(64, 64)
    grey = (ramp // 16).astype(np.uint8)[None, ..., None]
    colours = np.stack([ramp // 16, ramp.T // 16, 255 - ramp // 16], -1).astype(np.uint8)[None]
    for video, most, mean in ((grey, 1, 0.5), (colours, 30, 6)):
        pictures.animation(tmp_path / 'a.gif', {'a': np.concatenate([video, video[:, ::-1]])}, 1)
        frames, _ = gif(tmp_path / 'a.gif')
        shown = frames[0, 28:28 + SIDE, 6:6 + SIDE].astype(int)
        error = abs(shown - video[0].repeat(3, 0).repeat(3, 1))
        assert len(frames) == 2 and error.max() <= most and error.mean() <= mean


def test_gif_keeps_the_colours_of_labels_and_of_each_frame(tmp_path):
    """A colour of a single frame too, and those of the borders, on grey videos and others."""
    videos = np.random.RandomState(0).randint(0, 256, (2, 9, 64, 64, 3)).astype(np.uint8) // 4
    videos[0] = videos[0, ..., :1]
    videos[1, 6, 20:40, 20:40] = 0, 255, 0
    for video in (videos[0, ..., :1], videos[1]):
        pictures.animation(tmp_path / 'a.gif', {'a': video}, 3)
        frames, _ = gif(tmp_path / 'a.gif')
        for t, colour in ((0, pictures.GIVEN), (5, pictures.PREDICTED)):
            assert abs(frames[t, 26, 10:190].astype(int) - colour).max() <= 8
    assert abs(frames[6, 28 + 62:28 + 118, 6 + 62:6 + 118].astype(int) - (0, 255, 0)).max() <= 8


@pytest.mark.parametrize('fps, milliseconds', [
    (0.1, 10_000), (3, 330), (15, 70), (30, 30), (45, 20), (100, 20)])
def test_gif_rounds_to_hundredths_of_a_second(tmp_path, fps, milliseconds):
    frames = np.random.RandomState(0).randint(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    write_gif(tmp_path / 'a.gif', frames, fps, Palette.of(frames, 3))
    assert gif(tmp_path / 'a.gif')[1] == milliseconds


def test_labels_are_not_clipped():
    long = pictures.Heading('a heading much longer than its frame is wide')
    frame = np.zeros((64, 64, 1), np.uint8)
    names = ['row', 'another long name of a row']
    picture = np.asarray(pictures.table([[frame, None], [None, frame]], [long, long], names))
    assert (picture[:, [0, 1, -1, -2]] == 255).all() and (picture[[0, 1]] == 255).all()
    middle = picture.shape[1] // 2
    assert (picture[:28, middle - 40:].min((0, 2)) < 128).any()


def test_videos_have_the_names_of_their_files(colour, grey, data_dir, video, tmp_path,
                                              monkeypatch):
    texts, table = [], pictures.table

    def watched(cells, headings, names=(), *args):
        texts.append([getattr(h, 'text', h) for h in [*headings, *names]])
        return table(cells, headings, names, *args)
    monkeypatch.setattr(pictures, 'table', watched)

    def drawn(what, xp_dir, *more):
        texts.clear()
        draw(what, xp_dir, *more, '--n_samples', 2, '--out', tmp_path / 'a.png')
        return ' | '.join(text for row in texts for text in row)
    long = 'person01_boxing_d1_outdoors_again'
    (tmp_path / 'data' / 'test').mkdir(parents=True)
    for i, name in enumerate(('a walk.npy', f'{long}.npy')):
        shutil.copy(colour[1] / 'test' / f'{i}.npy', tmp_path / 'data' / 'test' / name)
    own, short = ('--data_dir', tmp_path / 'data'), 'person01_bo…tdoors_again'
    assert f'| truth | a walk | {short}' in drawn('swap', colour[0], *own)
    assert f'motion of {short}, t = ' in drawn('swap', colour[0], *own)
    assert drawn('latent', colour[0], *own).endswith(f'| a walk | {short}')
    found = drawn('interpolate', colour[0], *own)
    for text in ('a walk, t = 0', f'{short}, t = 0', 'content of a walk', f'content of {short}'):
        assert f'{text} |' in f'{found} |'
    assert 'truth | video 3 | video 1' in drawn(
        'swap', grey, '--data_dir', data_dir, '--index', 3, 1)
    assert '| own clip.mkv | future 1 |' in drawn('predict', colour[0], '--video', video)


@pytest.mark.parametrize('name, expected', [
    ('a' * 24, 'a' * 24), ('a' * 12 + 'b' * 13, 'a' * 11 + '…' + 'b' * 12), ('', '')])
def test_long_names_are_shortened(name, expected):
    assert pictures.shortened(name) == expected


# Options

def test_help(call):
    page = call(visualize.main, '--help').out
    assert '\n    training ' in page and '--names' in call(visualize.main, 'training', '--help').out
    for what, visual in VISUALS.items():
        assert f'\n    {what} ' in page and visual.text.split()[0] in page
        own = call(visualize.main, what, '--help').out
        assert 'default: 1' in own and '--out' in own
        assert ('--video' in own) == (what == 'predict') != ('--index' in own)
        counts = {'swap': '2 to 12; default: 0 1 2, or', 'interpolate': '2; default: 0 1, or',
                  'latent': '1 to 10; default: 0 1 2 3, or', 'predict': ''}
        count = counts.get(what, '1 or more, each drawn to its own file; default: 0, or')
        assert count in ' '.join(own.split())


@pytest.mark.parametrize('what, more, message', [
    ('samples', ['--index', 500],
     '--index 500: the test set has 500 videos; use numbers from 0 to 499'),
    ('swap', ['--index', 1], '--index 1: swap takes 2 to 12 videos, found 1'),
    ('interpolate', ['--index', 1, 2, 3], 'interpolate takes 2 videos, found 3'),
    ('interpolate', ['--index', 0, 0], '--index 0 0 has duplicates; name each video once'),
    ('samples', ['--index', 3, 1, 3], '--index 3 1 3 has duplicates'),
    ('latent', ['--out', 'a.gif'], '--out a.gif: latent is written as .png; use'),
    ('samples', ['--out', 'a.npz'], '--out a.npz: samples is written as .png or .gif or .mp4'),
    ('samples', ['--out', 'a'], '--out a: samples is written'),
    ('samples', ['--steps', 3], '--steps belongs to interpolate, found samples; leave it out'),
    ('interpolate', ['--steps', 65], 'at most 64'),
    ('swap', ['--video', 'a.mp4'], '--video belongs to predict, found swap'),
    ('swap', ['--idnex', 3], 'unknown option --idnex; did you mean --index'),
    ('framerate', ['--n_euler_steps', 1], 'expected a whole number of at least 2'),
    ('framerate', ['--n_samples', 3, '--sample', 4], '--sample 4 is more than the 3 futures'),
    ('latent', ['--nt_gen', 9], 'videos of 8 frames, .*--nt_gen 9'),
    ('latent', ['--nt_gen', 3], '--nt_gen 3 leaves no frame to predict'),
    ('swap', ['--nt_cond', 1], '--nt_cond 1 is less than the 2 frames'),
    ('swap', ['--model_name', 'none.pt'], 'none.pt does not exist'),
    ('swap', ['--data_dir', 'nowhere'], 'make it with'),
    ('swap', ['--device', 99], 'CUDA devices found'),
])
def test_errors(grey, data_dir, tmp_path, monkeypatch, what, more, message):
    monkeypatch.chdir(tmp_path)
    before = set(grey.rglob('*'))
    with pytest.raises(UserError, match=message):
        draw(what, grey, '--data_dir', data_dir, *more)
    assert not list(tmp_path.iterdir()) and set(grey.rglob('*')) == before


def test_default_videos_are_those_there_are(colour, tmp_path):
    xp_dir, data_dir = colour
    for n, what, count in ((1, 'samples', 1), (1, 'latent', 1), (2, 'swap', 2), (3, 'swap', 3),
                           (3, 'latent', 3), (4, 'swap', 3), (4, 'latent', 4)):
        (tmp_path / 'test').mkdir()
        for i in range(n):
            shutil.copy(data_dir / 'test' / f'{i}.npy', tmp_path / 'test')
        args, config = visualize.resolve([what, '--xp_dir', str(xp_dir),
                                          '--data_dir', str(tmp_path)])
        assert visualize.get_videos(args, config).shape[1] == count
        assert args.index == list(range(count))
        shutil.rmtree(tmp_path / 'test')
    (tmp_path / 'test').mkdir()
    shutil.copy(data_dir / 'test' / '0.npy', tmp_path / 'test')
    for what in ('swap', 'interpolate'):
        message = f'{what} takes 2 videos or more, but the test set in --data_dir .* has 1; use a'
        with pytest.raises(UserError, match=message):
            draw(what, xp_dir, '--data_dir', tmp_path, '--out', tmp_path / 'a.png')


def test_errors_of_predict(colour, video, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'no.mp4').write_bytes(b'no video')
    for source, more, message in (
            (video, ['--t_0', 18],
             '--video .* has 2 frames from --t_0 18 on, but there are 3 conditioning frames'),
            (video, ['--t_0', 99], 'has 0 frames from --t_0 99 on'),
            (video, ['--nt_cond', 30, '--nt_gen', 40],
             'has 20 frames from --t_0 0 on, but there are 30 conditioning frames'),
            (tmp_path / 'nowhere', [], '--video .*nowhere does not exist'),
            (tmp_path / 'no.mp4', [], '--video .*no.mp4 cannot be read as a video of folder'),
            (tmp_path / 'empty', [], 'folder without images')):
        with pytest.raises(UserError, match=message):
            draw('predict', colour[0], '--video', source, '--out', tmp_path / 'out' / 'p.gif',
                 *more)
    owners = 'samples, framerate, swap, interpolate, latent'
    with pytest.raises(UserError, match=f'--index belongs to {owners}, found predict'):
        draw('predict', colour[0], '--video', video, '--index', 1)
    assert not (tmp_path / 'out').exists()


def test_out_does_not_replace_the_input(colour, video, tmp_path):
    shutil.copy(video, tmp_path / 'mine.mp4')
    (tmp_path / 'link.mp4').symlink_to(tmp_path / 'mine.mp4')
    (tmp_path / 'frames').mkdir()
    shutil.copytree(colour[1], tmp_path / 'data')
    (tmp_path / 'data' / 'test' / '0.png').write_text('a frame')
    for what, source, out in (
            ('predict', 'mine.mp4', 'mine.mp4'), ('predict', 'link.mp4', 'frames/../mine.mp4'),
            ('predict', 'mine.mp4', 'link.mp4'), ('predict', 'frames', 'frames/new.png'),
            ('samples', 'data', 'data/test/0.png')):
        option = '--video' if what == 'predict' else '--data_dir'
        message = (f'--out .*{out} would replace or mix with the content of {option} .*{source}; '
                   'use another file')
        with pytest.raises(UserError, match=message):
            draw(what, colour[0], option, tmp_path / source, '--out', tmp_path / out)
    assert (tmp_path / 'mine.mp4').read_bytes() == video.read_bytes()
    assert (tmp_path / 'data' / 'test' / '0.png').read_text() == 'a frame'


def test_pictures_of_a_run_inside_the_data_may_be_replaced(colour, tmp_path):
    xp_dir = tmp_path / 'run'
    xp_dir.mkdir()
    shutil.copy(colour[0] / 'config.json', xp_dir)
    for _ in range(2):
        visualize.resolve(['samples', '--xp_dir', str(xp_dir), '--data_dir', str(tmp_path)])
        (xp_dir / 'visualize').mkdir(exist_ok=True)
        (xp_dir / 'visualize' / 'samples.png').touch()


def test_out_must_be_a_file_in_a_folder(grey, data_dir, tmp_path):
    def draw_to(name, *more, what='samples'):
        draw(what, grey, '--data_dir', data_dir, '--n_samples', 2, '--out', tmp_path / name, *more)
    (tmp_path / 'a.png').mkdir()
    with pytest.raises(UserError, match='a.png is a folder; use another file'):
        draw_to('a.png', what='latent')
    (tmp_path / 'd_0.png').mkdir()
    with pytest.raises(UserError, match='--out: .*d_0.png is a folder; use another file'):
        draw_to('d.png', '--index', 1, 0)
    draw_to('a' * 226 + '.png')
    for name, more, size in (('é' * 120, [], 244), ('a' * 300, [], 304),
                             ('a' * 225, ['--index', 1, 10], 231)):
        message = f'--out: the name of .* has {size} bytes; use at most 230'
        with pytest.raises(UserError, match=message):
            draw_to(f'{name}.png', *more)
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='--out: folder .*file.* cannot be created'):
        draw_to('file/a.png')


def test_mp4_needs_ffmpeg(grey, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', '')
    monkeypatch.setattr(imageio_ffmpeg, 'get_ffmpeg_exe', Mock(side_effect=RuntimeError))
    with pytest.raises(UserError, match='ffmpeg was not found; pip install imageio-ffmpeg'):
        draw('samples', grey, '--data_dir', data_dir,
             '--out', tmp_path / 'new' / 'a.png', tmp_path / 'new' / 'a.mp4')
    assert not (tmp_path / 'new').exists()
    draw('samples', grey, '--data_dir', data_dir, '--n_samples', 2, '--out', tmp_path / 'a.png')


@pytest.mark.parametrize('what', [what for what in VISUALS if what != 'predict'])
def test_damaged_weights_write_nothing(grey, data_dir, tmp_path, what):
    weights = torch.load(grey / 'model.pt', weights_only=True)
    name = next(k for k in weights if k.startswith('q_y.'))
    shutil.copy(grey / 'config.json', tmp_path)
    torch.save({**weights, name: weights[name] * float('nan')}, tmp_path / 'model.pt')
    with pytest.raises(UserError, match=f'model.pt: {name} has values that are not finite'):
        draw(what, tmp_path, '--data_dir', data_dir, '--n_samples', 2)
    assert not (tmp_path / 'visualize').exists()


def test_states_beyond_float32_write_nothing(grey, data_dir, tmp_path):
    weights = torch.load(grey / 'model.pt', weights_only=True)
    name = 'dynamics.module.3.1.bias'
    shutil.copy(grey / 'config.json', tmp_path)
    torch.save({**weights, name: weights[name] * 0 + 2e38}, tmp_path / 'model.pt')
    with pytest.raises(UserError, match='the states of the model grow beyond float32 at frame 2'):
        draw('samples', tmp_path, '--data_dir', data_dir, '--n_samples', 2)
    assert not list((tmp_path / 'visualize').iterdir())


def test_command_line(grey, data_dir, tmp_path, call):
    done = call(visualize.main, 'latent', '--xp_dir', grey, '--data_dir', data_dir,
                '--n_samples', 2, '--out', tmp_path / 'a.png')
    assert done.code == 0 and done.out == f'latent: {tmp_path}/a.png\n' and not done.err


def test_script_checks_options_without_pytorch(grey, data_dir, tmp_path):
    code = ('import runpy, sys; sys.modules["torch"] = None; '
            'runpy.run_path("visualize.py", run_name="__main__")')

    def script(*argv):
        return subprocess.run([sys.executable, '-c', code, *map(str, argv)], cwd=ROOT,
                              capture_output=True, text=True)
    done = script('latent', '--xp_dir', grey, '--data_dir', data_dir, '--index', 500)
    assert done.returncode == 2 and done.stderr.startswith('error: --index 500: the test set has')
    (tmp_path / 'log.csv').write_text('step,loss\n1,2\n')
    done = script('training', '--xp_dir', tmp_path)
    assert done.returncode == 0 and done.stdout.endswith('/visualize/training.png\n'), done.stderr
    done = script('latent', '--xp_dir', 'nowhere', '--data_dir', data_dir)
    assert done.returncode == 2 and done.stderr.startswith('error: ')
    assert done.stderr.count('\n') == 1
