"""Options of training and those that scripts share; presets, `config.json` and its checks.

A configuration is resolved once: defaults < preset < `--config` file < command line. It is then
checked, written as `config.json`, and everything downstream reads that.
"""

import argparse
import json
import sys
from pathlib import Path

from files import (Parser, UserError, device, nonnegative_float, nonnegative_int, positive_float,
                   positive_int, read_json)

import configargparse
import yaml

from data import DATASETS, find_size
from module import ENCODERS

CONFIGS = Path(__file__).resolve().parent / 'configs'
PUBLISHED = yaml.safe_load((CONFIGS / 'published.yaml').read_text())  # by preset
PRESETS = [*PUBLISHED, 'folder']
FLAG = argparse.BooleanOptionalAction  # --name and --no-name, which reverts a preset or a file


def add_model_options(parser):
    """Add `--xp_dir` and `--model_name`, which name a trained model."""
    parser.add_argument('--xp_dir', required=True,
                        help='folder of the trained model: config.json and the weights')
    parser.add_argument('--model_name', default='model.pt', help='weights, in --xp_dir')


def add_device_option(parser, several=False):
    """Add `--device`: one device or, with `several`, a list of one per process on a machine."""
    text = 'index of a CUDA device, or cpu; default: cpu'
    if several:
        text += '; under torchrun, one per process on the machine'
        parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                            help='set by older distributed launchers')
    parser.add_argument('--device', type=device, metavar='N', nargs='+' if several else None,
                        help=text)


def add_length_options(parser, default='as trained'):
    """Add `--nt_cond` and `--nt_gen`, as completed by `fill_from_config`."""
    parser.add_argument('--nt_cond', type=positive_int,
                        help=f'conditioning frames; default: {default}')
    parser.add_argument('--nt_gen', type=positive_int,
                        help=f'frames, conditioning frames included; default: {default}')


def add_i3d_option(parser):
    """Add `--i3d_path`, the weights of the network of the Fréchet video distance."""
    parser.add_argument('--i3d_path',
                        help='weights of I3D, converted by metrics/convert_i3d.py; '
                             'default: searched for in $SRVP_CACHE (~/.cache/srvp)')


def add_dataset_options(parser):
    """Add the options of datasets that name another test set than that of the training."""
    for entry in DATASETS.values():
        for name in entry.test_options:
            arguments = {**entry.options[name], 'default': None}
            arguments['help'] += '; default: as trained'
            parser.add_argument(f'--{name}', **arguments)


# Training configuration

# (default, arguments of add_argument, help); None: no default, for `required` ones on purpose
RUN = {
    'seed': (None, dict(type=nonnegative_int), 'random seed; default: drawn at random, and saved'),
    'n_workers': (4, dict(type=nonnegative_int), 'processes that load data; 0: the main process'),
    'torch_amp': (False, dict(action=FLAG), 'half precision; the loss stays in float32'),
    'amp_dtype': ('auto', dict(choices=['auto', 'float16', 'bfloat16']),
                  'of --torch_amp; auto: bfloat16 if the hardware has it, else float16'),
    'apex_amp': (False, dict(action=FLAG), 'half precision with NVIDIA apex'),
    'amp_opt_lvl': ('O1', dict(choices=['O0', 'O1', 'O2', 'O3']), 'optimisation level of apex'),
    'keep_batchnorm_fp32': (None, dict(action=FLAG), 'apex keeps batch normalisation in float32'),
    'apex_verbose': (False, dict(action=FLAG), 'verbose output of apex'),
    'accumulate': (1, dict(type=positive_int),
                   'accumulate gradients over this many parts of a batch, to save memory: the same '
                   'gradient, but batch normalisation sees one part at a time'),
}
MODEL = {
    'archi': ('dcgan', dict(choices=list(ENCODERS)), 'architecture of encoder and decoder'),
    'skipco': (False, dict(action=FLAG), 'skip connections from encoder to decoder'),
    'nf': (64, dict(type=positive_int), 'width of encoder and decoder'),
    'nhx': (128, dict(type=positive_int), 'size of frame codes'),
    'ny': (None, dict(type=positive_int, required=True), 'size of the state y'),
    'nz': (None, dict(type=positive_int, required=True), 'size of the random variable z'),
    'dynamics': ('residual', dict(choices=['residual', 'mlp', 'gru']),
                 'next state: residual, y + f(y, z) / n_euler_steps; or an ablation of the paper, '
                 'mlp, f(y, z), or gru, GRU(z, y), which have no residuals'),
    'n_euler_steps': (1, dict(type=positive_int), 'Euler steps per frame, of residual dynamics'),
    'nt_inf': (None, dict(type=positive_int, required=True),
               'frames from which y_0 and w are inferred'),
    'nh_inf': (256, dict(type=positive_int), 'width of the inference networks, and size of w'),
    'nlayers_inf': (3, dict(type=positive_int), 'layers of the inference network of y_0'),
    'nh_res': (512, dict(type=positive_int), 'width of prior and dynamics'),
    'nlayers_res': (4, dict(type=positive_int), 'layers of prior and dynamics'),
    'res_gain': (1.41, dict(type=positive_float),
                 'gain of the orthogonal initialisation of the dynamics'),
}
LOSS = {
    'obs_scale': (1., dict(type=positive_float), 'standard deviation of the observation model'),
    'beta_y': (1., dict(type=nonnegative_float), 'weight of the KL divergence of y_0'),
    'beta_z': (1., dict(type=nonnegative_float), 'weight of the KL divergence of z'),
    'l2_res': (1., dict(type=nonnegative_float), 'weight of the norms of the residuals'),
    'batch_size': (128, dict(type=positive_int), 'videos per step, over all processes'),
    'lr': (3e-4, dict(type=positive_float), 'learning rate of Adam'),
    'lr_scheduling_burnin': (1_000_000, dict(type=nonnegative_int),
                             'steps at the full learning rate'),
    'lr_scheduling_n_iter': (100_000, dict(type=nonnegative_int),
                             'further steps, over which it decays linearly to 0'),
}
DATA = {
    'dataset': (None, dict(choices=DATASETS, required=True), 'dataset'),
    'seq_len': (None, dict(type=positive_int), 'frames per training video; required'),
    'nx': (None, dict(type=positive_int),
           'width and height of frames; default: that of the converted videos, or 64'),
    'nc': (None, dict(type=positive_int, required=True), 'channels of frames'),
}
VALIDATION = {
    'val_interval': (20_000, dict(type=positive_int), 'steps between validations'),
    'n_iter_test': (25, dict(type=positive_int), 'batches per validation'),
    'batch_size_test': (16, dict(type=positive_int), 'videos per validation batch'),
    'n_samples_test': (100, dict(type=positive_int), 'predictions per validation video'),
    'nt_cond': (None, dict(type=positive_int, required=True),
                'conditioning frames in validation and test'),
    'seq_len_test': (None, dict(type=positive_int),
                     'frames in validation and test, conditioning frames included; '
                     'default: seq_len'),
    'chkpt_interval': (None, dict(type=nonnegative_int),
                       'steps between checkpoints model_<step>.pt; default, or 0: none'),
    'state_interval': (1000, dict(type=positive_int),
                       'steps between training states, for --resume; also every ten minutes'),
    'log_interval': (100, dict(type=positive_int),
                     'steps averaged in each entry of log.csv and TensorBoard'),
}
GROUPS = {'Model': MODEL, 'Loss and optimisation': LOSS, 'Data': DATA,
          'Validation, checkpoints and logs': VALIDATION}
OPTIONS = {**RUN, **MODEL, **LOSS, **DATA, **VALIDATION}

# Options of a single call, not part of the configuration
TRANSIENT = {'config', 'resume', 'dry_run', 'local_rank'}
# Options that may change on --resume without changing the result, up to rounding and, for
# `accumulate`, batch statistics
FREE_ON_RESUME = TRANSIENT | {
    'save_path', 'data_dir', 'device', 'n_workers', 'amp_dtype', 'accumulate', 'val_interval',
    'chkpt_interval', 'state_interval', 'log_interval'}


class TrainParser(Parser, configargparse.ArgumentParser):
    """Parser whose options also come from files."""

    def get_possible_config_keys(self, action):
        # Otherwise `no-skipco: true` in a file would mean `skipco: true`
        keys = super().get_possible_config_keys(action)
        return [key for key in keys if not key.lstrip('-').startswith('no-')]


def train_parser(base=()):
    """Parser of `train.py`; `base` lists files of options that come before `--config`."""
    parser = TrainParser('Train SRVP. Options on the command line override those of the --config '
                         'file, which override those of --preset.', prog='train.py',
                         default_config_files=list(map(str, base)),
                         config_file_parser_class=configargparse.YAMLConfigFileParser)
    g = parser.add_argument_group('Run')
    g.add_argument('--config', is_config_file=True, metavar='FILE',
                   help='YAML file of options, named as here')
    g.add_argument('--preset', choices=PRESETS,
                   help='published configuration, or folder, one for your own videos '
                        '(configs/<preset>.yaml)')
    g.add_argument('--save_path',
                   help='folder of the run, created if missing; must not hold a run yet, '
                        'unless --resume continues it')
    g.add_argument('--data_dir', help='folder of the dataset')
    g.add_argument('--resume', action='store_true',
                   help='continue the run in --save_path from its last state, with the '
                        'configuration saved there')
    g.add_argument('--weights', metavar='FILE',
                   help='weights that a new run starts from, such as RUN/model.pt, published or '
                        'your own; the learning rate schedule starts at step 1')
    g.add_argument('--dry_run', action='store_true',
                   help='print the configuration and the size of the model, then exit')
    add_device_option(g, several=True)
    add_options(g, RUN)
    for title, options in GROUPS.items():
        add_options(parser.add_argument_group(title), options)
    for name, entry in DATASETS.items():
        if entry.options:
            g = parser.add_argument_group(f'Dataset {name}')
            for option, arguments in entry.options.items():
                g.add_argument(f'--{option}', **arguments)
    return parser


def add_options(group, options):
    for name, (default, arguments, text) in options.items():
        group.add_argument(f'--{name}', default=default, help=text, **arguments)


def parse_train(argv=None):
    """Resolve and check the configuration of `train.py`; a UserError says what is wrong."""
    first = Parser('', add_help=False)
    first.add_argument('--preset', choices=PRESETS)
    first.add_argument('--save_path')
    first.add_argument('--resume', action='store_true')
    first, _ = first.parse_known_args(argv)
    base, saved = [], {}
    if first.resume:
        if first.save_path is None:
            raise UserError('--resume needs --save_path, the folder of the run to continue')
        base = [Path(first.save_path) / 'config.json']
        saved = read_json(base[0])
    elif first.preset:
        base = [CONFIGS / f'{first.preset}.yaml']
    config = train_parser(base).parse_args(argv)
    for key in saved.keys() & vars(config).keys() - FREE_ON_RESUME:
        if getattr(config, key) != saved[key]:
            raise UserError(f'--resume: the run was started with {key} {saved[key]}, found '
                            f'{getattr(config, key)}; leave the option out, or start a new run in '
                            'another folder')
    for name, needless in (('seq_len', False), ('save_path', config.dry_run),
                           ('data_dir', config.dry_run)):
        if getattr(config, name) is None and not needless:
            raise UserError(f'--{name} is missing; --help says what it is')
    if config.preset != first.preset and not saved:
        raise UserError(f'--config: preset {config.preset} belongs on the command line; use '
                        f'--preset {config.preset}')
    if config.seq_len_test is None:
        config.seq_len_test = config.seq_len
    if config.nx is None:
        config.nx = find_size(config.dataset, config.data_dir)
    check(config)
    return config


def check(c):
    """Raise a UserError for options that contradict each other."""
    entry = DATASETS[c.dataset]
    rules = [
        (c.nx in entry.sizes, f'--nx {c.nx}: frames of {c.dataset} are '
                              f'{" or ".join(map(str, entry.sizes))} wide and high; use that'),
        (c.nc in entry.channels, f'--nc {c.nc}: frames of {c.dataset} have '
                                 f'{" or ".join(map(str, entry.channels))} channels; use that'),
        (c.n_euler_steps == 1 or c.dynamics == 'residual',
         f'--n_euler_steps {c.n_euler_steps}: {c.dynamics} dynamics take one step per frame; set '
         'it to 1'),
        (c.nt_cond >= c.nt_inf, f'--nt_cond {c.nt_cond} is less than --nt_inf {c.nt_inf}, the '
                                'frames from which y_0 is inferred; use more'),
        (c.seq_len is None or c.seq_len >= max(c.nt_inf, 2),
         f'--seq_len {c.seq_len} is less than --nt_inf {c.nt_inf}, the frames from which y_0 is '
         'inferred, or than 2; use more'),
        (c.seq_len_test is None or c.seq_len_test > c.nt_cond,
         f'--seq_len_test {c.seq_len_test} leaves no frame to predict after --nt_cond '
         f'{c.nt_cond}; use more (default: --seq_len)'),
        (c.lr_scheduling_burnin + c.lr_scheduling_n_iter > 0,
         '--lr_scheduling_burnin and --lr_scheduling_n_iter are both 0: there is no step to train'),
        (not (c.torch_amp and c.apex_amp),
         '--torch_amp and --apex_amp are mutually exclusive; leave one out, or turn it off with '
         '--no-torch_amp or --no-apex_amp'),
        *((getattr(c, name) == arguments['default'],
           f'--{name} {getattr(c, name)} belongs to dataset {dataset}, found {c.dataset}')
          for dataset, other in DATASETS.items() if other is not entry
          for name, arguments in other.options.items())]
    obey(rules)


def obey(rules):
    """Raise a UserError for the first of the rules, (holds, sentence), that does not hold."""
    for holds, sentence in rules:
        if not holds:
            raise UserError(sentence)


# Configurations of trained models

def config_dict(config):
    """Content of `config.json`."""
    return {k: v for k, v in sorted(vars(config).items()) if k not in TRANSIENT}


def load_config(xp_dir):
    """Configuration of a trained model, published or your own; missing keys get their defaults.

    Options of the call that trained it, such as `device`, are not part of it. `seq_len`,
    `seq_len_test` and `data_dir` may be None.
    """
    path = Path(xp_dir) / 'config.json'
    found = read_json(path)
    own = {name for entry in DATASETS.values() for name in entry.options}
    model = {name: found[name] for name in found.keys() & (OPTIONS.keys() | own)}
    try:  # as the content of a --config file, which is converted and checked like arguments
        config = train_parser().parse_args([],
                                           config_file_contents=json.dumps({'nx': 64, **model}))
        check(config)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    if unknown := sorted(found.keys() - vars(config).keys()):
        print(f'note: {path}: ignoring unknown keys {", ".join(unknown)}', file=sys.stderr)
    config.seq_len_test = config.seq_len_test or config.seq_len
    return config


def preset_config(preset):
    """Configuration of a preset, with frames of 64 x 64."""
    return parse_train(['--preset', preset, '--nx', '64', '--dry_run'])


def fill_from_config(args, config):
    """Set missing lengths and Euler steps of `args` as in training, and check them.

    Options of `add_dataset_options` are set in the configuration.
    """
    for name in DATASETS[config.dataset].test_options:
        if getattr(args, name, None) is not None:
            setattr(config, name, getattr(args, name))
    args.nt_cond = args.nt_cond or config.nt_cond
    args.nt_gen = args.nt_gen or config.seq_len_test
    args.n_euler_steps = getattr(args, 'n_euler_steps', None) or config.n_euler_steps
    obey([
        (args.n_euler_steps == 1 or config.dynamics == 'residual',
         f'--n_euler_steps {args.n_euler_steps}: {config.dynamics} dynamics take one step per '
         'frame; leave the option out'),
        (args.nt_gen is not None and config.nt_inf <= args.nt_cond < args.nt_gen,
         f'--nt_cond {args.nt_cond} and --nt_gen {args.nt_gen} do not fit: the model infers y_0 '
         f'from {config.nt_inf} frames, and --nt_gen counts the conditioning frames and at least '
         'one predicted frame')])


# Published evaluations

def find_published(protocol):
    """Entry of `configs/published.yaml`, with `nt_cond`, of the test set of a protocol, or None."""
    for preset, entry in PUBLISHED.items():
        config = preset_config(preset)
        same = {'dataset': config.dataset, 'size': config.nx} | {
            name: getattr(config, name) for name in DATASETS[config.dataset].options}
        if all(protocol.get(name) == value for name, value in same.items()):
            return {**entry, 'nt_cond': config.nt_cond}
    return None


def has_published_videos(paper, protocol):
    """Whether the test set of a protocol of published length is the published one, if known."""
    digests = paper.get('first_video_sha256'), protocol.get('first_video_sha256')
    return None in digests or digests[0] == digests[1]


def published_scores(protocol):
    """Published scores (text by metric) with the test set and the lengths of a protocol."""
    paper = find_published(protocol)
    lengths = protocol['conditioning_frames'], protocol['predicted_frames']
    if (paper is None or (paper['nt_cond'], paper['nt_gen'] - paper['nt_cond']) != lengths
            or not has_published_videos(paper, protocol)):
        return {}
    return {name: text for name, text in paper['scores'].items()
            if name != 'fvd' or not protocol.get('fvd_note')}  # of other weights
