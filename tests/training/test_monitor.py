"""TensorBoard's HParams tab, by what its own plugin reads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from mobilenext.runtime.distributed import Process
from mobilenext.training.measures import TOP1
from mobilenext.training.monitor import Monitor
from mobilenext.training.pictures import GAP, LEAST_WIDTH
from mobilenext.training.run_folder import RunFolder
from tests.compare import curves
from tests.toy_loop import STEPS, toy

SCORES: dict[str, dict[str, Any]] = {"val": {"loss": 1.25, "top1": 50.0, "top5": 75.0, "count": 9}}


def session(path: Path, first_step: int = 6, first_epoch: int = 2) -> None:
    """The end of a run of 2 epochs of 3 steps, up to result.json."""
    monitor = Monitor(
        RunFolder(path), Process(torch.device("cpu")), TOP1, 2, 3, first_step, first_epoch
    )
    chosen = {"width": 0.5, "model": "mobilenext"}
    monitor.hyperparameters(chosen, {"best_top1": 55.0}, SCORES, step=6)
    monitor.close()


def test_hyperparameters(tmp_path: Path) -> None:
    session(tmp_path)
    board = EventAccumulator(str(tmp_path)).Reload()
    found = board.PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["width"].number_value == 0.5
    assert start.hparams["model"].string_value == "mobilenext"
    experiment = metadata.parse_experiment_plugin_data(found[metadata.EXPERIMENT_TAG])
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics == ["val/loss", "val/top1", "val/top5", "result/best_top1"]
    end = metadata.parse_session_end_info_plugin_data(found[metadata.SESSION_END_INFO_TAG])
    assert end.status  # of success, else the tab leaves it out
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]  # no run beside this one


def test_a_kill_before_the_result_leaves_no_double(tmp_path: Path) -> None:
    session(tmp_path / "once")
    for _ in range(2):
        session(tmp_path / "twice")
    assert curves(tmp_path / "twice") == curves(tmp_path / "once")
    assert curves(tmp_path / "once")["result/best_top1"] == [[7, 55.0]]


def test_a_run_taken_up_before_its_last_evaluation(tmp_path: Path) -> None:
    session(tmp_path)
    session(tmp_path, first_epoch=1)
    assert curves(tmp_path)["result/best_top1"] == [[7, 55.0]]


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    process = Process(torch.device("cpu"), rank=1, world_size=2)
    monitor = Monitor(RunFolder(tmp_path), process, TOP1, 2, 3, 6, 2)
    monitor.hyperparameters({"width": 0.5}, {}, SCORES, step=6)
    assert not list(tmp_path.iterdir())


def test_more_than_one_point_in_a_short_epoch(tmp_path: Path) -> None:
    """Rows of metrics.jsonl stay as they are; the last point of an epoch is its row."""
    toy(Process(torch.device("cpu")), RunFolder(tmp_path), log_every=50)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [STEPS, 2 * STEPS]
    for key in ("loss", "top1", "lr"):
        points = {step: value for step, value in curves(tmp_path)[f"train/{key}"]}  # noqa: C416
        assert list(points) == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
        assert [points[row["step"]] for row in rows] == pytest.approx([row[key] for row in rows])


def test_the_first_batch_is_shown_once(tmp_path: Path) -> None:
    """With its names, as large as they need it, and not again by the session that goes on."""
    toy(Process(torch.device("cpu")), RunFolder(tmp_path), epochs=1)
    (tmp_path / "result.json").unlink()
    toy(Process(torch.device("cpu")), RunFolder(tmp_path), epochs=2)
    board = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    (picture,) = board.Images("train/images")
    assert (picture.step, picture.width) == (0, GAP + 4 * (LEAST_WIDTH + GAP))


def test_the_line_of_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy(Process(torch.device("cpu")), RunFolder(tmp_path), epochs=3, lr=0.001)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    number = r"\d+\.\d{4}"
    for epoch, line in enumerate(lines, 1):
        assert re.fullmatch(
            rf"epoch {epoch}/3  train loss {number}  val top-1 [\d.]+ %, loss {number}  "
            rf"ema top-1 [\d.]+ %( \(best\))?, loss {number}  lr [\d.e-]+  [\d,]+ images/s  "
            r"data wait \d+%" + (r"  left \d+ s" if epoch < 3 else ""),
            line,
        ), line
    best = RunFolder(tmp_path).result() or {}
    marked = [epoch for epoch, line in enumerate(lines, 1) if "(best)" in line]
    assert (marked[0], marked[-1]) == (1, best["best_epoch"])
