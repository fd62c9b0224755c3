"""Networks and what they cost. Knows nothing of data, training or configs."""

from mobilenext.models import registry as registry  # registers them with timm
from mobilenext.models.efficientnet import EfficientNet, mnext_l, mnext_s
from mobilenext.models.libraries import timm_model, torchvision_model
from mobilenext.models.mobilenetv2 import InvertedResidualVariant, MobileNetV2
from mobilenext.models.mobilenext import STAGES, MobileNeXt, Stage
from mobilenext.models.sandglass import BottleneckBlock, SandglassBlock

__all__ = [
    "STAGES",
    "BottleneckBlock",
    "EfficientNet",
    "InvertedResidualVariant",
    "MobileNeXt",
    "MobileNetV2",
    "SandglassBlock",
    "Stage",
    "mnext_l",
    "mnext_s",
    "timm_model",
    "torchvision_model",
]
