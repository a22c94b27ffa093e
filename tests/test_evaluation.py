"""`test.py` on a tiny model that `train.py` trained: files, scores, protocol, baselines, errors."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from args import load_config
from conftest import ROOT
from data import load_test
from metrics.frame import psnr, ssim
from model import build_model
from sampling import Futures, draw_noise, quantise
from test_metrics import random_backbone
from files import UserError, sha256
from utils import load_weights, to_video

spec = importlib.util.spec_from_file_location('srvp_test', ROOT / 'test.py')  # `test` is also a package of Python's own
evaluation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(evaluation)

OPTIONS = ['--nt_gen', '8', '--n_samples', '6', '--n_videos', '5', '--batch_size', '2', '--n_pictures', '2']


@pytest.fixture(scope='module')
def lpips_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lpips')
    torch.save(random_backbone(), folder / 'alexnet-features.pth')
    return folder


@pytest.fixture(scope='module')
def out_dir(run_dir, data_dir, lpips_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp('out')
    evaluation.main(['--xp_dir', str(run_dir), '--data_dir', str(data_dir), '--lpips_dir', str(lpips_dir), '--out_dir', str(folder), *OPTIONS])
    return folder


def evaluate(xp_dir, data_dir, out_dir, *more):
    evaluation.main(['--xp_dir', str(xp_dir), '--data_dir', str(data_dir), '--out_dir', str(out_dir), '--metrics', 'psnr', 'ssim',
                     *OPTIONS, *more])
    return arrays(out_dir, 'results')


def arrays(folder, name):
    with np.load(folder / f'{name}.npz', allow_pickle=False) as f:
        return {k: f[k] for k in f.files}


def test_published_files(out_dir):
    expected = {f'{m}_{e}.npz' for m in ('psnr', 'ssim', 'lpips') for e in ('best', 'worst')} | {f'random_{i}.npz' for i in range(1, 6)} \
        | {'cond_rec.npz', 'results.npz', 'results.json', 'pictures'}
    assert {p.name for p in out_dir.iterdir()} == expected
    results = arrays(out_dir, 'results')
    assert {k: v.shape for k, v in results.items()} == {'psnr': (5,), 'ssim': (5,), 'lpips': (5,)}
    for name in expected - {'results.npz', 'results.json', 'pictures'}:
        samples = arrays(out_dir, name.removesuffix('.npz'))['samples']
        assert samples.dtype == np.uint8 and samples.shape == (5, 3 if name == 'cond_rec.npz' else 5, 64, 64, 1)


def test_results_json_tells_scores_and_protocol(out_dir, run_dir):
    result = json.loads((out_dir / 'results.json').read_text())
    for name, values in arrays(out_dir, 'results').items():
        assert result['scores'][name]['mean'] == pytest.approx(values.mean(), rel=1e-6)
        assert result['scores'][name]['ci95'] == pytest.approx(1.96 * np.sqrt(((values - values.mean()) ** 2).sum() / 5) / np.sqrt(5), rel=1e-4)
    assert result['protocol'] == {
        'dataset': 'smmnist', 'clips': 5, 'conditioning_frames': 3, 'predicted_frames': 5, 'samples': 6, 'n_euler_steps': 1, 'seed': 1,
        'lpips_version': '0.1', 'baseline': None, 'checkpoint': 'model.pt', 'checkpoint_sha256': sha256(run_dir / 'model.pt'),
        'digits': 'mnist5k', 'ndigits': 2, 'max_speed': 4, 'deterministic': False}


def test_scores_and_samples_are_those_of_a_plain_loop(out_dir, run_dir, data_dir):
    config = load_config(run_dir)
    model = build_model(config).eval().requires_grad_(False)
    load_weights(model, run_dir / 'model.pt')
    x = to_video(torch.from_numpy(load_test(config, data_dir, 8).videos(range(5))), 'cpu')
    samples = torch.stack(list(Futures(model, x[:3], 5, draw_noise(model, 1, 'test', range(5), 6, 8))))
    truth = x[3:].expand_as(samples)
    results = arrays(out_dir, 'results')
    for name, function in (('psnr', psnr), ('ssim', ssim)):
        every = function(samples, truth).mean((1, 3))
        np.testing.assert_allclose(results[name], every.max(0).values, rtol=1e-5)
    for i in range(1, 6):
        found = arrays(out_dir, f'random_{i}')['samples'].astype(int)
        expected = quantise(samples[i - 1]).permute(1, 0, 3, 4, 2).numpy().astype(int)
        assert abs(found - expected).max() <= 1  # the last bit of a float decides a truncation


def test_batches_do_not_change_the_scores(run_dir, data_dir, out_dir, tmp_path):
    found = evaluate(run_dir, data_dir, tmp_path, '--batch_size', '5')
    for name, values in found.items():
        np.testing.assert_allclose(values, arrays(out_dir, 'results')[name], rtol=1e-5)
    other = evaluate(run_dir, data_dir, tmp_path, '--test_seed', '2')
    assert not np.allclose(other['psnr'], found['psnr'], rtol=1e-6)


def test_fewer_samples_and_other_lengths(run_dir, data_dir, tmp_path):
    for name in ('random_5.npz', 'lpips_best.npz', 'pictures/video_0009.gif', 'notes_best.npz'):  # the last one is no file of ours
        (tmp_path / 'pictures').mkdir(exist_ok=True)
        (tmp_path / name).touch()
    evaluate(run_dir, data_dir, tmp_path, '--n_samples', '2', '--nt_gen', '7', '--nt_cond', '4', '--n_euler_steps', '3',
             '--model_name', 'model_best.pt')
    assert sorted(p.name for p in tmp_path.glob('random*')) == ['random_1.npz', 'random_2.npz']
    assert {p.name for p in tmp_path.glob('*_best.npz')} == {'psnr_best.npz', 'ssim_best.npz', 'notes_best.npz'}
    assert not (tmp_path / 'pictures' / 'video_0009.gif').exists()
    assert arrays(tmp_path, 'psnr_best')['samples'].shape[1] == 3 and arrays(tmp_path, 'cond_rec')['samples'].shape[1] == 4
    protocol = json.loads((tmp_path / 'results.json').read_text())['protocol']
    assert (protocol['n_euler_steps'], protocol['samples'], protocol['checkpoint'], protocol['lpips_version']) == (3, 2, 'model_best.pt', None)


def test_published_checkpoint_folder(run_dir, data_dir, tmp_path):
    """Only the keys of published configurations, and the weights."""
    config = json.loads((run_dir / 'config.json').read_text())
    keys = ('archi dataset deterministic max_speed n_euler_steps nc nf nh_inf nh_res nhx nlayers_inf nlayers_res nt_cond nt_inf ndigits nx '
            'ny nz seq_len_test skipco').split()
    (tmp_path / 'config.json').write_text(json.dumps({k: config[k] for k in keys}))
    shutil.copy(run_dir / 'model.pt', tmp_path)
    shutil.copy(data_dir / 'smmnist5k_test_2digits_64.npz', tmp_path / 'smmnist_test_2digits_64.npz')
    evaluation.main(['--xp_dir', str(tmp_path), '--data_dir', str(tmp_path), '--metrics', 'psnr', '--n_samples', '1', '--n_videos', '2'])
    assert arrays(tmp_path, 'psnr_best')['samples'].shape == (2, 2, 64, 64, 1)  # seq_len_test 5, nt_cond 3


def test_last_frame_baseline(run_dir, data_dir, tmp_path):
    found = evaluate(run_dir, data_dir, tmp_path, '--baseline', 'last_frame')
    videos = load_test(load_config(run_dir), data_dir, 8).videos(range(5))
    repeated = arrays(tmp_path, 'psnr_best')['samples']
    np.testing.assert_array_equal(repeated, np.repeat(videos[2:3], 5, 0).swapaxes(0, 1))
    x = torch.from_numpy(videos).permute(0, 1, 4, 2, 3).double() / 255
    np.testing.assert_allclose(found['psnr'], psnr(x[2].expand_as(x[3:]), x[3:]).mean((0, 2)), rtol=1e-5)
    protocol = json.loads((tmp_path / 'results.json').read_text())['protocol']
    assert (protocol['baseline'], protocol['samples'], protocol['checkpoint']) == ('last_frame', 1, None)


def test_perfect_prediction_has_an_infinite_psnr(run_dir, data_dir, tmp_path, capsys):
    with np.load(data_dir / 'smmnist5k_test_2digits_64.npz', allow_pickle=False) as f:
        still = np.repeat(f['sequences'][:1], 8, 0)
    np.savez_compressed(tmp_path / 'smmnist5k_test_2digits_64.npz', sequences=still)
    found = evaluate(run_dir, tmp_path, tmp_path / 'out', '--baseline', 'last_frame')
    assert np.isposinf(found['psnr']).all() and np.allclose(found['ssim'], 1)
    assert 'PSNR inf ± nan dB' in capsys.readouterr().out
    scores = json.loads((tmp_path / 'out' / 'results.json').read_text(), parse_constant=pytest.fail)['scores']
    assert scores['psnr'] == {'mean': None, 'ci95': None} and scores['ssim']['mean'] == pytest.approx(1)


def test_untrained_baseline_is_another_model_in_another_folder(run_dir, data_dir, out_dir):
    evaluation.main(['--xp_dir', str(run_dir), '--data_dir', str(data_dir), '--metrics', 'psnr', *OPTIONS, '--baseline', 'untrained'])
    config = load_config(run_dir)
    torch.manual_seed(1)
    model = build_model(config).eval().requires_grad_(False)
    x = to_video(torch.from_numpy(load_test(config, data_dir, 8).videos(range(5))), 'cpu')
    samples = torch.stack(list(Futures(model, x[:3], 5, draw_noise(model, 1, 'test', range(5), 6, 8))))
    found = arrays(run_dir / 'baseline_untrained', 'results')['psnr']
    np.testing.assert_allclose(found, psnr(samples, x[3:].expand_as(samples)).mean((1, 3)).max(0).values, rtol=1e-5)
    assert (found != arrays(out_dir, 'results')['psnr']).any()
    assert not (run_dir / 'results.json').exists()


def test_pictures(out_dir, data_dir, run_dir):
    assert {p.name for p in (out_dir / 'pictures').iterdir()} == {f'video_000{i}.{e}' for i in (0, 1) for e in ('png', 'gif')}
    truth = load_test(load_config(run_dir), data_dir, 8).videos([1])[:, 0]
    picture = np.asarray(Image.open(out_dir / 'pictures' / 'video_0001.png').convert('RGB'))
    enlarged = np.repeat(np.repeat(np.repeat(truth[4], 3, 0), 3, 1), 3, 2)
    windows = [picture[y:y + 192, x:x + 192] for y in range(20, 40) for x in range(60, 1200)]
    assert any(w.shape == enlarged.shape and np.array_equal(w, enlarged) for w in windows)
    with Image.open(out_dir / 'pictures' / 'video_0001.gif') as gif:
        assert gif.n_frames == 8 and gif.info['loop'] == 0 and gif.width > 6 * 192


def test_colour_pictures(tmp_path):
    from pictures import animation, strip
    video = np.zeros((3, 64, 64, 3), np.uint8)
    video[..., 0] = 200
    strip(tmp_path / 'a.png', {'truth': video, 'best': video[2:]}, 2)
    animation(tmp_path / 'a.gif', {'truth': video}, 2)
    for name in ('a.png', 'a.gif'):
        colours = Image.open(tmp_path / name).convert('RGB').getcolors(10 ** 6)
        assert (200, 0, 0) in [c for _, c in colours]


@pytest.mark.parametrize('more, message', [
    (['--nt_gen', '3'], '--nt_gen 3 leaves no frame to predict after the 3 given'),
    (['--nt_cond', '1'], '--nt_cond 1 is less than the 2 frames'),
    (['--nt_gen', '9'], 'videos of 8 frames, but --nt_gen 9'),
    (['--n_videos', '501'], 'the test set has 500'),
    (['--model_name', 'none.pt'], 'none.pt does not exist'),
    (['--device', '99'], 'CUDA devices found'),
    (['--xp_dir', 'nowhere'], 'nowhere/config.json does not exist'),
    (['--data_dir', 'nowhere'], 'make it with'),
    (['--lpips_dir', 'nowhere', '--metrics', 'lpips'], 'is not a folder'),
])
def test_errors(run_dir, data_dir, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        evaluate(run_dir, data_dir, tmp_path / 'out', *more)
    assert not (tmp_path / 'out').exists()


def test_weights_of_another_model_and_damaged_ones(run_dir, data_dir, tmp_path):
    config = json.loads((run_dir / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'ny': 7}))
    shutil.copy(run_dir / 'model.pt', tmp_path)
    with pytest.raises(UserError, match='does not fit the configuration: .* the first is decoder.first_upconv.0.weight'):
        evaluate(tmp_path, data_dir, tmp_path / 'out')
    (tmp_path / 'config.json').write_text(json.dumps(config))
    weights = torch.load(run_dir / 'model.pt', weights_only=True)
    torch.save({**weights, 'w_inf.0.bias': weights['w_inf.0.bias'] * float('nan')}, tmp_path / 'model.pt')
    with pytest.raises(UserError, match='not numbers'):
        evaluate(tmp_path, data_dir, tmp_path / 'out')
    torch.save([1, 2], tmp_path / 'model.pt')
    with pytest.raises(UserError, match='not a plain state_dict'):
        evaluate(tmp_path, data_dir, tmp_path / 'out')

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / 'owned'), 'w'))
    torch.save(Evil(), tmp_path / 'model.pt')
    with pytest.raises(UserError, match='cannot be read|can be read safely'):
        evaluate(tmp_path, data_dir, tmp_path / 'out')
    assert not (tmp_path / 'owned').exists()
