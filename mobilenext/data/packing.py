"""Storing an image in a pack: as it is, with restart markers, or re-encoded.

Restart markers are added by coding the same coefficients again, and both files are decoded to prove
that no pixel has changed. Whatever does not pass stays byte for byte as it was; nothing is repaired
silently, and odd files are named.
"""

import io
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from mobilenext.data import native, pillow, restart
from mobilenext.data.encoded import EncodedClassImages
from mobilenext.data.pack import Record
from mobilenext.data.sources import relative_name
from mobilenext.errors import InputError
from mobilenext.files import printable

MOST_GROWTH = 1.05
"""Ratio by which restart markers and their index may enlarge a file; else it stays as it was."""

FORMAT_OF_ENDING = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG",
    ".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM", ".pgm": "PPM", ".tif": "TIFF", ".tiff": "TIFF",
    ".gif": "GIF",
}  # fmt: skip
NAMED_REASONS = {*native.PROBLEMS.values(), "could not be decoded again", "pixels would differ"}
"""Reasons to keep a decodable file as it was that make it an odd one."""
NO_SEGMENTS = np.zeros(0, np.uint16)


@dataclass(frozen=True)
class Outcome:
    """The decision on an image.

    Attributes:
        record: What to store; None: it is left out.
        before: Bytes of the encoded image in the source.
        what: The action, for the report.
        odd: The ways in which it is unusual.
        name: class/file, printable.
    """

    record: Record | None
    before: int
    what: str
    odd: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class PackRecipe:
    """How to store the images of a split; see the options of `scripts/prepare_imagenet.py`."""

    mode: str
    size: int | None
    quality: int
    on_bad_image: str


def store(images: EncodedClassImages, index: int, recipe: PackRecipe) -> Outcome:
    """Decide how to store an image.

    Raises:
        InputError: It can't be read, or can't be decoded and is to be neither kept nor left out.
    """
    name, label = relative_name(images, index), int(images.labels[index])
    shown = printable(name)
    try:
        data = images.read(index)
    except InputError:
        if recipe.on_bad_image != "skip":
            raise
        return Outcome(None, 0, "left out: unreadable", ("unreadable",), shown)
    try:
        image = pillow.open_pixels(data)
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ...
        if recipe.on_bad_image == "error":
            raise InputError(
                f"{images.name(index)}: expected an image file, {pillow.reason(error, data)}; "
                "replace it, or add on_bad_image=skip to leave such files out, or "
                "on_bad_image=keep to store them as they are"
            ) from error
        odd = ("undecodable",)
        if recipe.on_bad_image == "skip":
            return Outcome(None, len(data), "left out: undecodable", odd, shown)
        record = Record(data, NO_SEGMENTS, label, 0, 0, name)
        return Outcome(record, len(data), "kept: undecodable", odd, shown)
    if recipe.mode == "copy":
        stored, segments, what = data, NO_SEGMENTS, "copied"
    elif recipe.mode == "restart":
        stored, segments, what = _with_restarts(data, image)
    else:
        stored, segments, what = _reencoded(data, image, recipe)
    width, height = image.size if what != "resized" else _resized(image.size, recipe)
    record = Record(stored, segments, label, width, height, name)
    reason = what.removeprefix("kept: ")
    odd = (*_oddities(image, name), *({reason} & NAMED_REASONS))
    return Outcome(record, len(data), what, odd, shown)


def _with_restarts(
    data: bytes | memoryview, image: PIL.Image.Image
) -> tuple[bytes | memoryview, np.ndarray, str]:
    if image.format not in ("JPEG", "MPO"):
        return data, NO_SEGMENTS, f"kept: {image.format}"
    result = restart.restart_index(data)
    if isinstance(result, int):
        return data, NO_SEGMENTS, f"kept: {native.PROBLEMS[result]}"
    written, segments = result
    if len(written) + segments.nbytes > MOST_GROWTH * len(data):
        return data, NO_SEGMENTS, "kept: would be larger"
    try:
        again = pillow.open_pixels(written)
    except Exception:  # as above
        return data, NO_SEGMENTS, "kept: could not be decoded again"
    if image.mode != again.mode or not np.array_equal(np.asarray(image), np.asarray(again)):
        return data, NO_SEGMENTS, "kept: pixels would differ"
    return written, segments, "restarts added"


def _resized(size: tuple[int, int], recipe: PackRecipe) -> tuple[int, int]:
    side = max(size) if recipe.mode == "max_side" else min(size)
    assert recipe.size is not None
    if side <= recipe.size:
        return size
    width, height = (max(1, round(value * recipe.size / side)) for value in size)
    return width, height


def _reencoded(
    data: bytes | memoryview, image: PIL.Image.Image, recipe: PackRecipe
) -> tuple[bytes | memoryview, np.ndarray, str]:
    size = _resized(image.size, recipe)
    pixels = pillow.eight_bits(image)
    pixels = pixels if pixels.mode == "L" else pixels.convert("RGB")
    if size != image.size:
        pixels = pixels.resize(size, PIL.Image.Resampling.BICUBIC)
    file = io.BytesIO()
    pixels.save(file, "JPEG", quality=recipe.quality, optimize=True)
    written = file.getvalue()
    if size != image.size:
        return written, NO_SEGMENTS, "resized"
    if len(written) >= len(data):
        return data, NO_SEGMENTS, "kept: would be larger"
    return written, NO_SEGMENTS, "encoded anew"


def _oddities(image: PIL.Image.Image, name: str) -> tuple[str, ...]:
    found = []
    ending = Path(name).suffix
    format_ = "JPEG" if image.format == "MPO" else image.format
    if FORMAT_OF_ENDING.get(ending.lower(), format_) != format_:
        found.append(f"{format_} named {ending}")
    if image.mode != "RGB":
        found.append("grey" if image.mode == "L" else image.mode)
    if "progressive" in image.info:
        found.append("progressive")
    if format_ == "JPEG" and not _is_sound_exif(image.info.get("exif")):
        found.append("corrupt EXIF")
    return tuple(found)


def _is_sound_exif(exif: bytes | None) -> bool:
    """Whether the entries of EXIF's first directory lie where they say.

    Pillow only warns of it, and warnings are the whole process's, not a thread's.
    """
    if exif is None:
        return True
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return False
    sizes = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4)  # of the types, in bytes
    try:
        (at,) = struct.unpack_from(f"{order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for number in range(count):
            _, kind, items, value = struct.unpack_from(f"{order}HHLL", tiff, at + 2 + 12 * number)
            size = sizes[kind] * items
            if size > 4 and value + size > len(tiff):
                return False
    except (struct.error, IndexError):
        return False
    return True


class Tally:
    """Counts of the decisions on the images of a part; plain values, for the journal."""

    def __init__(self) -> None:
        self.images = self.before = self.after = 0
        self.what: Counter[str] = Counter()
        self.odd: dict[str, list[str]] = {}

    def count(self, outcome: Outcome) -> None:
        """Add one image."""
        self.before += outcome.before
        self.what[outcome.what] += 1
        for kind in outcome.odd:
            self.odd.setdefault(kind, []).append(outcome.name)
        if outcome.record is not None:
            self.images += 1
            self.after += len(outcome.record.data) + outcome.record.segments.nbytes

    def add(self, plain: dict[str, Any]) -> None:
        """Add another tally, as plain values."""
        self.images += plain["images"]
        self.before += plain["bytes_before"]
        self.after += plain["bytes_after"]
        self.what.update(plain["done"])
        for kind, names in plain["odd"].items():
            self.odd.setdefault(kind, []).extend(names)

    def plain(self) -> dict[str, Any]:
        """Plain values of this tally."""
        return {
            "images": self.images,
            "bytes_before": self.before,
            "bytes_after": self.after,
            "done": dict(sorted(self.what.items())),
            "odd": dict(sorted(self.odd.items())),
        }
