"""Trained networks as folders of the Hugging Face hub, read back by timm."""

import json
import logging
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import PIL.Image
import pytest
import safetensors.torch
import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from mobilenext.assembly.trained import complete_data
from mobilenext.config.targets import build
from mobilenext.data import digits
from mobilenext.data.sources import ArrayImages
from mobilenext.deploy.hub.card import recipe
from mobilenext.deploy.hub.timm_entry import timm_entry
from mobilenext.deploy.hub.trained import read_trained
from mobilenext.deploy.hub.upload import FILES
from mobilenext.errors import InputError
from mobilenext.jobs.export import ExportConfig, export
from mobilenext.models.complexity import measure_complexity
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import ieee_float32
from mobilenext.tables import measured_results
from mobilenext.training.checkpoint import load_checkpoint, save_checkpoint
from mobilenext.training.weights_files import load_weights
from mobilenext.training.weights_files import save_weights as write_weights
from tests.composed import LEARNS, composed, placed
from tests.hub import Hub
from tests.models.nontrivial import with_weights

CPU = Process(torch.device("cpu"))
EVALUATION = ("data.eval_crop_ratio=0.8", "data.eval_interpolation=bilinear",
              "data.mean=[0.3,0.31,0.32]")  # fmt: skip
"""Off the usual, so that it can't come from a default."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits that has learned them, with an identity tensor multiplier of 1/2."""
    from mobilenext.jobs.train import train

    path = tmp_path_factory.mktemp("trained")
    deeper = [text.replace("depth_mult=0.25", "depth_mult=0.5") for text in LEARNS]
    train(placed(composed(*deeper, "identity=1/2", *EVALUATION), path), CPU)
    return path


def exported(checkpoint: Path, output: Path, **more: Any) -> dict[str, Any]:
    return export(ExportConfig(str(checkpoint), str(output), **more), CPU)


def described(*overrides: str) -> dict[str, Any]:
    """What a run with this command says of itself in its weights."""
    config = composed(*overrides)
    classes = [f"class {number}" for number in range(7)]
    model = {"name": config.model.name, "network": config.model.network, "num_classes": 7}
    return {"model": model, "classes": classes, "data": vars(config.data)}


def weights_of(path: Path, *overrides: str) -> nn.Module:
    """Write the weights of a network that was not trained, but in which each weight matters."""
    told = described(*overrides)
    network = with_weights(build(told["model"]["network"], num_classes=7))
    write_weights(path, network, told)
    return network


def scans() -> ArrayImages:
    """The images that the run was evaluated on."""
    held_out = digits(16).val
    assert isinstance(held_out, ArrayImages)
    return held_out


def rebuilt(folder: Path) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def images(size: int = 64) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def same_logits(one: nn.Module, two: nn.Module, size: int = 64) -> bool:
    with torch.no_grad(), ieee_float32():
        logits = one(images(size))
        assert logits.std(0).min() > 0, "the images make no difference"
        return torch.equal(logits, two(images(size)))


def own_network(path: Path) -> nn.Module:
    """As `scripts/evaluate.py` rebuilds it."""
    tensors, told = load_weights(path)
    network = build(told["model"]["network"], num_classes=told["model"]["num_classes"])
    network.load_state_dict(tensors)
    return network.eval()


def residuals(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if getattr(module, "residual", False)]


def snippet(card: str, **replaced: str) -> str:
    """The first piece of Python in a card."""
    code = card.split("```python\n")[1].split("```")[0]
    for old, new in replaced.items():
        assert old in code
        code = code.replace(old, new)
    return code


# ---- a finished run ----


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "model.safetensors"])
def test_timm_rebuilds_the_run_bit_by_bit(trained: Path, tmp_path: Path, name: str) -> None:
    told = exported(trained / name, tmp_path / "out")
    assert told == {"output": str(tmp_path / "out"), "files": list(FILES), "pushed": None}
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
    network = rebuilt(tmp_path / "out")
    assert same_logits(own_network(trained / name), network, 32)
    passed_on = [(b.identity_channels, b.out_channels // 2) for b in residuals(network)]
    assert len(passed_on) > 2
    assert all(channels == half for channels, half in passed_on)


def test_timm_makes_images_as_the_run_did(trained: Path, tmp_path: Path) -> None:
    exported(trained / "model.safetensors", tmp_path)
    network = rebuilt(tmp_path)
    data = resolve_model_data_config(network)
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()} == {
        "input_size": (3, 16, 16),
        "interpolation": "bilinear",
        "mean": (0.3, 0.31, 0.32),
        "std": (0.35, 0.35, 0.35),
        "crop_pct": 0.8,
        "crop_mode": "center",
    }
    held_out = scans()
    transform: Any = create_transform(**data)
    assert "Resize(size=20, interpolation=bilinear" in str(transform)
    pixels = torch.stack([transform(PIL.Image.fromarray(image)) for image in held_out.pixels])
    with torch.no_grad():
        correct = network(pixels).argmax(1) == torch.from_numpy(held_out.labels)
    result = json.loads((trained / "result.json").read_text())
    # Pixels differ by rounding: one image at the edge between two classes may change sides.
    assert 100 * correct.sum().item() / 360 == pytest.approx(result["top1"], abs=100 / 360 + 1e-9)
    assert result["top1"] > 40, "trained for too short a time to say anything"


def test_the_config_of_timm(trained: Path, tmp_path: Path) -> None:
    exported(trained / "best.pt", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "mobilenext_035"
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 10
    assert config["label_names"] == list("0123456789")
    arguments = config["model_args"]
    assert arguments["identity_tensor_multiplier"] == 0.5
    assert arguments["strides"] == [1, 1, 2, 2, 2]
    assert arguments["dropout"] == 0.2
    assert rebuilt(tmp_path).pretrained_cfg["label_names"] == list("0123456789")


def test_timm_fine_tunes_it(trained: Path, tmp_path: Path) -> None:
    exported(trained / "best.pt", tmp_path)
    tuned: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).eval()
    network: Any = rebuilt(tmp_path)
    with torch.no_grad():
        assert tuned(images(32)).shape == (3, 3)
        features = network.forward_features(images(32))
        assert torch.equal(tuned.forward_features(images(32)), features)


def test_the_card_has_the_numbers(trained: Path, tmp_path: Path) -> None:
    exported(trained / "model.safetensors", tmp_path / "digits-035")
    card = (tmp_path / "digits-035" / "README.md").read_text()
    result = json.loads((trained / "result.json").read_text())
    madds = measure_complexity(own_network(trained / "model.safetensors"), 16).madds
    for row in (
        "| width multiplier | 0.35 |",
        "| identity tensor multiplier | 0.5 |",
        "| parameters | 527,754 |",
        f"| multiply-adds (MAdds) | {madds / 1e6:.1f} M at 16 px |",
        f"| top-1 | {result['top1']:.3f} % |",
        f"| top-5 | {result['top5']:.3f} % |",
        f"| cross-entropy | {result['loss']:.4f} nats |",
        "| images | 360 held-out ones of digits, each once |",
        "| weights | averages over steps (EMA) |",
        "| epoch | 2 of 2 |",
        "| seed | 0, one run |",
        "| classes | 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |",
        "| evaluation images | short side resized to 20 px (bilinear), centre of 16 px |",
        "| mean, RGB in [0, 1] | 0.3, 0.31, 0.32 |",
        "| initial weights | random |",
        "| optimiser | SGD, `lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.0001, "
        "foreach=True` |",
        "| epochs | 2 |",
        "| batch | 48 images a step, over all processes |",
        "| random crop | 70 to 100 % of the area, width over height 0.9 to 1.1, resized by "
        "bilinear interpolation |",
        "| mixup | none |",
        "| label smoothing | 0.1 |",
        "| EMA of the weights | decay 0.8 a step |",
        "| precision | fp32 |",
        f"| commit of mobilenext | {result['git_commit']} |",
        "| weights | other: ask those who published them |",
    ):
        assert row in card.splitlines(), row
    assert "| schedule | cosine, `epochs=2, " in card
    assert "UCI" in card
    assert "# digits-035\n" in card
    assert "flatters" not in card
    assert str(trained) not in card


def test_the_best_epoch_says_so(trained: Path, tmp_path: Path) -> None:
    """The numbers are the checkpoint's own, not those at the end of the run."""
    state = load_checkpoint(trained / "best.pt")
    state["epoch"], state["step"] = 1, 29
    state["best"] = {"top1": 77.5, "epoch": 1, "step": 29}
    state["scores"]["ema"] |= {"top1": 77.5, "top5": 99.25}
    shutil.copy(trained / "result.json", tmp_path)
    save_checkpoint(tmp_path / "best.pt", state)
    exported(tmp_path / "best.pt", tmp_path / "out")
    lines = (tmp_path / "out" / "README.md").read_text().splitlines()
    result = json.loads((trained / "result.json").read_text())
    assert "| top-1 | 77.500 % |" in lines
    assert "| epoch | 1 of 2 |" in lines
    assert f"| at the end of the run | top-1 {result['top1']:.3f} % |" in lines
    assert any("flatters" in line for line in lines)


def test_a_checkpoint_from_within_an_epoch_has_no_score(trained: Path, tmp_path: Path) -> None:
    state = load_checkpoint(trained / "last.pt")
    state["epoch"], state["step"], state["ema"] = 1, 40, None
    state["best"] = {"top1": 50.0, "epoch": 1, "step": 29}
    shutil.copy(trained / "config.yaml", tmp_path)
    save_checkpoint(tmp_path / "last.pt", state)
    exported(tmp_path / "last.pt", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| evaluated | no: the checkpoint is from within an epoch |" in card
    assert "top-1" not in card
    assert "| epoch | 1 of 2, and a part of the next one (step 40) |" in card
    assert "| weights | as trained |" in card
    assert "| batch | 48 images a step, over all processes |" in card, "config.yaml was not read"
    assert "Command and commit of the training are not known" in card


def test_what_lies_beside_of_another_run_is_not_taken(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights_of(tmp_path / "model.safetensors", "width=0.5")
    for name in ("config.yaml", "result.json"):
        shutil.copy(trained / name, tmp_path)
    exported(tmp_path / "model.safetensors", tmp_path / "out")
    assert "is of another run" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not known: no config of the run lay beside the weights." in card
    assert "| evaluated | not known: the file has no scores |" in card


def test_what_lies_beside_and_is_damaged(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "best.pt", tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1\n")
    with pytest.raises(InputError, match=r"config\.yaml: could not read it"):
        exported(tmp_path / "best.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: [1\n"),
        ("config.yaml", "[" * 5000),
        ("config.yaml", "a: &a [x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\n"
                        "d: &d [*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\n"
                        "f: [*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"),
        ("config.yaml", b"\xff"),
        ("config.yaml", None),
        ("result.json", "[1]"),
        ("result.json", "[" * 100_000),
        ("result.json", b"\xff"),
        ("result.json", None),
        ("result.json", {"command": "'"}),
        ("result.json", {"command": ""}),
        ("result.json", {"hardware": 3}),
        ("result.json", {"wall_seconds": "x"}),
        ("result.json", {"top1": "x"}),
        ("result.json", {"config": {"optimizer": 3}}),
    ],
)  # fmt: skip
@pytest.mark.timeout(60)
def test_what_lies_beside_and_is_no_run(
    trained: Path, tmp_path: Path, name: str, content: Any
) -> None:
    shutil.copy(trained / "best.pt", tmp_path)
    path = tmp_path / name
    if content is None:
        os.mkfifo(path)
    elif isinstance(content, dict):
        result = json.loads((trained / "result.json").read_text())
        change = content.pop("config", {})
        path.write_text(json.dumps({**result, **content, "config": {**result["config"], **change}}))
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=str(tmp_path)):
        exported(tmp_path / "best.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["network", "ema", "scores", "best", "step", "epoch"])
def test_checkpoints_that_lack_something(trained: Path, tmp_path: Path, key: str) -> None:
    state = load_checkpoint(trained / "best.pt")
    del state[key]
    save_checkpoint(tmp_path / "best.pt", state)
    with pytest.raises(InputError, match=rf"best\.pt: expected .*without {key}"):
        exported(tmp_path / "best.pt", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: torch.zeros((), dtype=value.dtype).expand(value.shape), "that no network"),
        (lambda value: value.to_sparse(), "that no network has"),
        (lambda value: value * float("nan"), "expected finite numbers"),
    ],
)
def test_tensors_that_are_no_weights(
    trained: Path, tmp_path: Path, change: Any, message: str
) -> None:
    state = load_checkpoint(trained / "best.pt")
    name = "classifier.1.weight"
    state["ema"] = {**state["ema"], name: change(state["ema"][name])}
    save_checkpoint(tmp_path / "best.pt", state)
    with pytest.raises(InputError, match=message):
        exported(tmp_path / "best.pt", tmp_path / "out")


def test_given_weights_and_places(trained: Path, tmp_path: Path) -> None:
    """A card goes to the public: it names files, and does not say where they lie."""
    state = load_checkpoint(trained / "last.pt")
    state["init_from"] = {"path": "/home/jane/secret/start.pt", "sha256": "ab12"}
    result = json.loads((trained / "result.json").read_text())
    result["command"] = "python /home/jane/train.py data.root=/home/jane/images width=0.35 'a=b c'"
    result["config"]["freeze_backbone"], result["config"]["layer_decay"] = True, 0.7
    save_checkpoint(tmp_path / "last.pt", state)
    (tmp_path / "result.json").write_text(json.dumps(result))
    exported(tmp_path / "last.pt", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| initial weights | start.pt, SHA-256 ab12 |" in card
    assert "python train.py data.root=.../images width=0.35 'a=b c'" in card
    assert "| trained layers | the classifier only |" in card
    assert "| learning rate, layer by layer | times 0.7 each |" in card
    assert "jane" not in card


def test_the_front_matter(trained: Path, tmp_path: Path) -> None:
    exported(trained / "best.pt", tmp_path, license="cc-by-nc-4.0", data_license="a | b")
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md", ignore_metadata_errors=False)
    assert card.data.to_dict() == {
        "tags": ["image-classification", "timm"],
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "license": "cc-by-nc-4.0",
        "metrics": ["accuracy"],
    }
    assert "| weights | cc-by-nc-4.0 |" in card.text
    assert r"| data | a \| b |" in card.text


@pytest.mark.parametrize(
    ("data", "dataset", "licence"),
    [
        ("imagenet", "ILSVRC/imagenet-1k", "ImageNet terms of access: non-commercial"),
        ("imagenette", "frgfm/imagenette", "a subset of ImageNet; ImageNet terms of access"),
        ("cifar10", "uoft-cs/cifar10", "not stated; its authors ask to cite"),
        ("imagefolder", None, "not stated |"),
    ],
)
def test_licence_of_the_data(tmp_path: Path, data: str, dataset: str | None, licence: str) -> None:
    weights_of(tmp_path / "w.safetensors", f"data={data}", "data.root=/images", "width=0.1")
    exported(tmp_path / "w.safetensors", tmp_path / "out")
    card = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict().get("datasets") == (None if dataset is None else [dataset])
    assert f"| data | {licence}" in card.text
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert b"/images" not in content, "a path of this machine goes to the public"


def test_the_code_of_the_card_runs(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(trained / "best.pt", tmp_path)
    code = snippet(
        (tmp_path / "README.md").read_text(), **{"hf-hub:USER/NAME": f"local-dir:{tmp_path}"}
    )
    image = PIL.Image.fromarray(scans().pixels[0])
    names: dict[str, Any] = {"image": image}
    exec(code, names)
    assert capsys.readouterr().out.splitlines()[-1] in set("0123456789")
    assert same_logits(names["network"], own_network(trained / "best.pt"), 32)


def test_the_weights_stay_those_of_a_run(run, trained: Path, tmp_path: Path) -> None:
    exported(trained / "model.safetensors", tmp_path / "out")
    weights = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    before = safetensors.torch.load_file(trained / "model.safetensors")
    assert weights.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    done = run("scripts/evaluate.py", "checkpoint=out/model.safetensors")
    top1 = json.loads((trained / "result.json").read_text())["top1"]
    assert f"top-1 {top1:.3f} %" in done.stdout


def test_every_measured_recipe_can_be_told(trained: Path) -> None:
    """Also of runs from before a key was there."""
    this = read_trained(trained / "last.pt", complete_data)
    configs = [result.values["config"] for result in measured_results()]
    told = [dict(recipe(replace(this, config=config, result={}))) for config in configs]
    assert len(told) > 5
    assert all(rows["epochs"].isdigit() for rows in told)


# ---- other networks ----


@pytest.mark.parametrize(
    ("overrides", "architecture"),
    [
        (["width=0.35", "identity=1/6"], "mobilenext_035"),
        (["width=1.4"], "mobilenext_140"),
        (["width=0.6", "identity=1/3", "model.network.dropout=0.4"], "mobilenext_100"),
        (["width=0.35", "strides=[2,2,1,2,1]", "+model.network.kernel_size=5"], "mobilenext_035"),
        (["width=0.35", "+model.network.shortcut=thin"], "mobilenext_035"),
        (["model=efficientnet_b0", "width=0.5"], "mobilenext_efficientnet_b0"),
        (["model=mobilenext_efficientnet_b0_no_se", "identity=1/2"], "mobilenext_efficientnet_b0"),
        (["model=mnext_s", "width=0.5", "strides=[1,2,2,2,2]"], "mnext_s"),
        (["model=mnext_l", "width=0.5"], "mnext_l"),
        (["model=timm", "model.name=resnet10t.c3_in1k"], "resnet10t"),
        (["model=timm", "model.name=mobilenetv3_small_050",
          "+model.network.drop_rate=0.3"], "mobilenetv3_small_050"),
        (["model=timm", "model.name=vit_tiny_patch16_224", "+model.network.img_size=64",
          "data.image_size=64"], "vit_tiny_patch16_224"),
        (["model=timm", "model.name=mobilenext_050"], "mobilenext_050"),
    ],
)  # fmt: skip
def test_networks_that_timm_rebuilds(
    tmp_path: Path, overrides: list[str], architecture: str
) -> None:
    network = weights_of(
        tmp_path / "w.safetensors", "data=imagenette", "data.root=x", "data.image_size=64",
        *overrides,
    )  # fmt: skip
    exported(tmp_path / "w.safetensors", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == architecture
    assert not {"tag", "license", "origin_url", "url"} & config["pretrained_cfg"].keys()
    again = rebuilt(tmp_path / "out")
    assert same_logits(network, again)
    assert resolve_model_data_config(again)["crop_pct"] == 0.875
    # What makes no difference in evaluation has to survive for training as well.
    drops = [m.p for m in network.modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in again.modules() if isinstance(m, nn.Dropout)] == drops
    rates = [m.drop_prob for m in network.modules() if hasattr(m, "drop_prob")]
    assert [m.drop_prob for m in again.modules() if hasattr(m, "drop_prob")] == rates
    assert getattr(again, "drop_rate", None) == getattr(network, "drop_rate", None)


def test_a_width_between_two_registered_ones(tmp_path: Path) -> None:
    weights_of(tmp_path / "w.safetensors", "width=0.352")
    exported(tmp_path / "w.safetensors", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architecture"], config["model_args"]["width_mult"]) == ("mobilenext_100", 0.352)


def test_where_weights_came_from_is_no_argument() -> None:
    node = {"_target_": "timm.create_model", "model_name": "resnet18.a1_in1k", "pretrained": True,
            "drop_rate": 0.1, "checkpoint_path": None}  # fmt: skip
    entry = timm_entry(node)
    assert entry is not None
    assert (entry.name, entry.arguments) == ("resnet18", {"drop_rate": 0.1})


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=mobilenetv2", "width=0.35", "strides=[1,2,2,2,2]"],
        ["model=torchvision", "model.name=shufflenet_v2_x0_5"],
    ],
)
def test_networks_that_timm_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    network = weights_of(
        tmp_path / "w.safetensors", "data=imagenette", "data.root=x", "data.image_size=64",
        *overrides,
    )  # fmt: skip
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.json").write_text("{}")  # of an earlier export
    exported(tmp_path / "w.safetensors", output)
    assert {path.name for path in output.iterdir()} == {"model.safetensors", "README.md"}
    card = huggingface_hub.ModelCard.load(output / "README.md")
    front = card.data.to_dict()
    assert "library_name" not in front
    assert front["tags"] == ["image-classification"]
    assert "create_model" not in card.text

    def download(repository: str, name: str) -> str:
        assert repository == "USER/NAME"
        return str(output / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    names: dict[str, Any] = {"image": PIL.Image.new("RGB", (90, 70), (200, 30, 30))}
    exec(snippet(card.text), names)
    assert same_logits(names["network"], network)
    assert names["logits"].shape == (1, 7)
    assert "Resize(size=73, interpolation=bicubic" in str(names["transform"])
    with safetensors.safe_open(output / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["mobilenext"])["classes"][6] == "class 6"


def test_timm_that_rebuilds_something_else_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_of(tmp_path / "w.safetensors", "width=0.35", "identity=1/2")

    def forgetful(network: dict[str, Any]) -> Any:
        return timm_entry({**network, "identity_tensor_multiplier": 1.0})

    monkeypatch.setattr("mobilenext.jobs.export.timm_entry", forgetful)
    with pytest.raises(RuntimeError, match="gives other logits; nothing was written"):
        exported(tmp_path / "w.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- what can't be ----


@pytest.mark.parametrize("model", ["bottleneck_two", "thin_ends", "activation_all"])
def test_nested_arguments_are_refused(tmp_path: Path, model: str) -> None:
    weights_of(tmp_path / "w.safetensors", f"model=ablation/{model}", "width=0.35")
    with pytest.raises(InputError, match=r"got a _target_ in block, .*scripts/evaluate\.py") as got:
        exported(tmp_path / "w.safetensors", tmp_path / "out")
    assert f"checkpoint={tmp_path / 'w.safetensors'}" in str(got.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused(trained: Path, tmp_path: Path) -> None:
    exported(trained / "best.pt", tmp_path)
    first = (tmp_path / "README.md").read_text()
    exported(trained / "best.pt", tmp_path, license="mit")
    assert (tmp_path / "README.md").read_text() != first
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"expected a new or empty folder.* got notes\.txt"):
        exported(trained / "best.pt", tmp_path)
    with pytest.raises(InputError, match="expected a folder, got a file"):
        exported(trained / "best.pt", tmp_path / "notes.txt")
    with pytest.raises(InputError, match="can't write there"):
        exported(trained / "best.pt", tmp_path / "notes.txt" / "below")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_several_processes_are_refused(trained: Path, tmp_path: Path) -> None:
    config = ExportConfig(str(trained / "best.pt"), str(tmp_path / "out"))
    two = Process(torch.device("cpu"), rank=0, world_size=2)
    with pytest.raises(InputError, match="expected one process, got 2"):
        export(config, two)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=nowhere.pt", "output=out"], "found none there"),
        (["checkpoint={}/best.pt"], "output has no value"),
        (["output=out"], "checkpoint has no value"),
        (["checkpoint={}/metrics.jsonl", "output=out"], "expected a checkpoint"),
        (["checkpoint={}/best.pt", "output={}"], "expected a new or empty folder"),
        (["checkpoint={}/best.pt", "output=out", "push=name"], "push=name: expected null, or a"),
        (["checkpoint={}/best.pt", "output=out", "license=''"], "expected a licence's name"),
    ],
)
def test_errors(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        export(composed(*[a.format(trained) for a in arguments], job="export"), CPU)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_cannot_choose_what_is_called(trained: Path, tmp_path: Path) -> None:
    state = load_checkpoint(trained / "last.pt")
    state["model"]["network"] = {"_target_": "torch.hub.load", "repo_or_dir": "x"}
    save_checkpoint(tmp_path / "evil.pt", state)
    with pytest.raises(InputError, match=r"_target_=torch\.hub\.load is not allowed"):
        exported(tmp_path / "evil.pt", tmp_path / "out")


# ---- the command and the hub ----


def test_the_command(run, trained: Path, tmp_path: Path) -> None:
    done = run("scripts/export.py", f"checkpoint={trained / 'best.pt'}", "output=out")
    told = done.stdout.splitlines()
    assert len(told) == 2, "something else talks"
    assert told[0].startswith("out: model.safetensors, config.json, README.md (mobilenext, width")
    line = 'import mobilenext, timm; timm.create_model("local-dir:out", pretrained=True)'
    assert told[1] == f"use it: {line}"
    assert same_logits(rebuilt(tmp_path / "out"), own_network(trained / "best.pt"), 32)


def test_push_and_pull(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path / "hub", monkeypatch)
    output = tmp_path / "out"
    told = exported(trained / "best.pt", output, push="jane/digits")
    assert told["pushed"] == "https://huggingface.co/jane/digits"
    pushed = hub.files("jane/digits")
    assert pushed == {name: (output / name).read_bytes() for name in FILES}
    card = pushed["README.md"].decode()
    assert "# digits\n" in card
    shutil.rmtree(output)
    names: dict[str, Any] = {"image": PIL.Image.fromarray(scans().pixels[0])}
    exec(snippet(card), names)
    assert same_logits(names["network"], own_network(trained / "best.pt"), 32)


def test_a_push_leaves_nothing_of_an_earlier_network(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path / "hub", monkeypatch)
    exported(trained / "best.pt", tmp_path / "out", push="jane/net")
    weights_of(tmp_path / "w.safetensors", "model=mobilenetv2", "width=0.35")
    exported(tmp_path / "w.safetensors", tmp_path / "out", push="jane/net")
    assert set(hub.files("jane/net")) == {"model.safetensors", "README.md"}


def test_a_push_that_fails_keeps_the_folder(run, trained: Path, tmp_path: Path) -> None:
    done = run(
        "scripts/export.py", f"checkpoint={trained / 'best.pt'}", "output=out", "push=jane/digits",
        ok=False, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: push=jane/digits: the hub did not take it" in done.stderr
    assert "out is complete and stays; log in" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
    assert same_logits(rebuilt(tmp_path / "out"), own_network(trained / "best.pt"), 32)


def test_timm_talks_again_afterwards(trained: Path, tmp_path: Path) -> None:
    before = logging.getLogger("timm").level
    exported(trained / "best.pt", tmp_path)
    assert logging.getLogger("timm").level == before


EVIL = (
    "a\n\n# Heading", "```\n# x", "![x](http://evil.example)\\|", "\u202eevil",
)  # fmt: skip
MORE_EVIL = (
    "`code` <b>", "<b>\\\\|", "see www.evil.example",
    "![x](http://evil.example/x.png)", "<img src=http://evil.example>", "[a](http://evil.example)",
    "http://evil.example", "www.evil.example", "a | b", "_emphasis_", "**bold**", "| <b>",
    "1. a list", "\\" * 900 + "|", "<!-- -->", "a@evil.example", "",
)  # fmt: skip


@pytest.mark.parametrize(
    "text", [*EVIL, *(pytest.param(text, marks=pytest.mark.slow) for text in MORE_EVIL)]
)
def test_texts_from_a_file_are_shown_not_interpreted(
    trained: Path, tmp_path: Path, text: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    state = load_checkpoint(folder / "last.pt")
    state["model"] = {**state["model"], "name": text}
    state["data"] = {**state["data"], "name": text}
    state["classes"] = [f"{text}{number}" for number in range(10)]
    save_checkpoint(folder / "last.pt", state)
    result = json.loads((folder / "result.json").read_text())
    result["config"]["data"]["name"] = result["config"]["batch_norm"] = text
    result["config"]["augment"]["randaugment"] = text
    result["config"]["optimizer"]["x"] = text
    result["git_commit"] = result["versions"]["torch"] = text
    result["hardware"]["cpu"] = text
    result["command"] = shlex.join(["python", "train.py", f"name={text}"])
    (folder / "result.json").write_text(json.dumps(result))
    exported(folder / "last.pt", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    body = card.split("---\n", 2)[2]
    fences = re.compile(r"^(`{3,})[a-z]*\n.*?^\1$", re.MULTILINE | re.DOTALL)
    interpreted = re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", fences.sub("", body))
    for mark in ("evil", "<", "# x", "# Heading", "**", "![", "_emphasis", "\u202e"):
        assert mark not in interpreted.replace("<br>", "")
    headings = [line for line in interpreted.splitlines() if line.startswith("#")]
    assert headings == ["# out", *(f"## {part}" for part in (
        "Network", "Result", "Use", "Data", "Recipe", "Origin", "Licences"))]  # fmt: skip
    assert all(line.count("|") - line.count(r"\|") == 3
               for line in body.splitlines() if line.startswith("| "))  # fmt: skip
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True) is not None
