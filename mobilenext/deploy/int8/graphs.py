"""Exported graphs of networks: their layers by name, and values seen while they run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from mobilenext.deploy.quiet import quietly
from mobilenext.errors import InputError, first_line

NETWORK = "network"
"""The attribute of `FromPixels` that is the network itself."""
MOST_BATCH = 1024

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding)
LAYERS = (*CONVOLUTIONS, aten.linear.default)
CLIPS = (aten.hardtanh.default, aten.hardtanh_.default)
RELUS = (aten.relu.default, aten.relu_.default)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with the activation that runs in its kernel.

    Attributes:
        name: Of its module, as in the network's state dict.
        node: The convolution or linear layer.
        last: Its clip or ReLU; `node` where it has none.
    """

    name: str
    node: Node
    last: Node


def exported(network: nn.Module, pixels: Tensor) -> GraphModule:
    """The graph of a network that takes pixels (`FromPixels`), for batches of any size.

    Args:
        network: In evaluation mode.
        pixels: At least two images, uint8 (N, 3, H, W).

    Raises:
        InputError: It does something that graphs can't say, such as to decide by an image's values.
    """
    batch = torch.export.Dim("batch", min=1, max=MOST_BATCH)
    try:
        with quietly():
            program = torch.export.export(
                network, (pixels[:2].clone(),), dynamic_shapes=({0: batch},)
            )
    except Exception as error:  # torch.export raises anything
        raise InputError(f"this network can't be exported: {first_line(error)}") from error
    graph = program.module()
    assert isinstance(graph, GraphModule)
    return graph


def module_of(node: Node) -> str | None:
    """Name of the network's module that a node comes from; None: it is outside of the network."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return None
    path = str(stack[-1][0])
    if path != NETWORK and not path.startswith(f"{NETWORK}."):
        return None
    return path.removeprefix(NETWORK).removeprefix(".")


def is_within(module: str | None, names: tuple[str, ...]) -> bool:
    """Whether a module is one of some, or part of one."""
    return module is not None and any(
        module == name or module.startswith(f"{name}.") for name in names
    )


def only_user(node: Node) -> Node | None:
    """The node that takes another's value, if there is exactly one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def groups_of(node: Node) -> int:
    """Groups of a convolution; 1 for a linear layer."""
    if node.target is aten.linear.default:
        return 1
    arguments: list[Any] = [*node.args]
    return int(arguments[6]) if len(arguments) > 6 else 1


def pads_with_zeros(node: Node) -> bool:
    """Whether a node pads images with zeros."""
    if node.target is aten.constant_pad_nd.default:
        return not any(node.args[2:])
    return node.target is aten.pad.default and all(
        one in ("constant", None, 0) for one in node.args[2:]
    )


def is_ceiling(node: Node | None) -> bool:
    """Whether a node clips ReLU's values at a ceiling of their own for each channel."""
    return node is not None and node.target is aten.minimum.default


def layers(graph: GraphModule) -> Iterator[Layer]:
    """Convolutions and linear layers of a graph, in the order in which they run."""
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in LAYERS:
            continue
        last = node
        following = only_user(node)
        if following is not None and following.target in (*CLIPS, *RELUS):
            last = following
            ceiling = only_user(following)
            if following.target in RELUS and ceiling is not None and is_ceiling(ceiling):
                last = ceiling
        yield Layer(module_of(node) or node.name, node, last)


def tensor_of(graph: GraphModule, node: Any) -> Tensor:
    """The parameter or buffer that a get_attr node means."""
    assert isinstance(node, Node)
    assert node.op == "get_attr", node.op
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(owner), name)
    assert isinstance(value, Tensor)
    return value


def bias_of(graph: GraphModule, node: Node) -> Tensor:
    """The bias of a convolution or linear layer; one of zeros is added where it has none."""
    arguments: list[Any] = [*node.args]
    if len(arguments) > 2 and arguments[2] is not None:
        return tensor_of(graph, arguments[2])
    weight = tensor_of(graph, arguments[1])
    name = f"{node.name}_bias"
    graph.register_parameter(name, nn.Parameter(weight.new_zeros(len(weight))))
    with graph.graph.inserting_before(node):
        added = graph.graph.get_attr(name)
    if len(arguments) > 2:
        node.update_arg(2, added)
    else:
        node.insert_arg(2, added)
    graph.recompile()
    return tensor_of(graph, added)


class Watched(Interpreter):
    """Runs a graph, and shows the values of some of its nodes.

    Args:
        graph: The graph.
        seen: By a node's name, what is called with its value.
    """

    def __init__(self, graph: GraphModule, seen: Mapping[str, Callable[[Tensor], None]]) -> None:
        super().__init__(graph)
        self.seen = seen

    def run_node(self, n: Node) -> Any:
        """A node's value, shown."""
        value = super().run_node(n)
        if n.name in self.seen:
            self.seen[n.name](value)
        return value


def drop_unused(graph: GraphModule) -> None:
    """Drop the parameters and buffers that no node of a graph takes, in place.

    After conversion to 8 bits a graph still has its float weights; a file would keep them.
    """
    graph.graph.eliminate_dead_code()
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for owner_name, owner in list(graph.named_modules()):
        for tensors in (owner._parameters, owner._buffers):
            for name in list(tensors):
                if f"{owner_name}.{name}".removeprefix(".") not in used:
                    del tensors[name]
    graph.recompile()
