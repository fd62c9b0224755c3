"""An optimiser step as one CUDA graph: the host launches it once instead of a kernel at a time."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mobilenext.training.step import Loss, Measured, Update

EAGER_STEPS = 3
"""First steps of a session, which are not captured: momentum is allocated, cuDNN chooses
algorithms."""

Recorded = tuple[Callable[[], object], Measured]
"""Does the recorded work again; and where its measurements are then."""


def record(function: Callable[[], Measured]) -> Recorded:
    """Record what a function has the device do, without doing it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        measured = function()
    return graph.replay, measured


class GraphedUpdate:
    """An `Update` whose steps are replayed from a recording; the same bits.

    Learning rates are on the device, since a recording keeps numbers of the host as they were; the
    optimiser has to take them so (torch's fused ones do). Random numbers of the device come from
    the generator's seed at each replay.

    Args:
        update: What does a step.
        recorder: Records a step; see `record`.
    """

    def __init__(
        self,
        update: Update,
        recorder: Callable[[Callable[[], Measured]], Recorded] = record,
    ) -> None:
        self.update, self.recorder = update, recorder
        self.optimizer, self.skips_nonfinite = update.optimizer, update.skips_nonfinite
        self.rates = [
            torch.zeros((), device=update.precision.device) for _ in update.optimizer.param_groups
        ]
        self.steps = 0
        self.batch: list[Tensor] = []
        self.recorded: Recorded | None = None

    def __call__(self, batch: Sequence[Any], loss: Loss) -> Measured:
        """Do a step; see `Update`. All batches have the same shapes and the same loss."""
        self.steps += 1
        with self._rates_on_device():
            if self.steps <= EAGER_STEPS:
                return self.update(batch, loss)
            if self.recorded is None:
                self.batch = [part.clone() for part in batch]
                self.recorded = self.recorder(lambda: self.update(self.batch, loss))
        replay, measured = self.recorded
        for kept, part in zip(self.batch, batch, strict=True):
            kept.copy_(part)
        replay()
        return Measured(
            measured.loss.clone(), measured.correct.clone(), measured.finite.clone(),
            measured.images,
        )  # fmt: skip

    @contextmanager
    def _rates_on_device(self) -> Any:
        """Have the optimiser find its groups' rates on the device, within."""
        groups = self.update.optimizer.param_groups
        numbers = [group["lr"] for group in groups]
        for group, rate, number in zip(groups, self.rates, numbers, strict=True):
            rate.fill_(number)
            group["lr"] = rate
        try:
            yield
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group["lr"] = number
