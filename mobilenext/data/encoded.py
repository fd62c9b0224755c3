"""Encoded images and where their bytes lie, which sources hand to decoders without copying."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import PIL.Image
from torch import Tensor

ITEM = np.dtype(
    [
        ("path", np.uint64),  # address of a file's name, ended by a zero byte, or 0
        ("data", np.uint64),  # address of the encoded bytes; 0: native code reads them from a file
        ("offset", np.int64),  # where the image begins in the file
        ("length", np.int64),  # bytes of the image; with a path, 0: all of the file
        ("segments", np.uint64),  # address of the lengths of restart segments (uint16), or 0
        ("num_segments", np.uint32),  # in a file their lengths lie right before the image
        ("checksum", np.uint32),  # CRC-32 of the image, as zlib has it
        ("segments_checksum", np.uint32),  # CRC-32 of the lengths of the segments
        ("file", np.int32),  # descriptor of an open file, if there is neither path nor data
        ("verify", np.int32),  # 1: compare the checksums; 0 once they were found equal
        ("status", np.int32),  # 0, or what is wrong; see `native.PROBLEMS`
        ("width", np.int32),  # filled in when the header has been read
        ("height", np.int32),
        ("owned", np.uint64),  # memory that `native` has to free
    ],
    align=True,
)
"""One encoded image for the native decoder; `struct mn_item` of native/mobilenext.h."""

VIEW = np.dtype(
    [
        ("box", np.float64, 4),  # x0, y0, x1, y1 in pixels of the image: what is seen
        ("limits", np.int32, 4),  # left, top, right, bottom: filter taps stay inside
        ("filter", np.int32),  # an index of FILTERS
        ("flip", np.int32),  # 1: mirror left and right
    ],
    align=True,
)
"""The part of an image that becomes a batch's pixels; `struct mn_view` of native/mobilenext.h."""

JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
JPEG_PASSED = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""Markers of segments that may come before a frame: tables, comments, applications' own."""


class JpegFrame(NamedTuple):
    """What a JPEG's header says of its picture (ITU-T T.81, annex B)."""

    marker: int
    precision: int
    """Bits of a sample."""
    width: int
    height: int
    components: int


def jpeg_frame(data: bytes | memoryview) -> JpegFrame | None:
    """The header of a JPEG's first frame, by the file's first bytes; None: it is not in them."""
    if bytes(data[:2]) != b"\xff\xd8":
        return None
    place = 2
    while place + 9 < len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in JPEG_FRAMES:
            height, width = (int.from_bytes(data[place + at : place + at + 2]) for at in (5, 7))
            return JpegFrame(marker, data[place + 4], width, height, data[place + 9])
        elif marker in JPEG_PASSED:
            place += 2 + int.from_bytes(data[place + 2 : place + 4])
        else:
            return None
    return None


FILTERS = ("bilinear", "bicubic")
"""Names of the resize filters, antialiased as in Pillow."""


@dataclass
class Located:
    """Locations of the bytes of some images.

    Attributes:
        items: One `ITEM` each.
        keep: Objects that must live while the items are in use: open files, buffers, file names.
    """

    items: np.ndarray
    keep: list[Any] = field(default_factory=list)


@runtime_checkable
class EncodedImages(Protocol):
    """A split whose images lie encoded on disk or in memory."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, Any]:
        """RGB image and its target; raises `InputError` naming an image that can't be read."""
        ...

    def targets(self, indices: np.ndarray) -> Tensor:
        """The targets of these images; see `mobilenext.data.sources.Images`."""
        ...

    def name(self, index: int) -> str:
        """Name of the image for messages: a path, or archive and member."""
        ...

    def read(self, index: int) -> bytes | memoryview:
        """The encoded bytes of one image; raises `InputError` if they can't be read."""
        ...

    def locate(self, indices: Sequence[int] | np.ndarray) -> Located:
        """Locations of the bytes of these images; a missing image gets a status in its item."""
        ...


@runtime_checkable
class EncodedClassImages(EncodedImages, Protocol):
    """Encoded images of one class each."""

    labels: np.ndarray
    """Class indices, int64 or smaller."""


@runtime_checkable
class HasChecksums(Protocol):
    """Encoded images whose bytes are verified when they are used for the first time."""

    def found_whole(self, indices: np.ndarray) -> None:
        """Note that native code has found the checksums of these images equal."""
        ...


@runtime_checkable
class HasRestarts(Protocol):
    """Encoded images that may have an index of restart segments."""

    def segments(self, index: int) -> np.ndarray | None:
        """Lengths of the entropy-coded segments in bytes, their markers included; None: no index.

        The first begins behind the scan's header; the last one ends with the EOI marker.
        """
        ...


@runtime_checkable
class HasReadAhead(Protocol):
    """Images whose bytes the system can be asked for before they are read."""

    def read_ahead(self, indices: np.ndarray) -> None:
        """Ask the system to fetch the bytes of these images, (N,), and don't wait for them.

        Says nothing about files that can't be read: whoever reads them will. Needs
        `os.posix_fadvise`.
        """
        ...
