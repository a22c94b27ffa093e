"""The plain formulation: the paper step by step, with nothing shared, merged or reordered."""

import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from metrics.frame import CONVOLUTIONS, K1, K2, SIGMA, WINDOW
from model import Noise, Output, normal_params, rsample


def decode(decoder, w, y, skips=None):
    """Frames (T, B, nc, H, W); the skips of a video are concatenated to each of its frames."""
    T, B = y.shape[:2]
    wy = torch.cat([w.expand(T, *w.shape), y], -1)
    h = decoder.first_upconv(wy.flatten(0, 1)[:, :, None, None])
    for i, block in enumerate(decoder.conv):
        if skips is not None:
            h = torch.cat([h, skips[i].expand(T, *skips[i].shape).flatten(0, 1)], 1)
        h = block(h)
    return torch.sigmoid(h).unflatten(0, (T, B))


def next_state(model, y, z):
    """State (…, ny) of the next frame by the rules of the ablations, from weights and biases."""
    if model.rule == 'mlp':
        h = torch.cat([y, z], -1)
        for i, (*_, linear) in enumerate(model.dynamics.module):
            h = (h.clamp(min=0) if i > 0 else h) @ linear.weight.T + linear.bias
        return h
    cell = model.dynamics
    reset_z, update_z, new_z = (z @ cell.weight_ih.T + cell.bias_ih).chunk(3, -1)
    reset_y, update_y, new_y = (y @ cell.weight_hh.T + cell.bias_hh).chunk(3, -1)
    reset, update = torch.sigmoid(reset_z + reset_y), torch.sigmoid(update_z + update_y)
    return (1 - update) * torch.tanh(new_z + reset * new_y) + update * y


def forward(model, x, nt, n_euler_steps=None, noise=None):
    """`SRVP.forward`, frame by frame."""
    cond = model.condition(x)
    noise = noise or model.draw_noise(nt, x.shape[1])
    y = rsample(cond.q_y_0_params, noise.y_0)
    zs, ys, p_z_params, res = [], [y], [], []
    for t in range(nt - 1):
        observed = t < len(cond.q_z_params)
        n = n_euler_steps if n_euler_steps and not observed else model.n_euler_steps
        p_z_params.append(model.p_z(y))
        zs.append(rsample(cond.q_z_params[t] if observed else p_z_params[-1], noise.z[t]))
        if model.rule != 'residual':
            y = next_state(model, y, zs[-1])
        else:
            for _ in range(n):
                res.append(model.dynamics(torch.cat([y, zs[-1]], -1)) / n)
                y = y + res[-1]
        ys.append(y)
    ys = torch.stack(ys)
    return Output(decode(model.decoder, cond.w, ys, cond.skips), ys, torch.stack(zs), cond.w,
                  cond.q_y_0_params, cond.q_z_params[:nt - 1], torch.stack(p_z_params),
                  torch.stack(res) if res else y.new_zeros(0, *y.shape))


def loss(x, out, obs_scale, beta_y, beta_z, l2_res):
    """The loss, with `torch.distributions`."""
    def normal(params):
        return Normal(*normal_params(params))
    nll = -Normal(out.x_, obs_scale).log_prob(x).sum()
    kl_y_0 = kl_divergence(normal(out.q_y_0_params), Normal(0., 1.)).sum()
    kl_z = sum(kl_divergence(normal(q), normal(p)).sum()
               for q, p in zip(out.q_z_params, out.p_z_params))
    res = out.res.norm(dim=-1).sum()
    return (nll + beta_y * kl_y_0 + beta_z * kl_z + l2_res * res) / x.shape[1]


def psnr(x, y):
    """PSNR (B,) of videos (T, B, C, H, W)."""
    mse = F.mse_loss(x, y, reduction='none').mean((-2, -1))
    return (10 * torch.log10(1 / mse)).mean((0, 2))


def ssim(x, y):
    """SSIM (B,) of videos (T, B, C, H, W), with 2D convolutions."""
    i = torch.arange(WINDOW, device=x.device) - WINDOW // 2
    window = torch.exp(-(i[:, None] ** 2 + i ** 2) / (2 * SIGMA ** 2))
    window = (window / window.sum())[None, None]

    def blur(a):
        return F.conv2d(a.reshape(-1, 1, *a.shape[-2:]), window)
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x ** 2, blur(y * y) - mean_y ** 2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = K1 ** 2, K2 ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x ** 2 + mean_y ** 2 + c1)
    contrast = (2 * cov + c2) / (var_x + var_y + c2)
    return (luminance * contrast).mean((1, 2, 3)).view(x.shape[:3]).mean((0, 2))


def lpips(network, x, y):
    """LPIPS (B,) of videos (T, B, C, H, W): both pass through the network, in three channels."""
    features = []
    for video in (x, y):
        h = 2 * video.flatten(0, 1).expand(-1, 3, -1, -1) - 1
        h = (h - network.shift) / network.scale
        layers = []
        for k, conv in enumerate(network.convolutions):
            if k in (1, 2):
                h = F.max_pool2d(h, 3, 2)
            h = F.relu(F.conv2d(h, conv.weight, conv.bias, conv.stride, conv.padding))
            layers.append(h / (h.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        features.append(layers)
    total = 0
    for k, (a, b) in enumerate(zip(*features)):
        weight = getattr(network, f'linear_{k}')[None, :, None, None]
        total = total + ((a - b) ** 2 * weight).sum(1).mean((1, 2))
    return total.view(x.shape[:2]).mean(0)


@torch.no_grad()
def evaluate(model, network, x, nt_cond, noise, n_euler_steps=None):
    """Best scores (B,), by metric, of videos (T, B, C, H, W): all is recomputed for each sample."""
    best = {}
    for s in range(noise.y_0.shape[0]):
        out = forward(model, x[:nt_cond], len(x), n_euler_steps,
                      Noise(noise.y_0[s], noise.z[:, s]))
        pair = out.x_[nt_cond:].clamp(0, 1), x[nt_cond:]
        scores = {'psnr': psnr(*pair), 'ssim': ssim(*pair), 'lpips': lpips(network, *pair)}
        for name, score in scores.items():
            better = torch.minimum if name == 'lpips' else torch.maximum
            best[name] = better(best[name], score) if name in best else score
    return best


def random_backbone():
    """Parameters of the convolutions of AlexNet, as random as before training."""
    generator = torch.Generator().manual_seed(0)
    backbone = {}
    for i, (n_in, n_out, kernel, _, _), _ in CONVOLUTIONS:
        weight = torch.randn(n_out, n_in, kernel, kernel, generator=generator)
        backbone[f'features.{i}.weight'] = weight * (2 / (n_in * kernel ** 2)) ** .5
        backbone[f'features.{i}.bias'] = 0.1 * torch.randn(n_out, generator=generator)
    return backbone


def gradients(model, step):
    """Value of a function, and its gradients by all parameters, for the same random frames."""
    model.zero_grad()
    torch.manual_seed(3)  # frames for w and the skip connections
    value = step()
    value.backward()
    return [value.detach(), *(p.grad for p in model.parameters())]
