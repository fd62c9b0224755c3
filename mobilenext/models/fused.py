"""Networks whose batch norms are trained together with the ReLU6 and the shortcut behind them.

torch writes a feature map after the norm, another after ReLU6 and another after the addition, and
keeps the norm's input and output for the backward pass. One function of all three writes one and
keeps the norm's input: on the CPU that of native/norms.c (`native_norms`), on CUDA one of Triton's
(`norm_kernels`), which has been tested by Triton's interpreter and whose speed was not measured.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mobilenext.models import native_norms
from mobilenext.models.sandglass import WideBlock


@dataclass(frozen=True)
class Kernels:
    """What computes fused norms on a kind of device."""

    name: str
    load: Callable[[], Any]
    """The module with its `forward` and `backward`."""
    dtypes: tuple[torch.dtype, ...]
    alone: bool
    """Whether norms with nothing behind them are computed by it, too."""


def _triton() -> Any:
    from mobilenext.models import norm_kernels

    return norm_kernels


KERNELS = {
    "cpu": Kernels("native", lambda: native_norms, (torch.float32,), alone=True),
    "cuda": Kernels("triton", _triton, (torch.float32, torch.bfloat16, torch.float16), alone=False),
}
"""By the type of device."""


class _Function(torch.autograd.Function):
    """See `fused_norm`. Of the feature maps it keeps the input alone for its backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None,
        running: tuple[Tensor, Tensor], momentum: float, eps: float, clamped: bool, added: int,
    ) -> Tensor:  # fmt: skip
        ctx.kernels = KERNELS[x.device.type].load()
        y, kept = ctx.kernels.forward(
            x, weight, bias, running, momentum, eps, clamped, shortcut, added
        )
        torch.autograd.graph.increment_version(running)
        ctx.save_for_backward(x, *kept)
        ctx.clamped, ctx.added = clamped, added
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, *kept = ctx.saved_tensors
        # Hooks on what is saved may have changed the format.
        x, dy = (one.contiguous(memory_format=torch.channels_last) for one in (x, dy))
        gradients = ctx.kernels.backward(dy, x, *kept, clamped=ctx.clamped)
        return *gradients, _of_shortcut(dy, ctx.added), *[None] * 5


def _of_shortcut(dy: Tensor, added: int) -> Tensor | None:
    """The gradient of what was added: that of the output in its channels, 0 in the others."""
    if added in (0, dy.shape[1]):
        return dy if added else None
    gradient = torch.zeros_like(dy)
    gradient[:, :added] = dy[:, :added]
    return gradient


def fused_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor],
    momentum: float,
    eps: float,
    *,
    clamped: bool,
    shortcut: Tensor | None = None,
    added: int = 0,
) -> Tensor:
    """Batch norm of a batch's own statistics, then perhaps ReLU6, then perhaps an addition.

    The same input gives the same bits, also of gradients; on the CPU for any number of threads. It
    can't be differentiated twice.

    Args:
        x: Feature map (N, C, H, W) of one of the device's `Kernels.dtypes`, channels_last in
            memory, with at least two values a channel.
        weight: Of the norm, float32 (C,).
        bias: Of the norm, float32 (C,).
        running: Running mean and variance, float32 (C,), changed in place as `nn.BatchNorm2d` does.
        momentum: Share of the batch in them.
        eps: Added to variances.
        clamped: Whether ReLU6 follows; its gradient is 0 at 0 and at 6, as torch's.
        shortcut: What is added after it; of the shape, type and memory format of `x`.
        added: How many of its channels, the first ones, are; 0: there is no shortcut.

    Returns:
        A tensor of the shape, type and memory format of `x`.
    """
    return _Function.apply(x, weight, bias, shortcut, running, momentum, eps, clamped, added)  # pyright: ignore[reportReturnType]


def has_native_norms() -> bool:
    """Whether norms can be fused on the CPU: pip has built them, and they share torch's threads."""
    return native_norms.library() is not None


class FusedNorm(nn.BatchNorm2d):
    """A batch norm whose training steps take the ReLU6 and the addition behind it along.

    What the kernels do not take (evaluation, other devices, memory formats and number types) is
    computed by torch.
    """

    def forward(
        self, input: Tensor, clamped: bool = False, shortcut: Tensor | None = None, added: int = 0
    ) -> Tensor:
        """The norm of (N, C, H, W), with ReLU6 if `clamped`, and then an addition.

        Args:
            input: Feature map.
            clamped: Whether ReLU6 follows.
            shortcut: What is added, of the same shape.
            added: How many of its channels, the first ones; 0: there is no shortcut.
        """
        kernels = KERNELS.get(input.device.type)
        joined = clamped or shortcut is not None
        if (
            kernels is not None
            and (joined or kernels.alone)
            and self._fits(input, shortcut, kernels)
        ):
            return self._fused(input, clamped, shortcut, added)
        y = super().forward(input)
        if clamped:
            y = nn.functional.relu6(y)
        if shortcut is None:
            return y
        if added == y.shape[1]:
            return shortcut + y
        return torch.cat((shortcut[:, :added] + y[:, :added], y[:, added:]), dim=1)

    def _fits(self, x: Tensor, shortcut: Tensor | None, kernels: Kernels) -> bool:
        """Whether the kernels take it; they read memory as it comes, and check nothing."""
        return (
            self.training
            and self.momentum is not None
            and type(x) is Tensor  # no stand-in without memory
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
            and x.dtype in kernels.dtypes
            and x.ndim == 4
            and x.shape[1] == self.num_features
            and x.numel() > x.shape[1]  # torch has the words for one value a channel
            and x.is_contiguous(memory_format=torch.channels_last)
            and (shortcut is None or _alike(shortcut, x))
            and all(
                row is not None
                and row.dtype == torch.float32
                and row.device == x.device
                and row.is_contiguous()
                for row in (self.weight, self.bias, self.running_mean, self.running_var)
            )
        )

    def _fused(self, x: Tensor, clamped: bool, shortcut: Tensor | None, added: int) -> Tensor:
        assert self.momentum is not None
        if self.num_batches_tracked is not None:  # hidden where norms are counted together
            self.num_batches_tracked.add_(1)
        running = (self.get_buffer("running_mean"), self.get_buffer("running_var"))
        return fused_norm(
            x, self.weight, self.bias, running, self.momentum, self.eps, clamped=clamped,
            shortcut=shortcut, added=added,
        )  # fmt: skip


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two feature maps lie in memory in the same way."""
    alike = (one.shape, one.dtype) == (other.shape, other.dtype)
    return alike and one.is_contiguous(memory_format=torch.channels_last)


class FusedLayers(nn.Sequential):
    """Layers in a row, of which `FusedNorm`s are computed together with what follows them.

    Hooks of a ReLU6 behind a norm are not called.

    Args:
        layers: By name.
        added: Channels of the input, the first ones, that are added to the output; the last layer,
            or the one before a ReLU6 there, is a `FusedNorm` then.

    Shapes:
        Those of the layers; with `added`, the output's is the input's.
    """

    def __init__(self, layers: "OrderedDict[str, nn.Module]", added: int = 0) -> None:
        super().__init__(layers)
        self.added = added

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        x, layers = input, list(self)
        while layers:
            layer = layers.pop(0)
            if not isinstance(layer, FusedNorm):
                x = layer(x)
                continue
            clamped = bool(layers) and _is_relu6(layers[0])
            del layers[:clamped]
            adds = self.added > 0 and not layers
            x = layer(x, clamped, input if adds else None, self.added if adds else 0)
        return x


def fuse_norms(network: nn.Module) -> nn.Module:
    """Have a network's batch norms be trained together with ReLU6 and shortcuts behind them.

    Names, order and number of parameters and statistics stay. Norms of several processes or with
    other statistics stay torch's, and so do other activations and the shortcuts of blocks with
    squeeze-and-excitation or stochastic depth.

    Args:
        network: Changed in place; before it is compiled or wrapped.

    Returns:
        The network, or what takes its place if it is a row of layers itself.
    """
    for module in network.modules():
        if _is_plain(module):
            module.__class__ = FusedNorm
    return _replaced(network)


def fused_by(network: nn.Module, device: torch.device) -> str:
    """What computes a network's norms in training: native, triton or torch."""
    kernels = KERNELS.get(device.type)
    kinds = (FusedLayers, FusedNorm) if kernels is not None and kernels.alone else (FusedLayers,)
    fused = any(isinstance(module, kinds) for module in network.modules())
    return kernels.name if kernels is not None and fused else "torch"


def _replaced(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    if isinstance(module, WideBlock) and _adds_at_once(module):
        module.conv = FusedLayers(_named(module.conv), module.identity_channels)
        module.identity_channels = 0  # the layers, which get the same input, add it
    plain = type(module).forward is nn.Sequential.forward
    if isinstance(module, nn.Sequential) and plain and _has_pair(module):
        return FusedLayers(_named(module))
    return module


def _named(layers: nn.Sequential) -> "OrderedDict[str, nn.Module]":
    return OrderedDict(layers.named_children())


def _has_pair(layers: nn.Sequential) -> bool:
    return any(isinstance(one, FusedNorm) and _is_relu6(other) for one, other in pairwise(layers))


def _adds_at_once(block: WideBlock) -> bool:
    """Whether a block's shortcut is added to its last norm's output, or to that behind ReLU6."""
    between = (block.se, block.drop_path)
    if block.identity_channels == 0 or any(type(one) is not nn.Identity for one in between):
        return False
    layers = list(block.conv)
    return isinstance(layers[-2] if _is_relu6(layers[-1]) else layers[-1], FusedNorm)


def _is_relu6(module: nn.Module) -> bool:
    return type(module) is nn.ReLU6


def _is_plain(module: nn.Module) -> bool:
    """Whether it is torch's norm (a subclass may do more) with weights and usual statistics."""
    if type(module) is not nn.BatchNorm2d:
        return False
    return module.affine and module.track_running_stats and module.momentum is not None
