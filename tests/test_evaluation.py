"""`test.py` on a tiny model trained by `train.py`: files, scores, protocol, baselines, errors."""

import errno
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Script
from test_metrics import random_backbone

import evaluation.output
import evaluation.run
import evaluation.task
import train
from args import load_config
from checkpoint import load, load_model, load_weights, save
from conftest import ROOT, TINY, steps
from data import load_test
from distributed import Stopped
from files import UserError, sha256
from metrics.frame import psnr, ssim
from metrics.scoring import quantise
from metrics.summary import score_lines
from model import build_model
from pictures.frames import animation, strip
from preprocessing.mmnist import make_test_set
from results import replacing_results
from sampling import Futures, draw_noise
from utils import to_video

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
    """Results with all metrics and pictures."""
    folder = tmp_path_factory.mktemp('out')
    script.main(['--xp_dir', str(run_dir), '--data_dir', str(data_dir),
                 '--lpips_dir', str(lpips_dir), '--out_dir', str(folder), *OPTIONS,
                 '--n_pictures', '2'])
    return folder


@pytest.fixture(scope='module')
def earlier(run_dir, data_dir, tmp_path_factory):
    """Results with PSNR and SSIM, not to be changed."""
    folder = tmp_path_factory.mktemp('earlier')
    evaluate(run_dir, data_dir, folder)
    return folder


@pytest.fixture
def earlier_copy(earlier, tmp_path):
    return shutil.copytree(earlier, tmp_path / 'copy')


def evaluate(xp_dir, data_dir, out_dir, *more):
    script.main(['--xp_dir', str(xp_dir), '--data_dir', str(data_dir), '--out_dir', str(out_dir),
                 '--metrics', 'psnr', 'ssim', *OPTIONS, '--n_pictures', '0', *more])
    return arrays(out_dir, 'results')


def arrays(folder, name):
    with np.load(folder / f'{name}.npz', allow_pickle=False) as f:
        return {k: f[k] for k in f.files}


def results(folder):
    return json.loads((folder / 'results.json').read_text())


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def draw_samples(model, config, data_dir):
    """Samples (S, T, B, C, H, W) of the first videos, as OPTIONS ask for, and the truth."""
    x = to_video(torch.from_numpy(load_test(config, data_dir, 8).videos(range(5))), 'cpu')
    samples = Futures(model, x[:3], 5, draw_noise(model, 1, 'test', range(5), 6, 8))
    return torch.stack(list(samples)), x[3:]


def test_help_and_misspelt_options_do_not_wait_for_pytorch():
    code = ('import runpy, sys\ntry: runpy.run_path("test.py", run_name="__main__")\n'
            'finally: print("torch" in sys.modules)')
    misspelt = ['--xp_dir', 'x', '--data_dir', 'd', '--n_sample', '3']
    for argv, returncode in ((['--help'], 0), (misspelt, 2)):
        done = subprocess.run([sys.executable, '-c', code, *argv], cwd=ROOT, capture_output=True,
                              text=True)
        assert done.returncode == returncode and done.stdout.endswith('False\n')
    assert done.stderr == 'error: unknown option --n_sample; did you mean --n_samples?\n'


def test_published_files(out_dir):
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


def test_results_json_has_scores_and_protocol(out_dir, run_dir, data_dir):
    result = results(out_dir)
    scores = arrays(out_dir, 'results')
    for name in ('psnr', 'ssim', 'lpips'):
        values = scores[name]
        score, std = result['scores'][name], np.sqrt(((values - values.mean()) ** 2).sum() / 5)
        assert score['mean'] == pytest.approx(values.mean(), rel=1e-6)
        assert score['ci95'] == pytest.approx(1.96 * std / np.sqrt(5), rel=1e-4)
    assert result['protocol'] == {
        'dataset': 'smmnist', 'test_set': 'smmnist5k_test_2digits_64.npz', 'clips': 5,
        'conditioning_frames': 3, 'predicted_frames': 5, 'samples': 6, 'n_euler_steps': 1,
        'seed': 1, 'lpips_version': '0.1', 'baseline': None, 'checkpoint': 'model.pt',
        'checkpoint_sha256': sha256(run_dir / 'model.pt'), 'digits': 'mnist5k', 'ndigits': 2,
        'max_speed': 4, 'deterministic': False, 'precision': 'float32', 'size': 64}
    assert result['data_dir'] == str(data_dir) and '<metric>_t' in result['results.npz']


def test_scores_and_samples_are_those_of_a_plain_loop(out_dir, run_dir, data_dir):
    config = load_config(run_dir)
    model = build_model(config).eval().requires_grad_(False)
    load_weights(model, run_dir / 'model.pt')
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


def test_batches_do_not_change_the_scores(run_dir, data_dir, out_dir, tmp_path):
    found = evaluate(run_dir, data_dir, tmp_path, '--batch_size', '5')
    for name, values in found.items():
        np.testing.assert_allclose(values, arrays(out_dir, 'results')[name], rtol=1e-5)
    # --seed is another spelling of --test_seed
    other = evaluate(run_dir, data_dir, tmp_path / 'other', '--seed', '2')
    assert results(tmp_path / 'other')['protocol']['seed'] == 2
    assert not np.allclose(other['psnr'], found['psnr'], rtol=1e-6)


def test_fewer_samples_and_other_lengths(run_dir, data_dir, tmp_path):
    (tmp_path / 'pictures').mkdir()
    ours = 'random_5.npz', 'lpips_best.npz', 'pictures/video_0009.gif'
    for name in (*ours, 'notes_best.npz'):
        (tmp_path / name).touch()
    record = {'scores': {}, 'protocol': {}, 'files': ours}
    (tmp_path / 'results.json').write_text(json.dumps(record))
    evaluate(run_dir, data_dir, tmp_path, '--n_samples', '2', '--nt_gen', '7', '--nt_cond', '4',
             '--n_euler_steps', '3', '--model_name', 'model_best.pt', '--n_pictures', '1')
    assert sorted(p.name for p in tmp_path.glob('random*')) == ['random_1.npz', 'random_2.npz']
    best = {p.name for p in tmp_path.glob('*_best.npz')}
    assert best == {'psnr_best.npz', 'ssim_best.npz', 'notes_best.npz'}
    assert {p.name for p in (tmp_path / 'pictures').iterdir()} == {'video_0000.png',
                                                                   'video_0000.gif'}
    assert arrays(tmp_path, 'psnr_best')['samples'].shape[1] == 3
    assert arrays(tmp_path, 'cond_rec')['samples'].shape[1] == 4
    protocol = results(tmp_path)['protocol']
    assert (protocol['n_euler_steps'], protocol['samples']) == (3, 2)
    assert (protocol['checkpoint'], protocol['lpips_version']) == ('model_best.pt', None)


def test_files_of_the_user_stay(run_dir, data_dir, tmp_path):
    (tmp_path / 'pictures').mkdir()
    mine = [tmp_path / 'random_1.npz', tmp_path / 'pictures' / 'video_1_mine.png']
    for path in mine:
        path.write_text('mine')
    with pytest.raises(UserError, match=r'(random_1.npz|video_1_mine.png) is not listed as a '
                                        r'result in .*results.json; move it, .* or --overwrite'):
        evaluate(run_dir, data_dir, tmp_path)
    assert contents(tmp_path) == {path: b'mine' for path in mine}
    evaluate(run_dir, data_dir, tmp_path, '--overwrite')
    assert 'random_1.npz' in results(tmp_path)['files'] and not mine[1].exists()
    evaluate(run_dir, data_dir, tmp_path)  # replaces what is listed
    mine[1].write_text('mine')
    with pytest.raises(UserError, match='video_1_mine.png is not listed'):
        evaluate(run_dir, data_dir, tmp_path)


def fail_on_samples(monkeypatch, error):
    """Make writing samples fail, which comes after the scores."""
    def write(*_):
        raise error
    monkeypatch.setattr(evaluation.output, 'write_npz_parts', write)


@pytest.mark.parametrize('error', [KeyboardInterrupt(),
                                   OSError(errno.ENOSPC, 'No space left on device')])
def test_failure_among_samples_leaves_the_earlier_results(error, run_dir, data_dir, earlier_copy,
                                                          monkeypatch, capsys):
    before = contents(earlier_copy)
    fail_on_samples(monkeypatch, error)
    with pytest.raises(type(error)):
        evaluate(run_dir, data_dir, earlier_copy)
    assert re.search(r'PSNR \d+\.\d\d ± ', capsys.readouterr().out)
    after = contents(earlier_copy)
    assert {path: after[path] for path in before} == before
    assert {path.parent.name for path in after.keys() - before.keys()} == {'.results.partial'}
    monkeypatch.undo()
    monkeypatch.setattr(evaluation.run, 'evaluate_batch', None)  # all batches are there
    evaluate(run_dir, data_dir, earlier_copy)
    assert contents(earlier_copy) == before


@pytest.mark.parametrize('change, more, message', [
    ({}, ['--n_samples', '3'],
     'with samples 6, found 3 now; use another --out_dir, or --overwrite'),
    ({}, ['--model_name', 'model_6.pt', '--nt_cond', '4'],
     'with conditioning_frames 3, found 4'),
    ({}, ['--model_name', 'model_6.pt'], 'with checkpoint model.pt, found model_6.pt'),
    ({}, ['--metrics', 'psnr'], 'has scores that are not computed now: ssim'),
    ({'scores': {'psnr': {}, 'fvd': {}}}, [], 'has scores that are not computed now: fvd'),
    ({'protocol': None}, [], 'is not from an evaluation'),
    ('{"sco', [], 'not readable as JSON .*; use another --out_dir'),
    (None, [], 'results.npz of an unknown protocol')])
def test_results_of_another_protocol_stop_before_any_work(change, more, message, run_dir, data_dir,
                                                          earlier_copy, monkeypatch):
    path = earlier_copy / 'results.json'
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    else:
        path.write_text(json.dumps(results(earlier_copy) | change))
    before = contents(earlier_copy)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=message):
        patch.setattr(evaluation.run, 'evaluate', None)
        evaluate(run_dir, data_dir, earlier_copy, *more)
    assert contents(earlier_copy) == before
    evaluate(run_dir, data_dir, earlier_copy, *more, '--overwrite')
    assert path.read_bytes() != before.get(path)


def test_same_protocol_may_be_repeated(run_dir, data_dir, lpips_dir, earlier_copy, tmp_path):
    """Also with another name of the weights and more scores, and after other versions."""
    result = results(earlier_copy)
    del result['protocol']['samples'], result['protocol']['lpips_version']
    result['protocol']['weather'] = 'fine'
    (earlier_copy / 'results.json').write_text(json.dumps(result))
    xp_dir = tmp_path / 'same'
    xp_dir.mkdir()
    shutil.copy(run_dir / 'config.json', xp_dir)
    shutil.copy(run_dir / 'model.pt', xp_dir / 'same.pt')
    evaluate(xp_dir, data_dir, earlier_copy, '--model_name', 'same.pt',
             '--metrics', 'psnr', 'ssim', 'lpips', '--lpips_dir', str(lpips_dir))
    assert results(earlier_copy)['scores'].keys() == {'psnr', 'ssim', 'lpips'}


def test_printed_files_exist(run_dir, data_dir, tmp_path, capsys):
    evaluate(run_dir, data_dir, tmp_path, '--n_samples', '2', '--n_pictures', '2')
    out = capsys.readouterr().out
    drawn = re.search('^pictures: (.*)$', out, re.M)[1].split(', ')
    assert len(drawn) == 4 and all(Path(path).is_file() for path in drawn)
    files = re.search(f'^results in {tmp_path}: (.*)$', out, re.M)[1].split(', ')
    assert {p.name for p in tmp_path.glob('*.*')} == set(files)


def test_evaluation_does_not_stop_training_in_the_same_folder(run_dir, tmp_path):
    """Neither a running evaluation nor a killed one, by the files that it has there."""
    folder = shutil.copytree(run_dir, tmp_path / 'run')
    with replacing_results(folder, evaluation.task.RESULTS, 'results.json') as partial:
        (partial / 'results.json').write_text('{}')
        assert train.main(['--resume', '--save_path', str(folder)]) == 0
        assert (partial / 'results.json').exists()


def test_states_beyond_float32_are_told_from_damaged_weights(run_dir, data_dir, tmp_path):
    shutil.copy(run_dir / 'config.json', tmp_path)
    weights = load(run_dir / 'model.pt')
    weights['dynamics.module.3.1.bias'][:] = 1e38
    save(tmp_path / 'model.pt', weights)
    with pytest.raises(UserError, match='the states of the model grow beyond float32 at frame 3;'):
        evaluate(tmp_path, data_dir, tmp_path / 'out')


def test_one_sample_is_the_best_and_the_worst(run_dir, data_dir, tmp_path):
    evaluate(run_dir, data_dir, tmp_path, '--n_samples', '1')
    same = {'random_1', 'psnr_best', 'psnr_worst', 'ssim_best', 'ssim_worst'}
    assert {p.stem for p in tmp_path.glob('*.npz')} == same | {'cond_rec', 'results'}
    assert len({(tmp_path / f'{name}.npz').read_bytes() for name in same}) == 1


# Interruptions

PATCH = f"""
import os, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
import evaluation.run
evaluate_batch, done = evaluation.run.evaluate_batch, []
def evaluate_then_interrupt(*args):
    if len(done) == 1:
        os.kill(os.getpid(), int(os.environ['SIGNAL']))
    done.append(evaluate_batch(*args))
    return done[-1]
evaluation.run.evaluate_batch = evaluate_then_interrupt
runpy.run_path({str(ROOT / 'test.py')!r}, run_name='__main__')
"""  # test.py that gets a signal in its second batch


def test_interrupted_evaluation_continues(run_dir, data_dir, lpips_dir, out_dir, tmp_path):
    """After Ctrl-C and a kill, with the results of an uninterrupted call, byte for byte."""
    patched, folder = tmp_path / 'patched.py', tmp_path / 'out'
    patched.write_text(PATCH)
    folder.mkdir()
    earlier = '{"files": ["results.json"]}'
    (folder / 'results.json').write_text(earlier)
    argv = ['--xp_dir', run_dir, '--data_dir', data_dir, '--lpips_dir', lpips_dir,
            '--out_dir', folder, *OPTIONS, '--n_pictures', '2', '--overwrite']
    for number, code, done in ((signal.SIGINT, 130, 2), (signal.SIGKILL, -9, 4)):
        job = Script(patched, *argv, env={'SIGNAL': str(int(number)), 'OMP_NUM_THREADS': '1'})
        out, err = job.communicate()
        assert job.returncode == code and (folder / 'results.json').read_text() == earlier
        assert len(list(folder.glob('.results.partial/0*.npz'))) == done // 2
        if number == signal.SIGINT:
            assert 'SIGINT: keeping the finished batches' in err
            assert re.search('scores so far, of 2 of 5 videos:\n PSNR .* dB\n SSIM .*\nLPIPS .*\n'
                             f'kept in {folder}/.results.partial; repeat the command', out)
    assert 'continuing: 2 of 5 videos are done' in out
    job = Script('test.py', *argv)
    assert 'continuing: 4 of 5 videos are done' in job.communicate()[0] and job.returncode == 0
    expected, found = contents(out_dir), contents(folder)
    assert {p.relative_to(folder): v for p, v in found.items()} == {
        p.relative_to(out_dir): v for p, v in expected.items()}


def test_interruption_of_the_first_batch_leaves_nothing(run_dir, data_dir, tmp_path, monkeypatch,
                                                        call):
    def interrupt(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        raise Stopped
    monkeypatch.setattr(evaluation.run, 'evaluate_batch', interrupt)
    code, out, _ = call(script.main, '--xp_dir', run_dir, '--data_dir', data_dir, '--out_dir',
                        tmp_path, '--metrics', 'psnr', *OPTIONS)
    assert code == 143 and 'interrupted before the end of the first batch' in out
    assert not list(tmp_path.iterdir())


def test_interrupted_evaluation_of_another_task(run_dir, data_dir, earlier, tmp_path, monkeypatch):
    fail_on_samples(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        evaluate(run_dir, data_dir, tmp_path)
    monkeypatch.undo()
    for option, difference in (('--n_samples', 'samples 6, found 3'), ('--test_seed', 'seed 1, '),
                               ('--batch_size', 'batch_size 2, found 3')):
        message = f'.results.partial holds an interrupted evaluation with {difference}.* now; '
        with pytest.raises(UserError, match=f'{message}repeat its command, or .* --overwrite'):
            evaluate(run_dir, data_dir, tmp_path, option, '3')
    evaluate(run_dir, data_dir, tmp_path, '--n_samples', '3', '--overwrite')
    assert not (tmp_path / '.results.partial').exists()
    assert results(tmp_path)['protocol']['samples'] == 3


def test_damaged_batch(run_dir, data_dir, tmp_path, monkeypatch):
    fail_on_samples(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        evaluate(run_dir, data_dir, tmp_path)
    path = tmp_path / '.results.partial' / '000001.npz'
    path.write_bytes(path.read_bytes()[:1000])
    monkeypatch.undo()
    with pytest.raises(UserError, match='000001.npz is damaged .*; delete it and repeat the comm'):
        evaluate(run_dir, data_dir, tmp_path)
    path.unlink()
    assert len(evaluate(run_dir, data_dir, tmp_path)['psnr']) == 5


# Sizes

@pytest.mark.parametrize('nx', [32, 128])
def test_other_sizes_of_frames(nx, lpips_dir, tmp_path, call):
    """Training, all metrics and pictures of Moving MNIST; a set of another size is named."""
    data, xp_dir = tmp_path / 'data', tmp_path / 'run'
    make_test_set.main(['--data_dir', str(data), '--seq_len', '8', '--digit_source', 'mnist5k',
                        '--frame_size', str(nx)])
    train.main([*TINY, '--nx', str(nx), '--archi', 'vgg', '--skipco', *steps(1, 1), '--data_dir',
                str(data), '--save_path', str(xp_dir)])
    argv = ['--xp_dir', xp_dir, '--data_dir', data, '--lpips_dir', lpips_dir, '--nt_gen', 8,
            '--n_samples', 2, '--n_videos', 2, '--n_pictures', 1]
    code, out, err = call(script.main, *argv)
    assert code == 0, err
    record = results(xp_dir)
    assert record['protocol']['size'] == nx
    assert record['scores'].keys() == {'psnr', 'ssim', 'lpips'}
    assert f'2 videos of smmnist, {nx} x {nx}, 3 conditioning frames' in out
    assert arrays(xp_dir, 'random_1')['samples'].shape == (2, 5, nx, nx, 1)
    with Image.open(xp_dir / 'pictures' / 'video_0000.png') as picture:
        assert picture.width > 8 * max(nx, 192 // nx * nx)
    path = data / f'smmnist5k_test_2digits_{nx}.npz'
    moved = path.rename(tmp_path / path.name)
    code, _, err = call(script.main, *argv)
    assert code == 2 and f'{path} does not exist; make it with: ' in err
    assert f'--frame_size {nx}' in err
    np.savez(path, sequences=arrays(moved.parent, moved.stem)['sequences'][..., 1:, 1:])
    code, _, err = call(script.main, *argv)
    assert code == 2 and f'{path}: sequences must be uint8 (T, N, {nx}, {nx}), found' in err


# Precision, checkpoints

def test_half_precision(run_dir, data_dir, earlier, tmp_path):
    full, half = arrays(earlier, 'results'), evaluate(run_dir, data_dir, tmp_path, '--torch_amp')
    for name, tolerance in (('psnr', 0.05), ('ssim', 0.005)):
        assert half[name].dtype == np.float32 and (half[name] != full[name]).any()
        assert abs(half[name] - full[name]).max() < tolerance
    assert results(tmp_path)['protocol']['precision'] == 'bfloat16'
    with pytest.raises(UserError, match='with precision bfloat16, found float32 now'):
        evaluate(run_dir, data_dir, tmp_path)
    path = tmp_path / 'results.json'  # of an earlier version
    record = results(earlier)
    del record['protocol']['precision'], record['protocol']['size']
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match='with precision float32, found bfloat16 now'):
        evaluate(run_dir, data_dir, tmp_path, '--torch_amp')
    evaluate(run_dir, data_dir, tmp_path)  # the same size, 64
    with pytest.raises(UserError, match='last_frame has no network; leave it out'):
        evaluate(run_dir, data_dir, tmp_path, '--torch_amp', '--baseline', 'last_frame')


def test_note_on_a_better_checkpoint(run_dir, data_dir, tmp_path, capsys):
    folder = shutil.copytree(run_dir, tmp_path / 'run')
    (folder / 'log.csv').write_text('step,val_psnr\n10,7.25\n15,\n20,7\n')
    evaluate(folder, data_dir, tmp_path / 'out')
    assert ('note: model_best.pt was better in validation, 7.25 dB against 7.00 dB; '
            '--model_name model_best.pt evaluates it\n') in capsys.readouterr().err
    evaluate(folder, data_dir, tmp_path / 'best', '--model_name', 'model_best.pt')
    (folder / 'log.csv').write_text('step,val_psnr\n10,7\n20,7.25\n')
    evaluate(folder, data_dir, tmp_path / 'out')
    assert 'model_best.pt was better' not in capsys.readouterr().err


def test_scores_next_to_the_published_ones():
    table = {'psnr': {'mean': 20., 'ci95': 0.5}, 'lpips': {'mean': 0.1, 'ci95': None},
             'fvd': {'mean': 300., 'ci95': 4.}}
    protocol = {'dataset': 'kth', 'conditioning_frames': 10, 'predicted_frames': 30, 'clips': 1000,
                'samples': 100, 'fvd': {}}
    lines = [' PSNR 20.00 ± 0.50 dB   published: 29.69 ± 0.32',
             'LPIPS 0.1000 (one video)   published: 0.0736 ± 0.0029',
             '  FVD 300.00 ± 4.00   published: 222 ± 3']
    assert score_lines(table, protocol) == lines
    protocol['clips'] = 50
    last = 'published: 1,000 videos, best of 100; here: 50, best of 100'
    assert score_lines(table, protocol) == [*lines, last]
    protocol['fvd'] = {'weights': 'unknown'}  # other distances
    assert score_lines(table, protocol)[2] == '  FVD 300.00 ± 4.00'
    protocol['predicted_frames'] = 20
    assert score_lines(table, protocol) == [line.partition('   ')[0] for line in lines[:2]] + [
        '  FVD 300.00 ± 4.00']


# Models

def test_published_checkpoint_folder(run_dir, data_dir, tmp_path, capsys):
    """Only the keys of published configurations, and the weights."""
    config = json.loads((run_dir / 'config.json').read_text())
    keys = ('archi dataset deterministic max_speed n_euler_steps nc nf nh_inf nh_res nhx '
            'nlayers_inf nlayers_res nt_cond nt_inf ndigits nx ny nz seq_len_test skipco').split()
    (tmp_path / 'config.json').write_text(json.dumps({k: config[k] for k in keys}))
    shutil.copy(run_dir / 'model.pt', tmp_path)
    shutil.copy(data_dir / 'smmnist5k_test_2digits_64.npz',
                tmp_path / 'smmnist_test_2digits_64.npz')
    script.main(['--xp_dir', str(tmp_path), '--data_dir', str(tmp_path), '--metrics', 'psnr',
                 '--n_samples', '1', '--n_videos', '2', '--n_pictures', '0'])
    samples = arrays(tmp_path, 'psnr_best')['samples']
    assert samples.shape == (2, 2, 64, 64, 1)  # seq_len_test 5, nt_cond 3
    assert ('note: published scores on this test set use --nt_gen 25 with 5 conditioning frames; '
            'found --nt_gen 5 with 3\n') in capsys.readouterr().err


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
    assert (protocol['samples'], protocol['checkpoint']) == (1, None)


def test_perfect_prediction_has_an_infinite_psnr(run_dir, data_dir, tmp_path, capsys):
    with np.load(data_dir / 'smmnist5k_test_2digits_64.npz', allow_pickle=False) as f:
        still = np.repeat(f['sequences'][:1, :5], 8, 0)
    np.savez_compressed(tmp_path / 'smmnist5k_test_2digits_64.npz', sequences=still)
    found = evaluate(run_dir, tmp_path, tmp_path / 'out', '--baseline', 'last_frame')
    assert np.isposinf(found['psnr']).all() and np.allclose(found['ssim'], 1)
    assert 'PSNR inf (identical)' in capsys.readouterr().out
    text = (tmp_path / 'out' / 'results.json').read_text()
    scores = json.loads(text, parse_constant=pytest.fail)['scores']
    assert scores['psnr'] == {'mean': None, 'ci95': None}
    assert scores['ssim']['mean'] == pytest.approx(1)


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


def test_pictures(out_dir, data_dir, run_dir):
    folder = out_dir / 'pictures'
    names = {f'video_000{i}.{e}' for i in (0, 1) for e in ('png', 'gif')}
    assert {p.name for p in folder.iterdir()} == names
    truth = load_test(load_config(run_dir), data_dir, 8).videos([1])[:, 0]
    picture = np.asarray(Image.open(folder / 'video_0001.png').convert('RGB'))
    enlarged = np.repeat(np.repeat(np.repeat(truth[4], 3, 0), 3, 1), 3, 2)
    windows = [picture[y:y + 192, x:x + 192] for y in range(20, 40) for x in range(60, 1200)]
    assert any(np.array_equal(w, enlarged) for w in windows)
    with Image.open(folder / 'video_0001.gif') as gif:
        assert gif.n_frames == 8 and gif.width > 6 * 192
        assert gif.info['loop'] == 0 and gif.info['duration'] == 200


def test_page(out_dir, run_dir, data_dir, tmp_path, call):
    assert '<h1>smmnist</h1>' in (out_dir / 'report/index.html').read_text()
    assert len(list((out_dir / 'report/sprites').iterdir())) == 5
    evaluate(run_dir, data_dir, tmp_path)  # without pictures
    assert not (tmp_path / 'report').exists()
    evaluate(run_dir, data_dir, tmp_path, '--report', '--overwrite')
    sprite = tmp_path / 'report/sprites/00005.png'
    sprite.touch()
    before = contents(tmp_path)
    done = call(script.main, '--xp_dir', run_dir, '--data_dir', data_dir, '--out_dir', tmp_path,
                '--metrics', 'psnr', 'ssim', *OPTIONS)
    assert done.code == 2 and f'{sprite} is not listed' in done.err and not done.out
    assert contents(tmp_path) == before


def test_colour_pictures(tmp_path):
    video = np.zeros((3, 64, 64, 3), np.uint8)
    video[..., 0] = 200
    strip(tmp_path / 'a.png', {'truth': video, 'best': video[2:]}, 2)
    animation(tmp_path / 'a.gif', {'truth': video}, 2, 4)
    for name in ('a.png', 'a.gif'):
        colours = Image.open(tmp_path / name).convert('RGB').getcolors(10 ** 6)
        assert (200, 0, 0) in [c for _, c in colours]
    with Image.open(tmp_path / 'a.gif') as gif:
        assert gif.info['duration'] == 250  # milliseconds: 4 frames per second


@pytest.mark.parametrize('more, message', [
    (['--nt_gen', '3'], '--nt_gen 3 leaves no frame to predict after the 3 conditioning frames'),
    (['--nt_cond', '1'], '--nt_cond 1 is less than the 2 frames'),
    (['--nt_gen', '9'], 'videos of 8 frames, .*--nt_gen 9'),
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
    """Foreign sizes take neither memory nor time; right ones give the same model and layout."""
    config = load_config(run_dir)
    expected = build_model(config)
    load_weights(expected, run_dir / 'model.pt')
    monkeypatch.setattr(torch.nn.init, 'orthogonal_', None)
    found = load_model(config, run_dir / 'model.pt', 'cpu')
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    pairs = zip(expected.state_dict().items(), found.state_dict().items(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other and torch.equal(a, b) and a.dtype == b.dtype, name
        strides = zip(a.stride(), b.stride(), a.shape)  # arbitrary in dimensions of size 1
        assert all(m == n for m, n, size in strides if size > 1), name
    config.nh_res = 10 ** 6  # 4 TB
    with pytest.raises(UserError, match='does not fit the configuration'):
        load_model(config, run_dir / 'model.pt', 'cpu')


def test_weights_of_another_model_and_damaged_ones(run_dir, data_dir, tmp_path):
    config = json.loads((run_dir / 'config.json').read_text())
    weights = torch.load(run_dir / 'model.pt', weights_only=True)
    bias = weights['w_inf.0.bias']

    def fails(state, message):
        torch.save(state, tmp_path / 'model.pt')
        with pytest.raises(UserError, match=message):
            evaluate(tmp_path, data_dir, tmp_path / 'out')

    (tmp_path / 'config.json').write_text(json.dumps({**config, 'ny': 7}))
    fails(weights, 'does not fit the configuration: .* the first is decoder.first_upconv.0.weight')
    (tmp_path / 'config.json').write_text(json.dumps(config))
    for value, message in (
            (bias * float('nan'), 'model.pt: w_inf.0.bias has values that are not finite'),
            (bias.to_sparse(), 'not a readable weights file .w_inf.0.bias is a sparse'),
            (bias.to('meta'), 'is a sparse, meta'), (bias + 1j, 'quantised or complex tensor'),
            (bias.long(), 'of another shape or type, the first is w_inf.0.bias')):
        fails({**weights, 'w_inf.0.bias': value}, message)
    fails([1, 2], 'not a plain state_dict')

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / 'owned'), 'w'))
    fails(Evil(), r'model.pt is not a readable weights file \(it holds more than .*\); '
                  'use another one$')
    assert not (tmp_path / 'owned').exists()
