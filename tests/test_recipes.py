"""A made-up dataset and a made-up metric, by the recipes of CONTRIBUTING.md, in all that uses them.

In the test, they enter the registries without a line in files.
"""

import json
import re

import numpy as np
import pytest
import test_evaluation

import metrics.frame
import train
from conftest import ROOT
from data import DATASETS
from metrics import LABELS, METRICS


def recipe(begin, names):
    """What the code of a recipe defines; it begins in this way and may use `names`."""
    blocks = re.findall('```python\n(.*?)```', (ROOT / 'CONTRIBUTING.md').read_text(), re.S)
    code, = (block for block in blocks if block.startswith(begin))
    names = dict(names)
    exec(code, names)
    return names


# configs/waves.yaml, here of a tiny model

CONFIG = """\
# Waves. Evaluate with --nt_gen 10.
{dataset: waves, nc: 1, ny: 4, nz: 3, nt_inf: 2, nt_cond: 3, seq_len: 6, seq_len_test: 8, nf: 2,
 nhx: 8, nh_inf: 8, nh_res: 8, batch_size: 2, n_iter_test: 1, batch_size_test: 2, n_samples_test: 2,
 lr_scheduling_burnin: 4, lr_scheduling_n_iter: 2}
"""


def make_videos(data_dir):
    t, phase, x = np.ogrid[:12, :5, :32]
    for camera, speed in (('left', 0.5), ('right', 2.)):
        wave = np.uint8(127 + 120 * np.sin(x / 3 + speed * t + phase))  # (T, N, W)
        for i, video in enumerate(np.repeat(wave[:, :, None], 32, 2).swapaxes(0, 1)):
            folder = data_dir / 'waves_32' / camera / ('train' if i < 3 else 'test')
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f'{i}.npy', video)


def test_a_dataset_and_a_metric_by_the_recipes(tmp_path, monkeypatch, call):
    monkeypatch.setitem(DATASETS, 'waves', recipe('"""Waves', {})['DATASET'])
    for registry in (METRICS, LABELS):
        monkeypatch.setitem(registry, 'mae', recipe('class MAE', vars(metrics.frame))['MAE'])
    data_dir, run, config = tmp_path / 'data', tmp_path / 'run', tmp_path / 'waves.yaml'
    config.write_text(CONFIG)
    training = ['--config', config, '--data_dir', data_dir, '--save_path', run, '--n_workers', 0]
    found = call(train.main, *training, '--nx', 32)
    assert found.code == 2 and 'preprocessing/waves/convert.py' in \
        found.err
    make_videos(data_dir)
    found = call(train.main, *training)  # which finds the size
    assert found.code == 0, found.err
    saved = json.loads((run / 'config.json').read_text())
    assert (saved['dataset'], saved['nx'], saved['camera']) == ('waves', 32, 'left')
    found = call(train.main, '--preset', 'kth', '--camera', 'right', '--dry_run')
    assert found.code == 2 and '--camera right belongs to dataset waves, found kth' in found.err

    found = call(test_evaluation.script.main, '--xp_dir', run, '--data_dir', data_dir, '--metrics',
                 'psnr', 'mae', '--nt_gen', 10, '--n_samples', 3, '--camera', 'right')
    assert found.code == 0, found.err
    assert re.search(r'^  MAE 0\.\d{3} ± 0\.\d{3}$', found.out, re.M)
    record = test_evaluation.results(run)
    assert record['protocol']['camera'] == 'right' and record['protocol']['size'] == 32
    scores, truth = test_evaluation.arrays(run, 'results'), np.load(
        data_dir / 'waves_32/right/test/4.npy')[3:10] / 255
    best = test_evaluation.arrays(run, 'mae_best')['samples'][1, ..., 0] / 255
    np.testing.assert_allclose(scores['mae_t'][1], abs(best - truth).mean((1, 2)), atol=0.004)
    others = [test_evaluation.arrays(run, f'random_{k}')['samples'][1, ..., 0] / 255
              for k in (1, 2, 3)]
    lowest = min(abs(other - truth).mean() for other in others)
    assert scores['mae'][1] == pytest.approx(lowest, abs=0.004)
    page = (run / 'report' / 'index.html').read_text()
    assert 'MAE' in page and 'mae_worst' in page and 'waves' in page and 'right' in page
