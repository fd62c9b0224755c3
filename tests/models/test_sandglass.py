import pytest
import torch
from torch import nn

from mobilenext.errors import InputError
from mobilenext.models import SandglassBlock
from mobilenext.models.sandglass import bottleneck_channels


def kinds(block: SandglassBlock) -> list[str]:
    names = []
    for layer in block.conv:
        if isinstance(layer, nn.Conv2d):
            depthwise = layer.groups == layer.in_channels
            names.append(f"{'dw' if depthwise else 'pw'}{layer.stride[0]}")
        elif isinstance(layer, nn.ReLU6):
            names.append("relu6")
        else:
            assert isinstance(layer, nn.BatchNorm2d)
    return names


@pytest.mark.parametrize(
    ("depthwise", "stride", "expected"),
    [
        ("both", 2, ["dw1", "relu6", "pw1", "pw1", "relu6", "dw2"]),
        ("last", 2, ["pw1", "pw1", "relu6", "dw2"]),
        ("first", 1, ["dw1", "relu6", "pw1", "pw1", "relu6"]),
        ("none", 1, ["pw1", "pw1", "relu6"]),
    ],
)
def test_layers_and_where_activations_and_stride_sit(depthwise, stride, expected) -> None:
    block = SandglassBlock(24, 48, stride=stride, reduction_ratio=6, depthwise=depthwise)
    assert kinds(block) == expected
    assert block(torch.randn(2, 24, 9, 9)).shape == (
        2,
        48,
        9 if stride == 1 else 5,
        5 + 4 * (stride == 1),
    )
    assert all(layer.bias is None for layer in block.conv if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize(
    ("channels", "expected"),
    # in, out, ratio -> bottleneck, from the released checkpoints' shapes
    [((32, 96, 2), 16), ((96, 144, 6), 32), ((576, 960, 6), 160), ((960, 1280, 6), 208),
     ((216, 216, 6), 36), ((104, 104, 6), 32), ((200, 200, 6), 32), ((336, 336, 6), 56)],
)  # fmt: skip
def test_bottleneck_floor(channels: tuple[int, int, int], expected: int) -> None:
    assert bottleneck_channels(*channels) == expected


@pytest.mark.parametrize(
    ("alpha", "kept"), [(1.0, 96), (1 / 2, 48), (1 / 3, 32), (1 / 6, 16), (0.001, 0)]
)
def test_identity_multiplier_gives_only_the_first_channels_a_skip(alpha: float, kept: int) -> None:
    block = SandglassBlock(96, 96, identity_tensor_multiplier=alpha).eval()
    for layer in block.conv:  # the branch gives zero, so only the skip is left
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.zeros_(layer.weight)
    x = torch.randn(2, 96, 4, 4, requires_grad=True)
    out = block(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(out[:, :kept], x[:, :kept])
    assert not out[:, kept:].any()
    assert torch.equal(x.grad[:, :kept], torch.ones(2, kept, 4, 4))
    assert not x.grad[:, kept:].any()


def test_identity_multiplier_adds_to_the_branch() -> None:
    torch.manual_seed(0)
    full = SandglassBlock(48, 48).eval()
    half = SandglassBlock(48, 48, identity_tensor_multiplier=0.5).eval()
    half.load_state_dict(full.state_dict())
    x = torch.randn(2, 48, 5, 5)
    assert torch.equal(half(x)[:, :24], full(x)[:, :24])
    assert torch.allclose(half(x)[:, 24:] + x[:, 24:], full(x)[:, 24:])


@pytest.mark.parametrize(("shape", "stride"), [((32, 64), 1), ((32, 32), 2)])
def test_no_skip_where_the_shape_changes(shape: tuple[int, int], stride: int) -> None:
    assert not SandglassBlock(*shape, stride=stride).residual


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 3}, "expected 1 or 2, got 3"),
        ({"stride": 2, "depthwise": "none"}, "carries the stride"),
        ({"depthwise": "middle"}, "expected both, first, last or none"),
        ({"identity_tensor_multiplier": 0.0}, r"in \(0, 1\]"),
        ({"identity_tensor_multiplier": 1.5}, r"in \(0, 1\]"),
    ],
)
def test_refuses_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SandglassBlock(32, 32, **arguments)
