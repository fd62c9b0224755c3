"""Networks and what they cost. Knows nothing of data, training or configs.

Those that are built on timm or torchvision are loaded when they are asked for: our own need
neither, and both take seconds and 200 MB in each process. So are DARTS' networks.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mobilenext.models.efficientnet import EfficientNet, mnext_l, mnext_s
from mobilenext.models.mobilenext import STAGES, MobileNeXt, Stage
from mobilenext.models.sandglass import BottleneckBlock, SandglassBlock

if TYPE_CHECKING:
    from mobilenext.models.darts.found import DartsNetwork
    from mobilenext.models.darts.supernet import Supernet
    from mobilenext.models.detection.ssdlite import SSDLite
    from mobilenext.models.libraries import timm_model, torchvision_model
    from mobilenext.models.mobilenetv2 import InvertedResidualVariant, MobileNetV2

__all__ = [
    "STAGES",
    "BottleneckBlock",
    "DartsNetwork",
    "EfficientNet",
    "InvertedResidualVariant",
    "MobileNeXt",
    "MobileNetV2",
    "SSDLite",
    "SandglassBlock",
    "Stage",
    "Supernet",
    "mnext_l",
    "mnext_s",
    "timm_model",
    "torchvision_model",
]

OF_LIBRARIES = {
    "DartsNetwork": "darts.found",
    "InvertedResidualVariant": "mobilenetv2",
    "MobileNetV2": "mobilenetv2",
    "SSDLite": "detection.ssdlite",
    "Supernet": "darts.supernet",
    "timm_model": "libraries",
    "torchvision_model": "libraries",
}


def __getattr__(name: str) -> Any:
    if name not in OF_LIBRARIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{OF_LIBRARIES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *OF_LIBRARIES})
