"""The loss of detectors, against torchvision's and against its definition; and their scores."""

import math
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from mobilenext.data import DeviceBatches, eval_loader, voc
from mobilenext.data.box_transforms import BoxTransform
from mobilenext.data.boxes import PADDING
from mobilenext.metrics.average_precision import voc_curves, voc_eleven_point
from mobilenext.metrics.detection import (
    MultiBoxLoss,
    match,
    objects_of,
    score_all_detections,
    score_detections,
)
from mobilenext.models import MobileNeXt, SSDLite
from mobilenext.runtime.distributed import Process
from tests.on_disk_boxes import voc_tree

SIZE, CLASSES = 96, 5


@pytest.fixture(scope="module")
def detector() -> SSDLite:
    torch.manual_seed(1)
    return SSDLite(MobileNeXt(width_mult=0.35, num_classes=CLASSES), CLASSES, SIZE)


def some_targets(counts: tuple[int, ...] = (0, 3, 6, 1), seed: int = 0) -> Tensor:
    draws = np.random.default_rng(seed)
    targets = torch.zeros(len(counts), 1 + max(1, *counts), 6)
    targets[:, 1:, 4] = PADDING
    for image, count in enumerate(counts):
        for row in range(1, 1 + count):
            corner, side = draws.uniform(0, 45, 2), draws.uniform(18, 50, 2)
            targets[image, row, :4] = torch.tensor([*corner, *(corner + side)])
            targets[image, row, 4] = int(draws.integers(CLASSES))
    return targets


def outputs(detector: SSDLite, images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    count = len(detector.anchors)
    logits = torch.randn(images, count, 1 + CLASSES, generator=source)
    return logits, torch.randn(images, count, 4, generator=source)


def stated(detector: SSDLite, logits: Tensor, codes: Tensor, targets: Tensor) -> float:
    """The loss by the SSD paper's words, default box by default box, in float64."""
    total, matches = 0.0, 0
    anchors = detector.anchors.double()
    for image in range(len(targets)):
        rows = targets[image, 1:]
        rows = rows[rows[:, 4] != PADDING].double()
        object_of = [-1] * len(anchors)
        if len(rows):
            overlaps = box_iou(rows[:, :4], anchors)
            for place in range(len(anchors)):
                best = int(overlaps[:, place].argmax())
                if overlaps[best, place] >= 0.5:
                    object_of[place] = best
            for number in range(len(rows)):
                object_of[int(overlaps[number].argmax())] = number
        negatives = []
        positives = 0
        for place, number in enumerate(object_of):
            shares = logits[image, place].double().log_softmax(0)
            if number < 0:
                negatives.append(-float(shares[0]))
                continue
            positives += 1
            x0, y0, x1, y1 = anchors[place].tolist()
            a0, b0, a1, b1 = rows[number, :4].tolist()
            w, h = x1 - x0, y1 - y0
            wanted = [
                10 * ((a0 + a1) / 2 - (x0 + x1) / 2) / w, 10 * ((b0 + b1) / 2 - (y0 + y1) / 2) / h,
                5 * math.log((a1 - a0) / w), 5 * math.log((b1 - b0) / h),
            ]  # fmt: skip
            for got, want in zip(codes[image, place].tolist(), wanted, strict=True):
                off = abs(got - want)
                total += 0.5 * off * off if off < 1 else off - 0.5
            total -= float(shares[1 + int(rows[number, 4])])
        total += sum(sorted(negatives, reverse=True)[: 3 * positives])
        matches += positives
    return total / max(1, matches)


def test_loss_is_its_definition(detector: SSDLite) -> None:
    targets, (logits, codes) = some_targets(), outputs(detector, 4)
    loss = MultiBoxLoss(detector).of_outputs(logits, codes, targets)
    assert float(loss) == pytest.approx(stated(detector, logits, codes, targets), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_loss_is_that_of_torchvision(detector: SSDLite, seed: int) -> None:
    targets, (logits, codes) = some_targets(seed=seed), outputs(detector, 4, seed)
    logits.requires_grad_()
    codes.requires_grad_()
    ours = MultiBoxLoss(detector).of_outputs(logits, codes, targets)
    gradients = torch.autograd.grad(ours, (logits, codes))
    plain: list[dict[str, Tensor]] = []
    matched = []
    for rows in targets[:, 1:]:
        rows = rows[rows[:, 4] != PADDING]
        plain.append({"boxes": rows[:, :4], "labels": 1 + rows[:, 4].long()})
        none = torch.full((len(detector.anchors),), -1)
        overlaps = box_iou(rows[:, :4], detector.anchors)
        matched.append(detector.proposal_matcher(overlaps) if len(rows) else none)
    parts = detector.compute_loss(
        plain, {"cls_logits": logits, "bbox_regression": codes}, [detector.anchors] * 4, matched
    )
    theirs = parts["bbox_regression"] + parts["classification"]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for one, other in zip(gradients, torch.autograd.grad(theirs, (logits, codes)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_batch_without_objects_has_a_loss_of_zero(detector: SSDLite) -> None:
    logits, codes = outputs(detector, 2)
    logits.requires_grad_()
    codes.requires_grad_()
    loss = MultiBoxLoss(detector).of_outputs(logits, codes, some_targets((0, 0)))
    assert loss.item() == 0  # with no match, three times none
    for gradient in torch.autograd.grad(loss, (logits, codes)):
        assert gradient.isfinite().all()


def test_of_objects_that_claim_a_default_box_the_last_gets_it() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 9, 9], [0, 0, 3, 3], [0, 0, 0, 0]]])
    real = torch.tensor([[True, True, True, False]])
    assert match(anchors, boxes, real, 0.5).tolist() == [[2, -1]]
    real = torch.tensor([[True, True, False, False]])
    assert match(anchors, boxes, real, 0.5).tolist() == [[1, -1]]
    assert match(anchors, boxes, real & False, 0.5).tolist() == [[-1, -1]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc_tree(tmp_path_factory.mktemp("boxes"), train=2, val=7)


def scored(
    tree: Path, detector: SSDLite, batch: int = 3, call: Any = score_detections, **more: Any
) -> Any:
    data = voc(str(tree), ["2007:trainval"], ["2007:test"], classes=["red", "green", "blue"])
    cpu = torch.device("cpu")
    loader = eval_loader(
        data.val, BoxTransform(SIZE, data.val.boxes), batch_size=batch, whole_batches=True
    )
    to_device = DeviceBatches([0.5] * 3, [0.25] * 3, cpu, fills=True)
    with closing(loader):
        return data, call(
            detector if call is score_detections else {"val": detector},
            loader,
            to_device,
            Process(cpu),
            data.val,
            3,
            MultiBoxLoss(detector),
            **more,
        )


class Knows(SSDLite):
    """Finds exactly what is there: the boxes that it was given for each image, in turn."""

    def __init__(self, answers: list[dict[str, Tensor]]) -> None:
        super().__init__(MobileNeXt(width_mult=0.35, num_classes=3), 3, SIZE)
        self.answers = iter(answers)

    def detections(self, logits: Tensor, codes: Tensor) -> list[dict[str, Tensor]]:
        return [next(self.answers) for _ in range(len(logits))]


def test_what_is_there_is_worth_a_hundred(tree: Path) -> None:
    data = voc(str(tree), ["2007:trainval"], ["2007:test"], classes=["red", "green", "blue"])
    boxes = data.val.boxes
    answers = []
    for index in range(len(data.val)):
        places = boxes.of(index)
        scale = SIZE / np.tile(boxes.sizes[index], 2)
        labels = torch.from_numpy(boxes.labels[places].astype(np.int64))
        answers.append({
            "boxes": torch.from_numpy((boxes.boxes[places] * scale).astype(np.float32)),
            "labels": labels, "scores": torch.linspace(0.9, 0.5, len(labels)),
        })  # fmt: skip
    _, found = scored(tree, Knows(answers))
    assert found.scores["ap_voc_11point"] == pytest.approx(100)
    assert found.scores["ap_voc_area"] == pytest.approx(100)
    assert found.scores["ap_coco"] == pytest.approx(100, abs=1e-6)
    assert found.scores["count"] == 7
    assert math.isfinite(found.scores["loss"])


def test_scores_follow_from_the_detections(tree: Path) -> None:
    torch.manual_seed(2)
    network = SSDLite(MobileNeXt(width_mult=0.35, num_classes=3), 3, SIZE)
    data, found = scored(tree, network)
    truth = objects_of(data.val, np.arange(7))
    assert len(truth) == data.counts["val"]["objects"]
    curves = voc_curves(found.detections, truth, 3, inclusive=True)
    assert voc_eleven_point(curves).mean == found.scores["ap_voc_11point"]
    assert len(found.detections) == found.scores["detections"] > 0
    sizes = data.val.boxes.sizes[found.detections.images]
    assert (found.detections.boxes >= 0).all()
    assert (found.detections.boxes <= np.tile(sizes, 2) + 1e-3).all()


def test_an_interruption_gives_up(tree: Path, detector: SSDLite) -> None:
    network = SSDLite(MobileNeXt(width_mult=0.35, num_classes=3), 3, SIZE)
    assert scored(tree, network, call=score_all_detections, interrupted=lambda: True)[1] is None
