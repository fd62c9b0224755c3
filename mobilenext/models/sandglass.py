"""The sandglass block: shortcut between wide ends, depthwise convolutions in the wide space.

Source: "Rethinking Bottleneck Structure for Efficient Mobile Network Design" (arXiv 2007.02269),
section 3, and the authors' code, https://github.com/yitu-opensource/MobileNeXt
(`mobilenext/codebase/models/mnext.py`), which is what they trained.
"""

import math
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

Depthwise = Literal["both", "first", "last", "none"]


def bottleneck_channels(in_channels: int, out_channels: int, reduction_ratio: int) -> int:
    """Channels of the thin middle of a sandglass block.

    `in_channels // reduction_ratio`; where that is below a sixth of the output, a sixth of the
    output rounded to a multiple of 16. The paper's text has only the first half of the rule; the
    floor is in the authors' code and part of every count that they published.
    """
    hidden = in_channels // reduction_ratio
    if hidden < out_channels / 6:
        hidden = make_divisible(math.ceil(out_channels / 6), 16)
    return hidden


class SandglassBlock(nn.Module):
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

    Shapes:
        input (N, in_channels, H, W), output (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises:
        InputError: A stride other than 1 or 2, a stride of 2 without the convolution that has it,
            or a multiplier outside (0, 1].
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
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise InputError(f"stride of a sandglass block: expected 1 or 2, got {stride}")
        if depthwise not in ("both", "first", "last", "none"):
            raise InputError(f"depthwise: expected both, first, last or none, got {depthwise!r}")
        if stride == 2 and depthwise not in ("both", "last"):
            raise InputError(
                f"depthwise={depthwise!r} with stride 2: the last depthwise convolution carries "
                "the stride; use depthwise='last' or 'both'"
            )
        check_identity(identity_tensor_multiplier)
        hidden = bottleneck_channels(in_channels, out_channels, reduction_ratio)

        layers: list[nn.Module] = []
        if depthwise in ("both", "first"):
            layers += conv_norm(
                in_channels,
                in_channels,
                3,
                groups=in_channels,
                norm_layer=norm_layer,
                activation_layer=activation_layer,
            )
        layers += conv_norm(in_channels, hidden, 1, norm_layer=norm_layer)
        layers += conv_norm(
            hidden, out_channels, 1, norm_layer=norm_layer, activation_layer=activation_layer
        )
        if depthwise in ("both", "last"):
            layers += conv_norm(
                out_channels,
                out_channels,
                3,
                stride=stride,
                groups=out_channels,
                norm_layer=norm_layer,
            )
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels
        # The small term keeps 1/3 of 96 at 32 whatever the last bit of the float is.
        self.identity_channels = (
            math.floor(in_channels * identity_tensor_multiplier + 1e-6) if self.residual else 0
        )
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self.conv(x)
        k = self.identity_channels
        if k == 0:
            return out
        if k == self.out_channels:
            return x + out
        # Not `out[:, :k] += x[:, :k]`: in-place slices break export and quantisation.
        return torch.cat((x[:, :k] + out[:, :k], out[:, k:]), dim=1)


def check_identity(multiplier: float) -> None:
    """Raise `InputError` unless the identity tensor multiplier is in (0, 1]."""
    if not 0 < multiplier <= 1:
        raise InputError(
            f"identity tensor multiplier: expected a number in (0, 1], for instance 1, 1/2 or 1/6, "
            f"got {multiplier}"
        )
