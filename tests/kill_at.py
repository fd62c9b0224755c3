"""Run train.py or the toy loop in a process that kills itself with SIGKILL at a chosen place.

    python kill_at.py PLACE COUNT train|toy [its arguments]

PLACE is a key of `PLACES`; the process dies when it comes there for the COUNT-th time. In a job
of several only rank KILL_RANK (default 0) dies, and only in the first of torchrun's attempts.
"""

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mobilenext.files as files
import mobilenext.metrics.classification as classification
import mobilenext.training.checkpoint as checkpoint
from mobilenext.config import TrainConfig
from mobilenext.jobs.train import train
from mobilenext.main import launch
from mobilenext.training.checkpoint import Checkpoints
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.step import Update
from tests import toy_loop

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


def dying(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The function, the COUNT-th call of which is the process's last act."""
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            if function is WRITE:
                content, file = arguments
                file.write(content.getvalue()[:100_000])
                file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return counted


if __name__ == "__main__":
    place, count = sys.argv[1], int(sys.argv[2])
    loop = sys.argv[3]
    sys.argv = [f"{loop}.py", *sys.argv[4:]]
    mine = os.environ.get("RANK", "0") == os.environ.get("KILL_RANK", "0")
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if mine and first:
        owner, name = PLACES[place]
        function = getattr(owner, name)
        setattr(owner, name, dying(function, count))
    if loop == "toy":
        toy_loop.main()
    else:
        launch(train, TrainConfig, "train")
