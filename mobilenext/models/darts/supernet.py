"""The network that DARTS searches in: every edge has all operators, weighted by a softmax.

All edges that leave one state read the same map, with the same stride. So their operators are
computed together, as one wide operator: one grouped convolution for all edges instead of one for
each. A batch norm without parameters of its own, over the channels of all edges, is the same as one
for each edge; and the softmax's weights of the operators that end in such a norm are its scale.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mobilenext.errors import InputError
from mobilenext.genotype import (
    BLOCKS,
    SKIP,
    SPACES,
    BlockSettings,
    Genotype,
    edges_of,
    reductions,
    strongest,
)
from mobilenext.models.darts.found import check_size
from mobilenext.models.darts.operators import (
    DEPTHWISE,
    FEWEST_CHANNELS,
    Depthwise,
    Strided,
    block_settings,
    check_operators,
    memory_format_of,
    one_further,
)


class Norm(nn.Module):
    """A batch norm without parameters; a scale may come with the call.

    Args:
        channels: Of the map.
    """

    momentum = 0.1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """(N, C, H, W) normalised, times a scale (C,)."""
        return F.batch_norm(
            x, self.get_buffer("running_mean"), self.get_buffer("running_var"), scale, None,
            self.training, self.momentum,
        )  # fmt: skip


class Reduction(nn.Module):
    """Factorized reductions of several edges that read the same map; see `FactorizedReduction`.

    Args:
        into: Channels of the map.
        out: Channels of each edge's output, even.
        edges: Their number.
    """

    def __init__(self, into: int, out: int, edges: int = 1) -> None:
        super().__init__()
        self.edges = edges
        self.even, self.odd = (Strided(into, edges * (out // 2)) for _ in range(2))
        self.norm = Norm(edges * out)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """(N, into, H, W), with a ReLU before it, to (N, edges * out, H / 2, W / 2)."""
        even, odd = self.even(x), self.odd(one_further(x))
        if self.edges > 1:
            parts = [half.unflatten(1, (self.edges, -1)) for half in (even, odd)]
            return self.norm(torch.cat(parts, 2).flatten(1, 2), scale)
        return self.norm(torch.cat([even, odd], 1), scale)


class WideSeparable(nn.Module):
    """A separable or dilated convolution of several edges: see `operators.operator`.

    Args:
        name: A key of `DEPTHWISE`.
        channels: Of each edge.
        edges: Their number.
        stride: 1 or 2.
    """

    def __init__(self, name: str, channels: int, edges: int, stride: int) -> None:
        super().__init__()
        kernel, dilation = DEPTHWISE[name]
        wide, times = channels * edges, 2 if dilation == 1 else 1
        self.convolutions = nn.ModuleList()
        for time in range(times):
            first = Depthwise(wide, kernel, 1 if time else stride, dilation)
            self.convolutions.extend([first, pointwise(wide, wide, edges)])
        self.norms = nn.ModuleList(Norm(wide) for _ in range(times))

    def forward(self, rectified: Tensor, scale: Tensor) -> Tensor:
        """Maps of all edges after a ReLU, (N, edges * channels, H, W), to what comes of them."""
        x = rectified
        for time, norm in enumerate(self.norms):
            last = time + 1 == len(self.norms)
            x = self.convolutions[2 * time + 1](self.convolutions[2 * time](x))
            x = norm(x, scale) if last else F.relu(norm(x))
        return x


class WideSandglass(nn.Module):
    """Sandglass blocks of several edges without their shortcuts: see `operators.sandglass`.

    Args:
        channels: Of each edge.
        edges: Their number.
        stride: 1 or 2.
        settings: Kernel and ratio.
    """

    def __init__(self, channels: int, edges: int, stride: int, settings: BlockSettings) -> None:
        super().__init__()
        wide, hidden = channels * edges, max(1, channels // settings.ratio) * edges
        self.convolutions = nn.ModuleList(
            [Depthwise(wide, settings.kernel), pointwise(wide, hidden, edges),
             pointwise(hidden, wide, edges), Depthwise(wide, settings.kernel, stride)]
        )  # fmt: skip
        self.norms = nn.ModuleList(map(Norm, (wide, hidden, wide, wide)))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Maps of all edges, (N, edges * channels, H, W), to what comes of them."""
        first, reduce, expand, last = self.convolutions
        x = F.relu6(self.norms[0](first(x)))
        x = F.relu6(self.norms[2](expand(self.norms[1](reduce(x)))))
        return self.norms[3](last(x), scale)


class WideInvertedResidual(nn.Module):
    """Inverted residuals of several edges without their shortcuts.

    Args:
        channels: Of each edge.
        edges: Their number.
        stride: 1 or 2.
        settings: Kernel and ratio.
    """

    def __init__(self, channels: int, edges: int, stride: int, settings: BlockSettings) -> None:
        super().__init__()
        hidden = channels * settings.ratio * edges
        self.convolutions = nn.ModuleList(
            [pointwise(channels, hidden, 1), Depthwise(hidden, settings.kernel, stride),
             pointwise(hidden, channels * edges, edges)]
        )  # fmt: skip
        self.norms = nn.ModuleList(map(Norm, (hidden, hidden, channels * edges)))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """The state itself, (N, channels, H, W), to what comes of it for all edges."""
        expand, convolution, project = self.convolutions
        x = F.relu6(self.norms[0](expand(x)))
        x = F.relu6(self.norms[1](convolution(x)))
        return self.norms[2](project(x), scale)


def pointwise(into: int, out: int, groups: int) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(into, out, 1, groups=groups, bias=False)


class Fan(nn.Module):
    """All operators of all edges that leave one state, summed up for each edge.

    Args:
        channels: Of the state, and of each edge's output.
        edges: Number of edges.
        stride: 1 or 2.
        operators: Their names.
        settings: Of those that have some, by name.
        auxiliary_skip: Whether each edge has a second skip connection, whose weight is given.
    """

    def __init__(
        self,
        channels: int,
        edges: int,
        stride: int,
        operators: Sequence[str],
        settings: Mapping[str, BlockSettings],
        auxiliary_skip: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.edges, self.stride = channels, edges, stride
        self.operators, self.auxiliary_skip = tuple(operators), auxiliary_skip
        self.settings = settings
        self.wide = nn.ModuleDict()
        for name in operators:
            if name in DEPTHWISE:
                self.wide[name] = WideSeparable(name, channels, edges, stride)
            elif name == SKIP and stride == 2:
                self.wide[name] = Reduction(channels, channels, edges)
            elif name in BLOCKS:
                block = WideSandglass if name == "sandglass" else WideInvertedResidual
                self.wide[name] = block(channels, edges, stride, self.settings[name])
        if stride == 2 and auxiliary_skip:
            self.bypass = Reduction(channels, channels, edges)
        self.norms = nn.ModuleDict(
            {name: Norm(channels * edges) for name in operators if name in POOLS}
        )

    def forward(self, x: Tensor, weights: Tensor, bypass: Tensor) -> tuple[Tensor, ...]:
        """The weighted sums of all operators, one for each edge.

        Args:
            x: The state, (N, channels, H, W).
            weights: Of the operators by edge, (edges, operators).
            bypass: Weights of the second skip connections, (edges,).

        Returns:
            (N, channels, H / stride, W / stride) for each edge.
        """
        # One scale for each channel of each edge, by operator.
        rows = weights.t().repeat_interleave(self.channels, 1).unbind()
        scales = dict(zip(self.operators, rows, strict=True))
        rectified = F.relu(x)
        inputs = {"rectified": self._many(rectified), "reduced": rectified, "state": x}
        if self.stride == 1 or "sandglass" in scales:
            inputs["states"] = self._many(x)
        parts = []
        for name, operator in self.wide.items():
            parts.append(operator(inputs[INPUTS.get(name, "rectified")], scales[name]))
        for name, norm in self.norms.items():
            parts.append(norm(self._many(POOLS[name](x, self.stride)), scales[name]))
        if self.stride == 2 and self.auxiliary_skip:
            parts.append(self.bypass(rectified, bypass.repeat_interleave(self.channels)))
        own = [scales[SKIP]] if SKIP in scales else []
        own += [scales[name] for name, block in self.settings.items()
                if name in scales and block.shortcut]  # fmt: skip
        own += [bypass.repeat_interleave(self.channels)] if self.auxiliary_skip else []
        if own and self.stride == 1:
            factor = torch.stack(own).sum(0).to(x.dtype)
            parts.append(inputs["states"] * factor[:, None, None])
        return _SameFormat.apply(sum(parts[1:], parts[0])).chunk(self.edges, 1)

    def _many(self, x: Tensor) -> Tensor:
        """The map once for each edge; `repeat` would not keep channels_last."""
        return torch.cat([x] * self.edges, 1)


class _SameFormat(torch.autograd.Function):
    """Nothing, going forward; going backward, gradients get the memory format of the map.

    The gradient of `chunk` is contiguous, and batch norms take ten times as long on a CPU if their
    gradient's format is another one than their input's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.memory_format = memory_format_of(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous(memory_format=ctx.memory_format)


def _average(x: Tensor, stride: int) -> Tensor:
    return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)


POOLS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "max_pool_3x3": lambda x, stride: F.max_pool2d(x, 3, stride, 1),
    "avg_pool_3x3": _average,
}
INPUTS = {SKIP: "reduced", "inverted_residual": "state", "sandglass": "states"}
"""What an operator reads, if it is not the state after a ReLU, once for each edge."""


def rows_by_source(nodes: int) -> list[list[int]]:
    """Places of the edges that leave each state, in the order of `edges_of`."""
    return [
        [row for row, (_, source) in enumerate(edges_of(nodes)) if source == state]
        for state in range(nodes + 1)
    ]


class SearchCell(nn.Module):
    """A cell with all edges and all operators.

    Args:
        before: Channels of the output of the cell before the last.
        last: Channels of the last cell's output.
        channels: Of each node.
        nodes: Number of nodes.
        reduction: Whether it halves height and width.
        after_reduction: Whether the last cell did.
        partial_channels: One of so many channels goes through the operators.
        fan: Further arguments of `Fan`.
    """

    def __init__(
        self,
        before: int,
        last: int,
        channels: int,
        nodes: int,
        reduction: bool,
        after_reduction: bool,
        partial_channels: int,
        fan: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.nodes, self.reduction, self.partial = nodes, reduction, partial_channels
        if after_reduction:
            self.preprocess0: nn.Module = Reduction(before, channels)
        else:
            self.preprocess0 = nn.Sequential(nn.Conv2d(before, channels, 1, bias=False),
                                             Norm(channels))  # fmt: skip
        self.preprocess1 = nn.Sequential(nn.Conv2d(last, channels, 1, bias=False), Norm(channels))
        self.fans = nn.ModuleList(
            Fan(channels // partial_channels, len(rows), 2 if reduction and state < 2 else 1, **fan)
            for state, rows in enumerate(rows_by_source(nodes))
        )

    def forward(
        self,
        before: Tensor,
        last: Tensor,
        weights: Sequence[Tensor],
        edges: Sequence[Tensor],
        bypass: Tensor,
    ) -> Tensor:
        """The nodes side by side, (N, nodes * channels, ...).

        Args:
            before: Output of the cell before the last.
            last: Output of the last cell.
            weights: Of operators, (edges, operators) for each state that they leave.
            edges: Of the edges themselves, (edges,) for each state; none: all count alike.
            bypass: Weight of the second skip connections, a scalar.
        """
        states = [self.preprocess0(F.relu(before)), self.preprocess1(F.relu(last))]
        waiting: list[list[Tensor]] = [[] for _ in range(self.nodes)]
        for number, fan in enumerate(self.fans):
            if number > 1:
                states.append(sum(waiting[number - 2][1:], waiting[number - 2][0]))
            own = edges[number] if edges else None
            outs = self._edges(fan, states[number], weights[number], own, bypass)
            for place, out in zip(range(self.nodes - len(outs), self.nodes), outs, strict=True):
                waiting[place].append(out)
        states.append(sum(waiting[-1][1:], waiting[-1][0]))
        return torch.cat(states[2:], 1)

    def _edges(
        self, fan: nn.Module, x: Tensor, weights: Tensor, own: Tensor | None, bypass: Tensor
    ) -> Sequence[Tensor]:
        """What each edge makes of a state; `own` are weights of the edges themselves."""
        bypass = bypass.expand(len(weights))
        if own is not None:
            weights, bypass = weights * own[:, None], bypass * own
        if self.partial == 1:
            return fan(x, weights, bypass)
        # PC-DARTS (arXiv 1907.05737): the other channels pass by, and a shuffle mixes both.
        size = x.shape[1] // self.partial
        searched, rest = x[:, :size], x[:, size:]
        outs = fan(searched, weights, bypass)
        if outs[0].shape[2:] != rest.shape[2:]:
            rest = F.max_pool2d(rest, 2, 2, ceil_mode=True)
        factors = [1.0] * len(outs) if own is None else own.to(rest.dtype).unbind()
        both = [torch.cat([out, rest * factor], 1) for out, factor in zip(outs, factors,
                                                                         strict=True)]  # fmt: skip
        return [
            one.unflatten(1, (self.partial, size)).transpose(1, 2).flatten(1, 2) for one in both
        ]


class Supernet(nn.Module):
    """DARTS' supernet for images of CIFAR-10's kind, with its architecture parameters as buffers.

    They are buffers since neither the weights' optimiser nor DistributedDataParallel may touch
    them; who learns them hands leaf tensors to the call. Without any, the network is an ordinary
    classifier with the weights and alphas that it has.

    Args:
        num_classes: Logits.
        channels: Channels of a node in the first cells.
        cells: At least 3; a third and two thirds of the way are reduction cells.
        nodes: Nodes of a cell.
        operators: Of each edge, by name; see `mobilenext.genotype`.
        sandglass: Kernel, ratio and shortcut of sandglass blocks.
        inverted_residual: The same of inverted residuals.
        partial_channels: PC-DARTS: one of so many channels goes through the operators.
        edge_weights: PC-DARTS: edges have weights of their own, a softmax for each node.
        auxiliary_skip: DARTS- (arXiv 2009.01027): a second skip connection on each edge, whose
            weight falls from 1 towards 0 with `set_progress`.
        checkpointing: Compute the cells' activations again in the backward pass.
        stem_stride: Of the first convolution; 2 halves all maps.

    Attributes:
        alpha: (2, edges, operators) before the softmax; of normal and of reduction cells.
        beta: (2, edges) before the softmax; None without edge weights.

    Shapes:
        (N, 3, H, W) to (N, num_classes).

    Raises:
        InputError: Something that can't be built.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 16,
        cells: int = 8,
        nodes: int = 4,
        operators: Sequence[str] = SPACES["darts"],
        sandglass: Mapping[str, Any] | None = None,
        inverted_residual: Mapping[str, Any] | None = None,
        partial_channels: int = 1,
        edge_weights: bool = False,
        auxiliary_skip: bool = False,
        checkpointing: bool = False,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.operators, self.nodes, self.num_classes = tuple(operators), nodes, num_classes
        self.checkpointing = checkpointing
        check_operators(self.operators)
        check_size(channels, cells, stem_stride)
        _check_partial(channels, partial_channels)
        if not 1 <= nodes <= 16:
            raise InputError(f"nodes: expected 1 to 16, got {nodes}")
        self.settings = block_settings(sandglass=sandglass, inverted_residual=inverted_residual)
        fan = {
            "operators": self.operators, "settings": self.settings,
            "auxiliary_skip": auxiliary_skip,
        }  # fmt: skip
        width = 3 * channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(width)
        )
        self.cells = nn.ModuleList()
        before, last, reduced = width, width, False
        for number in range(cells):
            reduction = number in reductions(cells)
            channels *= 1 + reduction
            self.cells.append(
                SearchCell(before, last, channels, nodes, reduction, reduced, partial_channels, fan)
            )
            before, last, reduced = last, channels * nodes, reduction
        self.classifier = nn.Linear(last, num_classes)
        edges = len(edges_of(nodes))
        self.alpha: Tensor
        self.beta: Tensor | None
        self.register_buffer("alpha", 1e-3 * torch.randn(2, edges, len(self.operators)))
        self.register_buffer("beta", 1e-3 * torch.randn(2, edges) if edge_weights else None)
        self.register_buffer("bypass", torch.ones(()))
        rows = rows_by_source(nodes)
        self.sizes = [len(some) for some in rows]
        order = torch.tensor([row for some in rows for row in some])
        self.register_buffer("order", order, persistent=False)

    @property
    def architecture(self) -> list[Tensor]:
        """The tensors that a search learns beside the weights."""
        return [self.alpha] if self.beta is None else [self.alpha, self.beta]

    def set_progress(self, share: float) -> None:
        """Let the second skip connections count as at this share of the search, in [0, 1]."""
        self.get_buffer("bypass").fill_(1 - share)

    def forward(
        self, images: Tensor, alpha: Tensor | None = None, beta: Tensor | None = None
    ) -> Tensor:
        """Logits (N, num_classes).

        Args:
            images: (N, 3, H, W).
            alpha: In place of the buffer.
            beta: In place of the buffer.
        """
        alpha = self.alpha if alpha is None else alpha
        beta = self.beta if beta is None else beta
        weights, edges = self._softmax(alpha, beta)
        # In the order of the states that edges leave, by tensors: lists would wait for the device.
        order, bypass = self.get_buffer("order"), self.get_buffer("bypass")
        by_state = [one.split(self.sizes) for one in weights.index_select(1, order)]
        own = [()] * 2
        if edges is not None:
            own = [one.split(self.sizes) for one in edges.index_select(1, order)]
        before = last = self.stem(images)
        for cell in self.cells:
            assert isinstance(cell, SearchCell)
            kind = int(cell.reduction)
            given = (before, last, by_state[kind], own[kind], bypass)
            if self.checkpointing and torch.is_grad_enabled():
                out = checkpoint(
                    cell,
                    *given,
                    use_reentrant=False,
                    context_fn=lambda: (nullcontext(), StatisticsKept()),
                )
                assert isinstance(out, Tensor)
            else:
                out = cell(*given)
            before, last = last, out
        return self.classifier(last.mean((2, 3)))

    def _softmax(self, alpha: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weights = alpha.softmax(-1)
        if beta is None:
            return weights, None
        sizes = [2 + node for node in range(self.nodes)]
        parts = beta.split(sizes, 1)
        return weights, torch.cat([part.softmax(1) for part in parts], 1)

    @torch.no_grad()
    def weights(self) -> tuple[list[Any], list[Any] | None]:
        """Softmax of alphas, and of the edges if they have weights, as nested lists."""
        weights, edges = self._softmax(self.alpha, self.beta)
        return weights.tolist(), None if edges is None else edges.tolist()

    def genotype(self) -> Genotype:
        """The cells that the alphas describe, by DARTS' rule (`mobilenext.genotype.strongest`)."""
        weights, edges = self.weights()
        return strongest(weights, self.operators, edges, **self.settings)

    @torch.no_grad()
    def entropy(self) -> float:
        """Mean entropy of the edges' softmax over its maximum, in [0, 1]; 1: nothing is decided."""
        weights = self._softmax(self.alpha, None)[0].cpu().double()
        each = -(weights * weights.clamp_min(1e-30).log()).sum(-1)
        return float(each.mean() / torch.tensor(float(len(self.operators))).log())


class StatisticsKept:
    """Leaves running statistics as they are, where a forward pass is repeated.

    It is entered once more for a second backward pass, which a generator could not be.
    """

    def __enter__(self) -> None:
        self.before, Norm.momentum = Norm.momentum, 0.0

    def __exit__(self, *_raised: object) -> None:
        Norm.momentum = self.before


def _check_partial(channels: int, partial_channels: int) -> None:
    if partial_channels < 1 or channels % partial_channels:
        raise InputError(
            f"partial_channels={partial_channels}: expected a divisor of channels={channels}"
        )
    if channels // partial_channels < FEWEST_CHANNELS:
        raise InputError(
            f"partial_channels={partial_channels} leaves {channels // partial_channels} of "
            f"{channels} channels to an operator: expected at least {FEWEST_CHANNELS}; raise "
            "channels, or lower partial_channels"
        )
