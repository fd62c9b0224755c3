"""Sweeps of small commands: who runs where, what is passed over, how jobs end."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobilenext.errors import InputError
from mobilenext.sweeps.sweep import (
    Slot,
    Sweep,
    SweepJob,
    job_command,
    progress,
    share_out,
    summary,
)
from mobilenext.training.run_folder import RunFolder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")


@pytest.fixture(autouse=True)
def no_failures_left() -> Iterator[None]:
    Sweep.failures.clear()
    yield
    Sweep.failures.clear()


def job(
    tmp_path: Path, number: int, code: str, *arguments: object, folder: Path | None = None
) -> SweepJob:
    command = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    log = tmp_path / "logs" / f"{number}.log"
    return SweepJob(
        number, f"n={number}", command, log, None if folder is None else RunFolder(folder)
    )


WHERE = """
import json, os, pathlib, sys, time
began = time.monotonic()
time.sleep(0.7)
visible, cores = os.environ.get("CUDA_VISIBLE_DEVICES"), sorted(os.sched_getaffinity(0))
pathlib.Path(sys.argv[1]).write_text(json.dumps([visible, cores, began, time.monotonic()]))
"""


def test_jobs_at_once_have_devices_and_cores_of_their_own(tmp_path: Path) -> None:
    slots = share_out(2, ["0", "1", "GPU-a", "GPU-b"], per_job=2)
    assert [slot.devices for slot in slots] == [("0", "1"), ("GPU-a", "GPU-b")]
    jobs = [job(tmp_path, number, WHERE, tmp_path / f"{number}") for number in range(4)]
    assert Sweep(jobs, slots).run() is None
    assert [job.state for job in jobs] == ["finished"] * 4
    seen = [json.loads((tmp_path / f"{number}").read_text()) for number in range(4)]
    assert {visible for visible, *_ in seen} == {"0,1", "GPU-a,GPU-b"}
    all_cores = os.sched_getaffinity(0)
    for one in seen:
        assert set(one[1]) <= all_cores
        for other in seen:
            overlap = one[2] < other[3] and other[2] < one[3]
            if one is not other and overlap:
                assert one[0] != other[0]
                if len(all_cores) > 1:
                    assert not set(one[1]) & set(other[1])
    running_at = [sum(a[2] <= b[2] < a[3] for a in seen) for b in seen]
    assert max(running_at) == 2


def test_too_few_devices() -> None:
    with pytest.raises(InputError, match=r"2 jobs at once on 2 CUDA devices each: there are 3"):
        share_out(2, ["0", "1", "2"], per_job=2)
    assert share_out(3, [], per_job=1)[0].devices is None
    assert share_out(1, ["0", "1"], per_job=1) == [Slot(("0",))]


def test_a_failing_job_stops_no_other_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        job(tmp_path, 0, "import sys; print('error: no such data'); print('bye'); sys.exit(1)"),
        job(tmp_path, 1, "import os; os.kill(os.getpid(), 9)"),
        job(tmp_path, 2, "print('well')"),
        SweepJob(3, "n=3", ["/nowhere"], tmp_path / "3.log", problem="error: width=0"),
    ]
    assert Sweep(jobs, [Slot()]).run() is None
    assert [job.state for job in jobs] == ["failed", "failed", "finished", "failed"]
    assert Sweep.failures == ["n=0", "n=1", "n=3"]
    told = capsys.readouterr().out
    assert "sweep of 4 jobs: 1 finished, 3 failed" in told
    assert "#0 n=0: failed: exit code 1: error: no such data" in told
    assert f"log: {jobs[0].log}" in told
    assert "#1 n=1: failed: killed by SIGKILL" in told
    assert "#3 n=3: failed: error: width=0" in told


def test_the_lines_of_a_summary_are_aligned(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create("")
    folder.write_result({"top1": 50.0})
    jobs = [
        SweepJob(n, label, [], tmp_path / "log", folder, state="finished")
        for n, label in ((9, "width=1"), (10, "width=0.35"))
    ]
    assert summary(jobs).splitlines() == [
        "sweep of 2 jobs: 2 finished",
        f"#9 width=1:     finished  top-1 50.00 %  {tmp_path}",
        f"#10 width=0.35: finished  top-1 50.00 %  {tmp_path}",
    ]


FAILS_TWICE = """
import pathlib, sys
tries = pathlib.Path(sys.argv[1])
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
sys.exit(0 if len(tries.read_text()) > 2 else 1)
"""


@pytest.mark.parametrize(("retries", "state"), [(1, "failed"), (2, "finished")])
def test_retries(tmp_path: Path, retries: int, state: str) -> None:
    one = job(tmp_path, 0, FAILS_TWICE, tmp_path / "tries")
    Sweep([one], [Slot()], retries).run()
    assert one.state == state
    assert len((tmp_path / "tries").read_text()) == retries + 1


def test_finished_folders_are_passed_over_and_equal_jobs_run_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "done")
    folder.create("")
    folder.write_result({"top1": 50.0})
    code = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1]); folder.mkdir()
time.sleep(0.5)
(folder / "result.json").write_text(json.dumps({"top1": 60.0}))
"""
    done = job(tmp_path, 0, "raise SystemExit(1)", folder=folder.path)
    twins = [job(tmp_path, n, code, tmp_path / "new", folder=tmp_path / "new") for n in (1, 2)]
    Sweep([done, *twins], [Slot(), Slot()]).run()
    assert [one.state for one in (done, *twins)] == ["finished"] * 3
    assert [one.attempts for one in (done, *twins)] == [0, 1, 0]
    assert progress(done)[1] == "finished earlier  top-1 50.00 %"


def test_a_folder_in_use_is_waited_for(tmp_path: Path) -> None:
    from tests.training.test_run_folder import hold

    folder = tmp_path / "busy"
    with hold(folder) as other:
        assert other.stdout is not None
        child = int(other.stdout.readline())
        assert RunFolder(folder).in_use()
        code = f"import os; os.kill({other.pid}, 9)"
        busy = job(tmp_path, 0, "pass", folder=folder)
        try:
            Sweep([busy, job(tmp_path, 1, code)], [Slot()]).run()
        finally:
            os.kill(child, 9)
            other.kill()
    assert (busy.state, busy.attempts) == ("finished", 1)
    assert not RunFolder(folder).in_use()
    assert not RunFolder(tmp_path / "none").in_use()


def test_commands() -> None:
    arguments = ["train.py", "width=0.5"]
    assert job_command(arguments) == [sys.executable, *arguments]
    one_node = job_command(arguments, processes=4)
    assert one_node[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--nproc-per-node=4", "--standalone"} <= set(one_node)
    two = job_command(arguments, processes=4, nodes=2, address="host1:29500", number=3)
    assert {"--nnodes=2", "--rdzv-endpoint=host1:29503", "--rdzv-id=job-3"} <= set(two)
    assert two[-2:] == arguments
    with pytest.raises(InputError, match="expected host:port"):
        job_command(arguments, nodes=2)


def test_progress_of_a_running_job(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    one = SweepJob(0, "n=0", [], tmp_path / "log", folder, epochs=8, state="running")
    assert progress(one) == (0, "running")
    pace = {"images_per_second": 1234.5, "seconds_left": 61.0}
    for row in (
        {"kind": "epoch", "epoch": 2, "step": 20, **pace},
        {"kind": "val", "epoch": 2, "step": 20, "top1": 12.345},
        {"kind": "train", "epoch": 3, "step": 25, "top1": 50.0, **pace},
    ):
        folder.append_metrics(row)
    with folder.metrics.open("a") as file:
        file.write('{"kind": "tr')
    text = "epoch 2/8  top-1 12.35 %  1,234 images/s  left 1 min 01 s"
    assert progress(one) == (2, text.replace("12.35", f"{12.345:.2f}"))


def test_many_lines_are_not_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(3000):
        folder.append_metrics({"kind": "train", "epoch": 1, "step": step, "loss": 0.5})
    rows = folder.newest_metrics(3)
    assert [row["step"] for row in rows] == [2997, 2998, 2999]


def test_logs_that_cannot_be_written_fail_their_jobs_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [job(tmp_path, number, "pass") for number in range(3)]
    (tmp_path / "a file").write_text("")
    jobs[0].log = tmp_path / "a file" / "0.log"
    jobs[1].log = tmp_path / "a folder"
    jobs[1].log.mkdir()
    assert Sweep(jobs, [Slot()]).run() is None
    assert [one.state for one in jobs] == ["failed", "failed", "finished"]
    assert "could not be started with its log" in jobs[0].note
    assert Sweep.failures == ["n=0", "n=1"]
    assert "1 finished, 2 failed" in capsys.readouterr().out


def test_a_log_that_is_gone_ends_no_sweep(tmp_path: Path) -> None:
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).unlink(); sys.exit(3)"
    jobs = [job(tmp_path, 0, code, tmp_path / "logs" / "0.log"), job(tmp_path, 1, "pass")]
    assert Sweep(jobs, [Slot()]).run() is None
    assert [one.state for one in jobs] == ["failed", "finished"]
    assert jobs[0].note.startswith("exit code 3: its log can't be read")


def test_a_result_that_cannot_be_read_ends_no_sweep(tmp_path: Path) -> None:
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{')"
    folder = tmp_path / "run"
    folder.mkdir()
    jobs = [job(tmp_path, 0, code, folder / "result.json", folder=folder), job(tmp_path, 1, "pass")]
    assert Sweep(jobs, [Slot()]).run() is None
    assert [one.state for one in jobs] == ["failed", "finished"]
    assert "is not JSON" in jobs[0].note
