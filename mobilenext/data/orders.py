"""Orders of an epoch's images: permutations that depend on (length, seed, epoch) and nothing else.

`shuffled` is a permutation of all images. `blocks` keeps neighbours near each other, for storage
that likes large pieces: blocks of neighbouring images come in a random order, and images are
shuffled within windows of blocks. So a window's images lie in some 32 pieces of the storage, and a
batch has images of nearly all of them.
"""

import numpy as np
import torch
from torch import Tensor

from mobilenext.data.sources import ClassTargets, Images
from mobilenext.errors import InputError
from mobilenext.seeding import generator

BLOCK = 1024
"""Neighbouring images of a block; the last block of a split may have fewer."""
WINDOW = 32
"""Blocks that are shuffled together, at least: windows share the blocks evenly, so that none is
much smaller than the others, and a split of fewer than two windows is one."""
MOST_ALIKE = 0.05
"""Highest `likeness` with which blocks may be used: a block then has images of twenty classes or
so, and a window those of some hundred."""


def epoch_order(
    length: int, seed: int, epoch: int, order: str = "shuffled", purpose: str = "order"
) -> Tensor:
    """The order of an epoch's images: a permutation of range(length), int64.

    Args:
        length: Number of images.
        seed: The run's seed.
        epoch: The epoch.
        order: shuffled or blocks.
        purpose: What is drawn; keeps several orders of one epoch apart.
    """
    draws = generator(purpose, seed, epoch)
    if order == "shuffled":
        return torch.randperm(length, generator=draws)
    blocks = torch.arange(length).split(BLOCK)
    places = torch.randperm(len(blocks), generator=draws)
    windows = []
    for some in places.tensor_split(max(1, len(blocks) // WINDOW)):
        images = torch.cat([blocks[place] for place in some.tolist()])
        windows.append(images[torch.randperm(len(images), generator=draws)])
    return torch.cat(windows)


def check_order(order: str, images: Images) -> None:
    """Raise `InputError` if images of one class lie together and `order` would keep them so.

    A window of blocks would then have images of few classes, which neither batch norms nor the
    optimiser take well. Splits of one window are shuffled as a whole, and those whose targets are
    no classes are not looked at.

    Args:
        order: shuffled or blocks.
        images: The training split.
    """
    if order == "shuffled" or not isinstance(images, ClassTargets):
        return
    if len(images.labels) <= (2 * WINDOW - 1) * BLOCK:
        return
    alike = likeness(images.labels)
    if alike > MOST_ALIKE:
        raise InputError(
            f"data.order=blocks: expected neighbouring images to be of different classes, got a "
            f"split in which {BLOCK:,} neighbours are alike by {alike:.2f} (0: shuffled; up to 1: "
            "sorted by class), so that batches would have few classes; make a pack in another "
            "order (python scripts/prepare_imagenet.py source=... output=... order=shuffled), or "
            "use data.order=shuffled"
        )


def likeness(labels: np.ndarray) -> float:
    """How much likelier than by chance two images of a block are of one class.

    0 in a shuffled split, whatever its proportions; 1 if each block is of one class, as where large
    classes are sorted (0.73 for 1,000 classes of 1,281 images).

    Args:
        labels: The class of each image, (N,), of at least one block.
    """
    blocks = labels[: len(labels) // BLOCK * BLOCK].reshape(-1, BLOCK)
    chance = _pairs_of_one_class(labels)
    found = float(np.mean([_pairs_of_one_class(block) for block in blocks]))
    return (found - chance) / (1 - chance) if chance < 1 else 0.0


def _pairs_of_one_class(labels: np.ndarray) -> float:
    """The share of all pairs of different images that are of one class."""
    counts = np.unique(labels, return_counts=True)[1].astype(np.float64)
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))
