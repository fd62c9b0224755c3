"""Boxes drawn on pictures: what a detector found, and the objects that are there."""

import colorsys
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
from PIL import ImageFont, features

TRUTH = (255, 255, 255)
"""Colour of objects that are known; dashed."""
DASH = 6
DARK = 0.18
"""Relative luminance below which white can be read better than black."""
FONT_SIZE = 12


def colour_of(label: int) -> tuple[int, int, int]:
    """The colour of a class: neighbouring classes differ much, whatever their number."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.61803 % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def words_on(colour: tuple[int, int, int]) -> str:
    """Whether black or white is read better on a colour, by WCAG's contrast."""
    linear = [
        one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4
        for one in (channel / 255 for channel in colour)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < DARK else "black"


def draw_boxes(
    picture: PIL.Image.Image,
    boxes: np.ndarray,
    labels: Sequence[int],
    texts: Sequence[str],
    *,
    dashed: bool = False,
) -> None:
    """Draw boxes on a picture, each in the colour of its class, with a word in its corner.

    Args:
        picture: RGB; it is changed.
        boxes: x0, y0, x1, y1 in its pixels, (N, 4).
        labels: Class indices, (N,).
        texts: What is written; "" for nothing.
        dashed: White dashes on black ones, for objects that are known, in place of lines.
    """
    draw, font = PIL.ImageDraw.Draw(picture), plain_font(FONT_SIZE)
    corners = np.asarray(boxes).tolist()
    if dashed:
        for box in corners:
            _dashes(draw, *box)
        return
    for (x0, y0, x1, y1), label in zip(corners, labels, strict=True):
        shape = x0, y0, max(x0, x1), max(y0, y1)
        draw.rectangle(shape, outline=colour_of(int(label)), width=2)
    for (x0, y0, _, _), label, text in zip(corners, labels, texts, strict=True):
        if text:  # above all lines, so that none crosses it
            colour = colour_of(int(label))
            left, _, right, bottom = draw.textbbox((0, 0), text, font)
            place = max(0, min(x0, picture.width - right - 3)), max(0, y0 - bottom - 2)
            draw.rectangle(
                (place[0], place[1], place[0] + right + 2, place[1] + bottom + 2), colour
            )
            draw.text((place[0] + 1 - left, place[1]), text, words_on(colour), font)


def _dashes(draw: PIL.ImageDraw.ImageDraw, x0: float, y0: float, x1: float, y1: float) -> None:
    across = [(x, y, min(x + DASH, x1), y)
              for x in np.arange(x0, x1, 2 * DASH).tolist() for y in (y0, y1)]  # fmt: skip
    down = [(x, y, x, min(y + DASH, y1))
            for y in np.arange(y0, y1, 2 * DASH).tolist() for x in (x0, x1)]  # fmt: skip
    for colour, width in (("black", 4), (TRUTH, 2)):  # seen on bright pictures, too
        for line in across + down:
            draw.line(line, colour, width)


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def plain_font(size: int) -> Font:
    """Pillow's own; without FreeType it has one of a single size."""
    return ImageFont.load_default(size if features.check("freetype2") else None)
