"""Jobs by Hydra's submitit launcher: really run by its local executor, and SLURM by a stand-in."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilenext.errors import Preempted
from mobilenext.runtime import distributed
from mobilenext.runtime.distributed import Process, choose_device
from mobilenext.sweeps import submitit_tasks
from mobilenext.sweeps.submitit_tasks import (
    Requeued,
    join_submitit_tasks,
    requeued_if_preempted,
)
from tests.commands import command, environment
from tests.composed import MADE_UP, TINY

submitit = pytest.importorskip("submitit", reason="needs the extra slurm: submitit")
pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")

from submitit.core.submission import process_job  # noqa: E402 - after the skip

SWEEP = (
    "train.py",
    "-m",
    "hydra.launcher.tasks_per_node=2",
    *TINY,
    *MADE_UP,
    "data.source.train_images=160",
    "data.global_batch_size=16",
)
JOINED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.slow
def test_a_sweep_of_two_tasks_each_goes_on_after_a_failure(run, tmp_path: Path) -> None:
    launcher = "hydra/launcher=submitit_local"
    sweep = (*SWEEP, launcher, "epochs=1", "identity=1/2,2,1/6")
    done = run(*sweep, ok=False, env=environment())
    assert done.returncode == 1
    assert "identity=2.0: expected an identity tensor multiplier" in done.stderr
    files = list((tmp_path / "runs").glob("*/*/result.json"))
    results = [json.loads(file.read_text()) for file in files]
    assert sorted(result["identity"] for result in results) == [1 / 6, 1 / 2]
    assert [result["hardware"]["processes"] for result in results] == [2, 2]
    assert all("train.py width=0.35 " in r["command"] for r in results)
    for file in files:
        assert len(list(file.parent.glob("events.out.*"))) == 1
        assert len((file.parent / "sessions.jsonl").read_text().splitlines()) == 2


STAND_IN = """#!{python}
import os, re, subprocess, sys
from pathlib import Path
here, name, arguments = Path(__file__).parent, Path(__file__).name, sys.argv[1:]
if name == "sbatch":
    log = (here / "log").open("w")  # not the pipes, which submitit reads to their ends
    subprocess.Popen([here / "jobs", *arguments], stdout=log, stderr=log)
    print("Submitted batch job 70")
elif name == "jobs":
    last = int(re.search("--array=0-([0-9]+)", Path(arguments[0]).read_text()).group(1))
    for number in range(last + 1):
        mark = here / f"requeue 70_{{number}}"
        while True:
            mark.unlink(missing_ok=True)
            job = dict(SLURM_JOB_ID=str(70 + number), SLURM_ARRAY_TASK_ID=str(number))
            job |= dict(SLURM_ARRAY_JOB_ID="70", SLURM_NTASKS="2", SLURM_JOB_NUM_NODES="1")
            subprocess.run(["bash", *arguments], env={{**os.environ, **job}})
            if not mark.exists():
                break
elif name == "srun":
    command = arguments[arguments.index("--error") + 2:]
    ranks = [dict(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(2)]
    tasks = [subprocess.Popen(command, env={{**os.environ, **rank}}) for rank in ranks]
    sys.exit(max(abs(task.wait()) for task in tasks))
elif name == "scontrol":
    (here / " ".join(arguments)).touch()
elif name == "sacct":
    print("JobID|State|NodeList\\n70_0|RUNNING|\\n70_1|RUNNING|")
"""
"""SLURM's commands, for one node, two tasks a job and one job at a time."""


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_preempted_job_is_started_again_and_goes_on(tmp_path: Path, cluster: str) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("sbatch", "jobs", "srun", "scontrol", "sacct"):
        (bin_folder / name).write_text(STAND_IN.format(python=sys.executable))
        (bin_folder / name).chmod(0o755)
    env = {**environment(), "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    launcher = f"hydra/launcher=submitit_{cluster}"
    seeds = [0, 1] if cluster == "slurm" else [0]  # two, so that SLURM gets an array of jobs
    values = ",".join(map(str, seeds))
    sweep = command(*SWEEP, launcher, "epochs=4", "runtime.log_every=2", f"seed={values}")
    with subprocess.Popen(
        sweep, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 120
        while not (rows := list(tmp_path.glob("runs/*/*/metrics.jsonl"))):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        sessions = rows[0].with_name("sessions.jsonl")
        pid = json.loads(sessions.read_text().splitlines()[0])["pid"]
        os.kill(pid, signal.SIGUSR2)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    first, end, second, finish = map(json.loads, sessions.read_text().splitlines())
    assert (end["reason"], end["signal"]) == ("preempted", "SIGUSR2")
    assert second["step"] == end["step"] > first["step"] == 0
    assert finish["reason"] == "finished"
    assert json.loads(rows[0].with_name("result.json").read_text())["sessions"] == 2
    assert len(list(tmp_path.glob("runs/*/*/result.json"))) == len(seeds)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """This process as the first of four tasks of an array's job; the file that scontrol leaves."""
    bin_folder, calls = tmp_path / "bin", tmp_path / "calls"
    bin_folder.mkdir()
    (bin_folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (bin_folder / "scontrol").chmod(0o755)
    for name, value in {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "72",
        "SLURM_ARRAY_JOB_ID": "70",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "gpu[07-08]",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    for name in JOINED:
        monkeypatch.setenv(name, "from whoever submitted it")
    monkeypatch.delenv("MASTER_PORT")
    numbers = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield calls
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_tasks_of_several_nodes_find_each_other(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = set()
    for rank in range(4):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        monkeypatch.setenv("SLURM_NODEID", str(rank // 2))
        monkeypatch.setenv("SLURM_LOCALID", str(rank % 2))
        monkeypatch.delenv("MASTER_PORT", raising=False)
        join_submitit_tasks()
        found = [os.environ[name] for name in JOINED]
        assert found[:5] == [str(rank), "4", str(rank % 2), "2", "gpu07"]
        ports.add(found[5])
    assert len(ports) == 1


def test_another_job_of_the_sweep_has_a_port_of_its_own(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = set()
    for job in range(3):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(job))
        monkeypatch.delenv("MASTER_PORT", raising=False)
        join_submitit_tasks()
        ports.add(os.environ["MASTER_PORT"])
    assert len(ports) == 3


def test_a_single_task_is_left_alone(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    before = dict(os.environ)
    join_submitit_tasks()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("visible", "option", "devices"),
    [
        (4, {}, [0, 1, 2, 3]),  # gpus_per_node: all see all
        (1, {"SLURM_GPUS_PER_TASK": "1"}, [0, 0, 0, 0]),
        (4, {"SLURM_GPUS_PER_TASK": "1"}, [0, 1, 2, 3]),  # of a SLURM that does not bind them
    ],
)
def test_the_device_of_a_task(
    slurm: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: int,
    option: dict[str, str],
    devices: list[int],
) -> None:
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: visible)
    for name, value in option.items():
        monkeypatch.setenv(name, value)
    assert [choose_device("cuda", rank).index for rank in range(4)] == devices


class Training:
    """Stands for the launcher's pickled job: ends by `received` unless it has been so before."""

    def __init__(self, received: str, first_try: Path) -> None:
        self.received, self.first_try = received, first_try

    def __call__(self) -> str:
        with requeued_if_preempted(Process(torch.device("cpu"))):
            if self.first_try.exists():
                return "finished"
            self.first_try.touch()
            raise Preempted(self.received, 5)

    def checkpoint(self) -> Any:
        return submitit.helpers.DelayedSubmission(self)


def submitted(tmp_path: Path, received: str, timeouts: int = 3) -> Path:
    """The folder of a job as `sbatch` finds it; its limit of an hour is far."""
    delayed = submitit.helpers.DelayedSubmission(Training(received, tmp_path / "first_try"))
    delayed.set_timeout(60, timeouts)
    folder = tmp_path / "submitit"
    folder.mkdir()
    delayed.dump(folder / "70_1_submitted.pkl")
    return folder


def test_slurm_is_asked_to_requeue_and_the_job_runs_again(slurm: Path, tmp_path: Path) -> None:
    folder = submitted(tmp_path, "SIGUSR2")
    with pytest.raises(Requeued) as end:
        process_job_without_exit(folder)
    assert end.value.args == ("SIGUSR2", 5)
    assert end.value.exit_code != 0
    assert slurm.read_text() == "requeue 70_1\n"
    process_job(folder)
    job = submitit.SlurmJob(folder, "70_1")
    assert job.result() == "finished"


def process_job_without_exit(folder: Path) -> None:
    """What submitit does, up to the exception: `main` makes an exit of it, which leaves no result.

    Raises:
        Preempted: By the job.
    """
    os.environ["SUBMITIT_FOLDER"] = str(folder)
    environment = submitit.JobEnvironment()
    delayed = submitit.helpers.DelayedSubmission.load(environment.paths.submitted_pickle)
    environment._handle_signals(environment.paths, delayed)
    delayed.result()


@pytest.mark.parametrize("received", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_other_signals_end_it_for_good(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, received: str
) -> None:
    monkeypatch.setattr(submitit_tasks, "KILL_WAIT_SECONDS", 0.01)
    with pytest.raises(Preempted) as end:
        process_job_without_exit(submitted(tmp_path, received))
    assert not isinstance(end.value, Requeued)
    assert not slurm.exists()


def test_preemption_told_by_sigterm_first(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitit_tasks, "KILL_WAIT_SECONDS", 30.0)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR2)).start()
    with pytest.raises(Requeued):
        process_job_without_exit(submitted(tmp_path, "SIGTERM"))
    assert slurm.read_text() == "requeue 70_1\n"


def test_a_job_that_cannot_be_requeued_says_so(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(Preempted) as end:
        process_job_without_exit(submitted(tmp_path, "SIGUSR2"))
    assert not isinstance(end.value, Requeued)
    assert "warning: the job could not be requeued" in capsys.readouterr().err


def test_a_job_that_timed_out_too_often(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = submitted(tmp_path, "SIGUSR2", timeouts=-1)
    with pytest.raises(Preempted):
        process_job_without_exit(folder)
    assert "not requeued because: timed-out too many times" in capsys.readouterr().err
    assert not slurm.exists()
