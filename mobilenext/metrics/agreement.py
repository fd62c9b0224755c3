"""How far another form of a network answers as the network does."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenext.runtime.precision import ieee_float32

LogitsOf = Callable[[Tensor], Tensor]
"""Maps pixels, uint8 (N, 3, H, W) on a device, to logits (N, num_classes) on any."""


def decibels(signal: float, noise: float) -> float:
    """Ratio of two powers in dB; at most 200, so that it can be written."""
    return 200.0 if noise <= signal * 1e-20 else 10 * math.log10(max(signal, 1e-300) / noise)


class Agreement:
    """Sums over images of what a network and another form of it answer; never waits for a device.

    Args:
        device: Where the answers are.
    """

    def __init__(self, device: torch.device) -> None:
        exact = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(9, dtype=exact, device=device)

    @torch.no_grad()
    def add(self, expected: Tensor, found: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            expected: The network's logits, (N, num_classes).
            found: The other form's.
            labels: (N,).
        """
        exact = self._sums.dtype
        right, other_right = expected.argmax(1) == labels, found.argmax(1) == labels
        seen = torch.full((), float(len(labels)), dtype=exact, device=self._sums.device)
        self._sums += torch.stack(
            [
                seen,
                right.sum().to(exact),
                other_right.sum().to(exact),
                (right & ~other_right).sum().to(exact),
                (expected.argmax(1) == found.argmax(1)).sum().to(exact),
                F.cross_entropy(expected, labels, reduction="sum").to(exact),
                F.cross_entropy(found, labels, reduction="sum").to(exact),
                expected.to(exact).square().sum(),
                (found.to(exact) - expected.to(exact)).square().sum(),
            ]
        )

    def result(self) -> dict[str, float]:
        """What the images say.

        Returns:
            top1 and loss of the other form, in per cent and nats; drop: points of top-1 that it is
            below the network; drop_std_error: of that difference between answers to the same
            images; agreement: per cent of the images with the network's answer; sqnr_db: power of
            the network's logits over that of the difference, in dB.
        """
        (count, right, other_right, lost, same, _, loss, signal, noise) = self._sums.tolist()
        won = other_right - (right - lost)
        mean = (lost - won) / count
        variance = max(0.0, (lost + won) / count - mean**2)
        return {
            "top1": 100 * other_right / count,
            "loss": loss / count,
            "drop": 100 * mean,
            "drop_std_error": 100 * math.sqrt(variance / count),
            "agreement": 100 * same / count,
            "sqnr_db": decibels(signal, noise),
        }

    def expected(self) -> dict[str, Any]:
        """top1 in per cent, loss in nats, and the count of the images, of the network itself."""
        sums = self._sums.tolist()
        return {"top1": 100 * sums[1] / sums[0], "loss": sums[5] / sums[0], "count": int(sums[0])}


@torch.no_grad()
def compare(
    network: LogitsOf,
    others: Mapping[str, LogitsOf],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
) -> dict[tuple[str, str], Agreement]:
    """Compare other forms of a network with it, and each with those before it.

    Args:
        network: The network.
        others: Its other forms, by name.
        batches: Pixels, uint8 (N, 3, H, W), and labels, (N,), on the device.
        device: Where to compare.

    Returns:
        By (name of the expected, name of the found), where "" is the network.
    """
    names = ["", *others]
    found = {
        (names[first], names[second]): Agreement(device)
        for second in range(1, len(names))
        for first in range(second)
    }
    for pixels, labels in batches:
        with ieee_float32():
            logits = {"": network(pixels).float()}
            for name, other in others.items():
                logits[name] = other(pixels).float().to(device)
        for (first, second), agreement in found.items():
            agreement.add(logits[first], logits[second], labels)
    return found
