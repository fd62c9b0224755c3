"""MobileNetV2 (arXiv 1801.04381): torchvision's, behind the interface of our networks.

The file `mobilenetv2.py` in the MobileNeXt authors' repository is not MobileNetV2: it was left in
the state of an ablation (depthwise convolutions at the thin ends). This one is the baseline.
"""

from collections.abc import Sequence

import torchvision
from torch import nn

from mobilenext.errors import InputError
from mobilenext.models.layers import check_strides, check_width

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
    """torchvision's MobileNetV2 with selectable strides.

    Args:
        width_mult: Width multiplier, above 0.
        identity_tensor_multiplier: Has to be 1: MobileNetV2 has no such knob.
        num_classes: Logits.
        dropout: Probability before the classifier.
        strides: Of the five downsampling layers, the stem first; all 2 for 224 px.

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
        )
        stem = self.features[0][0]  # pyright: ignore[reportIndexIssue]
        assert isinstance(stem, nn.Conv2d)
        stem.stride = (stem_stride, stem_stride)
