"""Parts of networks, beside timm's, bit for bit."""

import pytest
import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.conv2d_same import Conv2dSame as TimmConv2dSame
from timm.layers.drop import DropPath as TimmDropPath
from timm.models._efficientnet_blocks import SqueezeExcite as TimmSqueezeExcite
from timm.models._features import feature_take_indices
from torch import nn

from mobilenext.models.parts import Conv2dSame, DropPath, Pooling, SqueezeExcite, taken


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_drop_path(training: bool, rate: float) -> None:
    found = []
    for module in (DropPath(rate), TimmDropPath(rate)):
        torch.manual_seed(3)
        found.append(module.train(training)(images(16, 3, 2, 2)))
    assert torch.equal(*found)
    dropped = (found[0] == 0).flatten(1).all(1)
    assert dropped.any() == (training and rate > 0)


def test_squeeze_and_excitation() -> None:
    ours, theirs = (
        SqueezeExcite(8, 2, nn.SiLU),
        TimmSqueezeExcite(8, rd_channels=2, act_layer=nn.SiLU),
    )
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(images(2, 8, 5, 5)), theirs(images(2, 8, 5, 5)))


@pytest.mark.parametrize("kind", ["avg", "max", "avgmax", "catavgmax", ""])
def test_pooling(kind: str) -> None:
    ours, theirs = Pooling(kind), SelectAdaptivePool2d(pool_type=kind, flatten=bool(kind))
    assert torch.equal(ours(images(2, 8, 5, 3)), theirs(images(2, 8, 5, 3)))
    assert ours.feat_mult() == theirs.feat_mult()
    assert ours.is_identity() == theirs.is_identity()


def test_pooling_of_another_name() -> None:
    with pytest.raises(ValueError, match="expected avg, max, avgmax, catavgmax or '', got 'mean'"):
        Pooling("mean")


@pytest.mark.parametrize("size", [7, 8, 224])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (3, 2), (5, 2), (3, 1), (7, 2)])
def test_tensorflows_padding(size: int, kernel: int, stride: int) -> None:
    theirs = TimmConv2dSame(3, 4, kernel, stride)
    ours = Conv2dSame(3, 4, kernel, stride)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(images(1, 3, size, size - 1)), theirs(images(1, 3, size, size - 1)))


@pytest.mark.parametrize("indices", [None, 1, 3, [0], [-1, 1], [2, 0]])
def test_which_feature_maps(indices: int | list[int] | None) -> None:
    assert taken(3, indices) == feature_take_indices(3, indices)[0]


@pytest.mark.parametrize("indices", [0, 4, [3], [-4]])
def test_feature_maps_that_are_not_there(indices: int | list[int]) -> None:
    with pytest.raises(ValueError, match="feature maps: expected"):
        taken(3, indices)
