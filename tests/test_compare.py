"""`compare.py`: tables and curves of several results, and protocols that do not fit."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import compare
from files import UserError
from pictures import charts

PROTOCOL = {'dataset': 'kth', 'test_set': 'svg_test_set_40.npz', 'clips': 20,
            'conditioning_frames': 10, 'predicted_frames': 30, 'samples': 100,
            'lpips_version': '0.1', 'n_euler_steps': 2, 'seed': 1, 'baseline': None,
            'checkpoint': 'model.pt', 'checkpoint_sha256': 'a', 'precision': 'float32'}
FVD = {'frames': 40, 'clips': 20, 'samples': 5, 'seed': 1, 'weights': 'published',
       'weights_sha256': 'w'}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Function that writes results of a name, with changes to the protocol; relative paths."""
    monkeypatch.chdir(tmp_path)

    def write(name, scores=('psnr', 'ssim', 'lpips'), draw=0, fvd=None, **changes):
        folder, rng = tmp_path / name, np.random.RandomState(draw)
        folder.mkdir(parents=True)
        arrays = {f'{m}_t': (25 + rng.rand(20, 30)).astype(np.float32) for m in scores}
        np.savez(folder / 'results.npz', **arrays,
                 **{m: arrays[f'{m}_t'].mean(1) for m in scores})
        table = {m: {'mean': 25.123456, 'ci95': 0.123456} for m in scores}
        protocol = {**PROTOCOL, **changes}
        if fvd is not None:
            protocol['fvd'], table['fvd'] = {**FVD, **fvd}, {'mean': 300.5, 'ci95': 3.25}
        protocol = {k: v for k, v in protocol.items() if v is not Ellipsis}
        (folder / 'results.json').write_text(json.dumps({'scores': table, 'protocol': protocol}))
        return arrays
    return write


def test_table_and_curves(make, tmp_path, monkeypatch, call):
    drawn, curves = {}, charts.curves
    monkeypatch.setattr(charts, 'curves', lambda *args: (drawn.update(args=args), curves(*args)))
    ours, other = make('ours', fvd={}), make('other_5%', ('psnr', 'ssim'), 1, samples=1,
                                             precision=..., checkpoint=..., seed=...)
    code, out, _ = call(compare.main, 'ours', 'other_5%', '--out', 'table')
    assert code == 0
    assert {p.name for p in (tmp_path / 'table').iterdir()} == set(compare.RESULTS)
    rows = ['| ours | 100 | 25.12 ± 0.12 | 25.1235 ± 0.1235 | 25.1235 ± 0.1235 | 300.50 ± 3.25 |',
            '| other_5% | 1 | 25.12 ± 0.12 | 25.1235 ± 0.1235 |  |  |',
            '| SRVP (paper) | 100 | 29.69 ± 0.32 | 0.8697 ± 0.0046 | 0.0736 ± 0.0029 | 222 ± 3 |']
    text = (tmp_path / 'table' / 'table.md').read_text()
    assert '\n'.join(rows) in text and text in out and 'SRVP (paper): 1,000 videos.' in text
    assert '| method | samples | PSNR ↑ | SSIM ↑ | LPIPS ↓ | FVD ↓ |' in text
    tex = (tmp_path / 'table' / 'table.tex').read_text()
    assert r'other\_5\% & 1 & 25.12 $\pm$ 0.12 & 25.1235 $\pm$ 0.1235 &  &  \\' in tex
    with open(tmp_path / 'table' / 'table.csv', newline='') as f:
        assert [row['fvd'] for row in csv.DictReader(f)] == ['300.50 ± 3.25', '', '222 ± 3']
    _, _, t, panels, mark = drawn['args']
    assert t.tolist() == list(range(10, 40)) and mark[0] == 10
    assert list(panels) == ['PSNR (dB)', 'SSIM', 'LPIPS']
    assert list(panels['SSIM']) == ['ours', 'other_5%', 'SRVP (paper), mean']
    assert panels['PSNR (dB)']['SRVP (paper), mean'] == (29.69, None)
    for name, arrays in (('ours', ours), ('other_5%', other)):
        values = arrays['psnr_t']
        mean, half = panels['PSNR (dB)'][name]
        np.testing.assert_allclose(mean, values.mean(0), rtol=1e-6)
        np.testing.assert_allclose(half, 1.96 * values.std(0) / 20 ** .5, rtol=1e-5)
    with Image.open(tmp_path / 'table' / 'curves.png') as picture:
        assert picture.width > 1500


def test_comparison_is_replaced_but_nothing_else(make, tmp_path, call):
    make('a'), make('b')
    for names in (['x', 'y'], ['x', 'z']):
        assert call(compare.main, 'a', 'b', '--out', 'table', '--names', *names).code == 0
    assert '| z | 100 |' in (tmp_path / 'table' / 'table.md').read_text()
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'table.csv').write_text('mine')
    code, _, err = call(compare.main, 'a', '--out', 'mine')
    assert code == 2 and 'table.csv is not listed as a result' in err
    assert (tmp_path / 'mine' / 'table.csv').read_text() == 'mine'


def test_other_lengths_have_no_published_row(make, call):
    make('a', predicted_frames=20)
    assert 'SRVP (paper)' not in call(compare.main, 'a', '--out', 'table').out


def test_distances_of_other_weights(make, call):
    fvd = {'weights': 'unknown', 'note': 'not comparable'}
    make('a', fvd=fvd), make('b', fvd=fvd)
    out = call(compare.main, 'a', 'b', '--out', 'table').out
    assert '0.0736 ± 0.0029 |  |' in out and '(not comparable)' in out


@pytest.mark.parametrize('changes, message', [
    ({'clips': 21}, 'b has clips 21, a has 20: their scores cannot be compared'),
    ({'test_set': 'x'}, 'b has test_set x, a has svg_test_set_40.npz'),
    ({'predicted_frames': 20}, 'b has predicted_frames 20'),
    ({'precision': 'bfloat16'}, 'b has precision bfloat16, a has float32'),
    ({'lpips_version': '0.0'}, 'b has lpips_version 0.0'),
    ({'fvd': {'weights_sha256': 'v'}}, 'b has fvd weights_sha256 v, c has w'),
    ({'samples': 10}, 'the best of 10 and 100 samples, which cannot be compared')])
def test_protocols_that_differ(changes, message, make, tmp_path):
    make('a'), make('b', **changes), make('c', fvd={})
    with pytest.raises(UserError, match=message.replace('b has fvd', '[bc] has fvd').replace(
            ' v, c has w', ' [vw], [bc] has [vw]')):
        compare.main(['a', 'b', 'c', '--out', 'table'])
    assert not (tmp_path / 'table').exists()


def test_errors(make, tmp_path):
    make('a'), make('x/a'), make('old')
    np.savez(tmp_path / 'old' / 'results.npz', psnr=np.zeros(20))
    (tmp_path / 'cut').mkdir()
    (tmp_path / 'cut' / 'results.json').write_text('{}')
    for argv, message in (
            (['nowhere'], 'nowhere/results.json does not exist'),
            (['a', 'old'], 'old/results.npz has no scores over time, .*; evaluate again'),
            (['cut'], 'is not from an evaluation'),
            (['a', 'x/a', '--names', 'one'], '--names: 1 names for 2 results; give one each'),
            (['a', 'x/a', '--names', 'one', 'one'], 'names must differ'),
            (['a', '--names', compare.PAPER], 'names must differ, also from SRVP .paper.')):
        with pytest.raises(UserError, match=message):
            compare.main([*argv, '--out', 'table'])
    compare.main(['a', 'x/a', '--out', 'table'])  # equal names of folders: paths instead
    assert '| x/a | 100 |' in (tmp_path / 'table' / 'table.md').read_text()
