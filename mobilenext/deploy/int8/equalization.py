"""Cross-layer equalisation: ranges of weights evened out between successive layers."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from mobilenext.deploy.int8.graphs import (
    CLIPS,
    CONVOLUTIONS,
    RELUS,
    aten,
    groups_of,
    layers,
    only_user,
    pads_with_zeros,
    tensor_of,
)

MOST_ROUNDS, CONVERGED = 20, 1e-3
SMALLEST, FARTHEST = 1e-7, 1e4
"""Range below which a channel counts as dead, and the most that one is scaled."""


@dataclass(frozen=True)
class _Pair:
    first: Node
    clip: Node | None
    """The ReLU6 between the two."""
    second: Node


@torch.no_grad()
def equalize(graph: GraphModule) -> int:
    """Scale channels between successive convolutions so that their ranges agree, in place.

    Where W1 gives channel i and W2 takes it, W1's row i is divided by s_i and W2's multiplied, with
    s_i = sqrt(r1_i r2_i) / r2_i of their largest weights (DFQ, arXiv 1906.04721, section 4.1). A
    ReLU6 between them becomes min(relu(x), 6 / s_i), which keeps the network's function; as a
    plain ReLU, as in the paper, it would not.

    Args:
        graph: In float32, batch norms folded.

    Returns:
        The number of pairs of layers.
    """
    pairs = list(_pairs(graph))
    ceilings = {pair.first: torch.ones_like(_row_ranges(graph, pair.first)) for pair in pairs}
    for _ in range(MOST_ROUNDS):
        moved = 0.0
        for pair in pairs:
            rows, columns = _row_ranges(graph, pair.first), _column_ranges(graph, pair.second)
            scale = ((rows * columns).sqrt() / columns.clamp_min(1e-30)).clamp(
                1 / FARTHEST, FARTHEST
            )
            scale[(rows < SMALLEST) | (columns < SMALLEST)] = 1
            _divide_rows(graph, pair.first, scale)
            _multiply_columns(graph, pair.second, scale)
            ceilings[pair.first] /= scale
            moved = max(moved, float((scale - 1).abs().max()))
        if moved < CONVERGED:
            break
    for pair in pairs:
        if pair.clip is not None:
            _set_ceiling(graph, pair.clip, ceilings[pair.first])
    graph.recompile()
    return len(pairs)


def _pairs(graph: GraphModule) -> Iterator[_Pair]:
    """Convolutions of which the second takes all that the first gives, and nobody else does."""
    for layer in layers(graph):
        if layer.node.target not in CONVOLUTIONS:
            continue
        clip = layer.last if layer.last.target in CLIPS and _is_relu6(layer.last) else None
        if layer.last is not layer.node and clip is None and layer.last.target not in RELUS:
            continue
        second = only_user(layer.last)
        while second is not None and pads_with_zeros(second):
            second = only_user(second)
        if second is None or second.target not in CONVOLUTIONS:
            continue
        weight = tensor_of(graph, second.args[1])
        if groups_of(second) in (1, len(weight)):
            yield _Pair(layer.node, clip, second)


def _is_relu6(node: Node) -> bool:
    return tuple(node.args[1:3]) in ((0.0, 6.0), (0, 6))


def _row_ranges(graph: GraphModule, node: Node) -> Tensor:
    return tensor_of(graph, node.args[1]).flatten(1).abs().amax(1)


def _column_ranges(graph: GraphModule, node: Node) -> Tensor:
    weight = tensor_of(graph, node.args[1])
    by_input = weight if groups_of(node) > 1 else weight.transpose(0, 1)
    return by_input.flatten(1).abs().amax(1)


def _divide_rows(graph: GraphModule, node: Node, scale: Tensor) -> None:
    tensor_of(graph, node.args[1]).div_(scale.view(-1, 1, 1, 1))
    bias = node.args[2] if len(node.args) > 2 else None
    if bias is not None:
        tensor_of(graph, bias).div_(scale)


def _multiply_columns(graph: GraphModule, node: Node, scale: Tensor) -> None:
    shape = (-1, 1, 1, 1) if groups_of(node) > 1 else (1, -1, 1, 1)
    tensor_of(graph, node.args[1]).mul_(scale.view(shape))


def _set_ceiling(graph: GraphModule, clip: Node, scale: Tensor) -> None:
    """Replace a ReLU6 by a ReLU below 6 times a scale for each channel."""
    name = f"{clip.name}_ceiling"
    graph.register_buffer(name, (6 * scale).view(1, -1, 1, 1))
    with graph.graph.inserting_before(clip):
        ceiling = graph.graph.get_attr(name)
        relu = graph.graph.call_function(aten.relu.default, (clip.args[0],))
        capped = graph.graph.call_function(aten.minimum.default, (relu, ceiling))
    for node in (relu, capped):
        node.meta.update(clip.meta)
    clip.replace_all_uses_with(capped)
    graph.graph.erase_node(clip)
