"""Export a trained model as a checkpoint of half the size: see --help."""

from pathlib import Path

from files import Parser, UserError, read_json, replacing, run_script, write_json

from args import FREE_ON_RESUME, add_model_options, load_config
from utils import load_model, save

LEFT_OUT = FREE_ON_RESUME | {'weights'}  # options of the run and its machine, not of the model


def get_parser():
    parser = Parser('Write config.json and model.pt of a trained model to another folder, with '
                    'matrices and kernels in float16: half the size, for test.py, visualize.py, '
                    'damage.py and train.py --weights, which compute in float32 as before.')
    add_model_options(parser)
    parser.add_argument('--out_dir', required=True,
                        help='folder of the checkpoint, which must not exist yet')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    weights, out_dir = Path(args.xp_dir) / args.model_name, Path(args.out_dir)
    state = load_model(load_config(args.xp_dir), weights, 'cpu').state_dict()
    for name, value in state.items():
        if value.is_floating_point() and value.ndim > 1:  # not batch statistics
            state[name] = value.half()
            if not state[name].isfinite().all():
                raise UserError(f'{weights}: {name} has values that are not finite in float16; '
                                'use other weights, or share these as they are')
    config = read_json(Path(args.xp_dir) / 'config.json')
    with replacing(out_dir) as tmp:
        tmp.mkdir(parents=True)
        save(tmp / 'model.pt', state)
        write_json(tmp / 'config.json', {k: v for k, v in config.items() if k not in LEFT_OUT})
        out_dir.mkdir()  # another model is not replaced
    print(f'{out_dir}: config.json, model.pt; score it with: python test.py --xp_dir {out_dir}')


if __name__ == '__main__':
    run_script(main)
