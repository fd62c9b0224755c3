"""Which parameters decay, and which learn more slowly."""

from typing import Any

import torch
from torch import nn


def weight_decay_groups(
    network: nn.Module,
    weight_decay: float,
    decay_norm_and_bias: bool,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimiser, in the order of `network.parameters()`.

    Args:
        network: Its trainable parameters are sorted.
        weight_decay: For what decays.
        decay_norm_and_bias: If False, vectors and scalars (scales and shifts of norms, biases) do
            not decay: the rule of timm, and of the released MobileNeXt runs.
        layer_decay: Learning rate of each layer over that of the next one, in (0, 1]
            ("discriminative fine-tuning", arXiv 1801.06146, section 3.2). Groups are then those of
            one layer (`layer_numbers`), stem first, and have an entry `lr_scale`, 1 for the last.
            None: one rate for all, and groups without that entry.
    """
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    if layer_decay is None:
        return _by_decay([p for _, p in named], weight_decay, decay_norm_and_bias)
    layers = layer_numbers(network)
    last = max(layers.values(), default=0)
    groups = []
    for layer in range(last + 1):
        within = [p for name, p in named if layers[name] == layer]
        for group in _by_decay(within, weight_decay, decay_norm_and_bias):
            if group["params"]:
                groups.append({**group, "lr_scale": layer_decay ** (last - layer)})
    return groups


def layer_numbers(network: nn.Module) -> dict[str, int]:
    """The layer of each parameter, by name, from 0 for the stem on; the classifier is the last.

    timm's networks and ours say themselves what their layers are (`group_matcher`): a block is one.
    In others, a child of the network is one, or each of the child's if they are numbered
    (`features.3`, `layer1.0`).
    """
    if hasattr(network, "group_matcher"):
        from timm.models import group_parameters

        matcher = network.group_matcher(coarse=False)  # pyright: ignore[reportCallIssue]
        return group_parameters(network, matcher, reverse=True)  # pyright: ignore[reportReturnType]
    numbers: dict[tuple[str, ...], int] = {}
    return {
        name: numbers.setdefault(_layer(name), len(numbers))
        for name, _ in network.named_parameters()
    }


def _layer(name: str) -> tuple[str, ...]:
    """The part of a parameter's name that says which layer it is in."""
    parts = tuple(name.split("."))
    return parts[:2] if len(parts) > 2 and parts[1].isdigit() else parts[:1]


def _by_decay(
    parameters: list[nn.Parameter], weight_decay: float, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    if decay_norm_and_bias:
        return [{"params": parameters, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give parameter groups a learning rate, times their own `lr_scale` if they have one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
