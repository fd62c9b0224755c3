"""Run train.py in a process that kills itself with SIGKILL at a chosen place.

    python kill_at.py PLACE COUNT [train.py's arguments]

PLACE is a key of `PLACES`; the process dies when it comes there for the COUNT-th time. In a job
of several only rank KILL_RANK (default 0) dies, and only in the first of torchrun's attempts.
"""

import os
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
    sys.argv = ["train.py", *sys.argv[3:]]
    mine = os.environ.get("RANK", "0") == os.environ.get("KILL_RANK", "0")
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if mine and first:
        owner, name = PLACES[place]
        function = getattr(owner, name)
        setattr(owner, name, dying(function, count))
    launch(train, TrainConfig, "train")
