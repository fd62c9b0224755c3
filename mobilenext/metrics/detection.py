"""Detection: the loss of training, and average precision for any number of processes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenext.data import BoxImages, DeviceBatches, Loader
from mobilenext.data.boxes import PADDING
from mobilenext.metrics.average_precision import (
    CocoAP,
    Detections,
    Truth,
    VocAreaAP,
    VocCurves,
    VocElevenPointAP,
    coco,
    voc_area,
    voc_curves,
    voc_eleven_point,
)
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import ieee_float32


class Detector(Protocol):
    """What a network has to have beside its `forward`; see `models.detection.ssdlite.SSDLite`."""

    anchors: Tensor
    """Default boxes, x0, y0, x1, y1 in pixels of its images, (A, 4)."""

    def detections(self, logits: Tensor, codes: Tensor) -> list[dict[str, Tensor]]:
        """What is found in each image: boxes, scores, labels; the surest first."""
        ...


class MultiBoxLoss:
    """SSD's loss (arXiv 1512.02325, section 2.2), for a whole batch at once.

    Smooth L1 of the codes of default boxes that match an object, and cross-entropy of those and of
    the hardest others, `negatives` times as many in each image; both over the number of matches in
    the images of one forward pass: with several processes, or micro-batches, each divides by its
    own number, as the authors' code does. A default box matches the object that it overlaps most,
    if IoU is at least `threshold`; each object also has the default box that overlaps it most, and
    of several objects that claim one the last gets it. torchvision's SSD computes the same image by
    image, which makes a GPU wait twice for each; shapes here don't depend on the objects, and
    nothing waits.

    Args:
        detector: The bare network, whose default boxes these are.
        negatives: Background boxes for each match.
        threshold: Least IoU of a match.
    """

    def __init__(self, detector: Detector, negatives: float = 3.0, threshold: float = 0.5) -> None:
        self.detector, self.negatives, self.threshold = detector, negatives, threshold

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, None]:
        """The loss of a batch; there is no count of what was right.

        Args:
            network: As training calls it; gives logits (N, A, 1 + classes) and codes (N, A, 4).
            images: (N, 3, H, W).
            targets: `BOX_TARGETS`, (N, 1 + K, 6).
        """
        logits, codes = network(images)
        return self.of_outputs(logits.float(), codes.float(), targets), None

    def of_outputs(self, logits: Tensor, codes: Tensor, targets: Tensor) -> Tensor:
        """The loss of outputs, a scalar; see `__call__`."""
        anchors, boxes = self.detector.anchors, targets[:, 1:, :4]
        real = targets[:, 1:, 4] != PADDING
        matched = match(anchors, boxes, real, self.threshold)
        positive = matched >= 0
        object_of = matched.clamp_min(0)
        matches = positive.sum()

        # Where nothing matches, a box that is the default box itself: its codes are finite.
        theirs = boxes.gather(1, object_of[..., None].expand(-1, -1, 4))
        theirs = torch.where(positive[..., None], theirs, anchors)
        moves = F.smooth_l1_loss(codes, encoded(theirs, anchors), reduction="none").sum(2)

        labels = (1 + targets[:, 1:, 4]).long().gather(1, object_of)
        labels = torch.where(positive, labels, 0)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = losses.view_as(labels)
        hardness = losses.detach().masked_fill(positive, -torch.inf)
        ranks = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        hard = ranks < self.negatives * positive.sum(1, keepdim=True)
        counted = torch.where(positive | (hard & ~positive), losses, 0)
        return (torch.where(positive, moves, 0).sum() + counted.sum()) / matches.clamp_min(1)


def encoded(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Codes of boxes (N, A, 4): how default boxes (A, 4) have to move, over SSD's variances.

    torchvision's `BoxCoder.encode_single` gives the same and copies its weights to the device at
    each call, which a GPU waits for.
    """
    sides = anchors[:, 2:] - anchors[:, :2]
    wanted = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + 0.5 * wanted) - (anchors[:, :2] + 0.5 * sides)
    return torch.cat([10.0 * shift / sides, 5.0 * (wanted / sides).log()], dim=-1)


def match(anchors: Tensor, boxes: Tensor, real: Tensor, threshold: float) -> Tensor:
    """The object that each default box has to find, or -1: int64 (N, A).

    Args:
        anchors: Default boxes, (A, 4).
        boxes: Objects of each image, (N, K, 4).
        real: Whether each is an object, not padding, (N, K).
        threshold: Least IoU, but for the best default box of each object.
    """
    overlaps = torch.where(real[..., None], _iou(boxes, anchors), -1)
    most, matched = overlaps.max(1)
    matched = torch.where(most >= threshold, matched, -1)
    best = overlaps.argmax(2)
    numbers = torch.arange(boxes.shape[1], device=boxes.device).expand_as(best)
    numbers = torch.where(real, numbers, -1)
    # An index that comes twice has no order on a GPU; a maximum needs none.
    claimed = torch.full_like(matched, -1).scatter_reduce_(1, best, numbers, "amax")
    return torch.where(claimed >= 0, claimed, matched)


def _iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of boxes (N, K, 4) and default boxes (A, 4): (N, K, A)."""
    low = torch.maximum(boxes[..., None, :2], anchors[:, :2])
    high = torch.minimum(boxes[..., None, 2:], anchors[:, 2:])
    common = (high - low).clamp_min(0).prod(-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)[..., None]
    return common / (areas + (anchors[:, 2:] - anchors[:, :2]).prod(-1) - common).clamp_min(1e-9)


@dataclass(frozen=True)
class Precision:
    """What detections of a split are worth.

    Attributes:
        scores: Numbers by name. `ap_voc_11point` and `ap_voc_area`: VOC's at IoU 0.5 with its +1
            pixel, by 11 points (VOC2007) and by area (VOC2010); `ap_coco`, `ap_coco_50` and
            `ap_coco_75`: COCO's; all in per cent. `loss`, `count` and `unreadable` as in
            `classification.score`, `detections`: how many.
        eleven_point: VOC2007's by class.
        area: VOC2010's by class.
        coco: COCO's by class.
        curves: Precision over recall, by VOC's rules.
        detections: All of them, in pixels of the images.
    """

    scores: dict[str, Any]
    eleven_point: VocElevenPointAP
    area: VocAreaAP
    coco: CocoAP
    curves: VocCurves
    detections: Detections


@dataclass
class _Seen:
    """What a process has of one network: each batch's loss, and all detections."""

    losses: list[float] = field(default_factory=list)
    found: list[np.ndarray] = field(default_factory=list)


def score_detections(
    network: nn.Module,
    loader: Loader,
    to_device: DeviceBatches,
    process: Process,
    images: BoxImages,
    classes: int,
    loss: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Any]],
    shown: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Precision:
    """What one detector is worth whose evaluation nobody interrupts; see `score_all_detections`."""
    scores = score_all_detections(
        {"val": network}, loader, to_device, process, images, classes, loss, shown=shown
    )
    assert scores is not None
    return scores["val"]


@torch.no_grad()
def score_all_detections(
    networks: Mapping[str, nn.Module],
    loader: Loader,
    to_device: DeviceBatches,
    process: Process,
    images: BoxImages,
    classes: int,
    loss: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Any]],
    interrupted: Callable[[], bool] = lambda: False,
    shown: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, Precision] | None:
    """Average precision of detectors on a split: each image exactly once, decoded once for all.

    The processes share the split by whole batches, so that an image meets the same others in any
    case, and all that was found is brought together: the result is the same bits for any number of
    processes.

    Args:
        networks: Bare networks by name, the same on all processes; are left in evaluation mode.
            Compute in float32.
        loader: This process's batches, shared as a whole.
        to_device: From host batches to normalised images.
        process: This process.
        images: The split.
        classes: Number of classes, without the background.
        loss: Loss of a network for images and targets.
        interrupted: Asked before each batch; where it returns True, this process gives up.
        shown: Passes this process's batches on, and shows how far they are.

    Returns:
        By the network's name. None if any process gave up.

    Raises:
        RuntimeError: The processes saw another number of images than the split has.
    """
    for network in networks.values():
        network.eval()
    gave_up = interrupted()
    batches: list[np.ndarray] = []
    seen = {name: _Seen() for name in networks}
    for pixels, host_targets in to_device.ahead(shown(loader.epoch(0))):
        gave_up = gave_up or interrupted()
        if gave_up:
            break
        inputs, targets = to_device(pixels, host_targets)
        numbers = targets[:, 0, 4].long().cpu().numpy()
        batches.append(numbers)
        size = np.array([inputs.shape[3], inputs.shape[2]] * 2)
        for name, network in networks.items():
            detector: Any = network
            with ieee_float32():
                logits, codes = network(inputs)
                value, _ = loss(lambda _, got=(logits, codes): got, inputs, targets)  # pyright: ignore[reportArgumentType]
            seen[name].losses.append(float(value))
            for number, one in zip(numbers, detector.detections(logits, codes), strict=True):
                scale = np.tile(images.boxes.sizes[number], 2) / size
                seen[name].found.append(_rows(int(number), one, scale))
    every = process.gather((batches, seen, loader.missed, gave_up))
    if any(given_up for *_, given_up in every):
        return None
    missed = sum(count for _, _, count, _ in every)
    count = sum(len(numbers) for theirs, *_ in every for numbers in theirs)
    if count + missed != len(images) or not count:
        raise RuntimeError(
            f"evaluated {count} images and could not read {missed}, the split has {len(images)}"
        )
    numbers = np.concatenate([numbers for theirs, *_ in every for numbers in theirs])
    truth = objects_of(images, np.sort(numbers))
    scores = {}
    for name in networks:
        losses = sorted(
            (int(numbers[0]), value, len(numbers))
            for theirs, ours, *_ in every
            for numbers, value in zip(theirs, ours[name].losses, strict=True)
        )
        mean_loss = sum(value * length for _, value, length in losses) / count
        rows = np.concatenate(
            [np.zeros((0, 8)), *(part for _, ours, *_ in every for part in ours[name].found)]
        )
        detections = Detections(
            rows[:, 0].astype(np.int64), rows[:, 1:5], rows[:, 5], rows[:, 6].astype(np.int64),
            rows[:, 7].astype(np.int64),
        )  # fmt: skip
        scores[name] = _measured(detections, truth, classes, mean_loss, count, missed)
    return scores


def objects_of(images: BoxImages, numbers: np.ndarray) -> Truth:
    """The objects of some images of a split, by their indices (N,)."""
    boxes = images.boxes.taken(numbers)
    owner = np.repeat(numbers, np.diff(boxes.starts))
    return Truth(owner, boxes.boxes, boxes.labels, boxes.difficult)


def _rows(number: int, found: dict[str, Tensor], scale: np.ndarray) -> np.ndarray:
    """An image's detections as float64 rows: image, box in its pixels, score, label, rank."""
    boxes = found["boxes"].cpu().double().numpy() * scale
    rows = np.empty((len(boxes), 8))
    rows[:, 0], rows[:, 1:5], rows[:, 7] = number, boxes, np.arange(len(boxes))
    rows[:, 5] = found["scores"].cpu().double().numpy()
    rows[:, 6] = found["labels"].cpu().numpy()
    return rows


def _measured(
    detections: Detections, truth: Truth, classes: int, loss: float, count: int, missed: int
) -> Precision:
    curves = voc_curves(detections, truth, classes, inclusive=True)
    eleven, area = voc_eleven_point(curves), voc_area(curves)
    theirs = coco(detections, truth, classes)
    scores = {
        "ap_voc_11point": eleven.mean,
        "ap_voc_area": area.mean,
        "ap_coco": theirs.mean,
        "ap_coco_50": theirs.mean_50,
        "ap_coco_75": theirs.mean_75,
        "loss": loss,
        "count": count,
        "unreadable": missed,
        "detections": len(detections),
    }
    return Precision(scores, eleven, area, theirs, curves, detections)
