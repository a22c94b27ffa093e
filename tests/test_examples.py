"""`examples/`: simulated videos on the ordinary way of own videos, and their futures."""

import json

from files import sha256

import numpy as np
import pytest
from PIL import Image

import test as evaluation
from args import load_config
from conftest import ROOT
from data import load_videos
from examples import shapes, true_futures
from preprocessing.folder import convert


RELEASED = ROOT / 'pretrained' / 'shapes_cpu'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Folder of converted videos of 20 frames: 2 in train, 1 in val, 4 in test."""
    folder = tmp_path_factory.mktemp('shapes')
    shapes.main(['--out_dir', str(folder / 'in'), '--n_videos', '2', '1', '4', '--frames', '20'])
    convert.main(['--data_dir', str(folder / 'in'), '--out_dir', str(folder / 'out')])
    return folder / 'out'


def test_videos_become_a_dataset(data):
    folds = [sorted((data / fold).glob('*.npy')) for fold in shapes.SEEDS]
    assert list(map(len, folds)) == [2, 1, 4]
    videos, _ = load_videos(load_config(RELEASED), data, range(4), 20)  # (T, B, H, W, C)
    for i in range(4):  # encoded without loss; the conversion rounds colours
        expected = shapes.simulate(shapes.SEEDS['test'] + i, 20)[0]
        np.testing.assert_allclose(videos[:, i].astype(int), expected, atol=2)


def test_released_model_beats_the_last_frame(data, tmp_path):
    record = json.loads((RELEASED / 'results.json').read_text())
    assert record['protocol']['checkpoint_sha256'] == sha256(RELEASED / 'model.pt')
    scores = []
    for baseline in ([], ['--baseline', 'last_frame']):
        out = tmp_path / str(len(baseline))
        assert not evaluation.main([
            '--xp_dir', str(RELEASED), '--data_dir', str(data), '--out_dir', str(out), *baseline,
            '--n_samples', '8', '--metrics', 'psnr', '--n_pictures', '0'])
        scores.append(json.loads((out / 'results.json').read_text())['scores']['psnr']['mean'])
    assert scores[0] > scores[1] + 2


def test_futures_of_one_past():
    (video, path), (other, other_path) = (shapes.simulate(3, 12, future) for future in (1, 2))
    np.testing.assert_array_equal(video[:5], other[:5])
    assert (np.abs(path - other_path).max(1) > 0).tolist() == [False] * 5 + [True] * 7
    np.testing.assert_array_equal(shapes.simulate(3, 12, 1)[0], video)
    assert not np.array_equal(shapes.simulate(4, 1)[0], video[:1])  # another scene


def test_motion():
    moved = 0
    for seed in range(40):
        scene, rng = shapes.Scene(np.random.default_rng(seed)), np.random.default_rng(seed)
        bodies = scene.space.bodies
        before = start = np.array([body.position for body in bodies])
        colours = [shape.colour for body in bodies for shape in body.shapes]
        assert len(set(colours)) == 4 and colours[0] == shapes.DARK
        for _ in range(20):
            scene.step(rng)
            places = np.array([body.position for body in bodies])
            step = np.linalg.norm(places - before, axis=1)
            assert 0 < step[0] < shapes.SPEED * 1.01  # shorter where the disc is reflected
            assert (step[1:] < 2 * shapes.SPEED).all()
            assert (places > 0).all() and (places < shapes.SIZE).all()
            assert all(body.angle == 0 for body in bodies)
            before = places
        moved += (np.linalg.norm(places - start, axis=1)[1:] > 1).any()
    assert 10 < moved < 35  # the disc bumps into something in many videos, but not in all


def test_find_disc_and_coverage():
    video, path = shapes.simulate(5, 20)
    np.testing.assert_allclose(true_futures.find_disc(video), path, atol=0.3)
    assert np.isnan(true_futures.find_disc(np.full((1, 64, 64, 3), 255, np.uint8))).all()
    positions = np.array([[10, 10], [20, 20], [40, 40.0]])
    others = np.array([[12, 12], [np.nan, np.nan]])
    assert true_futures.covered(positions, others) == pytest.approx(1 / 3)
    assert true_futures.covered(positions, positions + 1) == 1


def test_futures_of_the_released_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(true_futures, 'N', 8)
    true_futures.main(['--n_videos', '2', '--out', str(tmp_path / 'futures.png')])
    with Image.open(tmp_path / 'futures.png') as picture:
        assert picture.width == 1200
    true, predicted, _, last = ([float(x) for x in line.split()[-3:]]
                                for line in capsys.readouterr().out.splitlines()[1:])
    # In the fifth predicted frame, the model knows better than its last given frame
    assert 0 <= last[0] < predicted[0] <= 1 and true[0] > 0.5
