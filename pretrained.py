"""Download a published model: `python pretrained.py NAME`; without NAME, list the models."""

import filecmp
import shutil
from pathlib import Path

from files import Parser, UserError, replacing, run_script, sha256

from args import MODEL, PUBLISHED, load_config, preset_config
from utils import load_model

ORIGIN = 'https://data.lip6.fr/srvp/'  # the authors' site
REPO = 'nkiyohara/srvp-pretrained-model-mirror'  # a mirror of it on the Hugging Face Hub
MODELS = {  # folder in REPO and number of parameters, by preset
    'smmnist': ('mmnist/stochastic', 10_678_284),
    'smmnist_deterministic': ('mmnist/deterministic', 10_678_284),
    'kth': ('kth', 23_877_854),
    'human': ('human', 23_880_158),
    'bair': ('bair', 23_847_390),
}

# Options that determine the network and the test set
KEYS = [*(name for name in MODEL if name != 'res_gain'),  # which initialises only
        'nx', 'nc', 'dataset', 'deterministic', 'nt_cond']


def get_parser():
    parser = Parser('Download a published model, or list all of them.')
    parser.add_argument('name', nargs='?', choices=MODELS, metavar='NAME',
                        help=f'{", ".join(MODELS)}; default: list them')
    parser.add_argument('--out_dir', help='folder of the model; default: pretrained/NAME')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    if args.name is None:
        return print_models()
    out_dir = Path(args.out_dir or f'pretrained/{args.name}')
    install(args.name, out_dir)
    paper = PUBLISHED[args.name]
    print(f'{out_dir} holds the published model {args.name}\n'
          f'SHA-256 {sha256(out_dir / "config.json")}  config.json\n'
          f'SHA-256 {sha256(out_dir / "model.pt")}  model.pt\n'
          f'evaluate:   python test.py --xp_dir {out_dir} --data_dir DATA '
          f'--nt_gen {paper["nt_gen"]} --n_samples {paper["n_samples"]}\n'
          f'train on:   python train.py --preset {args.name} --data_dir DATA --save_path RUN '
          f'--weights {out_dir}/model.pt')


def print_models():
    row = '{:23}{:28}{:>12}{:>8}  {:14}{:17}{}'.format
    print(row('NAME', 'dataset', 'parameters', 'MB', 'PSNR (dB)', 'SSIM', 'LPIPS'))
    for name, (_, parameters) in MODELS.items():
        paper = PUBLISHED[name]
        scores = [paper['scores'].get(metric, '-') for metric in ('psnr', 'ssim', 'lpips')]
        print(row(name, paper['name'], f'{parameters:,}', f'{4 * parameters / 1e6:.0f}', *scores))
    print('\nPublished scores: best of 100 samples, mean ± half-width of the 95% interval.\n'
          f'Models come from {REPO} on the Hugging Face Hub,\n'
          f'a mirror of {ORIGIN}, the site of the authors.\n'
          'Small ones, trained on CPUs, are part of this repository: pretrained/shapes_cpu and '
          'pretrained/smmnist_cpu')


def install(name, out_dir):
    """Put a published model into a folder, once both files are known to be those of its preset."""
    from huggingface_hub import hf_hub_download
    try:
        config, weights = [Path(hf_hub_download(REPO, file, subfolder=MODELS[name][0]))
                           for file in ('config.json', 'model.pt')]
    except Exception as error:  # the version of huggingface_hub decides which libraries raise it
        reason = str(error.__cause__ or error).strip().partition('\n')[0]
        raise UserError(f'{name} cannot be downloaded from {REPO} ({reason}); check the network, '
                        f'HF_ENDPOINT and free space, or take the files from {ORIGIN}') from None
    found, preset = load_config(config.parent), preset_config(name)
    for key in KEYS:
        ours, theirs = getattr(preset, key), getattr(found, key)
        if ours != theirs:
            raise UserError(f'{config} has {key} {theirs}, but the preset {name} has {ours}; take '
                            f'the files from {ORIGIN}')
    load_model(preset, weights, 'cpu')  # a UserError if they do not fit, or are not finite
    out_dir.mkdir(parents=True, exist_ok=True)
    for path in (config, weights):
        copy = out_dir / path.name
        if copy.exists() and not filecmp.cmp(path, copy, shallow=False):
            raise UserError(f'--out_dir {out_dir} holds another model ({copy.name} differs); '
                            'use another folder')
    for path in (config, weights):
        with replacing(out_dir / path.name) as tmp:
            shutil.copyfile(path, tmp)


if __name__ == '__main__':
    run_script(main)
