import pytest
import torch
import torchvision

from mobilenext.errors import InputError
from mobilenext.models import MobileNetV2


@pytest.mark.parametrize("width", [1.4, 1.0, 0.5])
def test_is_torchvisions(width: float) -> None:
    theirs = torchvision.models.mobilenet_v2(width_mult=width).eval()
    ours = MobileNetV2(width).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 96, 96)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("strides", "size"), [((2, 2, 2, 2, 2), 1), ((1, 2, 2, 2, 2), 2), ((1, 1, 2, 2, 2), 4)]
)
def test_strides(strides: tuple[int, ...], size: int) -> None:
    network = MobileNetV2(0.35, num_classes=10, strides=strides).eval()
    assert network.features(torch.zeros(1, 3, 32, 32)).shape[-1] == size


def test_refuses_an_identity_multiplier() -> None:
    with pytest.raises(InputError, match=r"expected identity=1, got 0\.5"):
        MobileNetV2(identity_tensor_multiplier=0.5)


def test_refuses_width_zero() -> None:
    with pytest.raises(InputError, match="above 0"):
        MobileNetV2(0.0)
