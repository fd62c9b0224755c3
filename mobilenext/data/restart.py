"""Restart-indexed JPEGs: making them, and cutting a smaller JPEG out of one for any decoder.

A JPEG with a restart marker every few MCUs falls into segments that can be decoded on their own.
With the lengths of the segments at hand, the part of an image that a crop needs is itself a valid
JPEG: a patched header and the segments that cover the crop. The native decoder needs no such copy,
it jumps over segments by itself; this is for decoders that only take files, on a GPU for instance.

The idea is described, with measurements, as ROI-JPEG; jpegtran writes such files with
`-optimize -restart <n>B`.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mobilenext.data import native
from mobilenext.errors import InputError

LOW, HIGH = 6, 16
"""Range of restart intervals to try, in MCUs. Shorter segments cost bytes; longer ones make a crop
carry more than it shows."""

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; the last two are outside."""


@dataclass(frozen=True)
class Layout:
    """Layout of a sequential JPEG.

    Attributes:
        width: Width of the image, in pixels.
        height: Height of the image, in pixels.
        mcu_width: Pixels that one MCU spans.
        mcu_height: Pixels that one MCU spans.
        interval: MCUs between restarts; 0: no restarts.
        frame: Where the frame header (SOF0 or SOF1) begins.
        scan: Where the entropy-coded data begins.
    """

    width: int
    height: int
    mcu_width: int
    mcu_height: int
    interval: int
    frame: int
    scan: int

    @property
    def per_row(self) -> int:
        """MCUs in a row."""
        return -(-self.width // self.mcu_width)

    @property
    def rows(self) -> int:
        """Rows of MCUs."""
        return -(-self.height // self.mcu_height)


def available() -> bool:
    """Whether `restart_index` can work: the native decoder is there, built with libjpeg-turbo."""
    library = native.library()
    return library is not None and library.mn_libjpeg() > 0


def restart_index(
    data: bytes | memoryview | np.ndarray, low: int = LOW, high: int = HIGH
) -> tuple[bytes, np.ndarray] | int:
    """Code a JPEG's coefficients again, with restarts; no pixel changes, metadata is left out.

    The interval is the smallest of low..high that divides the MCUs of a row, or else a row. The
    caller should decode both and compare, as `scripts/prepare_imagenet.py` does.

    Args:
        data: A whole JPEG file, as bytes or uint8.
        low: Smallest interval to try, in MCUs.
        high: Largest interval to try, in MCUs.

    Returns:
        The new file and the lengths of its segments in bytes, uint16, each with the marker behind
        it; or the reason against it, one of `native.PROBLEMS`.

    Raises:
        InputError: The native decoder is missing or was built without libjpeg-turbo.
    """
    library = native.library()
    if library is None or not available():
        raise InputError(
            "restart-indexed files: expected the native decoder built with libjpeg-turbo, got "
            f"{native.description()}; install a C compiler and libjpeg-turbo's headers "
            "(Debian: libjpeg62-turbo-dev), then run pip install -e . again"
        )
    source = np.frombuffer(data, np.uint8)
    out, segments = ctypes.c_void_p(), ctypes.c_void_p()
    length, count = ctypes.c_int64(), ctypes.c_int64()
    status = library.mn_restart_index(
        source.ctypes.data,
        len(source),
        low,
        high,
        ctypes.byref(out),
        ctypes.byref(length),
        ctypes.byref(segments),
        ctypes.byref(count),
    )
    if status != native.OK:
        return status
    try:
        table = ctypes.string_at(segments, 2 * count.value)
        return ctypes.string_at(out, length.value), np.frombuffer(table, np.uint16)
    finally:
        library.mn_free(out)
        library.mn_free(segments)


def layout(data: bytes | memoryview) -> Layout:
    """Read the header of a sequential JPEG, up to its scan.

    Raises:
        InputError: It is no sequential JPEG of 8 bits with all components in one scan.
    """
    frame, interval, scan = None, 0, 0
    try:
        for marker, at in _markers(data):
            if marker in (0xC0, 0xC1):
                frame = at
            elif 0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                raise InputError("expected a sequential Huffman JPEG, found another kind")
            elif marker == 0xDD:
                interval = _big16(data, at + 4)
            scan = at
        if frame is None or data[frame + 4] != 8 or data[scan + 4] != data[frame + 9]:
            raise InputError("expected 8 bits and all components in one scan, found otherwise")
        factors = [data[frame + 11 + 3 * number] for number in range(data[frame + 9])]
        height, width = _big16(data, frame + 5), _big16(data, frame + 7)
        scan += 2 + _big16(data, scan + 2)
    except IndexError:
        raise InputError("expected a JPEG with a scan, found the end of the data") from None
    across, down = max(value >> 4 for value in factors), max(value & 15 for value in factors)
    if len(factors) == 1:
        across = down = 1  # a lone component's MCU is one block, whatever its factors are
    return Layout(width, height, 8 * across, 8 * down, interval, frame, scan)


def _markers(data: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Markers and where they begin, up to the start of the first scan."""
    if bytes(data[:2]) != b"\xff\xd8":
        raise InputError("expected a JPEG, found other bytes")
    at, marker = 2, 0
    while marker != 0xDA:
        if data[at] != 0xFF:
            raise InputError(f"expected a JPEG marker at byte {at}, found none")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        yield marker, at
        at += 2 + _big16(data, at + 2)


def stitch(
    data: bytes | memoryview, segments: np.ndarray | None, box: Box
) -> tuple[bytes | memoryview, int, int]:
    """The part of a restart-indexed JPEG that shows a box, as a JPEG of its own.

    Pixels inside the box are, bit for bit, those of the whole image, also where the decoder
    interpolates chroma between neighbours: what the box's edge needs of them is there as well.

    Args:
        data: The file.
        segments: Lengths of its segments, as `restart_index` gives them; None: there is no index.
        box: What has to be in the result; has to lie in the image.

    Returns:
        The JPEG, and where its top left pixel lies in the image (x, y): (data, 0, 0) unless
        something can be left out.

    Raises:
        InputError: The box leaves the image, or the segments are those of another file.
    """
    if segments is None or not len(segments):
        return data, 0, 0
    shape = layout(data)
    left, top, right, bottom = box
    if not (0 <= left < right <= shape.width and 0 <= top < bottom <= shape.height):
        raise InputError(
            f"expected a box inside of {shape.width} x {shape.height} pixels, got {box}"
        )
    if not shape.interval or shape.per_row % shape.interval:
        return data, 0, 0
    per_row = shape.per_row // shape.interval
    ends = shape.scan + np.cumsum(segments, dtype=np.int64)
    end = int(ends[-1])
    is_whole = end <= len(data) and bytes(data[end - 2 : end]) == b"\xff\xd9"
    if len(segments) != per_row * shape.rows or not is_whole:
        raise InputError(
            f"expected {per_row * shape.rows} segments within {len(data)} bytes, got "
            f"{len(segments)} up to byte {end}: the index belongs to another file"
        )
    # One pixel more on each side reaches into the neighbouring chroma sample, and so its MCU.
    margin_x, margin_y = int(shape.mcu_width > 8), int(shape.mcu_height > 8)
    span = shape.interval * shape.mcu_width
    first = max(0, left - margin_x) // span
    last = min(per_row - 1, (right - 1 + margin_x) // span)
    if min(shape.width, (last + 1) * span) - first * span <= 4 and first:
        first -= 1  # libjpeg does not interpolate chroma in so narrow an image
    first_row = max(0, top - margin_y) // shape.mcu_height
    last_row = min(shape.rows - 1, (bottom - 1 + margin_y) // shape.mcu_height)
    x, y = first * span, first_row * shape.mcu_height
    width = min(shape.width, (last + 1) * span) - x
    height = min(shape.height, (last_row + 1) * shape.mcu_height) - y
    if (width, height) == (shape.width, shape.height):
        return data, 0, 0

    header = bytearray(data[: shape.scan])
    header[shape.frame + 5 : shape.frame + 9] = height.to_bytes(2) + width.to_bytes(2)
    bounds = np.concatenate([[shape.scan], ends])
    from_ = np.arange(first_row, last_row + 1) * per_row + first
    to = from_ + (last - first + 1)
    pieces = [data[a:b] for a, b in zip(bounds[from_].tolist(), bounds[to].tolist(), strict=True)]
    out = bytearray(b"".join([header, *pieces]))
    # Restart markers count modulo 8 from the scan's beginning, which has moved.
    kept = (from_[:, None] + np.arange(last - first + 1)).ravel()
    marks = shape.scan + np.cumsum(segments[kept], dtype=np.int64) - 1
    np.frombuffer(out, np.uint8)[marks] = 0xD0 + np.arange(len(marks)) % 8
    out[-1] = 0xD9
    return bytes(out), x, y


def _big16(data: bytes | memoryview, at: int) -> int:
    return data[at] << 8 | data[at + 1]
