"""The blocks and knobs of the ablations: what they cost, their layers, what they compute."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilenext.errors import InputError
from mobilenext.models import (
    BottleneckBlock,
    InvertedResidualVariant,
    MobileNetV2,
    MobileNeXt,
    SandglassBlock,
)
from mobilenext.models.complexity import count_params, measure_complexity
from mobilenext.models.sandglass import WideBlock
from mobilenext.tables import published_table
from tests.models.nontrivial import with_weights


def kinds(layers: nn.Module) -> list[str]:
    """Layers in order: dw3 (depthwise, 3x3), pw (1x1), with /2 for the stride, norm, relu6."""
    names = []
    for layer in layers.children():
        if isinstance(layer, nn.Conv2d):
            pointwise = layer.kernel_size == (1, 1)
            assert layer.groups == (1 if pointwise else layer.in_channels)
            stride = "/2" if layer.stride == (2, 2) else ""
            names.append(("pw" if pointwise else f"dw{layer.kernel_size[0]}") + stride)
        else:
            names.append({nn.BatchNorm2d: "norm", nn.ReLU6: "relu6"}[type(layer)])
    return names


def short(layers: nn.Module) -> str:
    """`kinds` without norms, each of which follows a convolution."""
    names = kinds(layers)
    for number, name in enumerate(names):
        assert (name == "norm") == (number > 0 and names[number - 1][0] in "dp")
    return " ".join(name for name in names if name != "norm")


def convolutions(network: nn.Module, kernel: int) -> list[nn.Conv2d]:
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    return [c for c in found if c.kernel_size == (kernel, kernel) and c.groups > 1]


# Counted from the authors' files (`i2rnet_low_id.py`, `mobilenetv2.py`, `i2rnetv3_rm_3x3.py`,
# `i2rnetv3_more_1x1.py`) at width 1 and 224 px: parameters and MAdds in millions.
PUBLISHED: dict[str, tuple[Callable[[], nn.Module], float, float]] = {
    "a: one thin depthwise": (
        lambda: MobileNeXt(block=partial(BottleneckBlock, depthwise_convolutions=1)),
        3.384,
        240.7,
    ),
    "b: two thin depthwise": (lambda: MobileNeXt(block=BottleneckBlock), 3.397, 244.7),
    "c: depthwise at the thin ends": (
        lambda: MobileNetV2(block=partial(InvertedResidualVariant, depthwise="ends")),
        3.456,
        295.6,
    ),
    "c: stride in the depthwise": (
        lambda: MobileNetV2(block=partial(InvertedResidualVariant, depthwise="ends_strided")),
        3.456,
        345.3,
    ),
    "d: sandglass": (MobileNeXt, 3.535, 311.3),
    "first depthwise removed": (lambda: MobileNeXt(depthwise="last"), 3.460, 300.8),
    "extra pointwise": (
        lambda: MobileNeXt(block=partial(SandglassBlock, extra_pointwise=True)),
        3.723,
        334.3,
    ),
    "extra depthwise in V2": (
        lambda: MobileNetV2(block=partial(InvertedResidualVariant, depthwise="twice")),
        3.583,
        334.4,
    ),
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_counts(variant: str) -> None:
    make, params, madds = PUBLISHED[variant]
    cost = measure_complexity(make())
    assert cost.params / 1e6 == pytest.approx(params, abs=0.0006)
    assert cost.madds / 1e6 == pytest.approx(madds, abs=0.05)


# Names of the networks in configs/model, which paper.yaml's rows give.
MODELS = {
    "bottleneck_one": "a: one thin depthwise",
    "bottleneck_two": "b: two thin depthwise",
    "thin_ends": "c: depthwise at the thin ends",
    "thin_ends_depthwise_stride": "c: stride in the depthwise",
    "mobilenext": "d: sandglass",
    "first_removed": "first depthwise removed",
    "extra_pointwise": "extra pointwise",
    "extra_depthwise": "extra depthwise in V2",
}


def test_counts_are_those_of_the_published_tables() -> None:
    rows = [row for name in ("ablation", "extra_depthwise") for row in published_table(name)]
    assert {row.model for row in rows} == set(MODELS)
    counted = [row for row in rows if "params" in row.numbers]
    assert len(counted) == len(MODELS)
    for row in counted:
        assert row.model is not None
        cost = measure_complexity(PUBLISHED[MODELS[row.model]][0]())
        assert cost.params / 1e6 == pytest.approx(row.numbers["params"].value, abs=0.0006), row
        assert cost.madds / 1e6 == pytest.approx(row.numbers["madds"].value, abs=0.05), row


@pytest.mark.parametrize(
    ("depthwise", "params"), [("ends", 3_456_472), ("ends_strided", 3_456_120)]
)
def test_both_readings_of_the_thin_ends(depthwise: Any, params: int) -> None:
    """The authors' two files named mobilenetv2.py: the stride is in the 1x1 convolution or not."""
    network = MobileNetV2(block=partial(InvertedResidualVariant, depthwise=depthwise))
    assert count_params(network) == params
    strided = [
        c.kernel_size
        for c in network.modules()
        if isinstance(c, nn.Conv2d) and c.stride == (2, 2) and c.in_channels != 3
    ]
    assert strided == [(1, 1) if depthwise == "ends" else (3, 3)] * 4


@pytest.mark.parametrize("variant", PUBLISHED)
def test_they_train(variant: str) -> None:
    network = with_weights(PUBLISHED[variant][0]()).train()
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize(
    ("activations", "expected"),
    [
        (("first", "expand"), "dw3 relu6 pw pw relu6 dw3"),
        ((), "dw3 pw pw dw3"),
        (("reduce",), "dw3 pw relu6 pw dw3"),
        (("first", "expand", "last"), "dw3 relu6 pw pw relu6 dw3 relu6"),
        (("last", "expand", "reduce", "first"), "dw3 relu6 pw relu6 pw relu6 dw3 relu6"),
        (["first", "expand", "reduce"], "dw3 relu6 pw relu6 pw relu6 dw3"),
    ],
)
def test_where_activations_sit(activations: Any, expected: str) -> None:
    block = SandglassBlock(48, 48, activations=activations)
    assert short(block.conv) == expected
    network = MobileNeXt(0.35, block=partial(SandglassBlock, activations=activations))
    found = {short(m.conv) for m in network.modules() if isinstance(m, WideBlock) and m.residual}
    assert found == {expected}
    assert count_params(network) == count_params(MobileNeXt(0.35))


def test_the_extra_pointwise_is_linear_and_not_in_the_first_block() -> None:
    network = MobileNeXt(block=partial(SandglassBlock, extra_pointwise=True))
    first, *others = (m for m in network.modules() if isinstance(m, SandglassBlock))
    assert short(first.conv).count("pw") == 2
    for block in others:
        assert "pw pw pw relu6" in short(block.conv)
        thin = [c for c in block.conv if isinstance(c, nn.Conv2d) and c.kernel_size == (1, 1)][1]
        assert thin.in_channels == thin.out_channels


@pytest.mark.parametrize("kernel", [5, 7])
def test_kernel_size(kernel: int) -> None:
    plain, network = MobileNeXt(), MobileNeXt(kernel_size=kernel)
    assert len(convolutions(network, kernel)) == len(convolutions(plain, 3)) == 33
    assert not convolutions(network, 3)
    larger = sum(c.out_channels for c in convolutions(plain, 3)) * (kernel**2 - 9)
    assert count_params(network) == count_params(plain) + larger
    assert network.features(torch.zeros(1, 3, 64, 64)).shape == (1, 1280, 2, 2)


# Bottlenecks at width 1, by hand: in // ratio (in // 2 in the first block), but at least
# out / ratio, which is rounded to a multiple of 16 and never more than 10 % down.
BOTTLENECKS = {
    3: [32, 48, 64, *[64] * 2, 96, *[96] * 2, 128, *[128] * 3, 192, *[192] * 3, 320, *[320] * 2,
        432],
    4: [32, 48, 48, *[48] * 2, 80, *[72] * 2, 96, *[96] * 3, 144, *[144] * 3, 240, *[240] * 2,
        320],
    8: [16, 32, 32, *[24] * 2, 48, *[36] * 2, 48, *[48] * 3, 80, *[72] * 3, 128, *[120] * 2, 160],
}  # fmt: skip


@pytest.mark.parametrize("ratio", BOTTLENECKS)
def test_reduction_ratio_and_its_floor(ratio: int) -> None:
    network = MobileNeXt(reduction_ratio=ratio)
    blocks = [m for m in network.features if isinstance(m, SandglassBlock)]
    thin = [block.conv[block.thin_end - 2] for block in blocks]
    assert all(isinstance(c, nn.Conv2d) for c in thin)
    assert [c.out_channels for c in thin if isinstance(c, nn.Conv2d)] == BOTTLENECKS[ratio]
    widths = [block.out_channels for block in blocks]
    plain = [m.out_channels for m in MobileNeXt().features if isinstance(m, SandglassBlock)]
    assert widths == plain


@pytest.mark.parametrize(
    ("depthwise", "residual", "kept"),
    [
        ("both", "dw3 relu6 pw pw relu6 dw3", 33),
        ("first", "dw3 relu6 pw pw relu6", 19),
        ("last", "pw pw relu6 dw3", 19),
    ],
)
def test_removed_depthwise(depthwise: Any, residual: str, kept: int) -> None:
    network = MobileNeXt(depthwise=depthwise)
    blocks = [m for m in network.features if isinstance(m, SandglassBlock)]
    assert {short(block.conv) for block in blocks if block.residual} == {residual}
    strided = [short(block.conv) for block in blocks if "/2" in short(block.conv)]
    # The one that keeps both and strides keeps both: the last has the stride.
    assert strided == ["dw3 relu6 pw pw relu6 dw3/2"] + ["pw pw relu6 dw3/2"] * 3
    assert len(convolutions(network, 3)) == kept
    assert network.features(torch.zeros(1, 3, 64, 64)).shape == (1, 1280, 2, 2)


def test_removing_the_last_depthwise() -> None:
    cost = measure_complexity(MobileNeXt(depthwise="first"))
    plain = MobileNeXt()
    removed = [
        block.conv[-2]
        for block in plain.features
        if isinstance(block, SandglassBlock) and short(block.conv) == "dw3 relu6 pw pw relu6 dw3"
    ]
    assert len(removed) == 14
    channels = sum(c.out_channels for c in removed if isinstance(c, nn.Conv2d))
    assert cost.params == count_params(plain) - channels * (9 + 2)


@pytest.mark.parametrize("shortcut", ["none", "thin"])
def test_other_shortcuts_cost_the_same(shortcut: Any) -> None:
    network = MobileNeXt(0.5, shortcut=shortcut)
    assert not any(getattr(m, "residual", False) for m in network.modules())
    assert list(network.state_dict()) == list(MobileNeXt(0.5).state_dict())
    cost, plain = (measure_complexity(n) for n in (network, MobileNeXt(0.5)))
    assert (cost.params, cost.madds) == (plain.params, plain.madds)


def test_without_shortcuts_blocks_are_their_layers() -> None:
    network = with_weights(MobileNeXt(0.35, shortcut="none"))
    x = network.features[0](torch.randn(2, 3, 64, 64))
    for block in network.features[1:]:
        expected = block.conv(x)
        x = block(x)
        assert torch.equal(x, expected)


def test_thin_shortcuts_by_hand() -> None:
    network = with_weights(MobileNeXt(0.35, shortcut="thin"))
    stem, *blocks = network.features
    found: list[Tensor] = []
    for block in blocks:  # the same blocks, one after another as they stand in the table
        block.conv[block.thin_end].register_forward_pre_hook(lambda _m, x: found.append(x[0]))
    images = torch.randn(2, 3, 64, 64)
    out = network.features(images)
    assert len(found) == 20

    # Blocks 3, 4 and 5 go 48 -> 64 -> 64 -> 64 with bottlenecks of 16. The third strides behind its
    # bottleneck, so that only the fifth has one of its own shape before it.
    x = stem(images)
    x = blocks[1].conv(blocks[0].conv(x))
    third, fourth, fifth = (blocks[n].conv for n in (2, 3, 4))
    # Reduce, norm; in the others depthwise, norm, ReLU6 come first.
    thin_3 = third[:2](x)
    x = third[2:](thin_3)
    thin_4 = fourth[:5](x)
    x = fourth[5:](thin_4)
    thin_5 = fifth[:5](x) + thin_4
    x = fifth[5:](thin_5)
    for got, wanted in zip(found[2:5], (thin_3, thin_4, thin_5), strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(network.features[:6](images), x)

    # All others likewise; the transition to 136 channels does not stride, so that its bottleneck
    # goes on, but the one to 336 has a wider one than its repeats.
    summed = []
    reference = stem(images)
    for number, block in enumerate(blocks):
        thin = block.conv[: block.thin_end](reference)
        same = torch.equal(thin, found[number])
        if not same:
            summed.append(number + 1)
            assert torch.equal(thin + found[number - 1], found[number])
            assert reference.shape[1] == block.out_channels
        reference = block.conv[block.thin_end :](found[number])
    assert torch.equal(reference, out)
    assert summed == [5, 8, 10, 11, 12, 15, 16, 19]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "pw dw3 dw3 relu6 pw relu6"),
        ({"depthwise_convolutions": 1}, "pw dw3 relu6 pw relu6"),
        ({"stride": 2}, "pw dw3 dw3 relu6 pw/2 relu6"),
        ({"stride": 2, "depthwise": "last"}, "pw dw3 relu6 pw/2 relu6"),
        ({"depthwise": "first"}, "pw dw3 relu6 pw relu6"),
        ({"depthwise": "none"}, "pw pw relu6"),
        ({"kernel_size": 5}, "pw dw5 dw5 relu6 pw relu6"),
    ],
)
def test_layers_of_the_classic_bottleneck(arguments: dict, expected: str) -> None:
    block = BottleneckBlock(48, 48, **arguments)
    assert short(block.conv) == expected
    assert block.residual == ("stride" not in arguments)
    thin = [c for c in block.conv if isinstance(c, nn.Conv2d)][:-1]
    assert {c.out_channels for c in thin} == {8}
    size = 5 if "stride" in arguments else 9
    assert block(torch.randn(2, 48, 9, 9)).shape == (2, 48, size, size)


def test_the_classic_bottleneck_adds_its_input() -> None:
    x = torch.randn(2, 48, 5, 5)
    for alpha, k in ((1.0, 48), (0.5, 24)):
        block = with_weights(BottleneckBlock(48, 48, identity_tensor_multiplier=alpha))
        out = block(x)
        assert torch.allclose(out[:, :k], block.conv(x)[:, :k] + x[:, :k], atol=1e-6)
        assert torch.equal(out[:, k:], block.conv(x)[:, k:])
    assert not BottleneckBlock(48, 48, shortcut=False).residual
    assert not BottleneckBlock(48, 64).residual


def test_layers_of_the_inverted_residuals() -> None:
    ends = partial(InvertedResidualVariant, 16, 24, 2, 6)
    assert short(ends(depthwise="ends").conv) == "dw3 relu6 pw relu6 pw/2 dw3 relu6"
    assert short(ends(depthwise="twice").conv) == "pw relu6 dw3 dw3/2 relu6 pw"
    assert short(ends(depthwise="ends_strided").conv) == "dw3 relu6 pw relu6 pw dw3/2 relu6"
    plain = InvertedResidualVariant(32, 16, 1, 1, depthwise="ends_strided")
    assert short(plain.conv) == "dw3 relu6 pw"
    for where in ("ends", "twice"):
        no_expansion = InvertedResidualVariant(32, 16, 1, 1, depthwise=where)
        assert short(no_expansion.conv) == "dw3 dw3 relu6 pw"
    block = with_weights(InvertedResidualVariant(16, 16, 1, 6))
    widths = [c.out_channels for c in block.conv if isinstance(c, nn.Conv2d)]
    assert widths == [16, 96, 16, 16]
    x = torch.randn(2, 16, 5, 5)
    assert torch.equal(block(x), x + block.conv(x))
    moved = with_weights(InvertedResidualVariant(16, 16, 2, 6))
    assert torch.equal(moved(x), moved.conv(x))
    assert moved(x).shape == (2, 16, 3, 3)


UNKNOWN: Any = "middle"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SandglassBlock(32, 32, activations=("first", "middle")),
         r"expected some of first, reduce, expand, last, got \['first', 'middle'\]"),
        (lambda: SandglassBlock(32, 32, kernel_size=4), "kernel size: expected an odd .* 4"),
        (lambda: SandglassBlock(32, 32, stride=2, depthwise="first"), "carries the stride"),
        (lambda: MobileNeXt(kernel_size=2), "expected an odd number, got 2"),
        (lambda: MobileNeXt(reduction_ratio=0), "reduction ratio: expected 1 or more, got 0"),
        (lambda: MobileNeXt(depthwise="none"), "both, first or last, got 'none'"),
        (lambda: MobileNeXt(shortcut=UNKNOWN),
         "expected wide, thin or none, got 'middle'"),
        (lambda: MobileNeXt(1.0, 0.5, shortcut="thin"),
         r"shortcut=thin has no identity tensor multiplier: expected identity=1, got 0\.5"),
        (lambda: MobileNeXt(drop_path=1.0), r"drop_path: expected a number in \[0, 1\), got 1"),
        (lambda: BottleneckBlock(32, 32, depthwise_convolutions=3), "expected 1 or 2, got 3"),
        (lambda: BottleneckBlock(32, 32, stride=4), "expected 1 or 2, got 4"),
        (lambda: BottleneckBlock(32, 32, kernel_size=6), "expected an odd number, got 6"),
        (lambda: BottleneckBlock(32, 32, identity_tensor_multiplier=0), r"in \(0, 1\]"),
        (lambda: InvertedResidualVariant(16, 16, 3, 6), "expected 1 or 2, got 3"),
        (lambda: InvertedResidualVariant(16, 16, 1, 6, depthwise=UNKNOWN),
         "depthwise: expected ends, ends_strided or twice, got 'middle'"),
    ],
)  # fmt: skip
def test_refuses_wrong_values(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_an_activation_behind_the_block_changes_what_it_computes() -> None:
    plain = with_weights(SandglassBlock(48, 48))
    activated = SandglassBlock(48, 48, activations=("first", "expand", "last")).eval()
    activated.load_state_dict(plain.state_dict())
    x = torch.randn(2, 48, 5, 5)
    assert torch.equal(activated(x), x + plain.conv(x).clamp(0, 6))


def test_drop_path_grows_with_depth() -> None:
    network = MobileNeXt(0.35, drop_path=0.2)
    blocks = [m for m in network.features if isinstance(m, WideBlock)]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.2 * number / 20 for number in range(20)])
    bottlenecks = MobileNeXt(0.35, drop_path=0.2, block=BottleneckBlock)
    found = [m for m in bottlenecks.features if isinstance(m, WideBlock)]
    assert [getattr(b.drop_path, "drop_prob", 0.0) for b in found] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("depth_mult", "repeats"),
    [
        (1.0, (1, 1, 3, 3, 4, 4, 3, 1)),
        (1.1, (2, 2, 4, 4, 5, 5, 4, 2)),
        (0.5, (1, 1, 2, 2, 2, 2, 2, 1)),
        (2.0, (2, 2, 6, 6, 8, 8, 6, 2)),
    ],
)
def test_depth_multiplier(depth_mult: float, repeats: tuple[int, ...]) -> None:
    network = MobileNeXt(depth_mult=depth_mult, drop_path=0.2)
    blocks = [m for m in network.features if isinstance(m, SandglassBlock)]
    widths = (96, 144, 192, 288, 384, 576, 960, 1280)
    assert [block.out_channels for block in blocks] == [
        width for width, count in zip(widths, repeats, strict=True) for _ in range(count)
    ]
    # What is added keeps its shape: the stages change it in their first block only. Blocks of ratio
    # 2, the first stage's, have no shortcut in the authors' code.
    first = [number == 0 for count in repeats[1:] for number in range(count)]
    assert [not block.residual for block in blocks] == [True] * repeats[0] + first
    assert sum("/2" in short(block.conv) for block in blocks) == 4
    last = blocks[-1].drop_path
    assert getattr(last, "drop_prob", 0.0) == pytest.approx(0.2 * (1 - 1 / len(blocks)))
