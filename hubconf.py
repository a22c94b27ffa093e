"""Trained models for Python programs, see docs/python.md.

torch.hub lists every public callable here as a model: there is one, `srvp`.
"""

import contextlib
import pathlib
import sys

import numpy as np
import torch

dependencies = ['torch', 'numpy', 'PIL', 'configargparse', 'yaml']

_ROOT = pathlib.Path(__file__).resolve().parent


@contextlib.contextmanager
def _own_modules():
    """Context in which imports find our modules; those of the caller are set aside meanwhile."""
    hook = sys.excepthook  # that of our scripts, for missing packages, is not for other programs
    names = {path.stem for path in _ROOT.iterdir()}

    def take_out():
        return {name: sys.modules.pop(name) for name in list(sys.modules)
                if name.partition('.')[0] in names}
    theirs = take_out()
    sys.path.insert(0, str(_ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(_ROOT))
        take_out()
        sys.modules.update(theirs)
        sys.excepthook = hook


with _own_modules():
    import args
    import evaluation.futures as sampling
    import module
    import pretrained
    import utils


def srvp(model, model_name='model.pt', device='cpu'):
    """Load a trained model, on a device, as a `_Predictor`.

    `model` is a folder with config.json and the weights, `model_name`; or 'shapes_cpu' or
    'smmnist_cpu'; or the name of a published model, which is downloaded to pretrained/ of this
    repository unless it is there.
    """
    folder, device = pathlib.Path(model), torch.device(device)
    with _own_modules():  # some of them import others only when they are called
        if model in ('shapes_cpu', 'smmnist_cpu', *pretrained.MODELS):
            folder = _ROOT / 'pretrained' / model
            if not (folder / 'model.pt').exists():
                pretrained.install(model, folder)
        config = args.load_config(folder)
        network = utils.load_model(config, folder / model_name, device)
    return _Predictor(config, network, device)


def _inference(method):
    """Let a method compute as test.py does: without gradients, and without TF32 on GPUs."""
    return torch.no_grad()(torch.backends.cudnn.flags(enabled=True, allow_tf32=False)(method))


class _Predictor:
    """A trained model, for frames ([B,] T, H, W, C), an array or a tensor, uint8 or in [0, 1].

    Results have their library, device and batch axis, and frames also their type.
    """

    def __init__(self, config, model, device):
        self.config, self.model, self.device = config, model, device

    @_inference
    def predict(self, frames, n_samples=1, nt=None, *, seed=1, index=0, n_euler_steps=None):
        """Sample futures ([B,] n_samples, nt, H, W, C) of videos.

        `nt` (frames to predict) and `n_euler_steps` (of each) are as in training by default. Video
        i gets the noise of video `index` + i of the test set in `test.py --test_seed seed`, if
        `n_samples` and the number of all frames, T + nt, are the same.
        """
        x = self._read(frames)
        futures = self._futures(x, n_samples, nt, seed, index, n_euler_steps)
        return _like(frames, torch.stack([_encode(future, x) for future in futures], 1))

    def swap(self, frames_a, frames_b, n_samples=1, nt=None, **options):
        """Content of videos a with the motion of b: ([B,] n_samples, T + nt, H, W, C)."""
        return self.decode(frames_a, self.y(frames_b, n_samples, nt, **options))

    @_inference
    def w(self, frames):
        """Content of videos: float32 ([B,] nh_inf)."""
        return _like(frames, self.model.condition(self._video(self._read(frames))).w)

    @_inference
    def y(self, frames, n_samples=1, nt=None, *, seed=1, index=0, n_euler_steps=None):
        """States float32 ([B,] n_samples, T + nt, ny) of given and predicted frames."""
        x = self._read(frames)
        futures = self._futures(x, n_samples, nt, seed, index, n_euler_steps)
        states = torch.cat([futures.y_given, futures.y])  # (T + nt, S, B, ny)
        return _like(frames, states.permute(2, 1, 0, 3))

    @_inference
    def decode(self, frames, y, w=None):
        """Frames ([B,] …, H, W, C) of states y ([B,] …, ny).

        Skip connections are those of `frames`; content too, unless it is given as w ([B,] nh_inf).
        """
        x = self._read(frames)
        y, w = (torch.as_tensor(value, dtype=torch.float32, device=self.device)
                for value in (y, self.w(frames) if w is None else w))
        y, w = (y, w) if frames.ndim == 5 else (y[None], w[None])
        B, ny, nh_inf = len(x), self.model.ny, self.config.nh_inf
        if len(y) != B or y.shape[-1] != ny or w.shape != (B, nh_inf):
            raise ValueError(f'y and w must be ({B}, …, {ny}) and ({B}, {nh_inf}) with the batch '
                             f'axis, found {tuple(y.shape)} and {tuple(w.shape)}')
        skips = self.model.condition(self._video(x)).skips
        decoder = module.FrozenDecoder(self.model.decoder, w, skips)
        states = y.reshape(B, -1, ny).transpose(0, 1)  # (K, B, ny)
        found = _encode(sampling.Chunk(self.model).decode(decoder, states), x)  # (B, K, H, W, C)
        return _like(frames, found.reshape(*y.shape[:-1], *found.shape[2:]))

    def _read(self, frames):
        """Conditioning frames as a tensor (B, T, H, W, C), checked."""
        x = torch.from_numpy(np.array(frames)) if isinstance(frames, np.ndarray) else frames
        c = self.config
        if (x.dtype != torch.uint8 and not x.is_floating_point() or x.ndim not in (4, 5)
                or x.shape[-3:] != (c.nx, c.nx, c.nc) or x.shape[-4] < c.nt_inf or not len(x)):
            raise ValueError(
                f'frames must be uint8 or float ([B,] T, {c.nx}, {c.nx}, {c.nc}), T at least '
                f'{c.nt_inf} (nt_inf), found {tuple(x.shape)} of {x.dtype}')
        if x.is_floating_point() and not (x.min() >= 0 and x.max() <= 1):
            raise ValueError('frames of floats must be in [0, 1], found '
                             f'{x.min().item():.3g} to {x.max().item():.3g}')
        return x if x.ndim == 5 else x[None]

    def _video(self, x):
        """Float video (T, B, C, H, W) in [0, 1] on the device, of frames (B, T, H, W, C)."""
        scale = 255 if x.dtype == torch.uint8 else 1
        x = x.transpose(0, 1).contiguous().to(self.device)  # in memory as in test.py
        return x.permute(0, 1, 4, 2, 3).float() / scale

    def _futures(self, x, n_samples, nt, seed, index, n_euler_steps):
        nt = nt or self.config.seq_len_test - self.config.nt_cond
        B, T = x.shape[:2]
        noise = sampling.draw_noise(self.model, seed, 'test', range(index, index + B), n_samples,
                                    T + nt)
        return sampling.Futures(self.model, self._video(x), nt, noise, n_euler_steps)


def _encode(x, given):
    """Frames (B, T, H, W, C), of type and device of those given, from x (T, B, C, H, W)."""
    x = sampling.quantise(x) if given.dtype == torch.uint8 else x.to(given.dtype)
    return x.permute(1, 0, 3, 4, 2).to(given.device)


def _like(frames, value):
    """Result (B, …) with library, device and batch axis of the frames given."""
    value = value if frames.ndim == 5 else value[0]
    return value.cpu().numpy() if isinstance(frames, np.ndarray) else value.to(frames.device)
