"""The plain formulation: what the paper says, step by step, nothing shared, joined or reordered."""

import torch
import torch.nn.functional as F

from metrics.frame import K1, K2, SIGMA, WINDOW
from model import Output, normal_params, rsample


def decode(decoder, w, y, skips=None):
    """Frames (T, B, nc, 64, 64): each frame with the skip connections of its video, joined on the channels."""
    T, B = y.shape[:2]
    h = decoder.first_upconv(torch.cat([w.expand(T, *w.shape), y], -1).flatten(0, 1)[:, :, None, None])
    for i, block in enumerate(decoder.conv):
        if skips is not None:
            h = torch.cat([h, skips[i].expand(T, *skips[i].shape).flatten(0, 1)], 1)
        h = block(h)
    return torch.sigmoid(h).unflatten(0, (T, B))


def forward(model, x, nt, n_euler_steps=None, noise=None):
    """As `SRVP.forward`, frame by frame."""
    cond = model.condition(x)
    noise = noise or model.draw_noise(nt, x.shape[1])
    y, zs, ys, p_z_params, res = rsample(cond.q_y_0_params, noise.y_0), [], [], [], []
    ys.append(y)
    for t in range(nt - 1):
        given = t < len(cond.q_z_params)
        n = model.n_euler_steps if given else n_euler_steps or model.n_euler_steps
        p_z_params.append(model.p_z(y))
        zs.append(rsample(cond.q_z_params[t] if given else p_z_params[-1], noise.z[t]))
        for _ in range(n):
            res.append(model.dynamics(torch.cat([y, zs[-1]], -1)) / n)
            y = y + res[-1]
        ys.append(y)
    ys = torch.stack(ys)
    return Output(decode(model.decoder, cond.w, ys, cond.skips), ys, torch.stack(zs), cond.w, cond.q_y_0_params, cond.q_z_params[:nt - 1],
                  torch.stack(p_z_params), torch.stack(res))


def loss(x, out, obs_scale, beta_y, beta_z, l2_res):
    """The loss, by PyTorch's distributions."""
    def normal(params):
        return torch.distributions.Normal(*normal_params(params))
    n = x.shape[1]
    nll = -torch.distributions.Normal(out.x_, obs_scale).log_prob(x).sum()
    kl_y_0 = torch.distributions.kl_divergence(normal(out.q_y_0_params), torch.distributions.Normal(0., 1.)).sum()
    kl_z = sum(torch.distributions.kl_divergence(normal(q), normal(p)).sum() for q, p in zip(out.q_z_params, out.p_z_params))
    return (nll + beta_y * kl_y_0 + beta_z * kl_z + l2_res * out.res.norm(dim=-1).sum()) / n


def psnr(x, y):
    """PSNR (B,) of videos (T, B, C, H, W)."""
    return (10 * torch.log10(1 / F.mse_loss(x, y, reduction='none').mean((-2, -1)))).mean((0, 2))


def ssim(x, y):
    """SSIM (B,) of videos (T, B, C, H, W), by convolutions with the window."""
    i = torch.arange(WINDOW, device=x.device) - WINDOW // 2
    window = torch.exp(-(i[:, None] ** 2 + i ** 2) / (2 * SIGMA ** 2))
    window = (window / window.sum())[None, None]

    def blur(a):
        return F.conv2d(a.reshape(-1, 1, *a.shape[-2:]), window)
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x ** 2, blur(y * y) - mean_y ** 2, blur(x * y) - mean_x * mean_y
    c1, c2 = K1 ** 2, K2 ** 2
    ratio = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x ** 2 + mean_y ** 2 + c1) * (var_x + var_y + c2))
    return ratio.mean((1, 2, 3)).view(x.shape[:3]).mean((0, 2))


def lpips(network, x, y):
    """LPIPS (B,) of videos (T, B, C, H, W): both sides in three channels through the network."""
    features = []
    for video in (x, y):
        h = (2 * video.flatten(0, 1).expand(-1, 3, -1, -1) - 1 - network.shift) / network.scale
        layers = []
        for k, conv in enumerate(network.convolutions):
            h = F.relu(F.conv2d(F.max_pool2d(h, 3, 2) if k in (1, 2) else h, conv.weight, conv.bias, conv.stride, conv.padding))
            layers.append(h / (h.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        features.append(layers)
    weights = [getattr(network, f'linear_{k}')[None, :, None, None] for k in range(len(network.convolutions))]
    return sum(((a - b) ** 2 * w).sum(1).mean((1, 2)) for a, b, w in zip(*features, weights)).view(x.shape[:2]).mean(0)


@torch.no_grad()
def evaluate(model, network, x, nt_cond, noise, n_euler_steps=None):
    """Best scores (B,) by metric of videos (T, B, C, H, W): sample by sample, everything computed again."""
    best = {}
    for s in range(noise.y_0.shape[0]):
        out = forward(model, x[:nt_cond], len(x), n_euler_steps, type(noise)(noise.y_0[s], noise.z[:, s]))
        pair = out.x_[nt_cond:].clamp(0, 1), x[nt_cond:]
        for name, score in (('psnr', psnr(*pair)), ('ssim', ssim(*pair)), ('lpips', lpips(network, *pair))):
            better = torch.minimum if name == 'lpips' else torch.maximum
            best[name] = better(best[name], score) if name in best else score
    return best
