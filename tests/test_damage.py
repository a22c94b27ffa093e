"""`damage.py`: damage, pictures of the network pixel by pixel, scores, clips, replay, errors."""

import csv
import errno
import fcntl
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

import damage
from args import config_dict, load_config, parse_train
from checkpoint import load_model
from conftest import ROOT, TINY, read_video
from damage import EXPERIMENTS
from data import load_clip, load_test
from files import UserError
from metrics.frame import psnr, ssim
from metrics.scoring import quantise
from model import build_model
from perturbation import DRAW, Weights, choose_entries, draw_damage
from pictures import charts, encoding
from pictures import frames as pictures
from pictures.network import (
    MID_GREY,
    PALETTE,
    PAPER,
    RED,
    THIN,
    WHITE,
    NetworkPicture,
    draw_tensor,
    video_frame,
)
from results import lock_results, replacing_results
from sampling import Futures, draw_noise
from utils import to_video

RESULTS = {'prediction.mp4', 'network.mp4', 'network', 'damage.csv', 'damage.png', 'damage.npz',
           'damage.json', 'predictions.npz'}


def options(xp_dir, data_dir, out_dir, *more):
    return list(map(str, ('--xp_dir', xp_dir, '--data_dir', data_dir, '--out_dir', out_dir, *more)))


def run(xp_dir, data_dir, out_dir, *more):
    """Run a short experiment; returns its table."""
    damage.main(options(xp_dir, data_dir, out_dir, '--nt_gen', 6, '--n_iterations', 4,
                        '--n_damages', 30, *more))
    return table(out_dir)


def replay(xp_dir, data_dir, out_dir, file):
    damage.main(options(xp_dir, data_dir, out_dir, '--nt_gen', 6, '--replay', file))
    return table(out_dir)


def table(folder):
    """Columns of damage.csv by name."""
    with open(folder / 'damage.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def read_protocol(folder):
    return json.loads((folder / 'damage.json').read_text())


def read_picture(path):
    with Image.open(path) as picture:
        assert picture.mode == 'P'
        return np.asarray(picture)


def arguments(**changes):
    """Options of damage."""
    return SimpleNamespace(**{'seed': 1, 'n_runs': 1, 'n_iterations': 3, 'n_damages': 50,
                              'damage_low': 0., 'damage_high': 1.} | changes)


def shapes_of(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.fixture(scope='module')
def out_dir(run_dir, data_dir, tmp_path_factory):
    """Results of an experiment."""
    folder = tmp_path_factory.mktemp('damage') / 'out'
    run(run_dir, data_dir, folder)
    return folder


@pytest.fixture
def tables_only(monkeypatch):
    """Leave out videos and curves, which take most of the time."""
    monkeypatch.setattr(damage, 'write_videos', lambda *_: None)
    monkeypatch.setattr(damage, 'draw_curves', lambda *_: None)


@pytest.fixture
def model(run_dir):
    return load_model(load_config(run_dir), run_dir / 'model.pt', 'cpu')


@pytest.fixture(scope='module')
def kth_run(tmp_path_factory):
    """Untrained model of KTH, and the videos of the experiments: pixels are the frame's number."""
    xp_dir, data_dir = tmp_path_factory.mktemp('kth_run'), tmp_path_factory.mktemp('kth_data')
    config = parse_train(['--preset', 'kth', *TINY[6:], '--nt_inf', '3', '--nt_cond', '10',
                          '--seq_len', '12', '--seq_len_test', '14', '--no-skipco',
                          '--data_dir', 'd', '--save_path', 's'])
    (xp_dir / 'config.json').write_text(json.dumps(config_dict(config)))
    torch.manual_seed(0)
    torch.save(build_model(config).state_dict(), xp_dir / 'model.pt')
    for experiment, length in zip(EXPERIMENTS.values(), (365, 312, 45)):
        path = data_dir / 'processed_64' / f'{experiment.video}.npy'
        path.parent.mkdir(parents=True)
        pixels = (np.arange(length) % 251).astype(np.uint8)[:, None, None]
        np.save(path, np.broadcast_to(pixels, (length, 64, 64)))
    return xp_dir, data_dir


# Damage

def test_entries_are_drawn_uniformly_and_so_are_their_elements():
    shapes = [(2,), (50, 40), (), (8,)]
    args = arguments(n_damages=20000, damage_low=0.5, damage_high=2.)
    draws = draw_damage(shapes, args)[0, 1]
    counts = np.bincount(draws['entry'], minlength=4)
    # Small and large entries alike, scalars too
    assert abs(counts - 5000).max() < 5 * math.sqrt(20000 * 3 / 16)
    for entry, shape in enumerate(shapes):
        size = math.prod(shape)
        found = np.bincount(draws['index'][draws['entry'] == entry], minlength=size)
        expected = counts[entry] / size
        chi_squared = ((found - expected) ** 2 / expected).sum()
        assert len(found) == size and chi_squared < size + 6 * math.sqrt(2 * size)
    strength = draws['strength']
    assert strength.min() == pytest.approx(0.5, abs=1e-3)
    assert strength.max() == pytest.approx(2, abs=1e-3)
    assert strength.mean() == pytest.approx(1.25, abs=0.02)
    assert draws['normal'].std() == pytest.approx(1, abs=0.02)


def test_damage_is_a_function_of_seed_and_iteration():
    shapes = [(4, 3), (7,)]
    draws = draw_damage(shapes, arguments(n_runs=2, n_iterations=5))
    assert draws.shape == (2, 4, 50)
    np.testing.assert_array_equal(draws[:1, :2], draw_damage(shapes, arguments(n_iterations=3)))
    second = draw_damage(shapes, arguments(seed=2, n_iterations=5))
    np.testing.assert_array_equal(draws[1:], second)
    assert (draws[0] != draws[1]).any() and (draws[0, 0] != draws[0, 1]).any()


def draw(*choices):
    return np.array(list(choices), DRAW)


def test_scale_damages_in_place_and_accumulates(model):
    weights = Weights(model)
    intact = {k: v.clone() for k, v in model.state_dict().items()}
    kernel, bias, scalar = names = [
        'encoder.conv.1.0.weight', 'q_z.bias', 'encoder.conv.1.1.num_batches_tracked']
    assert intact[kernel].shape == (4, 2, 4, 4)
    place = 2, 1, 3, 0
    flat = int(np.ravel_multi_index(place, intact[kernel].shape))
    draws = draw((0, flat, 0.5, 9), (2, 0, 0, 0), (1, 3, 0.25, 9), (0, flat, 0.5, 9))
    assert weights.damage(names, 'scale', draws) == {kernel, bias}
    expected = {k: v.clone() for k, v in intact.items()}
    expected[kernel][place] *= 0.25
    expected[bias][3] *= 0.25
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert weights.n_hit == 2 and weights.hit[kernel] == {flat} and not weights.hit[scalar]
    squared = sum(((expected[k].double() - intact[k].double()) ** 2).sum() for k in intact)
    assert squared > 0 and weights.change() == pytest.approx(math.sqrt(squared), rel=1e-12)
    weights.restore()
    for name, value in model.state_dict().items():
        assert torch.equal(value, intact[name])
    assert weights.n_hit == weights.change() == 0


@pytest.mark.parametrize('mode, expected', [
    ('scale', lambda v, std: 0.5 * v),
    ('zero', lambda v, std: 0),
    ('noise', lambda v, std: v + 0.5 * -2 * std),
    ('sign', lambda v, std: -v)])
def test_modes(model, mode, expected):
    weights = Weights(model)
    value = model.state_dict()['q_z.weight']
    before = value.numpy().astype(np.float64)
    weights.damage(['q_z.weight'], mode, draw((0, 11, 0.5, -2)))
    after = value.numpy().astype(np.float64)
    assert after[1, 3] == pytest.approx(expected(before[1, 3], before.std()), rel=1e-6)
    assert after[1, 3] != before[1, 3]
    after[1, 3] = before[1, 3]
    np.testing.assert_array_equal(after, before)


def test_values_beyond_float32_are_infinite(model):
    weights = Weights(model)
    weights.damage(['q_z.weight'], 'scale', draw((0, 0, 1e300, 0)))
    assert torch.isinf(model.q_z.weight[0, 0]) and weights.change() == math.inf


@pytest.mark.parametrize('mode, strength, normal', [
    ('sign', 0, 0), ('noise', 1, -1e3), ('scale', -1, 0), ('scale', math.nan, 0)])
def test_variances_of_batch_norm_stay_nonnegative(model, mode, strength, normal):
    weights, name = Weights(model), 'encoder.conv.1.1.running_var'
    for values in (weights.state, weights.intact):
        values[name].copy_(torch.arange(1., 5))
    assert weights.damage([name], mode, draw((0, 2, strength, normal))) == {name}
    assert weights.hit[name] == {2} and weights.state[name].tolist() == [1, 2, 0, 4]


def test_where_is_a_prefix_up_to_a_dot(model):
    shapes = shapes_of(model)
    names = list(shapes)
    assert choose_entries(shapes, None) == names
    for where in ('dynamics', 'encoder.conv.1'):
        below = [name for name in names if name.startswith(f'{where}.')]
        assert choose_entries(shapes, where) == below != []
    assert choose_entries(shapes, 'q_z.bias') == ['q_z.bias']
    parts = 'encoder, decoder, w_proj, w_inf, q_y, inf_z, q_z, p_z, dynamics'
    for wrong, message in (('q', f'no entry of the model .* {parts}'), ('', 'no entry'),
                           ('encoder.conv.1.1.num_batches_tracked', 'only scalars match')):
        with pytest.raises(UserError, match=message):
            choose_entries(shapes, wrong)


# Pictures of the network

def test_tensors_are_grey_from_minimum_to_maximum_and_damage_is_red():
    assert [PALETTE[i].tolist() for i in (0, WHITE, RED)] == [[0] * 3, [255] * 3, [255, 0, 0]]
    assert abs(int(PALETTE[MID_GREY][0]) - 128) <= 1
    half = round(WHITE / 2)

    def drawn(values, damaged=()):
        return draw_tensor(torch.as_tensor(values), damaged).tolist()
    assert drawn([[-1., 0], [1, 0], [0, 1]]) == [[0, half], [WHITE, half], [half, WHITE]]
    assert drawn([3., 1, 2], [2]) == [[WHITE, 0, RED]]
    assert drawn(torch.full((2, 2), 5.), [1]) == [[MID_GREY, RED], [MID_GREY, MID_GREY]]
    kernels = torch.zeros(2, 3, 4, 4)
    kernels[:, :, 0, 0] = torch.tensor([[0., 1, 2], [3, 4, 2]])
    kernels[1, 0, 2, 3] = 5  # the maximum is outside the slice
    assert drawn(kernels) == [[0, 51, 101], [152, 202, 101]]
    outside = np.ravel_multi_index((1, 0, 2, 3), kernels.shape)
    again = np.ravel_multi_index((0, 2, 0, 1), kernels.shape)
    assert drawn(kernels, [outside, again]) == [[0, 51, RED], [RED, 202, 101]]
    assert drawn([0., math.nan, 2, math.inf]) == [[0, 0, WHITE, WHITE]]
    assert drawn(torch.full((3,), math.nan)) == [[MID_GREY] * 3]


def test_network_picture_shows_every_tensor_once_and_redraws_one():
    state = {'a.weight': torch.rand(5, 4), 'a.bias': torch.rand(5), 'b.k': torch.rand(3, 2, 4, 4),
             'b.n': torch.tensor(3), 'c.column': torch.rand(9, 1)}
    network = NetworkPicture({k: tuple(v.shape) for k, v in state.items()})
    assert network.places.keys() == {'a.weight', 'a.bias', 'b.k', 'c.column'}
    assert network.zoom == 8 and network.labels.keys() == set('abc')
    blank, labels = network.canvas.copy(), np.zeros(network.canvas.shape, bool)
    for x, y in network.labels.values():
        assert (blank[y:y + 36, x:x + 16] < 50).sum() > 20  # black on paper
        labels[y:y + 36, x:x + 20] = True
    assert (blank[~labels] == PAPER).all()
    for name, value in state.items():
        network.draw(name, value)
    drawn = np.zeros(blank.shape, int)
    for name, (x, y, across, down) in network.places.items():
        picture = draw_tensor(state[name])
        area = slice(y, y + down * len(picture)), slice(x, x + across * picture.shape[1])
        enlarged = np.kron(picture, np.ones((down, across), np.uint8))
        np.testing.assert_array_equal(network.canvas[area], enlarged)
        assert (blank[area] == PAPER).all()  # neither label nor caption
        drawn[area] += 1
    assert drawn.max() == 1
    np.testing.assert_array_equal(network.canvas[drawn == 0], blank[drawn == 0])
    before = network.canvas.copy()
    network.draw('a.bias', state['a.bias'], [1])
    x, y, across, down = network.places['a.bias']
    rows, columns = np.nonzero(network.canvas != before)
    assert (rows.min(), rows.max() + 1) == (y, y + down)
    assert (columns.min(), columns.max() + 1) == (x + across, x + 2 * across)


def test_large_network_has_a_pixel_per_element_and_visible_damage(tmp_path):
    """In a picture larger than a screen, too, and in the video, where it is reduced to one."""
    shapes = {f'{part}.{i}': (700, 800) for part in 'abc' for i in range(3)}
    shapes |= {f'{part}.bias': (700,) for part in 'abc'}
    network = NetworkPicture(shapes)
    assert network.zoom == 1 and network.canvas.size < 2 * 9 * 700 * 800
    network.draw('b.1', torch.zeros(700, 800), [3 * 800 + 5, 799])
    network.draw('b.bias', torch.zeros(700), [3])
    network.save(tmp_path / '0.png', 'text')
    canvas = read_picture(tmp_path / '0.png')
    scale = max(len(canvas) / 1200, canvas.shape[1] / 1920)
    r = math.ceil(3 * scale) // 2  # squares of 2 r + 1 pixels show 3 pixels of a screen
    x, y, *_ = network.places['b.1']
    expected = np.zeros((700, 800), bool)
    expected[:r + 1, 799 - r:] = expected[:3 + r + 1, 5 - r:5 + r + 1] = True
    np.testing.assert_array_equal(canvas[y:y + 700, x:x + 800] == RED, expected)
    x, y, across, down = network.places['b.bias']
    assert (across, down) == (1, THIN) and (canvas == RED).sum() == expected.sum() + THIN
    frame = video_frame(tmp_path / '0.png')
    H, W = frame.shape[:2]
    assert W <= 1920 and H <= 1200 and (W == 1920 or H == 1200)
    red = (frame == [255, 0, 0]).all(-1)
    for y, x in np.argwhere(canvas == RED):  # visible, though smaller than a pixel
        assert red[int((y + 0.5) * H / len(canvas)), int((x + 0.5) * W / canvas.shape[1])]
    places = np.argwhere(red) * scale
    assert all((abs(np.argwhere(canvas == RED) - place) <= 1.01 * scale + 1).all(1).any()
               for place in places)


def test_damage_stays_inside_its_tensor():
    network = NetworkPicture({'a.k': (1000, 1000), 'b.v': (300,), 'b.n': (2, 900)})
    assert network.zoom == 1 and network.dot == 3
    network.draw('a.k', torch.rand(1000, 1000), [0, 1000 * 1000 - 1, 600 * 1000 + 7])
    network.draw('b.v', torch.rand(300), [9])
    network.draw('b.n', torch.rand(2, 900), [5])
    red = {name: (network.canvas[y:y + down * h, x:x + across * w] == RED).sum()
           for (name, (x, y, across, down)), (h, w) in zip(
               network.places.items(), ((1000, 1000), (1, 300), (2, 900)))}
    assert network.places.keys() == red.keys() == {'a.k', 'b.v', 'b.n'}
    assert (network.canvas == RED).sum() == sum(red.values())
    assert red['a.k'] == 4 + 4 + 9 and red['b.v'] == THIN


def test_video_of_a_small_network_is_its_pictures(tmp_path):
    network = NetworkPicture({'a.k': (300, 300)})
    network.draw('a.k', torch.rand(300, 300), [301])
    network.save(tmp_path / '0.png', 'text')
    frame = video_frame(tmp_path / '0.png')
    np.testing.assert_array_equal(frame, PALETTE[read_picture(tmp_path / '0.png')])
    assert (frame == [255, 0, 0]).all(-1).sum() == network.zoom ** 2


# Runs

def test_files(out_dir):
    assert {p.name for p in out_dir.iterdir()} == RESULTS
    names = sorted(p.name for p in (out_dir / 'network').iterdir())
    assert names == [f'0000{i}.png' for i in range(4)]
    network, prediction = (read_video(out_dir / f'{name}.mp4')[0]
                           for name in ('network', 'prediction'))
    first, last = (read_picture(out_dir / 'network' / names[i]) for i in (0, 3))
    assert network.shape == (4, *(n + n % 2 for n in last.shape), 3)
    assert prediction.shape[0] == 4 * 3 and prediction.shape[2] > 3 * 4 * 64
    # Captions of the first and the last iteration
    for one, two in ((first, last), (prediction[0, ..., 0], prediction[-1, ..., 0])):
        for caption in (one[-28:], two[-28:]):
            assert (caption < 60).sum() > 200 and (caption[:, -100:] > 200).all()
        assert (abs(one[-28:].astype(int) - two[-28:]) > 150).sum() > 100
    row = {name: column[3] for name, column in table(out_dir).items()}
    text = (f't = 5, iteration 4 of 4: {int(row["damaged"])} values damaged '
            f'({100 * row["share"]:.3g}%), weight change {row["weight_change"]:.3g}')
    width = prediction.shape[2]
    expected = np.asarray(pictures.stacked([Image.new('RGB', (width, 1))], text))[-28:]
    assert abs(prediction[-1, -28:].astype(int) - expected).mean() < 3
    red = (last == RED).sum()
    red_in_video = ((network[3][..., 0] > 150) & (network[3][..., 1] < 100)).sum()
    assert red > 1000 and red_in_video == pytest.approx(red, rel=0.3)
    assert not (first == RED).any()
    with Image.open(out_dir / 'damage.png') as curves:
        assert curves.width > 1000
    protocol = read_protocol(out_dir)
    expected = {'index': 0, 'nt_cond': 3, 'seed': 1, 'mode': 'scale', 'dataset': 'smmnist'}
    assert expected.items() <= protocol.items()


def test_scores_are_those_of_a_plain_loop(out_dir, run_dir, data_dir, model):
    """Same noise, damage accumulates, first iteration intact: recomputed from damage.npz."""
    found = table(out_dir)
    assert list(found) == ['run', 'iteration', 'damaged', 'share', 'psnr', 'ssim', 'psnr_intact',
                           'ssim_intact', 'weight_change']
    with np.load(out_dir / 'damage.npz', allow_pickle=False) as arrays:
        names, draws, mode = arrays['names'].tolist(), arrays['draws'], str(arrays['mode'])
    state, intact = model.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    assert names == list(state) and draws.shape == (1, 3, 30) and mode == 'scale'
    x = to_video(torch.from_numpy(load_test(load_config(run_dir), data_dir, 6).videos([0])), 'cpu')
    noise, hit, predictions = draw_noise(model, 1, 'test', [0], 1, 6), set(), []
    size = sum(v.numel() for v in state.values() if v.ndim)
    for i in range(4):
        for entry, index, strength, _ in draws[0, i - 1] if i else ():
            value = state[names[entry]]
            if value.ndim:
                value[np.unravel_index(index, value.shape)] *= strength
                hit.add((entry, index))
        predictions.append(Futures(model, x[:3], 3, noise)[0])
        squared = sum(((state[k].double() - intact[k].double()) ** 2).sum() for k in state)
        expected = {'run': 1, 'iteration': i + 1, 'damaged': len(hit), 'share': len(hit) / size,
                    'weight_change': math.sqrt(squared)}
        for name, y in (('', x[3:]), ('_intact', predictions[0])):
            expected[f'psnr{name}'] = psnr(predictions[-1], y).mean()
            expected[f'ssim{name}'] = ssim(predictions[-1], y).mean()
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(float(value), rel=1e-4), (name, i)
    assert found['psnr_intact'][0] == math.inf and np.isfinite(found['psnr_intact'][1:]).all()
    assert (np.diff(found['damaged']) > 0).all()
    frames, _ = read_video(out_dir / 'prediction.mp4')
    for i in (0, 3):
        for k, panel in enumerate((x[3:], predictions[0], predictions[i])):
            expected = quantise(panel)[1, 0, 0].numpy().repeat(4, 0).repeat(4, 1)
            shown = frames[3 * i + 1][28:28 + 256, 260 * k + 2:260 * k + 258].mean(-1)
            assert abs(shown - expected).mean() < 4


def test_protocol_has_the_digest_of_the_weights_that_were_loaded(run_dir, data_dir, tmp_path,
                                                                 tables_only, monkeypatch):
    path = shutil.copytree(run_dir, tmp_path / 'xp') / 'model.pt'
    expected, run_all = hashlib.sha256(path.read_bytes()).hexdigest(), damage.run_all

    def overwrite(*args):
        path.write_text('of later training')
        return run_all(*args)
    monkeypatch.setattr(damage, 'run_all', overwrite)
    run(tmp_path / 'xp', data_dir, tmp_path / 'out')
    protocol = read_protocol(tmp_path / 'out')
    assert protocol['checkpoint_sha256'] == expected
    assert {'where', 'damage_low', 'damage_high'} < protocol.keys()


def test_missing_ffmpeg_is_found_before_the_work(run_dir, data_dir, tmp_path, monkeypatch):
    def fail():
        raise RuntimeError
    monkeypatch.setattr(imageio_ffmpeg, 'get_ffmpeg_exe', fail)
    monkeypatch.setenv('PATH', '')
    with pytest.raises(UserError, match='ffmpeg was not found; pip install imageio-ffmpeg'):
        run(run_dir, data_dir, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_same_seed_and_replay_repeat_bit_for_bit(out_dir, run_dir, data_dir, tmp_path, tables_only):
    run(run_dir, data_dir, tmp_path / 'again')
    replay(run_dir, data_dir, tmp_path / 'replayed', out_dir / 'damage.npz')
    protocol = read_protocol(tmp_path / 'replayed')
    assert protocol['replay'] == str(out_dir / 'damage.npz')
    assert not {'where', 'damage_low', 'damage_high'} & protocol.keys()  # not in the file
    for folder in (tmp_path / 'again', tmp_path / 'replayed'):
        for name in ('damage.csv', 'network/00003.png'):
            assert (folder / name).read_bytes() == (out_dir / name).read_bytes()
        with np.load(folder / 'damage.npz') as a, np.load(out_dir / 'damage.npz') as b:
            assert all(np.array_equal(a[k], b[k]) for k in ('names', 'mode', 'draws'))
    other = run(run_dir, data_dir, tmp_path / 'other', '--seed', 2)
    assert (other['weight_change'][1:] != table(out_dir)['weight_change'][1:]).all()


def test_results_replace_all_earlier_ones_and_nothing_else(out_dir, run_dir, data_dir, tmp_path):
    shutil.copytree(out_dir, tmp_path, dirs_exist_ok=True)
    # The last one is of a killed run
    for name in ('notes.txt', 'network/mine.png', '.results.new/network/00000.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('x')
    found = run(run_dir, data_dir, tmp_path, '--n_iterations', 2)
    assert {p.name for p in tmp_path.iterdir()} == RESULTS | {'notes.txt'}
    assert len(found['run']) == 2
    names = {p.name for p in (tmp_path / 'network').iterdir()}
    assert names == {'00000.png', '00001.png', 'mine.png'}


def test_interrupted_run_leaves_earlier_results(out_dir, run_dir, data_dir, tmp_path, monkeypatch):
    shutil.copytree(out_dir, tmp_path, dirs_exist_ok=True)
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}

    def interrupt(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(damage, 'write_videos', interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(run_dir, data_dir, tmp_path, '--seed', 5)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before


def test_failed_encoder_is_an_error(tmp_path):
    """As on a full disk: files may not grow beyond 20,000 bytes."""
    frames = np.random.RandomState(0).randint(0, 256, (30, 64, 66, 3)).astype(np.uint8)
    path = tmp_path / 'a.mp4'
    encoding.write_mp4(path, frames, 25)
    before = path.read_bytes()
    assert len(read_video(path)[0]) == 30 and len(before) > 50_000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=f'{path} could not be encoded: ffmpeg exited early'):
            encoding.write_mp4(path, frames, 25)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def test_exception_while_results_are_replaced_loses_none(tmp_path, monkeypatch):
    patterns, replace = ['[abc].txt'], os.replace
    for name in 'abc':
        (tmp_path / f'{name}.txt').write_text('old')
    (tmp_path / 'damage.json').write_text('{"files": ["a.txt", "b.txt", "c.txt"]}')

    def fail_on_b(source, target):
        if target.name == 'b.txt':
            raise OSError('disk error')
        replace(source, target)
    monkeypatch.setattr(os, 'replace', fail_on_b)
    with (pytest.raises(OSError, match='disk error'),
          replacing_results(tmp_path, patterns, 'damage.json') as folder):
        for name in 'ab':
            (folder / f'{name}.txt').write_text('new')
        (folder / 'damage.json').write_text('{}')
    assert {p.name for p in tmp_path.iterdir()} == {'a.txt', 'b.txt', 'c.txt', 'damage.json'}
    assert (tmp_path / 'b.txt').read_text() == 'old'
    monkeypatch.undo()
    with replacing_results(tmp_path, patterns, 'damage.json') as folder:
        (folder / 'b.txt').write_text('new')
        (folder / 'damage.json').write_text('{}')
    assert {p.name for p in tmp_path.iterdir()} == {'b.txt', 'damage.json'}
    assert (tmp_path / 'b.txt').read_text() == 'new'
    assert json.loads((tmp_path / 'damage.json').read_text()) == {'files': ['b.txt', 'damage.json']}


@pytest.mark.parametrize('in_the_way, message', [
    ('damage.png/x', 'damage.png is a folder, in the way of a result; remove it'),
    ('network/00000.png/x', '00000.png is a folder'),
    ('network', 'network is not a writable folder'),
    ('.results.new', '.results.new is in the way of results; remove it')])
def test_files_in_the_way_of_results_are_found_before_the_work(run_dir, data_dir, tmp_path,
                                                               in_the_way, message, monkeypatch):
    (tmp_path / in_the_way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / in_the_way).write_text('mine')
    monkeypatch.setattr(damage, 'run_all', None)
    with pytest.raises(UserError, match=message):
        run(run_dir, data_dir, tmp_path)
    assert (tmp_path / in_the_way).read_text() == 'mine' and len(list(tmp_path.iterdir())) == 1


def test_failed_lock_is_not_another_process(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'flock', fail)
    message = f'{tmp_path}/.results.lock cannot be locked .No locks available.; .*use a folder on'
    with pytest.raises(UserError, match=message), lock_results(tmp_path):
        pass


def test_one_process_at_a_time_writes_to_a_folder(run_dir, data_dir, tmp_path, tables_only):
    with lock_results(tmp_path):
        message = f'another process is writing results to {tmp_path}; wait'
        with pytest.raises(UserError, match=message):
            run(run_dir, data_dir, tmp_path)
    assert len(run(run_dir, data_dir, tmp_path, '--n_iterations', 1)['run']) == 1


def test_fresh_noise_changes_predictions_after_the_first(out_dir, run_dir, data_dir, tmp_path,
                                                         tables_only):
    plain, fresh = table(out_dir), run(run_dir, data_dir, tmp_path, '--fresh_noise')
    np.testing.assert_array_equal(fresh['weight_change'], plain['weight_change'])
    assert fresh['psnr'][0] == plain['psnr'][0] and (fresh['psnr'][1:] != plain['psnr'][1:]).all()


def test_a_factor_of_one_changes_nothing(run_dir, data_dir, tmp_path):
    """Curves too, though all their PSNRs to the intact prediction are infinite."""
    found = run(run_dir, data_dir, tmp_path, '--damage_low', 1)
    assert (found['psnr_intact'] == math.inf).all() and (found['weight_change'] == 0).all()
    assert (found['damaged'][1:] > 0).all()


def test_where_and_mode_reach_the_run(run_dir, data_dir, tmp_path, model, tables_only):
    found = run(run_dir, data_dir, tmp_path, '--where', 'dynamics', '--mode', 'zero',
                '--n_iterations', 3)
    part = {k: v for k, v in model.state_dict().items() if k.startswith('dynamics.')}
    with np.load(tmp_path / 'damage.npz') as arrays:
        assert arrays['names'].tolist() == list(part) and str(arrays['mode']) == 'zero'
        draws = arrays['draws'][0].ravel()
    hit = set(zip(draws['entry'], draws['index']))
    size = sum(v.numel() for v in part.values())
    assert found['damaged'][-1] == len(hit)
    assert found['share'][-1] == pytest.approx(len(hit) / size)
    lost = sum(float(list(part.values())[e].flatten()[i]) ** 2 for e, i in hit)
    assert found['weight_change'][-1] == pytest.approx(math.sqrt(lost), rel=1e-6) and lost > 0


@pytest.mark.parametrize('mode', [['sign'], ['noise'], ['scale', '--damage_low', -1]])
def test_all_modes_keep_predictions_finite(run_dir, data_dir, tmp_path, mode, monkeypatch,
                                           tables_only):
    lost, predict = [], damage.predict

    def watched(*args):
        x = predict(*args)
        lost.append(not torch.isfinite(x).all())
        return x
    monkeypatch.setattr(damage, 'predict', watched)
    found = run(run_dir, data_dir, tmp_path, '--n_damages', 300, '--mode', *mode)
    with np.load(tmp_path / 'damage.npz') as arrays:
        hit = arrays['names'][np.unique(arrays['draws']['entry'])]
    assert 'running_var' in ''.join(hit) and lost == [False] * 4
    assert np.isfinite(found['psnr']).all() and np.isfinite(found['ssim_intact']).all()


def test_several_runs(out_dir, run_dir, data_dir, tmp_path, monkeypatch):
    drawn = {}

    def curves(path, xlabel, x, panels):
        path.touch()
        drawn.update(x=x, **panels)
    monkeypatch.setattr(charts, 'curves', curves)
    found = run(run_dir, data_dir, tmp_path, '--n_runs', 3)
    assert found['run'].tolist() == [1] * 4 + [2] * 4 + [3] * 4
    assert found['iteration'].tolist() == [1, 2, 3, 4] * 3
    assert drawn.pop('x').tolist() == [1, 2, 3, 4]
    panels = {'PSNR (dB)': ['psnr', 'psnr_intact'], 'SSIM': ['ssim', 'ssim_intact'],
              'damaged values': ['damaged'],
              'norm of the change of the weights': ['weight_change']}
    assert drawn.keys() == panels.keys()
    for panel, columns in panels.items():
        for name, (mean, half) in zip(columns, drawn[panel].values(), strict=True):
            runs = found[name].reshape(3, 4)
            np.testing.assert_allclose(mean, runs.mean(0))
            np.testing.assert_allclose(half, runs.std(0))
    legend = ['against the truth', 'against the intact prediction']
    assert list(drawn['SSIM']) == list(drawn['PSNR (dB)']) == legend
    for name in ('network/00003.png', 'prediction.mp4'):  # of the first run
        assert (tmp_path / name).read_bytes() == (out_dir / name).read_bytes()
    monkeypatch.setattr(damage, 'write_videos', lambda *_: None)
    alone = run(run_dir, data_dir, tmp_path / 'alone', '--seed', 3)
    for name in ('psnr', 'ssim_intact', 'damaged', 'weight_change'):
        np.testing.assert_array_equal(found[name][:4], table(out_dir)[name])
        np.testing.assert_array_equal(found[name][8:], alone[name])


def test_curves_show_mean_and_standard_deviation_without_infinite_values(tmp_path, monkeypatch):
    from matplotlib.axes import Axes
    lines, bands = [], []
    monkeypatch.setattr(Axes, 'plot', lambda self, x, y, *_, **__: lines.append(y))
    monkeypatch.setattr(Axes, 'fill_between',
                        lambda self, x, low, high, **_: bands.append((low, high)))
    values = np.array([[1., math.inf, math.inf, math.nan], [3, math.inf, 5, 5]])
    charts.curves(tmp_path / 'a.png', 'x', np.arange(4), {'y': {'': charts.band(values)}})
    for found, first in ((lines[0], 2), (bands[0][0], 1), (bands[0][1], 3)):
        assert found.tolist() == [first, None, 5, None]  # NaNs are not skipped


def test_nan_predictions(run_dir, data_dir, tmp_path):
    """Huge factors overflow: predictions are scored as the black frames that are shown."""
    found = run(run_dir, data_dir, tmp_path, '--damage_low=-1e38', '--damage_high', '1e38',
                '--n_damages', 2000, '--n_runs', 2)
    videos = load_test(load_config(run_dir), data_dir, 6).videos([0])
    truth = to_video(torch.from_numpy(videos), 'cpu')[3:]
    for name, score in (('psnr', psnr), ('ssim', ssim)):
        black = score(torch.zeros_like(truth), truth).mean().item()
        assert found[name][3] == pytest.approx(black, rel=1e-4)
    assert all(np.isfinite(found[name]).all() for name in ('psnr', 'ssim', 'ssim_intact'))
    assert np.isfinite(found['psnr_intact'][[3, 7]]).all()
    assert not np.isfinite(found['weight_change'][3]) or found['weight_change'][3] > 1e30
    assert 'inf' in (tmp_path / 'damage.csv').read_text()
    assert read_video(tmp_path / 'prediction.mp4')[0][-1][40:270, 540:770].max() < 10
    assert {p.name for p in tmp_path.iterdir()} == RESULTS


def test_a_single_iteration(run_dir, data_dir, tmp_path):
    found = run(run_dir, data_dir, tmp_path, '--n_iterations', 1)
    assert found['damaged'].tolist() == [0]
    assert len(read_video(tmp_path / 'network.mp4')[0]) == 1
    again = replay(run_dir, data_dir, tmp_path / 'again', tmp_path / 'damage.npz')
    assert again.keys() == found.keys()


# Clips

def test_experiments_are_the_published_ones():
    assert {i: tuple(e) for i, e in EXPERIMENTS.items()} == {
        1: ('running/person01_running_d4', 315, 50, 10),
        2: ('walking/person01_walking_d2', 182, 130, 10),
        3: ('handclapping/person08_handclapping_d4', 14, 31, 10)}


@pytest.mark.parametrize('number, predicted', [(1, 40), (2, 120), (3, 21)])
def test_experiments_resolve_to_their_clips(kth_run, number, predicted):
    argv = ['--xp_dir', str(kth_run[0]), '--data_dir', str(kth_run[1]),
            '--experiment', str(number)]
    args, config = damage.resolve(argv)
    clip = damage.get_clip(args, config)
    t_0 = EXPERIMENTS[number].t_0
    assert clip.shape == (10 + predicted, 1, 64, 64, 1)
    assert clip[:, 0, 5, 5, 0].tolist() == [t % 251 for t in range(t_0, t_0 + 10 + predicted)]
    assert args.nt_cond == 10 and args.n_iterations == args.n_damages == 100
    assert (args.damage_low, args.damage_high, args.mode) == (0, 1, 'scale')
    assert (args.n_euler_steps, args.fresh_noise) == (2, False)
    args, _ = damage.resolve([*argv, '--nt_gen', '20', '--nt_cond', '11'])
    assert (args.nt_gen, args.nt_cond, args.t_0) == (20, 11, t_0)


def test_experiment_and_video_of_kth(kth_run, tmp_path, monkeypatch):
    xp_dir, data_dir = shutil.copytree(kth_run[0], tmp_path / 'run'), kth_run[1]
    argv = ['--xp_dir', str(xp_dir), '--data_dir', str(data_dir), '--n_iterations', '2',
            '--n_damages', '10']
    damage.main([*argv, '--experiment', '3', '--out_dir', str(tmp_path / 'a')])
    assert len(read_video(tmp_path / 'a' / 'prediction.mp4')[0]) == 42
    video = 'handclapping/person08_handclapping_d4'
    damage.main([*argv, '--video', f'{video}.npy'])
    out_dir = xp_dir / 'damage'
    assert len(read_video(out_dir / 'prediction.mp4')[0]) == 8  # as trained: 14 frames, 10 given
    assert read_protocol(out_dir)['t_0'] == 0
    monkeypatch.setattr(damage, 'write_videos', lambda *_: None)
    damage.main([*argv, '--video', video, '--t_0', '14', '--nt_gen', '31',
                 '--out_dir', str(tmp_path / 'b')])
    a, b = (tmp_path / name / 'damage.csv' for name in 'ab')
    assert a.read_bytes() == b.read_bytes()


def test_index_names_the_video_of_the_test_set(run_dir, data_dir):
    args, config = damage.resolve(['--xp_dir', str(run_dir), '--data_dir', str(data_dir),
                                   '--index', '3', '--nt_gen', '6'])
    expected = load_test(config, data_dir, 6).videos([3])
    np.testing.assert_array_equal(damage.get_clip(args, config), expected)


@pytest.mark.parametrize('dataset, name, step', [
    ('human', 'train/S1-Walking 1.54138969', 8), ('bair', 'processed_data/test/traj/002', 1),
    ('folder', 'val/a.mp4', 1)])
def test_clips_of_other_datasets(dataset, name, step, tmp_path):
    video = np.random.RandomState(0).randint(0, 256, (40, 64, 64, 3)).astype(np.uint8)
    (tmp_path / name).parent.mkdir(parents=True)
    np.save(tmp_path / f'{name}.npy', video)
    config = SimpleNamespace(dataset=dataset, nx=64, nc=3, subsampling=8)
    name = name.removeprefix('processed_data/')
    clip = load_clip(config, tmp_path, name, 5, 4)
    np.testing.assert_array_equal(clip, video[5::step][:4])
    message = (r'has 40 frames, but the clip covers \d+ from frame 30 on; '
               r'give a first frame \(--t_0\) of at most ')
    with pytest.raises(UserError, match=message):
        load_clip(config, tmp_path, name, 30, 4 if dataset == 'human' else 11)


def test_clip_of_the_published_layout(tmp_path):
    folder = tmp_path / 'processed_64' / 'boxing' / 'person01_boxing_d1'
    folder.mkdir(parents=True)
    for t in range(6):
        frame = Image.fromarray(np.full((64, 64, 3), 10 * t, np.uint8))
        frame.save(folder / f'image-{t + 1:03d}.png')
    config = SimpleNamespace(dataset='kth', nx=64, nc=1)
    clip = load_clip(config, tmp_path, 'boxing/person01_boxing_d1', 2, 3)
    assert clip.shape == (3, 64, 64, 1) and clip[:, 0, 0, 0].tolist() == [20, 30, 40]


# Errors

@pytest.mark.parametrize('more, message', [
    (['--video', 'a/b'], '--video a/b: the videos of smmnist are not files; use --index'),
    (['--experiment', '1'], '--experiment 1 is on KTH, but the model was trained on smmnist'),
    (['--experiment', '4'], 'invalid choice'),
    (['--index', '0', '--experiment', '1'], 'not allowed with'),
    (['--index', '500'], '--index 500: the test set has 500 videos; use at most 499'),
    (['--t_0', '3'], '--t_0 3 is the first frame of --video, which is missing'),
    (['--nt_gen', '3'], '--nt_gen 3 leaves no frame to predict after the 3 conditioning frames'),
    (['--nt_cond', '1'], '--nt_cond 1 is less than the 2 frames'),
    (['--nt_gen', '9'], 'videos of 8 frames, .*--nt_gen 9'),
    (['--where', 'decode'], '--where decode: no entry .* the parts are encoder, decoder, '),
    (['--damage_low', '2'], '--damage_low 2.0 must not exceed --damage_high 1.0'),
    (['--damage_low=-inf'], "--damage_low: expected a number, found '-inf'"),
    (['--damage_low=-1e308', '--damage_high', '1e308'],
     '--damage_low -1e.308 and --damage_high 1e.308 are too far apart'),
    (['--n_runs', '1000000000'], '--n_runs 1000000000, --n_iterations 4 and --n_damages 30 make '
                                 'more than 100,000,000 draws in all'),
    (['--n_iterations', '100000'],
     '--n_iterations: expected a whole number of at least 1 and at most 99999'),
    (['--video', ''], '--video: expected a value, found an empty string'),
    (['--replay', ''], '--replay: expected a value, found an empty string'),
    (['--mode', 'zero', '--damage_high', '2'], 'no effect in --mode zero'),
    (['--mode', 'burn'], 'invalid choice'),
    (['--n_iterations', '0'], '--n_iterations: expected a whole number of at least 1'),
    (['--replay', 'nowhere.npz'], '--n_damages and --replay: the damage comes from the file'),
    (['--model_name', 'none.pt'], 'none.pt does not exist'),
    (['--device', '99'], 'CUDA devices found'),
    (['--xp_dir', 'nowhere'], 'nowhere/config.json does not exist'),
    (['--data_dir', 'nowhere'], 'make it with'),
])
def test_errors(run_dir, data_dir, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        run(run_dir, data_dir, tmp_path / 'out', *more)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('more, message', [
    (['--video', 'running/person01_running_d4', '--t_0', '352'],
     r'd4.npy has 365 frames, but the clip covers 14 from frame 352 on; .*at most 351'),
    (['--video', 'running/person01_running_d4', '--nt_gen', '400'],
     'covers 400 from frame 0 on; .*a smaller --nt_gen'),
    (['--video', 'running/person01_running_d3'],
     r'person01_running_d3 .*such as running/person01_running_d4'),
    (['--video', 'dancing/person01'], r'dancing/person01 .* below \S*processed_64$'),
    (['--index', '0'], 'there is no svg_test_set_<frames>.npz of at least 14 frames'),
    ([], 'there is no svg_test_set_<frames>.npz'),
])
def test_errors_of_videos(kth_run, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        damage.main(options(*kth_run, tmp_path / 'out', *more))
    assert not (tmp_path / 'out').exists()


REPLAYED = {'names': ['q_z.weight', 'q_z.bias'], 'mode': 'zero', 'draws': [[[(1, 5, 0.5, 0)]]]}


def save_replay(path, change=()):
    arrays = {**REPLAYED, **dict(change)}
    if isinstance(arrays['draws'], list):
        arrays['draws'] = np.array(arrays['draws'], DRAW)
    np.savez(path, **arrays)
    return path


def test_replay_of_a_file(run_dir, data_dir, tmp_path, tables_only):
    file = save_replay(tmp_path / 'd.npz')
    found = replay(run_dir, data_dir, tmp_path / 'out', file)
    assert found['damaged'].tolist() == [0, 1]


SCALARS = [f'{part}.conv.1.1.num_batches_tracked' for part in ('encoder', 'decoder')]


@pytest.mark.parametrize('change, message', [
    ({'mode': 'burn'}, "mode must be one of scale, zero, noise, sign, found 'burn'"),
    ({'names': ['nowhere.weight', 'q_z.bias']}, 'the model has no entry nowhere.weight'),
    ({'names': [['q_z.bias'], ['q_z.bias']]}, 'names must be a list'),
    ({'names': [1, 2]}, 'names must be a list'),
    ({'names': ['x' * 10_000, 'q_z.bias']},
     r'names must be a list of entries of the model, found \(2,\) of <U10000'),
    ({'names': ['q_z.bias'] * 10_000},
     r'names must be a list of entries of the model, found \(10000,\)'),
    ({'names': ['q_z.bias'] * 2}, 'names has duplicates'),
    ({'mode': 'zero' * 1000}, 'mode must be a mode, found'),
    ({'mode': np.array([None], object)}, 'mode must be a mode, found'),
    ({'names': SCALARS}, 'names has only scalars'),
    ({'names': ['q_z.bias']}, 'entry must be between 0 and 0'),
    ({'draws': np.zeros((1, 3), DRAW)}, r'draws must be \(runs, iterations, damages\), .* of '
                                        r'entry, index, strength, normal, found \(1, 3\)'),
    ({'draws': np.zeros((1, 3, 2))}, 'found .* of float64'),
    ({'draws': np.zeros((1, 99_999, 1), DRAW)},
     'within the limits of --n_runs, --n_iterations and --n_damages'),
    ({'draws': np.zeros((0, 3, 2), DRAW)}, 'within the limits'),
    ({'draws': [[[(1, 6, 0, 0)]]]}, 'index is outside its entry'),
    ({'draws': [[[(1, -1, 0, 0)]]]}, 'index is outside its entry'),
    ({'draws': [[[(-1, 0, 0, 0)]]]}, 'entry must be between 0 and 1'),
    ({'draws': [[[(1, 5, math.nan, 0)]]]}, 'strength and normal must be finite'),
    ({'draws': np.array([None, {}], object)}, 'draws must be .* of object'),
])
def test_replay_files_are_checked(run_dir, data_dir, tmp_path, change, message):
    file = save_replay(tmp_path / 'd.npz', change)
    with pytest.raises(UserError, match=f'--replay {file}.* {message}'):
        replay(run_dir, data_dir, tmp_path / 'out', file)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('shape', [(1000, 1000, 1000), (1, 1, 1_000_001), (-1, 1, 1)])
def test_replay_files_of_any_size_are_not_read_before_they_fit(run_dir, data_dir, tmp_path, shape):
    file = tmp_path / 'd.npz'
    np.savez(file, names=['q_z.weight'], mode='zero')
    header = {'descr': np.lib.format.dtype_to_descr(DRAW), 'fortran_order': False, 'shape': shape}
    with zipfile.ZipFile(file, 'a') as archive, archive.open('draws.npy', 'w') as f:
        np.lib.format.write_array_header_1_0(f, header)  # and no data
    message = r'draws must be \(runs, iterations, damages\), within the limits .*found'
    with pytest.raises(UserError, match=message):
        replay(run_dir, data_dir, tmp_path / 'out', file)


def test_foreign_replay_files(run_dir, data_dir, tmp_path):
    file = tmp_path / 'd.npz'
    for content, message in ((None, 'cannot be read'),
                             (b'no archive', 'is not the readable damage.npz of an earlier run')):
        if content:
            file.write_bytes(content)
        with pytest.raises(UserError, match=f'--replay .*d.npz {message}'):
            replay(run_dir, data_dir, tmp_path / 'out', file)


def test_command_line(run_dir, data_dir, call):
    done = call(damage.main, '--help')
    page = ' '.join(done.out.split())
    assert done.code == 0 and 'running/person01_running_d4 from frame 315' in page
    assert page.count('as in --experiment, or as trained') == 2 and '(default: 100)' in page
    done = call(damage.main, '--xp_dir', run_dir, '--data_dir', data_dir, '--where', 'x')
    assert done.code == 2 and done.err.startswith('error: --where x')
    assert done.err.count('\n') == 1


def test_script_checks_options_without_pytorch(run_dir, data_dir):
    code = ('import runpy, sys; sys.modules["torch"] = None; '
            'runpy.run_path("damage.py", run_name="__main__")')

    def script(*argv):
        return subprocess.run([sys.executable, '-c', code, *argv], cwd=ROOT, capture_output=True,
                              text=True)
    done = script('--help')
    assert done.returncode == 0, done.stderr
    done = script(*options(run_dir, data_dir, 'out', '--index', 500))
    assert done.returncode == 2
    assert done.stderr.startswith('error: --index 500: the test set has 500 videos')
    assert done.stderr.count('\n') == 1
