"""Steps of an architecture's parameters between those of the weights (DARTS, arXiv 1806.09055)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mobilenext.genotype import Genotype
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import Precision

Batch = tuple[Tensor, Tensor]
"""Images (N, 3, H, W) and labels (N,)."""

FINITE_DIFFERENCE = 1e-2
"""DARTS' r: the weights are moved by r over the gradient's norm."""


@runtime_checkable
class Searched(Protocol):
    """What a search needs of its supernet, beside that it is a network."""

    operators: tuple[str, ...]
    """Names of the operators, in the order of the alphas."""
    nodes: int
    """Nodes of a cell."""

    @property
    def architecture(self) -> list[Tensor]:
        """The tensors that are learned beside the weights."""
        ...

    def weights(self) -> tuple[list[Any], list[Any] | None]:
        """Softmax of the alphas, and weights of the edges if they have some."""
        ...

    def genotype(self) -> Genotype:
        """The cells that the alphas describe."""
        ...

    def entropy(self) -> float:
        """Mean entropy of the edges' softmax over its maximum, in [0, 1]."""
        ...


class ArchitectureUpdate:
    """One step of an architecture's parameters, by the loss on images that the weights don't see.

    The second order looks one step of the weights ahead, as their optimiser (SGD) would make it
    without clipping: w' = w - lr (momentum m + dL_train/dw + decay w). The gradient of L_val(w')
    with respect to the architecture is that at w', less lr times the derivative of
    <dL_train/dw, v> with v = dL_val/dw', which is computed exactly (by a second backward pass), or
    by DARTS' finite differences. All of it is linear in L_train's gradient, so that micro-batches
    and processes are averaged exactly.

    Args:
        network: Called with images and the architecture's tensors; makes logits.
        architecture: Tensors to be learned, in place; no parameters of the network.
        optimizer: Of these tensors.
        weights_optimizer: Of the weights, for the second order.
        precision: How the passes compute.
        process: This process, whose batches are its share.
        order: first, second or second_fd.
        micro_batch: Images of one forward pass; None: all at once. Has to divide the share.
        skips_nonfinite: Whether a gradient that is not finite counts as none.
    """

    def __init__(
        self,
        network: nn.Module,
        architecture: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        weights_optimizer: torch.optim.Optimizer,
        precision: Precision,
        process: Process,
        order: str = "first",
        micro_batch: int | None = None,
        skips_nonfinite: bool = False,
    ) -> None:
        self.network, self.architecture, self.optimizer = network, architecture, optimizer
        self.weights_optimizer, self.precision, self.process = weights_optimizer, precision, process
        self.order, self.micro_batch, self.skips_nonfinite = order, micro_batch, skips_nonfinite

    def __call__(self, held_out: Batch, train: Batch, lr: float) -> None:
        """Do a step; nothing in it waits for the device.

        Args:
            held_out: Images that the weights don't learn from.
            train: Images of the weights' next step.
            lr: Learning rate of that step.
        """
        scaler = self.precision.scaler
        buffers = list(self.network.buffers())
        # A forward pass that overflows leaves its mark in the running statistics.
        before = [buffer.clone() for buffer in buffers] if self.skips_nonfinite else []
        gradients = self.gradient(held_out, train, lr)
        if self.skips_nonfinite:
            finite = torch.stack([one.isfinite().all() for one in gradients]).all()
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(torch.where(finite, buffer, value))
            if not scaler.is_enabled():  # which leaves such a step out by itself
                gradients = [torch.where(finite, one, 0) for one in gradients]
        for tensor, gradient in zip(self.architecture, gradients, strict=True):
            tensor.grad = gradient
        if scaler.is_enabled():
            scaler.unscale_(self.optimizer)
        scaler.step(self.optimizer)
        for tensor in self.architecture:
            tensor.grad = None

    def gradient(self, held_out: Batch, train: Batch, lr: float) -> list[Tensor]:
        """Gradient of the architecture's tensors; with fp16 it is scaled."""
        leaves = self._leaves()
        if self.order == "first":

            def scaled(images: Tensor, labels: Tensor) -> list[Tensor]:
                loss = self.precision.scaler.scale(self._loss(None, leaves, images, labels))
                return list(torch.autograd.grad(loss, leaves))

            return self._mean(held_out, scaled)
        return self._second_order(leaves, held_out, train, lr)

    def _second_order(
        self, leaves: list[Tensor], held_out: Batch, train: Batch, lr: float
    ) -> list[Tensor]:
        names, parameters = zip(*self.network.named_parameters(), strict=True)
        count = len(leaves)

        def gradients_at(values: Sequence[Tensor], wanted: Sequence[Tensor], batch: Batch):
            named = dict(zip(names, values, strict=True))
            return self._mean(
                batch,
                lambda images, labels: list(
                    torch.autograd.grad(self._loss(named, leaves, images, labels), wanted)
                ),
            )

        whole = self.micro_batch is None or len(train[0]) <= self.micro_batch
        kept: list[tuple[Tensor, ...]] = []

        def inner(images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            """The weights' gradient, to be differentiated; kept if it is the whole share's."""
            if kept:
                return kept[0]
            named = dict(zip(names, parameters, strict=True))
            loss = self._loss(named, leaves, images, labels)
            found = torch.autograd.grad(loss, parameters, create_graph=True)
            if whole:
                kept.append(found)
            return found

        if self.order == "second" and whole:
            steps = self._mean(train, lambda *batch: [g.detach() for g in inner(*batch)])
        else:
            steps = gradients_at(parameters, parameters, train)
        ahead = [value.requires_grad_() for value in self._ahead(parameters, steps, lr)]
        both = gradients_at(ahead, [*leaves, *ahead], held_out)
        direct, vectors = both[:count], both[count:]
        if self.order == "second":

            def mixed(images: Tensor, labels: Tensor) -> list[Tensor]:
                pairs = zip(inner(images, labels), vectors, strict=True)
                product = torch.stack([(a * b).sum() for a, b in pairs]).sum()
                return list(torch.autograd.grad(product, leaves))

            correction = self._mean(train, mixed)
        else:
            norm = torch.stack([vector.norm() for vector in vectors]).norm()
            size = FINITE_DIFFERENCE / norm
            moved = []
            for sign in (1, -1):
                at = [(p + sign * size * v).detach()
                      for p, v in zip(parameters, vectors, strict=True)]  # fmt: skip
                moved.append(gradients_at(at, leaves, train))
            correction = [(up - down) / (2 * size) for up, down in zip(*moved, strict=True)]
        return [d - lr * c for d, c in zip(direct, correction, strict=True)]

    def _ahead(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], lr: float
    ) -> list[Tensor]:
        """The weights after a step of their optimiser."""
        settings = {
            id(p): group for group in self.weights_optimizer.param_groups for p in group["params"]
        }
        ahead = []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            group, value = settings[id(parameter)], parameter.detach()
            step = gradient + group["weight_decay"] * value
            momentum = self.weights_optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                step = step * (1 - group["dampening"]) + group["momentum"] * momentum
            ahead.append(value - lr * step)
        return ahead

    def _loss(
        self,
        parameters: Mapping[str, Tensor] | None,
        leaves: Sequence[Tensor],
        images: Tensor,
        labels: Tensor,
    ) -> Tensor:
        with self.precision.autocast():
            if parameters is None:
                logits = self.network(images, *leaves)
            else:  # running statistics stay as they are: these weights are looked at, not used
                buffers = {name: value.clone() for name, value in self.network.named_buffers()}
                logits = functional_call(self.network, {**buffers, **parameters},
                                         (images, *leaves))  # fmt: skip
            return F.cross_entropy(logits, labels)  # autocast computes it in float32

    def _mean(
        self, batch: Batch, gradients: Callable[[Tensor, Tensor], list[Tensor]]
    ) -> list[Tensor]:
        """Mean of gradients over micro-batches and processes."""
        images, labels = batch
        size = self.micro_batch or len(images)
        parts = [
            gradients(some, theirs)
            for some, theirs in zip(images.split(size), labels.split(size), strict=True)
        ]
        means = parts[0]
        if len(parts) > 1:
            means = [torch.stack(some).mean(0) for some in zip(*parts, strict=True)]
        if self.process.world_size == 1:
            return means
        flat = torch.cat([mean.reshape(-1) for mean in means])
        flat = self.process.all_reduce_sum(flat) / self.process.world_size
        sizes = [mean.numel() for mean in means]
        pieces = zip(flat.split(sizes), means, strict=True)
        return [piece.view_as(mean) for piece, mean in pieces]

    def _leaves(self) -> list[Tensor]:
        return [tensor.detach().requires_grad_() for tensor in self.architecture]
