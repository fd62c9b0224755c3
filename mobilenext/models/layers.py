"""What the networks of this package share: channel rounding, convolution + norm, initialisation."""

from collections.abc import Callable, Sequence

from torch import nn

from mobilenext.errors import InputError

NormLayer = Callable[[int], nn.Module]
ActivationLayer = Callable[[], nn.Module]


def relu6() -> nn.Module:
    """The activation of MobileNetV2 and MobileNeXt."""
    return nn.ReLU6(inplace=True)


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
) -> list[nn.Module]:
    """A bias-free convolution that keeps the size (over stride), its norm, maybe an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        ),
        norm_layer(out_channels),
    ]
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


def check_width(width_mult: float) -> None:
    """Raise `InputError` unless the width multiplier is above 0."""
    if not width_mult > 0:
        raise InputError(f"width multiplier: expected a number above 0, got {width_mult}")


def check_strides(strides: Sequence[int], count: int, network: str) -> None:
    """Raise `InputError` unless there are `count` strides, each 1 or 2."""
    if len(strides) != count or any(stride not in (1, 2) for stride in strides):
        raise InputError(
            f"strides of {network}: expected {count} values of 1 or 2, one for each downsampling "
            f"layer from the stem on, got {list(strides)}"
        )
