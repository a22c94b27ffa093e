"""`visualize.py`: each WHAT on tiny models, against plain computations; errors."""

import shutil

from files import UserError, write_json

import numpy as np
import pytest
import torch
from PIL import Image

import visualize
from args import load_config
from conftest import stirred
from data import load_test
from evaluation.futures import Futures, draw_noise, quantise
from metrics.frame import psnr
from model import build_model
from pictures import charts
from pictures import frames as pictures
from pictures import views
from utils import load_model, to_video


def write_model(folder, dataset, nc, **changes):
    """Folder of a tiny model with random weights, of visibly different futures and contents."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / 'config.json', {
        'dataset': dataset, 'nc': nc, 'nf': 2, 'nhx': 8, 'ny': 4, 'nz': 3, 'nt_inf': 2,
        'nt_cond': 3, 'nh_inf': 8, 'nh_res': 8, 'seq_len_test': 6, 'archi': 'vgg', 'skipco': True,
        'n_euler_steps': 2, **changes})
    torch.manual_seed(0)
    model = stirred(build_model(load_config(folder)), nc)
    torch.save(model.state_dict(), folder / 'model.pt')
    return folder


@pytest.fixture(scope='module')
def colour(tmp_path_factory):
    """Colour model with skip connections and two Euler steps per frame, and its videos."""
    folder = write_model(tmp_path_factory.mktemp('colour'), 'folder', 3)
    (folder / 'data' / 'test').mkdir(parents=True)
    videos = np.random.RandomState(0).randint(0, 256, (4, 8, 64, 64, 3)).astype(np.uint8)
    for i, video in enumerate(videos):
        np.save(folder / 'data' / 'test' / f'{i}.npy', video)
    return folder, folder / 'data'


@pytest.fixture(scope='module')
def grey(tmp_path_factory):
    """Grey model, whose test set is that of `data_dir`."""
    return write_model(tmp_path_factory.mktemp('grey'), 'smmnist', 1, digit_source='mnist5k')


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


def assert_same(found, expected):
    """Equal up to the last bit before truncation."""
    assert np.std(expected) > 2  # not vacuous
    assert abs(np.asarray(found).astype(int) - expected.astype(int)).max() <= 1


@pytest.fixture
def drawn(monkeypatch):
    """First arguments of the functions that draw, by their name. Animations are only recorded."""
    calls = {}

    def recording(name, function):
        def record(*args, **kwargs):
            calls.setdefault(name, args)
            return function(*args, **kwargs)
        return record
    for name in ('draw_rows', 'draw_tables', 'table'):
        monkeypatch.setattr(pictures, name, recording(name, getattr(pictures, name)))
    monkeypatch.setattr(pictures, 'write_video', lambda *_: None)
    return calls


def texts(headings):
    return [getattr(heading, 'text', heading) for heading in headings]


# Each WHAT

def test_samples_are_those_of_evaluation_with_their_moments(grey, data_dir, tmp_path, drawn):
    out = tmp_path / 'new' / 'samples.png'
    draw('samples', grey, '--data_dir', data_dir, '--index', 4, '--n_samples', 6, '--nt_gen', 8,
         '--out', out, out.with_suffix('.gif'), '--fps', 4)
    _, truth, futures = plain(grey, data_dir, [4], 6, 8)
    x = torch.stack([future[:, 0] for future in futures])  # (S, nt, C, H, W)
    score = psnr(x, to_video(torch.from_numpy(truth[3:]), 'cpu')[:, 0].expand_as(x)).mean((1, 2))
    expected = {'best': x[score.argmax()], 'worst': x[score.argmin()], 'random 1': x[0],
                'random 2': x[1], 'random 3': x[2], 'mean': x.mean(0),
                '2 std': torch.cat([torch.zeros(3, 1, 64, 64), 2 * x.std(0, correction=0)])}
    paths, rows, *more = drawn['draw_rows']
    assert paths == [out, out.with_suffix('.gif')] and list(rows) == ['truth', *expected]
    np.testing.assert_array_equal(rows['truth'], truth[:, 0])
    for name, video in expected.items():
        assert_same(rows[name], as_frames(video))
    assert score.max() > score.min() and read_rgb(out).shape[1] > 8 * pictures.SIDE
    lines = [texts(headings) for _, headings, _ in drawn['draw_tables'][2]]
    assert more == [3, 4] and lines == [list(rows)[:4], list(rows)[4:]]  # 4 beside each other


def test_several_videos_have_files_each(grey, data_dir, tmp_path, capsys):
    shutil.copytree(grey, tmp_path / 'run')
    draw('samples', tmp_path / 'run', '--data_dir', data_dir, '--index', 3, 0, '--n_samples', 2)
    out = tmp_path / 'run' / 'visualize'
    names = {f'samples_{i}.{e}' for i in (0, 3) for e in ('png', 'gif')}
    assert {p.name for p in out.iterdir()} == names
    assert f'samples: {out}/samples_3.png' in capsys.readouterr().out
    draw('samples', grey, '--data_dir', data_dir, '--index', 3, '--n_samples', 2,
         '--out', tmp_path / 'one.PNG')
    np.testing.assert_array_equal(read_rgb(tmp_path / 'one.PNG'), read_rgb(out / 'samples_3.png'))


def test_futures_of_several_videos(colour, tmp_path, drawn):
    xp_dir, data_dir = colour
    draw('futures', xp_dir, '--data_dir', data_dir, '--index', 2, 0, '--n_samples', 4,
         '--nt_gen', 8, '--out', tmp_path / 'a.png', tmp_path / 'a.gif')
    _, truth, futures = plain(xp_dir, data_dir, [2, 0], 4, 8)
    x = torch.stack(list(futures))  # (S, nt, B, C, H, W)
    score = psnr(x, to_video(torch.from_numpy(truth[3:]), 'cpu').expand_as(x)).mean((1, 3))
    best = score.argmax(0).tolist()  # of each video
    cells, headings, names = drawn['table'][:3]
    assert texts(headings) == ['last given', 'truth', 'best', 'random 1', 'random 2', 'random 3']
    assert texts(names) == ['2', '0'] and score.max() > score.min()
    moving, columns, _ = drawn['draw_tables'][2][0]
    assert texts(columns) == texts(headings)[1:]
    for b in range(2):
        expected = [x[s, :, b] for s in (best[b], 0, 1, 2)]
        np.testing.assert_array_equal(cells[b][:2], truth[[2, 7], b])
        assert_same(np.stack(cells[b][2:]), as_frames(torch.stack([v[-1] for v in expected])))
        for video, future in zip(moving[b][1:], expected):
            np.testing.assert_array_equal(video[:3], truth[:3, b])
            assert_same(video[3:], as_frames(future))


def test_framerate_decodes_the_states_between_frames(colour, tmp_path, drawn):
    xp_dir, data_dir = colour
    draw('framerate', xp_dir, '--data_dir', data_dir, '--index', 1, '--n_euler_steps', 4,
         '--nt_gen', 8, '--n_samples', 3, '--sample', 2,
         '--out', tmp_path / 'a.png', tmp_path / 'a.gif')
    model, truth, futures = plain(xp_dir, data_dir, [1], 3, 8, 4)
    noise, truth = draw_noise(model, 1, 'test', [1], 3, 8), truth[:, 0]
    # All Euler states of the second future, from t = 2 on
    y, _, _ = model.evolve(futures.y_given[-1, 1], noise.z[:0, 1], 6, noise.z[2:, 1], 4)
    states = as_frames(model.decode(futures.cond.w, y, futures.cond.skips)[:, 0])
    cells, headings, names = drawn['table'][:3]
    assert texts(headings) == ['truth', 't', 't + 1/4', 't + 2/4', 't + 3/4']
    assert texts(names) == [f't = {t}' for t in range(2, 7)]
    np.testing.assert_array_equal([row[0] for row in cells], truth[2:7])
    np.testing.assert_array_equal(cells[0][1], truth[2])
    assert_same([row[1] for row in cells[1:]], as_frames(futures[1][:4, 0]))
    assert_same([cell for row in cells for cell in row[1:]][1:], states[1:20])
    _, _, [([(still, frames, smooth)], *_)], captions, fps = drawn['draw_tables']
    assert len(still) == len(frames) == len(smooth) == len(captions) == 7 * 4 + 1 and fps == 10
    assert captions[4].text == 't = 1 (given)' and captions[18].text == 't = 4 + 2/4 (predicted)'
    for found, expected in zip((still, frames, smooth), (truth[4], cells[2][1], cells[2][3])):
        np.testing.assert_array_equal(found[18], expected)
        np.testing.assert_array_equal(found[4], truth[1])


def test_swap_has_the_plain_prediction_on_its_diagonal(colour, tmp_path, drawn):
    xp_dir, data_dir = colour
    out = tmp_path / 'swap.png'
    draw('swap', xp_dir, '--data_dir', data_dir, '--index', 2, 1, '--nt_gen', 6, '--n_samples', 2,
         '--out', out, out.with_suffix('.gif'))
    model, truth, futures = plain(xp_dir, data_dir, [2, 1], 2, 6)
    _, _, [(cells, headings, names)], captions, _ = drawn['draw_tables']
    assert texts(headings) == ['content', 'motion of 2', 'motion of 1']
    assert names == ['truth', '2', '1'] and cells[0][0] is None
    assert texts(captions[2:4]) == ['t = 2 (given)', 't = 3 (predicted)']
    np.testing.assert_array_equal(cells[0][1:], truth.swapaxes(0, 1))
    x = torch.cat([futures.given(0), futures[0]])
    y = torch.cat([futures.y_given, futures.y])[:, 0]
    other = as_frames(model.decode(futures.cond.w.flip(0), y,
                                   [s.flip(0) for s in futures.cond.skips]))
    for b in range(2):
        # The frame of content and skip connections
        np.testing.assert_array_equal(cells[1 + b][0], truth[[2] * 6, b])
        assert_same(cells[1 + b][1 + b], as_frames(x[:, b]))
        assert_same(cells[2 - b][1 + b], other[:, b])
        assert (cells[2 - b][1 + b] != cells[1 + b][1 + b]).mean() > 0.1
    for found, (content, *videos) in zip(drawn['table'][0][1:], cells[1:]):
        np.testing.assert_array_equal(found, [content[0], *np.concatenate(videos)])


def test_interpolation_ends_at_the_decodings_of_both_videos(colour, tmp_path, drawn):
    xp_dir, data_dir = colour
    out = tmp_path / 'line.png'
    draw('interpolate', xp_dir, '--data_dir', data_dir, '--index', 3, 1, '--steps', 5,
         '--n_samples', 2, '--nt_gen', 5, '--out', out, out.with_suffix('.gif'))
    model, truth, futures = plain(xp_dir, data_dir, [3, 1], 2, 5)
    own = as_frames(futures.given(0)[0])
    found = np.array(drawn['table'][0])  # (3, 7, H, W, C)
    np.testing.assert_array_equal(found[:, [0, -1]], truth[0][None].repeat(3, 0))
    assert_same(found[:2, 1], own[[0, 0]])
    assert_same(found[1:, -2], own[[1, 1]])
    y = futures.y_given[0, 0].mean(0).expand(1, 1, -1)
    w, skips = futures.cond.w, futures.cond.skips
    first = model.decode(w[:1], y, [s[:1] for s in skips])
    between = model.decode(w.mean(0)[None], y, [s.mean(0)[None] for s in skips])
    assert_same(found[0, 3], as_frames(first)[0, 0])
    assert_same(found[1, 3], as_frames(between)[0, 0])
    _, _, [([videos], *_)], captions, _ = drawn['draw_tables']
    values = ('0', '0.25', '0.5', '0.75', '1', '0.75', '0.5', '0.25')  # there and back
    assert texts(captions) == [f'a = {a}' for a in values]
    order = [1 + round(4 * float(a)) for a in values]
    np.testing.assert_array_equal(videos[1:4], found[:, order])


def test_pca_is_that_of_the_covariance():
    y = np.random.RandomState(0).randn(50, 6) @ np.diag([5, 1, 0.3, 2, 0.1, 0.5]) + 7
    flat, share = views.pca(y)
    values, vectors = np.linalg.eigh(np.cov(y.T))
    np.testing.assert_allclose(abs(flat), abs((y - y.mean(0)) @ vectors[:, [-1, -2]]), atol=1e-9)
    np.testing.assert_allclose(share, values[[-1, -2]] / values.sum())
    np.testing.assert_allclose(views.pca(-y)[0], -flat)  # signs do not depend on the solver


@pytest.mark.parametrize('nt_gen, times', [(8, [0, 3, 7]), (4, [0, 3])])
def test_latent_shows_paths_and_frames(grey, data_dir, tmp_path, monkeypatch, drawn, nt_gen, times):
    """A single predicted frame is shown once."""
    seen, plane = [], views.plane
    monkeypatch.setattr(views, 'plane', lambda *args: seen.append(args) or plane(*args))
    draw('latent', grey, '--data_dir', data_dir, '--index', 5, 2, '--nt_gen', nt_gen,
         '--n_samples', 3, '--out', tmp_path / 'a.png')
    model, _, futures = plain(grey, data_dir, [5, 2], 3, nt_gen)
    y = torch.cat([futures.y_given, futures.y])[:, 0]
    (flat, labelled, share, _, size), = seen
    expected, _ = views.pca(y.flatten(0, 1).numpy())
    np.testing.assert_allclose(flat, expected.reshape(nt_gen, 2, 2), rtol=1e-4, atol=1e-5)
    assert labelled == times and 0 < share[1] <= share[0] <= 1
    x = as_frames(model.decode(futures.cond.w, y[times], futures.cond.skips))
    assert_same(drawn['table'][0], x.swapaxes(0, 1))
    assert read_rgb(tmp_path / 'a.png').shape[0] == size == 800


# Any video

@pytest.fixture(scope='module')
def shots(tmp_path_factory):
    """Folder of 20 pictures: frame t is of grey 10 t, and red outside the central square."""
    folder = tmp_path_factory.mktemp('own') / 'a clip'
    folder.mkdir()
    for t in range(20):
        frame = np.full((96, 160, 3), (255, 0, 0), np.uint8)
        frame[:, 32:128] = 10 * t
        Image.fromarray(frame).save(folder / f'f{t + 7}.png')  # f7 to f26, in order of numbers
    return folder


def predicted(xp_dir, source, tmp_path, *more):
    draw('predict', xp_dir, source, '--out', tmp_path / 'p.npz', '--overwrite', *more)
    with np.load(tmp_path / 'p.npz', allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ['given', 'samples']
        return arrays['given'], arrays['samples']


def test_predict_computes_futures_of_any_video(colour, shots, tmp_path):
    given, samples = predicted(colour[0], shots, tmp_path, '--t_0', 4, '--nt_gen', 7,
                               '--n_samples', 2)
    assert given[:, 9:-9, 9:-9].std((1, 2, 3)).max() < 1
    assert given[:, 30, 30, 0].tolist() == [40, 50, 60]
    assert samples.dtype == np.uint8 and samples.shape == (2, 4, 64, 64, 3)
    model = load_model(load_config(colour[0]), colour[0] / 'model.pt', 'cpu')
    x = to_video(torch.from_numpy(given[:, None]), 'cpu')
    futures = Futures(model, x, 4, draw_noise(model, 1, 'test', [0], 2, 7))
    assert_same(samples, as_frames(torch.stack([future[:, 0] for future in futures])))
    assert (samples[0] != samples[1]).any()
    given, _ = predicted(colour[0], shots, tmp_path, '--crop', 'none')
    assert given[:, :9].max() == 0 and (given[:, 30, 2] == (255, 0, 0)).all()


def test_predict_draws_a_video_of_any_length(colour, shots, tmp_path, drawn):
    """Of 5 frames, continued to 7: then, it is white."""
    draw('predict', colour[0], shots, '--t_0', 15, '--nt_gen', 7, '--n_samples', 2,
         '--out', tmp_path / 'p.png', tmp_path / 'p.mp4', tmp_path / 'p.npz')
    with np.load(tmp_path / 'p.npz') as arrays:
        samples = arrays['samples']
    _, rows, nt_cond, *_ = drawn['draw_rows']
    assert list(rows) == ['a clip', 'future 1', 'future 2'] and nt_cond == 3
    assert rows['a clip'][:, 30, 30, 0].tolist() == [150, 160, 170, 180, 190, 255, 255]
    assert (rows['a clip'][5:] == 255).all()
    np.testing.assert_array_equal([rows['future 1'], rows['future 2']], samples)
    assert (tmp_path / 'p.png').exists()


def test_errors_of_predict(colour, shots, tmp_path):
    (tmp_path / 'no.mp4').write_bytes(b'no video')
    for source, t_0, message in (
            (shots, 18, 'a clip has 2 frames from --t_0 18 on, but there are 3 conditioning'),
            (shots, 99, 'a clip has 0 frames from --t_0 99 on'),
            (tmp_path / 'nowhere', 0, 'nowhere'), (tmp_path / 'no.mp4', 0, 'no.mp4')):
        with pytest.raises(UserError, match=message):
            draw('predict', colour[0], source, '--t_0', t_0, '--out', tmp_path / 'out' / 'p.gif')
    assert not (tmp_path / 'out').exists()


# Training

def write_log(folder, n):
    folder.mkdir()
    rows = ''.join(f'{i},{2 * i},1,2,3,4,0.1,1\n' for i in range(1, n + 1))
    (folder / 'log.csv').write_text(f'step,loss,nll,kl_y_0,kl_z,res,lr,steps_per_s\n{rows}')


def test_training_curves_of_runs(tmp_path, monkeypatch, call):
    """Of one that goes on, and of one without validation so far."""
    for name, n in (('a', 15), ('b', 2)):
        write_log(tmp_path / name, n)
    (tmp_path / 'a' / 'validation.csv').write_text('step,val_psnr,psnr_3\n10,12.5,13\n')
    with open(tmp_path / 'a' / 'log.csv', 'a') as f:
        f.write('16,2')  # as it is being written
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / 'new', 0)
    assert call(visualize.main, 'training', 'new').code == 0  # without curves so far
    done = call(visualize.main, 'training', 'a', 'b')
    assert done == (0, 'training: a/visualize/training.png\n', '')
    assert np.ptp(read_rgb(tmp_path / 'a' / 'visualize' / 'training.png')) > 200
    seen = []
    monkeypatch.setattr(charts, 'training_curves', lambda *args: seen.extend(args))
    visualize.main(['training', 'a', 'b', '--names', 'first', 'second', '--out', 'c.PNG'])
    assert str(seen[0]) == 'c.PNG' and list(seen[1]) == ['first', 'second']
    (steps, scores), (_, none) = seen[1].values()
    assert [row['step'] for row in steps] == [str(i) for i in range(1, 16)]
    assert [row['val_psnr'] for row in scores] == ['12.5'] and none == []


@pytest.mark.parametrize('argv, message', [
    (['begun', 'begun'], '2 different names are needed, one for each RUN, found begun begun;'),
    (['begun', '--out', 'a.gif'], '--out: a.gif does not end with .png')])
def test_errors_of_training(argv, message):
    with pytest.raises(UserError, match=message):
        visualize.main(['training', *argv])


# Options

@pytest.mark.parametrize('what, more, message', [
    ('samples', ['--index', 500], '--index 500: the test set has 500 videos, numbered from 0'),
    ('interpolate', ['--index', 1], 'expected 2 arguments'),
    ('latent', ['--out', 'a.gif'], '--out: a.gif does not end with .png'),
    ('samples', ['--out', 'a'], '--out: a does not end with .png or .gif or .mp4'),
    ('samples', ['--steps', 3], '--steps'),
    ('framerate', ['--n_samples', 3, '--sample', 4], '--sample 4 is more than the 3 futures'),
    ('latent', ['--nt_gen', 3], '--nt_gen 3')])
def test_errors(grey, data_dir, tmp_path, monkeypatch, what, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        draw(what, grey, '--data_dir', data_dir, *more)
    assert not list(tmp_path.iterdir()) and not (grey / 'visualize').exists()


def test_framerate_needs_residuals(data_dir, tmp_path):
    write_model(tmp_path, 'smmnist', 1, digit_source='mnist5k', dynamics='mlp', n_euler_steps=1)
    with pytest.raises(UserError, match='framerate needs residual dynamics, .* are mlp: there are'):
        draw('framerate', tmp_path, '--data_dir', data_dir)


def test_only_default_files_are_replaced_without_being_asked(grey, data_dir, tmp_path):
    run = shutil.copytree(grey, tmp_path / 'run')
    options = 'interpolate', run, '--data_dir', data_dir, '--n_samples', 1
    for _ in range(2):
        draw(*options)
    path = tmp_path / 'mine.png'
    path.write_text('mine')
    with pytest.raises(UserError, match='--out .*mine.png exists; use another file, or --overwr'):
        draw(*options, '--out', path)
    assert path.read_text() == 'mine'
    draw(*options, '--out', path, '--overwrite')
    np.testing.assert_array_equal(read_rgb(path), read_rgb(run / 'visualize' / 'interpolate.png'))
