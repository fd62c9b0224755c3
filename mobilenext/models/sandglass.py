"""The sandglass block: shortcut between wide ends, depthwise convolutions in the wide space.

Source: "Rethinking Bottleneck Structure for Efficient Mobile Network Design" (arXiv 2007.02269),
section 3, and the authors' code, https://github.com/yitu-opensource/MobileNeXt
(`mobilenext/codebase/models/mnext.py`), which is what they trained.
"""

import math
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from mobilenext.errors import InputError
from mobilenext.models.layers import (
    ActivationLayer,
    NormLayer,
    conv_norm,
    make_divisible,
    relu6,
)
from mobilenext.models.parts import DropPath, SqueezeExcite

Depthwise = Literal["both", "first", "last", "none"]
PLACES = ("first", "reduce", "expand", "last")
"""Layers of the block after which an activation can stand: the depthwise convolutions are the
first and the last."""


def bottleneck_channels(
    in_channels: int, out_channels: int, reduction_ratio: int, floor_ratio: int | None = 6
) -> int:
    """Channels of the thin middle of a sandglass block.

    `in_channels // reduction_ratio`; where that is below a sixth of the output, a sixth of the
    output rounded to a multiple of 16. The paper's text has only the first half of the rule; the
    floor is in the authors' code and part of every count that they published.

    Args:
        in_channels: Channels of the block's input.
        out_channels: Channels of its output.
        reduction_ratio: Input channels over bottleneck channels.
        floor_ratio: Of the floor, a sixth by default; None: none, but an even number of channels,
            as in the authors' EfficientNet-style networks.
    """
    hidden = in_channels // reduction_ratio
    if floor_ratio is None:
        return make_divisible(hidden, 2)
    if hidden < out_channels / floor_ratio:
        hidden = make_divisible(math.ceil(out_channels / floor_ratio), 16)
    return hidden


class WideBlock(nn.Module):
    """Common base of blocks with a shortcut between wide ends; see `SandglassBlock`."""

    shortcut_mask: Tensor | None

    def __init__(
        self,
        layers: list[nn.Module],
        thin_end: int,
        in_channels: int,
        out_channels: int,
        stride: int,
        identity_tensor_multiplier: float,
        shortcut: bool,
        drop_path: float,
        se: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Sequential(*layers)
        self.se = nn.Identity() if se is None else se
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.residual = shortcut and stride == 1 and in_channels == out_channels
        # The small term keeps 1/3 of 96 at 32 whatever the last bit of the float is.
        self.identity_channels = (
            math.floor(in_channels * identity_tensor_multiplier + 1e-6) if self.residual else 0
        )
        self.out_channels = out_channels
        self.thin_end = thin_end
        """Layers of `conv` up to the bottleneck."""
        self.register_buffer("shortcut_mask", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self.se(self.conv(x))
        k = self.identity_channels
        if k == 0:
            return out
        out = self.drop_path(out)
        if k == self.out_channels:
            return x + out
        mask = self.shortcut_mask  # by a name: TorchScript knows then that it is there
        if mask is not None:
            return torch.addcmul(out, x, mask)
        # Not `out[:, :k] += x[:, :k]`: in-place slices break export and quantisation.
        return torch.cat((x[:, :k] + out[:, :k], out[:, k:]), dim=1)


def mask_shortcuts(network: nn.Module) -> nn.Module:
    """Make the partial shortcuts of a network masked additions, in place.

    The outputs are the same, and so are names and number of weights. Slices and concatenation throw
    images out of the layout in which ONNX Runtime and torch.compile fuse an addition with the
    convolution before it; a mask of ones and zeros does not.

    Args:
        network: Any; blocks without a partial shortcut are left as they are.
    """
    for block in network.modules():
        if isinstance(block, WideBlock) and 0 < block.identity_channels < block.out_channels:
            like = next(block.parameters())
            mask = torch.zeros(1, block.out_channels, 1, 1, dtype=like.dtype, device=like.device)
            mask[:, : block.identity_channels] = 1
            block.shortcut_mask = mask
    return network


class SandglassBlock(WideBlock):
    """depthwise, 1x1 reduce, 1x1 expand, depthwise with the stride; shortcut between the wide ends.

    An activation follows the first depthwise convolution and the expanding 1x1; the reducing 1x1
    and the last depthwise convolution are linear (paper, section 3.2). The shortcut exists where
    input and output have the same shape. `identity_tensor_multiplier` alpha adds only the first
    floor(alpha * channels) channels of the input; the others get no shortcut (section 3.3).

    The paper draws one uniform block. In the authors' code, blocks that change the number of
    channels drop the first depthwise convolution or both (`depthwise`).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1 or 2; sits in the last depthwise convolution.
        reduction_ratio: Input channels over bottleneck channels (the authors' code calls this
            `expand_ratio`). See `bottleneck_channels` for the floor.
        identity_tensor_multiplier: Share of the channels that the shortcut carries, in (0, 1].
        depthwise: Which of the two depthwise convolutions the block keeps.
        norm_layer: Makes the norm for a number of channels.
        activation_layer: Makes the activation.
        kernel_size: Of the depthwise convolutions, odd.
        floor_ratio: See `bottleneck_channels`.
        hidden_channels: Channels of the bottleneck, instead of that rule.
        activations: After which of `PLACES` an activation stands.
        shortcut: Whether the block may have one.
        extra_pointwise: Another linear 1x1 convolution within the bottleneck, but not in blocks of
            ratio 2, as in the authors' `i2rnetv3_more_1x1.py`.
        pointwise_groups: Groups of the 1x1 convolutions where the block has both depthwise ones.
        se_ratio: Squeeze-and-excitation (arXiv 1709.01507) of the block's output, before the
            shortcut is added, with this share of `out_channels / reduction_ratio`; 0: none.
        drop_path: Probability that an image goes by the shortcut only (arXiv 1603.09382).
        padding: See `conv_norm`.

    Shapes:
        input (N, in_channels, H, W), output (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises:
        InputError: A stride other than 1 or 2, a stride of 2 without the convolution that has it, a
            multiplier outside (0, 1], an unknown place, or an even kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        reduction_ratio: int = 6,
        identity_tensor_multiplier: float = 1.0,
        depthwise: Depthwise = "both",
        norm_layer: NormLayer = nn.BatchNorm2d,
        activation_layer: ActivationLayer = relu6,
        *,
        kernel_size: int = 3,
        floor_ratio: int | None = 6,
        hidden_channels: int | None = None,
        activations: Collection[str] = ("first", "expand"),
        shortcut: bool = True,
        extra_pointwise: bool = False,
        pointwise_groups: int = 1,
        se_ratio: float = 0.0,
        drop_path: float = 0.0,
        padding: str = "",
    ) -> None:
        check_block(stride, depthwise, kernel_size, identity_tensor_multiplier)
        if not set(activations) <= set(PLACES):
            raise InputError(
                f"activations of a sandglass block: expected some of {', '.join(PLACES)}, got "
                f"{list(activations)}"
            )
        hidden = hidden_channels or bottleneck_channels(
            in_channels, out_channels, reduction_ratio, floor_ratio
        )
        groups = pointwise_groups if depthwise == "both" else 1
        layers: list[nn.Module] = []

        def add(place: str, into: int, out: int, kernel: int, stride: int, groups: int) -> None:
            layers.extend(
                conv_norm(
                    into,
                    out,
                    kernel,
                    stride=stride,
                    groups=groups,
                    norm_layer=norm_layer,
                    activation_layer=activation_layer if place in activations else None,
                    padding=padding,
                )
            )

        if depthwise in ("both", "first"):
            add("first", in_channels, in_channels, kernel_size, 1, in_channels)
        add("reduce", in_channels, hidden, 1, 1, groups)
        thin_end = len(layers)
        if extra_pointwise and reduction_ratio != 2:
            add("", hidden, hidden, 1, 1, groups)
        add("expand", hidden, out_channels, 1, 1, groups)
        if depthwise in ("both", "last"):
            add("last", out_channels, out_channels, kernel_size, stride, out_channels)
        se = None
        if se_ratio:
            squeezed = max(1, int(out_channels / reduction_ratio * se_ratio))
            se = SqueezeExcite(out_channels, squeezed, activation_layer)
        super().__init__(
            layers,
            thin_end,
            in_channels,
            out_channels,
            stride,
            identity_tensor_multiplier,
            shortcut,
            drop_path,
            se,
        )


class BottleneckBlock(WideBlock):
    """The classic bottleneck with depthwise convolutions in its thin middle, ablations (a) and (b).

    1x1 reduce (linear), one or two depthwise convolutions and an activation, 1x1 expand with the
    stride and an activation, then the shortcut between the wide ends; so in the authors'
    `i2rnet_low_id.py`, which (b) is counted from. Blocks that change the number of channels have
    one depthwise convolution if they stride, else none.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1 or 2; sits in the expanding 1x1 convolution.
        reduction_ratio: As for the sandglass block.
        identity_tensor_multiplier: As for the sandglass block.
        depthwise: "both" keeps `depthwise_convolutions`, "first" and "last" one, "none" none.
        norm_layer: Makes the norm for a number of channels.
        activation_layer: Makes the activation.
        depthwise_convolutions: 1 (a) or 2 (b).
        kernel_size: Of the depthwise convolutions, odd.
        floor_ratio: See `bottleneck_channels`.
        shortcut: Whether the block may have one.
        drop_path: As for the sandglass block.

    Shapes:
        input (N, in_channels, H, W), output (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises:
        InputError: As for the sandglass block, or another number of depthwise convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        reduction_ratio: int = 6,
        identity_tensor_multiplier: float = 1.0,
        depthwise: Depthwise = "both",
        norm_layer: NormLayer = nn.BatchNorm2d,
        activation_layer: ActivationLayer = relu6,
        *,
        depthwise_convolutions: int = 2,
        kernel_size: int = 3,
        floor_ratio: int | None = 6,
        shortcut: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        check_block(stride, "both", kernel_size, identity_tensor_multiplier)
        if depthwise_convolutions not in (1, 2):
            raise InputError(
                f"depthwise_convolutions: expected 1 or 2, got {depthwise_convolutions}"
            )
        hidden = bottleneck_channels(in_channels, out_channels, reduction_ratio, floor_ratio)
        layers = conv_norm(in_channels, hidden, 1, norm_layer=norm_layer)
        thin_end = len(layers)
        count = {"both": depthwise_convolutions, "none": 0}.get(depthwise, 1)
        for number in range(count):
            layers += conv_norm(
                hidden,
                hidden,
                kernel_size,
                groups=hidden,
                norm_layer=norm_layer,
                activation_layer=activation_layer if number + 1 == count else None,
            )
        layers += conv_norm(
            hidden,
            out_channels,
            1,
            stride=stride,
            norm_layer=norm_layer,
            activation_layer=activation_layer,
        )
        super().__init__(
            layers,
            thin_end,
            in_channels,
            out_channels,
            stride,
            identity_tensor_multiplier,
            shortcut,
            drop_path,
        )


def check_block(stride: int, depthwise: str, kernel_size: int, identity: float) -> None:
    """Raise `InputError` unless a block can have these."""
    if stride not in (1, 2):
        raise InputError(f"stride of a sandglass block: expected 1 or 2, got {stride}")
    if depthwise not in ("both", "first", "last", "none"):
        raise InputError(f"depthwise: expected both, first, last or none, got {depthwise!r}")
    if stride == 2 and depthwise not in ("both", "last"):
        raise InputError(
            f"depthwise={depthwise!r} with stride 2: the last depthwise convolution carries "
            "the stride; use depthwise='last' or 'both'"
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise InputError(f"kernel size: expected an odd number, got {kernel_size}")
    check_identity(identity)


def check_identity(multiplier: float) -> None:
    """Raise `InputError` unless the identity tensor multiplier is in (0, 1]."""
    if not 0 < multiplier <= 1:
        raise InputError(
            f"identity tensor multiplier: expected a number in (0, 1], for instance 1, 1/2 or 1/6, "
            f"got {multiplier}"
        )
