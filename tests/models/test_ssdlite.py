"""SSDLite: what it costs, its default boxes, its taps, its weights."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilenext.errors import InputError
from mobilenext.models import MobileNetV2, MobileNeXt, SSDLite, timm_model, torchvision_model
from mobilenext.models.complexity import measure_complexity
from mobilenext.models.detection.ssdlite import MAX_SIZES, MIN_SIZES, STEPS, DefaultBoxes
from mobilenext.models.detection.taps import find_taps
from mobilenext.models.weights import fit_into
from tests.models.nontrivial import with_weights


def small(classes: int = 3, size: int = 96, **more: Any) -> SSDLite:
    return SSDLite(MobileNeXt(width_mult=0.35, num_classes=classes), classes, size, **more)


@pytest.mark.parametrize(
    ("backbone", "taps", "parts", "params", "madds"),
    [
        # 3.421 M / 682.4 M and 3.471 M / 708.7 M are the authors' networks; with torchvision's
        # parts on the expanded maps of both 3.399 / 712.7 and 3.430 / 734.3.
        (MobileNetV2, "authors", "authors", 3_421_188, 682_447_872),
        (MobileNetV2, "expansion", "authors", 3_503_748, 714_703_872),
        (MobileNetV2, "expansion", "torchvision", 3_399_108, 712_705_984),
        (MobileNeXt, "authors", "authors", 3_470_548, 708_726_528),
        (MobileNeXt, "expansion", "torchvision", 3_429_652, 734_273_984),
    ],
)
def test_counts(
    backbone: Callable[..., nn.Module], taps: str, parts: str, params: int, madds: int
) -> None:
    network = SSDLite(backbone(num_classes=20), 20, 320, taps=taps, extras=parts, head=parts)
    cost = measure_complexity(network, 320)
    assert (cost.params, cost.madds) == (params, madds)
    assert network.anchors.shape == (3234, 4)


def authors_boxes() -> Tensor:
    """The authors' prior boxes, by the definition in the SSD paper, section 2.2, in pixels of 320.

    Centres at the middle of each cell of a map, by its stride; a square of the smallest size, one
    of the mean of both sizes, and two of each ratio; their order is that of the authors' code.
    """
    boxes = []
    for side, small_side, large, step in zip(
        (20, 10, 5, 3, 2, 1), MIN_SIZES, MAX_SIZES, STEPS, strict=True
    ):
        between = math.sqrt(small_side * large)
        shapes = [(small_side, small_side), (between, between)]
        for ratio in (2, 3):
            wide, high = small_side * math.sqrt(ratio), small_side / math.sqrt(ratio)
            shapes += [(wide, high), (high, wide)]
        for row in range(side):
            for column in range(side):
                x, y = (column + 0.5) * step, (row + 0.5) * step
                for w, h in shapes:
                    w, h = min(w, 320), min(h, 320)
                    boxes.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return torch.tensor(boxes, dtype=torch.float64)


def test_default_boxes_are_the_authors() -> None:
    boxes = DefaultBoxes(320, [20, 10, 5, 3, 2, 1], MIN_SIZES, MAX_SIZES, STEPS).corners()
    expected = authors_boxes()
    assert boxes.shape == expected.shape == (3234, 4)
    # Both are rounded to float32 somewhere on the way.
    assert (boxes.double() - expected).abs().max() < 1e-4


@pytest.mark.parametrize("size", [96, 300])
def test_default_boxes_cover_images_of_any_size(size: int) -> None:
    network = small(size=size)
    centres = (network.anchors[:, :2] + network.anchors[:, 2:]) / 2
    step = size / network.backbone.shapes(size)[0][0]  # pyright: ignore
    assert centres.min() <= step
    assert centres.max() >= size - step
    logits, codes = network.eval()(torch.zeros(1, 3, size, size))
    assert logits.shape == (1, len(network.anchors), 4)
    assert codes.shape == (1, len(network.anchors), 4)


@pytest.mark.parametrize(
    ("network", "where", "middle", "channels"),
    [
        (MobileNeXt(num_classes=2), "authors", "features.13.conv.4", [576, 1280]),
        (MobileNeXt(num_classes=2, width_mult=0.35), "expansion", "features.13.conv.4", None),
        (MobileNeXt(num_classes=2, identity_tensor_multiplier=0.5), "authors",
         "features.13.conv.4", [576, 1280]),
        (MobileNetV2(num_classes=2), "authors", "features.13", [96, 1280]),
        (MobileNetV2(num_classes=2), "expansion", "features.14.conv.0", [576, 1280]),
        (timm_model("mobilenetv2_100", num_classes=2), "authors", "blocks.4", [96, 320]),
        (timm_model("mobilenetv2_100", num_classes=2), "expansion", "blocks.5.0.bn1", [576, 320]),
        (timm_model("resnet10t", num_classes=2), "authors", "layer3", [256, 512]),
        (torchvision_model("mobilenet_v3_small", num_classes=2), "authors", "features.8",
         [48, 576]),
    ],
)  # fmt: skip
def test_taps(network: nn.Module, where: str, middle: str, channels: list[int] | None) -> None:
    assert find_taps(network, where).middle == middle
    detector = SSDLite(network, 2, 64, taps=where)
    maps = detector.backbone(torch.zeros(2, 3, 64, 64))
    sizes = [one.shape[2] for one in maps.values()]
    assert sizes[:2] == [4, 2]
    if channels is not None:
        assert [one.shape[1] for one in maps.values()][:2] == channels


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(taps="deep"), "taps: expected one of authors, expansion, got 'deep'"),
        (lambda: small(extras="none"), "extras: expected one of authors, torchvision"),
        (lambda: small(head="none"), "head: expected one of authors, torchvision"),
        (lambda: SSDLite(nn.Sequential(nn.Conv2d(3, 8, 3)), 2, 64),
         "needs feature maps at strides 16 and 32, Sequential has maps at none"),
        (lambda: SSDLite(MobileNeXt(strides=[1, 2, 2, 2, 2]), 2, 64), "has maps at 1, 2, 4, 8, 16"),
        (lambda: SSDLite(timm_model("resnet10t"), 2, 64, taps="expansion"),
         "expected a strided depthwise convolution behind layer3"),
        (lambda: SSDLite(MobileNeXt(width_mult=0.35), 2, 64, min_sizes=[1, 2]),
         "expected 6 numbers each, got 2, 6 and 6"),
    ],
)  # fmt: skip
def test_what_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_weights_of_a_classifier_go_to_the_backbone() -> None:
    classifier = with_weights(MobileNeXt(width_mult=0.35, num_classes=1000))
    network = small()
    head = copy.deepcopy(network.head.state_dict())
    fitted = fit_into(classifier.state_dict(), network)
    assert fitted.classifier_left_out
    network.load_state_dict({**network.state_dict(), **fitted.tensors})
    given, own = classifier.state_dict(), network.frozen_part().state_dict()
    assert all(torch.equal(value, given[name]) for name, value in own.items())
    # All of the backbone but what lies behind its last block and its classifier.
    assert {name for name in given if name not in own} == {
        "classifier.1.weight", "classifier.1.bias"
    }  # fmt: skip
    assert all(torch.equal(value, head[name]) for name, value in network.head.state_dict().items())


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(InputError, match="expected weights of this MobileNeXt"):
        fit_into(MobileNeXt(width_mult=0.5, num_classes=3).state_dict(), small())


def test_a_detector_for_other_classes_keeps_its_boxes() -> None:
    given, network = with_weights(small(classes=5)), small(classes=3)
    before = copy.deepcopy(network.state_dict())
    fitted = fit_into(given.state_dict(), network)
    assert fitted.classifier_left_out
    network.load_state_dict({**network.state_dict(), **fitted.tensors})
    after = network.state_dict()
    kept = [name for name in after if torch.equal(after[name], before[name])]
    logits = [name for name in kept if name.startswith("head.classification_head")]
    assert len([name for name in logits if name.endswith("bias")]) >= 6
    assert not [name for name in kept if name.startswith("backbone") and name.endswith("weight")]
    assert not [name for name in kept if "regression" in name and name.endswith("1.weight")]


def test_detections_are_those_of_torchvision() -> None:
    network = small(classes=5)
    source = torch.Generator().manual_seed(0)
    count = len(network.anchors)
    logits = 3 * torch.randn(3, count, 6, generator=source)
    codes = torch.randn(3, count, 4, generator=source)
    logits[2] = torch.tensor([9.0, 0, 0, 0, 0, 0])  # nothing but background
    found = network.detections(logits, codes)
    expected = network.postprocess_detections(
        {"cls_logits": logits, "bbox_regression": codes}, [network.anchors] * 3, [(96, 96)] * 3
    )
    assert [len(one["scores"]) for one in found] == [100, 100, 0]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
        assert torch.equal(one["scores"], other["scores"])
        assert torch.equal(one["labels"] + 1, other["labels"])


def test_a_copy_and_a_frozen_backbone() -> None:
    network = small()
    other = copy.deepcopy(network).eval()
    images = torch.randn(2, 3, 96, 96)
    network.eval()
    for ours, theirs in zip(network(images), other(images), strict=True):
        assert torch.equal(ours, theirs)
    assert "anchors" not in network.state_dict()
    frozen = {id(p) for p in network.frozen_part().parameters()}
    names = {name for name, p in network.named_parameters() if id(p) not in frozen}
    assert {name.partition(".")[0] for name in names} == {"backbone", "head"}
    assert all(name.startswith(("backbone.extras.", "head.")) for name in names)
