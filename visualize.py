"""Draw what a trained model has learned.

`python visualize.py WHAT …`; see --help.
"""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from files import (Parser, UserError, count, nonnegative_int, number, positive_float, positive_int,
                   run_script)

from args import (add_dataset_options, add_device_option, add_length_options, add_model_options,
                  fill_from_config, load_config)
from data import load_videos
from pictures import charts, views
from pictures.frames import shortened
from training.log import read_log
from utils import get_device, load_model


class Visual(NamedTuple):
    """What a WHAT draws."""
    draw: Callable    # see `pictures.views`
    text: str
    index: tuple      # videos of the test set, by default
    endings: tuple    # of the files to write, by default
    possible: tuple = ('.png', '.gif', '.mp4')


VISUALS = {
    'samples': Visual(views.samples, 'futures of a video, with their mean and standard deviation',
                      (0,), ('.png', '.gif')),
    'futures': Visual(views.futures, 'truth, best and random futures of several videos',
                      (0, 1, 2), ('.png', '.gif')),
    'framerate': Visual(views.framerate, 'frames between frames, from the states at Euler steps',
                        (0,), ('.gif',)),
    'swap': Visual(views.swap, 'content of each video with the motion of each other one',
                   (0, 1, 2), ('.gif',)),
    'interpolate': Visual(views.interpolate, 'frames between the first frames of two videos',
                          (0, 1), ('.png',)),
    'latent': Visual(views.latent, 'states of videos over time, in a plane (PCA)',
                     (0, 1, 2, 3), ('.png',), ('.png',)),
    'predict': Visual(views.predict, 'futures of any video, a file or a folder of pictures',
                      (), ('.mp4',), ('.mp4', '.gif', '.png', '.npz')),
}


def visualize_parser():
    parser = Parser('Draw what a trained model has learned. `python visualize.py WHAT --help` '
                    'lists the options of each.')
    verbs = parser.add_subparsers(title='WHAT', dest='what', metavar='WHAT', required=True)
    for what, visual in VISUALS.items():
        p = verbs.add_parser(what, help=visual.text, description=f'Draw {visual.text}.')
        if what == 'predict':
            p.add_argument('video', metavar='VIDEO',
                           help="file or folder of pictures, converted like the model's dataset")
            p.add_argument('--t_0', type=nonnegative_int, default=0, metavar='T',
                           help='its first conditioning frame, counted after conversion')
            p.add_argument('--crop', choices=['centre', 'none'], default='centre',
                           help='the central square, or the whole frame in black bars; not for '
                                'models of KTH and Human3.6M')
            p.add_argument('--video_fps', type=positive_float, metavar='F',
                           help='frames per second that the video is brought to, for the same '
                                'models; default: each of its frames once')
        else:
            p.add_argument('--data_dir', required=True, help='folder of the dataset')
            add_dataset_options(p)
            alone = '; each is drawn to its own files' * (what in ('samples', 'framerate'))
            p.add_argument('--index', type=nonnegative_int, metavar='I',
                           nargs=2 if what == 'interpolate' else '+', default=visual.index,
                           help=f'videos of the test set, from 0{alone}')
        add_model_options(p)
        add_length_options(p)
        p.add_argument('--n_samples', type=positive_int, metavar='N',
                       default=5 if what == 'predict' else 100,
                       help='futures; the same seed, number and --nt_gen give those of test.py')
        if what not in ('samples', 'futures', 'predict'):
            p.add_argument('--sample', type=positive_int, default=1, metavar='K',
                           help='which of them to show, from 1')
        if what == 'framerate':
            p.add_argument('--n_euler_steps', type=number(int, 2), default=4, metavar='N',
                           help='Euler steps per predicted frame, all of them decoded')
        elif what != 'interpolate':
            p.add_argument('--n_euler_steps', type=positive_int, metavar='N',
                           help='Euler steps per predicted frame; default: as trained')
        p.add_argument('--seed', type=nonnegative_int, default=1, help='--test_seed of test.py')
        files = ' and '.join(f'<xp_dir>/visualize/{what}{end}' for end in visual.endings)
        p.add_argument('--out', nargs='+', type=file_of(visual.possible), metavar='FILE',
                       help=f'files to write, {" or ".join(visual.possible)}; default: {files}')
        p.add_argument('--overwrite', action='store_true', help='replace files of --out')
        if what == 'interpolate':
            p.add_argument('--steps', type=number(int, 2), default=9, metavar='N',
                           help='frames from end to end, both included')
        if what != 'latent':
            p.add_argument('--fps', type=positive_float, metavar='F',
                           default=10 if what == 'framerate' else 5,
                           help='frames per second of a .gif or .mp4')
        add_device_option(p)
    text = 'curves of training runs: loss and its terms, validation scores'
    p = verbs.add_parser('training', help=text, description=f'Draw {text}.')
    p.add_argument('runs', nargs='+', type=Path, metavar='RUN',
                   help='folders of runs of train.py, also while they go on')
    p.add_argument('--names', nargs='+', metavar='NAME',
                   help='of the runs in the picture; default: their folders')
    p.add_argument('--out', type=file_of(['.png']), metavar='FILE',
                   help='.png file to write; default: visualize/training.png in the first RUN')
    p.add_argument('--overwrite', action='store_true', help='replace the file --out')
    return parser


def file_of(endings):
    """Argument type: a path with one of these extensions."""
    def parse(text):
        if Path(text).suffix.lower() not in endings:
            raise ArgumentTypeError(f'{text} does not end with {" or ".join(endings)}')
        return Path(text)
    return parse


def prepare(paths, args):
    """Make the folders of files to write; an earlier file --out is a UserError."""
    for path in paths:
        if args.out and path.exists() and not args.overwrite:
            raise UserError(f'--out {path} exists; use another file, or --overwrite')
        path.parent.mkdir(parents=True, exist_ok=True)


def get_videos(args, config):
    """Videos to draw, uint8 (T, B, H, W, C), their indices and their names.

    A video of `predict` may lack its last frames; its futures use the noise of test video 0.
    """
    if args.what == 'predict':
        from preprocessing.video import read_video  # decoders, which only this needs
        video, note = read_video(args.video, config, args.t_0, args.nt_gen, args.crop,
                                 args.video_fps)
        if len(video) < args.nt_cond:
            raise UserError(f'{args.video} has {count(len(video), "frame")} from --t_0 {args.t_0} '
                            f'on, but there are {args.nt_cond} conditioning frames (--nt_cond); '
                            'use a longer video, or a smaller --t_0 or --nt_cond')
        if note:
            print(f'note: {args.video} is damaged, but was read ({note})')
        return video[:, None], [0], [Path(args.video).resolve().name]
    videos, names = load_videos(config, args.data_dir, args.index, args.nt_gen)
    return videos, args.index, names


def main(argv=None):
    parser = visualize_parser()
    args = parser.parse_args(argv)
    if args.what == 'training':
        path = args.out or args.runs[0] / 'visualize' / 'training.png'
        runs = {name: read_log(folder)
                for name, folder in charts.by_name(args.runs, args.names).items()}
        prepare([path], args)
        charts.training_curves(path, runs)
        print(f'training: {path}')
        return
    visual, config = VISUALS[args.what], load_config(args.xp_dir)
    if args.what == 'framerate' and config.dynamics != 'residual':
        raise UserError(f'framerate needs residual dynamics, but those of {args.xp_dir} are '
                        f'{config.dynamics}: there are no states between frames; '
                        'use another model')
    fill_from_config(args, config)
    if 'sample' in args and args.sample > args.n_samples:
        parser.error(f'--sample {args.sample} is more than the {args.n_samples} futures '
                     '(--n_samples) to draw')
    truth, index, names = get_videos(args, config)
    names = list(map(shortened, names))
    out = args.out or [Path(args.xp_dir, 'visualize', f'{args.what}{end}')
                       for end in visual.endings]
    jobs = [(slice(None), out)]  # videos, and files of their pictures
    if args.what in ('samples', 'framerate') and len(index) > 1:
        jobs = [(slice(b, b + 1), [path.with_stem(f'{path.stem}_{i}') for path in out])
                for b, i in enumerate(index)]
    prepare([path for _, paths in jobs for path in paths], args)
    args.device = get_device(args.device)
    model = load_model(config, Path(args.xp_dir, args.model_name), args.device)
    for part, paths in jobs:
        visual.draw(model, truth[:, part], index[part], names[part], paths, args)
        for path in paths:
            print(f'{args.what}: {path}', flush=True)


if __name__ == '__main__':
    run_script(main)
