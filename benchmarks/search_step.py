"""A step of a DARTS search by our supernet and by the original's form of it: prints the ratios.

    python benchmarks/search_step.py [--paper] [--compile] [--bf16] [--needed] [--spaces darts ...]

A step is the gradient of the alphas on one batch, then that of the weights on another, first order;
their optimisers are left out. Peer: the cell-by-cell mixed operator of DARTS' original code
(github.com/quark0/darts), written anew below for today's torch: each edge is a list of modules, one
for each operator, with norms of their own (`nn.BatchNorm2d`, which counts its batches in today's
torch), and a node is a sum of sums. It computes all gradients in both passes, as the original does;
ours computes only those that are used. `--needed` adds a row of the original's form that does so
too: what is left of the ratio then comes of wide operators, dilated convolutions on grids and the
memory format. The original's form is contiguous, as its code is, and ours in channels_last unless
`--no-channels-last`.

First the original's form gets our weights, and one step of both is done in float64 on small images:
no ratio is printed unless logits and all gradients are the same. Then they are timed in turns; an
entry is the median over rounds, of milliseconds or of ratios *in the same round*, with the range.
With one thread on a CPU the times are the processor's, which others on the machine disturb less.
Calls are what a profile has of torch's operators in a forward pass, views not counted. On a CUDA
device a step's memory is told too, beside that of weights and images. `--compile` takes more than
ten minutes on a CPU even for the smallest network.
"""

import argparse
import copy
import json
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mobilenext.deploy.timing import Timing, cuda_clock, measure, processor_clock
from mobilenext.genotype import NONE, SKIP, SPACES, BlockSettings, edges_of, reductions
from mobilenext.models.darts.operators import DEPTHWISE
from mobilenext.models.darts.supernet import Supernet, rows_by_source
from mobilenext.runtime.distributed import Process, choose_device
from mobilenext.runtime.memory import keep_freed_memory
from mobilenext.runtime.precision import Precision
from mobilenext.training.architecture import ArchitectureUpdate, Batch

ORIGINAL, NEEDED = "the original's form", "the same, needed gradients"
OURS, COMPILED = "ours", "ours, torch.compile"
TOLERANCE = 1e-9
"""Largest difference in float64, over the largest value of its kind."""
CLASSES = 10
CHECKED_BATCH, CHECKED_SIZE = 4, 16
PAPER = {"channels": 16, "cells": 8, "nodes": 4, "size": 32, "batch": 64}
SMALL = {"channels": 8, "cells": 5, "nodes": 3, "size": 16, "batch": 32}


# ---- the original's form ----


def norm(channels: int) -> nn.Module:
    """The norms of a search have no parameters."""
    return nn.BatchNorm2d(channels, affine=False)


def depthwise(channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Module:
    """A depthwise convolution that keeps the size (over its stride)."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(
        channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False
    )


def pointwise(into: int, out: int) -> nn.Module:
    """A 1x1 convolution."""
    return nn.Conv2d(into, out, 1, bias=False)


class Halved(nn.Module):
    """A factorized reduction."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(into, out // 2, 1, 2, bias=False)
        self.second = nn.Conv2d(into, out // 2, 1, 2, bias=False)
        self.relu, self.norm = nn.ReLU(), norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """The second convolution sees the map from its second row and column on."""
        x = self.relu(x)
        return self.norm(torch.cat([self.first(x), self.second(x[:, :, 1:, 1:])], 1))


class Nothing(nn.Module):
    """The operator `none`."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the output's shape."""
        return x * 0.0 if self.stride == 1 else x[:, :, :: self.stride, :: self.stride] * 0.0


class Shortcut(nn.Module):
    """A block that adds its input."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """The input plus its branch."""
        return x + self.branch(x)


def block(name: str, channels: int, stride: int) -> nn.Module:
    """A sandglass block or an inverted residual, with the settings that searches have."""
    settings = BlockSettings()
    if name == "sandglass":
        hidden = max(1, channels // settings.ratio)
        layers = [
            depthwise(channels, settings.kernel), norm(channels), nn.ReLU6(),
            pointwise(channels, hidden), norm(hidden),
            pointwise(hidden, channels), norm(channels), nn.ReLU6(),
            depthwise(channels, settings.kernel, stride), norm(channels),
        ]  # fmt: skip
    else:
        hidden = channels * settings.ratio
        layers = [
            pointwise(channels, hidden), norm(hidden), nn.ReLU6(),
            depthwise(hidden, settings.kernel, stride), norm(hidden), nn.ReLU6(),
            pointwise(hidden, channels), norm(channels),
        ]  # fmt: skip
    branch = nn.Sequential(*layers)
    return Shortcut(branch) if settings.shortcut and stride == 1 else branch


def operator(name: str, channels: int, stride: int) -> nn.Module:
    """An operator of an edge."""
    if name == NONE:
        return Nothing(stride)
    if name == SKIP:
        return nn.Identity() if stride == 1 else Halved(channels, channels)
    if name == "max_pool_3x3":
        return nn.Sequential(nn.MaxPool2d(3, stride, 1), norm(channels))
    if name == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return nn.Sequential(pool, norm(channels))
    if name not in DEPTHWISE:
        return block(name, channels, stride)
    kernel, dilation = DEPTHWISE[name]
    layers: list[nn.Module] = []
    for step in (stride,) if dilation > 1 else (stride, 1):
        layers += [nn.ReLU(), depthwise(channels, kernel, step, dilation),
                   pointwise(channels, channels), norm(channels)]  # fmt: skip
    return nn.Sequential(*layers)


class Mixed(nn.Module):
    """An edge: all operators, weighted."""

    def __init__(self, channels: int, stride: int, operators: Sequence[str]) -> None:
        super().__init__()
        self.operators = nn.ModuleList(operator(name, channels, stride) for name in operators)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum."""
        every = zip(weights, self.operators, strict=True)
        total: Any = sum(weight * operator(x) for weight, operator in every)
        return total


class Cell(nn.Module):
    """A cell, edge by edge."""

    def __init__(
        self,
        before: int,
        last: int,
        channels: int,
        nodes: int,
        reduction: bool,
        after_reduction: bool,
        operators: Sequence[str],
    ) -> None:
        super().__init__()
        self.nodes, self.reduction = nodes, reduction
        self.preprocess0 = (
            Halved(before, channels) if after_reduction else self._same(before, channels)
        )
        self.preprocess1 = self._same(last, channels)
        self.edges = nn.ModuleList(
            Mixed(channels, 2 if reduction and source < 2 else 1, operators)
            for _, source in edges_of(nodes)
        )

    @staticmethod
    def _same(into: int, out: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(), pointwise(into, out), norm(out))

    def forward(self, before: Tensor, last: Tensor, weights: Tensor) -> Tensor:
        """The nodes side by side; weights are (edges, operators)."""
        states, offset = [self.preprocess0(before), self.preprocess1(last)], 0
        for _ in range(self.nodes):
            node: Any = sum(
                self.edges[offset + place](state, weights[offset + place])
                for place, state in enumerate(states)
            )
            offset += len(states)
            states.append(node)
        return torch.cat(states[2:], 1)


class Original(nn.Module):
    """DARTS' network of a search, with alphas that are parameters of it."""

    def __init__(self, channels: int, cells: int, nodes: int, operators: Sequence[str]) -> None:
        super().__init__()
        width = 3 * channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.cells = nn.ModuleList()
        before, last, reduced = width, width, False
        for number in range(cells):
            reduction = number in reductions(cells)
            channels *= 1 + reduction
            self.cells.append(Cell(before, last, channels, nodes, reduction, reduced, operators))
            before, last, reduced = last, channels * nodes, reduction
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(last, CLASSES)
        shape = len(edges_of(nodes)), len(operators)
        self.alphas = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for _ in range(2))

    def weights(self) -> list[nn.Parameter]:
        """All parameters but the alphas."""
        return [p for name, p in self.named_parameters() if not name.startswith("alphas")]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        before = last = self.stem(images)
        for cell in self.cells:
            assert isinstance(cell, Cell)
            weights = F.softmax(self.alphas[int(cell.reduction)], -1)
            before, last = last, cell(before, last, weights)
        return self.classifier(self.pool(last).flatten(1))


# ---- a step of both ----


class Found(NamedTuple):
    """What a step finds; the gradients of the weights are left in their parameters."""

    logits: Tensor
    """Of the weights' batch."""
    alphas: Tensor
    """Their gradient, (2, edges, operators)."""


def original_step(
    network: Original, held_out: Batch, train: Batch, precision: Precision, needed: bool = False
) -> Found:
    """Both gradients of the original's form.

    Args:
        network: The network.
        held_out: Images and labels for the alphas.
        train: The same for the weights.
        precision: How the passes compute.
        needed: Whether to compute only the gradients that are used.
    """
    alphas = list(network.alphas)
    network.zero_grad()
    _, loss = _forward(network, held_out, precision)
    if needed:
        found = torch.autograd.grad(loss, alphas)
    else:
        loss.backward()
        found = [alpha.grad for alpha in alphas]
    gradients = torch.stack([gradient for gradient in found if gradient is not None])
    network.zero_grad()
    network.alphas.requires_grad_(not needed)
    logits, loss = _forward(network, train, precision)
    loss.backward()
    network.alphas.requires_grad_(True)
    return Found(logits.detach(), gradients)


def our_step(
    network: Supernet,
    update: ArchitectureUpdate,
    held_out: Batch,
    train: Batch,
) -> Found:
    """Both gradients by the supernet, as a search computes them.

    Args:
        network: The network.
        update: The alphas' step; its network may be a compiled one.
        held_out: Images and labels for the alphas.
        train: The same for the weights.
    """
    (gradient,) = update.gradient(held_out, train, 0.025)
    network.zero_grad()
    logits, loss = _forward(update.network, train, update.precision)
    loss.backward()
    return Found(logits.detach(), gradient)


def _forward(network: nn.Module, batch: Batch, precision: Precision) -> tuple[Tensor, Tensor]:
    with precision.autocast():
        logits = network(batch[0])
        return logits, F.cross_entropy(logits.float(), batch[1])


def update_of(
    network: Supernet, precision: Precision, process: Process, compiled: bool = False
) -> ArchitectureUpdate:
    """The alphas' step of a search, first order."""
    called: Any = torch.compile(network) if compiled else network
    alphas = torch.optim.Adam(network.architecture)
    weights = torch.optim.SGD(network.parameters())
    return ArchitectureUpdate(called, network.architecture, alphas, weights, precision, process)


def batches(count: int, size: int, device: torch.device, dtype: torch.dtype) -> list[Batch]:
    """Two batches of noise: for the alphas and for the weights."""
    return [
        (torch.randn(count, 3, size, size, device=device, dtype=dtype),
         torch.randint(0, CLASSES, (count,), device=device))
        for _ in range(2)
    ]  # fmt: skip


def in_format(network: Any, given: Sequence[Batch], channels_last: bool) -> tuple[Any, list[Batch]]:
    """A network and its batches in a memory format."""
    memory = torch.channels_last if channels_last else torch.contiguous_format
    moved = [(images.contiguous(memory_format=memory), labels) for images, labels in given]
    return network.to(memory_format=memory), moved


# ---- the same network twice ----


def counterparts(
    ours: Supernet, original: Original
) -> Iterator[tuple[nn.Parameter, int, int, nn.Parameter]]:
    """Our parameter, which of how many parts of it, and the original's that is this part."""
    pairs: list[tuple[Any, Any]] = [
        (ours.stem, original.stem), (ours.classifier, original.classifier)
    ]  # fmt: skip
    for mine, other in zip(ours.cells, original.cells, strict=True):
        pairs += [(mine.preprocess0, other.preprocess0), (mine.preprocess1, other.preprocess1)]
    for mine, other in pairs:
        for one, same in zip(mine.parameters(), other.parameters(), strict=True):
            yield one, 0, 1, same
    for mine, other in zip(ours.cells, original.cells, strict=True):
        cell: Any = mine
        mixed: Any = other
        for fan, rows in zip(cell.fans, rows_by_source(cell.nodes), strict=True):
            for place, row in enumerate(rows):
                for name, wide in fan.wide.items():
                    single = mixed.edges[row].operators[fan.operators.index(name)]
                    for one, same in zip(wide.parameters(), single.parameters(), strict=True):
                        yield one, place, fan.edges, same


@torch.no_grad()
def same_network(ours: Supernet, nodes: int) -> Original:
    """The original's form of a supernet, with its weights and alphas.

    Raises:
        SystemExit: They don't have the same parameters.
    """
    stem: Any = ours.stem[0]
    channels = stem.out_channels // 3
    original = Original(channels, len(ours.cells), nodes, ours.operators).to(ours.alpha.device)
    count = 0
    for one, place, parts, same in counterparts(ours, original):
        same.copy_(one.chunk(parts)[place])
        count += same.numel()
    for theirs, alphas in zip(original.alphas, ours.alpha, strict=True):
        theirs.copy_(alphas)
    both = [sum(p.numel() for p in some) for some in (ours.parameters(), original.weights())]
    if both != [count, count]:
        raise SystemExit(f"ours has {both[0]:,} parameters, the original's form {both[1]:,}")
    return original


def differences(
    ours: Supernet, original: Original, size: int, channels_last: bool
) -> dict[str, float]:
    """How far logits and gradients of a step are apart in float64, over their largest value.

    Args:
        ours: The supernet; it is left as it is.
        original: Its other form; likewise.
        size: Height and width of the images.
        channels_last: Ours computes in this format.
    """
    device = ours.alpha.device
    given = batches(CHECKED_BATCH, size, device, torch.float64)
    mine, other = copy.deepcopy(ours).double().train(), copy.deepcopy(original).double().train()
    mine, moved = in_format(mine, given, channels_last)
    precision = Precision("fp32", device)
    # Of alphas and logits a search makes float32, whatever they were.
    with mock.patch.object(Tensor, "float", Tensor.double):
        found = our_step(mine, update_of(mine, precision, Process(device)), *moved)
        expected = original_step(other, given[0], given[1], precision)
    gradients = [
        (one.grad.chunk(parts)[place], same.grad)
        for one, place, parts, same in counterparts(mine, other)
        if one.grad is not None and same.grad is not None
    ]
    if len(gradients) < len(other.weights()):
        raise SystemExit("some weights have no gradient")
    kinds = {
        "logits": [(found.logits, expected.logits)],
        "gradient of alphas": [(found.alphas, expected.alphas)],
        "gradients of weights": gradients,
    }
    return {
        kind: max(float((a - b).abs().max()) for a, b in pairs)
        / max(float(b.abs().max()) for _, b in pairs)
        for kind, pairs in kinds.items()
    }


def check(found: dict[str, float]) -> None:
    """Raise `SystemExit` unless differences are those of rounding."""
    if not all(value <= TOLERANCE for value in found.values()):
        text = ", ".join(f"{kind} {value:.1e}" for kind, value in found.items())
        raise SystemExit(
            f"expected both forms to be the same within {TOLERANCE:g} in float64, got {text} "
            "(differences over the largest value); no ratio of different networks"
        )


# ---- calls ----

VIEWS = {f"aten::{name}" for name in (
    "alias", "as_strided", "chunk", "contiguous", "detach", "expand", "expand_as", "flatten",
    "lift_fresh", "narrow", "permute", "reshape", "resolve_conj", "resolve_neg", "select", "slice",
    "split", "split_with_sizes", "squeeze", "t", "to", "transpose", "unbind", "unflatten",
    "unsqueeze", "view", "view_as", "_unsafe_view",
)}  # fmt: skip
"""Operators that compute nothing, unless they copy."""


def calls(run: Callable[[], object]) -> Counter[str]:
    """The operators of torch that something calls, by name; not what these call in turn."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of each start and stop
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    found: Counter[str] = Counter()

    def visit(event: Any) -> None:
        if not event.name.startswith("aten::"):  # a range of the profiler's, or a function of ours
            for child in event.cpu_children:
                visit(child)
        elif _computes(event):
            found[event.name.removeprefix("aten::")] += 1

    for event in seen.events() or ():
        if event.cpu_parent is None:
            visit(event)
    return found


def _computes(event: Any) -> bool:
    return event.name not in VIEWS or any(map(_computes, event.cpu_children))


def counted(ours: Supernet, original: Original, size: int, channels_last: bool) -> dict[str, Any]:
    """Calls of edges that leave a cell's first state, at both strides, and of a forward pass."""
    found: dict[str, Counter[str]] = {}
    theirs = batches(2, size, ours.alpha.device, torch.float32)
    network, moved = in_format(ours, theirs, channels_last)
    for cell, other in zip(network.cells, original.cells, strict=True):
        mine: Any = cell
        mixed: Any = other
        fan, stride = mine.fans[0], mine.fans[0].stride
        if f"{OURS}, stride {stride}" in found:
            continue
        weights = ours.alpha[stride - 1].softmax(-1)
        x = torch.randn(2, fan.channels, 8, 8, device=ours.alpha.device)
        some, one, bypass = (
            weights[rows_by_source(mine.nodes)[0]],
            weights[0],
            torch.zeros(fan.edges, device=x.device),
        )
        (_, ((y, _),)) = in_format(fan, [(x, x)], channels_last)
        found[f"{OURS}, stride {stride}"] = calls(partial(fan, y, some, bypass))
        found[f"{ORIGINAL}, stride {stride}"] = calls(partial(mixed.edges[0], x, one))
    found[f"{OURS}, forward"] = calls(partial(network, moved[0][0]))
    found[f"{ORIGINAL}, forward"] = calls(partial(original, theirs[0][0]))
    return found


# ---- timing ----


@dataclass
class Row:
    """A line of the table.

    Attributes:
        space: Name of the space.
        name: What it is.
        precision: fp32 or bf16.
        ms: Of a step, round by round.
        ratios: How many times as fast as the original's form in the same precision and round.
        peak_mb: Memory that a step needs beside what lies there before it; None on CPUs.
    """

    space: str
    name: str
    precision: str
    ms: list[float]
    ratios: list[float]
    peak_mb: float | None


def steps(
    ours: Supernet, original: Original, precision: Precision, given: argparse.Namespace
) -> dict[str, Callable[[], Found]]:
    """What is timed, by name; the original's form first."""
    device = ours.alpha.device
    noise = batches(given.batch, given.size, device, torch.float32)
    network, moved = in_format(ours, noise, given.channels_last)
    found: dict[str, Callable[[], Found]] = {
        ORIGINAL: partial(original_step, original, *noise, precision)
    }
    if given.needed:
        found[NEEDED] = partial(original_step, original, *noise, precision, needed=True)
    for name in (OURS, COMPILED) if given.compile else (OURS,):
        update = update_of(network, precision, Process(device), name == COMPILED)
        found[name] = partial(our_step, network, update, *moved)
    return found


def peak(run: Callable[[], object], networks: Sequence[nn.Module]) -> float:
    """MB that a step needs on a CUDA device beside weights, images and other networks."""
    for network in networks:
        network.zero_grad()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def timed(
    space: str, ours: Supernet, original: Original, name: str, given: argparse.Namespace
) -> list[Row]:
    """The rows of a space in a precision, measured in turns."""
    device = ours.alpha.device
    entries = steps(ours, original, Precision(name, device), given)
    cuda, runs = device.type == "cuda", list(entries.values())
    if COMPILED in entries:
        pairs = zip(entries[COMPILED](), entries[OURS](), strict=True)
        apart = [f"{float((a - b).abs().max() / b.abs().max()):.0e}" for a, b in pairs]
        print(f"  {COMPILED}, {name}: logits {apart[0]}, gradient of alphas {apart[1]} from eager")
    clock = cuda_clock if cuda else processor_clock
    timings = measure(runs, [0] * len(runs), given.rounds, 1, 0.0, by_cpu(given, device), clock)
    peaks = [peak(run, (ours, original)) if cuda else None for run in runs]
    times = [_times(timing) for timing in timings]
    return [
        Row(space, entry, name, mine, [a / b for a, b in zip(times[0], mine, strict=True)], most)
        for entry, mine, most in zip(entries, times, peaks, strict=True)
    ]


def _times(timing: Timing) -> list[float]:
    return timing.cpu if timing.by_cpu and timing.cpu else timing.wall


def by_cpu(given: argparse.Namespace, device: torch.device) -> bool:
    """Whether times are the processor's: those of several threads say little when one waits."""
    return device.type == "cpu" and given.threads == 1


# ---- the result ----


def spread(values: Sequence[float], digits: int) -> str:
    """Median [smallest-largest]."""
    return (
        f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f}-"
        f"{max(values):,.{digits}f}]"
    )


def calls_text(found: dict[str, Counter[str]], edges: int) -> str:
    """Lines about calls."""
    lines = []
    for stride in (1, 2):
        one, wide = (found[f"{name}, stride {stride}"] for name in (ORIGINAL, OURS))
        lines.append(
            f"  calls, stride {stride}: {one.total()} in a mixed operator of the original's form, "
            f"{edges * one.total()} in the {edges} that leave the first state; ours "
            f"{wide.total()} in those {edges}"
        )
        for name, some in ((ORIGINAL, one), (OURS, wide)):
            text = ", ".join(f"{operator} {count}" for operator, count in some.most_common())
            lines.append(f"    {name}: {text}")
    whole = [found[f"{name}, forward"].total() for name in (ORIGINAL, OURS)]
    lines.append(
        f"  calls of a forward pass: {whole[0]:,}, ours {whole[1]:,} ({whole[0] / whole[1]:.1f} "
        "times fewer)"
    )
    return "\n".join(lines)


def rows_text(rows: Sequence[Row]) -> str:
    """Lines of a table."""
    lines = [f"  {'':36}{'ms a step':>26}{'times as fast':>22}"]
    for row in rows:
        memory = "" if row.peak_mb is None else f"   {row.peak_mb:,.0f} MB"
        lines.append(
            f"  {row.name + ', ' + row.precision:36}{spread(row.ms, 0):>26}"
            f"{spread(row.ratios, 2):>22}{memory}"
        )
    return "\n".join(lines)


def of_space(space: str, device: torch.device, given: argparse.Namespace) -> list[Row]:
    """Check, count and measure one space."""
    torch.manual_seed(0)
    sizes = {"channels": given.channels, "cells": given.cells, "nodes": given.nodes}
    ours = Supernet(CLASSES, operators=SPACES[space], **sizes).to(device).train()
    original = same_network(ours, given.nodes).train()
    tensors = [len(list(some)) for some in (original.weights(), ours.parameters())]
    count = sum(p.numel() for p in ours.parameters())
    print(f"{space}: {count:,} parameters in {tensors[0]:,} tensors, ours in {tensors[1]:,}")
    size = min(given.size, CHECKED_SIZE)
    apart = differences(ours, original, size, given.channels_last)
    check(apart)
    told = ", ".join(f"{kind} {value:.0e}" for kind, value in apart.items())
    print(f"  the same in float64 at {size} px; differences over the largest value: {told}")
    found = counted(ours, original, size, given.channels_last)
    print(calls_text(found, given.nodes), flush=True)
    rows: list[Row] = []
    for precision in ("fp32", "bf16") if given.bf16 else ("fp32",):
        rows += timed(space, ours, original, precision, given)
    print(rows_text(rows), flush=True)
    return rows


def machine(device: torch.device) -> str:
    """Processor or GPU, load and version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        models = [line.partition(":")[2].strip() for line in info.splitlines() if "model n" in line]
        name = f"{os.cpu_count()} cores of {models[0] if models else 'an unknown processor'}"
    return f"{name}, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}"


def arguments(typed: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in SMALL.items():
        parser.add_argument(f"--{name}", type=int, help=f"{value}; with --paper {PAPER[name]}")
    parser.add_argument("--paper", action="store_true", help="the size of DARTS' searches")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile too")
    parser.add_argument("--bf16", action="store_true", help="both with bf16 autocast too")
    parser.add_argument("--needed", action="store_true", help="a row more; see above")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="file for the rows")
    given = parser.parse_args(typed)
    for name, value in (PAPER if given.paper else SMALL).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    if min(given.rounds, given.threads, given.batch) < 1 or given.size < 8:
        parser.error("expected at least one round, thread and image, and 8 px")
    return given


def main(typed: Sequence[str] | None = None) -> None:  # noqa: D103
    given = arguments(typed)
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    torch.backends.cudnn.benchmark = True  # as both do
    device = choose_device("auto", 0)
    clock = "CPU-milliseconds" if by_cpu(given, device) else "milliseconds"
    print(machine(device))
    print(
        f"{given.cells} cells of {given.nodes} nodes, {given.channels} channels, batches of "
        f"{given.batch} at {given.size} px, {device.type}, {given.threads} threads, "
        f"{given.rounds} rounds in turns; {clock}, median [range]; ours "
        f"{'channels_last' if given.channels_last else 'contiguous'}, the original's form "
        "contiguous as its code is"
    )
    rows: list[Row] = []
    for space in given.spaces:
        rows += of_space(space, device, given)
    print(f"load {os.getloadavg()[0]:.1f}\n")
    for row in rows:
        if row.name in (OURS, COMPILED):
            print(
                f"{row.space}, {row.precision}: {ORIGINAL} / {row.name} = {spread(row.ratios, 2)}"
            )
    if given.json is not None:
        told = {"arguments": {**vars(given), "json": None}, "machine": machine(device),
                "rows": [asdict(row) for row in rows]}  # fmt: skip
        given.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
