"""Average precision of detections, by three protocols that are never converted into each other.

- VOC's 11 points (`voc_eleven_point`): Everingham et al., "The PASCAL Visual Object Classes (VOC)
  Challenge", IJCV 2010; VOC2007's numbers.
- VOC's area (`voc_area`): that of the devkits from VOC2010 on.
- COCO's (`coco`): Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and its
  pycocotools, area range "all".

Each has a type of its own, so that a report can't take one for the other. What comes out is a
function of the sets of detections and objects: detections stand in the order (-score, image, rank),
however many processes made them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

VOC_OVERLAP = 0.5
"""IoU from which on VOC takes an object as found."""

COCO_OVERLAPS = np.linspace(0.5, 0.95, 10)
"""IoU from which on COCO takes an object as found: the mean over these is its AP."""

COCO_DETECTIONS = 100
"""Detections of a class in an image that COCO looks at, best first."""

# Both as the evaluators that are in use have them: 0.1 * 3 is a little above 0.3, so that 3 objects
# of 10 don't reach it. A rounder 0.3 gives other numbers than those that are published.
_ELEVEN_RECALLS = np.arange(0.0, 1.1, 0.1)
_COCO_RECALLS = np.linspace(0.0, 1.0, 101)

PAIRS_AT_ONCE = 1 << 20
"""Pairs of a detection and an object whose overlaps are computed together; bounds the memory."""


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in some images, in any order.

    Attributes:
        images: Index of the image in the split, integers (D,), from 0 on.
        boxes: x0, y0, x1, y1 in pixels of the original image, floats (D, 4).
        scores: (D,); the higher, the surer.
        labels: Class indices without background, integers (D,), from 0 on.
        ranks: Place among the detections of its image, 0 the first, integers (D,); decides between
            equal scores.

    Raises:
        ValueError: A shape or type is another, a number is not finite, an image or a class is
            negative, or a rank occurs twice in an image.
    """

    images: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    ranks: np.ndarray

    def __post_init__(self) -> None:
        _check_boxes("detections", self.images, self.boxes, self.labels)
        _check_array("detections.scores", self.scores, (len(self.images),), "fiu")
        _check_array("detections.ranks", self.ranks, (len(self.images),), "iu")
        order = np.lexsort((self.ranks, self.images))
        images, ranks = self.images[order], self.ranks[order]
        twice = np.flatnonzero((images[1:] == images[:-1]) & (ranks[1:] == ranks[:-1]))
        if len(twice):
            raise ValueError(
                f"detections: expected each rank once in an image, got rank {ranks[twice[0]]} "
                f"twice in image {images[twice[0]]} (was it evaluated twice?)"
            )

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Truth:
    """The objects of the images that were evaluated.

    Where equal overlaps compete, the order of an image's objects decides: it has to be that of the
    split.

    Attributes:
        images: Index of the image in the split, integers (M,), from 0 on.
        boxes: x0, y0, x1, y1 in pixels of the original image, floats (M, 4).
        labels: Class indices without background, integers (M,), from 0 on.
        difficult: Objects that need not be found: VOC's difficult ones, COCO's crowds, bool (M,).

    Raises:
        ValueError: A shape or type is another, a number is not finite, or an image or a class is
            negative.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray

    def __post_init__(self) -> None:
        _check_boxes("truth", self.images, self.boxes, self.labels)
        _check_array("truth.difficult", self.difficult, (len(self.images),), "b")

    def __len__(self) -> int:
        """Number of objects, difficult ones too."""
        return len(self.images)


@dataclass(frozen=True, eq=False)
class VocCurves:
    """Precision over recall at IoU 0.5, by VOC's rules, from which both of VOC's APs follow.

    A detection is compared with that object of its class and image which it overlaps most. If that
    one is difficult, the detection counts neither way; if a better one has claimed it, it is wrong.

    Attributes:
        recall: For each class the recall, in [0, 1] and rising, of its best 1, 2, ... detections
            that count, float64; empty for a class without objects.
        precision: Likewise, in [0, 1].
        objects: Objects of each class, without difficult ones, int64 (classes,).
        inclusive: Whether x1 and y1 belong to the box, so that its width is x1 - x0 + 1.
    """

    recall: tuple[np.ndarray, ...]
    precision: tuple[np.ndarray, ...]
    objects: np.ndarray
    inclusive: bool


@dataclass(frozen=True, eq=False)
class _VocAP:
    """An average precision by VOC's rules.

    Attributes:
        by_class: In per cent, float64 (classes,); nan for a class without objects.
        mean: Over the classes with objects, in per cent; nan if there are none.
        inclusive: As in `VocCurves`.
    """

    by_class: np.ndarray
    mean: float
    inclusive: bool


class VocElevenPointAP(_VocAP):
    """VOC2007's AP: the mean of the best precision at recall 0, 0.1, ..., 1 or beyond."""


class VocAreaAP(_VocAP):
    """VOC2010's AP: the area below the best precision at each recall or beyond."""


@dataclass(frozen=True, eq=False)
class CocoAP:
    """COCO's AP, area range "all", in per cent.

    Attributes:
        by_class: Mean over IoU 0.50, 0.55, ..., 0.95, float64 (classes,); nan for a class without
            objects.
        by_class_50: At IoU 0.50.
        by_class_75: At IoU 0.75.
        mean: Of `by_class` over the classes with objects; nan if there are none.
        mean_50: Of `by_class_50`.
        mean_75: Of `by_class_75`.
        objects: Objects of each class, without crowds, int64 (classes,).
    """

    by_class: np.ndarray
    by_class_50: np.ndarray
    by_class_75: np.ndarray
    mean: float
    mean_50: float
    mean_75: float
    objects: np.ndarray


def voc_curves(detections: Detections, truth: Truth, classes: int, *, inclusive: bool) -> VocCurves:
    """Precision over recall of each class, by VOC's rules at IoU 0.5.

    Args:
        detections: Of the evaluated images.
        truth: Objects of the evaluated images.
        classes: Number of classes, without background.
        inclusive: True for VOC's own convention, by which x1 and y1 belong to the box, so that its
            width is x1 - x0 + 1; False for x1 - x0. It is worth some tenths of a point.

    Raises:
        ValueError: A label is not below `classes`.
    """
    _check_labels(detections, truth, classes)
    found = _sorted(detections)
    pairs = _overlapping(found, truth, classes, VOC_OVERLAP, one=float(inclusive))
    # The best object of each detection, the first of equal ones; detections rise.
    order = np.lexsort((pairs.objects, -pairs.overlaps, pairs.detections))
    matched, first = np.unique(pairs.detections[order], return_index=True)
    best = pairs.objects[order][first]
    # -1: counts neither way, 0: wrong, 1: right.
    verdicts = np.zeros(len(found), np.int8)
    verdicts[matched[np.unique(best, return_index=True)[1]]] = 1
    verdicts[matched[truth.difficult[best]]] = -1

    objects = _objects(truth, classes)
    recalls, precisions = [], []
    for members, count in zip(_by_class(found.labels, classes), objects.tolist(), strict=True):
        counted = verdicts[members]
        counted = counted[counted >= 0] if count else counted[:0]
        right = np.cumsum(counted, dtype=np.int64)
        recalls.append(right / max(count, 1))
        precisions.append(right / np.arange(1, len(right) + 1))
    return VocCurves(tuple(recalls), tuple(precisions), objects, inclusive)


def voc_eleven_point(curves: VocCurves) -> VocElevenPointAP:
    """VOC2007's 11-point AP; equal to chainercv's `eval_detection_voc` with `use_07_metric`.

    Args:
        curves: What `voc_curves` made.
    """
    by_class = np.full(len(curves.objects), np.nan)
    for index in np.flatnonzero(curves.objects):
        # One more 0: a recall that is never reached.
        best = np.append(_best_beyond(curves.precision[index]), 0.0)
        reached = np.searchsorted(curves.recall[index], _ELEVEN_RECALLS, side="left")
        by_class[index] = 100 * best[reached].mean()
    return VocElevenPointAP(by_class, _mean(by_class), curves.inclusive)


def voc_area(curves: VocCurves) -> VocAreaAP:
    """VOC2010's AP, the whole area; equal to chainercv's `eval_detection_voc`.

    Args:
        curves: What `voc_curves` made.
    """
    by_class = np.full(len(curves.objects), np.nan)
    for index in np.flatnonzero(curves.objects):
        steps = np.diff(curves.recall[index], prepend=0.0)
        by_class[index] = 100 * (steps * _best_beyond(curves.precision[index])).sum()
    return VocAreaAP(by_class, _mean(by_class), curves.inclusive)


def coco(detections: Detections, truth: Truth, classes: int) -> CocoAP:
    """COCO's AP; equal to pycocotools' `COCOeval` with all objects in its area range "all".

    The best `COCO_DETECTIONS` detections of each class in each image take, one after the other, the
    free object that they overlap most. Those that find none, but lie in a crowd, count neither way;
    a crowd takes any number, and what a detection shares with it is put over the detection's own
    area. Width is x1 - x0.

    Args:
        detections: Of the evaluated images.
        truth: Objects of the evaluated images; `difficult` are crowds.
        classes: Number of classes, without background.

    Raises:
        ValueError: A label is not below `classes`.
    """
    _check_labels(detections, truth, classes)
    found = _sorted(detections)
    places = _places(_keys(found.images, found.labels, classes))
    kept = places < COCO_DETECTIONS
    found, places = found.taken(kept), places[kept]
    verdicts = _coco_verdicts(found, places, truth, classes)

    objects = _objects(truth, classes)
    # (thresholds, classes)
    precisions = np.full((len(COCO_OVERLAPS), classes), np.nan)
    for index, members in enumerate(_by_class(found.labels, classes)):
        if not objects[index]:
            continue
        of_class = verdicts[:, members]
        right = np.cumsum(of_class == 1, axis=1)
        counted = np.cumsum(of_class >= 0, axis=1)
        best = _best_beyond(right / np.maximum(counted, 1))
        # One more 0: a recall that is never reached.
        best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
        for row, recall in enumerate(right / objects[index]):
            reached = np.searchsorted(recall, _COCO_RECALLS, side="left")
            precisions[row, index] = 100 * best[row, reached].mean()
    # IoU 0.50 is the first row, 0.75 the sixth.
    by_class, at_50, at_75 = precisions.mean(0), precisions[0], precisions[5]
    return CocoAP(by_class, at_50, at_75, _mean(by_class), _mean(at_50), _mean(at_75), objects)


@dataclass(frozen=True, eq=False)
class _Sorted:
    """Detections in the order (-score, image, rank)."""

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def taken(self, which: np.ndarray) -> "_Sorted":
        return _Sorted(self.images[which], self.boxes[which], self.labels[which])


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Detections, objects of their image and class (indices, (P,)), and the overlaps of the two."""

    detections: np.ndarray
    objects: np.ndarray
    overlaps: np.ndarray


def _sorted(detections: Detections) -> _Sorted:
    falling = -detections.scores.astype(np.float64)
    order = np.lexsort((detections.ranks, detections.images, falling))
    return _Sorted(detections.images[order], detections.boxes[order], detections.labels[order])


def _overlapping(
    found: _Sorted,
    truth: Truth,
    classes: int,
    least: float,
    *,
    one: float = 0.0,
    crowds: bool = False,
) -> _Pairs:
    """All pairs of one class and image that overlap at least so much.

    Args:
        found: The detections.
        truth: The objects.
        classes: Number of classes.
        least: IoU from which on a pair is kept.
        one: Added to x1 and y1.
        crowds: Whether to put what is shared with a difficult object over the detection's area.
    """
    # float64, and so is all that follows.
    corner = np.array([0.0, 0.0, one, one])
    boxes, object_boxes = found.boxes + corner, truth.boxes + corner
    keys = _keys(found.images, found.labels, classes)
    object_keys = _keys(truth.images, truth.labels, classes)
    by_key = np.argsort(object_keys, kind="stable")
    first = np.searchsorted(object_keys[by_key], keys, side="left")
    counts = np.searchsorted(object_keys[by_key], keys, side="right") - first
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for some in _pieces(counts):
        owners = np.repeat(some, counts[some])
        within = np.arange(len(owners)) - np.repeat(
            np.cumsum(counts[some]) - counts[some], counts[some]
        )
        objects = by_key[first[owners] + within]
        overlaps = _overlaps(
            boxes[owners], object_boxes[objects], truth.difficult[objects] & crowds
        )
        enough = overlaps >= least
        parts.append((owners[enough], objects[enough], overlaps[enough]))
    if not parts:
        return _Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return _Pairs(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _keys(images: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """One number for each image and class, int64."""
    return images.astype(np.int64) * classes + labels.astype(np.int64)


def _pieces(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of the counts above 0, in pieces whose sums are about `PAIRS_AT_ONCE` at most."""
    some = np.flatnonzero(counts)
    piece = np.cumsum(counts[some]) // PAIRS_AT_ONCE
    yield from (p for p in np.split(some, np.flatnonzero(np.diff(piece)) + 1) if len(p))


def _overlaps(boxes: np.ndarray, others: np.ndarray, over_own: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (P, 4), or over the first one's area, where `over_own`."""
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    shared = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0.0)
    own = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    others_own = (others[:, 2:] - others[:, :2]).prod(1)
    over = np.where(over_own, own, own + others_own - shared)
    return np.divide(shared, over, out=np.zeros_like(shared), where=shared > 0)


def _coco_verdicts(found: _Sorted, places: np.ndarray, truth: Truth, classes: int) -> np.ndarray:
    """What becomes of each detection: -1 counts neither way, 0 wrong, 1 right.

    Detections of one class in one image have to be matched one after the other; those of different
    ones are independent. So the first of each are matched together, then the second, and so on.

    Returns:
        int8 (len(COCO_OVERLAPS), len(found)).
    """
    pairs = _overlapping(found, truth, classes, COCO_OVERLAPS[0], crowds=True)
    single = ~truth.difficult[pairs.objects]
    # Each detection likes its later pairs better: no crowd, larger overlap, and of equal ones the
    # later object, as pycocotools does.
    order = np.lexsort(
        (pairs.objects, pairs.overlaps, single, pairs.detections, places[pairs.detections])
    )
    owners, objects, overlaps, single = (
        values[order] for values in (pairs.detections, pairs.objects, pairs.overlaps, single)
    )
    enough = overlaps >= COCO_OVERLAPS[:, None]
    free = np.ones((len(COCO_OVERLAPS), len(truth)), bool)
    verdicts = np.zeros((len(COCO_OVERLAPS), len(found)), np.int8)
    rounds = np.searchsorted(places[owners], np.arange(COCO_DETECTIONS + 1))
    for begin, end in zip(rounds[:-1].tolist(), rounds[1:].tolist(), strict=True):
        if begin == end:
            continue
        able = enough[:, begin:end] & free[:, objects[begin:end]]
        of_round, starts = np.unique(owners[begin:end], return_index=True)
        liked = np.maximum.reduceat(np.where(able, np.arange(begin, end), -1), starts, axis=1)
        row, column = np.nonzero(liked >= 0)
        chosen = liked[row, column]
        verdicts[row, of_round[column]] = np.where(single[chosen], 1, -1)
        free[row, objects[chosen]] = ~single[chosen]
    return verdicts


def _places(keys: np.ndarray) -> np.ndarray:
    """How many entries before each one are equal to it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    places = np.empty(len(keys), np.int64)
    places[order] = np.arange(len(keys)) - np.searchsorted(ordered, ordered, side="left")
    return places


def _by_class(labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """Indices of the detections of each class, rising."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, classes)))


def _objects(truth: Truth, classes: int) -> np.ndarray:
    return np.bincount(truth.labels[~truth.difficult].astype(np.int64), minlength=classes)


def _best_beyond(precision: np.ndarray) -> np.ndarray:
    """The best precision at each place or later, along the last axis."""
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def _mean(by_class: np.ndarray) -> float:
    of_objects = by_class[~np.isnan(by_class)]
    return float(of_objects.mean()) if len(of_objects) else float("nan")


def _check_array(name: str, values: np.ndarray, shape: tuple[int, ...], kinds: str) -> None:
    if values.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {values.shape}")
    if values.dtype.kind not in kinds:
        words = {"f": "floats", "i": "integers", "u": "unsigned integers", "b": "bool"}
        expected = " or ".join(words[kind] for kind in kinds)
        raise ValueError(f"{name}: expected {expected}, got {values.dtype}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        where = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"{name}: expected finite numbers, got {values[tuple(where)]} in row {where[0]}"
        )


def _check_boxes(name: str, images: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> None:
    if images.ndim != 1:
        raise ValueError(f"{name}.images: expected shape (count,), got {images.shape}")
    _check_array(f"{name}.images", images, (len(images),), "iu")
    _check_array(f"{name}.boxes", boxes, (len(images), 4), "fiu")
    _check_array(f"{name}.labels", labels, (len(images),), "iu")
    for part, values in (("images", images), ("labels", labels)):
        if len(values) and values.min() < 0:
            raise ValueError(f"{name}.{part}: expected 0 or more, got {values.min()}")


def _check_labels(detections: Detections, truth: Truth, classes: int) -> None:
    if classes < 1:
        raise ValueError(f"classes: expected 1 or more, got {classes}")
    for name, labels in (("detections", detections.labels), ("truth", truth.labels)):
        if len(labels) and labels.max() >= classes:
            raise ValueError(
                f"{name}.labels: expected 0 to {classes - 1} (the background is no class), "
                f"got {labels.max()}"
            )
