"""Networks at 8 bits: what is rounded where, and what the ways to lose less do."""

import copy
import functools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from mobilenext.data import digits
from mobilenext.deploy.graph import FromPixels, prepared
from mobilenext.deploy.int8.biases import correct_biases
from mobilenext.deploy.int8.equalization import equalize
from mobilenext.deploy.int8.graphs import exported, layers, tensor_of
from mobilenext.deploy.int8.quantization import (
    FineTuning,
    Quantized,
    check_keep_float,
    quantize_network,
    reestimate_norms,
    zero_dead_channels,
)
from mobilenext.deploy.int8.scheme import Scheme
from mobilenext.deploy.quiet import quietly
from mobilenext.errors import InputError
from mobilenext.models import MobileNetV2, MobileNeXt
from tests.models.nontrivial import with_weights

SIZE = 32
STRIDES = (1, 1, 2, 2, 2)
ops = torch.ops.quantized_decomposed
aten = torch.ops.aten


@pytest.fixture(scope="module", autouse=True)
def quantizers() -> Any:
    """Not imported before a test needs it: ExecuTorch would take each worker three seconds."""
    with quietly():
        return pytest.importorskip(
            "mobilenext.deploy.int8.quantizers", reason="needs pip install 'mobilenext[executorch]'"
        )


@functools.cache
def pixels() -> torch.Tensor:
    """Scanned digits, uint8 (32, 3, 32, 32)."""
    pictures = np.stack([np.asarray(digits(SIZE).val[place][0]) for place in range(32)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def whole(network: nn.Module) -> nn.Module:
    """From pixels to logits, batch norms folded."""
    folded = prepared(network, SIZE, folded=True, masked=False)
    return FromPixels(folded, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).eval()


@functools.cache
def half() -> nn.Module:
    """A MobileNeXt with an identity tensor multiplier of 1/2."""
    return whole(
        with_weights(MobileNeXt(0.35, 0.5, num_classes=10, depth_mult=0.3, strides=STRIDES)).eval()
    )


@functools.cache
def inverted() -> nn.Module:
    return whole(with_weights(MobileNetV2(0.35, num_classes=10, strides=STRIDES)).eval())


class Padded(nn.Module):
    """Padding of its own between a clip and a convolution, as TensorFlow's networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6())
        self.second = nn.Conv2d(8, 4, 3, groups=1, bias=False)
        self.head = nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(self.first(images), (0, 1, 0, 1))
        return self.head(self.second(padded).mean((2, 3)))


@functools.cache
def padded() -> nn.Module:
    return FromPixels(with_weights(Padded()), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).eval()


@functools.cache
def taken(name: str, scheme: Scheme) -> Quantized:
    return quantize_network({"half": half, "inverted": inverted, "padded": padded}[name](),
                            pixels().split(16), scheme)  # fmt: skip


def logits(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(pixels())


def sqnr(expected: torch.Tensor, found: torch.Tensor) -> float:
    return 10 * float(torch.log10(expected.square().sum() / (found - expected).square().sum()))


@pytest.mark.parametrize("name", ["half", pytest.param("inverted", marks=pytest.mark.slow)])
def test_nothing_is_rounded_between_a_convolution_and_its_clip(name: str) -> None:
    graph = taken(name, Scheme(observer="minmax")).reference
    clips = 0
    for layer in layers(graph):
        if layer.last is not layer.node:
            clips += 1
        assert all(user.target is ops.quantize_per_tensor.default for user in layer.last.users
                   ) or layer.node.target is aten.linear.default  # fmt: skip
        image, weight = layer.node.args[:2]
        assert image.target is ops.dequantize_per_tensor.default  # pyright: ignore
        assert weight.target is ops.dequantize_per_channel.default  # pyright: ignore
    targets = Counter(node.target for node in graph.graph.nodes)
    assert clips == targets[aten.hardtanh_.default] + targets[aten.hardtanh.default] > 5


def test_the_answers_are_near_and_the_network_is_left_alone() -> None:
    before = {name: value.clone() for name, value in half().state_dict().items()}
    expected = logits(half())
    scheme = Scheme(observer="minmax", correct_bias=True)
    assert sqnr(expected, logits(taken("half", scheme).reference)) > 15
    assert all(torch.equal(before[name], value) for name, value in half().state_dict().items())


def test_unused_float_weights_are_dropped() -> None:
    quantized = taken("half", Scheme(observer="minmax")).reference
    size = sum(
        t.numel() * t.element_size() for t in [*quantized.parameters(), *quantized.buffers()]
    )
    assert size < 0.4 * 4 * sum(value.numel() for value in half().parameters())
    again = torch.export.export(quantized, (pixels()[:2].clone(),)).module()
    assert torch.equal(again(pixels()[:2]), quantized(pixels()[:2]))


@pytest.mark.parametrize("weights", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("grid", ["symmetric", "affine"])
def test_weights_are_rounded_as_said(quantizers: Any, weights: str, grid: str) -> None:
    """The grid by hand: 255 levels around zero, or 256 from the smallest to the largest."""
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0)).add(0.3)
    found = quantizers.rounded(weight, Scheme(weights, grid))
    rows = weight.flatten(1) if weights == "per_channel" else weight.view(1, -1)
    if grid == "symmetric":
        step = rows.abs().amax(1, keepdim=True) / 127
        by_hand = (rows / step).round().clamp(-127, 127) * step
    else:
        low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
        step = (high - low) / 255
        zero = (-128 - (low / step).round()).clamp(-128, 127)
        by_hand = ((rows / step).round().add(zero).clamp(-128, 127) - zero) * step
    torch.testing.assert_close(found, by_hand.view_as(weight))


@pytest.mark.parametrize("scheme", [Scheme("per_tensor", "affine", "minmax"), Scheme()])
def test_the_graph_has_the_weights_that_biases_are_corrected_for(
    quantizers: Any, scheme: Scheme
) -> None:
    original = {one.name: tensor_of(graph, one.node.args[1])
                for graph in [exported(padded(), pixels())] for one in layers(graph)}  # fmt: skip
    graph = taken("padded", scheme).reference
    assert len(original) == 3
    for layer in layers(graph):
        source: Any = layer.node.args[1]
        arguments = [tensor_of(graph, a) if isinstance(a, torch.fx.Node) else a
                     for a in source.args]  # fmt: skip
        stored = source.target(*arguments, **source.kwargs)
        torch.testing.assert_close(stored, quantizers.rounded(original[layer.name], scheme))


def test_padding_stays_on_the_grid_of_what_it_pads() -> None:
    graph = taken("padded", Scheme(observer="minmax")).reference
    (pad,) = [node for node in graph.graph.nodes if node.target is aten.pad.default]
    before: Any = pad.args[0]
    (after,) = pad.users
    assert before.target is ops.dequantize_per_tensor.default
    assert after.target is ops.quantize_per_tensor.default
    assert before.args[1:3] == after.args[1:3]


def test_modules_stay_in_float() -> None:
    kept = taken("half", Scheme(observer="minmax", keep_float=("features.1", "classifier")))
    floats = {one.name for one in kept.layers if one.weight_sqnr_db is None}
    assert floats == {one.name for one in kept.layers
                      if one.name.startswith(("features.1.", "classifier"))}  # fmt: skip
    assert 1 < len(floats) < len(kept.layers)


def test_an_unknown_module_is_refused_and_the_nearest_named() -> None:
    network = MobileNeXt(0.35, num_classes=10)
    check_keep_float(network, ["features.1", "classifier"])
    with pytest.raises(
        InputError, match=r"keep_float=features\.1\.convs.*did you mean .*features\.1\.conv"
    ):
        check_keep_float(network, ["features.1.convs"])


def test_errors_are_named_by_module_and_grow_with_coarser_weights() -> None:
    fine, coarse = (taken("half", Scheme(kind, observer="minmax"))
                    for kind in ("per_channel", "per_tensor"))  # fmt: skip
    names = [name.removeprefix("network.") for name, module in half().named_modules()
             if isinstance(module, nn.Conv2d | nn.Linear)]  # fmt: skip
    assert [one.name for one in fine.layers] == names
    assert all(10 < one.sqnr_db < 80 for one in fine.layers)
    assert all(
        one.weight_sqnr_db >= other.weight_sqnr_db - 1e-6  # pyright: ignore
        for one, other in zip(fine.layers, coarse.layers, strict=True)
    )


@pytest.mark.parametrize(
    "name", ["half", "padded", pytest.param("inverted", marks=pytest.mark.slow)]
)
def test_equalisation_keeps_the_function_and_evens_out_ranges(name: str) -> None:
    network = {"half": half, "inverted": inverted, "padded": padded}[name]()
    graph = _doubled(exported(copy.deepcopy(network), pixels()))
    with torch.no_grad():  # ranges that differ much, as those of trained networks do
        for number, layer in enumerate(layers(graph)):
            weight = tensor_of(graph, layer.node.args[1])
            scale = torch.logspace(-1, 0.5, len(weight)).roll(number)
            weight.mul_(scale.view(-1, *[1] * (weight.dim() - 1)))
    expected, spread = logits(graph), _spread(graph)
    assert equalize(graph) >= 1
    torch.testing.assert_close(logits(graph), expected, rtol=1e-6, atol=1e-8)
    assert _spread(graph) < 0.8 * spread
    assert any(node.target is aten.minimum.default for node in graph.graph.nodes)


def _doubled(graph: GraphModule) -> GraphModule:
    """In float64: scaled at random, a deep network of float32 has few right digits."""
    graph = graph.double()
    for node in graph.graph.nodes:
        node.args = tuple(torch.float64 if a is torch.float32 else a for a in node.args)
        if node.kwargs.get("dtype") is torch.float32:
            node.kwargs = {**node.kwargs, "dtype": torch.float64}
    graph.recompile()
    return graph


def _spread(graph: GraphModule) -> float:
    """Mean over layers of the widest channel's range over the narrowest's, as powers of ten."""
    found = []
    for layer in layers(graph):
        if layer.node.target is aten.conv2d.default:
            ranges = tensor_of(graph, layer.node.args[1]).detach().flatten(1).abs().amax(1)
            found.append(float(torch.log10(ranges.max() / ranges.min())))
    return sum(found) / len(found)


def test_equalised_ceilings_are_one_kernel_with_their_convolution() -> None:
    found = taken("padded", Scheme("per_tensor", observer="minmax", equalize=True))
    assert found.equalized == 1
    (ceiling,) = [n for n in found.reference.graph.nodes if n.target is aten.minimum.default]
    relu: Any = ceiling.args[0]
    assert relu.target is aten.relu.default
    assert relu.args[0].target is aten.conv2d.default
    assert sqnr(logits(padded()), logits(found.reference)) > 20


def test_corrected_biases_take_up_the_mean_error() -> None:
    """Where nothing clips, the mean output with rounded weights is then that of float."""
    random = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 4, 1)
    )
    for value in network.parameters():
        nn.init.normal_(value, generator=random)
    images = FromPixels(network, (0.2, 0.3, 0.4), (0.5, 0.5, 0.5)).eval()
    graph, plain = exported(images, pixels()), exported(images, pixels())

    def coarse(weight: torch.Tensor) -> torch.Tensor:
        return (4 * weight).round() / 4

    expected = logits(graph).mean((0, 2, 3))
    correct_biases(graph, [one.node for one in layers(graph)], coarse, pixels().split(16))
    with torch.no_grad():
        for one in layers(plain):
            weight = tensor_of(plain, one.node.args[1])
            weight.copy_(coarse(weight))  # also the corrected graph's: they share tensors
    assert not torch.allclose(logits(plain).mean((0, 2, 3)), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(logits(graph).mean((0, 2, 3)), expected, rtol=0, atol=1e-3)


def test_a_range_without_the_outlier(quantizers: Any) -> None:
    values = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0))
    values[0] = 100.0
    steps = {}
    for name, observer in quantizers.ACTIVATIONS.items():
        seen = observer.with_args(
            dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine
        )()
        for part in values.split(250_000):
            seen(part)
        steps[name] = float(seen.calculate_qparams()[0]) * 255
    assert steps["minmax"] == pytest.approx(100, rel=1e-3)
    assert steps["percentile"] < 2
    assert steps["percentile"] <= steps["histogram"] * 1.1


def test_what_no_graph_can_say_is_refused() -> None:
    class Deciding(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.mean().item() > 0 else -images

    network = FromPixels(Deciding(), (0.5,) * 3, (0.5,) * 3).eval()
    with pytest.raises(InputError, match="this network can't be exported: "):
        quantize_network(network, pixels().split(16), Scheme())


def test_norms_are_measured_again() -> None:
    norm = nn.BatchNorm2d(3, momentum=0.01)
    images = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5
    assert reestimate_norms(nn.Sequential(norm), images.split(32)) == 1
    parts = [part.transpose(0, 1).flatten(1) for part in images.split(32)]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, images.transpose(0, 1).flatten(1).mean(1))
    torch.testing.assert_close(norm.running_var, (parts[0].var(1) + parts[1].var(1)) / 2)
    assert norm.momentum == 0.01
    assert not norm.training


def test_fine_tuning_learns_with_rounded_values() -> None:
    """Labels are the float network's answers, so the loss can fall."""
    labels = logits(padded()).argmax(1)
    batches = [(pixels(), labels)] * 20
    before = nn.functional.cross_entropy(logits(padded()), labels)
    tuned = quantize_network(padded(), pixels().split(16), Scheme(), FineTuning(batches, 20, 0.02))
    assert nn.functional.cross_entropy(logits(tuned.reference), labels) < before
    targets = Counter(node.target for node in tuned.reference.graph.nodes)
    assert targets[ops.dequantize_per_channel.default] == 3


def test_dead_channels_are_zeroed_and_the_answers_stay() -> None:
    """The first channel of the first depthwise convolution gets nothing but zeros."""
    network = MobileNeXt(0.35, num_classes=10, depth_mult=0.5, strides=STRIDES)
    network = with_weights(network).eval()
    stem = network.get_submodule("features.0.1")
    assert isinstance(stem, nn.BatchNorm2d)
    after = network.get_submodule("features.1.conv.1")
    assert isinstance(after, nn.BatchNorm2d)
    assert after.running_var is not None
    assert after.running_mean is not None
    with torch.no_grad():
        stem.weight[0], stem.bias[0] = 0.0, -1.0
        after.running_var[0], after.running_mean[0] = 5e-45, 0.0
    images = FromPixels(network, (0.5,) * 3, (0.5,) * 3).normalised(pixels()[:8])
    with torch.no_grad():
        expected = network(images)
        ranges = []
        for mended in (False, True):
            if mended:
                assert zero_dead_channels(network, images) == {"features.1.conv.1": 1}
                torch.testing.assert_close(network(images), expected)
            folded = prepared(network, SIZE, folded=True, masked=False)
            weight = folded.get_submodule("features.1.conv.0").weight
            assert isinstance(weight, torch.Tensor)
            ranges.append(float(weight.abs().max()))
    assert ranges[0] > 20 * ranges[1]
    after.running_var[1] = 0.0  # a channel that does change: nothing is touched
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert zero_dead_channels(network, images) == {}
    assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())
