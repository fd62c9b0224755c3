"""Which parameters decay."""

from typing import Any

from torch import nn


def weight_decay_groups(
    network: nn.Module, weight_decay: float, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimiser, in the order of `network.parameters()`.

    Args:
        network: Its trainable parameters are sorted.
        weight_decay: For what decays.
        decay_norm_and_bias: If False, vectors and scalars (scales and shifts of norms, biases) do
            not decay: the rule of timm, and of the released MobileNeXt runs.
    """
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if decay_norm_and_bias:
        return [{"params": trainable, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
