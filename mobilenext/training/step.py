"""One optimiser step, whatever the network learns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from mobilenext.runtime.precision import Precision

FOREACH_ADD: Any = torch._foreach_add_  # pyright: ignore[reportPrivateImportUsage]

Loss = Callable[..., tuple[Tensor, Tensor | None]]
"""Called with the network and the parts of a micro-batch; returns their mean loss, a scalar, and
how many predictions were right, or None if that is not counted."""


@dataclass(frozen=True)
class Measured:
    """Measurements of an optimiser step on this process's share of the batch, on the device.

    Attributes:
        loss: Mean loss, a scalar.
        correct: Number of correct predictions, a scalar.
        finite: Whether the gradient, the same on all processes, is finite; a scalar.
        images: Number of images, known to the host.
    """

    loss: Tensor
    correct: Tensor
    finite: Tensor
    images: int


class Update:
    """One optimiser step from this process's share of a batch, micro-batch by micro-batch.

    Args:
        network: As training calls it: compiled, or wrapped for several processes.
        optimizer: Of its parameters.
        precision: How the forward and backward pass compute.
        micro_batch: Images of one forward pass; None: all at once. Has to divide the share.
        clip_grad_norm: Upper bound of the gradient's norm; None: none.
        skips_nonfinite: Whether a step whose gradient is not finite is left out; the host then
            waits for the device once a step.
        compiled: Whether the network is compiled.
        reduce: Takes the means of all processes' gradients, in place; None: there is one process,
            or the network's wrapper does it.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        micro_batch: int | None = None,
        clip_grad_norm: float | None = None,
        skips_nonfinite: bool = False,
        compiled: bool = False,
        reduce: Callable[[Sequence[Tensor]], None] | None = None,
    ) -> None:
        self.reduce = reduce
        self.network, self.optimizer, self.precision = network, optimizer, precision
        self.micro_batch, self.clip_grad_norm = micro_batch, clip_grad_norm
        self.skips_nonfinite = skips_nonfinite
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.norms = [] if compiled else [m for m in network.modules() if _counts_for_nobody(m)]

    def __call__(self, batch: Sequence[Any], loss: Loss) -> Measured:
        """Do a step.

        Args:
            batch: The share: inputs first, then what the loss needs; all are sliced alike.
            loss: See `Loss`.
        """
        images, scaler = len(batch[0]), self.precision.scaler
        # A forward pass that overflows leaves its mark in the running statistics.
        before = [b.clone() for b in self.network.buffers()] if self.skips_nonfinite else []
        total, correct, finite = self._backward(batch, loss)
        if not self.skips_nonfinite or bool(finite):
            scaler.step(self.optimizer)
        else:
            for buffer, value in zip(self.network.buffers(), before, strict=True):
                buffer.copy_(value)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Measured(total, correct, finite, images)

    def _backward(self, batch: Sequence[Any], loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the share's mean loss, clipped; the loss, what was right, whether finite.

        Nothing here waits for the device, except fp16's scaler.
        """
        images, scaler = len(batch[0]), self.precision.scaler
        total = torch.zeros((), device=self.precision.device)
        correct = torch.zeros((), dtype=torch.long, device=self.precision.device)
        size = self.micro_batch or images
        starts = range(0, images, size)
        # Processes add up their gradients once, with the last micro-batch.
        no_sync = getattr(self.network, "no_sync", nullcontext)
        for start in starts:
            with nullcontext() if start == starts[-1] else no_sync():
                with self.precision.autocast(), _counted_together(self.norms):
                    mean, right = loss(
                        self.network, *(part[start : start + size] for part in batch)
                    )
                    part_loss = mean / len(starts)
                scaler.scale(part_loss).backward()
            total += part_loss.detach()
            if right is not None:
                correct += right
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.reduce is not None:
            self.reduce(gradients)
        scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad_norm, norm)
        return total, correct, norm.isfinite()


def _counts_for_nobody(module: nn.Module) -> bool:
    """Whether it is a batch norm whose momentum is fixed: it counts batches and never asks."""
    fixed = isinstance(module, _BatchNorm) and module.momentum is not None
    return fixed and module.num_batches_tracked is not None


@contextmanager
def _counted_together(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Have batch norms' counts of batches added to at once: alone, each is a kernel of its own.

    One for each forward pass of the network, however often it comes to a norm.
    """
    counting = [norm for norm in norms if norm.training]
    # At each step: `get_buffer` takes twenty times as long.
    counts = [norm._buffers["num_batches_tracked"] for norm in counting]
    for norm in counting:  # hides the buffer from its forward pass, and from nothing else
        norm.__dict__["num_batches_tracked"] = None
    try:
        yield
    finally:
        for norm in counting:
            del norm.__dict__["num_batches_tracked"]
    if counts:
        FOREACH_ADD(counts, 1)
