"""Options: presets, precedence, contradictions, configurations on disk, published evaluations."""

import json
import re

from files import UserError

import pytest
import test_evaluation
import torch
import yaml

import train
from args import (CONFIGS, FREE_ON_RESUME, PUBLISHED, config_dict, find_published, load_config,
                  parse_train, preset_config, published_scores)
from conftest import ROOT, TINY
from evaluation.scoring import note_differences
from data import DATASETS
from preprocessing.mmnist import make_test_set
from utils import get_device

BASE = ['--data_dir', 'd', '--save_path', 's']

# Published options of the presets; the others have their defaults
OPTIONS = {
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


@pytest.mark.parametrize('preset', PUBLISHED)
def test_presets_are_the_published_configurations(preset):
    config = parse_train(['--preset', preset, *BASE])
    for key, value in OPTIONS[preset].items():
        assert getattr(config, key) == value, key
    assert config.lr == 3e-4
    assert (config.nf, config.nhx, config.nh_inf, config.nh_res) == (64, 128, 256, 512)
    assert config.dynamics == 'residual'


def test_preset_of_own_videos_is_that_of_kth_in_colour():
    own, kth = (vars(parse_train(['--preset', name, *BASE])) for name in ('folder', 'kth'))
    differences = {key: own[key] for key in own if own[key] != kth[key]}
    assert differences == {'dataset': 'folder', 'nc': 3, 'preset': 'folder'}


@pytest.mark.parametrize('path', sorted(set(CONFIGS.glob('*.yaml')) - {CONFIGS / 'published.yaml'}),
                         ids=lambda path: path.stem)
def test_every_config_file_is_accepted_unchanged(path):
    values = yaml.safe_load(path.read_text())
    config = vars(parse_train(['--config', str(path), *BASE]))
    assert {key: config[key] for key in values} == values


@pytest.mark.parametrize('preset, parameters', [
    ('smmnist', '10,678,284'), ('kth', '23,877,854'), ('human', '23,880,158'),
    ('bair', '23,847,390')])
def test_dry_run_prints_the_size_of_the_model(preset, parameters, call):
    code, out, _ = call(train.main, '--preset', preset, '--dry_run')
    assert code == 0 and f'{parameters} parameters' in out


def test_command_line_wins_over_file_over_preset_over_default(tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text('ny: 33\nnz: 44\nskipco: true\ndevice: [0]\n')
    config = parse_train(['--preset', 'smmnist', '--config', str(file), '--nz', '55',
                          '--no-skipco', *BASE])
    assert (config.ny, config.nz, config.nt_inf, config.nf) == (33, 55, 5, 64)
    assert config.skipco is False and config.device == [0]
    assert parse_train(['--preset', 'kth', '--no-skipco', *BASE]).skipco is False
    file.write_text('skipco: false\n')
    assert parse_train(['--preset', 'kth', '--config', str(file), *BASE]).skipco is False


@pytest.mark.parametrize('options, message', [
    (['--nt_cond', '4'], '--nt_cond 4 is less than --nt_inf 5'),
    (['--seq_len', '4'], '--seq_len 4 is less than --nt_inf 5'),
    (['--seq_len_test', '5'], '--seq_len_test 5 leaves no frame to predict after --nt_cond 5'),
    (['--nc', '3'], '--nc 3: frames of smmnist have 1 channels'),
    (['--nx', '48'], '--nx 48: frames of smmnist are 32 or 64 or 128 or 256 wide'),
    (['--preset', 'bair', '--nx', '128'], '--nx 128: frames of bair are 64 wide'),
    (['--lr_scheduling_burnin', '0', '--lr_scheduling_n_iter', '0'], 'no step to train'),
    (['--subsampling', '4'], '--subsampling 4 belongs to dataset human, found smmnist'),
    (['--dataset', 'kth', '--deterministic'], '--deterministic True belongs to dataset smmnist'),
    (['--torch_amp', '--apex_amp'], '--torch_amp and --apex_amp are mutually exclusive'),
    (['--ny', '0'], "--ny: expected a whole number of at least 1, found '0'"),
    (['--lr', 'nan'], '--lr: expected a number above 0'),
    (['--device', 'gpu'], '--device: expected a whole number'),
    (['--preset', 'kth', '--dynamics', 'gru'], '--n_euler_steps 2: gru dynamics take one step'),
    (['--archi', 'resnet'], 'invalid choice'),
    (['--n_euler_step', '2'], 'unrecognized arguments: --n_euler_step 2; --help lists all'),
    (['--preset', 'mnist'], 'invalid choice'),
])
def test_contradictory_and_misspelt_options_are_one_sentence(options, message, call):
    code, out, err = call(train.main, '--preset', 'smmnist', *BASE, *options)
    assert code == 2 and re.search(message, err)
    assert err.startswith('error: ') and err.count('\n') == 1 and not out


def test_missing_options_and_files(tmp_path):
    for argv, message in ((BASE, 'required: .*--ny'),
                          (['--preset', 'smmnist', '--data_dir', 'd'], '--save_path is missing'),
                          (['--preset', 'smmnist', '--save_path', 's'], '--data_dir is missing'),
                          (['--resume'], '--resume needs --save_path'),
                          (['--config', 'nowhere.yaml', *BASE], 'nowhere.yaml')):
        with pytest.raises(UserError, match=message):
            parse_train(argv)
    file = tmp_path / 'bad.yaml'
    for text, message in (('n_f: 3', 'unrecognized arguments: --n_f'), ('ny: -2', '--ny'),
                          ('no-skipco: true', '--no-skipco'), ('ny: [', 'bad.yaml')):
        file.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            parse_train(['--preset', 'smmnist', '--config', str(file), *BASE])
        assert len(str(error.value).splitlines()) == 1, text
    values = yaml.safe_load((CONFIGS / 'kth.yaml').read_text())
    file.write_text(yaml.safe_dump({**values, 'preset': 'kth'}))
    with pytest.raises(UserError, match='preset kth belongs on the command line; use --preset kth'):
        parse_train(['--config', str(file), *BASE])


# config.json

def test_config_json_is_complete_and_resumes(tmp_path):
    saved = parse_train([*TINY, '--data_dir', 'd', '--save_path', str(tmp_path), '--skipco',
                         '--chkpt_interval', '5'])
    written = config_dict(saved)
    (tmp_path / 'config.json').write_text(json.dumps(written))
    assert (written['seq_len_test'], written['nx'], written['digit_source']) == (5, 64, 'mnist5k')
    assert config_dict(parse_train(['--resume', '--save_path', str(tmp_path)])) == written
    free = {'--chkpt_interval': '0', '--n_workers': '2', '--accumulate': '2', '--device': '0'}
    assert {name[2:] for name in free} < FREE_ON_RESUME
    config = parse_train(['--resume', '--save_path', str(tmp_path), *sum(free.items(), ())])
    assert (config.chkpt_interval, config.n_workers, config.device) == (0, 2, [0])
    for more, message in ((['--torch_amp'], 'started with torch_amp False, found True'),
                          (['--no-skipco'], 'started with skipco True, found False'),
                          (['--seed', '4'], 'started with seed 3, found 4'),
                          (['--ny', '9'], 'started with ny 4, found 9')):
        with pytest.raises(UserError, match=message):
            parse_train(['--resume', '--save_path', str(tmp_path), *more])


PUBLISHED_CONFIG = dict(  # the keys of published config.json files
    archi='vgg', dataset='kth', deterministic=False, max_speed=4, n_euler_steps=2, nc=1, nf=64,
    nh_inf=256, nh_res=512, nhx=128, nlayers_inf=3, nlayers_res=4, nt_cond=10, nt_inf=3,
    ndigits=2, nx=64, ny=50, nz=50, seq_len_test=30, skipco=True)


@pytest.fixture
def load_with(tmp_path):
    def load(**changes):
        (tmp_path / 'config.json').write_text(json.dumps({**PUBLISHED_CONFIG, **changes}))
        return load_config(tmp_path)
    return load


def test_published_configuration_needs_no_more_keys(load_with, tmp_path, capsys):
    config = load_with(device=1, batch_size=7)
    assert (config.seq_len, config.seq_len_test, config.skipco) == (None, 30, True)
    assert (config.digit_source, config.subsampling, config.dynamics) == ('mnist', 8, 'residual')
    assert config.device is None and config.batch_size == 7 and not capsys.readouterr().err
    assert load_with(nx=128).nx == 128
    load_with(n_f=3)
    assert 'config.json: ignoring unknown keys n_f' in capsys.readouterr().err
    for change, message in (
            ({'nx': 96}, '--nx 96: frames of kth are 32 or 64 or 128 or 256 wide'),
            ({'nc': 3}, '--nc 3: frames of kth have 1 channels'), ({'skipco': 'maybe'}, '.*skipco'),
            ({'archi': 'resnet'}, '.*archi: invalid choice'), ({'ny': 'many'}, '.*ny: expected'),
            ({'dynamics': 'gru'}, '--n_euler_steps 2: gru dynamics take one step per frame')):
        with pytest.raises(UserError, match=f'{re.escape(str(tmp_path))}/config.json: {message}'):
            load_with(**change)
    for text, message in (('{"ny": 3', 'is not a JSON file'), ('[1]', 'holds a list'),
                          ('{"dataset": "kth"}', 'required: ')):
        (tmp_path / 'config.json').write_text(text)
        with pytest.raises(UserError, match=message):
            load_config(tmp_path)
    with pytest.raises(FileNotFoundError, match='nowhere/config.json'):
        load_config('nowhere')


def test_released_configuration(capsys):
    config = load_config(ROOT / 'pretrained' / 'smmnist_cpu')
    assert config.digit_source == 'mnist' and config.ndigits == 2
    assert (config.nf, config.seq_len_test, config.torch_amp) == (24, 25, True)
    assert not capsys.readouterr().err


# Published evaluations

def protocol_of(preset, n_predicted):
    config = preset_config(preset)
    return {'dataset': config.dataset, 'size': 64, 'conditioning_frames': config.nt_cond,
            'predicted_frames': n_predicted,
            **{name: getattr(config, name) for name in DATASETS[config.dataset].options}}


def test_lengths_and_scores_of_published_evaluations():
    lengths = {'smmnist': (5, 25), 'smmnist_deterministic': (5, 100), 'kth': (10, 40),
               'human': (8, 53), 'bair': (2, 30)}
    scored = {'smmnist': ['psnr', 'ssim'], 'kth': ['psnr', 'ssim', 'lpips', 'fvd'],
              'bair': ['psnr', 'ssim', 'lpips', 'fvd']}
    assert list(PUBLISHED) == list(lengths)
    for preset, (nt_cond, nt_gen) in lengths.items():
        protocol = protocol_of(preset, nt_gen - nt_cond)
        assert find_published(protocol) == {**PUBLISHED[preset], 'nt_cond': nt_cond}
        assert PUBLISHED[preset]['nt_gen'] == nt_gen
        assert list(published_scores(protocol)) == scored.get(preset, [])
        assert f'Evaluate with --nt_gen {nt_gen}' in (CONFIGS / f'{preset}.yaml').read_text()
        assert not published_scores({**protocol, 'predicted_frames': nt_gen - nt_cond - 1})
        assert find_published({**protocol, 'size': 128}) is None
    assert find_published({**protocol_of('smmnist', 20), 'digit_source': 'mnist5k'}) is None
    kth = protocol_of('kth', 30)
    assert published_scores(kth)['psnr'] == '29.69 ± 0.32'
    assert published_scores({**kth, 'fvd_note': None}) == published_scores(kth)
    assert 'fvd' not in published_scores({**kth, 'fvd_note': 'other weights'})


def test_another_test_set_under_the_published_name_has_no_published_scores(capsys):
    """Compared by the first video, which is known of both sets of Moving MNIST."""
    published = PUBLISHED['smmnist']['first_video_sha256']
    protocol = {**protocol_of('smmnist', 20), 'test_set': 'smmnist_test_2digits_64.npz'}
    for digest, is_published in ((published, True), ('0' * 64, False)):
        protocol['first_video_sha256'] = digest
        assert bool(published_scores(protocol)) is is_published
        note_differences(protocol)
        note = 'smmnist_test_2digits_64.npz is not the published test set: its first video is'
        assert (note in capsys.readouterr().err) is not is_published


# Scripts

def test_device():
    assert get_device('cpu') == get_device(None) == torch.device('cpu')
    assert parse_train(['--preset', 'smmnist', *BASE, '--device', 'cpu']).device == ['cpu']
    with pytest.raises(UserError, match='--device 99: 0 CUDA devices found; .* or --device cpu'):
        get_device(99)


@pytest.mark.parametrize('main', [train.main, test_evaluation.script.main, make_test_set.main],
                         ids=['train', 'test', 'make_test_set'])
def test_help(main, call):
    code, out, err = call(main, '--help')
    assert code == 0 and not err
    assert '(default: ' in out and 'default: None' not in ' '.join(out.split())
