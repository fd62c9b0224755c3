"""What a classifier predicts, beside how much of it is right: confusions, and image by image.

Observers of `classification.score`. They stay on the device until all images have been seen, and
are brought together from all processes afterwards.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mobilenext.runtime.distributed import Process

MOST_CLASSES = 4096
"""Classes of the largest matrix that is worth its memory, 134 MB."""


class ConfusionMatrix:
    """Counts of images by their class and the class that they are taken for (top-1).

    Args:
        num_classes: Length of the logits.
        device: Where the batches are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes**2, dtype=torch.int64, device=device)

    def __call__(self, logits: Tensor, ranking: Tensor, labels: Tensor) -> None:
        """Count a batch; see `classification.Observer`."""
        del logits
        # `bincount` would wait for the device, to know its highest value.
        places = labels * self.num_classes + ranking[:, 0]
        self.counts.index_add_(0, places, torch.ones_like(places))

    def total(self, process: Process) -> np.ndarray:
        """Those of all processes, int64 (num_classes, num_classes), rows are the images' classes.

        All processes call it together.
        """
        counts = process.all_reduce_sum(self.counts.clone())
        return counts.view(self.num_classes, self.num_classes).cpu().numpy()


class Predicted(NamedTuple):
    """Predictions of M images of a split, in its order."""

    indices: np.ndarray
    """Their indices in the split, rising, int64 (M,)."""
    classes: np.ndarray
    """The most probable classes of each, falling, int32 (M, at most 5)."""
    probabilities: np.ndarray
    """Softmax of these classes' logits, float32, of the same shape."""


class Predictions:
    """Keeps each image's most probable classes: 40 bytes for one."""

    def __init__(self) -> None:
        self.classes: list[Tensor] = []
        self.probabilities: list[Tensor] = []

    def __call__(self, logits: Tensor, ranking: Tensor, labels: Tensor) -> None:
        """Keep a batch's; see `classification.Observer`."""
        del labels
        self.classes.append(ranking.to(torch.int32))
        self.probabilities.append(logits.float().softmax(1).gather(1, ranking))

    def gathered(self, process: Process, indices: np.ndarray) -> Predicted:
        """Those of all processes, on each of them. All processes call it together.

        Args:
            process: This process.
            indices: Indices of the images that this process has seen, in the order of its batches.

        Raises:
            RuntimeError: It has seen another number of images.
        """
        seen = sum(map(len, self.classes))
        if seen != len(indices):
            raise RuntimeError(f"predicted {seen} images, and the loader read {len(indices)}")
        mine = None
        if seen:
            kept = torch.cat(self.classes), torch.cat(self.probabilities)
            mine = (indices, *(part.cpu().numpy() for part in kept))
        parts = [part for part in process.gather(mine) if part is not None]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = columns[0].argsort()
        return Predicted(*(column[order] for column in columns))
