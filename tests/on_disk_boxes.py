"""A small data set in VOC's layout: coloured rectangles on noise, one class for each colour."""

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import PIL.Image

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (30, 30, 230)}


def voc_tree(root: Path, train: int = 12, val: int = 6, seed: int = 0) -> Path:
    """Write images with one or two rectangles each; returns the VOCdevkit folder."""
    folder = root / "VOC2007"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    draws = np.random.default_rng(seed)
    for split, count in (("trainval", train), ("test", val)):
        names = [f"{split}_{number}" for number in range(count)]
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            _write(folder, name, draws)
    return root


def _write(folder: Path, name: str, draws: np.random.Generator) -> None:
    width, height = draws.integers(80, 140, 2).tolist()
    pixels = draws.integers(90, 130, (height, width, 3)).astype(np.uint8)
    objects = []
    for number in range(int(draws.integers(1, 3))):
        colour = list(COLOURS)[int(draws.integers(3))]
        w, h = draws.integers(25, 45, 2).tolist()
        # Two never overlap: one is on the left, one on the right.
        half = width // 2
        x = int(draws.integers(0, max(1, half - w))) + number * half
        y = int(draws.integers(0, height - h))
        x1, y1 = min(width, x + w), y + h
        pixels[y:y1, x:x1] = COLOURS[colour]
        edges = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        hard = int(number == 1 and draws.random() < 0.2)
        objects.append(
            f"<object><name>{colour}</name><difficult>{hard}</difficult>"
            f"<bndbox>{edges}</bndbox></object>"
        )
    PIL.Image.fromarray(pixels).save(folder / f"JPEGImages/{name}.jpg", quality=92)
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    text = f"<annotation><filename>{name}.jpg</filename>{size}{''.join(objects)}</annotation>"
    (folder / f"Annotations/{name}.xml").write_text(text)


def coco_tree(root: Path, voc: Path) -> Path:
    """The images of a VOC tree in COCO's layout, with a gap in the numbers of the categories."""
    source = voc / "VOC2007"
    ids = {name: 10 * number + 3 for number, name in enumerate(COLOURS)}
    (root / "annotations").mkdir(parents=True)
    for split, listed in (("train2017", "trainval"), ("val2017", "test")):
        (root / split).mkdir()
        images, annotations = [], []
        for number, name in enumerate(
            (source / f"ImageSets/Main/{listed}.txt").read_text().split()
        ):
            with PIL.Image.open(source / f"JPEGImages/{name}.jpg") as image:
                width, height = image.size
            shutil.copy(source / f"JPEGImages/{name}.jpg", root / split)
            images.append({"id": number, "file_name": f"{name}.jpg", "width": width,
                           "height": height})  # fmt: skip
            found = ET.parse(source / f"Annotations/{name}.xml").getroot()
            for item in found.iter("object"):
                x0, y0, x1, y1 = (
                    float(item.findtext(f"bndbox/{key}", "")) - 1
                    for key in ("xmin", "ymin", "xmax", "ymax")
                )
                annotations.append({
                    "id": len(annotations) + 1, "image_id": number, "iscrowd": 0,
                    "category_id": ids[item.findtext("name", "")],
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
                })  # fmt: skip
        categories = [{"id": ids[name], "name": name} for name in COLOURS]
        text = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(text))
    return root
