"""Pictures of a batch on one sheet, each with what is said of it."""

import unicodedata
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
from torch import Tensor

from mobilenext.data.drawing import Font, plain_font

MOST, COLUMNS = 16, 4
LEAST_WIDTH = 144
"""Pixels of a picture on the sheet: a narrower one is enlarged, so that words fit below it."""
FONT_SIZE, LINE, GAP = 14, 18, 8
"""Pixels."""


def contact_sheet(pictures: Tensor, captions: Sequence[str], most: int = MOST) -> np.ndarray:
    """The first pictures in rows, with captions below them; narrow ones are enlarged.

    Args:
        pictures: uint8 (N, H, W, 3).
        captions: N texts of one line or several.
        most: Pictures that are shown.

    Returns:
        uint8 (height, width, 3).
    """
    shown = pictures[:most].cpu().numpy()
    texts = [caption.split("\n") for caption in captions[: len(shown)]]
    scale = -(-LEAST_WIDTH // shown.shape[2])
    height, width = shown.shape[1] * scale, shown.shape[2] * scale
    columns, rows = min(COLUMNS, len(shown)), -(-len(shown) // COLUMNS)
    below = LINE * max(len(lines) for lines in texts) + GAP
    size = GAP + columns * (width + GAP), GAP + rows * (height + below)
    sheet = PIL.Image.new("RGB", size, "white")
    draw, font = PIL.ImageDraw.Draw(sheet), plain_font(FONT_SIZE)
    for number, (pixels, lines) in enumerate(zip(shown, texts, strict=True)):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * (width + GAP), GAP + row * (height + below)
        picture = PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.NEAREST)
        sheet.paste(picture, (left, top))
        for line, text in enumerate(lines):
            place = left, top + height + 1 + line * LINE
            draw.text(place, _cut(text, width, font), "black", font)
    return np.asarray(sheet)


def _cut(text: str, width: int, font: Font) -> str:
    """A text that fits a width; Pillow's fonts have no letters but those of ASCII."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = bare.encode("ascii", "replace").decode("ascii")
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
