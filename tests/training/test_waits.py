"""No step and no evaluation batch makes the host wait for a GPU; tried on pretended tensors."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenext.data import Augment, DeviceBatches, Mixing
from mobilenext.metrics.classification import SmoothedCrossEntropy, score_all
from mobilenext.models import MobileNeXt
from mobilenext.optim import set_learning_rate
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import Precision
from mobilenext.seeding import seed_devices
from mobilenext.training.averages import AveragedWeights
from mobilenext.training.step import Update
from tests.waits import PRETENDED, pinned_rand, pretended_cuda

BATCH, SIZE, CLASSES = 4, 32, 10


def host_batch() -> tuple[Tensor, Tensor]:
    pixels = torch.zeros((BATCH, SIZE, SIZE, 3), dtype=torch.uint8)
    return pixels, torch.zeros(BATCH, dtype=torch.int64)


def test_the_detector_sees_waits() -> None:
    values = torch.zeros(4)
    with pretended_cuda() as waits:
        there = values.to(PRETENDED, non_blocking=True)
        assert not waits
        torch.tensor([1, 2], device=PRETENDED)
        there[:, None][[0, 1]]
        values.to(PRETENDED)
        there.cpu()
        with pytest.raises(Exception, match="local_scalar"):
            there.sum().item()
    assert len(waits) == 5


def test_a_training_step_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jitter with hue, erasing, cutout, mixing, update: not once."""
    pinned = pinned_rand(monkeypatch)
    with pretended_cuda() as waits:
        to_device = DeviceBatches([0.5] * 3, [0.25] * 3, PRETENDED)
        augment = Augment((0.4, 0.4, 0.0, 0.1), 0.25, 0, BATCH, cutout=8)
        mix = Mixing(0.2, 1.0, CLASSES, 0)
        with PRETENDED:
            network = MobileNeXt(width_mult=0.35, num_classes=CLASSES)
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, foreach=True)
        update = Update(
            network, optimizer, Precision("fp32", PRETENDED), micro_batch=2, clip_grad_norm=1.0
        )

        def backward(loss: Tensor) -> None:  # the engine would look for the device
            del loss
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)

        def step(number: int) -> None:
            images, labels = to_device(*host_batch(), augment.at(0, number))
            images, targets = mix(images, labels, 0, number)
            set_learning_rate(optimizer, 0.1)
            seed_devices("step", 0, number, 0)
            update((images, targets, labels), SmoothedCrossEntropy(0.1))

        step(0)
        waits.clear()
        step(1)
    assert waits == []
    assert pinned
    assert all(pinned)


class Batches:
    """Two batches, the second one smaller, on a pretended device."""

    missed = 0

    def epoch(self, epoch: int, first_batch: int = 0) -> Any:
        del epoch, first_batch
        pixels, labels = host_batch()
        yield pixels, labels
        yield pixels[:3], labels[:3]


class Sizes(nn.Module):
    """Notes how many images it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        last = images.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((len(images), last))
        return images.new_zeros((len(images), CLASSES))


def test_an_evaluation_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its end; and all batches of a GPU have one shape, which cuDNN knows."""
    monkeypatch.setattr(DeviceBatches, "ahead", lambda self, batches: iter(batches))
    # torch's own ends the process on pretended tensors.
    monkeypatch.setattr(F, "cross_entropy", lambda logits, labels, reduction: logits.sum(1))
    sizes = Sizes()
    with pretended_cuda() as waits:
        to_device = DeviceBatches([0.5] * 3, [0.25] * 3, PRETENDED)
        waits.clear()
        with pytest.raises(Exception, match="local_scalar"):
            score_all(
                {"val": sizes, "ema": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())},
                Batches(), to_device, Process(PRETENDED), 7,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
    assert sizes.seen == 2 * [(BATCH, True)]
    assert [wait for wait in waits if "tolist" not in wait and "tensor([seen" not in wait] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_no_step_waits_for_a_real_device() -> None:
    """The backward pass, averages and batches on their way are in it too."""
    device = torch.device("cuda", 0)
    to_device = DeviceBatches([0.5] * 3, [0.25] * 3, device)
    augment, mix = (
        Augment((0.4, 0.4, 0.0, 0.1), 0.25, 0, BATCH, cutout=8),
        Mixing(0.2, 1, CLASSES, 0),
    )
    network = MobileNeXt(width_mult=0.35, num_classes=CLASSES).to(device)
    average = AveragedWeights(network, 0.9)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, foreach=True)
    update = Update(network, optimizer, Precision("bf16", device), clip_grad_norm=1.0)
    batches = [tuple(part.pin_memory() for part in host_batch()) for _ in range(4)]
    try:
        for number, batch in enumerate(to_device.ahead(batches)):  # pyright: ignore[reportArgumentType]
            images, labels = to_device(*batch, augment.at(0, number))
            images, targets = mix(images, labels, 0, number)
            set_learning_rate(optimizer, 0.1)
            seed_devices("step", 0, number, 0)
            update((images, targets, labels), SmoothedCrossEntropy(0.1))
            average.update(network, number + 1)
            torch.cuda.set_sync_debug_mode("error")  # after the first step, which sets things up
    finally:
        torch.cuda.set_sync_debug_mode("default")
