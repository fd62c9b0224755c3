import pytest
import torchvision
from torch import nn

from mobilenext.models import MobileNetV2, MobileNeXt
from mobilenext.models.complexity import measure_complexity


@pytest.mark.parametrize(
    ("width", "params", "madds"),
    [(1.4, 6_126_168, 588.3), (1.0, 3_535_416, 311.3), (0.75, 2_766_168, 207.9),
     (0.5, 2_152_304, 103.3), (0.35, 1_913_976, 75.1)],
)  # fmt: skip
def test_mobilenext(width: float, params: int, madds: float) -> None:
    cost = measure_complexity(MobileNeXt(width))
    assert cost.params == params
    assert cost.madds / 1e6 == pytest.approx(madds, abs=0.05)
    assert measure_complexity(MobileNeXt(width, 1 / 6)).madds == cost.madds


@pytest.mark.parametrize(
    ("width", "params", "madds"),
    [(1.4, 6.11, 582), (1.0, 3.50, 300.8), (0.75, 2.64, 209), (0.5, 1.97, 97), (0.35, 1.68, 59)],
)
def test_mobilenetv2(width: float, params: float, madds: float) -> None:
    cost = measure_complexity(MobileNetV2(width))
    assert cost.params / 1e6 == pytest.approx(params, abs=0.006)
    assert cost.madds / 1e6 == pytest.approx(madds, abs=0.6)


def test_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 4 x 4 outputs
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )
    cost = measure_complexity(network, image_size=8)
    assert cost.params == (27 * 8 + 8) + (9 * 8 + 8) + (128 * 10 + 10)
    assert cost.madds == 27 * 8 * 16 + 9 * 8 * 16 + 128 * 10
    assert cost.activations == 8 * 16 + 8 * 16 + 10


def test_features_whose_layers_have_names_are_one_stage() -> None:
    cost = measure_complexity(torchvision.models.densenet121(), 64)
    assert [stage.name for stage in cost.stages] == ["features", "classifier"]
    assert sum(stage.madds for stage in cost.stages) == cost.madds


@pytest.mark.parametrize("network", [MobileNeXt(0.5), MobileNetV2(0.5)])
def test_stages_add_up(network: nn.Module) -> None:
    cost = measure_complexity(network)
    for what in ("params", "madds", "activations"):
        assert sum(getattr(stage, what) for stage in cost.stages) == getattr(cost, what)
    assert cost.stages[-1].name == "classifier"
    assert cost.stages[-1].output_shape == (1000,)
    assert not any(p.is_meta for p in network.parameters()), "the network itself was moved"
