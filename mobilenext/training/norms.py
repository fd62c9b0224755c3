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
    """A batch norm over the images of `ranks` neighbouring ranks: torch's on GPUs, and on CPUs.

    Not a subclass of torch's, which `DistributedDataParallel` refuses on CPUs.

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

    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    @property
    def process_group(self) -> Any:
        """The ranks that share statistics."""
        return _groups[self.ranks]

    def forward(self, input: Tensor) -> Tensor:
        """Normalised images (N, C, H, W)."""
        if not self.training:
            x = super().forward(input)
        elif input.device.type == "cpu":
            x = self._on_cpu(input)
        else:
            itself: Any = self
            x = nn.SyncBatchNorm.forward(itself, input)
        for after in (self.drop, self.act):
            x = x if after is None else after(x)
        return x

    def _on_cpu(self, images: Tensor) -> Tensor:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x: Any = _Normalized.apply(images, self)
        if self.affine:
            x = torch.addcmul(self.bias[:, None, None], x, self.weight[:, None, None])
        return x


class _Normalized(torch.autograd.Function):
    """Images (N, C, H, W) less their mean over all processes, over their standard deviation."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, norm: SynchronizedBatchNorm) -> Tensor:
        exact = images.double()
        sums = torch.stack([exact.sum((0, 2, 3)), exact.square().sum((0, 2, 3))])
        count = torch.full((1,), images.numel() / images.shape[1], dtype=torch.float64)
        totals = torch.cat([sums.flatten(), count])
        dist.all_reduce(totals, group=norm.process_group)
        total = totals[-1]
        mean, square = (totals[:-1] / total).view(2, -1).unbind()
        variance = (square - mean.square()).clamp_min(0)
        if norm.running_mean is not None and norm.running_var is not None:
            share = norm.momentum if norm.momentum is not None else 0.1
            norm.running_mean.lerp_(mean.to(norm.running_mean), share)
            unbiased = variance * total / (total - 1)
            norm.running_var.lerp_(unbiased.to(norm.running_var), share)
        scale = (variance + norm.eps).rsqrt()
        normalized = ((exact - mean[:, None, None]) * scale[:, None, None]).to(images)
        ctx.save_for_backward(normalized, scale, total)
        ctx.group = norm.process_group
        return normalized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        normalized, scale, total = ctx.saved_tensors
        gradient, exact = gradients[0].double(), normalized.double()
        sums = torch.stack([gradient.sum((0, 2, 3)), (gradient * exact).sum((0, 2, 3))])
        dist.all_reduce(sums, group=ctx.group)
        mean, slope = (sums / total)[:, :, None, None]
        there = (gradient - mean - exact * slope) * scale[:, None, None]
        return there.to(normalized), None


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
