"""A small data set in VOC's layout: coloured rectangles on noise, one class for each colour."""

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
