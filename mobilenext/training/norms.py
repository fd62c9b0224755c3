"""Batch norms over the images of several processes, on any device."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from mobilenext.runtime.distributed import Process

_groups: dict[int, Any] = {}
"""Groups of neighbouring ranks by their size: a group can't be copied, and networks are."""


class SynchronizedBatchNorm(_BatchNorm):
    """A batch norm over the images of `ranks` neighbouring ranks, which have equally many.

    On any device, and without a wait for it; torch's is for GPUs only, where it waits at each norm
    since it allows for ranks without images.

    Args:
        norm: The batch norm whose parameters and statistics it takes over.
        ranks: Number of ranks that share statistics; their group has to be there, see
            `synchronize`.
    """

    def __init__(self, norm: _BatchNorm, ranks: int) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        self.ranks = ranks
        own = [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)]
        for name, value in own:
            setattr(self, name, value)
        self.train(norm.training)
        # timm's norms of many networks have these inside.
        self.drop: nn.Module | None = getattr(norm, "drop", None)
        self.act: nn.Module | None = getattr(norm, "act", None)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions from (N, C) on."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalised images (N, C, ...)."""
        x = self._over_ranks(input) if self.training else super().forward(input)
        for after in (self.drop, self.act):
            x = x if after is None else after(x)
        return x

    def _over_ranks(self, images: Tensor) -> Tensor:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        exact = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
        x: Any = _Normalized.apply(exact, self)
        if self.affine:
            _, shape = _others(images)
            x = torch.addcmul(self.bias.view(shape), x, self.weight.view(shape))
        return x.to(images.dtype)


class _Normalized(torch.autograd.Function):
    """Images (N, C, ...) less their mean over all ranks, over their standard deviation."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, norm: SynchronizedBatchNorm) -> Tensor:
        dims, shape = _others(images)
        variance, mean = torch.var_mean(images, dims, correction=0)
        mean = mean.double()
        means = torch.stack([mean, mean.square(), variance.double()])
        group = _groups[norm.ranks]
        dist.all_reduce(means, group=group)
        means /= norm.ranks
        mean, square, within = means.unbind()
        variance = (within + square - mean.square()).clamp_min(0)
        count = norm.ranks * images.numel() // images.shape[1]
        if norm.running_mean is not None and norm.running_var is not None:
            share: Any = norm.momentum
            if share is None:
                share = 1 / norm.get_buffer("num_batches_tracked").to(norm.running_mean.dtype)
            norm.running_mean.lerp_(mean.to(norm.running_mean), share)
            unbiased = variance * (count / max(1, count - 1))
            norm.running_var.lerp_(unbiased.to(norm.running_var), share)
        scale = (variance + norm.eps).rsqrt().to(images).view(shape)
        normalized = (images - mean.to(images).view(shape)) * scale
        ctx.save_for_backward(normalized, scale)
        ctx.group, ctx.count = group, count
        return normalized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (normalized, scale) = gradients, ctx.saved_tensors
        dims, shape = _others(gradient)
        sums = torch.stack([gradient.sum(dims), (gradient * normalized).sum(dims)]).double()
        dist.all_reduce(sums, group=ctx.group)
        mean, slope = ((part / ctx.count).to(gradient).view(shape) for part in sums)
        return (gradient - mean - normalized * slope) * scale, None


def _others(images: Tensor) -> tuple[list[int], tuple[int, ...]]:
    """All dimensions but that of the channels; and a shape of a value for each channel."""
    return [0, *range(2, images.ndim)], (1, -1, *[1] * (images.ndim - 2))


def synchronize(network: nn.Module, process: Process, ranks: int) -> nn.Module:
    """Replace a network's batch norms by ones over the images of neighbouring ranks.

    All processes call this together. The names of parameters and statistics stay.

    Args:
        network: Changed in place.
        process: This process.
        ranks: Number of ranks that share statistics; divides the number of processes. 1: none.

    Returns:
        The network, or what takes its place if it is a norm itself.
    """
    if ranks == 1:
        return network
    if ranks == process.world_size:
        _groups[ranks] = dist.group.WORLD
    elif ranks not in _groups:
        _groups[ranks] = dist.new_subgroups(ranks, timeout=process.timeout)[0]
    return _replaced(network, ranks)


def _replaced(module: nn.Module, ranks: int) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return SynchronizedBatchNorm(module, ranks)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, ranks))
    return module
