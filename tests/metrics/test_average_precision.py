"""AP against its definitions, and against numbers that other evaluators gave for the same sets."""

from dataclasses import fields

import numpy as np
import pytest

from mobilenext.metrics.average_precision import (
    CocoAP,
    Detections,
    Truth,
    VocCurves,
    coco,
    voc_area,
    voc_curves,
    voc_eleven_point,
)

IMAGES, CLASSES = 60, 6
LARGE = 400


def drawn(
    seed: int, images: int, classes: int, levels: int, twins: float, crowded: int
) -> tuple[Detections, Truth]:
    """Made-up objects and what a mediocre detector finds of them; the same for any numpy.

    Corners are quarters of pixels, so that sides, areas and their sums are exact. Every fifth image
    has no object. The last class is only predicted, the one before has difficult objects only.

    Args:
        seed: Chooses the set.
        images: Number of images.
        classes: Number of classes.
        levels: Number of different scores: few make ties.
        twins: Share of the objects that have a difficult one right beside them.
        crowded: Additional detections of class 0 in image 0.
    """
    # Raw bits are what numpy promises to keep; methods of a Generator may change.
    bits = np.random.PCG64(seed)

    def uniforms(*shape: int) -> np.ndarray:
        raw = np.asarray(bits.random_raw(int(np.prod(shape))), np.uint64)
        return ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def some_boxes(count: int) -> np.ndarray:
        corners, sides = uniforms(2, count, 2)
        return np.concatenate([200 * corners, 200 * corners + 16 + 100 * sides], 1)

    def quarters(boxes: np.ndarray) -> np.ndarray:
        return np.round(4 * boxes) / 4

    truths, founds = [], []
    for image in range(images):
        count = 0 if image % 5 == 3 else 1 + int(9 * uniforms(1)[0])
        # Squared: some classes have many objects, others few.
        labels = (uniforms(count) ** 2 * (classes - 1)).astype(int)
        difficult = (uniforms(count) < 0.2) | (labels == classes - 2)
        boxes = some_boxes(count)
        near = boxes + 12 * (uniforms(count, 4) - 0.5)
        twin = uniforms(count) < twins
        boxes = quarters(np.concatenate([boxes, near[twin]]))
        labels = np.concatenate([labels, labels[twin]])
        difficult = np.concatenate([difficult, np.ones(twin.sum(), bool)])
        truths.append((np.full(len(boxes), image), boxes, labels, difficult))

        seen = np.repeat(np.arange(len(boxes)), (3 * uniforms(len(boxes))).astype(int))
        shifts = (uniforms(len(seen), 4) - 0.5) * 50 * uniforms(len(seen), 1)
        guesses = 6 + (crowded if image == 0 else 0)
        of_seen = np.where(uniforms(len(seen)) < 0.8, labels[seen], classes - 1)
        guessed = (uniforms(guesses) * classes).astype(int)
        guessed[6:] = 0
        boxes = quarters(np.concatenate([boxes[seen] + shifts, some_boxes(guesses)]))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = np.concatenate([0.2 + 0.8 * uniforms(len(seen)), 0.7 * uniforms(guesses)])
        scores = (np.floor(levels * scores) + 1) / (levels + 1)
        order = np.argsort(uniforms(len(boxes)), kind="stable")
        labels = np.concatenate([of_seen, guessed])
        rows = np.full(len(boxes), image), boxes[order], scores[order], labels[order]
        founds.append((*rows, np.arange(len(boxes))))
    objects = [np.concatenate(part) for part in zip(*truths, strict=True)]
    found = [np.concatenate(part) for part in zip(*founds, strict=True)]
    return Detections(*found), Truth(*objects)


def with_ties() -> tuple[Detections, Truth]:
    return drawn(1, IMAGES, CLASSES, levels=20, twins=0.3, crowded=150)


def large() -> tuple[Detections, Truth]:
    return drawn(2, LARGE, 20, levels=1 << 20, twins=0, crowded=0)


def shuffled(found: Detections, seed: int) -> Detections:
    order = np.random.default_rng(seed).permutation(len(found))
    return Detections(*(getattr(found, part.name)[order] for part in fields(found)))


def all_counted(truth: Truth) -> Truth:
    return Truth(truth.images, truth.boxes, truth.labels, np.zeros(len(truth), bool))


def of_one_image(
    objects: list[list[float]], boxes: list[list[float]], scores: list[float]
) -> tuple[Detections, Truth]:
    """One class."""
    none, nowhere = np.zeros(len(objects), int), np.zeros(len(boxes), int)
    ranks = np.arange(len(boxes))
    found = Detections(nowhere, np.reshape(boxes, (-1, 4)), np.array(scores), nowhere, ranks)
    return found, Truth(none, np.reshape(objects, (-1, 4)), none, none.astype(bool))


# The evaluation of MobileNeXt's authors for VOC is `eval_detection_voc` of chainercv, as it stands
# in github.com/lufficc/SSD at 29242f3, ssd/data/datasets/evaluation/voc/eval_detection_voc.py. It
# gave these numbers for `with_ties()`, times 100. Its own order of equal scores depends on numpy's
# quicksort, so it got D, D - 1, ..., 1 as scores of the D detections in the order that is ours.
AUTHORS_ELEVEN = [26.346168172907, 23.694178162263, 24.111231540442, 12.851613627015, None, None]
AUTHORS_ELEVEN_MEAN = 21.750797875657
AUTHORS_AREA = [22.119028180649, 23.951087355041, 21.119395555871, 11.487905703592, None, None]
AUTHORS_AREA_MEAN = 19.669354198788

# COCOeval of pycocotools 2.0.11 for `with_ties()`: `precision` for area range "all" and 100
# detections, and the first three of its `stats`, times 100.
PYCOCOTOOLS = [13.899854105839, 11.744695246209, 17.026701616913, 5.794483772203, None, None]
PYCOCOTOOLS_50 = [32.805013473415, 34.334781028711, 38.935318047582, 21.832077854128, None, None]
PYCOCOTOOLS_75 = [10.41917425111, 3.716862287733, 12.889051200202, 2.612761276128, None, None]
PYCOCOTOOLS_MEANS = [12.116433685291, 31.976797600959, 7.409462253793]

# MeanAveragePrecision of torchmetrics 1.9.0 for `large()`, times 100: map, map_50, map_75 with the
# difficult objects as `iscrowd`; then map_50 with all objects as ordinary ones, by
# `rec_thresholds=linspace(0, 1, 11)` and by its own 101.
TORCHMETRICS_CROWDS = [13.666123151779, 29.754993319511, 11.514318734407]
TORCHMETRICS_ELEVEN, TORCHMETRICS_101 = 31.746262311935, 29.813277721405


def same(ours: np.ndarray, theirs: list[float | None]) -> bool:
    numbers = np.array([np.nan if number is None else number for number in theirs])
    assert np.nanmax(np.abs(ours - numbers)) < 1e-9
    return bool((np.isnan(ours) == np.isnan(numbers)).all())


def test_the_set_has_what_makes_protocols_differ() -> None:
    found, truth = with_ties()
    assert len(np.unique(found.scores)) < len(found) / 10
    assert truth.difficult.mean() > 0.2
    assert len(np.unique(truth.images)) < IMAGES
    assert (truth.labels == 4).any()
    assert truth.difficult[truth.labels == 4].all()
    assert not (truth.labels == 5).any()
    assert (found.labels == 5).any()
    assert ((found.images == 0) & (found.labels == 0)).sum() > 100


def test_voc_equals_the_authors_evaluation() -> None:
    curves = voc_curves(*with_ties(), CLASSES, inclusive=True)
    eleven, area = voc_eleven_point(curves), voc_area(curves)
    assert same(eleven.by_class, AUTHORS_ELEVEN)
    assert same(area.by_class, AUTHORS_AREA)
    assert eleven.mean == pytest.approx(AUTHORS_ELEVEN_MEAN, abs=1e-9)
    assert area.mean == pytest.approx(AUTHORS_AREA_MEAN, abs=1e-9)
    assert eleven.inclusive
    assert area.inclusive


def test_coco_equals_pycocotools() -> None:
    found = coco(*with_ties(), CLASSES)
    assert same(found.by_class, PYCOCOTOOLS)
    assert same(found.by_class_50, PYCOCOTOOLS_50)
    assert same(found.by_class_75, PYCOCOTOOLS_75)
    assert [found.mean, found.mean_50, found.mean_75] == pytest.approx(PYCOCOTOOLS_MEANS, abs=1e-9)


def test_torchmetrics_is_near() -> None:
    found, truth = large()
    ours = coco(found, truth, 20)
    # Not equal: its thresholds are rounded to float32.
    assert [ours.mean, ours.mean_50, ours.mean_75] == pytest.approx(TORCHMETRICS_CROWDS, abs=0.4)
    # What a difficult object does to a detection differs between VOC and COCO by more than that.
    curves = voc_curves(found, all_counted(truth), 20, inclusive=False)
    assert voc_eleven_point(curves).mean == pytest.approx(TORCHMETRICS_ELEVEN, abs=0.4)
    assert voc_area(curves).mean == pytest.approx(TORCHMETRICS_101, abs=0.4)


def plainly_overlapping(box: list[float], other: list[float], one: float) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0]) + one
    height = min(box[3], other[3]) - max(box[1], other[1]) + one
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0] + one) * (b[3] - b[1] + one) for b in (box, other)]
    return width * height / (sum(areas) - width * height)


def plainly(found: Detections, truth: Truth, label: int, one: float) -> tuple[float, float]:
    """The definition, one detection after the other: AP by 11 points and by area, per cent."""
    objects = [
        (image, box, hard)
        for image, box, of, hard in zip(
            truth.images.tolist(), truth.boxes.tolist(), truth.labels, truth.difficult, strict=True
        )
        if of == label
    ]
    rows = [row for row in range(len(found)) if found.labels[row] == label]
    rows.sort(key=lambda row: (-found.scores[row], found.images[row], found.ranks[row]))
    claimed, right, wrong = set(), 0, 0
    count = sum(not hard for _, _, hard in objects)
    points = []
    for row in rows:
        rivals = [
            (plainly_overlapping(found.boxes[row].tolist(), box, one), -index)
            for index, (image, box, _) in enumerate(objects)
            if image == found.images[row]
        ]
        overlap, index = max(rivals, default=(0.0, 0))
        if overlap >= 0.5 and objects[-index][2]:
            continue
        if overlap >= 0.5 and index not in claimed:
            claimed.add(index)
            right += 1
        else:
            wrong += 1
        points.append((right, right / (right + wrong)))

    def best(least: float) -> float:
        return max((precision for hits, precision in points if hits >= least), default=0.0)

    # In hits, so that no quotient is compared with a tenth.
    eleven = sum(best(tenths * count / 10 - 1e-9) for tenths in range(11)) / 11
    area = sum(best(hits) for hits in range(1, count + 1)) / count
    return 100 * eleven, 100 * area


@pytest.mark.parametrize("inclusive", [True, False])
def test_voc_is_its_definition(inclusive: bool) -> None:
    found, truth = with_ties()
    curves = voc_curves(found, truth, CLASSES, inclusive=inclusive)
    for label in range(4):
        assert int(curves.objects[label]) % 10, "else the tenths of recall are a matter of rounding"
        eleven, area = plainly(found, truth, label, float(inclusive))
        assert voc_eleven_point(curves).by_class[label] == pytest.approx(eleven, abs=1e-9)
        assert voc_area(curves).by_class[label] == pytest.approx(area, abs=1e-9)


def test_by_hand() -> None:
    # Right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    objects = [[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]]
    found, truth = of_one_image(
        objects, [objects[0], [60.0, 0.0, 70.0, 10.0], objects[1]], [0.9, 0.8, 0.7]
    )
    for inclusive in (True, False):
        curves = voc_curves(found, truth, 1, inclusive=inclusive)
        assert curves.recall[0].tolist() == [0.5, 0.5, 1.0]
        assert curves.precision[0].tolist() == [1.0, 0.5, 2 / 3]
        # 1 at 0 to 0.5, 2/3 at 0.6 to 1.
        assert voc_eleven_point(curves).mean == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)
        assert voc_area(curves).mean == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    # 1 at 0 to 0.50, 2/3 at 0.51 to 1.
    assert coco(found, truth, 1).mean == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_one_pixel_decides() -> None:
    # 10 x 5 of 10 x 10 pixels with the last row and column, 9 x 4 of 9 x 9 without.
    found, truth = of_one_image([[0.0, 0.0, 9.0, 9.0]], [[0.0, 0.0, 9.0, 4.0]], [0.5])
    assert voc_area(voc_curves(found, truth, 1, inclusive=True)).mean == 100
    assert voc_area(voc_curves(found, truth, 1, inclusive=False)).mean == 0


def test_of_equal_overlaps_voc_takes_the_first_and_coco_the_last() -> None:
    one = [0.0, 0.0, 10.0, 10.0]
    found, truth = of_one_image([one, one], [one], [0.5])
    for difficult, expected in (([False, True], 100.0), ([True, False], 0.0)):
        twice = Truth(truth.images, truth.boxes, truth.labels, np.array(difficult))
        assert voc_area(voc_curves(found, twice, 1, inclusive=True)).mean == expected

    # The first detection lies between the objects. If it takes that which the second one needs,
    # the second has to do with 2/3.
    other, between = [2.0, 0.0, 12.0, 10.0], [1.0, 0.0, 11.0, 10.0]
    for second, expected in ((one, 100.0), (other, 100 * 51 / 101)):
        found, truth = of_one_image([one, other], [between, second], [0.9, 0.8])
        assert coco(found, truth, 1).mean_75 == pytest.approx(expected)
        assert coco(found, truth, 1).mean_50 == 100


def test_three_of_ten_do_not_reach_a_recall_of_three_tenths() -> None:
    # As with the authors, and thus in what is published: 0.1 * 3 > 3 / 10.
    objects = [[20.0 * k, 0.0, 20.0 * k + 10, 10.0] for k in range(10)]
    curves = voc_curves(*of_one_image(objects, objects[:3], [0.9, 0.8, 0.7]), 1, inclusive=True)
    assert voc_eleven_point(curves).mean == pytest.approx(100 * 3 / 11)


def test_float32_corners_give_what_float64_gives() -> None:
    found, truth = with_ties()
    single = Detections(
        found.images.astype(np.int32), found.boxes.astype(np.float32), found.scores,
        found.labels.astype(np.uint8), found.ranks,
    )  # fmt: skip
    assert everything(single, truth) == everything(found, truth)


def everything(found: Detections, truth: Truth) -> bytes:
    curves = [voc_curves(found, truth, CLASSES, inclusive=inclusive) for inclusive in (True, False)]
    arrays: list[np.ndarray | float] = [
        part for c in curves for part in (*c.recall, *c.precision, c.objects)
    ]
    results = [protocol(c) for c in curves for protocol in (voc_eleven_point, voc_area)]
    for result in (*results, coco(found, truth, CLASSES)):
        arrays += [getattr(result, part.name) for part in fields(result)]
    return b"".join(np.asarray(array).tobytes() for array in arrays)


def test_the_order_of_rows_changes_nothing() -> None:
    found, truth = with_ties()
    expected = everything(found, truth)
    for seed in range(3):
        assert everything(shuffled(found, seed), truth) == expected


def test_the_size_of_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, truth = with_ties()
    expected = everything(found, truth)
    monkeypatch.setattr("mobilenext.metrics.average_precision.PAIRS_AT_ONCE", 7)
    assert everything(found, truth) == expected


def test_nothing_there() -> None:
    found, truth = with_ties()
    no_object = Truth(*(getattr(truth, part.name)[:0] for part in fields(truth)))
    no_detection = Detections(*(getattr(found, part.name)[:0] for part in fields(found)))

    def means(found: Detections, truth: Truth) -> tuple[VocCurves, CocoAP, list[float]]:
        curves = voc_curves(found, truth, CLASSES, inclusive=True)
        other = coco(found, truth, CLASSES)
        of_voc = [voc_eleven_point(curves).mean, voc_area(curves).mean]
        return curves, other, [*of_voc, other.mean, other.mean_50, other.mean_75]

    for of in (found, no_detection):
        curves, other, numbers = means(of, no_object)
        assert np.isnan(numbers).all()
        assert np.isnan(other.by_class).all()
        assert not curves.objects.any()
        assert not any(len(recall) for recall in curves.recall)
    curves, other, numbers = means(no_detection, truth)
    assert numbers == [0.0] * 5
    assert np.isnan(other.by_class).tolist() == [False] * 4 + [True] * 2
    assert other.objects.tolist() == curves.objects.tolist()


def rows(**changed: object) -> dict[str, np.ndarray]:
    whole = {
        "images": [0, 0], "boxes": [[0.0, 0.0, 2.0, 2.0]] * 2, "scores": [0.5, 0.25],
        "labels": [0, 1], "ranks": [0, 1],
    }  # fmt: skip
    return {name: np.asarray(value) for name, value in (whole | changed).items()}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": [[0, 0]]}, r"detections.images: expected shape \(count,\), got \(1, 2\)"),
        ({"images": [0.0, 0.0]}, "detections.images: expected integers .*, got float64"),
        ({"images": [0, -1]}, "detections.images: expected 0 or more, got -1"),
        ({"boxes": [[0.0, 0.0, 2.0]] * 2}, r"boxes: expected shape \(2, 4\), got \(2, 3\)"),
        ({"boxes": [[0.0, 0.0, 2.0, 2.0]]}, r"boxes: expected shape \(2, 4\), got \(1, 4\)"),
        ({"boxes": [[0, 0, 2, 2], [0, 0, 2, np.inf]]}, "boxes: expected finite .* got inf in row"),
        ({"scores": [0.5]}, r"detections.scores: expected shape \(2,\), got \(1,\)"),
        ({"scores": [0.5, np.nan]}, "scores: expected finite numbers, got nan in row 1"),
        ({"labels": [0, -1]}, "detections.labels: expected 0 or more, got -1"),
        ({"labels": [0]}, r"detections.labels: expected shape \(2,\), got \(1,\)"),
        ({"ranks": [0.0, 1.0]}, "detections.ranks: expected integers .*, got float64"),
        ({"ranks": [1, 1]}, "expected each rank once in an image, got rank 1 twice in image 0"),
    ],
)
def test_bad_detections(changed: dict[str, object], message: str) -> None:
    Detections(**rows())
    with pytest.raises(ValueError, match=message):
        Detections(**rows(**changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": [0]}, r"truth.boxes: expected shape \(1, 4\), got \(2, 4\)"),
        ({"boxes": [[0.0, 0.0, 2.0, np.nan]] * 2}, "truth.boxes: expected finite .* got nan"),
        ({"labels": [0, -1]}, "truth.labels: expected 0 or more, got -1"),
        ({"labels": [0.0, 1.0]}, "truth.labels: expected integers .*, got float64"),
        ({"difficult": [0, 1]}, "truth.difficult: expected bool, got int64"),
        ({"difficult": [True]}, r"truth.difficult: expected shape \(2,\), got \(1,\)"),
    ],
)
def test_bad_truth(changed: dict[str, object], message: str) -> None:
    whole = rows(difficult=[False, True])
    del whole["scores"], whole["ranks"]
    Truth(**whole)
    with pytest.raises(ValueError, match=message):
        Truth(**whole | {name: np.asarray(value) for name, value in changed.items()})


def test_labels_beyond_the_classes() -> None:
    found, truth = with_ties()
    for evaluate in (lambda f, t, n: voc_curves(f, t, n, inclusive=True), coco):
        with pytest.raises(ValueError, match=r"detections.labels: expected 0 to 4 .*, got 5"):
            evaluate(found, truth, CLASSES - 1)
        with pytest.raises(ValueError, match=r"truth.labels: expected 0 to 3 .*, got 4"):
            evaluate(Detections(**rows()), truth, CLASSES - 2)
        with pytest.raises(ValueError, match="classes: expected 1 or more, got 0"):
            evaluate(found, truth, 0)
