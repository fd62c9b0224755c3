"""scripts/compare_curve.py, as a user meets it."""

import json
from pathlib import Path

import yaml

from tests.results import fake_result, small_result, write_results


def test_a_finished_run_beside_the_log(run, tmp_path: Path) -> None:
    runs = write_results(tmp_path, fake_result(top1=50.0))
    (folder,) = runs.glob("*/*")
    done = run("scripts/compare_curve.py", folder, "output=curve.csv")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["1", "0.17", "25.00", "+24.83"] in lines
    assert ["2", "20.55", "50.00", "+29.45"] in lines
    assert "identity 1 [S: seen in a copy" in done.stdout
    assert (tmp_path / "curve.csv").read_text().splitlines()[1].endswith(",1,0.17,25.0,24.83")


def test_an_unfinished_run_and_the_log_of_its_identity(run, tmp_path: Path) -> None:
    result = fake_result(identity=0.5)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(result["config"]))
    rows = [{"kind": "epoch", "epoch": 1, "step": 5, "loss": 1.0, "top1": 1.0},
            {"kind": "val", "epoch": 1, "step": 5, "loss": 1.0, "top1": 0.1, "top5": 0.2},
            {"kind": "train", "epoch": 2, "step": 6, "lr": 0.1}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("scripts/compare_curve.py", ".")
    assert "1 epochs so far" in done.stdout
    assert "identity 1/2" in done.stdout


def test_other_data_is_refused(run, tmp_path: Path) -> None:
    (folder,) = write_results(tmp_path, small_result()).glob("*/*")
    done = run("scripts/compare_curve.py", folder, ok=False)
    assert done.returncode == 1
    assert "this is data imagenette, 96 px, and the log is of MobileNeXt 1.0" in done.stderr
    forced = run("scripts/compare_curve.py", folder, "force=true")
    assert "NOT comparable: this is data imagenette, 96 px" in forced.stdout


def test_no_run(run, tmp_path: Path) -> None:
    for arguments, message in (
        (["nowhere"], "error: nowhere: expected the folder of a run"),
        ([], "error: runs has no value: add runs=..."),
    ):
        done = run("scripts/compare_curve.py", *arguments, ok=False)
        assert done.returncode == 1
        assert message in done.stderr
