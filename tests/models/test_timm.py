"""What timm asks of a registered model, by its own functions."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.layers.drop import DropPath
from timm.models._factory import create_model
from timm.models._hub import push_to_hf_hub, save_for_hf
from timm.models._registry import list_models
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn

from mobilenext.models import EfficientNet, MobileNeXt, mnext_s
from mobilenext.models.complexity import count_params
from tests.hub import Hub
from tests.models.nontrivial import with_weights

# name: (parameters, width of the last feature map)
NETWORKS = {
    "mobilenext_140": (6_126_168, 1792),
    "mobilenext_100": (3_535_416, 1280),
    "mobilenext_075": (2_766_168, 1280),
    "mobilenext_050": (2_152_304, 1280),
    "mobilenext_035": (1_913_976, 1280),
    "mobilenext_efficientnet_b0": (5_594_089, 1280),
    "mnext_s": (3_934_451, 1280),
    "mnext_l": (4_284_938, 1280),
}
ONE_OF_EACH = ["mobilenext_035", "mobilenext_efficientnet_b0", "mnext_s"]
"""One network of each class and kind of block."""


def fresh(name: str, **arguments: Any) -> Any:
    """By timm's name."""
    return create_model(name, **arguments)


def create(name: str, **arguments: Any) -> Any:
    """By timm's name, with weights that matter."""
    return with_weights(fresh(name, **arguments))


def images(count: int = 2, size: int = 64, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, size, size, generator=generator)


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * b.std().item())


def test_they_are_registered() -> None:
    assert set(list_models(["mobilenext_*", "mnext_*"])) == set(NETWORKS)
    assert not list_models(["mobilenext_*", "mnext_*"], pretrained=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_forward(name: str) -> None:
    network = create(name)
    assert count_params(network) == NETWORKS[name][0]
    assert network.num_features == network.head_hidden_size == NETWORKS[name][1]
    with torch.no_grad():
        logits = network(images())
        features = network.forward_features(images())
        pooled = network.forward_head(features, pre_logits=True)
    assert logits.shape == (2, 1000)
    assert logits.isfinite().all()
    assert (logits[0] - logits[1]).std() > 0.05 * logits.std(), "the images make no difference"
    assert features.shape == (2, NETWORKS[name][1], 2, 2)
    assert close(pooled, features.mean((2, 3)))
    assert torch.equal(network.get_classifier()(pooled), logits)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    network = fresh(name, num_classes=5, drop_rate=0.0, drop_path_rate=0.0)
    with_weights(network).train()
    network(images()).square().mean().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize("name", NETWORKS)
def test_default_cfg_and_reset_classifier(name: str) -> None:
    network = create(name)
    cfg = network.pretrained_cfg
    state = network.state_dict()
    assert cfg["input_size"] == (3, 224, 224)
    assert state[cfg["classifier"] + ".weight"].shape == (1000, NETWORKS[name][1])
    assert state[cfg["first_conv"] + ".weight"].shape[1] == 3
    x = images(1, 224)
    with torch.no_grad():
        features = network.forward_features(x)
        assert features.shape == (1, network.num_features, *cfg["pool_size"])
        network.reset_classifier(0)
        assert close(network(x), features.mean((2, 3)))
        network.reset_classifier(0, "")
        assert torch.equal(network(x), features)
    assert not [key for key in network.state_dict() if key.startswith(cfg["classifier"])]
    network.reset_classifier(7, "avg")
    assert network(images()).shape == (2, 7)
    assert network.num_classes == 7


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_created_without_classifier(name: str) -> None:
    full = fresh(name)
    width = NETWORKS[name][1]
    for arguments, shape in [
        ({}, (2, width)),
        ({"global_pool": ""}, (2, width, 2, 2)),
    ]:
        network = fresh(name, num_classes=0, **arguments).eval()
        assert network(images()).shape == shape
        assert isinstance(network.get_classifier(), nn.Identity)
        gone = set(full.state_dict()) - set(network.state_dict())
        classifier = full.pretrained_cfg["classifier"]
        assert gone == {f"{classifier}.weight", f"{classifier}.bias"}
        assert set(network.state_dict()) < set(full.state_dict())


@pytest.mark.parametrize("name", ["mobilenext_035", "mobilenext_efficientnet_b0"])
@pytest.mark.parametrize("kind", ["avg", "max", "avgmax", "catavgmax"])
def test_pooling(name: str, kind: str) -> None:
    network = create(name, global_pool=kind, num_classes=5)
    average, most = (
        network.forward_features(images()).mean((2, 3)),
        network.forward_features(images()).amax((2, 3)),
    )
    wanted = {
        "avg": average,
        "max": most,
        "avgmax": 0.5 * (average + most),
        "catavgmax": torch.cat((average, most), 1),
    }[kind]
    assert close(network.forward_head(network.forward_features(images()), pre_logits=True), wanted)
    assert network.head_hidden_size == wanted.shape[1]
    assert network(images()).shape == (2, 5)
    network.reset_classifier(3)
    assert network.get_classifier().in_features == wanted.shape[1]
    assert network(images()).shape == (2, 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_only(name: str) -> None:
    network = create(name, features_only=True)
    info = network.feature_info
    assert info.reduction() == [2, 4, 8, 16, 32]
    maps = network(images())
    assert [m.shape[1] for m in maps] == info.channels()
    assert [64 // m.shape[-1] for m in maps] == info.reduction()
    assert info.channels()[-1] == NETWORKS[name][1]
    some = fresh(name, features_only=True, out_indices=(1, 3))
    assert some.feature_info.reduction() == [4, 16]
    assert [m.shape[1] for m in some(images())] == [info.channels()[1], info.channels()[3]]
    assert count_params(some) < count_params(network), "what comes after them is still there"


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_forward_intermediates(name: str) -> None:
    network = create(name)
    listed = fresh(name, features_only=True).eval()
    whole = network.state_dict().values()
    for target, source in zip(listed.state_dict().values(), whole, strict=False):
        target.copy_(source)
    maps = listed(images())
    last, found = network.forward_intermediates(images())
    assert len(found) == len(maps) == 5
    assert all(torch.equal(a, b) for a, b in zip(found, maps, strict=True))
    assert torch.equal(last, network.forward_features(images()))
    assert torch.equal(last, found[-1])

    only = network.forward_intermediates(images(), intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(only, maps, strict=True))
    reached, some = network.forward_intermediates(images(), indices=[0, 2], stop_early=True)
    assert all(torch.equal(a, b) for a, b in zip(some, (maps[0], maps[2]), strict=True))
    assert torch.equal(reached, maps[2]), "computed further than was asked for"
    last_two = network.forward_intermediates(images(), indices=2, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(last_two, maps[-2:], strict=True))
    with pytest.raises(ValueError, match="expected NCHW, got NLC"):
        network.forward_intermediates(images(), output_fmt="NLC")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_pruned_networks_give_the_same_maps(name: str) -> None:
    network = create(name)
    maps = network.forward_intermediates(images(), intermediates_only=True)
    before = count_params(network)
    assert network.prune_intermediate_layers([1, -2]) == [1, 3]
    assert count_params(network) < 0.8 * before
    kept = network.forward_intermediates(images(), [1, 3], intermediates_only=True)
    assert torch.equal(kept[0], maps[1])
    assert torch.equal(kept[1], maps[3])
    assert torch.equal(network(images()), maps[3])
    assert network.num_features == maps[3].shape[1]
    assert isinstance(network.get_classifier(), nn.Identity)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("channels", [1, 4])
def test_other_image_channels(name: str, channels: int) -> None:
    network = fresh(name, in_chans=channels, num_classes=2).eval()
    first = network.get_submodule(network.pretrained_cfg["first_conv"])
    assert isinstance(first, nn.Conv2d)
    assert first.in_channels == channels
    assert network(images(1, 32, channels)).shape == (1, 2)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_drop_rates_reach_the_network(name: str) -> None:
    network = fresh(name, drop_rate=0.45, drop_path_rate=0.3)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.45]
    blocks = [m for m in network.modules() if hasattr(m, "identity_channels")]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    steps = [0.3 * number / len(blocks) for number in range(len(blocks))]
    assert rates == pytest.approx(steps)
    without = fresh(name, drop_rate=0.0, drop_path_rate=0.0)
    assert not [m for m in without.modules() if isinstance(m, DropPath)]


def test_drop_path_leaves_the_shortcut() -> None:
    torch.manual_seed(0)
    network = create("mobilenext_035", drop_path_rate=0.9)
    block = network.features[19]
    assert block.residual
    block.drop_path.train()
    x = torch.randn(200, 336, 2, 2)
    branch = block.conv(x)
    out = block(x)
    dropped = (out == x).flatten(1).all(1)
    rate = block.drop_path.drop_prob
    assert rate == pytest.approx(0.9 * 18 / 20)
    assert dropped.float().mean().item() == pytest.approx(rate, abs=0.1)
    kept = ~dropped
    assert kept.any()
    assert close(out[kept], (x + branch / (1 - rate))[kept])


SCRIPTABLE = {
    "mobilenext": lambda: MobileNeXt(0.35, num_classes=5),
    "mobilenext, half of the identity": lambda: MobileNeXt(0.35, 0.5, num_classes=5, drop_path=0.2),
    "mnext_s": lambda: mnext_s(width_mult=0.35, num_classes=5),
    "efficientnet_b0": lambda: EfficientNet(0.35, num_classes=5),
    "efficientnet_b0, swapped": lambda: EfficientNet(0.35, num_classes=5, block="sandglass"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if "half" in kind or "swapped" in kind else pytest.mark.slow)
        for kind in SCRIPTABLE
    ],
)
def test_torchscript(kind: str) -> None:
    network = with_weights(SCRIPTABLE[kind]())
    scripted = torch.jit.script(network)
    with torch.no_grad():
        assert close(scripted(images(size=32)), network(images(size=32)))
        network.train()  # with dropped paths
        both = []
        for kind_of_it in (network, scripted):
            kind_of_it.train()
            torch.manual_seed(0)
            both.append(kind_of_it(images(8)))
    assert close(*both)
    assert close(scripted.eval()(images()), network.eval()(images()))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_grad_checkpointing_changes_no_number(name: str) -> None:
    plain, saving = (
        create(name, num_classes=5, drop_rate=0.0, drop_path_rate=0.0).train() for _ in range(2)
    )
    saving.set_grad_checkpointing()
    blocks = [m for m in saving.modules() if hasattr(m, "identity_channels")]
    calls = []
    blocks[-1].register_forward_pre_hook(lambda *_: calls.append(1))
    outputs = [network(images()) for network in (plain, saving)]
    assert torch.equal(*outputs)
    for out in outputs:
        out.square().sum().backward()
    assert len(calls) == 2, "activations were kept"
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert close(other.grad, one.grad)
    saving.set_grad_checkpointing(False)
    saving(images()).sum().backward()
    assert len(calls) == 3


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_grad_checkpointing_of_intermediates(name: str) -> None:
    network = create(name, drop_path_rate=0.0).train()
    x = images()
    maps = network.forward_intermediates(x, intermediates_only=True)
    network.set_grad_checkpointing()
    calls = []
    blocks = [m for m in network.modules() if hasattr(m, "identity_channels")]
    blocks[-1].register_forward_pre_hook(lambda *_: calls.append(1))
    saved = network.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(saved, maps, strict=True))
    saved[-1].square().sum().backward()
    assert len(calls) == 2, "activations were kept"


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_channels_last(name: str) -> None:
    network = create(name, num_classes=5)
    with torch.no_grad():
        wanted = network(images())
        network.to(memory_format=torch.channels_last)
        x = images().contiguous(memory_format=torch.channels_last)
        assert network.forward_features(x).is_contiguous(memory_format=torch.channels_last)
        assert close(network(x), wanted)


@pytest.mark.parametrize("name", NETWORKS)
def test_how_its_images_are_made(name: str) -> None:
    network = fresh(name)
    config = resolve_model_data_config(network)
    assert config == {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop_pct": 0.875,
        "crop_mode": "center",
    }
    assert network.pretrained_cfg["num_classes"] == 1000
    assert network.pretrained_cfg["architecture"] == name
    assert network.pretrained_cfg["paper_ids"] == "arXiv:2007.02269"


def test_evaluation_transform_is_that_of_the_released_runs() -> None:
    config = resolve_model_data_config(fresh("mobilenext_035"))
    described = str(create_transform(**config))
    assert re.search(r"Resize\(size=256, interpolation=bicubic", described)
    assert re.search(r"CenterCrop\(size=\(224, 224\)\)", described)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_layer_decay(name: str) -> None:
    network = fresh(name, num_classes=5)
    groups = param_groups_layer_decay(network, weight_decay=0.05, layer_decay=0.8)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == sum(len(group["params"]) for group in groups)
    assert scale.keys() == {id(p) for p in network.parameters()}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert all(decay[id(p)] == (0.05 if p.ndim > 1 else 0) for p in network.parameters())
    of_name = [(key, scale[id(p)]) for key, p in network.named_parameters()]
    values = [value for _, value in of_name]
    assert values == sorted(values), "a later layer learns slower than an earlier one"
    assert len(set(values)) >= 17, "blocks share a rate"
    assert values[0] == min(values)
    assert values[-1] == 1.0
    for value in values:
        assert math.log(value, 0.8) == pytest.approx(round(math.log(value, 0.8)), abs=1e-6)
    coarse = network.group_matcher(coarse=True)
    assert set(coarse) == {"stem", "blocks"}


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("mobilenext_100", [(1, 576, 20, 20), (1, 1280, 10, 10)]),
        ("mobilenext_035", [(1, 200, 20, 20), (1, 1280, 10, 10)]),
    ],
)
def test_expansions_are_what_the_authors_detector_takes(name: str, shapes: list) -> None:
    taps = create(
        name, features_only=True, feature_location="expansion", out_indices=(3, 4)
    )  # C4 and C5 of ssdlite-pytorch-mobilenext
    assert taps.feature_info.reduction() == [16, 32]
    with torch.no_grad():
        maps = taps(images(1, 320))
        assert [tuple(m.shape) for m in maps] == shapes
        network = create(name)
        x = network.features[:13](images(1, 320))
        # The stride-2 block has no first depthwise convolution, the last block has it.
        c4 = network.features[13].conv[:5](x)
        x = network.features[13:20](x)
        c5 = network.features[20].conv[:8](x)
    assert torch.equal(maps[0], c4)
    assert torch.equal(maps[1], c5)
    assert all(m.min() == 0 and m.max() <= 6 for m in maps), "no ReLU6 came last"


@pytest.mark.parametrize("name", ["mobilenext_efficientnet_b0", "mnext_s", "mnext_l"])
def test_expansions_of_the_others(name: str) -> None:
    taps = create(name, features_only=True, feature_location="expansion")
    info = taps.feature_info
    assert info.reduction() == [2, 4, 8, 16, 32]
    maps = taps(images())
    assert [m.shape[1] for m in maps] == info.channels()
    assert [64 // m.shape[-1] for m in maps] == info.reduction()
    # In-place activations would hide a tap at the norm before them.
    tapped = [create(name).get_submodule(module) for module in info.module_name()]
    assert all(isinstance(module, nn.SiLU) for module in tapped)


def test_a_new_classifier_has_the_networks_number_format() -> None:
    network = create("mobilenext_035", num_classes=5).double()
    network.reset_classifier(3)
    assert network(images().double()).dtype == torch.float64


def test_unknown_feature_location() -> None:
    with pytest.raises(ValueError, match="expected bottleneck or expansion, got 'middle'"):
        fresh("mobilenext_035", features_only=True, feature_location="middle")


@pytest.mark.parametrize("name", ["mobilenext_035", "mobilenext_efficientnet_b0"])
def test_weights_travel_in_a_folder_of_the_hub(name: str, tmp_path: Path) -> None:
    network = create(name, num_classes=5)
    folder = tmp_path / "saved"
    save_for_hf(network, str(folder), safe_serialization=True)
    assert (folder / "model.safetensors").is_file()
    again = fresh(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(again(images()), network(images()))
    tuned = fresh(f"local-dir:{folder}", pretrained=True, num_classes=3).eval()
    assert tuned(images()).shape == (2, 3)
    assert torch.equal(tuned.forward_features(images()), network.forward_features(images()))
    grey = fresh(f"local-dir:{folder}", pretrained=True, in_chans=1).eval()
    first = network.pretrained_cfg["first_conv"] + ".weight"
    summed = network.state_dict()[first].sum(1, keepdim=True)
    assert close(grey.state_dict()[first], summed)


def test_timm_pushes_and_pulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(tmp_path, monkeypatch)
    network = create("mobilenext_035", num_classes=5, identity_tensor_multiplier=0.5)
    push_to_hf_hub(network, "jane/net", safe_serialization=True)
    again = fresh("hf-hub:jane/net", pretrained=True).eval()
    assert torch.equal(again(images()), network(images()))


def test_weights_from_a_file(tmp_path: Path) -> None:
    network = create("mobilenext_035")
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    again = fresh("mobilenext_035", pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    assert torch.equal(again.eval()(images()), network(images()))


def test_none_are_published() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        fresh("mobilenext_100", pretrained=True)
