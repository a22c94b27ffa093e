"""`export.py`: half the size, nearly the same predictions, nothing specific to a machine."""

import json

import numpy as np
import pytest
import torch
from test_evaluation import evaluate

import export
import train
from checkpoint import load
from conftest import TINY, steps
from files import UserError


def export_run(run_dir, out_dir, *more):
    export.main(['--xp_dir', str(run_dir), '--out_dir', str(out_dir), *more])


@pytest.fixture(scope='module')
def exported(run_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported') / 'model'
    export_run(run_dir, folder)
    return folder


def test_kernels_are_half_as_large_and_config_has_nothing_of_a_machine(exported, run_dir):
    before, after = load(run_dir / 'model.pt'), load(exported / 'model.pt')
    assert before.keys() == after.keys()
    for name, value in before.items():
        expected = value.half() if value.ndim > 1 else value
        assert after[name].dtype == expected.dtype and torch.equal(after[name], expected)
    dtypes = {v.dtype for v in after.values()}
    assert dtypes == {torch.float16, torch.float32, torch.int64}
    whole, config = (json.loads((folder / 'config.json').read_text())
                     for folder in (run_dir, exported))
    assert config.items() <= whole.items()
    assert not {'data_dir', 'save_path', 'device', 'n_workers'} & config.keys()
    assert {'archi', 'ny', 'nz', 'nf', 'nt_cond', 'seq_len', 'digits', 'lr'} <= config.keys()


def test_scores_are_those_of_the_model(exported, run_dir, data_dir, tmp_path):
    expected = evaluate(run_dir, data_dir, tmp_path / 'before')
    found = evaluate(exported, data_dir, tmp_path / 'after')
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-2)
        assert not np.array_equal(found[name], expected[name])


def test_training_starts_from_it(exported, data_dir, tmp_path):
    argv = [*TINY, *steps(1, 0), '--lr', '1e-8', '--data_dir', str(data_dir),
            '--save_path', str(tmp_path), '--weights', str(exported / 'model.pt')]
    assert train.main(argv) == 0
    before, after = load(exported / 'model.pt'), load(tmp_path / 'model.pt')
    assert all(after[name].dtype in (torch.float32, torch.int64) for name in after)
    name = 'dynamics.module.0.0.weight'
    torch.testing.assert_close(after[name], before[name].float(), rtol=0, atol=1e-6)


def test_errors(exported, run_dir, tmp_path):
    with pytest.raises(UserError, match=r'--out_dir .*model holds another model \(config.json\)'):
        export_run(run_dir, exported)
    with pytest.raises(UserError, match='none.pt does not exist'):
        export_run(run_dir, tmp_path, '--model_name', 'none.pt')
    state = load(run_dir / 'model.pt')
    (tmp_path / 'config.json').write_text((run_dir / 'config.json').read_text())
    beyond_float16 = state['q_z.weight'] + 1e6
    torch.save({**state, 'q_z.weight': beyond_float16}, tmp_path / 'model.pt')
    message = 'q_z.weight has values that are not finite in float16'
    with pytest.raises(UserError, match=message):
        export_run(tmp_path, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
