"""`test.py` as a user runs it, on a tiny model: files, scores, protocol, baselines, errors."""

import importlib.util
import json
import re
import shutil
import signal

from files import UserError, sha256

import numpy as np
import pytest
import torch
from PIL import Image

import metrics.fvd
import train
from args import load_config
from conftest import ROOT, TINY, steps
from data import load_test
from evaluation.futures import Futures, draw_noise, quantise
from metrics.frame import psnr, ssim
from model import build_model
from preprocessing.mmnist import make_test_set
from processes import Script, run_job
from tests.plain import random_backbone
from utils import has_bfloat16, load, load_model, save, to_video

# `test` is also a package of the standard library
spec = importlib.util.spec_from_file_location('srvp_test', ROOT / 'test.py')
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

OPTIONS = ['--nt_gen', '8', '--n_samples', '6', '--n_videos', '5', '--batch_size', '2']


@pytest.fixture(scope='module')
def lpips_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lpips')
    torch.save(random_backbone(), folder / 'alexnet-features.pth')
    return folder


@pytest.fixture(scope='module')
def out_dir(run_dir, data_dir, lpips_dir, tmp_path_factory):
    """Results with all metrics, pictures and a page."""
    folder = tmp_path_factory.mktemp('out')
    script.main(['--xp_dir', str(run_dir), '--data_dir', str(data_dir),
                 '--lpips_dir', str(lpips_dir), '--out_dir', str(folder), *OPTIONS,
                 '--n_pictures', '2'])
    return folder


def options(xp_dir, data_dir, out_dir, *more):
    return ['--xp_dir', str(xp_dir), '--data_dir', str(data_dir), '--out_dir', str(out_dir),
            '--metrics', 'psnr', 'ssim', *OPTIONS, '--n_pictures', '0', *more]


def evaluate(*args):
    script.main(options(*args))
    return arrays(args[2], 'results')


def arrays(folder, name):
    with np.load(folder / f'{name}.npz', allow_pickle=False) as f:
        return {k: f[k] for k in f.files}


def results(folder):
    return json.loads((folder / 'results.json').read_text(), parse_constant=pytest.fail)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def draw_samples(model, config, data_dir):
    """Samples (S, T, B, C, H, W) of the first videos, as OPTIONS ask for, and the truth."""
    x = to_video(torch.from_numpy(load_test(config, data_dir, 8).videos(range(5))), 'cpu')
    samples = Futures(model, x[:3], 5, draw_noise(model, 1, 'test', range(5), 6, 8))
    return torch.stack(list(samples)), x[3:]


# Results

def test_files(out_dir):
    names = {'cond_rec.npz', *(f'random_{i}.npz' for i in range(1, 6)),
             *(f'{m}_{e}.npz' for m in ('psnr', 'ssim', 'lpips') for e in ('best', 'worst'))}
    assert {p.name for p in out_dir.iterdir()} == names | {'results.npz', 'results.json',
                                                           'curves.png', 'pictures', 'report'}
    found = arrays(out_dir, 'results')
    assert found.keys() == {f'{m}{t}' for m in ('psnr', 'ssim', 'lpips') for t in ('', '_t')}
    for name in ('psnr', 'ssim', 'lpips'):
        assert found[name].shape == (5,) and found[f'{name}_t'].shape == (5, 5)
        assert found[name].dtype == found[f'{name}_t'].dtype == np.float32
        np.testing.assert_allclose(found[f'{name}_t'].mean(1), found[name], rtol=1e-5)
    for name in names:
        samples = arrays(out_dir, name.removesuffix('.npz'))['samples']
        T = 3 if name == 'cond_rec.npz' else 5
        assert samples.dtype == np.uint8 and samples.shape == (5, T, 64, 64, 1)
    pictures = {f'video_000{i}.{e}' for i in (0, 1) for e in ('png', 'gif')}
    assert {p.name for p in (out_dir / 'pictures').iterdir()} == pictures
    with Image.open(out_dir / 'pictures' / 'video_0001.gif') as gif:
        assert gif.n_frames == 8
    assert 'LPIPS' in (out_dir / 'report' / 'index.html').read_text()


def test_results_json_has_scores_and_protocol(out_dir, run_dir, data_dir):
    result, scores = results(out_dir), arrays(out_dir, 'results')
    for name in ('psnr', 'ssim', 'lpips'):
        values, score = scores[name], result['scores'][name]
        std = np.sqrt(((values - values.mean()) ** 2).sum() / 5)
        assert score['mean'] == pytest.approx(values.mean(), rel=1e-6)
        assert score['ci95'] == pytest.approx(1.96 * std / np.sqrt(5), rel=1e-4)
    digest = result['protocol'].pop('first_video_sha256')
    assert re.fullmatch('[0-9a-f]{64}', digest)
    assert result['protocol'] == {
        'dataset': 'smmnist', 'digit_source': 'mnist5k', 'ndigits': 2, 'max_speed': 4,
        'deterministic': False, 'size': 64, 'test_set': 'smmnist5k_test_2digits_64.npz',
        'clips': 5, 'conditioning_frames': 3, 'predicted_frames': 5, 'samples': 6,
        'metrics': ['psnr', 'ssim', 'lpips'], 'lpips_version': '0.1', 'n_euler_steps': 1,
        'seed': 1, 'baseline': None, 'checkpoint_sha256': sha256(run_dir / 'model.pt'),
        'precision': 'float32'}
    assert (result['data_dir'], result['checkpoint']) == (str(data_dir), 'model.pt')


def test_scores_and_samples_are_those_of_a_plain_loop(out_dir, run_dir, data_dir):
    config = load_config(run_dir)
    model = load_model(config, run_dir / 'model.pt', 'cpu')
    samples, truth = draw_samples(model, config, data_dir)
    scores = arrays(out_dir, 'results')
    for name, function in (('psnr', psnr), ('ssim', ssim)):
        every = function(samples, truth.expand_as(samples)).mean((1, 3))
        np.testing.assert_allclose(scores[name], every.max(0).values, rtol=1e-5)
        for b, s in enumerate(every.argmax(0)):
            frames = function(samples[s, :, b], truth[:, b]).mean(1)
            np.testing.assert_allclose(scores[f'{name}_t'][b], frames, rtol=1e-5)
    for i in range(1, 6):
        found = arrays(out_dir, f'random_{i}')['samples'].astype(int)
        expected = quantise(samples[i - 1]).permute(1, 0, 3, 4, 2).numpy().astype(int)
        assert abs(found - expected).max() <= 1  # the last bit of a float decides a truncation


def test_batches_chunks_and_processes_do_not_change_the_scores(run_dir, data_dir, out_dir,
                                                               tmp_path):
    expected, argv = arrays(out_dir, 'results'), (run_dir, data_dir, tmp_path / 'two')
    found = [evaluate(run_dir, data_dir, tmp_path / 'one', '--batch_size', '5', '--chunk', '3')]
    codes, outs, _ = run_job('test.py', options(*argv), options(*argv))
    assert codes == [0, 0] and 'CPU' in outs[0] and 'and 1 more: 5 videos' in outs[0]
    assert not outs[1]
    found.append(arrays(tmp_path / 'two', 'results'))
    for scores in found:
        assert scores.keys() == {'psnr', 'psnr_t', 'ssim', 'ssim_t'}
        for name, values in scores.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-5)
    assert results(tmp_path / 'two')['protocol'] == results(tmp_path / 'one')['protocol']


def test_other_lengths_samples_seeds_and_weights(run_dir, data_dir, out_dir, tmp_path):
    found = evaluate(run_dir, data_dir, tmp_path, '--n_samples', '2', '--nt_gen', '7', '--nt_cond',
                     '4', '--n_euler_steps', '3', '--model_name', 'model_best.pt', '--seed', '2')
    assert {p.name for p in tmp_path.glob('random*')} == {'random_1.npz', 'random_2.npz'}
    assert arrays(tmp_path, 'psnr_best')['samples'].shape[1] == found['psnr_t'].shape[1] == 3
    assert arrays(tmp_path, 'cond_rec')['samples'].shape[1] == 4
    protocol = results(tmp_path)['protocol']
    expected = {'n_euler_steps': 3, 'samples': 2, 'conditioning_frames': 4, 'seed': 2,
                'checkpoint_sha256': sha256(run_dir / 'model_best.pt')}
    assert expected.items() <= protocol.items()
    assert not (tmp_path / 'report').exists()  # without pictures
    evaluate(run_dir, data_dir, tmp_path / 'seed', '--seed', '2')
    for name in ('psnr', 'ssim'):
        assert not np.allclose(arrays(tmp_path / 'seed', 'results')[name],
                               arrays(out_dir, 'results')[name], rtol=1e-6)


def test_one_sample_is_the_best_and_the_worst(run_dir, data_dir, tmp_path):
    evaluate(run_dir, data_dir, tmp_path, '--n_samples', '1')
    same = {'random_1', 'psnr_best', 'psnr_worst', 'ssim_best', 'ssim_worst'}
    assert {p.stem for p in tmp_path.glob('*.npz')} == same | {'cond_rec', 'results'}
    assert len({(tmp_path / f'{name}.npz').read_bytes() for name in same}) == 1


def test_results_of_another_protocol_stop_before_any_work(run_dir, data_dir, tmp_path,
                                                          monkeypatch):
    evaluate(run_dir, data_dir, tmp_path, '--n_samples', '1')
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(script, 'score_futures', None)
        for more, difference in ((['--n_samples', '2'], 'samples'),
                                 (['--n_samples', '1', '--nt_cond', '4'],
                                  'conditioning_frames, predicted_frames')):
            with pytest.raises(UserError, match=f'is of an evaluation with other {difference}; use '
                                                'another --out_dir, or --overwrite'):
                evaluate(run_dir, data_dir, tmp_path, *more)
    assert contents(tmp_path) == before
    evaluate(run_dir, data_dir, tmp_path, '--n_samples', '1')  # may be repeated
    assert contents(tmp_path) == before
    evaluate(run_dir, data_dir, tmp_path, '--n_samples', '2', '--overwrite')
    assert results(tmp_path)['protocol']['samples'] == 2


PATCH = f"""
import os, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
import evaluation.futures
score_futures, done = evaluation.futures.score_futures, []
def score_then_interrupt(*args, **kwargs):
    if len(done) == 1:
        os.kill(os.getpid(), int(os.environ['SIGNAL']))
    done.append(score_futures(*args, **kwargs))
    return done[-1]
evaluation.futures.score_futures = score_then_interrupt
runpy.run_path({str(ROOT / 'test.py')!r}, run_name='__main__')
"""  # test.py that gets a signal in its second batch


def test_interrupted_evaluation_continues(run_dir, data_dir, lpips_dir, out_dir, tmp_path):
    """After Ctrl-C and a kill, with the results of an uninterrupted call, byte for byte."""
    patched, folder = tmp_path / 'patched.py', tmp_path / 'out'
    patched.write_text(PATCH)
    argv = ['--xp_dir', run_dir, '--data_dir', data_dir, '--lpips_dir', lpips_dir,
            '--out_dir', folder, *OPTIONS, '--n_pictures', '2']
    for number, code, n_batches in ((signal.SIGINT, 130, 1), (signal.SIGKILL, -9, 2)):
        job = Script(patched, *argv, env={'SIGNAL': str(int(number)), 'OMP_NUM_THREADS': '1'})
        out, err = job.communicate()
        assert job.returncode == code and not (folder / 'results.json').exists()
        assert len(list(folder.glob('.partial-*/0*.npz'))) == n_batches
        if number == signal.SIGINT:
            assert 'SIGINT: keeping the finished batches' in err
            assert re.search('scores so far, of 2 of 5 videos:\n PSNR .* dB\n SSIM .*\nLPIPS .*\n'
                             'repeat the command to continue', out)
    job = Script('test.py', *argv)
    job.communicate()
    assert job.returncode == 0 and contents(folder) == contents(out_dir)


# Baselines

def test_last_frame_baseline(run_dir, data_dir, tmp_path):
    found = evaluate(run_dir, data_dir, tmp_path, '--baseline', 'last_frame')
    videos = load_test(load_config(run_dir), data_dir, 8).videos(range(5))
    repeated = arrays(tmp_path, 'psnr_best')['samples']
    np.testing.assert_array_equal(repeated, np.repeat(videos[2:3], 5, 0).swapaxes(0, 1))
    x = torch.from_numpy(videos).permute(0, 1, 4, 2, 3).double() / 255
    expected = psnr(x[2].expand_as(x[3:]), x[3:]).mean((0, 2))
    np.testing.assert_allclose(found['psnr'], expected, rtol=1e-5)
    protocol = results(tmp_path)['protocol']
    assert protocol['baseline'] == 'last_frame'
    assert (protocol['samples'], protocol['checkpoint_sha256']) == (1, None)


def test_frames_equal_to_the_truth(run_dir, data_dir, tmp_path, capsys):
    """They are left out of means and counted; only a score of equal frames alone is 'identical'."""
    name = 'smmnist5k_test_2digits_64'
    sequences = arrays(data_dir, name)['sequences'][:, :5].copy()
    np.savez(tmp_path / f'{name}.npz', sequences=np.repeat(sequences[:1], 8, 0))
    found = evaluate(run_dir, tmp_path, tmp_path / 'all', '--baseline', 'last_frame')
    assert np.isnan(found['psnr']).all() and np.isposinf(found['psnr_t']).all()
    assert np.allclose(found['ssim'], 1)
    assert ' PSNR identical dB (without 25 frames equal to the truth)' in capsys.readouterr().out
    assert results(tmp_path / 'all')['scores']['psnr'] == {'mean': None, 'ci95': None,
                                                          'equal_frames': 25}
    sequences[3:, 0], sequences[4, 1] = sequences[2, 0], sequences[2, 1]  # a video, a frame
    np.savez(tmp_path / f'{name}.npz', sequences=sequences)
    found = evaluate(run_dir, tmp_path, tmp_path / 'some', '--baseline', 'last_frame')
    psnr_t = np.where(np.isinf(found['psnr_t']), np.nan, found['psnr_t'])
    assert np.isnan(psnr_t).sum() == 6 and np.isnan(found['psnr']).tolist() == [True] + 4 * [False]
    np.testing.assert_allclose(found['psnr'][1:], np.nanmean(psnr_t[1:], 1), rtol=1e-6)
    score = results(tmp_path / 'some')['scores']['psnr']
    assert score['mean'] == pytest.approx(found['psnr'][1:].mean()) and score['equal_frames'] == 6
    assert re.search(r'PSNR \d.* dB \(without 6 frames equal', capsys.readouterr().out)


def test_untrained_baseline_is_another_model_in_another_folder(run_dir, data_dir, out_dir,
                                                               tmp_path):
    run_dir = shutil.copytree(run_dir, tmp_path / 'run')
    script.main(['--xp_dir', str(run_dir), '--data_dir', str(data_dir), '--metrics', 'psnr',
                 *OPTIONS, '--n_pictures', '0', '--baseline', 'untrained'])
    config = load_config(run_dir)
    torch.manual_seed(1)
    model = build_model(config).eval().requires_grad_(False)
    samples, truth = draw_samples(model, config, data_dir)
    expected = psnr(samples, truth.expand_as(samples)).mean((1, 3)).max(0).values
    found = arrays(run_dir / 'baseline_untrained', 'results')['psnr']
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found != arrays(out_dir, 'results')['psnr']).any()
    assert not (run_dir / 'results.json').exists()


class MeanColour:
    """An embedding that costs nothing."""
    sha256, note = 'none', 'of no origin'

    def __call__(self, videos):
        return np.concatenate([videos.mean((2, 3, 4)), videos.std((2, 3, 4))], 1)


def test_frechet_video_distance(run_dir, data_dir, tmp_path, monkeypatch, capsys):
    """Of all frames, given ones included; the mean over samples."""
    name = 'smmnist5k_test_2digits_64'
    sequences = arrays(data_dir, name)['sequences'][:, :18]
    np.savez(tmp_path / f'{name}.npz', sequences=np.concatenate([sequences, sequences[:1]]))
    monkeypatch.setattr(metrics.fvd, 'build_embedding', lambda *_: MeanColour())
    more = ['--n_videos', '18', '--nt_gen', '9', '--n_samples', '2', '--batch_size', '8', '--fvd']
    out = tmp_path / 'out'
    evaluate(run_dir, tmp_path, out, *more, '--fvd_samples', '2')
    truth = load_test(load_config(run_dir), tmp_path, 9).videos(range(18)).swapaxes(0, 1)
    distances = [metrics.fvd.fvd(truth, np.concatenate([truth[:, :3], x], 1), MeanColour())
                 for x in (arrays(out, f'random_{i}')['samples'] for i in (1, 2))]
    assert results(out)['scores']['fvd'] == {
        'mean': pytest.approx(np.mean(distances), rel=1e-6),
        'ci95': pytest.approx(1.96 * np.std(distances) / 2 ** .5, rel=1e-4)}
    assert {'fvd_samples': 2, 'fvd_weights_sha256': 'none',
            'fvd_note': 'of no origin'}.items() <= results(out)['protocol'].items()
    assert f'  FVD {np.mean(distances):.2f} ± ' in capsys.readouterr().out
    with pytest.raises(UserError, match='has 5 videos of 9 frames; the Fréchet video distance ne'):
        evaluate(run_dir, tmp_path, out, *more, '--n_videos', '5')


# Models and data

def test_frames_of_another_size(lpips_dir, tmp_path, call):
    """Training, all metrics and pictures of Moving MNIST; a missing set is named."""
    data, xp_dir = tmp_path / 'data', tmp_path / 'run'
    make_test_set.main(['--data_dir', str(data), '--seq_len', '8', '--digit_source', 'mnist5k',
                        '--frame_size', '32'])
    train.main([*TINY, '--nx', '32', '--archi', 'vgg', '--skipco', *steps(1, 1), '--data_dir',
                str(data), '--save_path', str(xp_dir)])
    argv = ['--xp_dir', xp_dir, '--data_dir', data, '--lpips_dir', lpips_dir, '--nt_gen', 8,
            '--n_samples', 2, '--n_videos', 2, '--n_pictures', 1]
    code, out, err = call(script.main, *argv)
    assert code == 0, err
    assert results(xp_dir)['protocol']['size'] == 32
    assert '2 videos of smmnist, 32 x 32, 3 conditioning frames' in out
    assert arrays(xp_dir, 'random_1')['samples'].shape == (2, 5, 32, 32, 1)
    (data / 'smmnist5k_test_2digits_32.npz').unlink()
    code, _, err = call(script.main, *argv)
    assert code == 2 and '_2digits_32.npz does not exist; make it with: python' in err


def test_published_checkpoint_folder(run_dir, data_dir, tmp_path, capsys):
    """Only the keys of published configurations, and the weights."""
    config = json.loads((run_dir / 'config.json').read_text())
    keys = ('archi dataset deterministic max_speed n_euler_steps nc nf nh_inf nh_res nhx '
            'nlayers_inf nlayers_res nt_cond nt_inf ndigits nx ny nz seq_len_test skipco').split()
    (tmp_path / 'config.json').write_text(json.dumps({k: config[k] for k in keys}))
    shutil.copy(run_dir / 'model.pt', tmp_path)
    shutil.copy(data_dir / 'smmnist5k_test_2digits_64.npz',
                tmp_path / 'smmnist_test_2digits_64.npz')
    argv = ['--xp_dir', str(tmp_path), '--data_dir', str(tmp_path), '--metrics', 'psnr',
            '--n_samples', '1', '--n_videos', '2', '--n_pictures', '0']
    script.main(argv)
    samples = arrays(tmp_path, 'psnr_best')['samples']
    assert samples.shape == (2, 2, 64, 64, 1)  # seq_len_test 5, nt_cond 3
    assert ('note: published scores on this test set use --nt_gen 25 with 5 conditioning frames; '
            'found --nt_gen 5 with 3\n') in capsys.readouterr().err
    script.main([*argv, '--data_dir', str(data_dir), '--digit_source', 'mnist5k', '--overwrite'])
    assert results(tmp_path)['protocol']['test_set'] == 'smmnist5k_test_2digits_64.npz'


@pytest.mark.skipif(not has_bfloat16(torch.device('cpu')), reason='this CPU has no bfloat16')
def test_half_precision(run_dir, data_dir, out_dir, tmp_path):
    full, half = arrays(out_dir, 'results'), evaluate(run_dir, data_dir, tmp_path, '--torch_amp')
    for name, tolerance in (('psnr', 0.05), ('ssim', 0.005)):
        assert half[name].dtype == np.float32 and (half[name] != full[name]).any()
        assert abs(half[name] - full[name]).max() < tolerance
    assert results(tmp_path)['protocol']['precision'] == 'bfloat16'


@pytest.mark.parametrize('more, message', [
    (['--nt_gen', '3'], '--nt_cond 3 and --nt_gen 3 do not fit'),
    (['--nt_cond', '1'], 'the model infers y_0 from 2 frames'),
    (['--nt_gen', '9'], '9 frames or more of 64 x 64'),
    (['--n_videos', '501'], 'the test set has 500'),
    (['--fvd_samples', '7'], '--fvd_samples 7 is more than --n_samples 6'),
    (['--model_name', 'none.pt'], 'none.pt: No such file'),
    (['--device', '99'], 'CUDA devices found'),
    (['--xp_dir', 'nowhere'], 'nowhere/config.json: No such file'),
    (['--data_dir', 'nowhere'], 'make it with'),
    (['--lpips_dir', 'nowhere', '--metrics', 'lpips'], 'is not a folder'),
])
def test_errors_are_one_sentence(run_dir, data_dir, tmp_path, more, message, call):
    found = call(script.main, *options(run_dir, data_dir, tmp_path / 'out', *more))
    assert found.code == 2 and re.search(message, found.err) and found.err.count('\n') == 1
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name, value, message', [
    ('dynamics.module.3.1.bias', 1e38, 'the states of the model grow beyond float32'),
    ('decoder.first_upconv.0.weight', 3e38, 'model.pt predicts NaN')])
def test_values_beyond_float32(name, value, message, run_dir, data_dir, tmp_path):
    shutil.copy(run_dir / 'config.json', tmp_path)
    weights = load(run_dir / 'model.pt')
    weights[name][:] = value
    save(tmp_path / 'model.pt', weights)
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path, data_dir, tmp_path / 'out')
