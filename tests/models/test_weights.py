"""Weights from elsewhere: what they are in one code, they have to be in the other."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from mobilenext.errors import InputError
from mobilenext.models import EfficientNet, MobileNetV2, MobileNeXt, mnext_l, mnext_s
from mobilenext.models.weights import LARGE_STD, classifier_modules, fit_weights, shrink_classifier
from tests.models.nontrivial import with_weights

Tensors = dict[str, Tensor]


def as_safetensors(tensors: Tensors, path: Path) -> Tensors:
    """Through a file that sorts them by name."""
    safetensors.torch.save_file(tensors, path)
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def assert_same_outputs(ours: nn.Module, theirs: nn.Module, tensors: Tensors) -> None:
    fitted = fit_weights(tensors, ours)
    assert not fitted.classifier_left_out
    ours.load_state_dict(fitted.tensors)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = theirs.eval()(images)
        assert expected.std() > 0.1
        torch.testing.assert_close(ours.eval()(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stored", [False, True], ids=["in order", "sorted by name"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (MobileNetV2, torchvision.models.mobilenet_v2),
        (MobileNetV2, lambda: timm.create_model("mobilenetv2_100")),
        (EfficientNet, lambda: timm.create_model("efficientnet_b0")),
    ],
    ids=["torchvision's MobileNetV2", "timm's MobileNetV2", "timm's EfficientNet"],
)
def test_other_libraries(
    tmp_path: Path,
    ours: Callable[[], nn.Module],
    theirs: Callable[[], nn.Module],
    stored: bool,
) -> None:
    source = with_weights(theirs())
    tensors = source.state_dict()
    if stored:
        tensors = as_safetensors(tensors, tmp_path / "x.safetensors")
        assert list(tensors) == sorted(tensors)
    assert_same_outputs(ours(), source, tensors)


def authors_name(name: str) -> str:
    """How the authors' EfficientNet-style code calls what we call `name`."""
    layer, part = name.rsplit(".", 1)
    places = {"features.0.0": "_conv_stem", "features.0.1": "_bn0", "classifier.1": "_fc"}
    if layer not in places:
        _, block, *rest = layer.split(".")
        inner = {"conv": "features", "se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
        found = inner[".".join(rest)] if rest[0] == "se" else f"{inner['conv']}.{rest[1]}"
        return f"_blocks.{int(block) - 1}.{found}.{part}"
    return f"{places[layer]}.{part}"


def authors_weights(network: nn.Module) -> Tensors:
    """A state dict as `mobilenext/codebase/models/efficient_mnext/model.py` has it.

    Stem, its norm, blocks (layers, then squeeze, then excite), the norm that is never called, and
    the classifier.
    """
    renamed = {authors_name(name): value for name, value in network.state_dict().items()}
    head = {name: renamed.pop(name) for name in ("_fc.weight", "_fc.bias")}
    for part in ("weight", "bias", "running_mean", "running_var"):
        renamed[f"_bn1.{part}"] = torch.randn(1280)
    renamed["_bn1.num_batches_tracked"] = torch.tensor(7)
    return renamed | head


@pytest.mark.parametrize("stored", [False, True], ids=["in order", "sorted by name"])
@pytest.mark.parametrize("make", [mnext_s, mnext_l])
def test_the_authors_networks_with_squeeze(
    tmp_path: Path, make: Callable[[], nn.Module], stored: bool
) -> None:
    source = with_weights(make())
    tensors = authors_weights(source)
    names = list(tensors)
    assert names[:2] == ["_conv_stem.weight", "_bn0.weight"]
    assert names.index("_blocks.1._se_reduce.weight") > names.index("_blocks.1.features.6.weight")
    assert not set(names) & set(source.state_dict())
    if stored:
        tensors = as_safetensors(tensors, tmp_path / "x.safetensors")
    assert_same_outputs(make(), source, tensors)


def test_the_authors_mobilenext() -> None:
    """mnext.py's names: `features.0` is the stem, its layers, then blocks' layers in `conv`."""
    source = with_weights(MobileNeXt(0.35))
    tensors = source.state_dict()
    # Written down from the authors' code: which layers of `conv` have weights, block by block.
    both = (0, 1, 3, 4, 5, 6, 8, 9)
    layers = {1: both, 2: both, 3: (0, 1, 2, 3, 5, 6), 4: both, 5: both, 6: (0, 1, 2, 3, 5, 6),
              7: both, 9: (0, 1, 2, 3), 20: both}  # fmt: skip
    expected = {f"features.{block}.conv.{i}" for block, them in layers.items() for i in them}
    names = {name.rsplit(".", 1)[0] for name in tensors}
    assert expected | {"features.0.0", "features.0.1", "classifier.1"} <= names
    for block, them in layers.items():
        assert sum(name.startswith(f"features.{block}.conv.") for name in names) == len(them)
    assert_same_outputs(MobileNeXt(0.35), source, {f"module.{n}": v for n, v in tensors.items()})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.model."])
def test_prefixes_of_wrappers(prefix: str) -> None:
    source = with_weights(MobileNeXt(0.35, num_classes=5))
    tensors = {prefix + name: value for name, value in source.state_dict().items()}
    assert_same_outputs(MobileNeXt(0.35, num_classes=5), source, tensors)


def test_what_torch_itself_wraps() -> None:
    source = with_weights(MobileNetV2(0.35, num_classes=5))
    averages = torch.optim.swa_utils.AveragedModel(source)
    assert_same_outputs(MobileNetV2(0.35, num_classes=5), source, averages.state_dict())


def test_a_prefix_that_the_network_has_itself_stays() -> None:
    network = nn.ModuleDict({"model": nn.Linear(3, 2)})
    assert fit_weights(network.state_dict(), network).tensors.keys() == {
        "model.weight",
        "model.bias",
    }


def test_files_without_counters_of_batches() -> None:
    source = with_weights(timm.create_model("mobilenetv2_100"))
    tensors = {k: v for k, v in source.state_dict().items() if not k.endswith("batches_tracked")}
    network = MobileNetV2()
    fitted = fit_weights(tensors, network)
    assert len(fitted.tensors) == len(tensors)
    missing = network.state_dict().keys() - fitted.tensors.keys()
    assert missing
    assert all(name.endswith("num_batches_tracked") for name in missing)
    network.load_state_dict({**network.state_dict(), **fitted.tensors})
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(network.eval()(images), source(images), atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MobileNetV2(0.35, num_classes=7),
        lambda: torchvision.models.mobilenet_v2(width_mult=0.35, num_classes=7),
        lambda: timm.create_model("mobilenetv2_035", num_classes=7),
        lambda: timm.create_model("mobilenetv2_035", num_classes=0),
    ],
    ids=["ours", "torchvision's", "timm's", "timm's without one"],
)
def test_a_classifier_for_other_classes_is_left_out(make: Callable[[], nn.Module]) -> None:
    theirs = make()
    network = MobileNetV2(0.35, num_classes=10)
    fitted = fit_weights(theirs.state_dict(), network)
    assert fitted.classifier_left_out
    missing = network.state_dict().keys() - fitted.tensors.keys()
    assert missing == {"classifier.1.weight", "classifier.1.bias"}
    stem = next(iter(theirs.state_dict().values()))
    assert torch.equal(fitted.tensors["features.0.0.weight"], stem)


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: value for key, value in tensors.items() if key != name}


SOME = "features.3.conv.0.weight"
OTHERS = {
    "another width": (
        MobileNeXt().state_dict(),
        r"features\.0\.0\.weight \(16, 3, 3, 3\), got features\.0\.0\.weight \(32, 3, 3, 3\)",
    ),
    "one missing": (
        without(MobileNeXt(0.35).state_dict(), SOME),
        r"the next tensor features\.3\.conv\.0\.weight \(16, 48, 1, 1\), got none",
    ),
    "a bias missing": (
        without(MobileNeXt(0.35).state_dict(), "classifier.1.bias"),
        r"the next tensor classifier\.1\.bias \(1000\), got none",
    ),
    "one too many": (
        {**MobileNeXt(0.35).state_dict(), "extra.weight": torch.zeros(4)},
        r"the next tensor none, got extra\.weight \(4\)",
    ),
    "a bias too many": (
        {**MobileNeXt(0.35).state_dict(), "features.3.conv.0.bias": torch.zeros(16)},
        r"the next tensor none, got features\.3\.conv\.0\.bias \(16\)",
    ),
    "a counter missing": (
        without(MobileNeXt(0.35).state_dict(), "features.0.1.num_batches_tracked"),
        r"features\.0\.1\.num_batches_tracked \(\), got none",
    ),
    "another network in order": (
        timm.create_model("mobilenetv2_100").state_dict(),
        r"the next tensor features\.0\.0\.weight \(16, 3, 3, 3\), got conv_stem\.weight \(32, 3",
    ),
    "another classifier's input": (
        {**MobileNeXt(0.35).state_dict(), "classifier.1.weight": torch.zeros(9, 640)},
        r"classifier\.1\.weight \(1000, 1280\), got classifier\.1\.weight \(9, 640\)",
    ),
    "other names that are sorted": (
        dict(sorted(torchvision.models.resnet18().state_dict().items())),
        r"with the names of this MobileNeXt, .*bn1, conv1, fc, layer1 follow each other",
    ),
    "nothing": ({}, r"features\.0\.0\.weight \(16, 3, 3, 3\), got none"),
}


@pytest.mark.parametrize(("tensors", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_other_weights_are_refused(tensors: Tensors, message: str) -> None:
    with pytest.raises(InputError, match=rf"expected weights .*{message}.*; .*\(model, width"):
        fit_weights(tensors, MobileNeXt(0.35))


def test_a_tensor_that_is_left_over_in_order() -> None:
    tensors = timm.create_model("mobilenetv2_100").state_dict()
    with pytest.raises(InputError, match=r"the next tensor none, got another\.weight \(4\)"):
        fit_weights({**tensors, "another.weight": torch.zeros(4)}, MobileNetV2())


def test_which_layers_make_logits() -> None:
    for network, name in (
        (MobileNeXt(0.35), "classifier.1"),
        (EfficientNet(), "classifier"),
        (MobileNetV2(0.35), "classifier.1"),
        (timm.create_model("resnet18"), "fc"),
        (torchvision.models.mobilenet_v3_small(), "classifier.3"),
    ):
        (found,) = classifier_modules(network)
        assert found is network.get_submodule(name)
    pair = classifier_modules(timm.create_model("deit_tiny_distilled_patch16_224"))
    assert [type(module) for module in pair] == [nn.Linear, nn.Linear]
    assert classifier_modules(torchvision.models.squeezenet1_0()) == []
    assert classifier_modules(MobileNeXt(0.35, num_classes=0)) == []


def test_a_large_new_classifier_is_halved_until_it_is_small() -> None:
    """By a power of two, so that it is exact; others, and the other layers, stay as they are."""
    network = EfficientNet(num_classes=10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert before["classifier.weight"].std() > 0.15
    shrink_classifier(network)
    after = network.state_dict()
    assert LARGE_STD / 2 < after["classifier.weight"].std() <= LARGE_STD
    assert torch.equal(after["classifier.weight"] * 16, before["classifier.weight"])
    assert all(
        torch.equal(after[name], before[name]) for name in before.keys() - {"classifier.weight"}
    )
    small = MobileNeXt(0.35, num_classes=10)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    shrink_classifier(small)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to(torch.int8), r"as torch\.float32, got torch\.int8"),
        (lambda value: value / 0, "got NaN or infinite ones"),
        (lambda value: value * float("nan"), "got NaN or infinite ones"),
    ],
    ids=["integers", "infinite", "NaN"],
)
def test_tensors_that_are_no_trained_weights(
    change: Callable[[Tensor], Tensor], message: str
) -> None:
    network = MobileNeXt(0.35, num_classes=3)
    tensors = network.state_dict()
    name = "features.3.conv.0.weight"
    with pytest.raises(InputError, match=rf"features\.3\.conv\.0\.weight .*{message}"):
        fit_weights({**tensors, name: change(tensors[name])}, network)
    half = {key: value.half() if value.is_floating_point() else value
            for key, value in tensors.items()}  # fmt: skip
    fit_weights(half, network)
