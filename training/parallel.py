"""A model that several processes train together."""

import functools

import torch
import torch.distributed as dist
import torch.nn as nn


class AllReduce(torch.autograd.Function):
    """Sum of a tensor over all processes; its gradient is the sum of theirs.

    PyTorch's own, `torch.distributed.nn.functional.all_reduce`, is deprecated.
    """

    @staticmethod
    def forward(ctx, x, group):
        ctx.group, total = group, x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad):
        return AllReduce.forward(ctx, grad, ctx.group), None


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over all processes' batches on CPUs, where PyTorch has none."""
    group = None  # torch.distributed.ProcessGroup

    def forward(self, x):
        """(N, C, H, W) -> (N, C, H, W)"""
        if not self.training:
            return super().forward(x)
        dims = 0, 2, 3
        x_ = x.float()
        n = x_.new_tensor([x_.numel() / x_.shape[1]])
        total = AllReduce.apply(torch.cat([x_.sum(dims), n]), self.group)
        mean, n = total[:-1] / total[-1], total[-1]
        centred = x_ - mean[:, None, None]
        var = AllReduce.apply((centred ** 2).sum(dims), self.group) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)  # unbiased
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def with_stride(tensor, stride):
    return tensor.as_strided(tensor.shape, stride)


def distribute(model, device, world):
    """Model with gradients averaged, and batch statistics computed, over all processes."""
    if device.type == 'cuda':
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model, world.group)
    else:
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.__class__, m.group = SyncBatchNorm, world.group  # same state, other forward
    for p in model.parameters():
        # The stride of an axis of length 1 is arbitrary; DDP warns unless the gradient has p's
        if p.ndim == 4 and p.shape[1] == 1:
            p.register_hook(functools.partial(with_stride, stride=p.stride()))
    return nn.parallel.DistributedDataParallel(model, process_group=world.group,
                                               gradient_as_bucket_view=True)
