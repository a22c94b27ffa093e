"""Make of a trained SRVP model a checkpoint to pass on, of half the size: `python export.py --xp_dir RUN --out_dir DIR`; see --help."""

from pathlib import Path

from args import FREE_ON_RESUME, load_config
from parsing import Parser
from files import UserError, make_folder, read_json, run_script, write_json
from checkpoint import load_model, save


def halved(state):
    """Weights of a `state_dict` with matrices and kernels in float16; vectors, such as the statistics of batch normalisation, stay."""
    return {name: value.half() if value.is_floating_point() and value.ndim > 1 else value for name, value in state.items()}


def export_parser():
    """Parser of `export.py`."""
    parser = Parser('Write config.json and model.pt of a trained model to another folder, with matrices and kernels in float16: half the size, for test.py, '
                    'visualize.py, damage.py and train.py --weights, which compute in float32 as before.')
    parser.add_argument('--xp_dir', required=True, help='folder of the trained model: config.json and the weights')
    parser.add_argument('--model_name', default='model.pt', help='weights, in --xp_dir')
    parser.add_argument('--out_dir', required=True, help='folder of the checkpoint, which must hold no other model')
    return parser


def main(argv=None):
    args = export_parser().parse_args(argv)
    weights, out_dir = Path(args.xp_dir) / args.model_name, Path(args.out_dir)
    state = halved(load_model(load_config(args.xp_dir), weights, 'cpu').state_dict())
    for name, value in state.items():
        if not value.isfinite().all():
            raise UserError(f'{weights}: {name} has values that are not finite in float16; take other weights, or pass these on as they are')
    for name in ('config.json', 'model.pt'):
        if (out_dir / name).exists():
            raise UserError(f'--out_dir {out_dir} holds another model ({name}); give another folder')
    make_folder(out_dir, '--out_dir')
    # what belongs to the machine and the course of the run is left out
    write_json(out_dir / 'config.json', {k: v for k, v in read_json(Path(args.xp_dir) / 'config.json').items() if k not in FREE_ON_RESUME | {'weights'}})
    save(out_dir / 'model.pt', state)
    print(f'{out_dir}: config.json, model.pt ({(out_dir / "model.pt").stat().st_size / 1e6:.1f} MB, from {weights.stat().st_size / 1e6:.1f}); '
          f'score what is exported with: python test.py --xp_dir {out_dir}')


if __name__ == '__main__':
    run_script(main)
