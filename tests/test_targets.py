"""What a config node may call, and what a file that anybody may have written can't make it call."""

import base64
import importlib
import inspect
import io
import pickle
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import mobilenext.data
import mobilenext.models
import mobilenext.optim
from mobilenext.assembly.trained import evaluation_data
from mobilenext.config import DataConfig, from_plain, targets, to_plain
from mobilenext.config.targets import (
    COMMAND_LINE,
    DATA_SOURCES,
    STORED_NETWORKS,
    STORED_SOURCES,
    Table,
    allocating_at_most,
    build,
)
from mobilenext.errors import InputError
from mobilenext.jobs.evaluate import rebuilt
from mobilenext.models import efficientnet, layers
from mobilenext.training.checkpoint import save_checkpoint
from mobilenext.training.weights_files import load_weights, read_tensors, save_weights
from tests.test_configs import composed

MOBILENEXT = "mobilenext.models.MobileNeXt"
TINY = {"_target_": MOBILENEXT, "width_mult": 0.35}


class Evil:
    """Unpickling it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def pickle_address(marker: Path) -> str:
    """A pickle that torch's careful reader fails on with a TypeError, and a careless one runs.

    timm reads again without care after such an error.
    """
    command = f"touch {marker}".encode()
    content = b"\x80\x02ccollections\nOrderedDict\n)RN}\x86b" + b"q\x00cposix\nsystem\nX"
    content += len(command).to_bytes(4, "little") + command + b"\x85R."
    quoted = urllib.parse.quote_from_bytes(content, safe="")
    return f"data:application/octet-stream,{quoted}/w.pth"


def evil_nodes(folder: Path, marker: Path) -> dict[str, dict[str, Any]]:
    """Networks' arguments that read a pickle, import a module or leave something behind."""
    content = pickle.dumps(Evil(marker))
    (folder / "evil.pkl").write_bytes(content)
    zipped = io.BytesIO()
    torch.save({"x": Evil(marker)}, zipped)
    (folder / "evil.pth").write_bytes(zipped.getvalue())
    url = f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
    helpers = "mobilenext.models.libraries.timm.models"
    read = {"checkpoint_path": str(folder / "evil.pth"), "weights_only": False}
    return {
        "through our module's imports": {
            **TINY, "norm_layer": {"_target_": f"{helpers}._helpers.load_state_dict", **read},
        },
        "timm's loader": {**TINY, "block": {"_target_": "timm.models.load_state_dict", **read}},
        "a data: address": {
            **TINY,
            "block": {"_target_": "timm.models._hub.download_cached_file", "url": url,
                      "cache_dir": str(folder)},
        },
        "weights of its choice": {
            "_target_": "timm.create_model", "model_name": "resnet18",
            "checkpoint_path": str(folder / "evil.pth"),
        },
        "weights through ours": {
            "_target_": "mobilenext.models.timm_model", "model_name": "resnet18",
            "pretrained_cfg_overlay": {"file": str(folder / "evil.pth")}, "pretrained": True,
        },
        "a folder of its choice": {
            "_target_": "mobilenext.models.timm_model", "model_name": f"local-dir:{folder}",
        },
        "torch's loader": {
            **TINY,
            "block": {"_target_": "torch.load", "f": read["checkpoint_path"],
                      "weights_only": False},
        },
        "arguments that a layer adds when it calls a partial": {
            "_target_": "torch.nn.Identity",
            "x": {
                "_target_": "timm.layers.BatchNormAct2d", "num_features": 8,
                "act_layer": {"_target_": "timm.create_model", "_partial_": True,
                              "model_name": "resnet10t", "kwargs_filter": ["inplace"]},
                "act_kwargs": {"pretrained": True, "pretrained_cfg_overlay": {
                    "url": pickle_address(marker), "hf_hub_id": None, "file": None}},
            },
        },
        "the same, named once": {
            "_target_": "torch.nn.Identity",
            "x": {
                "_target_": "timm.layers.BatchNormAct2d", "num_features": 8,
                "act_layer": {"_target_": "mobilenext.models.timm_model", "_partial_": True,
                              "model_name": "resnet10t"},
                "act_kwargs": {"checkpoint_path": str(folder / "evil.pth")},
            },
        },
        "attributes of its choice": {
            "_target_": "torch.nn.Identity",
            "x": {"_target_": "torch.nn.ParameterDict", "parameters": {"forward": 1}},
        },
        "our writer": {**TINY, "block": {"_target_": "mobilenext.data.pack._write",
                                         "path": str(marker), "content": "x"}},
        "a hook for all modules": {
            **TINY,
            "block": {"_target_": "torch.nn.modules.module.register_module_forward_hook",
                      "hook": {"_target_": "torch.nn.ReLU", "_partial_": True}},
        },
    }  # fmt: skip


def described(network: dict[str, Any]) -> dict[str, Any]:
    data = to_plain(composed().data)
    model = {"name": "tiny", "network": network, "num_classes": 2}
    return {"model": model, "classes": ["a", "b"], "data": data}


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_file_cannot_run_code(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    marker = tmp_path / "was-here"
    network = mobilenext.models.MobileNeXt(0.35, num_classes=2)
    path = tmp_path / f"file.{kind}"
    hooks = dict(nn.modules.module._global_forward_hooks)
    for node in evil_nodes(tmp_path, marker).values():
        about = described(node)
        if kind == "pt":
            save_checkpoint(path, {**about, "network": network.state_dict(), "ema": None})
        else:
            save_weights(path, network, about)
        before = set(tmp_path.iterdir())
        tensors, read = load_weights(path)
        with pytest.raises(InputError, match="its network can't be built"):
            rebuilt(read["model"], tensors, path, 32)
        assert set(tmp_path.iterdir()) == before
    assert dict(nn.modules.module._global_forward_hooks) == hooks
    # The same pickle does run where nothing keeps it from it.
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert marker.exists()


OLD_PREFIXES = ("mobilenext.data", "mobilenext.models", "mobilenext.optim", "timm.layers",
                "timm.models", "timm.optim", "torch.nn", "torch.optim", "torchvision.models",
                "torchvision.ops")  # fmt: skip
BUILDERS = {
    mobilenext.models.mnext_l, mobilenext.models.mnext_s, mobilenext.models.timm_model,
    mobilenext.models.torchvision_model, mobilenext.models.Stage, timm.create_model,
    layers.initialize, layers.initialize_by_fan_out, layers.relu6, efficientnet.silu,
    efficientnet.tensorflow_norm,
}  # fmt: skip
SOURCES = {
    mobilenext.data.cifar10, mobilenext.data.digits, mobilenext.data.image_folder,
    mobilenext.data.imagenet, mobilenext.data.imagenette, mobilenext.data.synthetic,
    mobilenext.data.voc, mobilenext.data.coco,
}  # fmt: skip


def callables(module: ModuleType, prefix: str, steps: int = 1) -> Iterator[tuple[str, Any]]:
    """Names and objects of a module's callables, and of those of modules that it imports."""
    for name, value in list(vars(module).items()):
        if callable(value):
            yield f"{prefix}.{name}", value
        elif isinstance(value, ModuleType) and steps:
            yield from callables(value, f"{prefix}.{name}", steps - 1)


def everything_under(prefixes: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for prefix in prefixes:
        package = importlib.import_module(prefix)
        yield from callables(package, prefix)
        for name, module in list(sys.modules.items()):
            if name.startswith(f"{prefix}."):
                yield from callables(module, name)
                yield from callables(module, prefix, steps=0)


def is_network(name: str, value: Any) -> bool:
    if inspect.isclass(value):
        return issubclass(value, nn.Module)
    name = name.rpartition(".")[2]
    return inspect.isfunction(value) and (
        (value.__module__.startswith("timm.models.") and timm.is_model(name))
        or (
            value.__module__.startswith("torchvision.models.")
            and name in torchvision.models.list_models(module=torchvision.models)
        )
    )


def find(name: str, table: Table) -> Any:
    return next((found for family in table.families if (found := family.find(name))), None)


@pytest.mark.filterwarnings("ignore")
def test_what_files_reach_is_networks_and_sources_only() -> None:
    reached, refused = set(), 0
    for name, value in everything_under(OLD_PREFIXES):
        found = find(name, STORED_NETWORKS)
        if found is None:
            refused += 1
            assert find(name, STORED_SOURCES) in {None, *SOURCES}, name
            continue
        assert found in BUILDERS or is_network(name, found), name
        module, _, last = name.rpartition(".")
        assert found is value or found is getattr(sys.modules[module], last), name
        assert "._" not in name
        reached.add(found)
    assert reached >= BUILDERS - {timm.create_model}
    assert len(reached) > 1_000
    assert refused > 10_000


@pytest.mark.filterwarnings("ignore")
def test_what_the_command_line_reaches_builds_something() -> None:
    for name, _ in everything_under(OLD_PREFIXES):
        found = find(name, COMMAND_LINE)
        assert (
            found is None
            or found in BUILDERS | SOURCES
            or is_network(name, found)
            or found in vars(mobilenext.optim).values()
            or (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer))
        ), name


@pytest.mark.parametrize(
    "name",
    [MOBILENEXT, "mobilenext.models.mobilenext.MobileNeXt", "mobilenext.models.mnext_l",
     "torchvision.models.resnet18", "timm.models.resnet18",
     "timm.create_model", "torch.nn.BatchNorm2d", "torchvision.ops.SqueezeExcitation"],
)  # fmt: skip
def test_networks_are_found_by_the_names_that_people_use(name: str) -> None:
    assert find(name, STORED_NETWORKS) is not None
    assert find(name, COMMAND_LINE) is not None


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({**TINY, "width_mult": 1e6}, "width_mult=1000000.0: expected a number of at most 10"),
        ({**TINY, "width_mult": float("nan")}, "width_mult=nan"),
        ({"_target_": "mobilenext.models.mnext_s", "depth_mult": 1e9}, "depth_mult=1000000000.0"),
        ({**TINY, "stages": [[6, 96, 10**9, 1, "both"]]}, "expected a number of at most"),
        ({**TINY, "strides": [2] * 10_000}, r"strides of MobileNeXt: expected 5 values"),
        ({**TINY, "norm_layer": torch.zeros(1)}, "got one with a Tensor in it"),
        ({**TINY, "x": "y" * 100_000}, "got one with 100,000 characters in a text"),
        ({"_target_": "torch.nn.Linear", "in_features": 60_000, "out_features": 60_000},
         "expected a network of about"),
        ({"_target_": "torch.nn.LayerNorm", "normalized_shape": [60_000, 60_000]},
         "expected a network of about"),
        ({"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}, "got weights"),
        ({"_target_": "torchvision.models.googlenet", "weights_backbone": "DEFAULT"},
         "got weights_backbone"),
        ({"_target_": "timm.create_model", "model_name": "resnet18", "pretrained": "yes"},
         "got pretrained"),
        ({"_target_": "timm.models.resnet18", "cache_dir": "/tmp"}, "got cache_dir"),
        ({"_target_": "timm.create_model", "model_name": "hf-hub:timm/resnet18.a1_in1k"},
         "no such network"),
        ({**TINY, "norm_layer": {"_target_": "torch.nn.functional.relu", "_partial_": True}},
         "is not allowed"),
        ({**TINY, "width_mult": 10**400}, r"width_mult=\(huge\)"),
        ({**TINY, "x; y": 1}, "expected names of arguments"),
        ({**TINY, 3: 1}, "a name that is no text"),
        ({"_target_": "mobilenext.models.timm_model", "model_name": "vit_tiny_patch16_224",
          "depth": 65_536, "embed_dim": 1}, "depth=65536"),
        ({"_target_": "torch.nn.Identity",
          "x": {"_target_": "torch.nn.TransformerEncoder", "num_layers": 9}}, "is not allowed"),
        ({"_target_": "timm.create_model", "model_name": "resnet18", "features_only": True},
         "got features_only"),
        ({**TINY, "strides": [2], "depth_mult": 10,
          "block": {"_target_": "torch.nn.Identity", "_partial_": True},
          "stages": [{"_target_": "mobilenext.models.Stage", "reduction_ratio": 6, "channels": 8,
                      "repeats": 100, "stride": 1, "first_block": "both"}] * 900},
         "at most 1,000 blocks"),
        ({**TINY, "activation_layer": {"_target_": MOBILENEXT, "_partial_": True,
          "activation_layer": {"_target_": MOBILENEXT, "_partial_": True, "width_mult": 0.1}}},
         "at most 20,000 modules|expected a network of about"),
        ({**TINY, "dropout": "x"}, "did not take"),
        ({**TINY, "stages": 3}, "did not take"),
    ],
)  # fmt: skip
def test_what_a_stored_network_may_not_say(node: dict[str, Any], message: str) -> None:
    def start() -> None:
        with allocating_at_most(1 << 20):
            build(node, STORED_NETWORKS, **({"num_classes": 2} if "Linear" in str(node) else {}))

    if node["_target_"] in ("torch.nn.Linear", "torch.nn.LayerNorm"):
        with pytest.raises(InputError, match=message), allocating_at_most(1 << 20):
            build(node, STORED_NETWORKS)
        return
    with pytest.raises(InputError, match=message):
        start()


def test_deeply_nested_arguments_are_refused() -> None:
    value: Any = 1
    for _ in range(100):
        value = [value]
    with pytest.raises(InputError, match="levels"):
        build({**TINY, "strides": value}, STORED_NETWORKS)
    many: Any = 1
    for _ in range(20):
        many = [many] * 10
    endless: list[Any] = []
    endless.append(endless)
    for one in (many, endless):
        with pytest.raises(InputError, match="of more than"):
            build({**TINY, "strides": one}, STORED_NETWORKS)
        with pytest.raises(InputError, match="of more than"):
            from_plain(DataConfig, {**to_plain(composed().data), "mean": one})


def test_a_confined_thread_may_not_do_what_no_network_needs(tmp_path: Path) -> None:
    class Writer(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            if how == "write":
                (tmp_path / "x").write_text("x")
            elif how == "unpickle":
                pickle.loads(pickle.dumps(Path("x")))
            else:
                subprocess.run(["true"], check=False)

    for how in ("write", "unpickle", "run"):
        with pytest.raises(InputError, match="what no network needs"), targets.confined():
            Writer(how)
        Writer(how)  # elsewhere it may
    assert (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**13), torch.zeros(3, device="meta"),
        torch.zeros(3, 3).to_sparse(),
    ],
    ids=["repeated", "meta", "sparse"],
)  # fmt: skip
def test_tensors_that_the_file_does_not_have_in_full(tmp_path: Path, tensor: torch.Tensor) -> None:
    network = mobilenext.models.MobileNeXt(0.35, num_classes=2).state_dict()
    state = {**described(TINY), "ema": None, "network": {**network, "features.x.weight": tensor}}
    save_checkpoint(tmp_path / "x.pt", state)
    for read in (load_weights, read_tensors):
        with pytest.raises(InputError, match=r"got one that no network has: features\.x\.weight"):
            read(tmp_path / "x.pt")


def test_a_stored_network_may_not_cost_much_more_than_its_weights() -> None:
    stage = {"_target_": "mobilenext.models.Stage", "reduction_ratio": 8, "channels": 64,
             "repeats": 1, "stride": 1, "first_block": "last"}  # fmt: skip
    node = {"_target_": MOBILENEXT, "width_mult": 0.25, "strides": [1], "stages": [stage]}
    network = build(node, num_classes=2)
    model = {"network": node, "num_classes": 2}
    with pytest.raises(InputError, match=r"values in one layer for a batch of 1024"):
        rebuilt(model, network.state_dict(), Path("x.pt"), 512, 1024)
    assert rebuilt(model, network.state_dict(), Path("x.pt"), 64, 64) is not None


def test_sources_of_a_checkpoint_may_read_what_they_need(tmp_path: Path) -> None:
    """CIFAR-10's batches are pickles; and modules that are imported for them may be compiled."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
    source = {"_target_": "mobilenext.data.cifar10", "root": str(tmp_path)}
    with pytest.raises(InputError, match=r"expected CIFAR-10 in .*(not found|corrupted)"):
        build(source, STORED_SOURCES)  # torchvision has looked at it, and not we refused

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            module = tmp_path / "lazily_imported.py"
            module.write_text("x = 1")

    with pytest.raises(InputError, match="what no network needs"), targets.confined():
        Reads()
    (tmp_path / "lazily_imported.py").write_text("x = 1")
    sys.path.insert(0, str(tmp_path))
    try:
        with targets.confined():
            importlib.import_module("lazily_imported")
    finally:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "torch.nn.Identity", "num_classes": 2}, "does not take images of 64 x 64"),
        ({**TINY, "in_chans": 1}, "does not take images|expected the weights"),
        ({**TINY, "global_pool": ""}, "does not take images of 64 x 64"),
    ],
)
def test_a_stored_network_has_to_make_logits(node: dict[str, Any], message: str) -> None:
    network = mobilenext.models.MobileNeXt(0.35, num_classes=2)
    model = {"network": node, "num_classes": 2}
    tensors = {} if "Identity" in node["_target_"] else network.state_dict()
    with pytest.raises(InputError, match=message):
        rebuilt(model, tensors, Path("x.pt"), 64)


def test_weights_that_are_not_finite_are_refused() -> None:
    tensors = mobilenext.models.MobileNeXt(0.35, num_classes=2).state_dict()
    tensors["classifier.1.bias"] = torch.tensor([0.0, float("nan")])
    with pytest.raises(InputError, match=r"expected finite numbers in classifier\.1\.bias"):
        rebuilt({"network": TINY, "num_classes": 2}, tensors, Path("x.pt"), 64)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "timm.create_model", "model_name": "mobilenetv3_small_050"},
        {"_target_": "mobilenext.models.timm_model", "model_name": "mobilenetv3_small_050"},
        {"_target_": "timm.models.mobilenetv3_small_050"},
    ],
)
def test_weights_of_a_stored_network_are_the_files_own(node: dict[str, Any]) -> None:
    network = build({**node, "pretrained": True}, STORED_NETWORKS, num_classes=3)
    plain = timm.create_model("mobilenetv3_small_050", num_classes=3)
    assert network.state_dict().keys() == plain.state_dict().keys()


def test_a_network_as_large_as_the_file_is_built(tmp_path: Path) -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    node = {"_target_": "mobilenext.models.timm_model", "model_name": "vit_tiny_patch16_224"}
    save_weights(tmp_path / "x.safetensors", network, described(node))
    tensors, about = load_weights(tmp_path / "x.safetensors")
    again = rebuilt(about["model"], tensors, tmp_path / "x.safetensors", 224)
    assert torch.equal(again.state_dict()["head.weight"], network.state_dict()["head.weight"])


@pytest.mark.parametrize(
    "change",
    [
        {"eval_interpolation": "![x](http://x)"}, {"eval_size": 1 << 20}, {"workers": 100_000},
        {"eval_batch_size": 1 << 20}, {"eval_size": 2048, "eval_batch_size": 256},
        {"eval_crop_ratio": 1e-9}, {"mean": [1e9, 0, 0]}, {"root": "\\" * 300_000},
    ],
)  # fmt: skip
def test_stored_data_that_asks_for_too_much(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        from_plain(DataConfig, {**to_plain(composed().data), **change})


SECRETS = ["${oc.env:SECRET}", r"\${oc.env:SECRET}", r"\\${oc.env:SECRET}", "a${b", "${", "$${x}",
           "${oc.env:SECRET}${oc.env:SECRET}", r"C:\data\${x}", "plain", r"back\slash"]  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_stored_values_stay_as_they_are(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SECRET", "a key")
    stored = to_plain(composed().data)
    stored |= {"name": text, "root": text, "source": {**stored["source"], "x": [text, {"y": text}]}}
    read = from_plain(DataConfig, stored)
    assert (read.name, read.root) == (text, text)
    assert read.source["x"] == [text, {"y": text}]
    assert evaluation_data(stored, {}).name == text


def test_a_stored_source_downloads_only_if_the_user_says_so() -> None:
    stored = to_plain(composed("data=cifar10", "data.root=/x", "data.download=true").data)
    assert stored["source"]["download"] is True
    data = evaluation_data(stored, {})
    assert not data.download
    assert "download" not in data.source
    assert evaluation_data(stored, {"download": True}).download
    with pytest.raises(InputError, match="got download"):
        build(stored["source"], STORED_SOURCES)


def test_runs_from_before_a_key_of_their_source_can_be_evaluated_with_it() -> None:
    stored = to_plain(composed("data=imagefolder", "data.root=/x").data)
    stored["source"] = {key: stored["source"][key] for key in ("_target_", "root", "reencoded")}
    assert evaluation_data(stored, {"val_folder": "test"}).source["val_folder"] == "test"


@pytest.mark.parametrize(
    "source",
    [
        {"_target_": "mobilenext.data.pack.open_pack", "root": "/"},
        {"_target_": "mobilenext.data.synthetic", "num_classes": 1 << 40},
        {"_target_": "mobilenext.data.synthetic", "image_size": 1 << 20},
        {"_target_": "mobilenext.data.synthetic", "val_images": 1 << 30},
        {"_target_": "mobilenext.data.digits", "image_size": 2048},
        {"_target_": MOBILENEXT},
    ],
)
def test_what_a_stored_source_may_not_say(source: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        build(source, STORED_SOURCES)


def test_a_source_of_the_command_line_is_a_source() -> None:
    with pytest.raises(InputError, match=r"expected a data source of mobilenext\.data"):
        build(TINY, DATA_SOURCES)


def test_libraries_are_loaded_outside_of_the_wall() -> None:
    """In a process that has not loaded them: what they do at their first import is theirs."""
    program = (
        "import sys; from mobilenext.config.targets import STORED_NETWORKS, build;"
        "assert not {'timm', 'torchvision'} & sys.modules.keys();"
        "build({'_target_': 'mobilenext.models.MobileNetV2'}, STORED_NETWORKS, num_classes=3);"
        "build({'_target_': 'mobilenext.models.timm_model', 'model_name': 'resnet18'},"
        " STORED_NETWORKS, num_classes=3)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
