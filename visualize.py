"""Draw what a trained model has learned.

`python visualize.py WHAT --xp_dir RUN --data_dir DATA`; see --help.
"""

import os
from pathlib import Path
from typing import NamedTuple

from args import DIGIT_SOURCES, add_model_options, fill_from_config, load_config
from data import load_test
from files import UserError, count, make_folder, run_script
from logs import read_log
from parsing import (
    Parser,
    add_device_option,
    euler_steps,
    frames,
    nonnegative_int,
    number,
    positive_int,
    seed,
)
from preprocessing.decoding import find_ffmpeg


class Visual(NamedTuple):
    """What a WHAT draws, and of which videos."""
    text: str
    formats: tuple = ('.png', '.gif', '.mp4')
    default_formats: tuple = ('.gif',)
    min_videos: int = 1
    max_videos: int = None  # any number: each gets its own files
    default_videos: int = 1

    @property
    def videos(self):
        """Number of videos, in words."""
        if self.max_videos is None:
            return f'{self.min_videos} or more, each drawn to its own file'
        if self.min_videos == self.max_videos:
            return str(self.min_videos)
        return f'{self.min_videos} to {self.max_videos}'


VISUALS = {
    'samples': Visual('futures of a video, with their mean and standard deviation',
                      default_formats=('.png', '.gif')),
    'framerate': Visual('frames between frames, from the states at Euler steps'),
    'swap': Visual('content of each video with the motion of each other one',
                   min_videos=2, max_videos=12, default_videos=3),
    'interpolate': Visual('frames between the first frames of two videos',
                          default_formats=('.png',), min_videos=2, max_videos=2, default_videos=2),
    'latent': Visual('states of videos over time, in a plane (PCA)', ('.png',), ('.png',),
                     max_videos=10, default_videos=4),
    'predict': Visual('futures of any video, a file or a folder of frames',
                      ('.mp4', '.gif', '.png', '.npz'), ('.mp4',)),
}


# Options

def visualize_parser():
    """Parser of `visualize.py`, with a subparser for each WHAT."""
    parser = Parser('Draw what a trained model has learned. `python visualize.py WHAT --help` '
                    'lists the options of each.')
    verbs = parser.add_subparsers(title='WHAT', dest='what', metavar='WHAT', required=True)
    for what, visual in VISUALS.items():
        text = visual.text[0].upper() + visual.text[1:] + '.'
        subparser = verbs.add_parser(what, help=visual.text, description=text)
        add_model_options(subparser)
        add_video_options(subparser, what)
        add_future_options(subparser, what)
        add_drawing_options(subparser, what)
        add_device_option(subparser)
    add_training_parser(verbs)
    return parser


def add_training_parser(verbs):
    text = 'curves of training runs: loss and its terms, validation scores'
    p = verbs.add_parser('training', help=text, description=text[0].upper() + text[1:] + '.')
    p.add_argument('--xp_dir', required=True, nargs='+', metavar='RUN',
                   help='folders of runs of train.py, also while they go on')
    p.add_argument('--names', nargs='+', metavar='NAME',
                   help='of the runs in the picture; default: their folders')
    p.add_argument('--out', metavar='FILE',
                   help='.png file to write; default: visualize/training.png in the first RUN')


def add_video_options(p, what):
    if what == 'predict':
        p.add_argument('--video', required=True, metavar='PATH',
                       help='video file, or folder of pictures; cropped and resized as in the '
                            "conversion of the model's dataset")
        p.add_argument('--t_0', type=nonnegative_int, default=0, metavar='T',
                       help='its first conditioning frame, counted after conversion')
        return
    visual = VISUALS[what]
    default = ' '.join(map(str, range(visual.default_videos)))
    p.add_argument('--data_dir', required=True, help='folder of the dataset')
    p.add_argument('--digits', choices=DIGIT_SOURCES,
                   help='Moving MNIST: videos of the test set of these digits; default: as trained')
    p.add_argument('--index', type=nonnegative_int, nargs='+', metavar='I',
                   help=f'videos of the test set, from 0: {visual.videos}; default: {default}, or '
                        'as many as there are')


def add_future_options(p, what):
    p.add_argument('--nt_cond', type=frames, metavar='T',
                   help='conditioning frames; default: as trained')
    p.add_argument('--nt_gen', type=frames, metavar='T',
                   help='frames, conditioning frames included; default: as trained (seq_len_test)')
    if what == 'predict':
        p.add_argument('--n_samples', type=positive_int, default=5, metavar='N', help='futures')
    else:
        p.add_argument('--n_samples', type=positive_int, default=100, metavar='N',
                       help='futures to draw; the same seed, number and --nt_gen give those of '
                            'test.py')
    if what in ('framerate', 'swap', 'interpolate', 'latent'):
        p.add_argument('--sample', type=positive_int, default=1, metavar='K',
                       help='which of them to show, from 1')
    if what == 'framerate':
        p.add_argument('--n_euler_steps', type=number(int, 2), default=4, metavar='N',
                       help='Euler steps per predicted frame, all of them decoded')
    elif what != 'interpolate':
        p.add_argument('--n_euler_steps', type=euler_steps, metavar='N',
                       help='Euler steps per predicted frame; default: as trained')
    p.add_argument('--seed', type=seed, default=1, help='of the futures (--test_seed of test.py)')


def add_drawing_options(p, what):
    visual = VISUALS[what]
    default = ' and '.join(f'<xp_dir>/visualize/{what}{end}' for end in visual.default_formats)
    p.add_argument('--out', nargs='+', metavar='FILE',
                   help=f'files to write, {" or ".join(visual.formats)}; default: {default}')
    if what == 'interpolate':
        p.add_argument('--steps', type=number(int, 2, 64), default=9, metavar='N',
                       help='frames from end to end, both included')
    if what != 'latent':
        p.add_argument('--fps', type=number(float, 0.1, 50), metavar='F',
                       default=10 if what == 'framerate' else 5,
                       help='frames per second of a .gif or .mp4; a .gif rounds durations to '
                            'multiples of 10 ms, at least 20 ms')


def parse_visualize(argv=None):
    """Options of `visualize.py`, checked as far as possible without the model.

    `out` becomes a list of Path; `files` is a list of the files of each video, or a list with
    those of all videos together.

    Raises
    ------
    UserError
    """
    parser = visualize_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        reject_unknown(parser, args.what, unknown)
    if args.what == 'training':
        check_training(args)
        return args
    visual = VISUALS[args.what]
    check_index(args, visual)
    args.out = [Path(path) for path in args.out or (
        f'{args.xp_dir}/visualize/{args.what}{end}' for end in visual.default_formats)]
    index = getattr(args, 'index', None) or []
    args.files = [args.out]
    if visual.max_videos is None and len(index) > 1:
        args.files = [[path.with_name(f'{path.stem}_{i}{path.suffix}') for path in args.out]
                      for i in index]
    for path in sum(args.files, []):
        check_out(path, args)
    if getattr(args, 'sample', 1) > args.n_samples:
        raise UserError(f'--sample {args.sample} is more than the {args.n_samples} futures '
                        '(--n_samples) to draw')
    return args


def reject_unknown(parser, what, unknown):
    """Raise a UserError for unknown options, which may belong to another WHAT."""
    parsers = next(a.choices for a in parser._actions if a.dest == 'what')
    option = unknown[0].split('=')[0]
    owners = [name for name, p in parsers.items() if option in p._option_string_actions]
    if owners:
        raise UserError(f'{option} belongs to {", ".join(owners)}, found {what}; leave it out')
    parsers[what].error(f'unrecognized arguments: {" ".join(unknown)}')


def check_training(args):
    """Check the options of `training`; `out` becomes a Path, `names` a list."""
    args.names, n = args.names or args.xp_dir, len(args.xp_dir)
    if len(args.names) != n:
        raise UserError(f'--names: found {len(args.names)} for {count(n, "run")} (--xp_dir); '
                        'give one for each')
    if len(set(args.names)) < n:
        raise UserError(f'--names: {" ".join(args.names)} has duplicates; use different ones')
    args.out = Path(args.out or Path(args.xp_dir[0], 'visualize', 'training.png'))
    check_file(args.out, 'training', ['.png'])


def check_index(args, visual):
    """Check `--index` against the number of videos that a WHAT takes."""
    index = getattr(args, 'index', None)
    if not index:
        return
    found = f'--index {" ".join(map(str, index))}'
    if not visual.min_videos <= len(index) <= (visual.max_videos or len(index)):
        raise UserError(f'{found}: {args.what} takes {visual.videos} videos, found {len(index)}')
    if len(set(index)) < len(index):
        raise UserError(f'{found} has duplicates; name each video once')


def check_out(path, args):
    """Check a file to write, and that it replaces none of the input."""
    check_file(path, args.what, VISUALS[args.what].formats)
    option = 'video' if args.what == 'predict' else 'data_dir'
    source, own, real = map(os.path.realpath, (
        getattr(args, option), Path(args.xp_dir, 'visualize'), path))
    inside = real.startswith(os.path.join(source, '')) and os.path.dirname(real) != own
    if real == source or (inside and (args.what == 'predict' or os.path.exists(real))):
        raise UserError(f'--out {path} would replace or mix with the content of --{option} '
                        f'{getattr(args, option)}; use another file')


def check_file(path, what, formats):
    """Check the name of a file to write."""
    if path.suffix.lower() not in formats:
        raise UserError(f'--out {path}: {what} is written as {" or ".join(formats)}; '
                        'use one of these extensions')
    n_bytes = len(os.fsencode(path.name))
    if n_bytes > 230:  # file systems allow 255, of which the temporary file needs some
        raise UserError(f'--out: the name of {path} has {n_bytes} bytes; use at most 230')
    if os.path.isdir(path):
        raise UserError(f'--out: {path} is a folder; use another file')


def resolve(argv=None):
    """Options and configuration of the model, checked.

    Missing options are taken from the configuration, which is None for `training`.
    """
    args = parse_visualize(argv)
    if args.what == 'training':
        return args, None
    config = load_config(args.xp_dir)
    if args.what == 'framerate' and config.dynamics != 'residual':
        raise UserError(f'framerate needs residual dynamics, but those of {args.xp_dir} are '
                        f'{config.dynamics}: there are no states between frames; '
                        'use another model')
    fill_from_config(args, config)
    if getattr(args, 'digits', None):
        if config.dataset != 'smmnist':
            raise UserError(f'--digits {args.digits} belongs to Moving MNIST, but {args.xp_dir} is '
                            f'a model of {config.dataset}; leave it out')
        config.digits = args.digits
    if args.what == 'predict':
        args.index = [0]  # futures use the noise of the first test video
        args.names = [os.path.basename(os.path.abspath(args.video))]
    if any(path.suffix.lower() == '.mp4' for path in args.out):
        find_ffmpeg()  # raises an error if it is missing
    return args, config


# Videos

def get_videos(args, config):
    """Videos to draw, uint8 (T, B, H, W, C), named by `args.names`.

    That of `--video` may lack its last frames.
    """
    if args.what == 'predict':
        return get_own_video(args, config)
    testset = load_test(config, args.data_dir, args.nt_gen)
    visual = VISUALS[args.what]
    if len(testset) < visual.min_videos:
        raise UserError(f'{args.what} takes {visual.min_videos} videos or more, but the test set '
                        f'in --data_dir {args.data_dir} has {len(testset)}; use a larger one')
    args.index = args.index or list(range(min(visual.default_videos, len(testset))))
    for i in args.index:
        if i >= len(testset):
            raise UserError(f'--index {i}: the test set has {len(testset)} videos; '
                            f'use numbers from 0 to {len(testset) - 1}')
    args.names = [testset.name(i) for i in args.index]
    return testset.videos(args.index)


def get_own_video(args, config):
    """The video of `--video`: uint8 (T, 1, H, W, C), nt_cond <= T <= nt_gen."""
    from preprocessing.video import read_video  # OpenCV and converters, which only this needs
    video, note = read_video(args.video, config, args.t_0, args.nt_gen)
    if len(video) < args.nt_cond:
        raise UserError(f'--video {args.video} has {len(video)} frames from --t_0 {args.t_0} on, '
                        f'but there are {args.nt_cond} conditioning frames (--nt_cond); use a '
                        'longer video, or a smaller --t_0 or --nt_cond')
    if note:
        print(f'note: {args.video} is damaged, but was read ({note})')
    return video[:, None]


def draw_training(args):
    """Draw the curves of training runs."""
    runs = {}
    for name, folder in zip(args.names, args.xp_dir):
        runs[name] = read_log(folder)
        if not runs[name][0]:
            raise UserError(f'{folder}/log.csv has no rows yet; wait for the first one')
    from pictures.charts import training_curves
    make_folder(args.out.parent, '--out: folder')
    training_curves(args.out, runs)
    print(f'training: {args.out}')


def main(argv=None):
    args, config = resolve(argv)
    if args.what == 'training':
        draw_training(args)
        return
    truth = get_videos(args, config)

    # Late, as they import PyTorch: --help and checks do without it
    from checkpoint import load_model
    from pictures.frames import shortened
    from pictures.views import VIEWS
    from sampling import check_memory
    from utils import get_device
    args.device = get_device(args.device)
    check_memory(config, args.device, truth.shape[1], args.nt_gen, args.n_samples,
                 args.n_euler_steps)
    model = load_model(config, Path(args.xp_dir) / args.model_name, args.device)
    for path in args.out:
        make_folder(path.parent, '--out: folder')
    for b, files in enumerate(args.files):
        part = slice(b, b + 1) if len(args.files) > 1 else slice(None)
        names = list(map(shortened, args.names[part]))
        drawing = VIEWS[args.what](model, truth[:, part], args.index[part], names, args)
        for path in files:
            drawing.write(path)
            print(f'{args.what}: {path}')


if __name__ == '__main__':
    run_script(main)
