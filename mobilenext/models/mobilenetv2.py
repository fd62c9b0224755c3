"""MobileNetV2 (arXiv 1801.04381): torchvision's, behind the interface of our networks.

The file `mobilenetv2.py` in the MobileNeXt authors' repository is not MobileNetV2: it was left in
the state of an ablation (depthwise convolutions at the thin ends). This one is the baseline; with
`block` it is that ablation, or the one with an extra depthwise convolution.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torchvision
from torch import Tensor, nn

from mobilenext.errors import InputError
from mobilenext.models.layers import NormLayer, check_strides, check_width, conv_norm, relu6

INVERTED_RESIDUALS = (
    # expansion, channels, repeats, stride (paper, table 2)
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(torchvision.models.MobileNetV2):
    """torchvision's MobileNetV2 with selectable strides and blocks.

    Args:
        width_mult: Width multiplier, above 0.
        identity_tensor_multiplier: Has to be 1: MobileNetV2 has no such knob.
        num_classes: Logits.
        dropout: Probability before the classifier.
        strides: Of the five downsampling layers, the stem first; all 2 for 224 px.
        block: Makes the blocks from in_channels, out_channels, stride, expand_ratio and norm_layer,
            for instance a `functools.partial` of `InvertedResidualVariant`; None: torchvision's.

    Shapes:
        images (N, 3, H, W) to logits (N, num_classes).

    Raises:
        InputError: A multiplier or a stride outside its range.
    """

    def __init__(
        self,
        width_mult: float = 1.0,
        identity_tensor_multiplier: float = 1.0,
        num_classes: int = 1000,
        dropout: float = 0.2,
        strides: Sequence[int] = (2, 2, 2, 2, 2),
        block: Callable[..., nn.Module] | None = None,
    ) -> None:
        check_width(width_mult)
        check_strides(strides, 5, "MobileNetV2")
        if identity_tensor_multiplier != 1:
            raise InputError(
                "MobileNetV2 has no identity tensor multiplier: expected identity=1, got "
                f"{identity_tensor_multiplier}; leave it out or use model=mobilenext"
            )
        stem_stride, *block_strides = strides
        downsampling = iter(block_strides)
        setting = [
            [expansion, channels, repeats, next(downsampling) if stride == 2 else 1]
            for expansion, channels, repeats, stride in INVERTED_RESIDUALS
        ]
        super().__init__(
            num_classes=num_classes,
            width_mult=width_mult,
            inverted_residual_setting=setting,
            dropout=dropout,
            block=block,
        )
        stem = self.features[0][0]  # pyright: ignore[reportIndexIssue]
        assert isinstance(stem, nn.Conv2d)
        stem.stride = (stem_stride, stem_stride)


class InvertedResidualVariant(nn.Module):
    """MobileNetV2's block with its depthwise convolutions elsewhere, or one more of them.

    - `ends`, ablation (c): 3x3 depthwise and activation in the thin input, 1x1 expand and
      activation, 1x1 reduce with the stride, 3x3 depthwise and activation in the thin output (an
      activation before the shortcut is added). So in the MobileNeXt authors'
      `mobilenext/codebase/models/mobilenetv2.py`.
    - `ends_strided`: the same with the stride in the last depthwise convolution, and MobileNetV2's
      own block where nothing is expanded. So in their
      `mobile_deployment/pytorch/InvBlock/models/imagenet/mobilenetv2.py`. Which of the two gave the
      paper's (c) is not known.
    - `twice`: 1x1 expand and activation, two 3x3 depthwise convolutions in the wide middle (the
      first linear, the second with the stride and an activation), 1x1 reduce: the authors' check
      that more depthwise convolutions alone are not what makes MobileNeXt better; their code for it
      is commented out in the same file.

    With `ends` and `twice`, the block without expansion has two depthwise convolutions in a row.

    Args:
        in_channels: Channels of the thin input.
        out_channels: Channels of the thin output.
        stride: 1 or 2.
        expand_ratio: Channels of the wide middle over those of the input.
        norm_layer: Makes the norm for a number of channels.
        depthwise: ends, ends_strided or twice.

    Shapes:
        input (N, in_channels, H, W), output (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises:
        InputError: A stride or a place other than these.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expand_ratio: int,
        norm_layer: NormLayer = nn.BatchNorm2d,
        *,
        depthwise: Literal["ends", "ends_strided", "twice"] = "ends",
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise InputError(f"stride of an inverted residual: expected 1 or 2, got {stride}")
        if depthwise not in ("ends", "ends_strided", "twice"):
            raise InputError(f"depthwise: expected ends, ends_strided or twice, got {depthwise!r}")
        hidden = in_channels * expand_ratio
        linear = partial(conv_norm, norm_layer=norm_layer)
        active = partial(linear, activation_layer=relu6)
        if depthwise != "twice" and expand_ratio != 1:
            in_pointwise, in_last = (stride, 1) if depthwise == "ends" else (1, stride)
            layers = [
                *active(in_channels, in_channels, 3, groups=in_channels),
                *active(in_channels, hidden, 1),
                *linear(hidden, out_channels, 1, stride=in_pointwise),
                *active(out_channels, out_channels, 3, stride=in_last, groups=out_channels),
            ]
        else:
            layers = [
                *(active(in_channels, hidden, 1) if expand_ratio != 1 else []),
                *(linear(hidden, hidden, 3, groups=hidden) if depthwise != "ends_strided" else []),
                *active(hidden, hidden, 3, stride=stride, groups=hidden),
                *linear(hidden, out_channels, 1),
            ]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return x + self.conv(x) if self.use_res_connect else self.conv(x)
