"""Networks and what they cost. Knows nothing of data, training or configs."""

from mobilenext.models.mobilenetv2 import MobileNetV2
from mobilenext.models.mobilenext import STAGES, MobileNeXt, Stage
from mobilenext.models.sandglass import SandglassBlock

__all__ = ["STAGES", "MobileNeXt", "MobileNetV2", "SandglassBlock", "Stage"]
