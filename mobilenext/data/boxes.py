"""Boxes of objects: those of a split in a few arrays, and the images that they belong to.

Coordinates are x0, y0, x1, y1 in pixels of the image, from its top left corner. A batch's targets
are one padded tensor (`BOX_TARGETS`), so that they are sliced, pinned and copied as labels are.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mobilenext.data.pillow import decode_bytes
from mobilenext.data.sources import ListedFiles

POLICIES = ("drop", "clip", "error")
"""What to do with a box that is not inside of its image; values of `data.on_bad_box`."""

BOX_TARGETS = 6
"""Columns of a batch's targets, float32 (N, 1 + K, 6), K the most boxes that an image of the batch
has, at least 1. Row 0: where the image lies in the batch's pixels (x0, y0, x1, y1; the rest has to
be filled), the image's index in the split, 0. Further rows: x0, y0, x1, y1 in the batch's pixels,
the class, 1 if the object is difficult; a class of -1 is padding."""

PADDING = -1


@dataclass(frozen=True)
class Boxes:
    """The boxes of all images of a split, one image after the other.

    Attributes:
        boxes: x0, y0, x1, y1 in pixels of the image, float32 (M, 4); x0 < x1 and y0 < y1.
        labels: Class indices from 0 on, int32 (M,); the background is no class of the data.
        difficult: Objects that need not be found: VOC's difficult ones, COCO's crowds, (M,) bool.
        starts: Where the boxes of each image begin, int64 (N + 1,).
        sizes: Width and height of each image in pixels, int32 (N, 2).
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.starts) - 1

    def of(self, index: int) -> slice:
        """Where the boxes of an image lie."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def without_difficult(self) -> "Boxes":
        """The same images without their difficult objects."""
        kept = ~self.difficult
        before = np.concatenate([[0], np.cumsum(kept)])
        return Boxes(
            self.boxes[kept], self.labels[kept], self.difficult[kept], before[self.starts],
            self.sizes,
        )  # fmt: skip

    @property
    def checksum(self) -> int:
        """CRC-32 of all that it says of the images."""
        parts = (self.boxes, self.labels, self.difficult, self.starts, self.sizes)
        result = 0
        for part in parts:
            result = zlib.crc32(np.ascontiguousarray(part).tobytes(), result)
        return result

    def taken(self, images: np.ndarray) -> "Boxes":
        """The boxes of some images, (n,) indices, as a split of their own."""
        counts = np.diff(self.starts)[images]
        starts = np.concatenate([[0], np.cumsum(counts)])
        chosen = np.repeat(self.starts[images] - starts[:-1], counts) + np.arange(starts[-1])
        return Boxes(
            self.boxes[chosen], self.labels[chosen], self.difficult[chosen], starts,
            self.sizes[images],
        )  # fmt: skip


class BoxImages(ListedFiles):
    """Image files with boxes: one split.

    Args:
        root: Folder that the paths are below.
        paths: Paths below `root`, bytes (N,).
        boxes: Their boxes.

    Attributes:
        labels: The classes of all boxes, one image after the other.
    """

    def __init__(self, root: Path, paths: np.ndarray, boxes: Boxes) -> None:
        super().__init__(root, paths)
        self.boxes, self.labels = boxes, boxes.labels

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, np.ndarray]:
        """RGB image, and the classes of its boxes."""
        image = decode_bytes(self.read(index), self.name(index))
        return image, self.labels[self.boxes.of(index)]

    def targets(self, indices: np.ndarray) -> Tensor:
        """Indices of the images themselves, int64 (N,); where boxes lie is up to the view."""
        return torch.from_numpy(np.asarray(indices, np.int64).copy())


@dataclass(frozen=True)
class BoxData:
    """A data set of images with boxes.

    Attributes:
        train: The training split; images that have difficult objects only are not in it.
        val: The split that is evaluated on.
        classes: Names of the classes, in the order of the labels, without the background.
        notes: Warnings about the data, a sentence each.
        counts: Numbers for result.json: images, objects, and what was left out, by split.
        protocol: Name of the evaluation that the data set is known by: voc or coco.
        split_name: What a table may call the two splits, for instance VOC07+12; None if they are
            not exactly those.
        problems: What the notes are about, a line for each image and box.
    """

    train: BoxImages
    val: BoxImages
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    protocol: str = "voc"
    split_name: str | None = None
    problems: tuple[str, ...] = ()
