"""What a detector finds in pictures: JSON, CSV, and a page of the pictures with their boxes."""

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image

from mobilenext.data.drawing import draw_boxes
from mobilenext.deploy.answers import PAGE, below_common_folder
from mobilenext.files import printable
from mobilenext.metrics.detection_report import boxes_table

SHOWN_SIDE = 480
"""Longest side of the pictures in a page, in pixels."""
MOST_LISTED = 12
"""Objects of a picture that are listed below it."""


@dataclass(frozen=True)
class Objects:
    """What was found in one picture, the surest first.

    Attributes:
        image: The picture's name.
        labels: Class indices, (N,).
        classes: Their names, (N,).
        scores: In [0, 1], (N,).
        boxes: x0, y0, x1, y1 in pixels of the picture, (N, 4).
        picture: The picture with its boxes, small, as JPEG; b"": none is kept.
    """

    image: str
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    scores: tuple[float, ...]
    boxes: np.ndarray
    picture: bytes = field(default=b"", repr=False)

    def line(self) -> str:
        """What was found, in one line of a terminal."""
        pairs = zip(self.classes, self.scores, strict=True)
        texts = [f"{printable(name)} {score:.2f}" for name, score in pairs]
        return f"{printable(self.image)}:  {', '.join(texts) or 'nothing'}"


def drawn(small: PIL.Image.Image, size: tuple[int, int], found: Objects) -> bytes:
    """A small copy of a picture with its boxes, as JPEG.

    Args:
        small: The copy; it is changed.
        size: Width and height of the picture, whose pixels the boxes are in.
        found: Its objects.
    """
    scale = np.tile(small.size, 2) / np.tile(size, 2)
    pairs = zip(found.classes, found.scores, strict=True)
    texts = [f"{name} {score:.2f}" for name, score in pairs]
    order = range(len(texts) - 1, -1, -1)  # the surest on top
    draw_boxes(
        small, found.boxes[list(order)] * scale, [found.labels[i] for i in order],
        [texts[i] for i in order],
    )  # fmt: skip
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


def objects_json(answers: Sequence[Objects]) -> str:
    """A list of objects: `image` and `objects`, each with `class`, `score` and `box`."""
    return json.dumps(
        [
            {
                "image": printable(one.image),
                "objects": [
                    {"class": name, "score": score, "box": np.round(box, 2).tolist()}
                    for name, score, box in zip(one.classes, one.scores, one.boxes, strict=True)
                ],
            }
            for one in answers
        ],
        indent=1,
        ensure_ascii=False,
    )


def objects_csv(answers: Sequence[Objects]) -> str:
    """A line for each object; see `boxes_table`."""
    return boxes_table(
        (printable(one.image), name, score, box)
        for one in answers
        for name, score, box in zip(one.classes, one.scores, one.boxes, strict=True)
    )


def objects_sheet(answers: Sequence[Objects], title: str, notes: Sequence[str]) -> str:
    """A page of pictures with their boxes; it needs no other file.

    Args:
        answers: Those with a picture are shown, in this order.
        title: The page's.
        notes: Lines below the title.
    """
    shown = [one for one in answers if one.picture]
    names, place = below_common_folder([one.image for one in shown])
    said = [*notes, *place]
    lines = "\n".join(f'<p class="quiet">{html.escape(printable(note))}</p>' for note in said)
    cards = "\n".join(map(_card, shown, names))
    page = PAGE.format(title=html.escape(printable(title)), lines=lines, cards=cards)
    return page.replace("height: 10rem; object-fit: contain;", "height: auto;").replace(
        "minmax(min(100%, 15rem), 1fr)", "minmax(min(100%, 20rem), 1fr)"
    )


def _card(one: Objects, name: str) -> str:
    picture = base64.b64encode(one.picture).decode()
    name = html.escape(printable(name))
    pairs = list(zip(one.classes, one.scores, strict=True))
    rows = "\n".join(
        f'<li><span style="--share:{100 * score:.1f}%">{html.escape(printable(label))}</span> '
        f"<b>{score:.2f}</b></li>"
        for label, score in pairs[:MOST_LISTED]
    )
    more = len(pairs) - MOST_LISTED
    said = f'<p class="quiet">and {more} more</p>' if more > 0 else ""
    said = said or ("" if pairs else '<p class="quiet">nothing found</p>')
    return (
        f'<figure><img alt="{name}" src="data:image/jpeg;base64,{picture}">'
        f"<figcaption>{name}</figcaption><ol>{rows}</ol>{said}</figure>"
    )
