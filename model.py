"""SRVP, the stochastic latent residual model, and its loss (paper, section 3).

    y_{t+dt} = y_t + dt f(y_t, z_{floor(t)+1})      z_{t+1} ~ p(z | y_t) = N(p_z(y_t))      x_t ~ g(w, y_t)

Names: T frames, B videos, S samples, n Euler steps a frame; `hx` frame codes, `w` content, `y` states, `z` random
variables, `res` residuals dt f(y, z). Gaussian parameters are `[mean, raw scale]` on the last axis.
"""

import math
from typing import NamedTuple, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

import module


class Noise(NamedTuple):
    """Standard normal draws that a forward pass consumes. Zeros replace each random variable by its mean."""
    y_0: torch.Tensor  # (…, B, ny)
    z: torch.Tensor    # (T-1, …, B, nz)

    def of(self, videos, device=None):
        """Noise of some videos (a slice), on a device."""
        return Noise(*(part[..., videos, :].to(device) for part in self))


class Frames(NamedTuple):
    """Frames that stand for a video in training (paper, section 3.2), drawn at random."""
    w: torch.Tensor     # (nt_inf, B), without replacement: content is inferred from them
    skip: torch.Tensor  # (B,): skip connections are taken from it

    def of(self, videos, device=None):
        """Frames of some videos (a slice), on a device."""
        return Frames(*(part[..., videos].to(device) for part in self))


class Condition(NamedTuple):
    """What the given frames of B videos determine, whatever is sampled afterwards."""
    w: torch.Tensor                      # (B, nh_inf)
    skips: Optional[list]                # four of (B, C_i, H_i, W_i), deepest first; None without skip connections
    q_y_0_params: torch.Tensor           # (B, 2 ny)
    q_z_params: torch.Tensor             # (T_o-1, B, 2 nz)


class Output(NamedTuple):
    """Result of a forward pass on T_o given frames for T frames (T' = T, or (T-1) n + 1 with the states between)."""
    x_: torch.Tensor            # (T', B, nc, 64, 64) in [0, 1]
    y: torch.Tensor             # (T', B, ny)
    z: torch.Tensor             # (T-1, B, nz)
    w: torch.Tensor             # (B, nh_inf)
    q_y_0_params: torch.Tensor  # (B, 2 ny)
    q_z_params: torch.Tensor    # (min(T, T_o)-1, B, 2 nz)
    p_z_params: torch.Tensor    # (T-1, B, 2 nz)
    res: torch.Tensor           # ((T-1) n, B, ny)


class Losses(NamedTuple):
    """The loss and its unweighted terms, each divided by the number of videos."""
    loss: torch.Tensor
    nll: torch.Tensor
    kl_y_0: torch.Tensor
    kl_z: torch.Tensor
    res: torch.Tensor


def normal_params(params):
    """Mean and standard deviation, softplus(raw) + 1e-8, of raw parameters (…, 2 d)."""
    mean, raw = params.chunk(2, -1)
    return mean, F.softplus(raw) + 1e-8


def rsample(params, noise):
    """Reparameterised sample (…, d) of the Gaussian of raw parameters (…, 2 d), from standard normal `noise`."""
    mean, std = normal_params(params)
    return mean + std * noise


class SRVP(nn.Module):
    """Stochastic latent residual video prediction model.

    Parameters
    ----------
    nx, nc : int
        Width (64) and channels of the frames.
    nf, archi, skipco : int, {'dcgan', 'vgg'}, bool
        Width and architecture of encoder and decoder; whether skip connections join them.
    nhx, ny, nz : int
        Sizes of frame codes, states and random variables.
    nt_inf : int
        Frames from which the first state and the content are inferred.
    nh_inf, nlayers_inf : int
        Width and layers of the inference networks; `nh_inf` is also the size of w.
    nh_res, nlayers_res, res_gain : int, int, float
        Width and layers of the prior and dynamics; gain of the latter's initialisation.
    n_euler_steps : int
        Euler steps a frame (n; dt = 1/n).
    """

    def __init__(self, *, nx, nc, nf, archi, skipco, nhx, ny, nz, nt_inf, nh_inf, nlayers_inf, nh_res, nlayers_res,
                 n_euler_steps, res_gain):
        super().__init__()
        if nx != module.NX:
            raise ValueError(f'nx: frames are {module.NX} x {module.NX}, found {nx}')
        self.ny, self.nz, self.nt_inf, self.n_euler_steps, self.skipco = ny, nz, nt_inf, n_euler_steps, skipco
        self.encoder = module.ENCODERS[archi](nc, nhx, nf)
        self.decoder = module.DECODERS[archi](nc, nh_inf + ny, nf, skipco)
        self.w_proj = nn.Sequential(nn.Linear(nhx, nh_inf), nn.ReLU())
        self.w_inf = nn.Sequential(nn.Linear(nh_inf, nh_inf), nn.Tanh())
        self.q_y = module.MLP(nt_inf * nhx, nh_inf, 2 * ny, nlayers_inf)
        self.inf_z = nn.LSTM(nhx, nh_inf, 1)
        self.q_z = nn.Linear(nh_inf, 2 * nz)
        self.p_z = module.MLP(ny, nh_res, 2 * nz, nlayers_res)
        self.dynamics = module.MLP(ny + nz, nh_res, ny, nlayers_res)
        if not self.q_z.weight.is_meta:  # there, nothing is to be initialised
            module.init_conv(self.encoder)
            module.init_conv(self.decoder)
            module.init_orthogonal(self.dynamics, res_gain)

    def compile_networks(self):
        """Compile encoder, decoder and perceptrons by `torch.compile` (the next call takes minutes); names of parameters stay."""
        for network in (self.encoder, self.decoder, self.w_proj, self.w_inf, self.q_y, self.q_z, self.p_z, self.dynamics):
            network.compile()

    def encode(self, x):
        """Frame codes (T, B, nhx) and skip connections, four of (T, B, C_i, H_i, W_i), of frames (T, B, nc, 64, 64)."""
        T, B = x.shape[:2]
        hx, skips = self.encoder(x.flatten(0, 1))  # all frames in one call: batch statistics span T·B
        return hx.unflatten(0, (T, B)), [s.unflatten(0, (T, B)) for s in skips]

    def infer_w(self, hx):
        """Content w (B, nh_inf) of frame codes (nt_inf, B, nhx), in any order (paper, section 3.2)."""
        return self.w_inf(self.w_proj(hx).sum(0))

    def infer_y_0(self, hx):
        """Raw parameters (B, 2 ny) of q(y_0), from the codes (nt_inf, B, nhx) of the first frames."""
        return self.q_y(hx.transpose(0, 1).flatten(1))

    def infer_z(self, hx):
        """Raw parameters (T-1, B, 2 nz) of q(z_1), …, q(z_{T-1}), from the codes (T, B, nhx) of all frames."""
        return self.q_z(self.inf_z(hx)[0][1:])

    def condition(self, x, frames=None):
        """Infer from given frames (T_o, B, nc, 64, 64) all that does not depend on samples.

        In training, w and the skip connections come from random `frames` (`draw_frames`, by default fresh ones); in evaluation, from
        the last frames.
        """
        T, B = x.shape[:2]
        if T < self.nt_inf:
            raise ValueError(f'{T} frames given, but the first state is inferred from nt_inf = {self.nt_inf}')
        hx, skips = self.encode(x)
        if self.training:
            frames = frames or self.draw_frames(T, B, x.device)
            videos = torch.arange(B, device=x.device)
            w = self.infer_w(hx[frames.w, videos])
            skips = [s[frames.skip, videos] for s in skips] if self.skipco else None
        else:
            w = self.infer_w(hx[-self.nt_inf:])
            skips = [s[-1].clone() for s in skips] if self.skipco else None  # those of the other frames are let go
        return Condition(w, skips, self.infer_y_0(hx[:self.nt_inf]), self.infer_z(hx))

    def evolve(self, y_0, z, nt, noise=None, n_euler_steps=None):
        """Run the dynamics on: nt - 1 frames after the state y_0 (paper, section 3.1).

        Parameters
        ----------
        y_0 : tensor (…, B, ny)
        z : tensor (K, …, B, nz)
            Random variables of the next K frames; those of the other frames are drawn from the prior.
        nt : int
            Number of frames, that of y_0 included.
        noise : tensor (nt-1-K, …, B, nz)
            Standard normal draws for the prior; may be left out if K ≥ nt - 1.
        n_euler_steps : int
            Euler steps a frame, by default those of training.

        Returns
        -------
        y : tensor ((nt-1) n + 1, …, B, ny)
            States at all Euler steps: every n-th belongs to a frame.
        z : tensor (nt-1, …, B, nz)
        res : tensor ((nt-1) n, …, B, ny)
        """
        n = n_euler_steps or self.n_euler_steps
        ys, zs, res = [y_0], list(z[:nt - 1]), []
        for t in range(nt - 1):
            if t == len(zs):
                zs.append(rsample(self.p_z(ys[-1]), noise[t - len(z)]))
            for _ in range(n):
                res.append(self.dynamics(torch.cat([ys[-1], zs[t]], -1)) / n)
                ys.append(ys[-1] + res[-1])
        # the shapes of z and res hold for a single frame too, which has none of them
        z = torch.stack(zs) if zs else y_0.new_zeros(0, *y_0.shape[:-1], self.nz)
        return torch.stack(ys), z, torch.stack(res) if res else y_0.new_zeros(0, *y_0.shape)

    def decode(self, w, y, skips=None):
        """Frames (T, B, nc, 64, 64) of states y (T, B, ny), content w (B, nh_inf) and skip connections."""
        T, B = y.shape[:2]
        wy = torch.cat([w.expand(T, *w.shape), y], -1)  # (T, B, nh_inf + ny)
        return self.decoder(wy.flatten(0, 1), skips).unflatten(0, (T, B))

    def draw_noise(self, nt, batch, device=None, generator=None):
        """Standard normal draws for `nt` frames of videos of shape `batch`, an int or a tuple such as (S, B)."""
        batch = (batch,) if isinstance(batch, int) else tuple(batch)
        return Noise(torch.randn(*batch, self.ny, device=device, generator=generator),
                     torch.randn(nt - 1, *batch, self.nz, device=device, generator=generator))

    def draw_frames(self, T, B, device=None, generator=None):
        """Random `Frames` of B videos of T frames, for training."""
        return Frames(torch.rand(T, B, device=device, generator=generator).argsort(0)[:self.nt_inf],
                      torch.randint(T, (B,), device=device, generator=generator))

    def forward(self, x, nt, n_euler_steps=None, between=False, noise=None, frames=None):
        """Infer on given frames and generate, reconstructing the given ones and predicting those after.

        Parameters
        ----------
        x : tensor (T_o, B, nc, 64, 64), in [0, 1]
        nt : int
            Number of frames T to generate. Beyond T_o in evaluation mode only: z then comes from the prior.
        n_euler_steps : int
            Euler steps a frame, by default those of training.
        between : bool
            Return and decode the states between frames too.
        noise : Noise
            Standard normal draws, by default fresh ones.
        frames : Frames
            In training, random frames for w and the skip connections, by default fresh ones.

        Returns
        -------
        Output
        """
        if self.training and nt > len(x):
            raise ValueError(f'{nt} frames asked for, {len(x)} given: the model predicts in evaluation mode only')
        n = n_euler_steps or self.n_euler_steps
        cond = self.condition(x, frames)
        noise = noise or self.draw_noise(nt, x.shape[1], x.device)
        q_z_params = cond.q_z_params[:nt - 1]
        K = len(q_z_params)
        y, z, res = self.evolve(rsample(cond.q_y_0_params, noise.y_0), rsample(q_z_params, noise.z[:K]), nt,
                                noise.z[K:], n)
        p_z_params = self.p_z(y[:-1:n])  # only the Euler steps are sequential: the prior of all frames in one call
        y = y if between else y[::n]
        return Output(self.decode(cond.w, y, cond.skips), y, z, cond.w, cond.q_y_0_params, q_z_params, p_z_params, res)

    def predict(self, cond, nt, noise, n_euler_steps=None, between=False):
        """States of S futures of B videos (paper, section 4).

        The given frames are run through with posterior z and the Euler steps of training, the nt frames after them
        with prior z and `n_euler_steps`.

        Parameters
        ----------
        cond : Condition
            Of T_o frames.
        nt : int
            Number of frames to predict after those given.
        noise : Noise
            For T_o + nt frames of (S, B) videos.
        between : bool
            Return the states between predicted frames too.

        Returns
        -------
        y_given : tensor (T_o, S, B, ny)
        y : tensor (nt, S, B, ny), or (nt n, S, B, ny) with the states between: every n-th belongs to a frame, the last one too
        """
        K = len(cond.q_z_params)
        n = n_euler_steps or self.n_euler_steps
        y_given, _, _ = self.evolve(rsample(cond.q_y_0_params, noise.y_0),
                                    rsample(cond.q_z_params[:, None], noise.z[:K]), K + 1)
        y, _, _ = self.evolve(y_given[-1], noise.z[:0], nt + 1, noise.z[K:], n)
        return y_given[::self.n_euler_steps].clone(), (y[1:] if between else y[n::n]).clone()


def build_model(config):
    """SRVP model of a configuration (see `args.py`), freshly initialised, on the CPU."""
    model = SRVP(nx=config.nx, nc=config.nc, nf=config.nf, archi=config.archi, skipco=config.skipco, nhx=config.nhx,
                 ny=config.ny, nz=config.nz, nt_inf=config.nt_inf, nh_inf=config.nh_inf, nlayers_inf=config.nlayers_inf,
                 nh_res=config.nh_res, nlayers_res=config.nlayers_res, n_euler_steps=config.n_euler_steps,
                 res_gain=config.res_gain)
    return model.to(memory_format=torch.channels_last)  # the layout that convolutions are fastest in, on CPUs and GPUs


def gaussian_nll(x, mean, std):
    """Negative log-density of x under N(mean, std²), element by element; `std` is a number."""
    return 0.5 * ((x - mean) / std) ** 2 + math.log(std) + 0.5 * math.log(2 * math.pi)


def gaussian_kl(params, prior_params=None):
    """KL(q || p), element by element, of Gaussians by their raw parameters; p is N(0, 1) if left out."""
    mean, std = normal_params(params)
    if prior_params is None:
        return 0.5 * (std ** 2 + mean ** 2 - 1) - std.log()
    p_mean, p_std = normal_params(prior_params)
    return 0.5 * ((std / p_std) ** 2 + ((mean - p_mean) / p_std) ** 2 - 1) + p_std.log() - std.log()


def loss(x, out, *, obs_scale, beta_y, beta_z, l2_res):
    """Loss of a batch: weighted negative evidence lower bound and residual penalty (paper, section 3.3).

    Parameters
    ----------
    x : tensor (T, B, nc, 64, 64)
        True frames.
    out : Output
        Of a forward pass on x for the T frames.
    obs_scale : float
        Standard deviation of the observation model.
    beta_y, beta_z, l2_res : float
        Weights of the divergences of y_0 and z and of the sum of Euclidean norms (not squared) of residuals.

    Returns
    -------
    Losses
        Computed in float32.
    """
    B = x.shape[1]
    nll = gaussian_nll(x.float(), out.x_.float(), obs_scale).sum() / B
    kl_y_0 = gaussian_kl(out.q_y_0_params.float()).sum() / B
    kl_z = gaussian_kl(out.q_z_params.float(), out.p_z_params.float()).sum() / B
    res = torch.linalg.vector_norm(out.res.float(), dim=-1).sum() / B
    return Losses(nll + beta_y * kl_y_0 + beta_z * kl_z + l2_res * res, nll, kl_y_0, kl_z, res)
