"""Our networks under timm's roof: importing this file registers them.

`timm.create_model("mobilenext_100", num_classes=10, features_only=True, ...)` then works as for
timm's own, and so do its scripts and its functions for the Hugging Face hub. No weights are
published: `pretrained=True` needs a file (`pretrained_cfg_overlay=dict(file=...)`), a local folder
or a hub's name (`timm.create_model("local-dir:FOLDER", pretrained=True)`).
"""

from collections.abc import Callable
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models._builder import build_model_with_cfg
from timm.models._registry import generate_default_cfgs, register_model
from torch import nn

from mobilenext.models.efficientnet import EfficientNet, mnext_l, mnext_s
from mobilenext.models.mobilenext import MobileNeXt
from mobilenext.models.sandglass import WideBlock

PAPER = "Rethinking Bottleneck Structure for Efficient Mobile Network Design"


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "features.0.0",
        "classifier": "classifier.1",
        "paper_name": PAPER,
        "paper_ids": "arXiv:2007.02269",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "mobilenext_140.untrained": _cfg(),
        "mobilenext_100.untrained": _cfg(),
        "mobilenext_075.untrained": _cfg(),
        "mobilenext_050.untrained": _cfg(),
        "mobilenext_035.untrained": _cfg(),
        "mobilenext_efficientnet_b0.untrained": _cfg(
            first_conv="conv_stem", classifier="classifier"
        ),
        "mnext_s.untrained": _cfg(),
        "mnext_l.untrained": _cfg(),
    }
)


def _create(
    make: Callable[..., Any], variant: str, pretrained: bool, arguments: dict[str, Any]
) -> nn.Module:
    """Build through timm, whose names for arguments differ from ours.

    `feature_location="expansion"` with `features_only=True` gives the wide map of the last block at
    each resolution before its last depthwise convolution, which is what the authors' SSDLite takes.
    """
    feature_cfg: dict[str, Any] = {"out_indices": (0, 1, 2, 3, 4), "flatten_sequential": True}
    location = arguments.pop("feature_location", "bottleneck")
    if location == "expansion":
        feature_cfg = {"out_indices": (0, 1, 2, 3, 4), "feature_cls": "hook"}
    elif location != "bottleneck":
        raise ValueError(f"feature_location: expected bottleneck or expansion, got {location!r}")

    def build(**given: Any) -> Any:
        for theirs, ours in (("drop_rate", "dropout"), ("drop_path_rate", "drop_path")):
            if theirs in given:
                given[ours] = given.pop(theirs)
        network = make(**given)
        if location == "expansion":
            network.feature_info = expansions(network)
        return network

    return build_model_with_cfg(build, variant, pretrained, feature_cfg=feature_cfg, **arguments)  # pyright: ignore[reportArgumentType]


def expansions(network: nn.Module) -> list[dict[str, Any]]:
    """Feature info whose modules are the activations before blocks' last depthwise convolutions.

    For each total stride the widest and latest one: at stride 16 of MobileNeXt-1.0 that is the
    576-channel map in the block that goes on to stride 32.
    """
    found: dict[int, dict[str, Any]] = {}
    reduction = 1
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and name.endswith(("features.0.0", "conv_stem")):
            reduction = module.stride[0]
            found[reduction] = {"module": name, "num_chs": module.out_channels}
        if not isinstance(module, WideBlock):
            continue
        expand, strides = _expansion(module)
        found[reduction] = {"module": f"{name}.conv.{expand}", "num_chs": module.out_channels}
        reduction *= strides
    return [
        {"reduction": reduction, "stage": stage, **info}
        for stage, (reduction, info) in enumerate(sorted(found.items()))
    ]


def _expansion(block: WideBlock) -> tuple[int, int]:
    """Index of the activation after the expanding 1x1 convolution, and the block's stride."""
    index, stride = 0, 1
    for number, layer in enumerate(block.conv):
        if isinstance(layer, nn.Conv2d):
            stride *= layer.stride[0]
            if layer.kernel_size == (1, 1):
                index = number
    return index + 2, stride


def _register(name: str, make: Callable[..., nn.Module], text: str, **fixed: Any) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(make, name, pretrained, {**fixed, **kwargs})

    create.__name__ = create.__qualname__ = name  # timm registers functions by their names
    create.__module__ = __name__
    create.__doc__ = text
    register_model(create)


_register("mobilenext_140", MobileNeXt, "MobileNeXt, width 1.4.", width_mult=1.4)
_register("mobilenext_100", MobileNeXt, "MobileNeXt, width 1.0.", width_mult=1.0)
_register("mobilenext_075", MobileNeXt, "MobileNeXt, width 0.75.", width_mult=0.75)
_register("mobilenext_050", MobileNeXt, "MobileNeXt, width 0.5.", width_mult=0.5)
_register("mobilenext_035", MobileNeXt, "MobileNeXt, width 0.35.", width_mult=0.35)
_register(
    "mobilenext_efficientnet_b0",
    EfficientNet,
    "EfficientNet-b0 with sandglass blocks in place of its inverted residuals.",
    block="sandglass",
)
_register("mnext_s", mnext_s, "The authors' mnext_s.")
_register("mnext_l", mnext_l, "The authors' mnext_l.")
