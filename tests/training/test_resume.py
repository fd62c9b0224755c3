"""Real trainings that are killed end as if nothing had happened, bit for bit; and torchrun's part.

Real processes, real signals. Where a run is killed is drawn from a seed, which failures print;
MOBILENEXT_KILL_SEED chooses another one. What a run promises is tried far more often, on a loop of
milliseconds, in `test_run`.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import REPO, command, environment, run_command
from tests.compare import assert_same_run
from tests.composed import TINY
from tests.kill_at import PLACES, draw, kill_again_and_again

RECIPE = (*TINY, "data.global_batch_size=288", "epochs=2", "ema_decay=0.8",
          "augment.mixup=0.2", "runtime.log_every=2")  # fmt: skip
OFTEN = ("checkpoint.every_steps=2", "checkpoint.max_share=1")
TRAINING = ("train", *RECIPE, *OFTEN)
MOST_CALLS = {  # within a session of 8 steps that saves after every second one
    "before a step": 8, "in evaluation": 8, "before a save": 5, "within the content": 5,
    "before the flush": 20, "before verifying": 5, "before a link": 8, "before a rename": 15,
    "before a report": 10, "before the result": 1,
}  # fmt: skip

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def only_folder(path: Path) -> Path:
    (sessions_file,) = (path / "runs").glob("*/*/sessions.jsonl")
    return sessions_file.parent


def finished(path: Path, processes: int) -> Path:
    """The folder of a run that nothing has happened to, and that saved at each epoch only."""
    done = run_command("train.py", *RECIPE, cwd=path, processes=processes)
    assert done.returncode == 0, done.stderr
    return only_folder(path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("alone"), 1)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("together"), 2)


def sessions(path: Path) -> list[dict]:
    lines = (only_folder(path) / "sessions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_place_to_die_is_drawn() -> None:
    assert MOST_CALLS.keys() == PLACES.keys()
    assert {place for place, _ in draw(list(PLACES), 20, MOST_CALLS)} == set(PLACES)


def test_killed_within_training_evaluation_and_a_save(run, tmp_path: Path, alone: Path) -> None:
    places = ["before a step", "in evaluation", "within the content", "before a rename"]
    kill_again_and_again(run, tmp_path, draw(places, 3, MOST_CALLS), *TRAINING)
    assert_same_run(only_folder(tmp_path), alone)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_killed_anywhere(run, tmp_path: Path, alone: Path, part: int) -> None:
    points = draw(list(PLACES), 24, MOST_CALLS)[6 * part : 6 * (part + 1)]
    kill_again_and_again(run, tmp_path, points, *TRAINING)
    assert_same_run(only_folder(tmp_path), alone)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_two_processes_killed_anywhere(run, tmp_path: Path, together: Path, part: int) -> None:
    points = draw(list(PLACES), 24, MOST_CALLS)[6 * part : 6 * (part + 1)]
    kill_again_and_again(run, tmp_path, points, *TRAINING, processes=2)
    assert_same_run(only_folder(tmp_path), together)


@pytest.fixture(scope="module")
def toy_together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy")
    done = run_command("tests/toy_loop.py", cwd=path, processes=2)
    assert done.returncode == 0, done.stderr
    return only_folder(path)


@pytest.mark.slow
def test_torchrun_restarts_after_a_killed_rank(run, tmp_path: Path, toy_together: Path) -> None:
    """One command: torchrun starts both ranks again, and they go on where they were."""
    run("tests/kill_at.py", "before a step", 17, "toy", processes=2,
        torchrun=("--max-restarts=1",), env={"KILL_RANK": "1"})  # fmt: skip
    assert_same_run(only_folder(tmp_path), toy_together)
    starts = [row for row in sessions(tmp_path) if row["event"] == "start"]
    assert [row["step"] for row in starts] == [0, 16]  # asked for after 15, agreed on one later


@pytest.mark.slow
def test_those_who_wait_for_a_dead_rank_end(run, tmp_path: Path, toy_together: Path) -> None:
    """As with NCCL, which does not tell them; long before torchrun's patience has ended."""
    begun = time.monotonic()
    done = run("tests/kill_at.py", "before a step", 17, "toy", "timeout=0.3", "seconds=0.1",
               processes=2, torchrun=("--max-restarts=1", "--shutdown-timeout=120"),
               env={"KILL_RANK": "1", "OTHERS_HANG": "1"})  # fmt: skip
    assert time.monotonic() - begun < 100
    said = next(line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert said.startswith("error: another process is lost; stopped or dead: rank 1 (")
    assert said.endswith("). The same command goes on from the last checkpoint")
    assert "nothing has moved" not in done.stderr
    assert_same_run(only_folder(tmp_path), toy_together)


@pytest.mark.slow
def test_those_who_wait_for_a_dead_rank_0_end(tmp_path: Path) -> None:
    """Without torchrun: rank 0 had the store, and nobody sends a signal."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    killed = command("tests/kill_at.py", "before a step", 17, "toy", "timeout=0.3", "seconds=0.1")
    ranks = [
        subprocess.Popen(
            killed, cwd=tmp_path, text=True,
            stderr=subprocess.PIPE if rank else subprocess.DEVNULL,
            env={**environment(), "OTHERS_HANG": "1", "RANK": str(rank), "WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        )
        for rank in range(2)
    ]  # fmt: skip
    _, said = ranks[1].communicate(timeout=100)
    assert ranks[0].wait() == -signal.SIGKILL
    assert ranks[1].returncode == 1
    assert "error: another process is lost; rank 0 took the store along" in said


@contextlib.contextmanager
def started(
    path: Path, *arguments: str, processes: int = 1, torchrun: tuple[str, ...] = ()
) -> Iterator[Any]:
    """A command in a process group of its own, killed as a whole in the end."""
    with subprocess.Popen(
        command(*arguments, processes=processes, torchrun=torchrun),
        cwd=path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            kill_tree(process.pid)


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


def kill_tree(pid: int) -> None:
    """SIGKILL to a command and its processes; torchrun's have process groups of their own."""
    for group in (pid, *children(pid)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def wait_for_step(path: Path, step: int, process: subprocess.Popen) -> None:
    """Until metrics.jsonl tells of a step."""
    for _ in range(600):
        lines = [
            json.loads(line)
            for file in path.glob("runs/*/*/metrics.jsonl")
            for line in file.read_text().splitlines()
            if line.endswith("}")
        ]
        if any(line["step"] >= step for line in lines):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("no step within a minute")


@pytest.mark.slow
def test_a_signal_ends_a_training(run, tmp_path: Path, alone: Path) -> None:
    """All processes of the group get it, as from a scheduler or Ctrl-C."""
    more = ("data.workers=1", "checkpoint.every_minutes=null")
    with started(tmp_path, "train.py", *RECIPE, *more) as process:
        wait_for_step(tmp_path, 2, process)
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "preempted by SIGTERM: the checkpoint of step" in err
    assert "Traceback" not in err
    end = sessions(tmp_path)[-1]
    assert (end["event"], end["reason"], end["signal"]) == ("end", "preempted", "SIGTERM")
    last = torch.load(only_folder(tmp_path) / "last.pt", weights_only=True)
    assert last["step"] == end["step"]
    run("train.py", *RECIPE)
    assert_same_run(only_folder(tmp_path), alone)


def test_torchrun_passes_a_signal_on(run, tmp_path: Path, toy_together: Path) -> None:
    """To torchrun alone; both ranks save at the same step."""
    more = ("--shutdown-timeout=60", "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1")
    toy = ("tests/toy_loop.py", "seconds=0.1", "every_steps=100")
    with started(tmp_path, *toy, processes=2, torchrun=more) as process:
        wait_for_step(tmp_path, 4, process)
        process.send_signal(signal.SIGUSR1)
        _, err = process.communicate(timeout=90)
    assert process.returncode != 0
    assert err.count("preempted by SIGUSR1 at") == 2, err
    end = sessions(tmp_path)[-1]
    assert (end["reason"], end["signal"]) == ("preempted", "SIGUSR1")
    last = torch.load(only_folder(tmp_path) / "last.pt", weights_only=True)
    assert last["step"] == end["step"]
    run("tests/toy_loop.py", processes=2)
    assert_same_run(only_folder(tmp_path), toy_together)


@pytest.mark.slow
def test_processes_end_when_torchrun_was_killed(tmp_path: Path) -> None:
    """They would hold the folder, and nobody would end them."""
    toy = ("tests/toy_loop.py", "epochs=2000", "seconds=0.1", "timeout=0.2", "log_every=1")
    with started(tmp_path, *toy, processes=2) as process:
        wait_for_step(tmp_path, 1, process)
        ranks = children(process.pid)
        process.kill()
        for _ in range(600):
            if sessions(tmp_path)[-1]["event"] == "end":
                break
            time.sleep(0.1)
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    end = sessions(tmp_path)[-1]
    assert (end["reason"], end["signal"]) == ("preempted", "the death of torchrun")
    assert torch.load(only_folder(tmp_path) / "last.pt", weights_only=True)["step"] == end["step"]


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """Also where no Python instruction is executed, as in a collective."""
    script = tmp_path / "stuck.py"
    script.write_text(
        "import ctypes, sys\n"
        f"sys.path.insert(0, {str(REPO)!r})\n"
        "from mobilenext.runtime.signals import StopSignals\n"
        "with StopSignals() as signals:\n"
        "    print('ready', flush=True)\n"
        "    libc = ctypes.CDLL(None)\n"
        "    while True:\n"
        "        left = 60\n"
        "        while left:\n"
        "            left = libc.sleep(left)\n"
    )
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # the same wish, passed on by a launcher
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 128 + signal.SIGTERM
        assert process.stderr is not None
        assert "SIGTERM after SIGINT: stopped at once" in process.stderr.read()


@pytest.mark.slow
def test_a_hung_rank_is_named(tmp_path: Path) -> None:
    toy = ("tests/toy_loop.py", "epochs=2000", "seconds=0.05", "timeout=0.1", "log_every=1")
    with started(tmp_path, *toy, processes=2, torchrun=("--shutdown-timeout=1",)) as process:
        wait_for_step(tmp_path, 40, process)  # by then the watchdogs have met
        ranks = {
            dict(
                entry.split("=", 1)
                for entry in Path(f"/proc/{pid}/environ").read_text().split("\0")
                if "=" in entry
            ).get("RANK"): pid
            for pid in children(process.pid)
        }
        os.kill(ranks["1"], signal.SIGSTOP)
        assert process.stderr is not None
        told = next(line for line in process.stderr if "nothing has moved" in line)
        os.kill(ranks["1"], signal.SIGKILL)  # torchrun would, after half a minute
        _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert told.startswith("error: nothing has moved for")
    assert "stopped or dead: rank 1 (" in told
    assert f"process {ranks['1']} on" in told
    assert "nothing has moved" not in err
