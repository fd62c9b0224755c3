"""Accuracy of a classifier: each image exactly once, for any number of processes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenext.data import DeviceBatches, Loader
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import ieee_float32

Observer = Callable[[Tensor, Tensor, Tensor], object]
"""Sees the predictions of a batch on the device: logits (N, num_classes), the classes with the
highest ones, falling, (N, at most 5), and the labels (N,). It must not wait for the device."""


def score(
    network: nn.Module,
    loader: Loader,
    to_device: DeviceBatches,
    process: Process,
    expected: int,
    observers: Sequence[Observer] = (),
    shown: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Scores of one network whose evaluation nobody interrupts; see `score_all`."""
    scores = score_all(
        {"val": network}, loader, to_device, process, expected, observers=observers, shown=shown
    )
    assert scores is not None
    return scores["val"]


@torch.no_grad()
def score_all(
    networks: Mapping[str, nn.Module],
    loader: Loader,
    to_device: DeviceBatches,
    process: Process,
    expected: int,
    interrupted: Callable[[], bool] = lambda: False,
    observers: Sequence[Observer] = (),
    shown: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, dict[str, Any]] | None:
    """Top-1 and top-5 in per cent, mean cross-entropy in nats, and the number of images.

    All networks see each batch, so that it is decoded once. Every process adds up its own images;
    one sum over all processes follows. Float64 sums of whole numbers below 2**53 are exact, so the
    accuracies do not depend on the number of processes.

    Args:
        networks: Bare networks (not their distributed wrappers) by name, the same on all processes;
            are left in evaluation mode. Compute in float32.
        loader: This process's share of the images.
        to_device: From host batches to normalised images.
        process: This process.
        expected: Images of all processes together.
        interrupted: Asked before each batch; where it returns True, this process gives up.
        observers: Called with each batch of this process and the predictions of each network, in
            the loader's order.
        shown: Passes this process's batches on, and shows how far they are.

    Returns:
        By the network's name: top1, top5, loss, count; unreadable: images that are not part of the
        count. None if any process gave up.

    Raises:
        RuntimeError: The processes saw another number of images than expected.
    """
    for network in networks.values():
        network.eval()
    exact = torch.float32 if process.device.type == "mps" else torch.float64
    sums = torch.zeros((len(networks), 3), dtype=exact, device=process.device)
    gave_up, seen, largest = interrupted(), 0, 0
    for pixels, host_labels in to_device.ahead(shown(loader.epoch(0))):
        gave_up = gave_up or interrupted()
        if gave_up:
            break
        images, labels = to_device(pixels, host_labels)
        count, largest = len(labels), max(largest, len(labels))
        if images.device.type == "cuda":  # cuDNN would look for algorithms for another shape
            images = _padded(images, largest)
        for own, network in zip(sums, networks.values(), strict=True):
            with ieee_float32():
                logits = network(images)[:count]
            losses = F.cross_entropy(logits, labels, reduction="none")
            ranking = logits.topk(min(5, logits.shape[1]), dim=1).indices
            best = ranking == labels[:, None]
            own += torch.stack([best[:, 0].sum(), best.sum(), losses.to(exact).sum()])
            for observer in observers:
                observer(logits, ranking, labels)
        seen += count
    counts = torch.tensor([seen, loader.missed, gave_up], dtype=exact, device=process.device)
    totals = process.all_reduce_sum(torch.cat([sums.flatten(), counts])).tolist()
    *hits, count, unreadable, given_up = totals
    if given_up:
        return None
    if int(count + unreadable) != expected or not count:
        raise RuntimeError(
            f"evaluated {int(count)} images and could not read {int(unreadable)}, the split has "
            f"{expected}"
        )
    return {
        name: {
            "top1": 100 * top1 / count,
            "top5": 100 * top5 / count,
            "loss": loss / count,
            "count": int(count),
            "unreadable": int(unreadable),
        }
        for name, top1, top5, loss in zip(networks, hits[0::3], hits[1::3], hits[2::3], strict=True)
    }


def _padded(images: Tensor, count: int) -> Tensor:
    """Images (N, 3, H, W) with empty ones after them, `count` in all; in the same memory format."""
    if len(images) == count:
        return images
    last = images.is_contiguous(memory_format=torch.channels_last)
    padded = torch.empty(
        (count, *images.shape[1:]), dtype=images.dtype, device=images.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    ).zero_()  # fmt: skip
    padded[: len(images)].copy_(images)
    return padded


class SmoothedCrossEntropy:
    """The loss of classification training, and how many images are classified as their label.

    A network may return a pair in training, logits and those of an auxiliary head, whose loss is
    added.

    Args:
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        auxiliary_weight: Factor of an auxiliary head's loss.
    """

    def __init__(self, label_smoothing: float = 0.0, auxiliary_weight: float = 0.0) -> None:
        self.label_smoothing, self.auxiliary_weight = label_smoothing, auxiliary_weight

    def __call__(
        self, network: nn.Module, images: Tensor, targets: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy in nats, and the number of correct predictions.

        Args:
            network: Makes logits (N, num_classes) of images.
            images: (N, 3, H, W).
            targets: Class indices (N,), or probabilities (N, num_classes) of mixed images.
            labels: Class indices (N,) that count as correct.
        """
        main, *others = logits_of(network(images))
        logits = main.float()
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        for other in others:
            auxiliary = F.cross_entropy(
                other.float(), targets, label_smoothing=self.label_smoothing
            )
            loss = loss + self.auxiliary_weight * auxiliary
        return loss, (logits.detach().argmax(1) == labels).sum()


def logits_of(output: Any) -> tuple[Any, ...]:
    """A network's output in training as its logits and, if there are some, auxiliary ones."""
    return output if isinstance(output, tuple) else (output,)


def check_logits(logits: Any, shape: tuple[int, int]) -> None:
    """Raise `ValueError` unless a network's output is a tensor of this shape (N, num_classes)."""
    if not isinstance(logits, Tensor) or logits.shape != shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"expected logits of shape {shape}, got {got}")
