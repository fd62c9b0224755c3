import pytest
import torch
from timm.optim.rmsprop_tf import RMSpropTF

from mobilenext.models import MobileNeXt
from mobilenext.optim import weight_decay_groups


def test_norm_and_bias_do_not_decay() -> None:
    network = MobileNeXt(0.35)
    decaying, others = weight_decay_groups(network, 1e-4, decay_norm_and_bias=False)
    assert (decaying["weight_decay"], others["weight_decay"]) == (1e-4, 0.0)
    assert len(decaying["params"]) == 74 + 1  # convolutions, linear
    assert len(others["params"]) == 2 * 74 + 1  # scales and shifts, bias
    assert len(decaying["params"]) + len(others["params"]) == len(list(network.parameters()))


def test_everything_decays_if_asked() -> None:
    (group,) = weight_decay_groups(MobileNeXt(0.35), 4e-5, decay_norm_and_bias=True)
    assert len(group["params"]) == 3 * 74 + 2


def test_frozen_parameters_are_left_out() -> None:
    network = MobileNeXt(0.35)
    network.features.requires_grad_(False)
    groups = weight_decay_groups(network, 1e-4, decay_norm_and_bias=False)
    assert [len(group["params"]) for group in groups] == [1, 1]


def test_sgd_moves_only_what_decays() -> None:
    network = MobileNeXt(0.35)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(weight_decay_groups(network, 0.1, False), lr=1.0)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        expected = before[name] * 0.9 if parameter.ndim > 1 else before[name]
        assert torch.allclose(parameter, expected), name


def test_rmsprop_is_tensorflows() -> None:
    # epsilon inside the root, first average 1: 0.1 * 1 / sqrt(0.9 * 1 + 0.1 * 1 + eps)
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    optimizer = RMSpropTF([weight], lr=0.1, alpha=0.9, eps=1e-3, momentum=0.0)
    weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert weight.item() == pytest.approx(-0.1 / 1.001**0.5)
