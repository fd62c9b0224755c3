"""Training that begins with given weights."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

import mobilenext.jobs.train as training
from mobilenext.assembly.detection import train_detector_mode
from mobilenext.assembly.network import train_mode
from mobilenext.config import TrainConfig
from mobilenext.config.targets import build
from mobilenext.errors import InputError, Preempted
from mobilenext.models import EfficientNet
from mobilenext.models.weights import LARGE_STD
from mobilenext.runtime.distributed import Process
from mobilenext.seeding import seed_devices
from mobilenext.training.step import Update
from mobilenext.training.weights_files import read_tensors, sha256_of
from tests.compare import assert_same_run
from tests.composed import MADE_UP, TINY, composed, placed

CPU = Process(torch.device("cpu"))
SMALL = (*TINY, "strides=[1,1,2,2,2]", "data.global_batch_size=96", "epochs=1",
         "runtime.log_every=4", "schedule=constant", "optimizer.lr=0.05")  # fmt: skip
NOISE = (*MADE_UP, "data.source.train_images=192", "strides=[1,1,2,2,2]")
"""Two steps, for tests that need no images."""
HEAD = ("classifier.1.weight", "classifier.1.bias")
ELSEWHERE = 7
"""Classes that the weights from elsewhere know; digits has ten."""


def config(*overrides: str) -> TrainConfig:
    return composed(*SMALL, *overrides)


def train(path: Path, *overrides: str) -> dict[str, Any]:
    return training.train(placed(config(*overrides), path), CPU)


def new_network(seed: int = 0) -> dict[str, torch.Tensor]:
    """The random weights that a run begins with."""
    seed_devices("init", seed)
    return build(config().model.network, num_classes=10).state_dict()


@pytest.fixture(scope="module")
def pretrained(learned: Path) -> Path:
    """Final weights of a run that is long enough for running statistics to have settled."""
    assert json.loads((learned / "result.json").read_text())["top1"] > 75
    return learned / "model.safetensors"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """The same in a trainer's checkpoint, for other classes."""
    path = tmp_path_factory.mktemp("elsewhere") / "mnext.pth.tar"
    tensors = read_tensors(pretrained)
    head = torch.nn.Linear(1280, ELSEWHERE).state_dict()
    tensors |= {f"classifier.1.{part}": value for part, value in head.items()}
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, path)
    return path


def test_only_the_classifier_learns(
    tmp_path: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, *NOISE, f"init_from={pretrained}", "freeze_backbone=true", "ema_decay=0.8",
          "seed=1")  # fmt: skip
    assert f"weights from {pretrained}\n" in capsys.readouterr().out
    before = read_tensors(pretrained)
    checkpoint = torch.load(tmp_path / "last.pt", weights_only=True)
    for after in (checkpoint["network"], checkpoint["ema"]):
        assert after.keys() == before.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == set(HEAD)  # running statistics and their counters are as they were, too
    assert len(checkpoint["optimizer"]["state"]) == 2


@pytest.mark.parametrize("frozen", ["freeze_backbone", "freeze_norms"])
def test_frozen_statistics_are_not_blamed_for_a_network_at_chance(frozen: str) -> None:
    given = ("init_from=x.pth", "epochs=1")
    note = training._at_chance({"steps": 20, "top1": 10.0}, config(*given), 10)
    assert "running statistics of batch norms, which evaluation uses, need some hundred" in note
    note = training._at_chance({"steps": 20, "top1": 10.0}, config(*given, f"{frozen}=true"), 10)
    assert "hundred" not in note
    assert "whether data.mean and data.std are those of their training" in note


def test_frozen_norms_keep_their_statistics(tmp_path: Path, pretrained: Path) -> None:
    train(tmp_path, *NOISE, f"init_from={pretrained}", "freeze_norms=true", "ema_decay=0.8")
    before = read_tensors(pretrained)
    checkpoint = torch.load(tmp_path / "last.pt", weights_only=True)
    for after in (checkpoint["network"], checkpoint["ema"]):
        for name, value in before.items():
            is_statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
            assert torch.equal(after[name], value) == is_statistic, name


def test_frozen_norms_compute_in_training_as_in_evaluation(pretrained: Path) -> None:
    given = ("init_from=x.pth", "model.network.dropout=0")
    network: torch.nn.Module = build(config(*given).model.network, num_classes=10)
    network.load_state_dict(read_tensors(pretrained))
    images = torch.randn(8, 3, 16, 16)
    expected = network.eval()(images)
    train_mode(network, config(*given, "freeze_norms=true"))
    assert torch.equal(network(images), expected)
    train_mode(network, config(*given))
    assert not torch.allclose(network(images), expected, atol=0.1)
    detector = composed("data=voc", "init_from=x.pth", "freeze_norms=true", job="detect")

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = network, torch.nn.BatchNorm2d(3)

        def frozen_part(self) -> torch.nn.Module:
            return self.body

    tower = Tower()
    train_detector_mode(tower, detector)
    norms = [m for m in tower.body.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    assert tower.head.training, "a new norm has no statistics to keep"


def test_a_classifier_for_other_classes_is_made_anew(
    tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tmp_path, *NOISE, f"init_from={elsewhere}", "optimizer.lr=0", "seed=3")
    told = f"weights from {elsewhere}, its entry state_dict (new classifier for 10 classes)\n"
    assert told in capsys.readouterr().out
    after = safetensors.torch.load_file(tmp_path / "model.safetensors")
    given = torch.load(elsewhere, weights_only=True)["state_dict"]
    new = new_network(seed=3)
    for name in HEAD:
        assert torch.equal(after[name], new[name])
    for name in ("features.0.0.weight", "features.4.conv.3.weight", "features.8.conv.9.bias"):
        assert torch.equal(after[name], given[f"module.{name}"])
        assert not torch.equal(after[name], new[name])
    assert result["init_from"] == {"path": str(elsewhere), "sha256": sha256_of(elsewhere)}
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["mobilenext"])["init_from"] == result["init_from"]


def test_a_large_classifier_that_is_made_anew_is_made_small(tmp_path: Path) -> None:
    """EfficientNet draws one with a standard deviation of 0.18 at ten classes."""
    given = tmp_path / "b0.pth"
    torch.save(EfficientNet(num_classes=ELSEWHERE).state_dict(), given)
    begun = composed("model=efficientnet_b0", *MADE_UP, "data.source.train_images=8",
                     "data.global_batch_size=8", "data.image_size=32", "epochs=1",
                     f"init_from={given}", "optimizer.lr=0", "ema_decay=0.8",
                     "schedule=constant")  # fmt: skip
    training.train(placed(begun, tmp_path / "run"), CPU)
    after = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    for kind in ("network", "ema"):
        assert 0.01 < after[kind]["classifier.weight"].std() <= LARGE_STD
    assert torch.equal(after["network"]["classifier.weight"], after["ema"]["classifier.weight"])


def test_given_weights_help(tmp_path: Path, elsewhere: Path) -> None:
    more = ("freeze_backbone=true", "optimizer.lr=0.5")
    given = train(tmp_path / "given", f"init_from={elsewhere}", *more)
    noise = tmp_path / "noise.pth"
    torch.save(new_network(), noise)
    without = train(tmp_path / "noise", f"init_from={noise}", *more)
    assert given["top1"] > 60
    assert given["top1"] > without["top1"] + 20


def test_layers_learn_at_their_own_rates(tmp_path: Path, pretrained: Path) -> None:
    """With plain SGD and one step, how far a layer moves is its rate times its gradient.

    The rate is so high that what float32 rounds off a moved weight is nothing beside the way.
    """
    more = (*NOISE, "data.source.train_images=96", f"init_from={pretrained}", "optimizer.lr=20",
            "clip_grad_norm=null", "optimizer.momentum=0", "optimizer.nesterov=false",
            "optimizer.weight_decay=0", "model.network.dropout=0")  # fmt: skip
    train(tmp_path / "all", *more)
    train(tmp_path / "decayed", *more, "layer_decay=0.5")
    before = read_tensors(pretrained)
    whole, decayed = (
        read_tensors(tmp_path / name / "model.safetensors") for name in ("all", "decayed")
    )
    for name, layers_above in (
        ("classifier.1.weight", 0),
        ("features.8.conv.8.weight", 1),
        ("features.4.conv.3.weight", 5),
        ("features.0.0.weight", 9),
    ):
        moved = (whole[name] - before[name]).norm()
        ratio = (decayed[name] - before[name]).norm() / moved
        assert moved > 0
        assert ratio == pytest.approx(0.5**layers_above, rel=1e-3), name


def test_two_processes_keep_the_backbone(tmp_path: Path, run, elsewhere: Path) -> None:
    run("train.py", *SMALL, f"init_from={elsewhere}", "freeze_backbone=true", "ema_decay=0.8",
        processes=2)  # fmt: skip
    (folder,) = (tmp_path / "runs").glob("*/*")
    after = torch.load(folder / "last.pt", weights_only=True)
    for name, value in torch.load(elsewhere, weights_only=True)["state_dict"].items():
        for kind in ("network", "ema"):
            same = torch.equal(after[kind][name.removeprefix("module.")], value)
            assert same or name.removeprefix("module.") in HEAD, name
    result = json.loads((folder / "result.json").read_text())
    assert result["hardware"]["processes"] == 2
    assert result["top1"] > 50


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("more", ["freeze_backbone=true", "layer_decay=0.8"])
def test_an_interrupted_run_goes_on_without_the_file(
    tmp_path: Path, photo_folder: Path, elsewhere: Path, more: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """And ends as an uninterrupted one, bit for bit, though the file is gone by then."""
    given = tmp_path / "given.pth.tar"
    shutil.copy(elsewhere, given)
    recipe = ("data=imagefolder", f"data.root={photo_folder}", "data.global_batch_size=8",
              "epochs=2", "ema_decay=0.8", "runtime.log_every=1", f"init_from={given}",
              more)  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, *recipe)
    assert "weights from" in capsys.readouterr().out
    steps, update = 0, Update.__call__

    def interrupted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Update, "__call__", interrupted)
        with pytest.raises(Preempted):
            train(cut, *recipe)
    assert steps < 6
    given.unlink()
    capsys.readouterr()
    train(cut, *recipe)
    said = capsys.readouterr().out
    assert f"going on after step {steps}" in said
    assert "weights from" not in said
    assert_same_run(whole, cut)
    result = json.loads((cut / "result.json").read_text())
    assert result["init_from"]["sha256"] == sha256_of(elsewhere)


def test_weights_that_do_not_fit(tmp_path: Path, pretrained: Path) -> None:
    with pytest.raises(
        InputError, match=r"init_from: .*model\.safetensors: .*features\.0\.0\.weight \(32, 3"
    ):
        train(tmp_path / "wide", f"init_from={pretrained}", "width=1.0")
    with pytest.raises(InputError, match=r"init_from: .*nowhere\.pth: expected a file"):
        train(tmp_path / "missing", f"init_from={tmp_path / 'nowhere.pth'}")
    assert not (tmp_path / "wide").exists()
    assert not (tmp_path / "missing").exists()


def test_both_networks_are_named_and_a_run_folder_is_its_weights(
    tmp_path: Path, learned: Path
) -> None:
    more = ("data=synthetic", "data.source.num_classes=10")
    both = (r"This run's network is mobilenext \(width_mult=0\.5\), the file's mobilenext "
            r"\(width_mult=0\.35\)")  # fmt: skip
    with pytest.raises(InputError, match=rf"init_from: {learned}/best\.pt: .*{both}"):
        train(tmp_path / "wide", f"init_from={learned}", *more, "width=0.5")
    with pytest.raises(InputError, match=r"expected a run folder with best\.pt or model\.safe"):
        train(tmp_path / "none", f"init_from={tmp_path}", *more)
    assert not list(tmp_path.iterdir())


def test_knobs_that_no_weight_shows_are_noted(
    tmp_path: Path, learned: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights fit for any identity and any strides, and then compute something else."""
    digits = composed().data
    more = (*NOISE, "freeze_backbone=true", f"data.mean={digits.mean}", f"data.std={digits.std}")
    note = ("note: init_from was trained with identity 1, strides [1,1,2,2,2], this run has "
            "identity 1/2, strides [1,2,2,2,2]\n")  # fmt: skip
    for number, given in enumerate((pretrained, learned)):
        train(tmp_path / f"{number}", *more, f"init_from={given}", "identity=1/2",
              "strides=[1,2,2,2,2]")  # fmt: skip
        assert note in capsys.readouterr().out
    train(tmp_path / "same", *more, f"init_from={learned}")
    assert "init_from was" not in capsys.readouterr().out
    train(tmp_path / "mean", *more, f"init_from={learned}", "data.mean=[0.5,0.5,0.5]")
    assert "trained with data.mean [0.31,0.31,0.31], this run has data.mean [0.5" in (
        capsys.readouterr().out
    )
    plain = tmp_path / "plain.pth"
    torch.save(read_tensors(pretrained), plain)
    train(tmp_path / "plain", *more, f"init_from={plain}", "identity=1/2")
    assert "init_from was" not in capsys.readouterr().out


def test_a_network_without_a_linear_classifier(tmp_path: Path, pretrained: Path) -> None:
    with pytest.raises(InputError, match=r"freeze_backbone=true: expected .*SqueezeNet has none"):
        training.train(
            placed(composed("model=torchvision", "model.name=squeezenet1_1", "width=1.0",
                            "strides=[2,2,2,2,2]", f"init_from={pretrained}",
                            "freeze_backbone=true"), tmp_path), CPU,
        )  # fmt: skip
