"""Download a published model: `python pretrained.py NAME`; without NAME, list the models.

The files stay in the cache of huggingface_hub; they are copied only once they are known to be those
of the preset.
"""

import filecmp
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

from args import load_config, preset_config
from files import (
    UserError,
    WriteError,
    exclusive,
    make_folder,
    replacing_folder,
    run_script,
    sha256,
    writing,
)
from parsing import Parser
from published import PUBLISHED

ORIGIN = 'https://data.lip6.fr/srvp/'  # the authors' site
REPO = 'nkiyohara/srvp-pretrained-model-mirror'  # a mirror of it on the Hugging Face Hub
FILES = ['config.json', 'model.pt']


class Model(NamedTuple):
    """A published model."""
    folder: str  # in REPO
    parameters: int


MODELS = {  # by preset
    'smmnist': Model('mmnist/stochastic', 10_678_284),
    'smmnist_deterministic': Model('mmnist/deterministic', 10_678_284),
    'kth': Model('kth', 23_877_854),
    'human': Model('human', 23_880_158),
    'bair': Model('bair', 23_847_390),
}

# Options that determine the network and the test set. Not seq_len_test: the test command sets it
KEYS = ['archi', 'skipco', 'nf', 'nhx', 'ny', 'nz', 'dynamics', 'n_euler_steps', 'nt_inf',
        'nh_inf', 'nlayers_inf', 'nh_res', 'nlayers_res', 'nx', 'nc', 'dataset', 'nt_cond']
DATASET_KEYS = {'smmnist': ['digits', 'ndigits', 'max_speed', 'deterministic'],
                'human': ['subsampling']}


def pretrained_parser():
    """Parser of `pretrained.py`."""
    parser = Parser('Download a published model, or list all of them.')
    parser.add_argument('name', nargs='?', choices=MODELS, metavar='NAME',
                        help=f'{", ".join(MODELS)}; default: list them')
    parser.add_argument('--out_dir', help='folder of the model; default: pretrained/NAME')
    return parser


def main(argv=None):
    args = pretrained_parser().parse_args(argv)
    if args.name:
        out_dir = args.out_dir or f'pretrained/{args.name}'
        install(args.name, Path(out_dir).resolve())
        print_commands(args.name, out_dir)
    elif args.out_dir:
        raise UserError(f'--out_dir {args.out_dir} needs the NAME of a model; '
                        'without options, the models are listed')
    else:
        print_models()
    return 0


# Printing

def print_models():
    """Print the table of published models."""
    row = '{:23}{:28}{:>12}{:>8}  {:14}{:17}{}'.format
    print(row('NAME', 'dataset', 'parameters', 'MB', 'PSNR (dB)', 'SSIM', 'LPIPS'))
    for name, model in MODELS.items():
        megabytes = 4 * model.parameters / 1e6  # float32
        paper = PUBLISHED[name]
        print(row(name, paper.name, f'{model.parameters:,}', f'{megabytes:.0f}',
                  *(paper.scores.get(metric, '-') for metric in ('psnr', 'ssim', 'lpips'))))
    print('\nPublished scores: best of 100 samples, mean ± half-width of the 95% interval.\n'
          f'Models come from {REPO} on the Hugging Face Hub,\n'
          f'a mirror of {ORIGIN}, the site of the authors.\n'
          'To download one: python pretrained.py NAME\n'
          'A small one, trained on a CPU, is part of this repository: pretrained/smmnist_cpu')


def print_commands(name, out_dir):
    """Print the checksums of an installed model, and commands that use it."""
    for file in FILES:
        print(f'SHA-256 {sha256(Path(out_dir) / file)}  {file}')
    folder, weights = shlex.quote(out_dir), shlex.quote(f'{out_dir}/model.pt')
    print(f'evaluate:   python test.py --xp_dir {folder} --data_dir DATA '
          f'--nt_gen {PUBLISHED[name].nt_gen} --n_samples {PUBLISHED[name].n_samples}\n'
          f'train on:   python train.py --preset {name} --data_dir DATA --save_path RUN '
          f'--weights {weights}')


# Installation

def install(name, out_dir):
    """Put a published model into `out_dir`, or check that it is there already."""
    make_folder(out_dir.parent, '--out_dir')
    message = f'--out_dir {out_dir}: another process is downloading there; wait for it'
    with exclusive(out_dir.with_name(f'.{out_dir.name}.lock'), message):
        there = holds_model(out_dir)
        files = download(name)
        if there:
            compare(files, out_dir)
        else:
            place(files, out_dir)
    print(f'{out_dir} {"already holds" if there else "holds"} the published model {name}')


def holds_model(out_dir):
    """Whether `out_dir` holds a model; raise a UserError if it holds something else."""
    if all((out_dir / name).is_file() for name in FILES):
        return True
    if out_dir.exists() and not (out_dir.is_dir() and next(out_dir.iterdir(), None) is None):
        raise UserError(f'--out_dir {out_dir} exists, but does not hold {" and ".join(FILES)}; '
                        'use another folder')
    return False


def compare(files, out_dir):
    """Raise a UserError unless `out_dir` holds these very files."""
    for path in files:
        if not filecmp.cmp(path, out_dir / path.name, shallow=False):
            raise UserError(f'--out_dir {out_dir} holds another model ({path.name} differs); '
                            'use another folder')


def place(files, out_dir):
    """Copy files to `out_dir`, which appears with all of them."""
    with replacing_folder(out_dir) as tmp:
        for path in files:
            with writing(out_dir / path.name):
                shutil.copyfile(path, tmp / path.name)


def download(name):
    """Paths of the checked files of a published model, in the cache of huggingface_hub."""
    from huggingface_hub.constants import HF_HUB_CACHE
    folder = MODELS[name].folder
    files = []
    for file, check in zip(FILES, (check_config, check_weights)):
        path = fetch(folder, file)
        try:
            check(name, path)
        except UserError as error:
            found = str(error).replace(str(path), file)  # the path is long, and says little
            raise UserError(f'{REPO}/{folder}/{file} is not as published: {found}; to download it '
                            f'again, delete its copy in {HF_HUB_CACHE}') from None
        files.append(path)
    return files


def fetch(folder, file):
    """Path of a file of REPO in the cache of huggingface_hub, downloaded unless it is there."""
    from huggingface_hub import hf_hub_download, hf_hub_url
    address = hf_hub_url(REPO, file, subfolder=folder)
    try:
        return Path(hf_hub_download(REPO, file, subfolder=folder))
    except Exception as error:  # its version decides which library raises it
        raise download_error(address, error) from None


def download_error(address, error):
    """UserError for an exception of `hf_hub_download`."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import LocalEntryNotFoundError, OfflineModeIsEnabled
    if isinstance(error, LocalEntryNotFoundError):  # not in the cache, and no connection
        error = error.__cause__ or error
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(f'{address} is not in the cache {HF_HUB_CACHE}, and HF_HUB_OFFLINE is '
                         'set; unset it, or copy the cache of another machine')
    if isinstance(error, OSError) and error.errno:
        return WriteError.of(error.filename or HF_HUB_CACHE, error)
    reason = re.split(r'\.?\n| for url', str(error).strip())[0] or type(error).__name__
    reason = reason[-120:]  # the cause comes last
    return UserError(f'{address} cannot be downloaded ({reason}); check the network and '
                     f'HF_ENDPOINT and run the command again, or take the files from {ORIGIN}')


# Checks

def check_config(name, path):
    """Raise a UserError unless `config.json` has the network and the test set of the preset."""
    config, preset = load_config(path.parent), preset_config(name)
    for key in KEYS + DATASET_KEYS.get(preset.dataset, []):
        found, expected = getattr(config, key), getattr(preset, key)
        if found != expected:
            raise UserError(f'{path.name} has {key} {found}, expected {expected}')


def check_weights(name, path):
    """Raise a UserError unless the weights, which are untrusted, fit the preset and are finite."""
    from checkpoint import load_model
    load_model(preset_config(name), path, 'cpu')


if __name__ == '__main__':
    run_script(main)
