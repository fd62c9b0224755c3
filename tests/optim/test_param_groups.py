from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.optim.rmsprop_tf import RMSpropTF
from torch import nn

from mobilenext.models import EfficientNet, MobileNetV2, MobileNeXt
from mobilenext.optim import weight_decay_groups
from mobilenext.optim.param_groups import layer_numbers


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


def test_without_layer_decay_nothing_is_new() -> None:
    """Checkpoints of optimisers keep the keys that they had."""
    for group in weight_decay_groups(MobileNeXt(0.35), 1e-4, decay_norm_and_bias=False):
        assert group.keys() == {"params", "weight_decay"}


def scales(network: nn.Module, groups: list[dict[str, Any]]) -> dict[str, float]:
    of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    return {name: of[id(p)] for name, p in network.named_parameters() if id(p) in of}


@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
def test_layers_learn_more_slowly_towards_the_stem(decay_norm_and_bias: bool) -> None:
    network = MobileNeXt(0.35)
    groups = weight_decay_groups(network, 1e-4, decay_norm_and_bias, layer_decay=0.5)
    found = scales(network, groups)
    assert found["classifier.1.weight"] == found["classifier.1.bias"] == 1.0
    for name, scale in found.items():
        if name.startswith("features."):
            assert scale == 0.5 ** (21 - int(name.split(".")[1])), name
    sorted_once = [id(p) for group in groups for p in group["params"]]
    assert sorted(sorted_once) == sorted(id(p) for p in network.parameters())
    for group in groups:
        for parameter in group["params"]:
            decays = decay_norm_and_bias or parameter.ndim > 1
            assert group["weight_decay"] == (1e-4 if decays else 0.0)
    assert len(groups) == (22 if decay_norm_and_bias else 44)


def test_frozen_layers_have_no_group() -> None:
    network = MobileNeXt(0.35)
    network.features.requires_grad_(False)
    groups = weight_decay_groups(network, 1e-4, False, layer_decay=0.5)
    assert [(len(g["params"]), g["lr_scale"]) for g in groups] == [(1, 1.0), (1, 1.0)]


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (lambda: MobileNetV2(0.35), {"features.0.0.weight": 0, "features.7.conv.0.0.weight": 7,
                             "features.18.1.bias": 18, "classifier.1.weight": 19}),
        (EfficientNet, {"bn1.weight": 0, "blocks.0.0.conv_dw.weight": 1,
                          "blocks.1.1.conv_pw.weight": 3, "conv_head.weight": 16,
                          "classifier.bias": 17}),
        (lambda: timm.create_model("mobilenetv2_100"),
         {"conv_stem.weight": 0, "classifier.bias": 18}),
        (torchvision.models.resnet18, {"conv1.weight": 0, "layer1.0.conv1.weight": 2,
                                         "layer1.1.bn2.bias": 3, "fc.weight": 10}),
        (torchvision.models.vit_b_16, {"conv_proj.weight": 1, "heads.head.bias": 3}),
    ],
    ids=["ours, torchvision's layers", "ours", "timm's", "torchvision's", "a transformer"],
)  # fmt: skip
def test_layers_of_a_network(make: Callable[[], nn.Module], layers: dict[str, int]) -> None:
    network = make()
    found = layer_numbers(network)
    assert found.keys() == dict(network.named_parameters()).keys()
    for name, number in layers.items():
        assert found[name] == number, name
    assert set(found.values()) == set(range(max(layers.values()) + 1))


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
