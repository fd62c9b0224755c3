"""EfficientNet-b0 beside timm's; its swap, mnext_s and mnext_l beside statements of them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models import group_parameters
from timm.models._factory import create_model
from torch import Tensor, nn

from mobilenext.errors import InputError
from mobilenext.models import EfficientNet, MobileNeXt, SandglassBlock, mnext_l, mnext_s
from mobilenext.models.complexity import count_params, measure_complexity
from mobilenext.models.efficientnet import B0_STAGES, MNEXT_UNUSED_PARAMS
from mobilenext.models.parts import Conv2dSame
from tests.models.nontrivial import with_weights
from tests.models.stated import Block, Stated, difference, drawn, with_tensors


def images(count: int = 4, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def timms(strides: tuple[int, ...] = (2, 2, 2, 2, 2), **arguments: Any) -> Any:
    """timm's network with other strides in its downsampling convolutions."""
    network: Any = create_model("efficientnet_b0", **arguments)
    places = ["conv_stem", *(f"blocks.{stage}.0.conv_dw" for stage in (1, 2, 3, 5))]
    for place, stride in zip(places, strides, strict=True):
        assert network.get_submodule(place).stride == (2, 2)
        network.get_submodule(place).stride = (stride, stride)
    return network


def test_b0_has_timms_names_and_shapes() -> None:
    ours, theirs = EfficientNet(), timms()
    assert count_params(ours) == count_params(theirs) == 5_288_548
    shapes = [{key: v.shape for key, v in n.state_dict().items()} for n in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1]), "another order"
    assert measure_complexity(ours).madds / 1e6 == pytest.approx(385.8, abs=0.05)


@pytest.mark.parametrize(("strides", "size"), [((2, 2, 2, 2, 2), 2), ((1, 2, 1, 2, 2), 8)])
def test_b0_computes_what_timms_does(strides: tuple[int, ...], size: int) -> None:
    theirs = with_weights(timms(strides, num_classes=7), gain=2.4)
    ours = EfficientNet(num_classes=7, strides=strides).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        wanted = theirs(images())
        assert (wanted[0] - wanted[1]).std() > 0.05 * wanted.std()
        assert torch.equal(ours(images()), wanted)
        features = ours.forward_features(images())
        assert features.shape == (4, 1280, size, size)
        assert torch.equal(features, theirs.forward_features(images()))


def test_b0_has_timms_gradients() -> None:
    theirs = with_weights(timms(num_classes=7), gain=2.4).train()
    ours = EfficientNet(num_classes=7, dropout=0.0, drop_path=0.0).train()
    ours.load_state_dict(theirs.state_dict())
    outputs = [network(images()) for network in (ours, theirs)]
    assert torch.equal(*outputs)
    for out in outputs:
        nn.functional.cross_entropy(out, torch.arange(4)).backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None
        assert one.grad.any(), name
        assert torch.equal(one.grad, other.grad), name
    for (name, one), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert torch.equal(one, other), name


def test_b0_without_squeezing() -> None:
    network = EfficientNet(0.35, se_ratio=0, num_classes=7)
    assert not any("se." in name for name, _ in network.named_parameters())
    assert network.eval()(images()).shape == (4, 7)
    # Both 1x1 convolutions of b0's squeezes with their biases, at width 1.
    squeezes = [32, *(6 * c for c in (16, 24, 24, 40, 40, 80, 80, 80, *[112] * 3, *[192] * 4))]
    inputs = [32, 16, 24, 24, 40, 40, 80, 80, 80, *[112] * 3, *[192] * 4]
    saved = sum(
        2 * wide * (c // 4) + wide + c // 4 for wide, c in zip(squeezes, inputs, strict=True)
    )
    assert count_params(EfficientNet()) - count_params(EfficientNet(se_ratio=0)) == saved


def drop_rates(network: nn.Module) -> list[float]:
    """Of all blocks in order, 0 where nothing is dropped."""
    paths = [m.drop_path for m in network.modules() if hasattr(m, "drop_path")]
    return [getattr(path, "drop_prob", 0.0) for path in paths]


def test_drop_path_grows_with_depth_like_timms() -> None:
    theirs = drop_rates(timms(drop_path_rate=0.2))
    assert theirs == pytest.approx([0.2 * number / 16 for number in range(16)])
    assert drop_rates(EfficientNet()) == pytest.approx(theirs)
    assert drop_rates(EfficientNet(drop_path=0.1)) == pytest.approx([rate / 2 for rate in theirs])
    assert not any(drop_rates(EfficientNet(drop_path=0.0)))
    assert drop_rates(EfficientNet(block="sandglass")) == pytest.approx(theirs)
    # The authors' rate for block n of 20 is 0.2 * n / 20, too.
    assert drop_rates(mnext_s()) == pytest.approx([0.2 * number / 20 for number in range(20)])
    assert drop_rates(mnext_l(drop_path=0.1))[-1] == pytest.approx(0.1 * 27 / 28)


def test_drop_path_of_inverted_residuals_leaves_the_shortcut() -> None:
    torch.manual_seed(0)
    block = with_weights(EfficientNet(num_classes=7, drop_path=0.8)).blocks[5][3]
    assert block.residual
    x = torch.randn(200, 192, 2, 2)
    branch = block(x) - x
    block.drop_path.train()
    out = block(x)
    dropped = (out == x).flatten(1).all(1)
    rate = 0.8 * 14 / 16
    assert dropped.float().mean().item() == pytest.approx(rate, abs=0.1)
    kept = ~dropped
    assert kept.any()
    assert torch.allclose(out[kept], (x + branch / (1 - rate))[kept], rtol=1e-3, atol=1e-4)


def test_initialisation_is_timms_in_distribution() -> None:
    torch.manual_seed(0)
    ours, theirs = EfficientNet(), timms()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if (one.ndim == 4 and one.numel() > 2000) or name == "classifier.weight":
            spread = one.std().item()
            assert spread == pytest.approx(other.std().item(), rel=0.1), name
        elif one.ndim == 1:
            assert torch.equal(one, other), name


# in>hidden>out, kernel, stride, squeezed channels, depthwise convolutions kept; *: so many times
MNEXT_S = """
    32>16>96    k3 s1 q12 both
    96>16>144   k3 s2 q6  last
    144>24>192  k5 s2 q8  last
    192>32>192  k5 s1 q8  both *2
    192>32>288  k3 s2 q12 last
    288>48>288  k3 s1 q12 both *2
    288>48>384  k5 s1 q16 none
    384>64>384  k5 s1 q16 both *3
    384>64>576  k5 s2 q24 last
    576>96>576  k5 s1 q24 both *3
    576>96>960  k3 s1 q40 none
    960>160>960 k3 s1 q40 both *2
    960>160>1280 k3 s1 q53 none
"""
# Repeats 2, 2, 4, 4, 5, 5, 4, 2.
MNEXT_L = """
    32>16>96    k3 s1 q12 both
    96>48>96    k3 s1 q12 both
    96>16>144   k3 s2 q6  last
    144>24>144  k3 s1 q6  both
    144>24>192  k5 s2 q8  last
    192>32>192  k5 s1 q8  both *3
    192>32>288  k3 s2 q12 last
    288>48>288  k3 s1 q12 both *3
    288>48>384  k5 s1 q16 none
    384>64>384  k5 s1 q16 both *4
    384>64>576  k5 s2 q24 last
    576>96>576  k5 s1 q24 both *4
    576>96>960  k3 s1 q40 none
    960>160>960 k3 s1 q40 both *3
    960>160>1280 k3 s1 q53 none
    1280>214>1280 k3 s1 q53 both
"""
# b0's table with wide ends: its thin ends of 16, 24, ... are the bottlenecks.
SWAP = """
    32>16>96      k3 s2 q12 both
    96>24>144     k3 s1 q6  none
    144>24>144    k3 s1 q6  both
    144>40>240    k5 s2 q10 last
    240>40>240    k5 s1 q10 both
    240>80>480    k3 s2 q20 last
    480>80>480    k3 s1 q20 both *2
    480>112>672   k5 s1 q28 none
    672>112>672   k5 s1 q28 both *2
    672>192>1152  k5 s2 q48 last
    1152>192>1152 k5 s1 q48 both *3
    1152>320>1280 k3 s1 q53 both
"""


# Numbers of the blocks that have a shortcut. In the authors' code blocks of ratio 2 have none, so
# that mnext_l's second block (96 to 96 channels) goes without.
SHORTCUTS = {
    "mnext_s": [4, 5, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19],
    "mnext_l": [4, 6, 7, 8, 10, 11, 12, 14, 15, 16, 17, 19, 20, 21, 22, 24, 25, 26, 28],
    "swap": [3, 5, 7, 8, 10, 11, 13, 14, 15],
}


def expected_blocks(layout: str) -> list[list[str]]:
    blocks = []
    for line in layout.split("\n"):
        entry, _, repeats = line.partition("*")
        if entry.strip():
            blocks += [entry.split()] * int(repeats or 1)
    return blocks


def sandglass_blocks(network: nn.Module) -> list[SandglassBlock]:
    return [m for m in network.modules() if isinstance(m, SandglassBlock)]


def check_layout(
    network: nn.Module, layout: str, groups_of_same_width: int, shortcuts: list[int]
) -> None:
    """Compare each block with its line."""
    blocks, expected = sandglass_blocks(network), expected_blocks(layout)
    assert len(blocks) == len(expected)
    assert [number for number, block in enumerate(blocks, 1) if block.residual] == shortcuts
    for block, (channels, kernel, stride, squeezed, keeps) in zip(blocks, expected, strict=True):
        inp, hidden, out = (int(c) for c in channels.split(">"))
        k, s = int(kernel[1:]), int(stride[1:])
        convolutions = [layer for layer in block.conv if isinstance(layer, nn.Conv2d)]
        pointwise = [c for c in convolutions if c.kernel_size == (1, 1)]
        depthwise = [c for c in convolutions if c.kernel_size != (1, 1)]
        assert [(c.in_channels, c.out_channels) for c in pointwise] == [
            (inp, hidden),
            (hidden, out),
        ]
        groups = groups_of_same_width if inp == out or inp == 32 else 1
        assert [c.groups for c in pointwise] == [groups, groups]
        assert [(c.kernel_size[0], c.groups, c.stride[0]) for c in depthwise] == {
            "both": [(k, inp, 1), (k, out, s)],
            "last": [(k, out, s)],
            "none": [],
        }[keeps]
        assert all(c.bias is None for c in convolutions)
        assert block.identity_channels == (out if block.residual else 0)
        reduce, expand = (block.se.get_submodule(n) for n in ("conv_reduce", "conv_expand"))
        assert isinstance(reduce, nn.Conv2d)
        assert isinstance(expand, nn.Conv2d)
        assert (reduce.in_channels, reduce.out_channels) == (out, int(squeezed[1:]))
        assert (expand.in_channels, expand.out_channels) == (int(squeezed[1:]), out)


def test_layout_of_mnext_s() -> None:
    network = mnext_s()
    check_layout(network, MNEXT_S, 1, SHORTCUTS["mnext_s"])
    assert network.features(torch.zeros(1, 3, 224, 224)).shape == (1, 1280, 7, 7)


def test_layout_of_mnext_l() -> None:
    check_layout(mnext_l(), MNEXT_L, 2, SHORTCUTS["mnext_l"])


def test_layout_of_the_swap() -> None:
    network = EfficientNet(block="sandglass")
    check_layout(network, SWAP, 1, SHORTCUTS["swap"])
    for name in ("conv_head", "bn2", "act2"):
        assert isinstance(network.get_submodule(name), nn.Identity)
    assert network.num_features == 1280
    assert network.forward_features(torch.zeros(1, 3, 224, 224)).shape == (1, 1280, 7, 7)


def stated(layout: str, groups: int, shortcuts: list[int]) -> Stated:
    """The authors' network as its table states it."""
    blocks = []
    for number, line in enumerate(expected_blocks(layout), 1):
        channels, kernel, stride, squeezed, keeps = line
        into, hidden, out = (int(c) for c in channels.split(">"))
        k, s, q = int(kernel[1:]), int(stride[1:]), int(squeezed[1:])
        grouped = groups if keeps == "both" else 1
        blocks.append(Block(into, hidden, out, keeps, s, number in shortcuts, k, q, grouped))
    return Stated(blocks, nn.functional.silu, eps=1e-3, same_padding=True)


@pytest.mark.parametrize(
    ("make", "layout", "groups"), [(mnext_s, MNEXT_S, 1), (mnext_l, MNEXT_L, 2)]
)
def test_outputs_are_those_of_the_stated_blocks(
    make: Callable[..., MobileNeXt], layout: str, groups: int
) -> None:
    shortcuts = SHORTCUTS[make.__name__]
    reference = stated(layout, groups, shortcuts)
    tensors = drawn(reference)
    network = with_tensors(make(num_classes=reference.classes), tensors)
    assert difference(network, reference, tensors) < 1e-4
    # Every shortcut matters to these outputs.
    for number in (shortcuts[0], shortcuts[-1]):
        without = stated(layout, groups, [n for n in shortcuts if n != number])
        assert difference(network, without, tensors) > 0.05
    if make is mnext_l:
        assert difference(network, stated(layout, groups, [2, *shortcuts]), tensors) > 0.05


@pytest.mark.parametrize(
    ("make", "params", "madds"),
    # The authors' counts, which include parameters that are never used.
    [(mnext_s, 3_937_011 - MNEXT_UNUSED_PARAMS, 330.2), (mnext_l, 4_287_498 - 2560, 415.1)],
)
def test_counts_of_the_authors_networks(
    make: Callable[..., MobileNeXt], params: int, madds: float
) -> None:
    cost = measure_complexity(make())
    assert cost.params == params
    assert cost.madds / 1e6 == pytest.approx(madds, abs=0.05)


def test_counts_without_squeezing() -> None:
    cost = measure_complexity(mnext_s(se_ratio=0.0))
    assert cost.params + MNEXT_UNUSED_PARAMS == 3_367_112
    assert cost.madds / 1e6 == pytest.approx(329.6, abs=0.05)


@pytest.mark.parametrize(
    ("se_ratio", "params", "madds"), [(0.25, 5_594_089, 529.8), (0.0, 4_819_544, 529.0)]
)
def test_counts_of_the_swap(se_ratio: float, params: int, madds: float) -> None:
    cost = measure_complexity(EfficientNet(block="sandglass", se_ratio=se_ratio))
    assert cost.params == params
    assert cost.madds / 1e6 == pytest.approx(madds, abs=0.05)
    assert sum(stage.params for stage in cost.stages) == cost.params


@pytest.mark.parametrize("make", [mnext_s, mnext_l])
def test_habits_of_tensorflow(make: Callable[..., MobileNeXt]) -> None:
    network = make()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    strided = [c for c in convolutions if c.stride == (2, 2)]
    assert len(strided) == 5
    assert all(isinstance(c, Conv2dSame) for c in strided)
    assert not any(isinstance(m, nn.ReLU6) for m in network.modules())
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.2]
    # torch's own initialisation, uniform within 1 / sqrt(fan in)
    for c in (c for c in convolutions if c.weight.numel() > 2000):
        bound = 1 / math.sqrt(c.weight[0].numel())
        assert c.weight.abs().max().item() <= bound * 1.0001
        assert c.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("size", [6, 7])
def test_same_padding_is_tensorflows(size: int) -> None:
    """With an even size and stride 2, all of the padding is below and to the right."""
    block = SandglassBlock(
        4, 8, stride=2, depthwise="last", padding="same", kernel_size=5, activations=()
    )
    convolution = block.conv[4]
    assert isinstance(convolution, nn.Conv2d)
    x = torch.randn(1, 8, size, size)
    total = 3 if size % 2 == 0 else 4
    before, after = total // 2, total - total // 2
    padded = nn.functional.pad(x, (before, after, before, after))
    wanted = nn.functional.conv2d(padded, convolution.weight, stride=2, groups=8)
    assert torch.allclose(convolution(x), wanted, atol=1e-6)
    plain = nn.functional.conv2d(x, convolution.weight, stride=2, groups=8, padding=2)
    assert torch.allclose(plain, wanted, atol=1e-6) == (size % 2 == 1)
    assert block(torch.randn(1, 4, size, size)).shape == (1, 8, (size + 1) // 2, (size + 1) // 2)


def test_squeezing_weighs_the_output_before_the_shortcut() -> None:
    block = with_weights(SandglassBlock(24, 24, se_ratio=0.25))
    x = torch.randn(2, 24, 5, 5)
    branch = block.conv(x)
    se = block.se
    pooled = branch.mean((2, 3), keepdim=True)
    weight = torch.sigmoid(se.conv_expand(nn.functional.relu6(se.conv_reduce(pooled))))
    assert 0.05 < weight.min() < weight.max() < 0.95
    assert torch.allclose(block(x), x + branch * weight, atol=1e-5)
    assert se.conv_reduce.out_channels == 1  # 24 / 6 * 0.25


@pytest.mark.parametrize(
    "make",
    [
        lambda alpha: EfficientNet(0.5, alpha, block="sandglass"),
        lambda alpha: mnext_s(width_mult=0.5, identity_tensor_multiplier=alpha),
    ],
)
def test_identity_multiplier_reaches_all_residual_blocks(make: Callable[[float], Any]) -> None:
    plain, network = with_weights(make(1.0)), make(1 / 3)
    network.load_state_dict(plain.state_dict())
    network.eval()
    blocks = [block for block in sandglass_blocks(network) if block.residual]
    assert len(blocks) in (9, 12)
    for block in blocks:
        assert block.identity_channels == int(block.out_channels / 3 + 1e-6)
    x = torch.randn(1, blocks[0].out_channels, 4, 4)
    k = blocks[0].identity_channels
    same = next(block for block in sandglass_blocks(plain) if block.residual)
    assert torch.allclose(blocks[0](x)[:, :k], same(x)[:, :k])
    assert torch.allclose(blocks[0](x)[:, k:] + x[:, k:], same(x)[:, k:], atol=1e-5)
    assert not torch.allclose(network(images()), plain(images()))


def test_strides_for_small_images() -> None:
    for strides, size in [((1, 2, 2, 2, 2), 2), ((1, 1, 2, 2, 2), 4)]:
        for block in ("inverted_residual", "sandglass"):
            network = EfficientNet(0.35, num_classes=7, strides=strides, block=block).eval()
            assert network.forward_features(torch.zeros(1, 3, 32, 32)).shape[-1] == size
            assert network.feature_info[-1]["reduction"] == 32 // size
        authors = mnext_s(width_mult=0.35, strides=strides)
        assert authors.features(torch.zeros(1, 3, 32, 32)).shape[-1] == size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identity_tensor_multiplier": 0.5},
         r"inverted residuals have no identity tensor.*expected identity=1, got 0\.5.*sandglass"),
        ({"block": "sandwich"}, "expected inverted_residual or sandglass, got 'sandwich'"),
        ({"block": "sandglass", "identity_tensor_multiplier": 0}, r"in \(0, 1\]"),
        ({"width_mult": 0}, "above 0, got 0"),
        ({"strides": (2, 2, 2, 2)}, "strides of EfficientNet: expected 5 values"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), got 1"),
        ({"drop_path": -0.1}, r"drop_path: expected a number in \[0, 1\), got -0.1"),
    ],
)  # fmt: skip
def test_refuses_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EfficientNet(**arguments)


def test_layers_for_their_own_learning_rates() -> None:
    """The head goes with the last block, as in timm's EfficientNet."""
    network = EfficientNet()
    layers: Any = group_parameters(network, network.group_matcher(), reverse=True)
    assert set(layers) == {name for name, _ in network.named_parameters()}
    of_blocks = {layers[name] for name in layers if name.startswith("blocks.")}
    assert layers["conv_stem.weight"] == layers["bn1.weight"] == 0 < min(of_blocks)
    assert len(of_blocks) == sum(stage.repeats for stage in B0_STAGES)
    assert layers["bn2.bias"] == layers["conv_head.weight"] == max(of_blocks)
    assert layers["classifier.weight"] > max(of_blocks)
