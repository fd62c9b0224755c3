"""The commands from anywhere: `mobilenext train width=0.5`, or `python -m mobilenext train ...`."""

import ast
import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

import mobilenext.jobs
from mobilenext import program
from mobilenext.main import Job, launch


def job_names() -> list[str]:
    """Names of all jobs: those of the modules in `mobilenext.jobs`."""
    return sorted(module.name for module in pkgutil.iter_modules(mobilenext.jobs.__path__))


def find_job(name: str) -> tuple[Job, type]:
    """A job's function and its config's dataclass: `train` and `TrainConfig`, for instance."""
    module: Any = importlib.import_module(f"mobilenext.jobs.{name}")
    schema = "".join(word.capitalize() for word in name.split("_")) + "Config"
    return getattr(module, name), getattr(module, schema)


def usage() -> str:
    """What the command takes: all jobs with the first sentence about each."""
    lines = ["usage: mobilenext JOB [key=value ...]    (mobilenext JOB --help lists the keys)", ""]
    for name in job_names():
        path = Path(mobilenext.jobs.__path__[0]) / f"{name}.py"
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
        lines.append(f"  {name:<18}{about}")
    return "\n".join(lines)


def main() -> None:
    """Run the job that the first argument names."""
    given = sys.argv[1] if len(sys.argv) > 1 else "--help"
    name = given.replace("-", "_")
    if given in ("--help", "-h"):
        sys.stdout.write(f"{usage()}\n")
        return
    if name not in job_names():
        sys.stderr.write(f"error: unknown job {given!r}\n{usage()}\n")
        raise SystemExit(1)
    program.start_as(name)
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    launch(*find_job(name), name)


if __name__ == "__main__":
    main()
