"""Networks whose batch norms are trained together with the ReLU6 and the shortcut behind them.

torch writes a feature map after the norm, another after ReLU6 and another after the addition, and
keeps the norm's input and output for the backward pass. One function of all three (`norm_kernels`)
writes one and keeps the norm's input. It has been tested on CPUs, by Triton's interpreter; whether
it is faster has not been measured.
"""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from mobilenext.errors import InputError
from mobilenext.models.sandglass import WideBlock

DEVICES = ("cuda",)
"""Types of devices that the kernels run on."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class FusedLayers(nn.Sequential):
    """Layers in a row, of which norms are computed together with what follows them.

    So in training mode, of a plain `nn.BatchNorm2d` before `nn.ReLU6`, or before the shortcut, on a
    feature map that the kernels take; all else is what `nn.Sequential` does. Hooks of a norm and a
    ReLU6 that are computed together are not called.

    Args:
        layers: By name.
        added: Channels of the input, the first ones, that are added to the output.

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
            clamped = bool(layers) and _is_relu6(layers[0])
            added = 0 if layers[clamped:] else self.added
            if not (clamped or added) or not _fits(layer, x, input if added else x):
                x = layer(x)
                continue
            x = _fused(layer, x, clamped, input if added else None, added)
            if added:
                return x
            del layers[:clamped]
        k = self.added
        if k in (0, x.shape[1]):
            return x + input if k else x
        return torch.cat((input[:, :k] + x[:, :k], x[:, k:]), dim=1)


def fuse_norms(network: nn.Module) -> nn.Module:
    """Have a network's batch norms be trained together with ReLU6 and shortcuts behind them.

    Names, order and number of parameters and statistics stay. What the kernels do not take stays
    torch's: evaluation, other devices, memory formats and number types, norms of several processes
    or with other statistics, other activations, shortcuts of blocks with squeeze-and-excitation or
    stochastic depth.

    Args:
        network: Changed in place; before it is compiled or wrapped.

    Returns:
        The network, or what takes its place if it is a row of layers itself.

    Raises:
        InputError: It has no norm before a ReLU6.
    """
    network = _replaced(network)
    if not any(isinstance(module, FusedLayers) for module in network.modules()):
        raise InputError(
            "runtime.fused=true: expected a network with a batch norm before a ReLU6, such as "
            f"MobileNeXt's, got a {type(network).__name__} without; use runtime.fused=false"
        )
    return network


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
    return any(_is_plain(one) and _is_relu6(other) for one, other in pairwise(layers))


def _adds_at_once(block: WideBlock) -> bool:
    """Whether a block's shortcut is added to its last norm's output, or to that behind ReLU6."""
    between = (block.se, block.drop_path)
    if block.identity_channels == 0 or any(type(one) is not nn.Identity for one in between):
        return False
    layers = list(block.conv)
    return _is_plain(layers[-2] if _is_relu6(layers[-1]) else layers[-1])


def _is_relu6(module: nn.Module) -> bool:
    return type(module) is nn.ReLU6


def _is_plain(module: nn.Module) -> bool:
    """Whether it is torch's norm (a subclass may do more) with weights and usual statistics."""
    if type(module) is not nn.BatchNorm2d:
        return False
    return module.affine and module.track_running_stats and module.momentum is not None


def _fits(norm: nn.Module, x: Tensor, shortcut: Tensor) -> bool:
    """Whether the kernels take a norm, its input and what is added (`x` itself: nothing is)."""
    return (
        norm.training
        and _is_plain(norm)
        and not torch.compiler.is_compiling()
        and x.device.type in DEVICES
        and x.dtype in DTYPES
        and x.ndim == 4
        and x.numel() > x.shape[1]  # torch has the words for one value a channel
        and norm.weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and shortcut.is_contiguous(memory_format=torch.channels_last)
        and (shortcut.shape, shortcut.dtype) == (x.shape, x.dtype)
    )


def _fused(
    norm: nn.Module, x: Tensor, clamped: bool, shortcut: Tensor | None, added: int
) -> Tensor:
    from mobilenext.models.norm_kernels import fused_norm  # loads Triton

    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.momentum is not None
    if norm.num_batches_tracked is not None:  # hidden where norms are counted together
        norm.num_batches_tracked.add_(1)
    running = (norm.get_buffer("running_mean"), norm.get_buffer("running_var"))
    return fused_norm(
        x, norm.weight, norm.bias, running, norm.momentum, norm.eps, clamped=clamped,
        shortcut=shortcut, added=added,
    )  # fmt: skip
