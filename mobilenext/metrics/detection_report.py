"""What a detector found, to look at: average precision by class, curves, pictures with boxes."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mobilenext.data import BoxData, BoxImages
from mobilenext.data.boxes import PADDING
from mobilenext.data.drawing import draw_boxes
from mobilenext.errors import InputError
from mobilenext.files import printable
from mobilenext.metrics.average_precision import Detections
from mobilenext.metrics.detection import Precision

PICTURES = 12
"""Pictures that are shown, spread over the split."""
SIDE = 240
"""Height and width of each on the sheet, in pixels."""
LEAST_SHOWN = 0.3
"""Score from which on a detection is drawn."""
COLUMNS = 4
MOST_POINTS = 200
"""Points of a curve in precision_recall.json; a curve of more is thinned."""

AP_TABLE, CURVES, SHEET = "ap_by_class.csv", "precision_recall.json", "detections.jpg"


def lines_of(precision: Precision, classes: Sequence[str]) -> list[str]:
    """Average precision by class as lines of a terminal, the best first, and the means.

    Args:
        precision: Of a split.
        classes: Their names.
    """
    names = [printable(name) for name in classes]
    width = max(map(len, ("class", *names)))
    values = precision.eleven_point.by_class
    order: list[int] = np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable").tolist()
    title = (
        f"{'class':<{width}}  objects  AP (VOC, 11 points)  AP (VOC, area)  AP (COCO), in per cent"
    )
    rows = [
        f"{names[i]:<{width}}  {precision.curves.objects[i]:7,}  {_number(values[i]):>19}  "
        f"{_number(precision.area.by_class[i]):>14}  {_number(precision.coco.by_class[i]):>9}"
        for i in order
    ]
    means = (
        f"{'mean':<{width}}  {precision.curves.objects.sum():7,}  "
        f"{_number(precision.eleven_point.mean):>19}  {_number(precision.area.mean):>14}  "
        f"{_number(precision.coco.mean):>9}"
    )
    return [title, *rows, means]


def detection_files(
    precision: Precision, images: BoxData
) -> tuple[dict[str, str | bytes | None], np.ndarray, list[str]]:
    """Files of a run folder, by name; the pictures of the sheet and their captions.

    `ap_by_class.csv`; `precision_recall.json`, for each class recall and precision by VOC's rules;
    `detections.jpg`, pictures with what was found and, dashed, what is there.

    Returns:
        The files, pictures uint8 (N, SIDE, SIDE, 3), and a caption for each.
    """
    pictures, captions = _pictures(images.val, precision.detections, images.classes)
    files: dict[str, str | bytes | None] = {
        AP_TABLE: _table(precision, images.classes),
        CURVES: _curves(precision, images.classes),
        SHEET: _sheet(pictures) if len(pictures) else None,
    }
    return files, pictures, captions


def detections_table(precision: Precision, images: BoxImages, classes: Sequence[str]) -> str:
    """All detections of a split, image by image; see `boxes_table`."""
    found = precision.detections
    order: list[int] = np.lexsort((found.ranks, found.images)).tolist()
    labels: list[int] = found.labels.tolist()
    return boxes_table(
        (
            images.relative(int(found.images[row])).encode("utf-8", "replace").decode(),
            classes[labels[row]], found.scores[row], found.boxes[row],
        )
        for row in order
    )  # fmt: skip


def boxes_table(rows: Iterable[tuple[str, str, float, np.ndarray]]) -> str:
    """Detections as CSV: a line for each, with its box in the image's pixels.

    Args:
        rows: Image, class, score and box (4,) of each.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "class", "score", "x0", "y0", "x1", "y1"])
    for image, name, score, box in rows:
        places = [f"{value:.2f}" for value in box.tolist()]
        writer.writerow([image, name, f"{score:.6f}", *places])
    return file.getvalue()


def with_targets(
    pictures: Tensor, targets: Tensor, classes: Sequence[str], most: int = PICTURES
) -> Tensor:
    """The first pictures of a training batch with their boxes, uint8 (N, H, W, 3) on the host.

    Args:
        pictures: uint8 (N, H, W, 3).
        targets: `BOX_TARGETS`, (N, 1 + K, 6).
        classes: Names of all of them.
        most: Pictures that are drawn on.
    """
    drawn = []
    for pixels, rows in zip(
        pictures[:most].cpu().numpy(), targets[:most, 1:].cpu().numpy(), strict=True
    ):
        picture = PIL.Image.fromarray(pixels)
        rows = rows[rows[:, 4] != PADDING]
        labels: list[int] = rows[:, 4].astype(int).tolist()
        draw_boxes(picture, rows[:, :4], labels, [classes[label] for label in labels])
        drawn.append(np.asarray(picture))
    return torch.from_numpy(np.stack(drawn))


def _pictures(
    images: BoxImages, found: Detections, classes: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    chosen: list[int] = np.unique(np.linspace(0, len(images) - 1, PICTURES).astype(int)).tolist()
    pictures, captions = [], []
    for number in chosen:
        try:
            image, _ = images[number]
        except InputError:  # counted already
            continue
        small = image.resize((SIDE, SIDE))
        scale = np.array([SIDE / image.width, SIDE / image.height] * 2)
        objects = images.boxes.of(number)
        there = images.boxes.boxes[objects] * scale
        draw_boxes(small, there, images.labels[objects].tolist(), [""] * len(there), dashed=True)
        mine = np.flatnonzero((found.images == number) & (found.scores >= LEAST_SHOWN))
        mine = mine[np.argsort(found.scores[mine])]
        labels: list[int] = found.labels[mine].tolist()
        scores = found.scores[mine].tolist()
        texts = [f"{classes[a]} {b:.2f}" for a, b in zip(labels, scores, strict=True)]
        draw_boxes(small, found.boxes[mine] * scale, labels, texts)
        pictures.append(np.asarray(small))
        present: list[int] = np.unique(images.labels[objects]).tolist()
        names = [classes[label] for label in present]
        captions.append(f"there: {', '.join(names) or 'nothing'}")
    empty = np.zeros((0, SIDE, SIDE, 3), np.uint8)
    return np.stack(pictures) if pictures else empty, captions


def _sheet(pictures: np.ndarray) -> bytes:
    """The pictures in rows, as JPEG."""
    rows = -(-len(pictures) // COLUMNS)
    sheet = np.full((rows * (SIDE + 4), COLUMNS * (SIDE + 4), 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        top, left = row * (SIDE + 4), column * (SIDE + 4)
        sheet[top : top + SIDE, left : left + SIDE] = picture
    file = io.BytesIO()
    PIL.Image.fromarray(sheet).save(file, "JPEG", quality=85)
    return file.getvalue()


def _table(precision: Precision, classes: Sequence[str]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = ["ap_voc_11point", "ap_voc_area", "ap_coco", "ap_coco_50", "ap_coco_75"]
    writer.writerow(["class", "objects", *columns])
    theirs = precision.coco
    values = (precision.eleven_point.by_class, precision.area.by_class, theirs.by_class,
              theirs.by_class_50, theirs.by_class_75)  # fmt: skip
    for number, name in enumerate(classes):
        cells = [_number(part[number], "") for part in values]
        writer.writerow([name, int(precision.curves.objects[number]), *cells])
    return file.getvalue()


def _curves(precision: Precision, classes: Sequence[str]) -> str:
    rows = {}
    for number, name in enumerate(classes):
        recall, values = precision.curves.recall[number], precision.curves.precision[number]
        kept = np.unique(np.linspace(0, max(0, len(recall) - 1), MOST_POINTS).astype(int))
        kept = kept[: len(recall)]
        rows[name] = {
            "ap_voc_11point": _plain(precision.eleven_point.by_class[number]),
            "objects": int(precision.curves.objects[number]),
            "recall": np.round(recall[kept], 5).tolist() if len(recall) else [],
            "precision": np.round(values[kept], 5).tolist() if len(recall) else [],
        }
    return json.dumps({"classes": rows}) + "\n"


def _number(value: Any, missing: str = "none") -> str:
    return missing if np.isnan(value) else f"{value:.2f}"


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
