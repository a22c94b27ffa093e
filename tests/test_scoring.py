"""`python -m metrics` and what is printed about scores, against `test.py` and plain formulas."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from test_evaluation import MeanColour, arrays, results
from test_evaluation import script as test_script

import metrics.fvd
from evaluation.scoring import score_lines, summarise
from metrics import __main__ as script
from metrics.frame import LPIPS
from tests import plain


@pytest.fixture(scope='module')
def published(data_dir, tmp_path_factory):
    """Folder with a test set under the name of the published one, and the weights of LPIPS."""
    folder = tmp_path_factory.mktemp('published')
    shutil.copy(data_dir / 'smmnist5k_test_2digits_64.npz', folder / 'smmnist_test_2digits_64.npz')
    torch.save(plain.random_backbone(), folder / 'alexnet-features.pth')
    return folder


@pytest.fixture(scope='module')
def truth(published):
    """True frames uint8 (N, T, H, W, 1) after the conditioning frames of the preset."""
    sequences = arrays(published, 'smmnist_test_2digits_64')['sequences']
    return sequences[5:8, :7].swapaxes(0, 1)[..., None]


def options(published, *files):
    return [*map(str, files), '--preset', 'smmnist', '--data_dir', str(published), '--lpips_dir',
            str(published), '--nt_gen', '8', '--n_videos', '7', '--batch_size', '3']


def plain_scores(truth, *samples):
    """Mean over videos and half-width of its interval of the best sample, by metric."""
    lpips = LPIPS(plain.random_backbone())
    y, *videos = [torch.from_numpy(x).permute(1, 0, 4, 2, 3).float() / 255
                  for x in (truth, *samples)]
    functions = {'psnr': plain.psnr, 'ssim': plain.ssim,
                 'lpips': lambda x, y: plain.lpips(lpips, x, y)}
    scores = {}
    for name, function in functions.items():
        every = torch.stack([function(x, y) for x in videos]).numpy()
        best = every.min(0) if name == 'lpips' else every.max(0)
        scores[name] = {'mean': pytest.approx(best.mean(), rel=1e-5, abs=1e-6),
                        'ci95': pytest.approx(1.96 * best.std() / 7 ** .5, rel=1e-4, abs=1e-6)}
    return scores


def test_scores_are_those_of_test_py_on_its_own_samples(published, truth, run_dir, data_dir,
                                                        tmp_path, call):
    theirs, ours = tmp_path / 'theirs', tmp_path / 'ours'
    test_script.main(['--xp_dir', str(run_dir), '--data_dir', str(data_dir), '--lpips_dir',
                      str(published), '--out_dir', str(theirs), '--nt_cond', '5', '--nt_gen', '8',
                      '--n_samples', '1', '--n_videos', '7', '--n_pictures', '0'])
    argv = [*options(published, theirs / 'random_1.npz'), '--out_dir', ours]
    code, out, err = call(script.main, *argv)
    assert code == 0 and 'note: published scores on this test set use --nt_gen 25' in err
    found, expected = results(ours), results(theirs)
    assert found['scores'] == plain_scores(truth, arrays(theirs, 'random_1')['samples'])
    for name, tolerance in (('psnr', 0.1), ('ssim', 0.01)):  # frames are quantised
        difference = found['scores'][name]['mean'] - expected['scores'][name]['mean']
        assert abs(difference) < tolerance
    assert ' PSNR {mean:.2f} ± {ci95:.2f} dB'.format(**found['scores']['psnr']) in out
    own = {'digit_source', 'test_set'}  # of the run; what follows is of a model
    own |= {'n_euler_steps', 'seed', 'baseline', 'checkpoint_sha256', 'precision'}
    assert {k: v for k, v in expected['protocol'].items() if k not in own} == {
        k: v for k, v in found['protocol'].items() if k not in own}
    assert {p.name for p in ours.iterdir()} == {'results.json', 'results.npz', 'curves.png'}
    code, _, err = call(script.main, *argv, '--metrics', 'psnr')
    assert code == 2 and 'is of an evaluation with other lpips_version, metrics; use another' in err
    code, out, _ = call(script.main, *options(data_dir, theirs / 'random_1.npz')[:1], '--xp_dir',
                        run_dir, '--data_dir', data_dir, '--nt_cond', 5, '--nt_gen', 8,
                        '--n_videos', 7, '--metrics', 'psnr')
    assert code == 0 and ' PSNR {mean:.2f}'.format(**found['scores']['psnr']) in out


def test_best_of_several_files_counts(published, truth, tmp_path):
    """For each video and metric. Files are .npz or .npy, of all videos or of those to score."""
    rng = np.random.RandomState(0)
    samples = []
    for _ in range(3):
        noise = rng.normal(0, rng.uniform(10, 60, (7, 1, 1, 1, 1)), truth.shape)
        samples.append(np.clip(truth + noise, 0, 255).astype(np.uint8))
    whole = np.zeros((500, 3, 64, 64), np.uint8)
    whole[:7] = samples[0][..., 0]
    np.save(tmp_path / '0.npy', whole)
    np.savez(tmp_path / '1.npz', mine=samples[1])
    np.savez(tmp_path / '2.npz', samples=samples[2], more=samples[0])
    files = [tmp_path / name for name in ('0.npy', '1.npz', '2.npz')]
    script.main([*options(published, *files), '--out_dir', str(tmp_path / 'out')])
    assert results(tmp_path / 'out')['scores'] == plain_scores(truth, *samples)
    assert results(tmp_path / 'out')['protocol']['samples'] == 3
    found = arrays(tmp_path / 'out', 'results')
    for name in ('psnr', 'ssim', 'lpips'):
        np.testing.assert_allclose(found[f'{name}_t'].mean(1), found[name], rtol=1e-5)


def test_frechet_distance_of_predictions(published, tmp_path, monkeypatch):
    """With the true conditioning frames before them; mean and interval over files."""
    sequences = arrays(published, 'smmnist_test_2digits_64')['sequences']
    videos = np.concatenate([sequences[:, :16], sequences[:2, :16]])
    np.savez(tmp_path / 'smmnist_test_2digits_64.npz', sequences=videos)
    videos, paths = videos.swapaxes(0, 1)[..., None], []
    for i in range(3):
        paths.append(tmp_path / f'{i}.npy')
        np.save(paths[-1], np.random.RandomState(i).permutation(videos[:, 5:]))
    monkeypatch.setattr(metrics.fvd, 'build_embedding', lambda *_: MeanColour())
    script.main([*options(tmp_path, *paths), '--nt_gen', '10', '--n_videos', '16', '--metrics',
                 'psnr', '--fvd', '--out_dir', str(tmp_path / 'out')])
    distances = [metrics.fvd.fvd(videos, np.concatenate([videos[:, :5], np.load(path)], 1),
                                 MeanColour()) for path in paths]
    assert results(tmp_path / 'out')['scores']['fvd'] == {
        'mean': pytest.approx(np.mean(distances)),
        'ci95': pytest.approx(1.96 * np.std(distances) / 3 ** .5)}


@pytest.mark.parametrize('shape, more, message', [
    ((7, 4, 64, 64, 1), [], r'has videos \(N, T, H, W, C\) of \(7, 4, .* expected \(7, 3, 64, 64'),
    ((6, 3, 64, 64, 1), [], 'give one prediction per video'),
    ((7, 3, 64, 64), ['--nt_gen', '5'], '--nt_cond 5 and --nt_gen 5 do not fit'),
    ((7, 3, 64, 64), ['--fvd'], 'has 7 videos of 8 frames; the Fréchet video distance needs at le'),
    ((7, 3), [], 'expected uint8'), (None, [], 'bad.npy: No such file')])
def test_errors_before_any_score(shape, more, message, published, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    np.save('good.npy', np.zeros((7, 3, 64, 64), np.uint8))
    if shape is not None:
        np.save('bad.npy', np.zeros(shape, np.uint8))
    monkeypatch.setattr(script, 'score_futures', None)
    found = call(script.main, *options(published, 'good.npy', 'bad.npy'), '--out_dir', 'out', *more)
    assert found.code == 2 and re.search(message, found.err) and found.err.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_scores_next_to_the_published_ones():
    table = {'psnr': {'mean': 20., 'ci95': 0.5}, 'lpips': {'mean': 0.1, 'ci95': None},
             'fvd': {'mean': 300., 'ci95': 4.}}
    protocol = {'dataset': 'kth', 'size': 64, 'conditioning_frames': 10, 'predicted_frames': 30,
                'clips': 1000, 'samples': 100, 'fvd_note': None}
    lines = [' PSNR 20.00 ± 0.50 dB   published: 29.69 ± 0.32',
             'LPIPS 0.1000   published: 0.0736 ± 0.0029',
             '  FVD 300.00 ± 4.00   published: 222 ± 3']
    assert score_lines(table, protocol) == lines
    last = 'published: 1,000 videos, best of 100; here: 50, best of 100'
    assert score_lines(table, {**protocol, 'clips': 50}) == [*lines, last]
    other = {**protocol, 'fvd_note': 'of unknown origin'}  # other distances
    assert score_lines(table, other) == [*lines[:2], '  FVD 300.00 ± 4.00',
                                         'note: of unknown origin']
    assert score_lines(table, {**protocol, 'predicted_frames': 20}) == [
        line.partition('   ')[0] for line in lines]
    assert summarise(np.array([1., np.nan, 3.])) == {'mean': 2., 'ci95': 1.96 / 2 ** .5}
    assert json.dumps(summarise(np.array([np.nan]))) == '{"mean": null, "ci95": null}'
    assert summarise(np.array([2.])) == {'mean': 2., 'ci95': None}
