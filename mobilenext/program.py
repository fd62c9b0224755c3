"""How this program was started: what Python is given to start it again, and how commands are named.

`python train.py` and `python scripts/evaluate.py` in a checkout, `mobilenext train` or
`python -m mobilenext train` anywhere. A leaf that every room may import.
"""

import shlex
import sys
from pathlib import Path

_job: str | None = None


def started_as() -> str | None:
    """Name of the job of a command `mobilenext JOB`; None if a script was started."""
    return _job


def start_as(job: str | None) -> None:
    """Note that this is `mobilenext JOB`, or a script (None)."""
    global _job
    _job = job


def start_again() -> list[str]:
    """What Python (or torchrun) is given to start this program: a script, or a module and a job."""
    return [sys.argv[0]] if _job is None else ["-m", "mobilenext", _job]


def command(job: str | None = None) -> str:
    """A command as it is typed here, without arguments.

    Args:
        job: Its job's name; None: this program.
    """
    if _job is not None:
        program = "mobilenext" if Path(sys.argv[0]).stem == "mobilenext" else "python -m mobilenext"
        return f"{program} {job or _job}"
    if job is None:
        return f"python {Path(sys.argv[0]).name}"
    return "python train.py" if job == "train" else f"python scripts/{job}.py"


def command_line() -> str:
    """The command that started this process, as it could be typed again (without torchrun)."""
    if _job is not None:
        return " ".join([command(), *map(shlex.quote, sys.argv[1:])])
    return shlex.join([Path(sys.executable).name, *sys.argv])
