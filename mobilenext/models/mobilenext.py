"""MobileNeXt (arXiv 2007.02269) in the layout that its authors trained.

Source: `mobilenext/codebase/models/mnext.py` of https://github.com/yitu-opensource/MobileNeXt.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mobilenext.models.layers import (
    ActivationLayer,
    NormLayer,
    check_strides,
    check_width,
    conv_norm,
    initialize,
    make_divisible,
    relu6,
)
from mobilenext.models.sandglass import Depthwise, SandglassBlock


class Stage(NamedTuple):
    """Blocks of equal width; the first of them changes the shape, the others repeat it."""

    reduction_ratio: int
    channels: int
    repeats: int
    stride: int
    first_block: Depthwise
    """Depthwise convolutions that the first block keeps; the repeats keep both."""


STAGES = (
    Stage(2, 96, 1, 2, "both"),
    Stage(6, 144, 1, 1, "both"),
    Stage(6, 192, 3, 2, "last"),
    Stage(6, 288, 3, 2, "last"),
    Stage(6, 384, 4, 1, "none"),
    Stage(6, 576, 4, 2, "last"),
    Stage(6, 960, 3, 1, "none"),
    Stage(6, 1280, 1, 1, "both"),
)
"""Table 2 of the paper, as trained."""


class MobileNeXt(nn.Module):
    """MobileNeXt with a width multiplier and an identity tensor multiplier.

    Where the authors' code and the paper's text differ, this follows the code, since the released
    checkpoints and logs come from it:

    1. The 960-channel stage repeats 3 times; the arXiv table says 2 (a typo by the authors' word,
       corrected in the camera-ready version).
    2. Blocks that change the number of channels drop the first depthwise convolution, or both if
       they do not stride either. The 96, 144 and 1280-channel blocks keep both. The paper draws one
       uniform block.
    3. The bottleneck has a floor (`sandglass.bottleneck_channels`); the text has only a ratio.
    4. The last stage stays 1280 wide for multipliers below 1, and is scaled above 1.
    5. There is no 1x1 convolution head: the 1280-channel block is the head.

    Module names and order (`features.N.conv.M`, `classifier.1`) are those of the authors' code.

    Args:
        width_mult: Width multiplier, above 0; the paper has 1.4, 1.0, 0.75, 0.5 and 0.35.
        identity_tensor_multiplier: Share of the channels that each shortcut carries, in (0, 1];
            the paper has 1, 1/2, 1/3 and 1/6. Changes neither parameters nor MAdds.
        num_classes: Logits.
        dropout: Probability before the classifier; 0.2 is fixed in the authors' code.
        strides: Of the five downsampling layers: the stem and the first blocks of the 96, 192, 288
            and 576-channel stages. All 2 for 224 px (total stride 32); put 1 in front for small
            images.
        stages: The table to build.
        norm_layer: Makes the norm for a number of channels.
        activation_layer: Makes the activation.

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
        stages: Sequence[Stage] = STAGES,
        norm_layer: NormLayer = nn.BatchNorm2d,
        activation_layer: ActivationLayer = relu6,
    ) -> None:
        super().__init__()
        check_width(width_mult)
        check_strides(strides, 1 + sum(stage.stride == 2 for stage in stages), "MobileNeXt")
        downsampling = iter(strides)
        divisor = 4 if width_mult == 0.1 else 8  # the authors' code singles out 0.1

        channels = make_divisible(32 * width_mult, divisor)
        stem = conv_norm(
            3,
            channels,
            3,
            stride=next(downsampling),
            norm_layer=norm_layer,
            activation_layer=activation_layer,
        )
        features: list[nn.Module] = [nn.Sequential(*stem)]
        for stage in stages:
            fixed_head = stage.channels == 1280 and width_mult < 1
            out_channels = (
                1280 if fixed_head else make_divisible(stage.channels * width_mult, divisor)
            )
            for repeat in range(stage.repeats):
                first = repeat == 0
                features.append(
                    SandglassBlock(
                        channels,
                        out_channels,
                        stride=next(downsampling) if first and stage.stride == 2 else 1,
                        reduction_ratio=stage.reduction_ratio,
                        identity_tensor_multiplier=identity_tensor_multiplier,
                        depthwise=stage.first_block if first else "both",
                        norm_layer=norm_layer,
                        activation_layer=activation_layer,
                    )
                )
                channels = out_channels
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to logits (N, num_classes)."""
        x = self.avgpool(self.features(images))
        return self.classifier(torch.flatten(x, 1))
