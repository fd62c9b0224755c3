"""Taps: the feature maps of a classifier that a detector looks at, found by their strides."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mobilenext.errors import InputError
from mobilenext.models.sandglass import WideBlock

STRIDES = (16, 32)
"""Total strides of the two maps."""

WHERE = ("authors", "expansion")
"""Values of `taps`, see `find_taps`."""


class Taps(NamedTuple):
    """Names of modules whose outputs a detector takes."""

    middle: str
    """Map at stride 16."""
    last: str
    """Map at stride 32."""
    end: str
    """Where the backbone ends and further maps begin: `last` itself, or what comes after it."""
    sandglass: bool
    """Whether the backbone is made of sandglass blocks, which the authors treat in another way."""


def find_taps(network: nn.Module, where: str) -> Taps:
    """The two maps of a classifier at strides 16 and 32.

    In sandglass networks both are the wide maps in front of the last depthwise convolution of the
    last block at their stride (576 and 1280 channels at width 1), and further maps go on from the
    end of the last block. In networks of inverted residuals the second one is the last map. The
    first one is, for `authors`, the thin output of the last block at stride 16 (96 channels in
    MobileNetV2, which favours MobileNeXt in their comparison), for `expansion`, the wide map in
    front of the depthwise convolution that goes on to stride 32 (576 channels), as in the
    MobileNetV2 paper (arXiv 1801.04381, section 6.2).

    Args:
        network: A classifier of ours, of timm or of torchvision.
        where: One of `WHERE`.

    Raises:
        InputError: It has no maps at these strides.
    """
    if where not in WHERE:
        raise InputError(f"taps: expected one of {', '.join(WHERE)}, got {where!r}")
    if any(isinstance(module, WideBlock) for module in network.modules()):
        from mobilenext.models.registry import expansions

        info = {one["reduction"]: one["module"] for one in expansions(network)}
        ends = _ends(network)
        _check(network, info)
        return Taps(info[16], info[32], ends[max(ends)], True)
    ends = _ends(network)
    _check(network, ends)
    middle, last = ends[16], ends[32]
    if where == "expansion":
        middle = _expanded_after(network, middle)
    return Taps(middle, last, last, False)


def _check(network: nn.Module, info: dict[int, str]) -> None:
    if not all(stride in info for stride in STRIDES):
        found = ", ".join(map(str, sorted(info))) or "none"
        raise InputError(
            f"a detector needs feature maps at strides 16 and 32, {type(network).__name__} has "
            f"maps at {found}: choose another model, or strides=[2,2,2,2,2]"
        )


def _ends(network: nn.Module) -> dict[int, str]:
    """The last module at each total stride: what the network says, or what `features` does."""
    info: Any = getattr(network, "feature_info", None)
    if info is not None:
        rows = info if isinstance(info, list) else list(info)
        return {int(one["reduction"]): str(one["module"]) for one in rows}
    features = getattr(network, "features", None)
    if not isinstance(features, nn.Sequential):
        return {}
    size = 4 * STRIDES[-1]
    trial = copy.deepcopy(features).to("meta").eval()
    ends: dict[int, str] = {}
    x = torch.empty(1, 3, size, size, device="meta")
    with torch.no_grad():
        for name, module in trial.named_children():
            x: Tensor = module(x)
            if x.ndim == 4 and size % x.shape[2] == 0:
                ends[size // x.shape[2]] = f"features.{name}"
    return ends


def _expanded_after(network: nn.Module, middle: str) -> str:
    """The module in front of the first strided depthwise convolution behind the module `middle`."""
    names = [name for name, _ in network.named_modules()]
    for name, module in list(network.named_modules())[names.index(middle) :]:
        if name == middle or name.startswith(f"{middle}."):
            continue
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride[0] == 2:
            return _before(network, name)
    raise InputError(
        f"taps=expansion: expected a strided depthwise convolution behind {middle} of this "
        f"{type(network).__name__}, found none; use detector.network.taps=authors"
    )


def _before(network: nn.Module, name: str) -> str:
    """The module in front of a module, on the same level or on the one above."""
    parent, _, child = name.rpartition(".")
    siblings = [one for one, _ in network.get_submodule(parent).named_children()]
    number = siblings.index(child)
    return f"{parent}.{siblings[number - 1]}" if number else _before(network, parent)
