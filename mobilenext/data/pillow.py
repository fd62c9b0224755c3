"""Decoding by Pillow: the formats, the largest size, and 8-bit RGB from any mode.

Every path that decodes an image outside of the native decoder comes through here, so all of them
accept the same files and give the same pixels.
"""

import io
import warnings

import numpy as np
import PIL.Image
from PIL import PngImagePlugin

from mobilenext.errors import InputError
from mobilenext.files import what_is

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
"""Formats that are read, known by content; Pillow knows others, which no data set needs."""

MOST_PIXELS = 178_956_970
"""Pixels of an image, for every format and decoder; more is a decompression bomb.

Pillow's own limit for an error, unless somebody lowers `PIL.Image.MAX_IMAGE_PIXELS`.
"""

MOST_METADATA = 1 << 26
"""Bytes of text or of a colour profile in a PNG, decompressed."""

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Numbers of TIFF's tags."""

# Pillow refuses a PNG for more than 1 MB of one text, which no pixel depends on. The sum of all
# texts stays limited as well, so small files can't fill the memory.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, MOST_METADATA)
PngImagePlugin.MAX_TEXT_MEMORY = max(PngImagePlugin.MAX_TEXT_MEMORY, MOST_METADATA)

# Set once: to change filters for a moment is not safe where several threads decode.
warnings.filterwarnings("ignore", module=r"PIL\..*")


class UnsupportedPixelsError(InputError):
    """An image that is whole, but that has no known way to 8 bits, or too many pixels."""


def open_pixels(data: bytes | memoryview) -> PIL.Image.Image:
    """The decoded image in the mode that its file has; `eight_bits` and `rgb` accept it.

    EXIF orientation is ignored, as torchvision does.

    Args:
        data: The encoded image.

    Raises:
        UnsupportedPixelsError: It has more than `MOST_PIXELS`, or samples without a known range.
        Exception: Whatever Pillow's plugins raise on damaged files: OSError, SyntaxError, ...
    """
    with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise UnsupportedPixelsError(
                f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}; make it "
                "smaller"
            )
        _check_range(image)
        image.load()
        return image


def eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image with 8 bits per sample: the upper 8 of unsigned 9 to 16.

    Pillow keeps the upper 8 bits of 16-bit colours when it decodes them. It has no such rule for
    16-bit grey, which it clips at 255 when it converts it; here grey follows the rule of colours.

    Args:
        image: An image of `open_pixels`.
    """
    if not image.mode.startswith("I"):
        return image
    samples, bits = np.asarray(image), 16
    if image.format == "TIFF":
        tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        if tags.get(PHOTOMETRIC) == 0:  # zero is white
            samples = (1 << bits) - 1 - samples.astype(np.int32)
    return PIL.Image.fromarray((samples >> (bits - 8)).clip(0, 255).astype(np.uint8))


def rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image as 8-bit RGB; transparency is dropped.

    Args:
        image: An image of `open_pixels`.
    """
    return eight_bits(image).convert("RGB")


def decode_bytes(data: bytes | memoryview, name: str) -> PIL.Image.Image:
    """An encoded image as 8-bit RGB.

    Args:
        data: The encoded image.
        name: What to call it in messages.

    Raises:
        InputError: It can't be decoded, is a decompression bomb, or has no known way to 8 bits.
    """
    try:
        return rgb(open_pixels(data))
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ...
        raise InputError(
            f"{name}: expected an image file, {reason(error, data)}; replace or remove the file"
        ) from error


def reason(error: Exception, data: bytes | memoryview) -> str:
    """The reason that an image could not be decoded: a clause for messages.

    Args:
        error: What `open_pixels` or `rgb` raised.
        data: The encoded image.
    """
    found = what_is(bytes(data[:512]))
    if found is not None:
        return f"but it is {found}"
    if isinstance(error, UnsupportedPixelsError):
        return f"could not use it: {error}"
    if isinstance(error, PIL.UnidentifiedImageError):
        return f"could not decode it: damaged, or in no format that is read ({', '.join(FORMATS)})"
    return f"could not decode it ({type(error).__name__}: {error})"


def _check_range(image: PIL.Image.Image) -> None:
    """Raise unless the range of the samples is known: 8 bits, or unsigned up to 16."""
    kind = {"F": "floating-point", "I": "32-bit or signed"}.get(image.mode)
    # Pillow gives PGMs of more than 8 bits as 32-bit samples, scaled to 16 bits.
    if kind is not None and not (image.mode == "I" and image.format == "PPM"):
        raise UnsupportedPixelsError(
            f"its {kind} samples have no known range; convert it to 8 or unsigned 16 bits"
        )
