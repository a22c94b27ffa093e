"""Fréchet video distance (Unterthiner et al., 2019), on the logits of I3D: see --help."""

import hashlib
import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # instead of this folder, if run by path

from files import Parser, UserError, count, progress_bar, reading, run_script

import numpy as np
import torch

from args import add_device_option, add_i3d_option
from data.video import VideoFile
from metrics.convert_i3d import CONVERTED, SHA256, cached
from metrics.i3d import I3D, MIN_FRAMES, preprocess
from utils import describe, get_device, load

MIN_VIDEOS = 16
BATCH_SIZE = 4  # clips per forward pass: 0.5 GB for 40 frames
NOTE = ('the weights of I3D are of unknown origin: whether published distances can be compared '
        'with this one, python -m metrics.fvd --check tells')

# Distance in TensorFlow, with the published weights, between sets of random videos of two seeds
# (https://github.com/universome/fvd-comparison)
REFERENCE, TOLERANCE = 10.13808536529541, 1e-4  # relative
N_RANDOM, RANDOM_SHAPE, SEEDS = 128, (16, 224, 224, 3), (1, 2)


def frechet_distance(x, y):
    """Fréchet distance |m_x - m_y|² + Tr(S_x + S_y - 2 √(S_x S_y)), with unbiased covariances S.

    x (n_x, D) and y (n_y, D) are finite, of at least two rows. Tr √(S_x S_y) is the nuclear norm of
    X Yᵀ / √((n_x - 1)(n_y - 1)), X and Y being the centred features. This avoids matrix square
    roots, inaccurate for singular covariances (fewer videos than features).
    """
    x, y = (np.asarray_chkfinite(a, np.float64) for a in (x, y))
    mean = x.mean(0) - y.mean(0)
    # Qᵀ of a QR decomposition on either side keeps the norm and leaves at most D rows
    roots = [np.linalg.qr((a - a.mean(0)) / np.sqrt(len(a) - 1), 'r') for a in (x, y)]
    overlap = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    traces = sum((r ** 2).sum() for r in roots)
    return max(float(mean @ mean + traces - 2 * overlap), 0.)


class Embedding:
    """Features of videos: the logits of I3D.

    `sha256` is that of the weights (names and values), the same for each kind of file; `note` is
    what a reader of the distances must know about them, or None.
    """

    def __init__(self, state, device='cpu', note=NOTE):
        self.device, self.note, self.progress = device, note, False
        self.network = I3D(state).to(device)
        digest = hashlib.sha256()
        for name in sorted(state):
            digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
        self.sha256 = digest.hexdigest()

    @torch.inference_mode()
    def __call__(self, videos):
        """Features, float64 (N, 400), of videos, uint8 array (N, T, H, W, C), C 1 or 3.

        Also of float32 (N, T, 224, 224, C), which the network gets as they are.
        """
        features = []
        for i in progress_bar(range(0, len(videos), BATCH_SIZE), desc='I3D',
                              disable=not self.progress):
            x = torch.from_numpy(np.array(videos[i:i + BATCH_SIZE])).to(self.device)
            features.append(self.network(preprocess(x) if x.dtype == torch.uint8 else x))
        return torch.cat(features).double().cpu().numpy()


def build_embedding(path=None, device='cpu'):
    """`Embedding` with the weights of an `.npz` of `convert_i3d.py`, or a `.pt` of a PyTorch port.

    By default, it is searched for in $SRVP_CACHE (~/.cache/srvp).
    """
    default = cached(CONVERTED), cached('i3d_pretrained_400.pt')
    path = Path(path or next((p for p in default if p.exists()), default[0]))
    source = None
    with reading(path, 'does not hold the I3D of Kinetics-400',
                 'make an .npz file of the TF-Hub module with python -m metrics.convert_i3d, or '
                 'pass i3d_pretrained_400.pt as --i3d_path'):
        if path.suffix not in ('.npz', '.pt') or not path.is_file():
            raise ValueError('there is no .npz or .pt file')
        if path.suffix == '.npz':
            with np.load(path, allow_pickle=False) as file:
                state = {name: torch.from_numpy(value) for name, value in file.items()
                         if name != 'module_sha256'}
                source = file['module_sha256']
        else:
            state = {name: value.float() for name, value in load(path).items()
                     if not name.endswith('num_batches_tracked')}
        print(f'I3D: weights of {path}', file=sys.stderr, flush=True)
        return Embedding(state, device, None if source == SHA256 else NOTE)


def embed_samples(embed, truth, samples):
    """Features (B, 400) by name: `fvd_0` of true videos; `fvd_1`, … of samples after given frames.

    truth is uint8 (T, B, H, W, C), samples are arrays (nt, B, H, W, C).
    """
    given = truth[:len(truth) - len(samples[0])]
    videos = [truth, *(np.concatenate([given, sample]) for sample in samples)]
    return {f'fvd_{i}': embed(video.swapaxes(0, 1)) for i, video in enumerate(videos)}


def pop_distances(scores):
    """Distances (n,) of n samples; takes the features of `embed_samples` out of `scores`."""
    true, *samples = [scores.pop(name) for name in list(scores) if name.startswith('fvd_')]
    return np.array([frechet_distance(true, features) for features in samples])


def check_sizes(n_videos, n_frames, what):
    """Raise a UserError if `what` has too few or too short videos."""
    if n_videos < MIN_VIDEOS or n_frames < MIN_FRAMES:
        raise UserError(f'{what} has {count(n_videos, "video")} of {count(n_frames, "frame")}; the '
                        f'Fréchet video distance needs at least {MIN_VIDEOS} of {MIN_FRAMES}')


def fvd(x, y, embed):
    """Fréchet video distance of uint8 arrays (N, T, H, W, C), C 1 or 3; their N may differ."""
    check_sizes(*x.shape[:2], 'the first set')
    check_sizes(*y.shape[:2], 'the second set')
    if x.shape[1] != y.shape[1]:
        raise UserError(f'the sets have videos of {x.shape[1]} and {y.shape[1]} frames; '
                        'cut the longer ones to the same length')
    return frechet_distance(embed(x), embed(y))


def random_distance(embed):
    """Distance of the random videos of `REFERENCE`, which the network gets as they are."""
    def features(seed):
        rng = np.random.RandomState(seed)
        return np.concatenate([  # a few at a time: all of them take 1.2 GB
            embed(rng.rand(BATCH_SIZE, *RANDOM_SHAPE).astype(np.float32))
            for _ in progress_bar(range(N_RANDOM // BATCH_SIZE), desc='I3D')])
    return frechet_distance(*map(features, SEEDS))


def get_parser():
    parser = Parser(
        'Fréchet video distance of two sets of videos, such as those of test.py: .npy or .npz '
        'files of uint8 (N, T, H, W, C) or (N, T, H, W). Published scores include the conditioning '
        'frames: put them before the predicted ones, or use test.py --fvd.',
        prog='python -m metrics.fvd')
    parser.add_argument('files', nargs='*', metavar='FILE', help='a set of videos')
    parser.add_argument('--check', action='store_true',
                        help='instead, compare the distance of random videos with that for the '
                             'published weights; the exit code is 1 if it differs')
    add_i3d_option(parser)
    add_device_option(parser)
    return parser


def main(argv=None):
    parser = get_parser()
    args = parser.parse_args(argv)
    if len(args.files) != (0 if args.check else 2):
        parser.error(f'found {count(len(args.files), "FILE")}; give two, one for each set of '
                     'videos, or --check and none')
    sets = [VideoFile(path) for path in args.files]
    device = get_device(args.device)
    embed = build_embedding(args.i3d_path, device)
    print(f'I3D on {describe(device)}, SHA-256 of the weights: {embed.sha256}')
    if args.check:
        value = random_distance(embed)
        is_equal = abs(value - REFERENCE) <= TOLERANCE * REFERENCE
        print(f'FVD {value:.8f} between random videos, {REFERENCE:.8f} in TensorFlow\n'
              f'these are {"" if is_equal else "not "}the weights of published distances '
              f'(relative tolerance: {TOLERANCE:.0e})')
        return 0 if is_equal else 1
    embed.progress = True
    print(f'FVD {fvd(*(file.read(file.shape[0]) for file in sets), embed):.2f}')
    if embed.note:
        print(f'note: {embed.note}')
    return 0


if __name__ == '__main__':
    run_script(main)
