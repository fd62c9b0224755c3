from typing import Any

import numpy as np
import pytest
import torch

from mobilenext.data import DeviceBatches, eval_loader, eval_transform, evaluated_indices, synthetic
from mobilenext.metrics.classification import Observer, score
from mobilenext.metrics.predictions import ConfusionMatrix, Predictions
from mobilenext.runtime.distributed import Process
from tests.in_processes import Pixels

CPU = torch.device("cpu")
ALONE = Process(CPU)
IMAGES, CLASSES = 65, 7


def scored(*observers: Observer) -> dict[str, Any]:
    images = synthetic(1, IMAGES, CLASSES, 16).val
    loader = eval_loader(images, eval_transform(16, crop_ratio=1), batch_size=4)
    to_device = DeviceBatches([0.5] * 3, [0.25] * 3, CPU)
    found = score(Pixels(), loader, to_device, ALONE, IMAGES, observers=observers)
    assert found is not None
    return found


def test_predictions_and_confusions_are_those_that_are_scored() -> None:
    matrix, kept = ConfusionMatrix(CLASSES, CPU), Predictions()
    assert scored(matrix, kept) == scored()
    counts = matrix.total(ALONE)
    assert counts.dtype == np.int64
    labels = np.arange(IMAGES) % CLASSES
    assert counts.sum(1).tolist() == np.bincount(labels).tolist()
    assert 100 * counts.diagonal().sum() / IMAGES == scored()["top1"]

    predicted = kept.gathered(ALONE, np.arange(IMAGES))
    assert predicted.classes.shape == predicted.probabilities.shape == (IMAGES, 5)
    again = np.zeros_like(counts)
    np.add.at(again, (labels, predicted.classes[:, 0]), 1)
    assert (again == counts).all()
    assert 100 * (predicted.classes == labels[:, None]).any(1).mean() == scored()["top5"]
    assert (np.diff(predicted.probabilities, axis=1) <= 0).all()
    assert (predicted.probabilities.sum(1) <= 1 + 1e-6).all()


def test_probabilities_are_softmax_of_all_classes() -> None:
    kept = Predictions()
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 5.0]])
    kept(logits, logits.topk(2).indices, torch.tensor([0, 1]))
    predicted = kept.gathered(ALONE, np.array([8, 3]))
    assert predicted.indices.tolist() == [3, 8]
    assert predicted.classes[1].tolist() == [0, 2]
    total = np.exp([2, 0, 1]).sum()
    assert predicted.probabilities[1] == pytest.approx(np.exp([2, 1]) / total, rel=1e-6)
    with pytest.raises(RuntimeError, match="predicted 2 images, and the loader read 3"):
        kept.gathered(ALONE, np.arange(3))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_ranks_know_the_images_that_they_read(processes: int) -> None:
    parts = [evaluated_indices(7, rank, processes, {2: "", 3: ""}) for rank in range(processes)]
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 4, 5, 6]
    assert all((part % processes == rank).all() for rank, part in enumerate(parts))
