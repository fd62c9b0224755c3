"""Bias correction: biases take up the mean error that rounded weights make."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from mobilenext.deploy.int8.graphs import Watched, bias_of, tensor_of


@torch.no_grad()
def correct_biases(
    graph: GraphModule,
    convolutions: Sequence[Node],
    rounded: Callable[[Tensor], Tensor],
    batches: Sequence[Tensor],
) -> None:
    """Add to each layer's bias what its rounded weights lack at the mean input, in place.

    With weights W, their rounded values Q and the mean E[x] of a layer's float input, the mean
    output is off by (Q - W) E[x]; that is subtracted (DFQ, arXiv 1906.04721, section 4.2). Each
    layer is corrected for its own weights only: correcting for the errors of those before it as
    well would count them twice. At padded borders the mean input is taken as inside.

    Args:
        graph: In float32.
        convolutions: Its layers that will be rounded.
        rounded: Gives a layer's weights as they will be.
        batches: Pixels that the graph takes.
    """
    sums: dict[str, Tensor] = {}
    count = sum(len(batch) for batch in batches)

    def adding(name: str) -> Callable[[Tensor], None]:
        def add(value: Tensor) -> None:
            means = value.mean((2, 3)) if value.dim() == 4 else value
            sums[name] = sums.get(name, 0.0) + means.double().sum(0)

        return add

    inputs = {_input(node).name: adding(_input(node).name) for node in convolutions}
    watched = Watched(graph, inputs)
    for batch in batches:
        watched.run(batch)
    for node in convolutions:
        weight = tensor_of(graph, node.args[1])
        error = weight.double() - rounded(weight).double()
        if error.dim() == 4:
            error = error.sum((2, 3))
        mean = sums[_input(node).name] / count
        groups = len(mean) // error.shape[1]
        # Rows of a group see the channels of that group.
        seen = mean.view(groups, 1, -1).expand(-1, len(weight) // groups, -1).reshape(error.shape)
        bias_of(graph, node).add_((error * seen).sum(1).to(weight.dtype))


def _input(node: Node) -> Node:
    value = node.args[0]
    assert isinstance(value, Node)
    return value
