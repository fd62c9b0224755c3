"""The config of a detector's training."""

from dataclasses import dataclass

from mobilenext.config.fields import MISSING, check
from mobilenext.config.groups import BoxAugmentConfig, DetectorConfig
from mobilenext.config.training import LoopConfig


@dataclass
class DetectConfig(LoopConfig):
    """Job `detect`."""

    negatives: float = 3.0
    """Background boxes of an image that the loss counts, over those that match an object."""
    detector: DetectorConfig = MISSING
    augment: BoxAugmentConfig = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.negatives > 0, "negatives", "above 0", self.negatives)
        expected = "false for a detector, whose backbone torch.fx has taken apart"
        check(not self.runtime.fused, "runtime.fused", expected, self.runtime.fused)
        size, evaluated = self.data.image_size, self.data.eval_size
        check(
            size == evaluated,
            "data.eval_size",
            f"data.image_size, {size}: default boxes belong to one size",
            evaluated,
        )
        advice = "of classifiers; a detector's splits are data.source.train and data.source.val"
        for key, unused, expected in (
            ("val_folder", None, "null"), ("val_share", None, "null"),
            ("eval_crop_ratio", 1.0, "1"), ("reencoded", False, "false"),
        ):  # fmt: skip
            value = getattr(self.data, key)
            check(value == unused, f"data.{key}", f"{expected} ({advice})", value)
        for key in ("on_bad_image", "on_bad_box"):  # these decide the run's folder
            value, said = getattr(self.data, key), self.data.source.get(key)
            check(said in (None, value), f"data.source.{key}", f"nothing; say data.{key}", said)
