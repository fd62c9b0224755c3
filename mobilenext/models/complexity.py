"""Cost of a network: parameters, MAdds and activations, in total and by stage."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class StageCost:
    """One row of the table: consecutive blocks with the same output shape."""

    name: str
    output_shape: tuple[int, ...]
    """Without the batch dimension, for instance (96, 56, 56)."""
    params: int
    madds: int
    activations: int


@dataclass(frozen=True)
class Complexity:
    """Cost of one forward pass of one image.

    MAdds are the multiply-adds of convolutions and linear layers, the mobile papers' convention:
    norms, activations, pooling, additions and biases are not counted. Activations are the elements
    that convolutions and linear layers put out (the convention of arXiv 2003.13678).
    """

    params: int
    madds: int
    activations: int
    stages: tuple[StageCost, ...]
    largest: int = 0
    """Elements of the largest output of a module."""


def measure_complexity(network: nn.Module, image_size: int = 224) -> Complexity:
    """Count a network's cost without computing anything (on torch's meta device).

    Args:
        network: Any image classifier; left as it is. Stages are found where it has `features`.
        image_size: Height and width in pixels.
    """
    network = copy.deepcopy(network).to("meta").eval()
    counter = _FlopCounter()
    activations: dict[str, int] = {}
    madds: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    largest = 0

    def begin(name: str):
        def hook(_module: nn.Module, _inputs: object) -> None:
            madds[name] = madds.get(name, 0) - counter.flops // 2

        return hook

    def record(name: str, counted: bool):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            nonlocal largest
            madds[name] += counter.flops // 2
            if isinstance(output, Tensor):
                largest = max(largest, output.numel())
                shapes[name] = tuple(output.shape[1:])
                if counted:
                    activations[name] = activations.get(name, 0) + output.numel()

        return hook

    for name, module in network.named_modules():
        counted = isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
        module.register_forward_pre_hook(begin(name))
        module.register_forward_hook(record(name, counted))
        if isinstance(module, KEEP_THE_SHAPE):  # and count nothing; slow on the meta device
            module.forward = _unchanged
    with torch.no_grad(), counter:
        network(torch.empty(1, 3, image_size, image_size, device="meta"))

    def stage_cost(label: str, names: list[str]) -> StageCost:
        blocks = [network.get_submodule(name) for name in names]
        return StageCost(
            label,
            shapes[names[-1]],
            sum(count_params(block) for block in blocks),
            sum(madds.get(name, 0) for name in names),
            sum(
                count
                for layer, count in activations.items()
                if any(layer == name or layer.startswith(name + ".") for name in names)
            ),
        )

    return Complexity(
        params=count_params(network),
        madds=madds[""],
        activations=sum(activations.values()),
        stages=tuple(stage_cost(*stage) for stage in _stages(network, shapes)),
        largest=largest,
    )


class _FlopCounter(TorchDispatchMode):
    """Floating-point operations by torch's own formulas, all in all.

    torch's FlopCounterMode gives the same sums by module and takes twice as long, a third of a
    second at each start: it takes every other operation apart.
    """

    flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=output)
        return output


KEEP_THE_SHAPE = (nn.BatchNorm2d, nn.Hardtanh, nn.ReLU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid,
                  nn.Sigmoid, nn.GELU, nn.Dropout)  # fmt: skip
"""Modules whose output has the shape of their input; `nn.ReLU6` is an `nn.Hardtanh`."""


def _unchanged(input: Tensor) -> Tensor:  # nn.BatchNorm2d's name
    return input


def count_params(network: nn.Module) -> int:
    """Number of parameters, trainable or not; buffers such as running means are not counted.

    An `auxiliary_head` is not counted either: only training has it.
    """
    total = sum(parameter.numel() for parameter in network.parameters())
    head = getattr(network, "auxiliary_head", None)
    return total if head is None else total - count_params(head)


def _stages(
    network: nn.Module, shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, list[str]]]:
    """Yield (label, module names): runs of equal output shape in lists of blocks, and the rest.

    Lists are `features` and what is a `ModuleList`, if each of their blocks was called: some
    networks take `features` apart in their own way.
    """
    for child, module in network.named_children():
        blocks = [f"{child}.{index}" for index in range(sum(1 for _ in module.children()))]
        listed = isinstance(module, nn.ModuleList) or (
            child == "features" and isinstance(module, nn.Sequential) and child in shapes
        )
        if not blocks or not listed or not all(block in shapes for block in blocks):
            if child in shapes and count_params(module):
                yield child, [child]
            continue
        run: list[int] = []
        for index, block in enumerate(blocks):
            if run and shapes[block] != shapes[blocks[run[-1]]]:
                yield _run_of(child, run)
                run = []
            run.append(index)
        yield _run_of(child, run)


def _run_of(child: str, run: list[int]) -> tuple[str, list[str]]:
    label = f"{child} {run[0]}" if len(run) == 1 else f"{child} {run[0]}-{run[-1]}"
    return label, [f"{child}.{index}" for index in run]
