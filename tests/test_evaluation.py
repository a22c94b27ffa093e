"""`test.py` on a tiny model that `train.py` trained: files, scores, protocol, baselines, errors."""

import errno
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from args import load_config
from conftest import ROOT, TINY, steps
from data import load_test
from metrics.frame import psnr, ssim
from model import build_model
from sampling import Futures, draw_noise, quantise
from test_metrics import random_backbone
from files import UserError, replacing_results, sha256, write_npz
from checkpoint import load_model, load_weights
from utils import to_video

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
        'dataset': 'smmnist', 'test_set': 'smmnist5k_test_2digits_64.npz', 'clips': 5, 'conditioning_frames': 3, 'predicted_frames': 5,
        'samples': 6, 'n_euler_steps': 1, 'seed': 1,
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
    other = evaluate(run_dir, data_dir, tmp_path / 'other', '--seed', '2')  # another spelling of --test_seed
    assert json.loads((tmp_path / 'other' / 'results.json').read_text())['protocol']['seed'] == 2
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


def fail_on_videos(monkeypatch, error):
    """Large files, which are written after the scores, are not."""
    def write(path, **arrays):
        if 'samples' in arrays:
            raise error
        write_npz(path, **arrays)
    monkeypatch.setattr(evaluation, 'write_npz', write)


@pytest.mark.parametrize('error', [KeyboardInterrupt(), OSError(errno.ENOSPC, 'No space left on device')])
def test_failure_among_large_files_leaves_the_earlier_results(error, run_dir, data_dir, tmp_path, monkeypatch, capsys):
    evaluate(run_dir, data_dir, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    fail_on_videos(monkeypatch, error)
    capsys.readouterr()
    with pytest.raises(type(error)):
        evaluate(run_dir, data_dir, tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before
    assert re.search(r'PSNR \d+\.\d\d ± ', capsys.readouterr().out)


def test_first_scores_are_there_before_large_files(run_dir, data_dir, out_dir, tmp_path, monkeypatch):
    fail_on_videos(monkeypatch, OSError(errno.ENOSPC, 'No space left on device'))
    with pytest.raises(OSError):
        evaluate(run_dir, data_dir, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {'results.json', 'results.npz'}
    np.testing.assert_array_equal(arrays(tmp_path, 'results')['psnr'], arrays(out_dir, 'results')['psnr'])


@pytest.mark.parametrize('change, more, message', [
    ({}, ['--n_samples', '3'], 'with samples 6, found 3 now; give another --out_dir, or --overwrite'),
    ({}, ['--model_name', 'model_6.pt', '--nt_cond', '4'], 'with conditioning_frames 3, found 4'),
    ({}, ['--model_name', 'model_6.pt'], 'with checkpoint model.pt, found model_6.pt'),
    ({}, ['--metrics', 'psnr'], 'has scores of ssim, which are not computed now'),
    ({'scores': {'psnr': {}, 'fvd': {}}}, [], 'has scores of fvd'),
    ({'protocol': None}, [], 'is not of an evaluation'), ('{"sco', [], 'not readable as JSON .*; give another --out_dir'),
    (None, [], 'results.npz of an unknown protocol')])
def test_results_of_another_protocol_stop_before_any_work(change, more, message, run_dir, data_dir, tmp_path, monkeypatch):
    evaluate(run_dir, data_dir, tmp_path)
    path = tmp_path / 'results.json'
    if change is None:
        path.unlink()
    else:
        path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    with monkeypatch.context() as patch, pytest.raises(UserError, match=message):
        patch.setattr(evaluation, 'evaluate', None)
        evaluate(run_dir, data_dir, tmp_path, *more)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before
    evaluate(run_dir, data_dir, tmp_path, *more, '--overwrite')
    assert path.read_bytes() != before.get(path)


def test_same_protocol_may_be_repeated(run_dir, data_dir, lpips_dir, tmp_path):
    """Also by another name of the weights, with more scores, and after a version that told less or other things."""
    evaluate(run_dir, data_dir, tmp_path)
    result = json.loads((tmp_path / 'results.json').read_text())
    del result['protocol']['samples'], result['protocol']['lpips_version']
    result['protocol']['weather'] = 'fine'
    (tmp_path / 'results.json').write_text(json.dumps(result))
    xp_dir = tmp_path / 'copy'
    xp_dir.mkdir()
    shutil.copy(run_dir / 'config.json', xp_dir)
    shutil.copy(run_dir / 'model.pt', xp_dir / 'same.pt')
    evaluate(xp_dir, data_dir, tmp_path, '--model_name', 'same.pt', '--metrics', 'psnr', 'ssim', 'lpips', '--lpips_dir', str(lpips_dir))
    assert json.loads((tmp_path / 'results.json').read_text())['scores'].keys() == {'psnr', 'ssim', 'lpips'}


def test_printed_files_are_there(run_dir, data_dir, tmp_path, capsys):
    evaluate(run_dir, data_dir, tmp_path)
    out = capsys.readouterr().out
    pictures = re.search('^pictures: (.*)$', out, re.M)[1].split(', ')
    assert len(pictures) == 4 and all(Path(path).is_file() for path in pictures)
    files = re.search(f'^results in {tmp_path}: (.*)$', out, re.M)[1].split(', ')
    assert {p.name for p in tmp_path.glob('*.*')} == set(files)


def test_evaluation_of_a_run_that_goes_on(run_dir, data_dir, tmp_path):
    """What an evaluation that is running, or was killed, has in the folder of a run does not stop training there."""
    folder = tmp_path / 'run'
    assert train.main([*TINY, *steps(3, 0), '--data_dir', str(data_dir), '--save_path', str(folder)]) == 0
    with replacing_results(folder, evaluation.RESULTS) as partial:
        (partial / 'results.json').touch()
        assert train.main(['--resume', '--save_path', str(folder)]) == 0
        assert (partial / 'results.json').exists()


def test_one_sample_is_the_best_and_the_worst(run_dir, data_dir, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(evaluation, 'write_npz', lambda path, **arrays: [seen.update({path.stem: arrays.get('samples')}), write_npz(path, **arrays)])
    evaluate(run_dir, data_dir, tmp_path, '--n_samples', '1')
    same = {'random_1', 'psnr_best', 'psnr_worst', 'ssim_best', 'ssim_worst'}
    assert seen.keys() == same | {'cond_rec', 'results'} == {p.stem for p in tmp_path.glob('*.npz')}
    assert len({id(seen[name]) for name in same}) == 1  # one array in memory
    for name in same:
        np.testing.assert_array_equal(arrays(tmp_path, name)['samples'], seen['random_1'])


def test_published_checkpoint_folder(run_dir, data_dir, tmp_path, capsys):
    """Only the keys of published configurations, and the weights."""
    config = json.loads((run_dir / 'config.json').read_text())
    keys = ('archi dataset deterministic max_speed n_euler_steps nc nf nh_inf nh_res nhx nlayers_inf nlayers_res nt_cond nt_inf ndigits nx '
            'ny nz seq_len_test skipco').split()
    (tmp_path / 'config.json').write_text(json.dumps({k: config[k] for k in keys}))
    shutil.copy(run_dir / 'model.pt', tmp_path)
    shutil.copy(data_dir / 'smmnist5k_test_2digits_64.npz', tmp_path / 'smmnist_test_2digits_64.npz')
    evaluation.main(['--xp_dir', str(tmp_path), '--data_dir', str(tmp_path), '--metrics', 'psnr', '--n_samples', '1', '--n_videos', '2'])
    assert arrays(tmp_path, 'psnr_best')['samples'].shape == (2, 2, 64, 64, 1)  # seq_len_test 5, nt_cond 3
    assert 'note: published scores on this test set are of --nt_gen 25, with 5 frames given; found --nt_gen 5, with 3\n' in capsys.readouterr().err


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


def test_untrained_baseline_is_another_model_in_another_folder(run_dir, data_dir, out_dir, tmp_path):
    run_dir = shutil.copytree(run_dir, tmp_path / 'run')
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
        assert gif.n_frames == 8 and gif.info['loop'] == 0 and gif.info['duration'] == 200 and gif.width > 6 * 192


def test_colour_pictures(tmp_path):
    from pictures import animation, strip
    video = np.zeros((3, 64, 64, 3), np.uint8)
    video[..., 0] = 200
    strip(tmp_path / 'a.png', {'truth': video, 'best': video[2:]}, 2)
    animation(tmp_path / 'a.gif', {'truth': video}, 2, 4)
    for name in ('a.png', 'a.gif'):
        colours = Image.open(tmp_path / name).convert('RGB').getcolors(10 ** 6)
        assert (200, 0, 0) in [c for _, c in colours]
    with Image.open(tmp_path / 'a.gif') as gif:
        assert gif.info['duration'] == 250  # milliseconds: 4 frames a second


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


def test_models_are_loaded_without_being_initialised(run_dir, monkeypatch):
    """Sizes that do not fit the weights take neither memory nor time; those that do give the same model, in the same layout."""
    config = load_config(run_dir)
    expected = build_model(config)
    load_weights(expected, run_dir / 'model.pt')
    monkeypatch.setattr(torch.nn.init, 'orthogonal_', None)
    found = load_model(config, run_dir / 'model.pt', 'cpu')
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    for (name, a), (other, b) in zip(expected.state_dict().items(), found.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b) and a.dtype == b.dtype, name
        assert all(m == n for m, n, size in zip(a.stride(), b.stride(), a.shape) if size > 1), name  # a single one may have any stride
    config.nh_res = 10 ** 6  # 4 TB
    with pytest.raises(UserError, match='does not fit the configuration'):
        load_model(config, run_dir / 'model.pt', 'cpu')


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
    bias = weights['w_inf.0.bias']
    for value, message in ((bias.to_sparse(), 'not a file of weights .* .w_inf.0.bias is a sparse'), (bias.to('meta'), 'is a sparse, meta'),
                           (bias + 1j, 'quantised or complex tensor'), (bias.long(), 'of another shape or kind, the first is w_inf.0.bias')):
        torch.save({**weights, 'w_inf.0.bias': value}, tmp_path / 'model.pt')
        with pytest.raises(UserError, match=message):
            evaluate(tmp_path, data_dir, tmp_path / 'out')
    torch.save([1, 2], tmp_path / 'model.pt')
    with pytest.raises(UserError, match='not a plain state_dict'):
        evaluate(tmp_path, data_dir, tmp_path / 'out')

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / 'owned'), 'w'))
    torch.save(Evil(), tmp_path / 'model.pt')
    with pytest.raises(UserError, match=r'model.pt is not a file of weights that can be read safely \(it holds more than .*\); take another one$'):
        evaluate(tmp_path, data_dir, tmp_path / 'out')
    assert not (tmp_path / 'owned').exists()
