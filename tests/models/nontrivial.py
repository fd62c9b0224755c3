"""Weights for comparing networks: freshly made ones give almost the same for every image."""

from typing import Any

import torch
from torch import nn


def with_weights(network: Any, gain: float = 1.8) -> Any:
    """Redraw weights and statistics, so that each of them matters; in evaluation mode.

    Convolutions multiply the variance of what comes in by about `gain`, activations and squeezing
    take some of it away; it has to keep images apart. Norms, their statistics and all biases are
    off their usual 1 and 0.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0, (gain / module.weight[0].numel()) ** 0.5)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.7, 1.3)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.7, 1.3)
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                bias.normal_(0, 0.1)
    return network.eval()
