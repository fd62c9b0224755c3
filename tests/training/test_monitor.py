"""TensorBoard's HParams tab, by what its own plugin reads."""

from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from mobilenext.runtime.distributed import Process
from mobilenext.training.measures import TOP1
from mobilenext.training.monitor import Monitor
from mobilenext.training.run_folder import RunFolder
from tests.compare import curves

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
