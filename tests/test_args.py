"""Options: presets, precedence, contradictions, configurations on disk."""

import argparse
import json
import re
import subprocess
import sys

import pytest
import torch
import yaml

import args
import data
import metrics
import module
import published
import test as evaluation
import train
from args import config_dict, load_config, parse_train, preset_config
from conftest import ROOT, TINY
from files import UserError
from parsing import number
from preprocessing.mmnist import make_test_set
from utils import get_device

BASE = ['--data_dir', 'd', '--save_path', 's']

# Published options of the presets; the others have their defaults
PUBLISHED = {
    'smmnist': dict(
        dataset='smmnist', ny=20, nz=20, beta_z=2, nt_cond=5, nt_inf=5, nc=1, seq_len=15,
        deterministic=False, lr_scheduling_burnin=1000000, lr_scheduling_n_iter=100000,
        archi='dcgan', skipco=False, obs_scale=1, batch_size=128, n_euler_steps=1, res_gain=1.41,
        val_interval=20000, seq_len_test=15, batch_size_test=16),
    'smmnist_deterministic': dict(
        dataset='smmnist', ny=20, nz=20, beta_z=2, nt_cond=5, nt_inf=5, nc=1, seq_len=15,
        deterministic=True, lr_scheduling_burnin=800000, lr_scheduling_n_iter=100000),
    'kth': dict(
        dataset='kth', ny=50, nz=50, n_euler_steps=2, res_gain=1.2, archi='vgg', skipco=True,
        nt_cond=10, nt_inf=3, obs_scale=0.2, batch_size=100, nc=1, seq_len=20,
        lr_scheduling_burnin=150000, lr_scheduling_n_iter=50000, val_interval=5000,
        seq_len_test=30, beta_z=1),
    'human': dict(
        dataset='human', ny=50, nz=50, n_euler_steps=2, res_gain=1.2, archi='vgg', skipco=True,
        nt_cond=8, nt_inf=3, obs_scale=0.2, batch_size=100, nc=3, seq_len=16,
        lr_scheduling_burnin=325000, lr_scheduling_n_iter=25000, val_interval=20000,
        batch_size_test=8, seq_len_test=53, subsampling=8),
    'bair': dict(
        dataset='bair', ny=50, nz=50, n_euler_steps=2, archi='vgg', skipco=True, nt_cond=2,
        nt_inf=2, obs_scale=0.71, batch_size=192, nc=3, seq_len=12,
        lr_scheduling_burnin=1000000, lr_scheduling_n_iter=500000, res_gain=1.41),
}


@pytest.mark.parametrize('preset', published.PUBLISHED)
def test_presets_are_the_published_configurations(preset):
    config = parse_train(['--preset', preset, *BASE])
    for key, value in PUBLISHED[preset].items():
        assert getattr(config, key) == value, key
    assert config.lr == 3e-4
    assert (config.nf, config.nhx, config.nh_inf, config.nh_res) == (64, 128, 256, 512)
    assert config.dynamics == 'residual'


def test_preset_of_own_videos_is_that_of_kth_in_colour():
    own, kth = (vars(parse_train(['--preset', name, *BASE])) for name in ('folder', 'kth'))
    differences = {key: own[key] for key in own if own[key] != kth[key]}
    assert differences == {'dataset': 'folder', 'nc': 3, 'preset': 'folder'}
    assert published.find(own) is None


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.yaml')),
                         ids=lambda path: path.stem)
def test_every_config_file_is_accepted_unchanged(path):
    values = yaml.safe_load(path.read_text())
    config = vars(parse_train(['--config', str(path), *BASE]))
    assert {key: config[key] for key in values} == values


@pytest.mark.parametrize('preset, parameters', [
    ('smmnist', '10,678,284'), ('kth', '23,877,854'), ('human', '23,880,158'),
    ('bair', '23,847,390')])
def test_dry_run_prints_configuration_and_size_and_writes_nothing(
        preset, parameters, call, tmp_path):
    run = tmp_path / 'run'
    code, out, _ = call(train.main, '--preset', preset, '--data_dir', 'd', '--save_path', run,
                        '--dry_run', '--seed', 4)
    assert code == 0 and f'{parameters} parameters' in out
    assert json.loads(out[:out.rindex('}') + 1])['seed'] == 4
    assert not run.exists()
    code, out, _ = call(train.main, '--preset', preset, '--dry_run')  # without folders
    assert code == 0 and f'{parameters} parameters' in out


def test_command_line_wins_over_file_over_preset(tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text('ny: 33\nnz: 44\nskipco: true\ndevice: [0]\n')
    config = parse_train(['--preset', 'smmnist', '--config', str(file), '--nz', '55',
                          '--no-skipco', *BASE])
    assert (config.ny, config.nz, config.nt_inf) == (33, 55, 5)
    assert config.skipco is False and config.device == [0]
    file.write_text('preset: kth\nnf: 8\nsave_path: s\ndata_dir: d\n')
    config = parse_train(['--config', str(file)])
    assert (config.archi, config.nf, config.skipco) == ('vgg', 8, True)
    assert parse_train(['--config', str(file), '--no-skipco']).skipco is False


def test_every_flag_can_be_turned_off(tmp_path):
    flags = [a.dest for a in args.train_parser()._actions if a.nargs == 0 and a.dest != 'help']
    assert set(flags) == {'resume', 'dry_run', 'torch_amp', 'apex_amp', 'keep_batchnorm_fp32',
                          'apex_verbose', 'compile', 'skipco', 'deterministic'}
    file = tmp_path / 'mine.yaml'
    for name in flags:
        file.write_text(f'{name}: true\n')
        config = parse_train(['--preset', 'smmnist', '--config', str(file), f'--no-{name}', *BASE])
        assert getattr(config, name) is False
    file.write_text('torch_amp: true\n')
    config = parse_train(['--preset', 'smmnist', '--config', str(file), '--no-torch_amp',
                          '--apex_amp', *BASE])
    assert config.apex_amp and not config.torch_amp
    assert parse_train(['--preset', 'smmnist', *BASE]).keep_batchnorm_fp32 is None


def test_resumed_run_may_change_some_options(tmp_path):
    run = ['--save_path', str(tmp_path)]
    saved = parse_train([*TINY, '--data_dir', 'd', *run, '--compile', '--chkpt_interval', '5'])
    (tmp_path / 'config.json').write_text(json.dumps(config_dict(saved)))
    config = parse_train(['--resume', *run])
    assert config.compile and config.chkpt_interval == 5
    config = parse_train(['--resume', *run, '--no-compile', '--chkpt_interval', '0'])
    assert config.compile is False and config.chkpt_interval == 0
    with pytest.raises(UserError, match='the run was started with torch_amp False, found True'):
        parse_train(['--resume', *run, '--torch_amp'])


@pytest.mark.parametrize('options, message', [
    (['--nt_cond', '4'], '--nt_cond 4 is less than --nt_inf 5'),
    (['--seq_len', '4'], '--seq_len 4 is less than --nt_inf 5'),
    (['--seq_len', '1', '--nt_inf', '1'], 'at least 2 frames'),
    (['--seq_len_test', '5'], '--seq_len_test 5 leaves no frame to predict after --nt_cond 5'),
    (['--seq_len', '5'], r'--seq_len_test 5 leaves no frame .* \(default: --seq_len\)'),
    (['--nc', '3'], '--nc 3: frames of smmnist have 1 channel; use 1'),
    (['--nx', '48'], '--nx 48: frames of smmnist are 32 or 64 or 128 or 256 pixels wide'),
    (['--preset', 'bair', '--nx', '128'],
     '--nx 128: frames of bair are 64 pixels wide and high; use such a size'),
    (['--lr_scheduling_burnin', '0', '--lr_scheduling_n_iter', '0'], 'no step to train'),
    (['--subsampling', '4'], '--subsampling 4 belongs to --dataset human'),
    (['--dataset', 'kth', '--deterministic'], '--deterministic True belongs to --dataset smmnist'),
    (['--dataset', 'kth', '--digits', 'mnist5k'],
     '--digits mnist5k belongs to --dataset smmnist'),
    (['--dataset', 'folder', '--nc', '2'], '--nc 2: frames of folder have 1 or 3 channels'),
    (['--amp_opt_lvl', 'O2'], 'need --apex_amp'),
    (['--torch_amp', '--apex_amp'], '--torch_amp and --apex_amp are mutually exclusive'),
    (['--amp_dtype', 'float16'], '--amp_dtype float16 needs --torch_amp'),
    (['--local_rank', '1'], 'is for launchers, but none started this process'),
    (['--local-rank', '1'], 'is for launchers, but none started this process'),
    (['--accumulate', '0'], 'at least 1'),
    (['--ny', '0'], "--ny: expected a whole number of at least 1 .*, found '0'"),
    (['--ny', '1000000000', '--dry_run'],
     "--ny: expected a whole number of at least 1 and at most 10000, found '1000000000'"),
    (['--nlayers_res', '101'], 'at most 100'),
    (['--n_euler_steps', '1001'], 'at most 1000'),
    (['--dynamics', 'lstm'], 'invalid choice'),
    (['--dynamics', 'mlp', '--n_euler_steps', '2'],
     '--n_euler_steps 2: mlp dynamics take one step per frame; set it to 1'),
    (['--preset', 'kth', '--dynamics', 'gru'], '--n_euler_steps 2: gru dynamics take one step'),
    (['--nt_inf', '1' + '0' * 400], 'at most 100000'),
    (['--lr', 'nan'], '--lr: expected a number greater than 0'),
    (['--lr', 'inf'], '--lr: expected a number'),
    (['--seed', '-1'], '--seed: expected a whole number of at least 0'),
    (['--archi', 'resnet'], 'invalid choice'),
    (['--n_euler_step', '2'], r'unknown option --n_euler_step; did you mean --n_euler_steps\?'),
    (['--preset', 'mnist'], 'invalid choice'),
    (['--resume'], 'there is no run to continue'),
])
def test_contradictions_and_bad_values(options, message):
    with pytest.raises(UserError, match=message):
        parse_train(['--preset', 'smmnist', *BASE, *options])


def test_missing_options_and_files(tmp_path):
    message = 'required: .*--ny.*; or use --preset, a published configuration'
    with pytest.raises(UserError, match=message):
        parse_train(BASE)
    with pytest.raises(UserError, match='required: --save_path$'):
        parse_train(['--preset', 'smmnist', '--data_dir', 'd'])
    with pytest.raises(UserError, match='nowhere.yaml'):
        parse_train(['--config', str(tmp_path / 'nowhere.yaml'), *BASE])
    file = tmp_path / 'bad.yaml'
    for text, message in (('n_f: 3', 'unknown option --n_f; did you mean --nf'),
                          ('no-skipco: true', 'write skipco: true or skipco: false'),
                          ('ny: -2', '--ny'), ('ny: [', 'yaml|YAML|parse')):
        file.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            parse_train(['--preset', 'smmnist', '--config', str(file), *BASE])
        assert '\n' not in str(error.value)


def test_names_are_those_of_the_modules():
    """`args` does not import PyTorch and repeats them."""
    assert args.ARCHITECTURES == list(module.ENCODERS) == list(module.DECODERS)
    assert args.DIGIT_SOURCES == list(data.digits.SOURCES)
    assert args.METRICS == list(metrics.METRICS)
    assert list(args.CHANNELS) == list(data.DATASETS)
    assert args.SIZES == module.SIZES


def test_number():
    assert number(int, 1)('3') == 3 and number(float, 0)('0') == 0.
    assert number(float)('-1e30') == -1e30
    for text in ('inf', '-inf', 'nan', '1e400', 'one'):
        with pytest.raises(argparse.ArgumentTypeError, match='expected a number, found'):
            number(float)(text)


def test_device():
    assert get_device('cpu') == get_device(None) == torch.device('cpu')
    assert parse_train(['--preset', 'smmnist', *BASE, '--device', 'cpu']).device == ['cpu']
    with pytest.raises(UserError, match='--device: expected a whole number'):
        parse_train(['--preset', 'smmnist', *BASE, '--device', 'gpu'])


def test_published_configuration_needs_no_more_keys(tmp_path):
    """The keys of published `config.json` files; the others get their defaults."""
    published = dict(
        archi='vgg', dataset='kth', deterministic=False, max_speed=4, n_euler_steps=2, nc=1, nf=64,
        nh_inf=256, nh_res=512, nhx=128, nlayers_inf=3, nlayers_res=4, nt_cond=10, nt_inf=3,
        ndigits=2, nx=64, ny=50, nz=50, seq_len_test=30, skipco=True)

    def load_with(**changes):
        (tmp_path / 'config.json').write_text(json.dumps({**published, **changes}))
        return load_config(tmp_path)
    config = load_with()
    assert (config.seq_len, config.seq_len_test) == (None, 30)
    assert (config.digits, config.subsampling, config.dynamics) == ('mnist', 8, 'residual')
    assert not hasattr(config, 'nt_condition')
    config = load_with(nf=None, skipco=None, ndigits=None, nx=None)  # as if missing
    assert (config.nf, config.skipco, config.ndigits, config.nx) == (64, False, 2, 64)
    assert load_with(nx=128).nx == 128
    for change, message in (
            ({'nx': 96}, 'nx 96: frames of kth are 32 or 64 or 128 or 256 pixels wide'),
            ({'nc': 3}, 'nc 3: frames of kth have 1 channel; use 1'),
            ({'dynamics': 'gru'}, 'n_euler_steps 2: gru dynamics take one step per frame')):
        with pytest.raises(UserError, match=re.escape(f'{tmp_path}/config.json: {message}')):
            load_with(**change)


def test_unknown_keys_are_named(run_dir, tmp_path, capsys):
    config = json.loads((run_dir / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'n_f': 3}))
    load_config(tmp_path)
    assert 'ignoring unknown keys n_f' in capsys.readouterr().err
    load_config(run_dir)
    assert not capsys.readouterr().err


@pytest.mark.parametrize('text, message', [
    ('{"ny": 3', 'not readable as JSON'), ('[1]', 'must hold one JSON object'),
    ('{"dataset": "smmnist"}', 'has no '), ('{"ny": "many"}', 'ny: expected a whole number'),
    ('{"skipco": 1}', 'skipco: expected true or false'),
    ('{"archi": "resnet"}', 'archi: expected one of'),
    ('{"n_euler_steps": 1000000000}', 'n_euler_steps: expected .* at most 1000,'),
    ('{"dynamics": "lstm"}', 'dynamics: expected one of residual, mlp, gru'),
    ('{"ndigits": 1' + '0' * 400 + '}', 'ndigits: expected .* at most 100,')])
def test_damaged_configurations(tmp_path, text, message):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path)


def test_lengths_of_published_evaluations(run_dir):
    papers = {preset: published.find(vars(preset_config(preset))) for preset in published.PUBLISHED}
    assert papers == published.PUBLISHED
    lengths = {preset: (paper.nt_cond, paper.nt_gen) for preset, paper in papers.items()}
    assert lengths == {
        'smmnist': (5, 25), 'smmnist_deterministic': (5, 100), 'kth': (10, 40), 'human': (8, 53),
        'bair': (2, 30)}
    for preset, (nt_cond, nt_gen) in lengths.items():
        assert preset_config(preset).nt_cond == nt_cond
        first, *_ = (args.CONFIGS / f'{preset}.yaml').read_text().splitlines()
        assert f'Evaluate with --nt_gen {nt_gen}' in first
    assert published.find(vars(load_config(run_dir))) is None  # other digits


def test_config_json_is_complete(run_dir):
    written = json.loads((run_dir / 'config.json').read_text())
    config = parse_train([*TINY, *BASE])
    assert written.keys() == config_dict(config).keys()
    assert written['seq_len_test'] == 5 and written['seed'] == 3 and written['digits'] == 'mnist5k'


@pytest.mark.parametrize('script, options', [
    ('train.py', ['--preset', 'smmnist', *BASE, '--nt_cond', '2']),
    ('test.py', ['--xp_dir', 'nowhere', '--data_dir', 'd'])])
def test_bad_input_is_one_sentence_and_exit_code_2(script, options):
    done = subprocess.run([sys.executable, script, *options], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 2
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


@pytest.mark.parametrize('main', [train.main, evaluation.main, make_test_set.main],
                         ids=['train', 'test', 'make_test_set'])
def test_help(main, call):
    code, out, err = call(main, '--help')
    assert code == 0 and not err
    assert '(default: ' in out and 'default: None' not in ' '.join(out.split())
