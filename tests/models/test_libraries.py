"""Networks of other libraries with their published weights, which are not fetched here."""

import pytest
import torch
import torchvision
from torch import Tensor

from mobilenext.errors import InputError
from mobilenext.models import torchvision_model

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
