"""The layout, against a statement of it that shares no code with the network."""

import pytest
import torch
from torch import nn

from mobilenext.errors import InputError
from mobilenext.models import MobileNeXt, SandglassBlock
from tests.models.stated import Block, Stated, difference, drawn, with_tensors

# width: (in>hidden>out of each block, *repeats; parameters; M MAdds at 224)
LAYOUT = {
    1.4: ("48>24>136 136>32>200 200>48>272 272>48>272*2 272>64>400 400>64>400*2 400>96>536 "
          "536>96>536*3 536>128>808 808>128>808*3 808>224>1344 1344>224>1344*2 1344>304>1792",
          6_126_168, 588.3),
    1.0: ("32>16>96 96>32>144 144>32>192 192>32>192*2 192>48>288 288>48>288*2 288>64>384 "
          "384>64>384*3 384>96>576 576>96>576*3 576>160>960 960>160>960*2 960>208>1280",
          3_535_416, 311.3),
    0.75: ("24>12>72 72>32>112 112>32>144 144>24>144*2 144>48>216 216>36>216*2 216>48>288 "
           "288>48>288*3 288>80>432 432>72>432*3 432>128>720 720>120>720*2 720>208>1280",
           2_766_168, 207.9),
    0.5: ("16>8>48 48>16>72 72>16>96 96>16>96*2 96>32>144 144>24>144*2 144>32>192 192>32>192*3 "
          "192>48>288 288>48>288*3 288>80>480 480>80>480*2 480>208>1280",
          2_152_304, 103.3),
    0.35: ("16>8>32 32>16>48 48>16>64 64>16>64*2 64>32>104 104>32>104*2 104>32>136 136>32>136*3 "
           "136>32>200 200>32>200*3 200>64>336 336>56>336*2 336>208>1280",
           1_913_976, 75.1),
}  # fmt: skip

# block number: (depthwise convolutions, stride); the others keep both at stride 1 and have the skip
SPECIAL = {
    1: ("both", 2), 2: ("both", 1), 3: ("last", 2), 6: ("last", 2), 9: ("none", 1),
    13: ("last", 2), 17: ("none", 1), 20: ("both", 1),
}  # fmt: skip


def expected_blocks(layout: str) -> list[tuple[int, ...]]:
    blocks = []
    for entry in layout.split():
        channels, _, repeats = entry.partition("*")
        blocks += [tuple(int(c) for c in channels.split(">"))] * int(repeats or 1)
    return blocks


@pytest.mark.parametrize("width", LAYOUT)
def test_wiring(width: float) -> None:
    layout, params, _ = LAYOUT[width]
    network = MobileNeXt(width)
    stem, *blocks = network.features
    assert isinstance(stem, nn.Sequential)
    expected = expected_blocks(layout)
    assert len(blocks) == len(expected) == 20
    size = 112
    x = torch.zeros(1, 3, 224, 224, device="meta")
    x = stem.to("meta")(x)
    assert x.shape == (1, expected[0][0], size, size)
    for number, (block, (inp, hidden, out)) in enumerate(zip(blocks, expected, strict=True), 1):
        assert isinstance(block, SandglassBlock)
        convolutions = [layer for layer in block.conv if isinstance(layer, nn.Conv2d)]
        pointwise = [c for c in convolutions if c.kernel_size == (1, 1)]
        depthwise = [c for c in convolutions if c.groups > 1]
        keeps, stride = SPECIAL.get(number, ("both", 1))
        assert [(c.in_channels, c.out_channels) for c in pointwise] == [
            (inp, hidden),
            (hidden, out),
        ]
        assert [(c.in_channels, c.groups, c.stride[0]) for c in depthwise] == {
            "both": [(inp, inp, 1), (out, out, stride)],
            "last": [(out, out, stride)],
            "none": [],
        }[keeps]
        assert block.residual == (number not in SPECIAL)
        size //= stride
        x = block.to("meta")(x)
        assert x.shape == (1, out, size, size)
    assert size == 7
    assert sum(p.numel() for p in MobileNeXt(width).parameters()) == params


def stated(width: float, shortcuts: list[int]) -> Stated:
    """The authors' network as its table states it."""
    blocks = []
    for number, (into, hidden, out) in enumerate(expected_blocks(LAYOUT[width][0]), 1):
        keeps, stride = SPECIAL.get(number, ("both", 1))
        blocks.append(Block(into, hidden, out, keeps, stride, number in shortcuts))
    return Stated(blocks)


@pytest.mark.parametrize("width", LAYOUT)
def test_outputs_are_those_of_the_stated_blocks(width: float) -> None:
    shortcuts = [number for number in range(1, 21) if number not in SPECIAL]
    assert shortcuts == [4, 5, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19]
    reference = stated(width, shortcuts)
    tensors = drawn(reference)
    network = with_tensors(MobileNeXt(width, num_classes=reference.classes), tensors)
    assert difference(network, reference, tensors) < 1e-4
    for missing in (shortcuts[0], shortcuts[-1]):
        without = stated(width, [number for number in shortcuts if number != missing])
        assert difference(network, without, tensors) > 0.05


def test_totals_at_width_1() -> None:
    layers = list(MobileNeXt().modules())
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 74
    assert sum(c.groups > 1 for c in convolutions) == 33
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == 74
    assert sum(isinstance(layer, nn.ReLU6) for layer in layers) == 36
    assert sum(getattr(layer, "residual", False) for layer in layers) == 12


@pytest.mark.parametrize("identity", [1 / 2, 1 / 3, 1 / 6])
def test_identity_multiplier_reaches_all_residual_blocks(identity: float) -> None:
    torch.manual_seed(0)
    plain, network = MobileNeXt(0.35), MobileNeXt(0.35, identity_tensor_multiplier=identity)
    assert sum(p.numel() for p in network.parameters()) == LAYOUT[0.35][1]
    blocks = [block for block in network.features if isinstance(block, SandglassBlock)]
    kept = [block.identity_channels / block.out_channels for block in blocks if block.residual]
    assert len(kept) == 12
    assert all(share == pytest.approx(identity, abs=0.02) for share in kept)
    network.load_state_dict(plain.state_dict())
    network.eval()
    plain.eval()
    images = torch.randn(1, 3, 64, 64)
    shallow = slice(0, 6)
    assert not torch.allclose(network.features[shallow](images), plain.features[shallow](images))


def test_strides_for_small_images() -> None:
    small = MobileNeXt(0.35, num_classes=10, strides=(1, 2, 2, 2, 2))
    assert small.features(torch.zeros(2, 3, 32, 32)).shape[-2:] == (2, 2)
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width_mult": 0}, "above 0, got 0"),
        ({"width_mult": 35}, "at most 10, got 35"),
        ({"depth_mult": 100}, "at most 1,000 blocks, got"),
        ({"width_mult": -1.0}, "above 0, got -1"),
        ({"identity_tensor_multiplier": 2}, r"in \(0, 1\]"),
        ({"strides": (2, 2, 2, 2)}, "expected 5 values"),
        ({"strides": (4, 2, 2, 2, 2)}, "of 1 or 2"),
    ],
)
def test_refuses_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MobileNeXt(**arguments)


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    network = MobileNeXt()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            k, out = module.kernel_size[0], module.out_channels
            spread = (2 / (k * k * out)) ** 0.5
            assert module.weight.std().item() == pytest.approx(spread, rel=0.25)
        elif isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.05)
            assert not module.bias.any()
