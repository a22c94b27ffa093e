"""Compare the futures of a model of examples/shapes.py with the true ones: where the disc goes.

`python examples/true_futures.py --model shapes_cpu --out PICTURE.png`; see docs/shapes.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run by path

from files import Parser, positive_int, progress_bar, replacing, run_script

import numpy as np
from matplotlib.figure import Figure

from examples.shapes import SEEDS, SIZE, simulate
from hubconf import srvp

NT_COND, NT, N = 5, 20, 100  # given frames, all frames, futures of each kind
STEPS = 4, 9, 14             # predicted frames that are scored
NEAR = 4                     # pixels between positions that count as the same
ACROSS = 4                   # videos in a row of the picture


def find_disc(video):
    """Centre (…, 2) of what is dark in frames uint8 (…, SIZE, SIZE, 3), NaN if nothing is."""
    dark = np.clip(115 - video.max(-1).astype(float), 0, None)
    places = np.arange(SIZE) + 0.5
    with np.errstate(invalid='ignore'):
        return np.stack([(dark.sum(-2) * places).sum(-1), (dark.sum(-1) * places).sum(-1)], -1) \
            / dark.sum((-2, -1))[..., None]


def covered(positions, others):
    """Share of positions (K, 2) that have one of others (L, 2) within NEAR pixels."""
    distances = np.linalg.norm(positions[:, None] - others, axis=-1)
    return (distances < NEAR).any(1).mean()


def get_parser():
    parser = Parser('Compare where the disc goes in predicted futures and in simulated ones.')
    parser.add_argument('--model', default='shapes_cpu',
                        help='shapes_cpu, or a folder with config.json and model.pt')
    parser.add_argument('--n_videos', type=positive_int, default=20,
                        help='first videos of the test set, of which the given frames are taken')
    parser.add_argument('--out', type=Path, required=True, help='PNG file to write')
    return parser


def main(argv=None):
    args = get_parser().parse_args(argv)
    model = srvp(args.model)
    rows = -(-args.n_videos // ACROSS)
    figure = Figure((3 * ACROSS, 1.6 * rows), layout='constrained')
    axes = figure.subplots(rows, 2 * ACROSS, squeeze=False).reshape(-1, 2)
    scores = []
    for i in progress_bar(range(args.n_videos), 'simulating', unit='video'):
        seed = SEEDS['test'] + i
        video, _ = simulate(seed, NT_COND)
        # Two sets of true futures: the second one shows what a perfect model would reach
        true = np.stack([simulate(seed, NT, future, NT_COND)[1] for future in range(2 * N)])
        true, other = true[:N, NT_COND:], true[N:, NT_COND:]
        predicted = find_disc(model.predict(video, N, NT - NT_COND, index=i))  # (N, T, 2)
        last = find_disc(video)[-1:]
        scores.append([[covered(true[:, t], other[:, t]), covered(true[:, t], predicted[:, t]),
                        covered(predicted[:, t], true[:, t]), covered(true[:, t], last)]
                       for t in STEPS])
        for ax, positions, title in zip(axes[i], (true, predicted), ('truth', 'model')):
            ax.imshow(video[-1], extent=(0, SIZE, SIZE, 0), alpha=0.4)
            ax.hist2d(*positions[np.isfinite(positions).all(-1)].T, bins=SIZE // 2,
                      range=2 * [[0, SIZE]], cmap='magma_r', norm='log', cmin=1)
            ax.set_title(f'video {i}, {title}', fontsize=8)
            ax.set(aspect='equal', ylim=(SIZE, 0), xticks=[], yticks=[])
    for ax in axes[args.n_videos:].flat:
        ax.axis('off')
    with replacing(args.out) as tmp:
        figure.savefig(tmp, format='png', dpi=100)
    print(f'{f"within {NEAR} pixels, share of":31}', *(f't = {NT_COND + t:<4}' for t in STEPS))
    names = ('true positions, by other true', 'true positions, by predicted',
             'predicted positions, by true', 'true positions, by last given')
    for name, values in zip(names, np.mean(scores, 0).T):
        print(f'{name:31}', *(f'{value:8.2f}' for value in values))


if __name__ == '__main__':
    run_script(main)
