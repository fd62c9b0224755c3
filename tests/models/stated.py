"""Networks of sandglass blocks computed from a stated table, with torch.nn.functional only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(NamedTuple):
    """One line of a table."""

    into: int
    hidden: int
    out: int
    depthwise: str
    """both, last or none."""
    stride: int
    shortcut: bool
    kernel: int = 3
    squeezed: int = 0
    """Channels within the squeeze-and-excitation; 0: there is none."""
    groups: int = 1
    """Groups of the 1x1 convolutions."""


@dataclass(frozen=True)
class Stated:
    """A network: stem of 3x3 with stride 2, blocks, average, linear layer."""

    blocks: Sequence[Block]
    activation: Callable[[Tensor], Tensor] = functional.relu6
    eps: float = 1e-5
    same_padding: bool = False
    """Whether padding is TensorFlow's."""
    classes: int = 11


class _Pass:
    """One forward pass that takes tensors from a list, or draws them and calibrates the norms."""

    def __init__(self, network: Stated, tensors: Sequence[Tensor] | None) -> None:
        self.network = network
        self.given = None if tensors is None else iter(tensors)
        self.used: list[Tensor] = []

    def tensor(self, draw: Callable[[], Tensor]) -> Tensor:
        self.used.append(draw() if self.given is None else next(self.given))
        return self.used[-1]

    def weight(self, *shape: int) -> Tensor:
        fan_in = torch.Size(shape[1:]).numel()
        return self.tensor(lambda: torch.randn(shape) * fan_in**-0.5)

    def conv_norm(self, x: Tensor, out: int, kernel: int, stride: int, groups: int) -> Tensor:
        weight = self.weight(out, x.shape[1] // groups, kernel, kernel)
        size, total = x.shape[-1], kernel - 1
        if self.network.same_padding:
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before, after = total // 2, total - total // 2
        if not self.network.same_padding:
            before = after = kernel // 2
        x = functional.pad(x, (before, after, before, after))
        x = functional.conv2d(x, weight, stride=stride, groups=groups)
        scale = self.tensor(lambda: torch.empty(out).uniform_(0.7, 1.3))
        shift = self.tensor(lambda: torch.randn(out) * 0.2)
        mean = self.tensor(lambda: x.mean((0, 2, 3)))
        var = self.tensor(lambda: x.var((0, 2, 3), correction=0))
        return functional.batch_norm(x, mean, var, scale, shift, eps=self.network.eps)

    def biased_conv(self, x: Tensor, out: int) -> Tensor:
        weight = self.weight(out, x.shape[1], 1, 1)
        return functional.conv2d(x, weight, self.tensor(lambda: torch.randn(out) * 0.2))

    def block(self, x: Tensor, line: Block) -> Tensor:
        act, out = self.network.activation, x
        if line.depthwise == "both":
            out = act(self.conv_norm(out, line.into, line.kernel, 1, line.into))
        out = self.conv_norm(out, line.hidden, 1, 1, line.groups)
        out = act(self.conv_norm(out, line.out, 1, 1, line.groups))
        if line.depthwise != "none":
            out = self.conv_norm(out, line.out, line.kernel, line.stride, line.out)
        if line.squeezed:
            pooled = act(self.biased_conv(out.mean((2, 3), keepdim=True), line.squeezed))
            out = out * torch.sigmoid(self.biased_conv(pooled, line.out))
        return out + x if line.shortcut else out

    def __call__(self, images: Tensor) -> Tensor:
        blocks = self.network.blocks
        x = self.network.activation(self.conv_norm(images, blocks[0].into, 3, 2, 1))
        for line in blocks:
            x = self.block(x, line)
        weight = self.weight(self.network.classes, x.shape[1])
        bias = self.tensor(lambda: torch.randn(self.network.classes) * 0.2)
        return functional.linear(x.mean((2, 3)), weight, bias)


def images(count: int = 16, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def drawn(network: Stated) -> list[Tensor]:
    """Weights for a stated network, and statistics that keep activations at unit variance."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        run = _Pass(network, None)
        run(images())
    return run.used


def with_tensors(network: Any, tensors: Sequence[Tensor]) -> Any:
    """A module with the tensors of a stated network, layer by layer in order; evaluation mode."""
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    return network.eval()


def difference(network: nn.Module, stated: Stated, tensors: Sequence[Tensor]) -> float:
    """How far a module's logits are from the stated network's, relative to their spread.

    Means over the images are taken off first: a bias that all images share hides the rest.
    """
    with torch.no_grad():
        wanted, got = _Pass(stated, tensors)(images()), network(images())
        mean_free = wanted - wanted.mean(0)
        assert mean_free.norm() > 0.2 * wanted.norm(), "all images give nearly the same logits"
        return ((got - got.mean(0)) - mean_free).norm().item() / mean_free.norm().item()
