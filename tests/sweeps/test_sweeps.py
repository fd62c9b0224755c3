"""Sweeps of real runs: processes, failures, kills, signals, several nodes."""

import importlib.util
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from hydra_plugins.mobilenext_torchrun import TorchrunLauncher
from mobilenext.sweeps.sweep import SweepJob
from mobilenext.training.run_folder import RunFolder
from tests.commands import command, environment
from tests.compare import assert_same_run
from tests.composed import MADE_UP, TINY
from tests.conftest import in_terminal

SMALL = (
    *TINY,
    *MADE_UP,
    "data.source.train_images=160",
    "data.global_batch_size=16",
    "runtime.log_every=4",
)
OFTEN = ("checkpoint.every_steps=3", "checkpoint.max_share=1")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(path.glob("runs/*/*/result.json"))]


def sessions(path: Path) -> list[dict[str, Any]]:
    (file,) = path.glob("runs/*/*/sessions.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def start(path: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command("train.py", "-m", *SMALL, *arguments),
        cwd=path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, pattern: str, text: str = "") -> Path:
    """The file that comes to be, once it holds the text."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for file in path.glob(pattern):
            if text in file.read_text():
                return file
        time.sleep(0.02)
    raise TimeoutError(f"{pattern} with {text!r} has not come to be in {path}")


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have started."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(child) for file in children for child in file.read_text().split()]
    return found + [one for child in found for one in descendants(child)]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_jobs_of_two_processes(run, tmp_path: Path, jobs: int) -> None:
    seeds = f"seed=range({jobs})"
    done = run("train.py", "-m", *SMALL, "epochs=1", seeds, "hydra.launcher.processes=2")
    assert f"sweep of {jobs} job" in done.stdout
    assert f": {jobs} finished" in done.stdout
    found = results(tmp_path)
    assert [result["hardware"]["processes"] for result in found] == [2] * jobs
    assert sorted(result["seed"] for result in found) == list(range(jobs))
    assert found[0]["command"].endswith("hydra.mode=RUN")
    (job_0, *_) = sorted((tmp_path / "runs/sweeps/logs").glob("*.log"))
    assert "on 2 x cpu" in job_0.read_text()


@pytest.mark.slow
def test_two_nodes_meet_for_each_job(tmp_path: Path) -> None:
    port = 29000 + os.getpid() % 900
    nodes = [
        start(tmp_path, "epochs=1", "seed=0,1", "hydra.launcher.nodes=2",
              f"hydra.launcher.address=localhost:{port}")
        for _ in range(2)
    ]  # fmt: skip
    said = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert [result["hardware"]["processes"] for result in results(tmp_path)] == [2, 2]


def test_options_that_can_not_be(run, tmp_path: Path) -> None:
    for options, message in (
        (["hydra.launcher.jobs=0"], "error: hydra.launcher.jobs=0: expected at least 1"),
        (["hydra.launcher.nodes=2"], "error: hydra.launcher.address=null: expected host:port"),
        (["hydra.launcher.nodes=2", "hydra.launcher.jobs=2"], "jobs at once need nodes=1"),
    ):
        done = run("train.py", "-m", *SMALL, "seed=0,1", *options, ok=False)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert results(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_sweep_killed_and_run_again_ends_as_if_it_had_not_been(run, tmp_path: Path) -> None:
    recipe = ("epochs=3", "seed=range(0,1)", *OFTEN)  # a sweep of one
    whole = tmp_path / "whole"
    torn = tmp_path / "torn"
    for path in (whole, torn):
        path.mkdir()
    run("train.py", *SMALL, "epochs=3", "seed=0", *OFTEN, cwd=whole)
    sweep = start(torn, *recipe)
    metrics = wait_for(torn, "runs/*/*/metrics.jsonl", '"step": 8')
    for pid in [*descendants(sweep.pid), sweep.pid]:
        os.kill(pid, signal.SIGKILL)
    sweep.communicate(timeout=60)
    assert sweep.returncode == -signal.SIGKILL
    assert results(torn) == []

    done = run("train.py", "-m", *SMALL, *recipe, cwd=torn)
    assert "sweep of 1 job: 1 finished" in done.stdout
    begun = [
        row["step"]
        for row in map(json.loads, (metrics.parent / "sessions.jsonl").read_text().splitlines())
        if row["event"] == "start"
    ]
    assert begun[0] == 0
    assert begun[1] >= 6, "more than the steps since the last checkpoint were lost"
    (uninterrupted,) = (whole / "runs").glob("*/*/result.json")
    assert_same_run(uninterrupted.parent, metrics.parent)


def test_a_signal_to_a_sweep_ends_its_job_with_a_checkpoint(tmp_path: Path) -> None:
    sweep = start(tmp_path, "epochs=300", "seed=0,1")
    wait_for(tmp_path, "runs/*/*/metrics.jsonl", '"step": 8')
    sweep.send_signal(signal.SIGTERM)
    said = sweep.communicate(timeout=120)[0]
    assert sweep.returncode == 75, said
    assert "sweep of 2 jobs: 1 preempted, 1 not started" in said
    assert "SIGTERM: the sweep ends; the same command goes on with it" in said
    assert sessions(tmp_path)[-1]["reason"] == "preempted"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux ends orphans so")
@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_of_a_killed_launcher_save_and_end(tmp_path: Path, processes: int) -> None:
    sweep = start(tmp_path, "epochs=600", "seed=0,1", f"hydra.launcher.processes={processes}")
    wait_for(tmp_path, "runs/*/*/metrics.jsonl", '"step": 8')
    started = descendants(sweep.pid)
    sweep.kill()
    sweep.communicate(timeout=60)
    wait_for(tmp_path, "runs/*/*/sessions.jsonl", '"reason": "preempted"')
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.glob("runs/*/*/last.pt"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs the extra optuna")
def test_a_search_gets_its_values_and_goes_on(run, tmp_path: Path) -> None:
    search = ("train.py", "-m", "experiment=tune_recipe", "epochs=1", "data.global_batch_size=96")
    done = run(*search, "hydra.sweeper.n_trials=2")
    assert done.stdout.count(": running") == 2
    best = max(result["top1"] for result in results(tmp_path))
    found = yaml.safe_load((tmp_path / "runs/sweeps/optimization_results.yaml").read_text())
    assert found["best_value"] == best
    assert len({result["config"]["optimizer"]["lr"] for result in results(tmp_path)}) == 2
    again = run(*search, "hydra.sweeper.n_trials=3")
    assert again.stdout.count(": running") == 1
    assert again.stdout.count("finished earlier") == 4


def launcher(objective: str | None) -> TorchrunLauncher:
    return TorchrunLauncher(1, None, 1, 0, 1, None, objective)


def test_what_a_sweeper_gets(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create("")
    folder.write_result({"top1": 50.0})
    good = SweepJob(0, "a", [], tmp_path / "log", folder, state="finished")
    bad = SweepJob(1, "b", [], tmp_path / "log", state="failed", note="exit code 1")
    config = OmegaConf.create()
    assert launcher(None)._returned(good, config, []).return_value == {"top1": 50.0}
    assert launcher(None)._returned(bad, config, []).return_value is None
    assert launcher("top1")._returned(good, config, []).return_value == 50.0
    with pytest.raises(RuntimeError, match="exit code 1"):
        _ = launcher("top1")._returned(bad, config, []).return_value
    with pytest.raises(RuntimeError, match="has no entry latency"):
        _ = launcher("latency")._returned(good, config, []).return_value


@pytest.mark.slow
def test_a_line_for_each_job_where_there_is_a_terminal(tmp_path: Path) -> None:
    arguments = command(
        "train.py", "-m", *SMALL, "epochs=10", "optimizer.lr=0.001", "seed=range(0,1)"
    )
    shown, said = in_terminal(arguments, tmp_path, environment())
    for text in ("seed=0", "running", "finished", "images/s", "left"):
        assert text in shown
    assert ", finished" not in shown
    assert "#0" not in shown, "a line for each change is for where there is no terminal"
    assert "sweep of 1 job: 1 finished" in said
