"""Run a training or the toy loop in a process that kills itself with SIGKILL at a chosen place.

    python kill_at.py PLACE COUNT train|detect|search|toy [its arguments]

PLACE is a key of `PLACES`; the process dies when it comes there for the COUNT-th time. In a job
of several only rank KILL_RANK (default 0) dies, and only in the first of torchrun's attempts.
With OTHERS_HANG the others hang there, as they do for their devices when NCCL has lost a peer.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mobilenext.files as files
import mobilenext.metrics.classification as classification
import mobilenext.metrics.detection as detection
import mobilenext.training.checkpoint as checkpoint
from mobilenext.main import launch
from mobilenext.start import find_job
from mobilenext.training.checkpoint import Checkpoints
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.step import Update
from tests import toy_loop
from tests.commands import REPO

LOOPS = {"train": "train.py", "detect": "scripts/detect.py", "search": "scripts/search.py",
         "toy": "tests/toy_loop.py"}  # fmt: skip
SEED = int(os.environ.get("MOBILENEXT_KILL_SEED", "0"))

PLACES: dict[str, tuple[Any, str]] = {
    "before a step": (Update, "__call__"),
    "in evaluation": (classification, "ieee_float32"),
    "before a save": (Checkpoints, "save"),
    "within the content": (checkpoint, "_write_sealed"),
    "before the flush": (files.os, "fsync"),
    "before verifying": (checkpoint, "_read_sealed"),
    "before a link": (files.os, "link"),
    "before a rename": (files.Path, "replace"),
    "before a report": (RunFolder, "append_metrics"),
    "before the result": (RunFolder, "write_result"),
}


WRITE = checkpoint._write_sealed


def draw(places: list[str], number: int, most: dict[str, int]) -> list[tuple[str, int]]:
    """Places to die at, each with how often it is to be reached first; a function of `SEED`."""
    generator = random.Random(f"{SEED}:{places}:{number}")
    chosen = [places[i % len(places)] for i in range(number)]
    generator.shuffle(chosen)
    return [(place, generator.randint(1, most[place])) for place in chosen]


def kill_again_and_again(
    run: Callable[..., subprocess.CompletedProcess[str]],
    path: Path,
    points: list[tuple[str, int]],
    loop: str,
    *arguments: str,
    processes: int = 1,
) -> None:
    """Sessions of a run that each die at a point, then one that is left alone.

    Args:
        run: The fixture, which runs commands in `path`.
        path: The folder that gets the run's folder.
        points: Places to die at, and how often each is to be reached first.
        loop: Key of `LOOPS`.
        *arguments: The loop's.
        processes: Of each session; rank 0 dies.
    """
    shown = f"seed {SEED}, points {points}"
    for place, count in points:
        killed = ("tests/kill_at.py", place, count, loop, *arguments)
        done = run(*killed, processes=processes, ok=False)
        if processes == 1:
            # 0: the run was finished before the place was reached so often
            assert done.returncode in (-signal.SIGKILL, 0), f"{shown}: {done.stderr}"
        assert f"{REPO}/mobilenext" not in done.stderr, f"{shown}: {done.stderr}"  # no traceback
    done = run(LOOPS[loop], *arguments, processes=processes, ok=False)
    assert done.returncode == 0, f"{shown}: {done.stderr}"
    (sessions,) = path.glob("runs/*/*/sessions.jsonl")
    rows = [json.loads(line) for line in sessions.read_text().splitlines()]
    assert [row["reason"] for row in rows if row["event"] == "end"] == ["finished"], shown


def dying(function: Callable[..., Any], count: int, hangs: bool = False) -> Callable[..., Any]:
    """The function, the COUNT-th call of which is the process's last act, or never returns."""
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and hangs:
            time.sleep(600)
        if calls == count:
            if function is WRITE:
                content, file = arguments
                file.write(content.getvalue()[:100_000])
                file.flush()
                time.sleep(0.3)  # in which training goes on
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return counted


if __name__ == "__main__":
    place, count = sys.argv[1], int(sys.argv[2])
    loop = sys.argv[3]
    sys.argv = [f"{loop}.py", *sys.argv[4:]]
    mine = os.environ.get("RANK", "0") == os.environ.get("KILL_RANK", "0")
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    hangs = not mine and "OTHERS_HANG" in os.environ
    if (mine or hangs) and first:
        owner, name = PLACES[place]
        if (place, loop) == ("in evaluation", "detect"):
            owner = detection
        function = getattr(owner, name)
        setattr(owner, name, dying(function, count, hangs))
    if loop == "toy":
        toy_loop.main()
    else:
        job, schema = find_job(loop)
        launch(lambda: job, schema, loop)
