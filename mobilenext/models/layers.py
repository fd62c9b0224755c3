"""Parts that the networks share: channel rounding, convolution + norm, initialisation."""

import math
from collections.abc import Callable, Sequence

from torch import nn

from mobilenext.errors import InputError
from mobilenext.models.parts import Conv2dSame
from mobilenext.program import as_typed

NormLayer = Callable[[int], nn.Module]
ActivationLayer = Callable[[], nn.Module]


def relu6() -> nn.Module:
    """The activation of MobileNetV2 and MobileNeXt."""
    return nn.ReLU6()  # in place, autograd copies its input first: more memory traffic, not less


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a channel count to a multiple of `divisor`, never more than 10 % down.

    The rule of TensorFlow's slim nets, which MobileNetV2 and MobileNeXt use:
    https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet/mobilenet.py
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    norm_layer: NormLayer = nn.BatchNorm2d,
    activation_layer: ActivationLayer | None = None,
    padding: str = "",
) -> list[nn.Module]:
    """A bias-free convolution that keeps the size (over stride), its norm, maybe an activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd.
        stride: Of the convolution.
        groups: Of the convolution.
        norm_layer: Makes the norm for a number of channels.
        activation_layer: Makes the activation; None: there is none.
        padding: "" for as much on all sides; "same" for TensorFlow's, which is not symmetric where
            the stride is 2.
    """
    same = padding == "same"
    kind = Conv2dSame if same and stride > 1 else nn.Conv2d  # at stride 1 all sides get as much
    around = 0 if kind is Conv2dSame else kernel_size // 2
    convolution = kind(
        in_channels, out_channels, kernel_size, stride, around, groups=groups, bias=False
    )
    layers: list[nn.Module] = [convolution, norm_layer(out_channels)]
    if activation_layer is not None:
        layers.append(activation_layer())
    return layers


def initialize(network: nn.Module) -> None:
    """Initialise as the authors of MobileNeXt and torchvision's MobileNetV2 do.

    Convolutions from N(0, 2 / (k * k * out_channels)), norms to 1 and 0, linear layers from
    N(0, 0.01**2) with zero bias.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d):
            if module.weight is not None:
                nn.init.ones_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize_by_fan_out(network: nn.Module) -> None:
    """Initialise as EfficientNet and timm do.

    Convolutions from N(0, 2 / (k * k * out_channels / groups)), norms to 1 and 0, linear layers
    from U(-a, a) with a = out_features ** -0.5 and zero bias.
    Source: https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = 1.0 / math.sqrt(module.out_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)


def check_width(width_mult: float) -> None:
    """Raise `InputError` unless the width multiplier is above 0 and no typing error."""
    if not width_mult > 0:
        raise InputError(f"width multiplier: expected a number above 0, got {width_mult}")
    if width_mult > MOST_WIDTH:
        raise InputError(
            f"width multiplier: expected at most {MOST_WIDTH}, got {width_mult}; a fraction is "
            "written with a point, 0.35"
        )


MOST_BLOCKS, MOST_WIDTH = 1_000, 10


def check_blocks(count: int) -> None:
    """Raise `InputError` if a network has too many blocks to be meant."""
    if count > MOST_BLOCKS:
        raise InputError(f"expected a network of at most {MOST_BLOCKS:,} blocks, got {count:,}")


def check_share(name: str, value: float) -> None:
    """Raise `InputError` unless a probability is in [0, 1)."""
    if not 0 <= value < 1:
        raise InputError(f"{name}: expected a number in [0, 1), got {value}")


def check_strides(strides: Sequence[int], count: int, network: str) -> None:
    """Raise `InputError` unless there are `count` strides, each 1 or 2."""
    if len(strides) != count or any(stride not in (1, 2) for stride in strides):
        raise InputError(
            f"strides of {network}: expected {count} values of 1 or 2, one for each downsampling "
            f"layer from the stem on, got {as_typed(list(strides))}"
        )
