"""Networks of other libraries with their published weights, which are not fetched here."""

from typing import Any

import pytest
import timm.models._builder
import torch
import torchvision
from torch import Tensor

from mobilenext.errors import InputError
from mobilenext.models import timm_model, torchvision_model
from mobilenext.models.weights import LARGE_STD

NAME = "shufflenet_v2_x0_5"


def published() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return torchvision.models.get_model(NAME, weights=None).state_dict()


@pytest.mark.parametrize("classes", [1000, 7])
def test_torchvisions_weights(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    kind = torchvision.models.WeightsEnum
    monkeypatch.setattr(kind, "get_state_dict", lambda self, **given: published())
    network = torchvision_model(NAME, num_classes=classes, pretrained=True)
    state, expected = network.state_dict(), published()
    same = {name for name in expected if torch.equal(state[name], expected[name])}
    own = set() if classes == 1000 else {"fc.weight", "fc.bias"}
    assert expected.keys() - same == own
    assert network(torch.zeros(1, 3, 64, 64).expand(2, -1, -1, -1)).shape == (2, classes)


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: object, **given: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", refused)
    with pytest.raises(InputError, match=r"could not fetch .*no route.*init_from=FILE"):
        torchvision_model(NAME, pretrained=True)


@pytest.mark.parametrize(("classes", "pretrained", "small"),
                         [(10, True, True), (10, False, False), (1000, True, False)])  # fmt: skip
def test_a_new_classifier_on_published_weights_of_timm_is_small(
    monkeypatch: pytest.MonkeyPatch, classes: int, pretrained: bool, small: bool
) -> None:
    """One from scratch is as timm makes it, and a published one as it is published."""
    fetched = []
    monkeypatch.setattr(
        timm.models._builder, "load_pretrained", lambda *given, **more: fetched.append(given)
    )
    network: Any = timm_model("mobilenetv2_050", num_classes=classes, pretrained=pretrained)
    assert len(fetched) == pretrained
    timms = (3 * classes) ** -0.5
    std = float(network.classifier.weight.detach().std())
    assert std <= LARGE_STD if small else std == pytest.approx(timms, rel=0.05)


def test_weights_of_timm_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object, **more: object) -> None:
        raise FileNotFoundError("cannot find the requested files\nmore")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", refused)
    said = r"timm's mobilenetv2_050: could not fetch its published weights \(cannot find the req"
    with pytest.raises(InputError, match=rf"{said}uested files\); .*init_from=FILE"):
        timm_model("mobilenetv2_050", num_classes=10, pretrained=True)
