"""Operators of DARTS' cells (arXiv 1806.09055), and the blocks that the paper adds to them."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenext.errors import InputError
from mobilenext.files import printable
from mobilenext.genotype import BLOCKS, NONE, OPERATORS, SKIP, BlockSettings
from mobilenext.models.layers import conv_norm, relu6
from mobilenext.models.sandglass import SandglassBlock

FEWEST_CHANNELS = 4
"""Of an operator: a factorized reduction makes half of them at a time, and a sandglass block has a
sixth of them in its middle, which below that would be one channel whatever the ratio."""

DEPTHWISE = {
    "sep_conv_3x3": (3, 1),
    "sep_conv_5x5": (5, 1),
    "dil_conv_3x3": (3, 2),
    "dil_conv_5x5": (5, 2),
}
"""Kernel and dilation of the operators that are depthwise separable convolutions."""


class Depthwise(nn.Conv2d):
    """A depthwise convolution that keeps the size (over its stride).

    In training, dilated ones are computed as ones without a dilation, on every other pixel: with
    stride 2 only those are needed, and with stride 1 the four grids of them are a batch of four.
    On CPUs that takes a third of the time, backward pass included.

    Args:
        channels: Of input and output.
        kernel: Odd.
        stride: 1 or 2.
        dilation: 1 or 2.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:  # nn.Conv2d's name
        """(N, channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride))."""
        if self.dilation[0] == 1 or not self.training:
            return super().forward(input)
        memory = memory_format_of(input)
        if self.stride[0] == 2:
            return self._plain(input[:, :, ::2, ::2].contiguous(memory_format=memory))
        height, width = input.shape[2:]
        if input.device.type != "cpu" or height % 2 or width % 2:
            return super().forward(input)
        # The four grids as a batch, in one copy each way: pixels of channels_last maps lie
        # together, so there the channels are moved last for it.
        last = memory is torch.channels_last
        x = input.movedim(1, -1) if last else input
        axis = 1 if last else 2
        split = x.unflatten(axis + 1, (-1, 2)).unflatten(axis, (-1, 2))
        grids = split.movedim((axis + 1, axis + 3), (0, 1)).flatten(0, 2)
        out = self._plain(grids.movedim(-1, 1) if last else grids)
        out = (out.movedim(1, -1) if last else out).unflatten(0, (2, 2, -1))
        whole = out.movedim((0, 1), (axis + 1, axis + 3)).flatten(axis, axis + 1)
        whole = whole.flatten(axis + 1, axis + 2)
        return whole.movedim(-1, 1) if last else whole

    def _plain(self, x: Tensor) -> Tensor:
        padding = self.kernel_size[0] // 2
        return F.conv2d(x, self.weight, None, 1, padding, 1, self.groups)


def relu_conv_norm(into: int, out: int) -> nn.Sequential:
    """ReLU, a 1x1 convolution, batch norm: DARTS' way to a cell's number of channels."""
    return nn.Sequential(nn.ReLU(), *conv_norm(into, out, 1))


class Strided(nn.Conv2d):
    """A 1x1 convolution of every other pixel.

    In training the pixels are taken first: torch 2.14 damages memory in the backward pass of a
    strided 1x1 convolution with fewer than 8 input channels, on the CPU in channels_last.

    Args:
        into: Channels of the input.
        out: Channels of the output.
    """

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out, 1, 2, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # nn.Conv2d's name
        """(N, into, H, W) to (N, out, ceil(H / 2), ceil(W / 2))."""
        if not self.training:
            return super().forward(input)
        pixels = input[:, :, ::2, ::2].contiguous(memory_format=memory_format_of(input))
        return F.conv2d(pixels, self.weight)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last if the map is so, else contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class FactorizedReduction(nn.Module):
    """Halves height and width: two strided 1x1 convolutions, the second one pixel further on.

    Args:
        into: Channels of the input.
        out: Channels of the output, even.

    Shapes:
        (N, into, H, W) to (N, out, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.even, self.odd = (Strided(into, out // 2) for _ in range(2))
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = F.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(one_further(x))], 1))


def one_further(x: Tensor) -> Tensor:
    """The map without its first row and column; odd sizes get zeros at their end instead."""
    height, width = x.shape[2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    return x[:, :, 1:, 1:]


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; ReLU6 after the first two (MobileNetV2, arXiv 1801.04381).

    Args:
        channels: Of input and output.
        stride: 1 or 2; with 1 the input may be added.
        settings: Kernel, ratio and shortcut.

    Shapes:
        (N, channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels: int, stride: int, settings: BlockSettings) -> None:
        super().__init__()
        hidden = channels * settings.ratio
        self.shortcut = settings.shortcut and stride == 1
        self.conv = nn.Sequential(
            *conv_norm(channels, hidden, 1, activation_layer=relu6),
            *conv_norm(hidden, hidden, settings.kernel, stride=stride, groups=hidden,
                       activation_layer=relu6),
            *conv_norm(hidden, channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        branch = self.conv(x)
        return x + branch if self.shortcut else branch


class Zero(nn.Module):
    """No connection: zeros of the output's shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def operator(
    name: str, channels: int, stride: int, blocks: Mapping[str, BlockSettings]
) -> nn.Module:
    """An operator of a found cell.

    Args:
        name: One of `OPERATORS`.
        channels: Of input and output.
        stride: 1 or 2.
        blocks: Settings of the operators that have some.
    """
    if name == SKIP:
        return nn.Identity() if stride == 1 else FactorizedReduction(channels, channels)
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if name == NONE:
        return Zero(stride)
    if name in DEPTHWISE:
        kernel, dilation = DEPTHWISE[name]

        def once(stride: int) -> list[nn.Module]:
            return [nn.ReLU(), Depthwise(channels, kernel, stride, dilation),
                    *conv_norm(channels, channels, 1)]  # fmt: skip

        return nn.Sequential(*once(stride), *(once(1) if dilation == 1 else []))
    settings = blocks[name]
    if name == "sandglass":
        return SandglassBlock(
            channels, channels, stride, hidden_channels=max(1, channels // settings.ratio),
            kernel_size=settings.kernel, shortcut=settings.shortcut,
        )  # fmt: skip
    return InvertedResidual(channels, stride, settings)


def block_settings(**blocks: Mapping[str, Any] | None) -> dict[str, BlockSettings]:
    """Settings of blocks by their names, from plain values or None.

    Raises:
        InputError: Another key, or a value out of range.
    """
    return {name: BlockSettings.of(blocks.get(name) or {}, name) for name in BLOCKS}


def check_operators(operators: tuple[str, ...]) -> None:
    """Raise `InputError` unless a search space can have these operators."""
    unknown = [name for name in operators if name not in OPERATORS]
    if unknown or len(set(operators)) < max(2, len(operators)):
        raise InputError(
            f"operators: expected some of {', '.join(OPERATORS)}, two or more, each once, got "
            f"{printable(', '.join(map(str, operators)))}"
        )
