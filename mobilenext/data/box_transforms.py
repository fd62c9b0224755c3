"""Views of images with boxes: zoom-out, crop, flip and resize are one view; boxes follow it.

A view may show more than its image (`VIEW`): native code repeats the edge there, and the device
fills it (`mobilenext.data.device`). So all of SSD's geometry (arXiv 1512.02325, section 3.6) costs
no more than the decoding of what is seen.
"""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mobilenext.data.boxes import BOX_TARGETS, PADDING, Boxes
from mobilenext.data.encoded import FILTERS, VIEW
from mobilenext.data.sources import Images
from mobilenext.data.transforms import covered, limits_within, mirrored, render_crop
from mobilenext.seeding import uniforms

OVERLAPS = (None, 0.1, 0.3, 0.7, 0.9, -np.inf)
"""Least IoU of a crop with some object, drawn with equal chances; None: the whole canvas. Those of
the MobileNeXt authors' detection code: torchvision's list has 0.5 as well."""

TRIALS = 50
"""Crops that are tried for one overlap."""
ROUNDS = 4
"""Overlaps that are drawn before the whole canvas is taken."""
LEAST_SIDE = 1.0
"""Pixels of a batch: a box with a smaller side is no object to learn from."""

_BEFORE_CROPS = 5
_A_ROUND = 1 + 4 * TRIALS


@dataclass(frozen=True)
class BoxTransform:
    """Maps images with boxes to squares of pixels, and their boxes with them.

    Images are squeezed to squares, as SSD does: width and height are scaled by themselves, with
    antialiasing (the authors' code has none).

    Attributes:
        image_size: Height and width of the result, in pixels.
        boxes: The split's boxes.
        zoom_out: Largest side of the canvas over the image's; 1: no zooming out.
        zoom_out_probability: Probability of a canvas that is larger than the image.
        iou_crop: Whether a part of the canvas is cut out that overlaps with an object.
        hflip: Probability of a horizontal flip.
        interpolation: bilinear or bicubic.
    """

    image_size: int
    boxes: Boxes
    zoom_out: float = 1.0
    zoom_out_probability: float = 0.5
    iou_crop: bool = False
    hflip: float = 0.0
    interpolation: str = "bilinear"

    finish = None
    fill = None  # on the device, after colours have been distorted

    def views(
        self,
        sizes: np.ndarray,
        indices: np.ndarray,
        seed: int,
        epoch: int,
        own: np.ndarray | None = None,
    ) -> np.ndarray:
        """The view of each image; see `Transform.views`."""
        own = indices if own is None else own
        views = np.zeros(len(sizes), VIEW)
        views["filter"] = FILTERS.index(self.interpolation)
        views["box"][:, 2:] = sizes
        if self.zoom_out > 1 or self.iou_crop or self.hflip:
            count = _BEFORE_CROPS + (ROUNDS * _A_ROUND if self.iou_crop else 0)
            draws = uniforms(indices, count, "boxes", seed, epoch)
            views["flip"] = draws[:, 0] < self.hflip
            self._zoom_out(views, sizes, draws)
            if self.iou_crop:
                self._crop(views, own, draws[:, _BEFORE_CROPS:])
        views["limits"] = limits_within(views["box"], sizes)
        return views

    def _zoom_out(self, views: np.ndarray, sizes: np.ndarray, draws: np.ndarray) -> None:
        zoomed = (draws[:, 1] < self.zoom_out_probability) & (self.zoom_out > 1)
        ratio = np.where(zoomed, 1 + (self.zoom_out - 1) * draws[:, 2], 1)[:, None]
        corner = -draws[:, 3:5] * (sizes * ratio - sizes)
        views["box"] = np.concatenate([corner, corner + sizes * ratio], axis=1)

    def _crop(self, views: np.ndarray, own: np.ndarray, draws: np.ndarray) -> None:
        rounds = draws.reshape(len(draws), ROUNDS, _A_ROUND)
        chosen = (rounds[:, :, 0] * len(OVERLAPS)).astype(int)
        for position, index in enumerate(own.tolist()):
            boxes = self.boxes.boxes[self.boxes.of(index)]
            if not len(boxes):
                continue
            canvas = views["box"][position]
            for number, choice in enumerate(chosen[position].tolist()):
                least = OVERLAPS[choice]
                if least is None:
                    break
                crop = _overlapping(canvas, boxes, least, rounds[position, number, 1:])
                if crop is not None:
                    views["box"][position] = crop
                    break

    def targets(self, images: Images, indices: np.ndarray, views: np.ndarray) -> Tensor:
        """Where the boxes of the images are seen: `BOX_TARGETS`, float32 (N, 1 + K, 6).

        An object is seen if its centre is, and if it has `LEAST_SIDE` pixels.
        """
        del images
        size, every = self.image_size, self.boxes.taken(indices)
        counts, firsts = np.diff(every.starts), every.starts[:-1]
        result = np.zeros((len(indices), 1 + counts.max(initial=1), BOX_TARGETS), np.float32)
        result[:, 0, :4] = covered(views, size)
        result[:, 0, 4] = indices
        result[:, 1:, 4] = PADDING
        owner = np.repeat(np.arange(len(indices)), counts)
        boxes, frame = every.boxes.astype(np.float64), views["box"][owner]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        seen = ((centre > frame[:, :2]) & (centre < frame[:, 2:])).all(1)
        scale = size / (frame[:, 2:] - frame[:, :2])
        there = ((boxes - np.tile(frame[:, :2], 2)) * np.tile(scale, 2)).clip(0, size)
        there = mirrored(there, views["flip"][owner] != 0, size)
        seen &= (there[:, 2:] - there[:, :2] >= LEAST_SIDE).all(1)
        number = np.cumsum(seen)
        before = np.concatenate([[0], number])[firsts[owner]]
        row = number - before  # from 1 on
        result[owner[seen], row[seen], :4] = there[seen]
        result[owner[seen], row[seen], 4] = every.labels[seen]
        result[owner[seen], row[seen], 5] = every.difficult[seen]
        return torch.from_numpy(result)

    def keep_context(self, views: np.ndarray) -> np.ndarray:
        """No view keeps its context; see `Transform.keep_context`."""
        return np.zeros(len(views), bool)

    def render(self, image: PIL.Image.Image, view: np.void) -> np.ndarray:
        """See `Transform.render`."""
        return render_crop(image, view, self.image_size)


def _overlapping(
    canvas: np.ndarray, boxes: np.ndarray, least: float, draws: np.ndarray
) -> np.ndarray | None:
    """The first of the drawn crops that overlaps with an object as asked, and has its centre.

    Args:
        canvas: x0, y0, x1, y1, which crops are parts of.
        boxes: Objects in the same pixels, (M, 4).
        least: Least IoU with one of them.
        draws: Uniform numbers, (4 * TRIALS,).

    Returns:
        x0, y0, x1, y1 in whole pixels; None if none of the crops does.
    """
    whole = canvas[2:] - canvas[:2]
    shares = draws.reshape(4, TRIALS).T
    extent = whole * (0.3 + 0.7 * shares[:, :2])
    corner = canvas[:2] + shares[:, 2:] * (whole - extent)
    crops = np.round(np.concatenate([corner, corner + extent], axis=1))
    extent = crops[:, 2:] - crops[:, :2]
    fits = (extent[:, 1] >= 0.5 * extent[:, 0]) & (extent[:, 1] <= 2 * extent[:, 0])
    fits &= (extent >= 1).all(1)
    crops, extent = crops[fits], extent[fits]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    low, high = crops[:, None, :2], crops[:, None, 2:]
    seen = np.asarray((centre > low) & (centre < high)).all(axis=2)
    good = np.logical_or.reduce(seen, axis=1)
    if least > -np.inf:
        common = np.minimum(high, boxes[:, 2:]) - np.maximum(low, boxes[:, :2])
        shared = common.clip(0).prod(2)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        good &= (shared / (extent.prod(1)[:, None] + areas - shared)).max(1) >= least
    return crops[good.argmax()] if good.any() else None
