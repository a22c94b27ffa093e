"""Export a trained model as a checkpoint of half the size.

`python export.py --xp_dir RUN --out_dir DIR`; see --help.
"""

from pathlib import Path

from args import FREE_ON_RESUME, add_model_options, load_config
from files import UserError, make_folder, read_json, run_script, write_json
from parsing import Parser


def export_parser():
    """Parser of `export.py`."""
    parser = Parser('Write config.json and model.pt of a trained model to another folder, with '
                    'matrices and kernels in float16: half the size, for test.py, visualize.py, '
                    'damage.py and train.py --weights, which compute in float32 as before.')
    add_model_options(parser)
    parser.add_argument('--out_dir', required=True,
                        help='folder of the checkpoint; must not hold another model')
    return parser


def halved(state):
    """Weights of a `state_dict`, with matrices and kernels in float16.

    Vectors, such as the statistics of batch normalisation, stay in float32.
    """
    return {name: value.half() if value.is_floating_point() and value.ndim > 1 else value
            for name, value in state.items()}


def main(argv=None):
    args = export_parser().parse_args(argv)
    weights, out_dir = Path(args.xp_dir) / args.model_name, Path(args.out_dir)
    config = load_config(args.xp_dir)

    from checkpoint import load_model, save  # import PyTorch, which --help does without
    state = halved(load_model(config, weights, 'cpu').state_dict())
    for name, value in state.items():
        if not value.isfinite().all():
            raise UserError(f'{weights}: {name} has values that are not finite in float16; '
                            'use other weights, or share these as they are')
    for name in ('config.json', 'model.pt'):
        if (out_dir / name).exists():
            raise UserError(f'--out_dir {out_dir} holds another model ({name}); '
                            'use another folder')
    make_folder(out_dir, '--out_dir')
    save(out_dir / 'model.pt', state)
    # Without what belongs to the machine and to the course of the run
    kept = {k: v for k, v in read_json(Path(args.xp_dir) / 'config.json').items()
            if k not in FREE_ON_RESUME | {'weights'}}
    try:
        write_json(out_dir / 'config.json', kept)
    except UserError:  # half an export would be in the way of the next
        (out_dir / 'model.pt').unlink()
        raise
    before, after = (path.stat().st_size / 1e6 for path in (weights, out_dir / 'model.pt'))
    print(f'{out_dir}: config.json, model.pt ({after:.1f} MB, from {before:.1f}); '
          f'score it with: python test.py --xp_dir {out_dir}')


if __name__ == '__main__':
    run_script(main)
