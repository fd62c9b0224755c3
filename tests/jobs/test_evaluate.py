import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilenext.data import DeviceBatches, eval_loader, eval_transform, synthetic
from mobilenext.metrics.classification import score
from mobilenext.runtime.cores import own_allowance, share
from mobilenext.runtime.distributed import Process
from mobilenext.training.checkpoint import save_checkpoint
from tests.commands import REPO, run_command
from tests.in_processes import LENGTHS, Pixels


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "model.safetensors"])
def test_rebuilds_the_network_from_the_file(run, learned: Path, tmp_path: Path, name: str) -> None:
    done = run("scripts/evaluate.py", f"checkpoint={learned / name}")
    result = json.loads((learned / "result.json").read_text())
    if name == "best.pt":
        assert result["best_epoch"] == result["epochs"]  # so it has the same weights
    assert f"top-1 {result['top1']:.3f} %" in done.stdout
    assert f"top-5 {result['top5']:.3f} %" in done.stdout
    assert f"loss {result['loss']:.4f}" in done.stdout
    assert "360 images of digits" in done.stdout
    (written,) = (tmp_path / "runs" / "evaluate").glob("*/result.json")
    assert json.loads(written.read_text())["top1"] == result["top1"]


def test_a_run_folder_means_its_best_checkpoint(run, learned: Path, tmp_path: Path) -> None:
    """And leaves its result where that file's evaluation does."""
    bare = run("scripts/evaluate.py", learned)
    assert bare.stdout.startswith(f"{learned / 'best.pt'}: top-1 ")
    assert run("scripts/evaluate.py", f"checkpoint={learned / 'best.pt'}").stdout == bare.stdout
    (left,) = (tmp_path / "runs" / "evaluate").iterdir()
    assert f"checkpoint: {learned / 'best.pt'}" in (left / "config.yaml").read_text()


def test_says_so_when_it_evaluates_otherwise(run, learned: Path) -> None:
    last = learned / "last.pt"
    done = run("scripts/evaluate.py", f"checkpoint={last}", "data=digits", "data.eval_size=40")
    assert f"note: data.eval_size=40, while the run of {last} evaluated with 16" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=nowhere.pt"], "found none there"),
        ([], "checkpoint has no value"),
        (["checkpoint={}/config.yaml"], "expected a checkpoint"),
        (["checkpoint={}/last.pt", "data=synthetic"], "knows 10 classes (0, 1, 2, ...)"),
    ],
)
def test_errors_are_one_message(run, learned: Path, arguments: list[str], message: str) -> None:
    done = run("scripts/evaluate.py", *[a.format(learned) for a in arguments], ok=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_cannot_choose_what_is_called(run, learned: Path, tmp_path: Path) -> None:
    state = torch.load(learned / "last.pt", weights_only=True)
    state["model"]["network"] = {"_target_": "torch.hub.load", "repo_or_dir": "x"}
    save_checkpoint(tmp_path / "evil.pt", state)
    done = run("scripts/evaluate.py", "checkpoint=evil.pt", ok=False)
    assert "_target_=torch.hub.load is not allowed" in done.stderr


@pytest.fixture(scope="module")
def scores_alone() -> dict[str, Any]:
    return in_processes(1)


def in_processes(processes: int) -> dict[str, Any]:
    done = run_command("tests/in_processes.py", cwd=REPO, processes=processes, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_the_same_for_any_number_of_processes(scores_alone: dict[str, Any], processes: int) -> None:
    """Also for splits with fewer images than processes."""
    together = in_processes(processes)
    assert together.pop("given up") is True
    mine = own_allowance()
    assert together.pop("cpus") == [share(mine, [mine] * processes)] * processes
    mean = (processes - 1) / 2
    assert together.pop("average") == [[mean, mean]] * processes
    assert together.pop("broadcast") == [[0, 0]] * processes
    # heard by all ranks, one call later
    assert together.pop("agreed") == [
        [False, False], [False, False], [True, False], [False, True], [False, False],
    ]  # fmt: skip
    assert {int(length) for length in together} == set(LENGTHS)
    for length, found in together.items():
        alone = scores_alone[length]
        assert found["count"] == alone["count"] == int(length)
        assert (found["top1"], found["top5"]) == (alone["top1"], alone["top5"])
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-12)
    assert 0 < together["65"]["top1"] < together["65"]["top5"] < 100


def test_a_wrong_count_is_an_error() -> None:
    images = synthetic(1, 9, 7, 16).val
    cpu = torch.device("cpu")
    loader = eval_loader(images, eval_transform(16, crop_ratio=1), batch_size=4)
    to_device = DeviceBatches([0.5] * 3, [0.25] * 3, cpu)
    with pytest.raises(
        RuntimeError, match="evaluated 9 images and could not read 0, the split has 10"
    ):
        score(Pixels(), loader, to_device, Process(cpu), 10)
