"""How this program was started, and how commands and values are typed.

`python train.py` and `python scripts/evaluate.py` in a checkout, `mobilenext train` or
`python -m mobilenext train` anywhere; and whether somebody looks on. A leaf that every room may
import.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

_job: str | None = None


def has_terminal() -> bool:
    """Whether standard error is a terminal that can write a line anew."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def columns_of(stream: TextIO) -> int:
    """Width of the terminal that a stream writes to; some don't know theirs."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    given = os.environ.get("COLUMNS", "")
    return columns or (int(given) if given.isdecimal() and int(given) else 80)


def folded(text: str, stream: TextIO) -> str:
    """A text whose lines fit the terminal that a stream writes to; as it is where there is none.

    Lines are broken at two spaces, else at one, and go on below, indented. A path stays whole, and
    so does a line that is indented already, as commands to copy are.
    """
    if not stream.isatty():
        return text
    columns = columns_of(stream) - 1  # some terminals wrap a line that is as wide as they are
    return "\n".join(_folded(line, columns) for line in text.split("\n"))


def _folded(line: str, columns: int) -> str:
    if len(line) <= columns or line.startswith(" "):
        return line
    pieces: list[tuple[str, str]] = []
    for part in line.split("  "):
        words = [part] if len(part) <= columns - 2 else re.split(r" (?!%)", part)
        pieces += zip(["  ", *[" "] * len(words)], words, strict=False)
    lines = [pieces[0][1]]
    for between, piece in pieces[1:]:
        if len(lines[-1] + between + piece) <= columns:
            lines[-1] += between + piece
        else:
            lines.append(f"  {piece}")
    return "\n".join(lines)


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
        if _is_installed_command():
            return f"{_typed('mobilenext', Path(sys.argv[0]))} {job or _job}"
        return f"{python()} -m mobilenext {job or _job}"
    if job is None:
        return f"{python()} {shlex.quote(sys.argv[0])}"
    return f"{python()} {_script(job)}"


def _script(job: str) -> str:
    """The script of another job as it is typed here: beside the one that was started."""
    name = "train.py" if job == "train" else f"scripts/{job}.py"
    started = Path(sys.argv[0]).absolute()
    checkout = started.parent.parent if started.parent.name == "scripts" else started.parent
    path = checkout / name
    if not path.exists() or checkout == Path.cwd():
        return name
    return shlex.quote(str(path))


def _is_installed_command() -> bool:
    return Path(sys.argv[0]).stem == "mobilenext"


def python() -> str:
    """This Python as it is typed here: a path where its name is another one's or none."""
    return _typed(Path(sys.executable).name, Path(sys.executable))


def beside_python(name: str) -> str:
    """A command that is installed with this Python, as it is typed here."""
    return _typed(name, Path(sys.executable).with_name(name))


def _typed(name: str, path: Path) -> str:
    found = shutil.which(name)
    if found is not None and os.path.abspath(found) == os.path.abspath(path):
        return name
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


def as_typed(value: Any) -> str:
    """A value as it is typed in a command: null, true, [1,2], {a:1}."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{as_typed(one)}' for key, one in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(as_typed, value))}]"
    return str(value)


def fraction(value: float) -> str:
    """A multiplier as people write it: 1, 1/3, or 0.37."""
    near = Fraction(value).limit_denominator(64)
    if abs(float(near) - value) < 1e-9 and near.numerator == 1:
        return str(near)
    return f"{value:g}"


def command_line() -> str:
    """The command that started this process, as it could be typed again (without torchrun)."""
    if _job is not None:
        name = "mobilenext" if _is_installed_command() else "python -m mobilenext"
        return " ".join([f"{name} {_job}", *map(shlex.quote, sys.argv[1:])])
    return shlex.join([Path(sys.executable).name, *sys.argv])


def launched_by_torchrun() -> bool:
    """Whether torchrun (or something that sets the same variables) started this process.

    `runtime.srun` sets them for the tasks of srun.
    """
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ
