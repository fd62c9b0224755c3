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


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to uint8 (image_size, image_size, 3), RGB; the network normalises by itself.

    The short side is resized (antialiased, as Pillow does), then the centre is cut out.

    Attributes:
        image_size: Height and width of the result, in pixels.
        short_side: The short side after resizing, in pixels.
        interpolation: bilinear or bicubic.
        mean: Channel means in [0, 1] that the network subtracts.
        std: Channel standard deviations in [0, 1] that it divides by.
        classes: Names of the classes, in the order of the logits.
    """

    image_size: int
    short_side: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        transform: EvalTransform,
        mean: Sequence[float],
        std: Sequence[float],
        classes: Sequence[str],
    ) -> "Preprocessing":
        """What an evaluation transform does, with the rest that it takes to classify pictures."""
        return cls(
            transform.image_size, transform.short_side, transform.interpolation, tuple(mean),
            tuple(std), tuple(classes),
        )  # fmt: skip

    def text(self) -> str:
        """The content of preprocessing.json."""
        values = {
            "version": VERSION,
            "input": "pixels: uint8 (batch, 3, image_size, image_size), RGB",
            "output": "logits: float32 (batch, number of classes)",
            "steps": "Decode to 8-bit RGB. Resize the short side to short_side, antialiased; the "
            "long side is cut to whole pixels. Cut the central square of image_size; halves of "
            "pixels are rounded to even. mean and std are applied inside of the network.",
            **asdict(self),
        }
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read the preprocessing.json of a folder.

    Raises:
        InputError: It is not there, or not as an export writes it.
    """
    path = folder / PREPROCESSING
    try:
        values: dict[str, Any] = json.loads(read_text(path, MOST_BYTES))
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}, expected {VERSION}")
        found = Preprocessing(
            image_size=int(values["image_size"]),
            short_side=int(values["short_side"]),
            interpolation=str(values["interpolation"]),
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
            classes=tuple(map(str, values["classes"])),
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
    return found
