"""`damage.py`: draws, damage, pictures of the network pixel by pixel, scores, clips, errors."""

import csv
import json
import math
from types import SimpleNamespace

from files import UserError, sha256

import numpy as np
import pytest
import torch
from PIL import Image
from test_visualize import write_model

import damage
from args import load_config
from conftest import read_video
from damage import Weights, choose_entries, draw_damage
from data import load_test
from evaluation.futures import Futures, draw_noise, quantise
from metrics.frame import psnr, ssim
from pictures import charts, frames
from pictures.network import (MID_GREY, PALETTE, PAPER, RED, THIN, WHITE, NetworkPicture,
                              draw_tensor, enlarged, video_frame)
from utils import load_model, to_video

RESULTS = {'prediction.mp4', 'network.mp4', 'network', 'damage.csv', 'damage.png', 'damage.json',
           'predictions.npz'}


@pytest.fixture(scope='module')
def xp_dir(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp('xp'), 'smmnist', 1, digit_source='mnist5k',
                       archi='dcgan', skipco=False, n_euler_steps=1)


@pytest.fixture
def model(xp_dir):
    return load_model(load_config(xp_dir), xp_dir / 'model.pt', 'cpu')


def run(xp_dir, data_dir, out_dir, *more):
    """Run a short experiment; returns its table."""
    damage.main(list(map(str, (
        '--xp_dir', xp_dir, '--data_dir', data_dir, '--out_dir', out_dir, '--nt_gen', 6,
        '--n_iterations', 4, '--n_damages', 30, *more))))
    return table(out_dir)


def table(folder):
    """Columns of damage.csv by name."""
    with open(folder / 'damage.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


@pytest.fixture(scope='module')
def out_dir(xp_dir, data_dir, tmp_path_factory):
    """Results of an experiment."""
    folder = tmp_path_factory.mktemp('damage') / 'out'
    run(xp_dir, data_dir, folder)
    return folder


@pytest.fixture
def tables_only(monkeypatch):
    """Leave out videos and curves, which take most of the time."""
    for module, name in ((frames, 'draw_tables'), (frames, 'write_video'),
                         (damage, 'draw_curves')):
        monkeypatch.setattr(module, name, lambda *_: None)


# Damage

def arguments(**changes):
    return SimpleNamespace(**{'n_damages': 6, 'damage_low': 0., 'damage_high': 1.} | changes)


def test_entries_are_drawn_uniformly_and_so_are_their_elements():
    shapes = {'a': (2,), 'b': (50, 40), 'c': (), 'd': (8,)}
    draws = draw_damage(shapes, 1, 2, arguments(n_damages=20000, damage_low=0.5, damage_high=2.))
    names, index, u, e = (np.array(column) for column in zip(*draws))
    for name, shape in shapes.items():
        size, found = math.prod(shape), index[names == name]
        # Small and large entries alike, scalars too
        assert abs(len(found) - 5000) < 5 * math.sqrt(20000 * 3 / 16)
        counts, expected = np.bincount(found, minlength=size), len(found) / size
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert len(counts) == size and chi_squared < size + 6 * math.sqrt(2 * size)
    assert [u.min(), u.max(), u.mean()] == pytest.approx([0.5, 2, 1.25], abs=0.02)
    assert [e.mean(), e.std()] == pytest.approx([0, 1], abs=0.03)


def test_draws_are_a_function_of_seed_and_iteration():
    """These, of the first version, in particular."""
    shapes = {'a': (4, 3), 'b': (7,), 'c': (), 'd': (2, 3, 4, 4)}
    args = arguments(damage_low=0.25, damage_high=2.)
    draws = draw_damage(shapes, 6, 3, args)
    assert draws[0] == ('d', 37, 0.5596379502944996, 1.556662230384548)
    assert [draw[:2] for draw in draws[1:]] == [('a', 5), ('c', 0), ('b', 1), ('b', 4), ('a', 2)]
    assert draw_damage(shapes, 6, 3, args) == draws
    assert draw_damage(shapes, 6, 2, args) != draws != draw_damage(shapes, 7, 3, args)


def test_damage_is_in_place_and_accumulates(model):
    weights = Weights(model)
    intact = {k: v.clone() for k, v in model.state_dict().items()}
    kernel, bias, scalar = ('encoder.conv.1.0.weight', 'q_z.bias',
                            'encoder.conv.1.1.num_batches_tracked')
    place = 2, 1, 3, 0
    flat = int(np.ravel_multi_index(place, intact[kernel].shape))
    weights.damage('scale', [(kernel, flat, 0.5, 9), (scalar, 0, 0, 0), (bias, 3, 0.25, 9),
                             (kernel, flat, 0.5, 9)])
    expected = {k: v.clone() for k, v in intact.items()}
    expected[kernel][place] *= 0.25
    expected[bias][3] *= 0.25
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert {name: hit for name, hit in weights.hit.items() if hit} == {kernel: {flat}, bias: {3}}
    weights.damage('scale', [(bias, 0, 1e300, 0)])  # beyond float32
    assert torch.isinf(model.q_z.bias[0]) and weights.change() == math.inf
    weights.restore()
    for name, value in model.state_dict().items():
        assert torch.equal(value, intact[name])
    assert weights.change() == 0 and not any(weights.hit.values())


@pytest.mark.parametrize('mode, expected', [
    ('scale', lambda v, std: 0.5 * v), ('zero', lambda v, std: 0),
    ('noise', lambda v, std: v + 0.5 * -2 * std), ('sign', lambda v, std: -v)])
def test_modes(model, mode, expected):
    """Variances of batch normalisation stay nonnegative."""
    weights, value = Weights(model), model.state_dict()['q_z.weight']
    before = value.numpy().astype(np.float64)
    weights.damage(mode, [('q_z.weight', 11, 0.5, -2)])
    after = value.numpy().astype(np.float64)
    assert after[1, 3] == pytest.approx(expected(before[1, 3], before.std()), rel=1e-6)
    assert [list(place) for place in np.argwhere(after != before)] == [[1, 3]]
    name = 'encoder.conv.1.1.running_var'
    for u in (-1, math.nan):
        weights.damage(mode, [(name, 2, u, 1e3)])
        assert weights.state[name][2] >= 0 and weights.state[name].isfinite().all()


def test_where_is_a_prefix_up_to_a_dot(model):
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert choose_entries(shapes, None) == shapes
    assert choose_entries(shapes, 'q_z.bias') == {'q_z.bias': (6,)}
    below = [name for name in shapes if name.startswith('encoder.conv.1.')]
    assert list(choose_entries(shapes, 'encoder.conv.1')) == below != []
    parts = 'encoder, decoder, w_proj, w_inf, q_y, inf_z, q_z, p_z, dynamics'
    for wrong in ('q', 'encoder.conv.1.1.num_batches_tracked'):
        with pytest.raises(UserError, match=f'--where {wrong}: no tensor .* {parts}'):
            choose_entries(shapes, wrong)


# Pictures of the network

def test_tensors_are_grey_from_minimum_to_maximum():
    assert [PALETTE[i].tolist() for i in (0, WHITE, RED)] == [[0] * 3, [255] * 3, [255, 0, 0]]
    assert abs(int(PALETTE[MID_GREY][0]) - 128) <= 1
    half = round(WHITE / 2)

    def drawn(values):
        return draw_tensor(torch.as_tensor(values)).tolist()
    assert drawn([[-1., 0], [1, 0], [0, 1]]) == [[0, half], [WHITE, half], [half, WHITE]]
    assert drawn([3., 1, 2]) == [[WHITE, 0, half]]
    assert drawn(torch.full((2, 2), 5.)) == [[MID_GREY] * 2] * 2
    kernels = torch.zeros(2, 3, 4, 4)
    kernels[:, :, 0, 0] = torch.tensor([[0., 1, 2], [3, 4, 2]])
    kernels[1, 0, 2, 3] = 5  # the maximum is outside the slice
    assert drawn(kernels) == [[0, 51, 101], [152, 202, 101]]
    assert drawn([0., math.nan, 2, math.inf]) == [[0, 0, WHITE, WHITE]]
    assert drawn(torch.full((3,), math.nan)) == [[MID_GREY] * 3]


def area(network, name, shape):
    """Pixels of a tensor of (h, w) elements in a picture of a network."""
    (x, y), (h, w) = network.places[name], shape
    return np.asarray(network.canvas)[y:y + h * enlarged(h), x:x + w * enlarged(w)]


def test_network_picture_shows_every_tensor_once(tmp_path):
    state = {'a.weight': torch.rand(15, 14), 'a.bias': torch.rand(5), 'b.k': torch.rand(3, 2, 4, 4),
             'b.n': torch.tensor(3), 'c.column': torch.rand(9, 1)}
    network = NetworkPicture({k: tuple(v.shape) for k, v in state.items()})
    assert network.places.keys() == {'a.weight', 'a.bias', 'b.k', 'c.column'}
    blank = np.array(network.canvas)
    assert ((blank < 50).sum(), (blank == PAPER).mean()) > (60, 0.9)  # names, in black on paper
    for name, value in state.items():
        network.draw(name, value)
    changed = np.asarray(network.canvas) != blank
    total = 0
    for name in network.places:
        picture = draw_tensor(state[name])
        h, w = picture.shape
        expected = picture.repeat(enlarged(h), 0).repeat(enlarged(w), 1)
        assert min(expected.shape) >= THIN
        np.testing.assert_array_equal(area(network, name, (h, w)), expected)
        total += expected.size
    assert changed.sum() == total  # neither overlapping nor over names
    network.save(tmp_path / '0.png', 'text')
    with Image.open(tmp_path / '0.png') as picture:
        assert picture.mode == 'P'
        saved = np.array(picture)
    difference = saved != np.asarray(network.canvas)
    assert 20 < difference[-40:].sum() == difference.sum()  # the caption
    np.testing.assert_array_equal(video_frame(tmp_path / '0.png'), PALETTE[saved])


def test_damage_is_red_inside_its_tensor_and_visible_on_a_screen(tmp_path):
    """Of kernels, at the (h, w) of an element, also outside the slice that is shown."""
    shape = 700, 800, 2, 2
    network = NetworkPicture({f'{part}.{i}': shape for part in 'abc' for i in range(3)}
                             | {'b.v': (700,)})
    scale = max(network.canvas.width / 1920, network.canvas.height / 1200)
    r = math.ceil(3 * scale) // 2  # squares of 2 r + 1 pixels are 3 pixels of a screen
    assert scale > 1
    hit = [np.ravel_multi_index(place, shape)
           for place in ((3, 5, 0, 0), (0, 799, 1, 1), (400, 300, 0, 1))]
    network.draw('b.1', torch.rand(shape), hit)
    network.draw('b.v', torch.rand(700), {3})
    expected = np.zeros((700, 800), bool)
    for i, j in ((3, 5), (0, 799), (400, 300)):
        expected[max(0, i - r):i + r + 1, max(0, j - r):j + r + 1] = True
    np.testing.assert_array_equal(area(network, 'b.1', (700, 800)) == RED, expected)
    np.testing.assert_array_equal(area(network, 'b.v', (1, 700))[0] == RED, np.arange(700) == 3)
    assert (np.asarray(network.canvas) == RED).sum() == expected.sum() + THIN
    network.save(tmp_path / '0.png', 'text')
    frame = video_frame(tmp_path / '0.png').astype(int)
    assert frame.shape[1] == 1920 or frame.shape[0] == 1200
    x, y = network.places['b.1']
    red = frame[int((y + 400.5) / scale), int((x + 300.5) / scale)]
    assert red[0] > 240 and red[1] < 20


# Runs

def test_files(out_dir, xp_dir):
    assert {p.name for p in out_dir.iterdir()} == RESULTS
    names = sorted(p.name for p in (out_dir / 'network').iterdir())
    assert names == [f'0000{i}.png' for i in range(4)]
    network, rate = read_video(out_dir / 'network.mp4')
    pictures = [video_frame(out_dir / 'network' / name) for name in names]
    assert rate == 5 and network.shape == (4, *(n + n % 2 for n in pictures[0].shape[:2]), 3)
    red = [(picture == [255, 0, 0]).all(-1).sum() for picture in pictures]
    assert red[0] == 0 < red[1] < red[2] < red[3]
    with Image.open(out_dir / 'damage.png') as curves:
        assert curves.width > 1000
    protocol = json.loads((out_dir / 'damage.json').read_text())
    expected = {'index': 0, 'video': None, 'nt_cond': 3, 'seed': 1, 'mode': 'scale', 'n_runs': 1,
                'dataset': 'smmnist', 'xp_dir': str(xp_dir), 'model_name': 'model.pt',
                'checkpoint_sha256': sha256(xp_dir / 'model.pt')}
    assert expected.items() <= protocol.items()


def test_scores_are_those_of_a_plain_loop(out_dir, xp_dir, data_dir, model):
    """Same noise, damage accumulates, first iteration intact."""
    found = table(out_dir)
    assert list(found) == ['run', 'iteration', 'damaged', 'share', 'psnr', 'ssim', 'psnr_intact',
                           'ssim_intact', 'weight_change']
    state, intact = model.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    clip = load_test(load_config(xp_dir), data_dir, 6).videos([0])
    x = to_video(torch.from_numpy(clip), 'cpu')
    noise, hit, predictions = draw_noise(model, 1, 'test', [0], 1, 6), set(), []
    size = sum(v.numel() for v in state.values() if v.ndim)
    for i in range(4):
        for name, index, u, _ in draw_damage(shapes, 1, i, arguments(n_damages=30)) if i else ():
            if shapes[name]:
                state[name][np.unravel_index(index, shapes[name])] *= u
                hit.add((name, index))
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
    with np.load(out_dir / 'predictions.npz', allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays['truth'], clip[:, 0])
        quantised = quantise(torch.stack(predictions))[:, :, 0, 0].numpy()
        assert arrays['samples'].shape == (4, 3, 64, 64, 1)
        assert abs(arrays['samples'][..., 0].astype(int) - quantised).max() <= 1
    video, rate = read_video(out_dir / 'prediction.mp4')
    assert len(video) == 4 * 3 and rate == 25
    for i in (0, 3):
        for k, panel in enumerate((x[3:], predictions[0], predictions[i])):
            expected = quantise(panel)[1, 0, 0].numpy().repeat(3, 0).repeat(3, 1)
            left = 6 + k * 204
            shown = video[3 * i + 1][28:28 + 192, left:left + 192].mean(-1)
            assert abs(shown - expected).mean() < 4


def test_results_are_replaced_only_if_asked(out_dir, xp_dir, data_dir, tmp_path, tables_only,
                                            monkeypatch):
    run(xp_dir, data_dir, tmp_path)
    for name in ('damage.csv', 'network/00003.png'):
        assert (tmp_path / name).read_bytes() == (out_dir / name).read_bytes()  # the same seed
    for name in ('notes.txt', 'network/mine.png'):
        (tmp_path / name).write_text('mine')
    more = ['--n_iterations', 2]
    with pytest.raises(UserError, match=f'{tmp_path} has results of an earlier call; use another'):
        run(xp_dir, data_dir, tmp_path, *more)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(damage, 'draw_curves', lambda *_: 1 / 0)
        run(xp_dir, data_dir, tmp_path, *more, '--overwrite')
    assert not (tmp_path / 'damage.json').exists()  # an interrupted call can be repeated
    assert len(run(xp_dir, data_dir, tmp_path, *more)['run']) == 2
    names = {p.name for p in (tmp_path / 'network').iterdir()}
    assert names == {'00000.png', '00001.png', 'mine.png'}  # none of the earlier call
    assert (tmp_path / 'notes.txt').exists()


def test_options_reach_the_run(out_dir, xp_dir, data_dir, tmp_path, model, tables_only):
    plain, fresh = table(out_dir), run(xp_dir, data_dir, tmp_path / 'fresh', '--fresh_noise')
    np.testing.assert_array_equal(fresh['weight_change'], plain['weight_change'])
    assert fresh['psnr'][0] == plain['psnr'][0] and (fresh['psnr'][1:] != plain['psnr'][1:]).all()
    found = run(xp_dir, data_dir, tmp_path / 'part', '--where', 'dynamics', '--mode', 'zero')
    part = {k: v for k, v in model.state_dict().items() if k.startswith('dynamics.')}
    hit = {draw[:2] for i in (1, 2, 3) for draw in draw_damage(
        {k: tuple(v.shape) for k, v in part.items()}, 1, i, arguments(n_damages=30))}
    assert found['damaged'][-1] == len(hit)
    assert found['share'][-1] == pytest.approx(len(hit) / sum(v.numel() for v in part.values()))
    lost = sum(float(part[name].flatten()[i]) ** 2 for name, i in hit)
    assert found['weight_change'][-1] == pytest.approx(math.sqrt(lost), rel=1e-6) and lost > 0


def test_several_runs(out_dir, xp_dir, data_dir, tmp_path, tables_only, monkeypatch):
    alone = run(xp_dir, data_dir, tmp_path / 'alone', '--seed', 3)
    drawn = []
    monkeypatch.undo()
    monkeypatch.setattr(charts, 'curves', lambda path, panels: drawn.extend(panels))
    found = run(xp_dir, data_dir, tmp_path / 'all', '--n_runs', 3)
    assert found['run'].tolist() == [1] * 4 + [2] * 4 + [3] * 4
    assert found['iteration'].tolist() == [1, 2, 3, 4] * 3
    for name in ('psnr', 'ssim_intact', 'damaged', 'weight_change'):
        np.testing.assert_array_equal(found[name][8:], alone[name])
    for name in ('network/00003.png', 'predictions.npz', 'prediction.mp4'):  # of the first run
        assert (tmp_path / 'all' / name).read_bytes() == (out_dir / name).read_bytes()
    columns = ['psnr', 'psnr_intact'], ['ssim', 'ssim_intact'], ['damaged'], ['weight_change']
    assert [panel.title for panel in drawn[:2]] == ['PSNR (dB)', 'SSIM'] and len(drawn) == 4
    for panel, names in zip(drawn, columns):
        for name, (x, mean, half) in zip(names, panel.lines.values(), strict=True):
            runs = np.ma.masked_equal(found[name].reshape(3, 4), math.inf)
            assert x.tolist() == [1, 2, 3, 4]
            np.testing.assert_allclose([mean, half], [runs.mean(0), runs.std(0)])


def test_nan_predictions_and_a_single_iteration(xp_dir, data_dir, tmp_path):
    """Huge factors overflow: predictions are scored as the black frames that are shown."""
    found = run(xp_dir, data_dir, tmp_path / 'nan', '--damage_low=-1e38', '--damage_high', '1e38',
                '--n_damages', 2000)
    truth = load_test(load_config(xp_dir), data_dir, 6).videos([0])
    truth = to_video(torch.from_numpy(truth), 'cpu')[3:]
    for name, score in (('psnr', psnr), ('ssim', ssim)):
        black = score(torch.zeros_like(truth), truth).mean().item()
        assert found[name][3] == pytest.approx(black, rel=1e-4)
    video, _ = read_video(tmp_path / 'nan' / 'prediction.mp4')
    assert video[-1][40:200, 420:600].max() < 10
    found = run(xp_dir, data_dir, tmp_path / 'one', '--n_iterations', 1)
    assert found['damaged'].tolist() == [0]
    for name in ('nan', 'one'):
        assert {p.name for p in (tmp_path / name).iterdir()} == RESULTS


# Clips

@pytest.fixture(scope='module')
def kth(tmp_path_factory):
    """Untrained model of KTH, and the videos of the experiments: pixels are the frame's number."""
    xp_dir = write_model(tmp_path_factory.mktemp('kth'), 'kth', 1, nt_cond=10, seq_len_test=14)
    for name, length in (('running/person01_running_d4', 365), ('walking/person01_walking_d2', 312),
                         ('handclapping/person08_handclapping_d4', 45)):
        path = xp_dir / 'processed_64' / f'{name}.npy'
        path.parent.mkdir(parents=True)
        pixels = (np.arange(length) % 251).astype(np.uint8)[:, None, None]
        np.save(path, np.broadcast_to(pixels, (length, 64, 64)))
    return xp_dir


@pytest.mark.parametrize('options, t_0, n', [
    ('--experiment 1', 315, 40), ('--experiment 2', 182, 120), ('--experiment 3', 14, 21),
    ('--video walking/person01_walking_d2 --t_0 30 --nt_gen 15', 30, 5)])
def test_clips_of_kth(kth, options, t_0, n, tmp_path, tables_only):
    damage.main(['--xp_dir', str(kth), '--data_dir', str(kth), '--out_dir', str(tmp_path),
                 '--n_damages', '2', '--n_iterations', '2', *options.split()])
    with np.load(tmp_path / 'predictions.npz') as arrays:
        assert arrays['truth'][:, 5, 5, 0].tolist() == [t % 251 for t in range(t_0, t_0 + 10 + n)]
        assert arrays['samples'].shape == (2, n, 64, 64, 1)


# Errors

@pytest.mark.parametrize('more, message', [
    (['--index', '0', '--experiment', '1'], 'not allowed with'),
    (['--index', '500'], '--index 500: the test set has 500 videos, numbered from 0'),
    (['--t_0', '3'], '--t_0 3 is the first frame of --video, which is missing'),
    (['--video', 'a'], '--video a: videos of smmnist are not files; use --index'),
    (['--nt_gen', '3'], '--nt_gen 3'),
    (['--where', 'decode'], '--where decode: no tensor')])
def test_errors(xp_dir, data_dir, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        run(xp_dir, data_dir, tmp_path / 'out', *more)
    assert not (tmp_path / 'out').exists()
