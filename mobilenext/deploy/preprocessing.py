"""How pixels are made of a picture for an exported network: what `preprocessing.json` says."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mobilenext.data.transforms import EvalTransform
from mobilenext.errors import InputError
from mobilenext.files import printable, read_text

PREPROCESSING = "preprocessing.json"
MOST_BYTES = 1 << 24
VERSION = 1
DETECTION = "detection"


@dataclass(frozen=True)
class Postprocessing:
    """How objects are chosen from a detector's scores and boxes, outside of the graph.

    Attributes:
        score_threshold: A detection's score is above it.
        nms_threshold: Largest IoU of two detections of a class.
        candidates: Boxes of a class, the surest, that non-maximum suppression sees.
        most: Detections of a picture, the surest.
    """

    score_threshold: float
    nms_threshold: float
    candidates: int
    most: int


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to uint8 (image_size, image_size, 3), RGB; the network normalises by itself.

    For classifiers the short side is resized (antialiased, as Pillow does), then the centre is cut
    out; for detectors the picture is squeezed to a square.

    Attributes:
        image_size: Height and width of the result, in pixels.
        short_side: The short side after resizing, in pixels; a detector's is `image_size`.
        interpolation: bilinear or bicubic.
        mean: Channel means in [0, 1] that the network subtracts.
        std: Channel standard deviations in [0, 1] that it divides by.
        classes: Names of the classes, in the order of the logits; of a detector's scores, whose
            first is the background's, they are the others.
        postprocessing: Of a detector's outputs; None: it is a classifier.
    """

    image_size: int
    short_side: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    postprocessing: Postprocessing | None = None

    @classmethod
    def of(
        cls,
        transform: EvalTransform,
        mean: Sequence[float],
        std: Sequence[float],
        classes: Sequence[str],
        postprocessing: Postprocessing | None = None,
    ) -> "Preprocessing":
        """What an evaluation transform does, with the rest that it takes to use the network.

        Args:
            transform: Of a detector, whose pictures are squeezed, size and interpolation count.
            mean: Channel means in [0, 1].
            std: Channel standard deviations in [0, 1].
            classes: Names of the classes.
            postprocessing: Of a detector's outputs; None: it is a classifier.
        """
        size = transform.image_size
        return cls(
            size, transform.short_side if postprocessing is None else size,
            transform.interpolation, tuple(mean), tuple(std), tuple(classes), postprocessing,
        )  # fmt: skip

    def text(self) -> str:
        """The content of preprocessing.json."""
        plain = asdict(self)
        after = plain.pop("postprocessing")
        values = {
            "version": VERSION,
            "input": "pixels: uint8 (batch, 3, image_size, image_size), RGB",
            "output": "logits: float32 (batch, number of classes)",
            "steps": "Decode to 8-bit RGB. Resize the short side to short_side, antialiased; the "
            "long side is cut to whole pixels. Cut the central square of image_size; halves of "
            "pixels are rounded to even. mean and std are applied inside of the network.",
            **plain,
        }
        if after is not None:
            del values["short_side"]  # who knows of classifiers only has to stop
            values |= {**DETECTOR_TEXTS, "postprocessing": {**POSTPROCESSING_TEXTS, **after}}
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


DETECTOR_TEXTS = {
    "task": DETECTION,
    "output": "scores: float32 (batch, boxes, 1 + number of classes), probabilities, the first of "
    "them the background's; boxes: float32 (batch, boxes, 4), x0, y0, x1, y1 in [0, 1] of the "
    "picture's width and height",
    "steps": "Decode to 8-bit RGB. Resize to image_size x image_size, antialiased, whatever the "
    "picture's sides are: it is squeezed to a square. mean and std are applied inside of the "
    "network.",
}
POSTPROCESSING_TEXTS = {
    "softmax": "inside",
    "decoding": "inside",
    "nms": "outside",
    "steps": "Of each class but the background, take the boxes with the highest scores (at most "
    "candidates), leave out scores up to score_threshold; go through the rest from the highest "
    "score on, and leave out a box whose IoU with one that was kept is above nms_threshold. Of all "
    "classes together keep the detections with the highest scores (at most most).",
}


def read_preprocessing(folder: Path, detectors: bool = False) -> Preprocessing:
    """Read the preprocessing.json of a folder.

    Args:
        folder: Where a network was exported to.
        detectors: Whether it may be a detector's.

    Raises:
        InputError: It is not there, not as an export writes it, or a detector's.
    """
    path = folder / PREPROCESSING
    try:
        values: dict[str, Any] = json.loads(read_text(path, MOST_BYTES))
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}, expected {VERSION}")
        detects = values.get("task") == DETECTION
        found = Preprocessing(
            image_size=int(values["image_size"]),
            short_side=int(values["image_size" if detects else "short_side"]),
            interpolation=str(values["interpolation"]),
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
            classes=tuple(map(str, values["classes"])),
            postprocessing=_postprocessing(values["postprocessing"]) if detects else None,
        )
    except FileNotFoundError as error:
        raise InputError(
            f"{printable(folder)} has no {PREPROCESSING}: expected it beside the network, as "
            "scripts/export.py writes it"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{printable(path)}: expected what scripts/export.py writes, got something else "
            f"({type(error).__name__}: {error}); export the network again"
        ) from error
    sizes_fit = 0 < found.image_size <= found.short_side <= 1 << 14
    if not (sizes_fit and found.interpolation in ("bilinear", "bicubic") and found.classes):
        raise InputError(
            f"{printable(path)}: expected sizes with image_size <= short_side, bilinear or "
            "bicubic, and classes; export the network again"
        )
    if found.postprocessing is not None and not detectors:
        raise InputError(
            f"{printable(folder)}: expected a classifier, got a detector, which gives scores and "
            "boxes; find_objects.py beside it shows what it finds"
        )
    return found


def _postprocessing(values: dict[str, Any]) -> Postprocessing:
    return Postprocessing(
        float(values["score_threshold"]), float(values["nms_threshold"]),
        int(values["candidates"]), int(values["most"]),
    )  # fmt: skip
