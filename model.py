"""SRVP, the stochastic latent residual model, and its loss (paper, section 3).

    z_{t+1} ~ N(p_z(y_t))    y_{t+dt} = y_t + dt f(y_t, z_{floor(t)+1})    x_t ~ N(g(w, y_t))

Notation: T frames, of which the first T_o are observed; B videos, S samples, n Euler steps per
frame; `hx` frame codes, `w` content, `y` states, `z` random variables, `res` residuals dt f(y, z).
Gaussian parameters are `[mean, raw scale]` on the last axis.

Two ablations of the paper replace the residual dynamics, with one step per frame and no residuals:

    MLP: y_{t+1} = f(y_t, z_{t+1})    GRU: y_{t+1} = GRU(z_{t+1}, y_t)
"""

import inspect
import math
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

import module


class Noise(NamedTuple):
    """Standard normal draws of a forward pass. Zeros replace each random variable by its mean."""
    y_0: torch.Tensor  # (…, B, ny)
    z: torch.Tensor    # (T-1, …, B, nz)

    def of(self, videos, device=None):
        """Noise of the videos of a slice, on `device`."""
        return Noise(*(part[..., videos, :].to(device) for part in self))


class Frames(NamedTuple):
    """Random frames that represent each video in training (paper, section 3.2)."""
    w: torch.Tensor     # (nt_inf, B), without replacement: w is inferred from them
    skip: torch.Tensor  # (B,): skip connections are taken from it

    def of(self, videos, device=None):
        """Frames of the videos of a slice, on `device`."""
        return Frames(*(part[..., videos].to(device) for part in self))


class Condition(NamedTuple):
    """What observed frames determine, whatever is sampled afterwards."""
    w: torch.Tensor             # (B, nh_inf)
    skips: list | None          # of (B, C_i, H_i, W_i), deepest first; None without `skipco`
    q_y_0_params: torch.Tensor  # (B, 2 ny)
    q_z_params: torch.Tensor    # (T_o-1, B, 2 nz)


class Output(NamedTuple):
    """Result of a forward pass. T' = T, or (T-1) n + 1 with the states between frames."""
    x_: torch.Tensor            # (T', B, nc, H, W), in [0, 1]
    y: torch.Tensor             # (T', B, ny)
    z: torch.Tensor             # (T-1, B, nz)
    w: torch.Tensor             # (B, nh_inf)
    q_y_0_params: torch.Tensor  # (B, 2 ny)
    q_z_params: torch.Tensor    # (min(T, T_o)-1, B, 2 nz)
    p_z_params: torch.Tensor    # (T-1, B, 2 nz)
    res: torch.Tensor           # ((T-1) n, B, ny); (0, B, ny) if the dynamics are not residual


class Losses(NamedTuple):
    """The loss and its unweighted terms, each divided by the number of videos."""
    loss: torch.Tensor
    nll: torch.Tensor
    kl_y_0: torch.Tensor
    kl_z: torch.Tensor
    res: torch.Tensor


def normal_params(params):
    """Mean and standard deviation, softplus(raw) + 1e-8, from raw parameters (…, 2 d)."""
    mean, raw = params.chunk(2, -1)
    return mean, F.softplus(raw) + 1e-8


def rsample(params, noise):
    """Reparameterised Gaussian sample (…, d) from raw parameters (…, 2 d) and standard noise."""
    mean, std = normal_params(params)
    return mean + std * noise


class SRVP(nn.Module):
    """Stochastic latent residual video prediction model.

    Parameters
    ----------
    nx, nc : int
        Width and height, a power of 2 of at least 8, and channels of frames.
    nf, archi, skipco : int, {'dcgan', 'vgg'}, bool
        Width and architecture of encoder and decoder; whether skip connections join them.
    nhx, ny, nz : int
        Sizes of frame codes, states and random variables.
    nt_inf : int
        Number of frames from which y_0 and w are inferred.
    nh_inf, nlayers_inf : int
        Width and layers of the inference networks; `nh_inf` is also the size of w.
    nh_res, nlayers_res, res_gain : int, int, float
        Width and layers of prior and dynamics (a GRU has neither); gain of the orthogonal
        initialisation of the latter (a GRU has PyTorch's).
    n_euler_steps : int
        Euler steps per frame (n; dt = 1/n); 1 unless the dynamics are residual.
    dynamics : {'residual', 'mlp', 'gru'}
        Rule of `evolve`.
    """

    def __init__(self, *, nx, nc, nf, archi, skipco, nhx, ny, nz, nt_inf, nh_inf, nlayers_inf,
                 nh_res, nlayers_res, n_euler_steps, res_gain, dynamics='residual'):
        super().__init__()
        self.nx, self.ny, self.nz, self.nt_inf = nx, ny, nz, nt_inf
        self.n_euler_steps, self.skipco, self.rule = n_euler_steps, skipco, dynamics
        self.encoder = module.ENCODERS[archi](nc, nhx, nf, nx)
        self.decoder = module.DECODERS[archi](nc, nh_inf + ny, nf, nx, skipco)
        self.w_proj = nn.Sequential(nn.Linear(nhx, nh_inf), nn.ReLU())
        self.w_inf = nn.Sequential(nn.Linear(nh_inf, nh_inf), nn.Tanh())
        self.q_y = module.MLP(nt_inf * nhx, nh_inf, 2 * ny, nlayers_inf)
        self.inf_z = nn.LSTM(nhx, nh_inf, 1)
        self.q_z = nn.Linear(nh_inf, 2 * nz)
        self.p_z = module.MLP(ny, nh_res, 2 * nz, nlayers_res)
        self.dynamics = (nn.GRUCell(nz, ny) if dynamics == 'gru' else
                         module.MLP(ny + nz, nh_res, ny, nlayers_res))
        if not self.q_z.weight.is_meta:  # meta tensors cannot be initialised
            module.init_conv(self.encoder)
            module.init_conv(self.decoder)
            module.init_orthogonal(self.dynamics, res_gain)  # a GRU has no linear layers

    # Inference

    def encode(self, x):
        """Codes (T, B, nhx) of frames (T, B, nc, H, W), and their skip connections.

        These are tensors (T, B, C_i, H_i, W_i), deepest first.
        """
        T, B = x.shape[:2]
        hx, skips = self.encoder(x.flatten(0, 1))  # one call: batch statistics span T·B frames
        return hx.unflatten(0, (T, B)), [s.unflatten(0, (T, B)) for s in skips]

    def infer_w(self, hx):
        """Content w (B, nh_inf) from frame codes (nt_inf, B, nhx), in any order."""
        return self.w_inf(self.w_proj(hx).sum(0))

    def infer_y_0(self, hx):
        """Raw parameters (B, 2 ny) of q(y_0) from codes (nt_inf, B, nhx) of the first frames."""
        return self.q_y(hx.transpose(0, 1).flatten(1))

    def infer_z(self, hx):
        """Raw parameters (T-1, B, 2 nz) of q(z_1), …, q(z_{T-1}) from frame codes (T, B, nhx)."""
        return self.q_z(self.inf_z(hx)[0][1:])

    def condition(self, x, frames=None):
        """Infer from observed frames (T_o, B, nc, H, W) all that does not depend on samples.

        In training, w and the skip connections come from random `frames` (see `draw_frames`; by
        default, new ones); in evaluation, from the last ones.
        """
        T, B = x.shape[:2]
        if T < self.nt_inf:
            raise ValueError(f'y_0 is inferred from nt_inf = {self.nt_inf} frames, found {T}')
        hx, skips = self.encode(x)
        if not self.skipco:
            skips = []
        if self.training:
            frames = frames or self.draw_frames(T, B, x.device)
            videos = torch.arange(B, device=x.device)
            hx_w = hx[frames.w, videos]  # (nt_inf, B, nhx)
            skips = [s[frames.skip, videos] for s in skips]  # each (B, C_i, H_i, W_i)
        else:
            hx_w = hx[-self.nt_inf:]
            skips = [s[-1].clone() for s in skips]  # cloned: the other frames' skips are freed
        return Condition(self.infer_w(hx_w), skips or None, self.infer_y_0(hx[:self.nt_inf]),
                         self.infer_z(hx))

    # Generation

    def evolve(self, y_0, z, nt, noise=None, n_euler_steps=None):
        """Run the dynamics for nt - 1 frames after the state y_0 (…, B, ny) (paper, section 3.1).

        Residual dynamics add dt f(y, z) to the state y, n times per frame. Those of the ablations
        compute the next state once per frame: f(y, z), or GRU(z, y). The first K random variables
        are z (K, …, B, nz); the prior gives the others, with `noise` (nt-1-K, …, B, nz).

        Returns the states y ((nt-1) n + 1, …, B, ny) at all Euler steps, of which every n-th
        belongs to a frame, all z (nt-1, …, B, nz), and the residuals ((nt-1) n, …, B, ny), (0, …)
        if the dynamics are not residual.
        """
        n = n_euler_steps or self.n_euler_steps
        if n > 1 and self.rule != 'residual':
            raise ValueError(f'dynamics {self.rule}: one step per frame, found {n}')
        ys, zs, res = [y_0], list(z[:nt - 1]), []
        for t in range(nt - 1):
            if t == len(zs):
                zs.append(rsample(self.p_z(ys[-1]), noise[t - len(z)]))
            for _ in range(n):
                y, z_t = ys[-1], zs[t]
                if self.rule == 'gru':  # a cell takes one batch axis
                    y = self.dynamics(z_t.flatten(0, -2), y.flatten(0, -2)).view_as(y)
                elif self.rule == 'mlp':
                    y = self.dynamics(torch.cat([y, z_t], -1))
                else:
                    res.append(self.dynamics(torch.cat([y, z_t], -1)) / n)
                    y = y + res[-1]
                ys.append(y)

        def stack(parts, size):
            return torch.stack(parts) if parts else y_0.new_zeros(0, *y_0.shape[:-1], size)
        return torch.stack(ys), stack(zs, self.nz), stack(res, self.ny)

    def decode(self, w, y, skips=None):
        """Frames (T, B, nc, H, W) of states y (T, B, ny), content w (B, nh_inf) and skips."""
        T, B = y.shape[:2]
        wy = torch.cat([w.expand(T, *w.shape), y], -1)  # (T, B, nh_inf + ny)
        return self.decoder(wy.flatten(0, 1), skips).unflatten(0, (T, B))

    def draw_noise(self, nt, batch, device=None, generator=None):
        """`Noise` for `nt` frames of videos of shape `batch`, an int or a tuple such as (S, B)."""
        batch = (batch,) if isinstance(batch, int) else tuple(batch)
        return Noise(torch.randn(*batch, self.ny, device=device, generator=generator),
                     torch.randn(nt - 1, *batch, self.nz, device=device, generator=generator))

    def draw_frames(self, T, B, device=None, generator=None):
        """Random `Frames` of B videos of T frames, for training."""
        order = torch.rand(T, B, device=device, generator=generator).argsort(0)
        return Frames(order[:self.nt_inf],
                      torch.randint(T, (B,), device=device, generator=generator))

    def forward(self, x, nt, n_euler_steps=None, between=False, noise=None, frames=None):
        """Generate nt frames: reconstruct the observed ones, then predict.

        Parameters
        ----------
        x : tensor (T_o, B, nc, H, W), in [0, 1]
        nt : int
            Number of frames T. More than T_o in evaluation mode only: z then comes from the prior.
        n_euler_steps : int
            Euler steps per frame; default: as in training.
        between : bool
            Whether to return and decode the states between frames too.
        noise : Noise
            Default: new draws.
        frames : Frames
            Frames that w and the skip connections come from in training. Default: new draws.

        Returns
        -------
        Output
        """
        if self.training and nt > len(x):
            raise ValueError(f'{nt} frames requested, {len(x)} observed: '
                             'the model predicts in evaluation mode only')
        n = n_euler_steps or self.n_euler_steps
        cond = self.condition(x, frames)
        noise = noise or self.draw_noise(nt, x.shape[1], x.device)
        q_z_params = cond.q_z_params[:nt - 1]  # (K, B, 2 nz)
        K = len(q_z_params)
        y_0, z = rsample(cond.q_y_0_params, noise.y_0), rsample(q_z_params, noise.z[:K])
        y, z, res = self.evolve(y_0, z, nt, noise.z[K:], n)  # y: ((T-1) n + 1, B, ny)
        p_z_params = self.p_z(y[:-1:n])  # only Euler steps are sequential: one call for all frames
        y = y if between else y[::n]     # (T', B, ny)
        x_ = self.decode(cond.w, y, cond.skips)
        return Output(x_, y, z, cond.w, cond.q_y_0_params, q_z_params, p_z_params, res)

    def predict(self, cond, nt, noise, n_euler_steps=None, between=False):
        """States of S futures of B videos (paper, section 4).

        Observed frames use the posterior of z and the Euler steps of training; the nt frames after
        them use the prior and `n_euler_steps`.

        Parameters
        ----------
        cond : Condition
            Of T_o frames.
        nt : int
            Number of frames to predict.
        noise : Noise
            For T_o + nt frames of (S, B) videos.
        n_euler_steps : int
            Euler steps per predicted frame; default: as in training.
        between : bool
            Whether to return the states between predicted frames too.

        Returns
        -------
        y_given : tensor (T_o, S, B, ny)
        y : tensor (nt, S, B, ny), or (nt n, S, B, ny) with the states between
            Every n-th state belongs to a frame, the last one included.
        """
        n = n_euler_steps or self.n_euler_steps
        K = len(cond.q_z_params)  # T_o - 1
        y_0 = rsample(cond.q_y_0_params, noise.y_0)              # (S, B, ny)
        z = rsample(cond.q_z_params[:, None], noise.z[:K])       # (K, S, B, nz)
        y_given, _, _ = self.evolve(y_0, z, K + 1)
        y, _, _ = self.evolve(y_given[-1], noise.z[:0], nt + 1, noise.z[K:], n)
        return y_given[::self.n_euler_steps].clone(), (y[1:] if between else y[n::n]).clone()


def build_model(config):
    """Newly initialised SRVP model of a configuration (see `args.py`), on the CPU."""
    names = inspect.signature(SRVP).parameters.keys()
    model = SRVP(**{name: getattr(config, name) for name in names & vars(config).keys()})
    return model.to(memory_format=torch.channels_last)  # fastest for convolutions, on any device


# Loss

def gaussian_nll(x, mean, std):
    """Elementwise negative log-density of x under N(mean, std²); `std` is a number."""
    return 0.5 * ((x - mean) / std) ** 2 + math.log(std) + 0.5 * math.log(2 * math.pi)


def gaussian_kl(params, prior_params=None):
    """Elementwise KL(q || p) of Gaussians from raw parameters; p is N(0, 1) by default."""
    mean, std = normal_params(params)
    if prior_params is None:
        return 0.5 * (std ** 2 + mean ** 2 - 1) - std.log()
    p_mean, p_std = normal_params(prior_params)
    return 0.5 * ((std / p_std) ** 2 + ((mean - p_mean) / p_std) ** 2 - 1) + p_std.log() - std.log()


def loss(x, out, *, obs_scale, beta_y, beta_z, l2_res):
    """Weighted negative ELBO and residual penalty of a batch (paper, section 3.3), in float32.

    Parameters
    ----------
    x : tensor (T, B, nc, H, W)
        True frames.
    out : Output
        Of a forward pass on x for T frames.
    obs_scale : float
        Standard deviation of the observation model.
    beta_y, beta_z, l2_res : float
        Weights of the KL divergences of y_0 and z, and of the sum of the residuals' Euclidean norms
        (not squared), which is zero if there are none (`Output.res`).

    Returns
    -------
    Losses
    """
    B = x.shape[1]
    nll = gaussian_nll(x.float(), out.x_.float(), obs_scale).sum() / B
    kl_y_0 = gaussian_kl(out.q_y_0_params.float()).sum() / B
    kl_z = gaussian_kl(out.q_z_params.float(), out.p_z_params.float()).sum() / B
    res = torch.linalg.vector_norm(out.res.float(), dim=-1).sum() / B
    return Losses(nll + beta_y * kl_y_0 + beta_z * kl_z + l2_res * res, nll, kl_y_0, kl_z, res)
