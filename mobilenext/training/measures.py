"""Measures: what a run is judged by, and how that is written."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """A number by which the weights of a run are compared; more is better.

    Attributes:
        key: Its name in scores, metrics.jsonl, result.json and TensorBoard.
        label: Its name in texts.
        unit: What follows the number in texts.
        counted_in_training: Whether training steps count correct predictions by it.
        reported: Entries of scores that a result's history has, beside the loss.
    """

    key: str
    label: str
    unit: str = " %"
    counted_in_training: bool = False
    reported: tuple[str, ...] = ()

    def text(self, value: float) -> str:
        """A value in words, for instance `top-1 72.34 %`."""
        return f"{self.label} {value:.2f}{self.unit}"


TOP1 = Measure("top1", "top-1", counted_in_training=True, reported=("top1", "top5"))

AP_VOC = Measure(
    "ap_voc_11point", "AP (VOC, 11 points)",
    reported=("ap_voc_11point", "ap_voc_area", "ap_coco"),
)  # fmt: skip
AP_COCO = Measure("ap_coco", "AP (COCO)", reported=("ap_coco", "ap_coco_50", "ap_coco_75"))
DETECTION = {"voc": AP_VOC, "coco": AP_COCO}
"""By the protocol that a data set is known by."""

MEASURES = (TOP1, AP_VOC, AP_COCO)
"""All that runs are judged by; those who read records of any run find theirs here."""


def measure_of(scores: dict[str, Any]) -> Measure | None:
    """The measure that a row of metrics.jsonl or a result has; None if it has none."""
    return next((measure for measure in MEASURES if measure.key in scores), None)
