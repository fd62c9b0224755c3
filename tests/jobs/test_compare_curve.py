"""scripts/compare_curve.py, as a user meets it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mobilenext.config import to_plain
from mobilenext.errors import InputError
from mobilenext.jobs.compare_curve import compare_curve
from mobilenext.runtime.distributed import Process
from mobilenext.tables import released_recipe
from tests.results import fake_result, small_result, write_results
from tests.test_configs import composed

CPU = Process(torch.device("cpu"))


def official(**changes: Any) -> dict[str, Any]:
    """A result of the experiment that repeats the released run, or of one that differs a little."""
    config = to_plain(composed("experiment=mobilenext_official", "data.root=/data"))
    return fake_result(**{"config": config, **changes})


def folder_of(tmp_path: Path, result: dict[str, Any]) -> Path:
    (folder,) = write_results(tmp_path, result).glob("*/*")
    return folder


def test_a_finished_run_beside_the_log(run, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, official(top1=50.0))
    done = run("scripts/compare_curve.py", folder, "output=curve.csv")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["1", "0.17", "25.00", "+24.83"] in lines
    assert ["2", "20.55", "50.00", "+29.45"] in lines
    assert "identity 1 [S: seen in a copy" in done.stdout
    assert (tmp_path / "curve.csv").read_text().splitlines()[1].endswith(",1,0.17,25.0,24.83")


def unfinished(folder: Path, config: dict[str, Any], processes: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [{"kind": "epoch", "epoch": 1, "step": 5, "loss": 1.0, "top1": 1.0},
            {"kind": "val", "epoch": 1, "step": 5, "loss": 1.0, "top1": 0.1, "top5": 0.2},
            {"kind": "train", "epoch": 2, "step": 6, "lr": 0.1}]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sessions.jsonl").write_text(json.dumps({"processes": processes}) + "\n")


def test_an_unfinished_run_and_the_log_of_its_identity(run, tmp_path: Path) -> None:
    config = official()["config"]
    config["identity"] = config["model"]["network"]["identity_tensor_multiplier"] = 0.5
    unfinished(tmp_path, config, 2)
    done = run("scripts/compare_curve.py", ".")
    assert "1 epochs so far" in done.stdout
    assert "identity 1/2" in done.stdout


def test_an_unfinished_run_with_norms_of_another_size(run, tmp_path: Path) -> None:
    config = official()["config"]
    config["norm_batch"] = None
    unfinished(tmp_path / "a", config, 8)
    run("scripts/compare_curve.py", "a")
    unfinished(tmp_path / "b", config, 4)
    done = run("scripts/compare_curve.py", "b", ok=False)
    assert "images per norm=128 (released run: 64)" in done.stderr


def test_other_data_is_refused(run, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, small_result())
    done = run("scripts/compare_curve.py", folder, ok=False)
    assert done.returncode == 1
    assert "this is data imagenette, 96 px, epochs=8 (released run: 210)" in done.stderr
    assert "the log is of MobileNeXt 1.0 on ImageNet at 224 px" in done.stderr
    forced = run("scripts/compare_curve.py", folder, "force=true")
    assert "NOT comparable: this is data imagenette, 96 px" in forced.stdout


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("optimizer.lr", 0.05, "optimizer.lr=0.05 (released run: 0.1)"),
        ("optimizer.nesterov", False, "optimizer.nesterov=false (released run: true)"),
        ("optimizer._target_", "torch.optim.AdamW", "optimizer._target_=torch.optim.AdamW"),
        ("schedule.every", "step", "schedule.every=step (released run: epoch)"),
        ("data.global_batch_size", 256, "data.global_batch_size=256 (released run: 512)"),
        ("epochs", 200, "epochs=200 (released run: 210)"),
        ("label_smoothing", 0.0, "label_smoothing=0.0 (released run: 0.1)"),
        ("augment.color_jitter", [0.0] * 4, "augment.color_jitter=[0.0,0.0,0.0,0.0]"),
        ("augment.mixup", 0.2, "augment.mixup=0.2 (released run: 0.0)"),
        ("ema_decay", 0.9999, "ema_decay=0.9999 (released run: null)"),
        ("init_from", "x.pth", "init_from=x.pth (released run: null)"),
        ("decay_norm_and_bias", True, "decay_norm_and_bias=true (released run: false)"),
        ("runtime.precision", "bf16", "runtime.precision=bf16 (released run: fp32)"),
        ("norm_batch", 32, "images per norm=32 (released run: 64)"),
        ("data.eval_interpolation", "bilinear", "data.eval_interpolation=bilinear"),
        ("model.network.dropout", 0.0, "model.network.dropout=0.0 (released run: 0.2)"),
        ("model.network.kernel_size", 5, "model.network.kernel_size=5"),
        ("identity", 1 / 3, "identity 1/3, for which no log was released (there are 1, 1/2)"),
        ("width", 0.5, "mobilenext 0.5"),
    ],
)
def test_another_recipe_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, value: Any, words: str
) -> None:
    result = copy.deepcopy(official())
    *parents, last = place.split(".")
    holder = result["config"]
    for parent in parents:
        holder = holder[parent]
    holder[last] = value
    folder = folder_of(tmp_path, result)
    with pytest.raises(InputError, match="force=true") as error:
        compare_curve(composed(f"runs=[{folder}]", job="compare_curve"), CPU)
    assert f"this is {words}" in str(error.value)
    compare_curve(composed(f"runs=[{folder}]", "force=true", job="compare_curve"), CPU)
    assert f"NOT comparable: this is {words}" in capsys.readouterr().out


def test_the_released_recipe_is_the_official_experiment() -> None:
    config = to_plain(composed("experiment=mobilenext_official", "data.root=/data"))
    for place, expected in released_recipe().items():
        value: Any = config
        for name in place.split("."):
            value = value[name]
        assert value == expected, place


def test_no_run(run, tmp_path: Path) -> None:
    for arguments, message in (
        (["nowhere"], "error: nowhere: expected the folder of a run"),
        ([], "error: runs has no value: add runs=..."),
    ):
        done = run("scripts/compare_curve.py", *arguments, ok=False)
        assert done.returncode == 1
        assert message in done.stderr
