"""`srun python train.py`, by SLURM's variables: how its tasks find each other, and who is alone."""

import json
import os
from pathlib import Path

import pytest
import torch

from mobilenext.errors import InputError
from mobilenext.runtime import distributed
from mobilenext.runtime.distributed import Process, choose_device
from mobilenext.runtime.srun import first_host, in_srun_step, join_srun_tasks, tasks_on
from tests.commands import command, environment, start_fork
from tests.compare import assert_same_run
from tests.composed import MADE_UP, TINY

JOINED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BATCH = {"SLURM_JOB_ID": "72", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
         "SLURM_NTASKS": "5"}  # fmt: skip
"""As in sbatch's own script."""
TASK = {**BATCH, "SLURM_PROCID": "4", "SLURM_NODEID": "2", "SLURM_STEP_ID": "3",
        "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NODELIST": "node[07-08],other",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables of SLURM or torchrun; those that a test sets go with it."""
    for name in (*JOINED, *(name for name in os.environ if name.startswith("SLURM_"))):
        monkeypatch.setenv(name, "")  # so that it is taken back, whoever sets it
        monkeypatch.delenv(name)


def given(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> list[str | None]:
    """What a process finds in torchrun's variables that had these."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    join_srun_tasks()
    return [os.environ.get(name) for name in JOINED]


def test_a_task_of_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = given(monkeypatch, TASK)
    assert joined[:5] == ["4", "5", "0", "1", "node07"]
    assert 20000 <= int(joined[5] or "") < 30000
    assert given(monkeypatch, {"SLURM_PROCID": "1"}) == joined  # once is enough


def test_tasks_of_one_node_need_no_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "5", "SLURM_STEP_NODELIST": "node07"}
    joined = given(monkeypatch, TASK | one)
    assert joined[:5] == ["0", "5", "0", "5", "127.0.0.1"]
    assert f"its 5 tasks meet at 127.0.0.1:{joined[5]}\n" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("SLURM_JOB_ID", "73"), ("SLURM_STEP_ID", "4")])
def test_another_step_has_a_port_of_its_own(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    port = given(monkeypatch, TASK)[5]
    for joined in JOINED:
        monkeypatch.delenv(joined)
    assert given(monkeypatch, {name: value})[5] != port


def test_where_to_meet_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "1234"}
    assert given(monkeypatch, TASK | where)[4:] == ["10.0.0.7", "1234"]


@pytest.mark.parametrize(
    "variables",
    [
        BATCH,
        {**TASK, "SLURM_STEP_NUM_TASKS": "1"},
        {**TASK, "SLURM_STEP_ID": str(0xFFFFFFFA)},  # the shell of salloc
        {**TASK, "SUBMITIT_EXECUTOR": "slurm"},
        {},
    ],
)
def test_who_is_alone(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    assert given(monkeypatch, variables) == [None] * 6
    assert not in_srun_step()


def test_torchrun_in_a_task_says_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    torchruns = dict(zip(JOINED, ("9", "16", "1", "8", "node07", "29500"), strict=True))
    variables = TASK | torchruns | {"TORCHELASTIC_RUN_ID": "none"}
    assert given(monkeypatch, variables) == list(torchruns.values())
    assert not in_srun_step()


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("localhost", "localhost"),
        ("node[03-07,12],other1", "node03"),
        ("n01,n[05-06]", "n01"),
        ("tux[1-2]-ib[3,4]", "tux1-ib3"),
        ("gpu-a[007,9]x.site.org", "gpu-a007x.site.org"),
    ],
)
def test_the_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_tasks_on_each_node() -> None:
    assert [tasks_on(node, "2(x3),1") for node in range(4)] == [2, 2, 2, 1]
    assert tasks_on(0, "8") == 8


@pytest.mark.parametrize(
    ("visible", "devices"), [(4, [0, 1, 2, 3]), (1, [0, 0, 0, 0])], ids=["all", "its own"]
)
def test_the_device_of_a_task(
    monkeypatch: pytest.MonkeyPatch, visible: int, devices: list[int]
) -> None:
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: visible)
    given(monkeypatch, TASK)
    assert [choose_device("cuda", rank).index for rank in range(4)] == devices


def test_a_job_for_one_process_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, TASK)
    with pytest.raises(InputError, match=r"expected one process, got 5; run it as one task \(srun"):
        Process(torch.device("cpu"), 4, 5).require_alone("export")


def srun(path: Path, *tasks: tuple[str, ...]) -> tuple[list[int | None], str]:
    """Run a task for each list of arguments, as srun does; exit codes and standard error."""
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NODEID": "0",
            "SLURM_STEP_NUM_TASKS": str(len(tasks)), "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_TASKS_PER_NODE": str(len(tasks))}  # fmt: skip
    outputs = path / "stdout", path / "stderr"
    forks = [
        start_fork(
            command(*arguments), path,
            {**environment(), **step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            outputs,
        )
        for rank, arguments in enumerate(tasks)
    ]  # fmt: skip
    for fork in forks:
        fork.join(240)
        fork.kill()
    return [fork.exitcode for fork in forks], outputs[1].read_text()


def test_tasks_train_together(run, tmp_path: Path) -> None:
    """The same, bit for bit, as two processes of torchrun."""
    training = ("train.py", *TINY, *MADE_UP, "data.source.train_images=144", "epochs=1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    codes, errors = srun(tmp_path, training, training)
    assert codes == [0, 0], errors
    (result,) = tmp_path.glob("runs/*/*/result.json")
    assert json.loads(result.read_text())["hardware"]["processes"] == 2
    run(*training, processes=2, cwd=elsewhere)
    (other,) = elsewhere.glob("runs/*/*/result.json")
    assert_same_run(result.parent, other.parent)


def test_tasks_with_arguments_of_their_own_are_refused(tmp_path: Path) -> None:
    codes, errors = srun(tmp_path, *[("train.py", *TINY, f"seed={seed}") for seed in range(2)])
    assert codes == [1, 1]
    assert "error: expected one run of all 2 processes, got 2: runs/" in errors
    assert not (tmp_path / "runs").exists()


def test_a_sweep_in_each_task_is_refused(tmp_path: Path) -> None:
    sweep = ("train.py", "-m", "width=0.35,0.5")
    codes, errors = srun(tmp_path, sweep, sweep)
    assert codes == [1, 1]
    assert "error: a sweep (-m) can't run as several tasks of srun: " in errors
