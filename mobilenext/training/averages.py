"""Averages of a network's weights over the steps of its training."""

import copy

import torch
from torch import Tensor, nn

FOREACH_LERP, FOREACH_COPY = torch._foreach_lerp_, torch._foreach_copy_  # pyright: ignore


class AveragedWeights:
    """Exponential moving averages of all parameters and running statistics.

    The same numbers as timm's `ModelEmaV3`, bit for bit. The lists of tensors are made once, not at
    each step, and counters are copied together: on a GPU that is most of its cost.

    Args:
        network: Its weights at this moment are the first averages.
        decay: Share of the averages that stays at each step, in (0, 1).
        warmup: Begin with a smaller decay that grows towards `decay`.

    Attributes:
        module: A copy of the network that has the averages, in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool = False) -> None:
        self.module = copy.deepcopy(network).eval()
        self.decay, self.warmup = decay, warmup
        self._followed: nn.Module | None = None
        self._averages: tuple[list[Tensor], list[Tensor]] = [], []
        self._values: tuple[list[Tensor], list[Tensor]] = [], []

    def decay_at(self, step: int) -> float:
        """The decay of an update, by optimiser steps done: 0 for the first, which is a copy."""
        if step <= 1:
            return 0.0
        return min(self.decay, 1 - step ** (-2 / 3)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take the weights after a step into the averages.

        Args:
            network: The same at each call.
            step: Optimiser steps done.
        """
        if self._followed is not network:
            self._followed = network
            self._averages, self._values = _tensors(self.module), _tensors(network)
        (averages, counts), (values, new_counts) = self._averages, self._values
        FOREACH_LERP(averages, values, weight=1.0 - self.decay_at(step))
        if counts:
            FOREACH_COPY(counts, new_counts)


def _tensors(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What a state dict has: floating-point tensors, which are averaged, and others."""
    tensors = list(network.state_dict(keep_vars=True).values())
    return (
        [tensor for tensor in tensors if tensor.is_floating_point()],
        [tensor for tensor in tensors if not tensor.is_floating_point()],
    )
