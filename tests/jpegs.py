"""JPEGs of all kinds for the tests of decoders: by Pillow, and by hand what it does not write."""

import functools
import io
from collections.abc import Iterator

import numpy as np
import PIL.Image


@functools.cache
def photo() -> PIL.Image.Image:
    """A real photograph, 640 x 427."""
    from sklearn.datasets import load_sample_image

    return PIL.Image.fromarray(load_sample_image("china.jpg"))


def part(random: np.random.Generator, width: int, height: int) -> PIL.Image.Image:
    """Some part of the photograph, or noise for every third one."""
    if random.integers(0, 3) == 0:
        return PIL.Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
    left, top = random.integers(0, 641 - width), random.integers(0, 428 - height)
    return photo().crop((int(left), int(top), int(left) + width, int(top) + height))


def saved(image: PIL.Image.Image, **settings) -> bytes:
    """An image as JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", **settings)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    """What Pillow decodes, RGB (H, W, 3) uint8."""
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))


def segment(data: bytes, marker: int) -> tuple[int, int]:
    """Where the first segment with this marker begins and ends."""
    at = 2
    while data[at + 1] != marker:
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return at, at + 2 + int.from_bytes(data[at + 2 : at + 4])


def framed(
    data: bytes, width: int | None = None, height: int | None = None, luma: int | None = None
) -> bytes:
    """The same with another size, or sampling factors of the first component, in its frame."""
    at = next(data.find(bytes([0xFF, kind, 0])) for kind in (0xC0, 0xC1, 0xC2)
              if bytes([0xFF, kind, 0]) in data)  # fmt: skip
    changed = bytearray(data)
    if height is not None:
        changed[at + 5 : at + 7] = height.to_bytes(2)
    if width is not None:
        changed[at + 7 : at + 9] = width.to_bytes(2)
    if luma is not None:
        changed[at + 11] = luma
    return bytes(changed)


def rearranged(image: PIL.Image.Image, kind: str) -> bytes:
    """A 4:4:0 or 4:1:1 JPEG, which Pillow does not write.

    The blocks are those of a 4:2:2 or 4:2:0 one, as many in each MCU, which stand elsewhere: the
    picture is a jumble, and the file is sound.
    """
    width, height = image.size
    if kind == "4:4:0":
        return framed(saved(image, subsampling="4:2:2"), (width + 1) // 2, 2 * height - 1, 0x12)
    return framed(saved(image, subsampling="4:2:0"), 2 * width - 1, (height + 1) // 2, 0x41)


def one_scan_each(image: PIL.Image.Image) -> bytes:
    """A sequential JPEG whose three components have a scan each."""
    grey = [saved(band) for band in image.convert("YCbCr").split()]
    first = grey[0]
    frame, frame_end = segment(first, 0xC0)
    scan, _ = segment(first, 0xDA)
    head = bytearray(first[:frame])
    head += b"\xff\xc0\x00\x11" + first[frame + 4 : frame + 9] + b"\x03"
    head += b"\x01\x11\x00\x02\x11\x00\x03\x11\x00" + first[frame_end:scan]
    for number, one in enumerate(grey, 1):
        _, begin = segment(one, 0xDA)
        head += b"\xff\xda\x00\x08\x01" + bytes([number]) + b"\x00\x00\x3f\x00" + one[begin:-2]
    return bytes(head) + b"\xff\xd9"


def ycck(image: PIL.Image.Image) -> bytes:
    """A CMYK JPEG that says its inks are YCCK, as Photoshop's are; the colours are not natural."""
    data = bytearray(saved(image.convert("CMYK")))
    at, _ = segment(bytes(data), 0xEE)
    data[at + 15] = 2
    return bytes(data)


BASELINE = (
    "4:4:4", "4:2:2", "4:2:0", "4:4:0", "grey", "optimized", "quality 1", "quality 100",
    "restarts", "restart rows", "grey restarts", "16-bit quantisation",
)  # fmt: skip
"""Those that the native decoder does by itself, but for very narrow ones."""

OTHERS = ("4:1:1", "progressive", "grey progressive", "rgb", "cmyk", "ycck", "one scan each")
"""Those that it leaves to libjpeg-turbo."""


def of_kind(kind: str, image: PIL.Image.Image) -> bytes:
    """An image as a JPEG of one of the kinds above."""
    if kind in ("4:4:0", "4:1:1"):
        return rearranged(image, kind)
    if kind == "one scan each":
        return one_scan_each(image)
    if kind == "ycck":
        return ycck(image)
    modes = {"grey": "L", "grey restarts": "L", "grey progressive": "L", "cmyk": "CMYK"}
    settings = {
        "4:4:4": {"subsampling": 0},
        "4:2:2": {"subsampling": 1},
        "4:2:0": {"subsampling": 2},
        "optimized": {"subsampling": 2, "optimize": True, "quality": 90},
        "quality 1": {"quality": 1},
        "quality 100": {"quality": 100, "subsampling": 2},
        "restarts": {"restart_marker_blocks": 2, "subsampling": 2},
        "restart rows": {"restart_marker_rows": 1, "subsampling": 1},
        "grey restarts": {"restart_marker_blocks": 3},
        "16-bit quantisation": {"qtables": [[16] * 63 + [300], [20] * 62 + [300] * 2]},
        "progressive": {"progressive": True},
        "grey progressive": {"progressive": True},
        "rgb": {"keep_rgb": True},
    }
    return saved(image.convert(modes.get(kind, "RGB")), **settings.get(kind, {}))


def small_files() -> Iterator[bytes]:
    """One of each kind in a few sizes, small, so that much of them is headers."""
    random = np.random.default_rng(0)
    for width, height in ((97, 61), (160, 120), (33, 48), (9, 7), (250, 40)):
        for kind in BASELINE + OTHERS:
            yield of_kind(kind, part(random, width, height))
