"""The way in of every command: finds its job, and says so in a line if a package is missing.

Nothing is loaded until a job is started.
"""

import importlib
import os
import pkgutil
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import mobilenext.jobs
from mobilenext.errors import InputError
from mobilenext.program import has_terminal

SPINS = "10000"
"""Rounds in which an idle thread of GNU OpenMP, torch's on Linux, looks for work before it sleeps.
Its 300,000 cost no less on a quiet machine; where another program has the core of the thread that
is waited for, they take the time that it would need (benchmarks/waiting.py)."""


def job_names() -> list[str]:
    """Names of all jobs: those of the modules in `mobilenext.jobs`."""
    return sorted(module.name for module in pkgutil.iter_modules(mobilenext.jobs.__path__))


def find_job(name: str) -> tuple[Callable[..., Any], type]:
    """A job's function and its config's dataclass: `train` and `TrainConfig`, for instance."""
    return getattr(_module(name), name), find_schema(name)


def find_schema(name: str) -> type:
    """The dataclass of a job's config; without loading torch where the job is not its only user."""
    import mobilenext.config

    schema = "".join(word.capitalize() for word in name.split("_")) + "Config"
    shared = getattr(mobilenext.config, schema, None)
    return shared or getattr(_module(name), schema)


def _module(name: str) -> ModuleType:
    with _note_while_loading(), _packages_needed():
        return importlib.import_module(f"mobilenext.jobs.{name}")


@contextmanager
def _packages_needed() -> Iterator[None]:
    """Raise `InputError` about a package that an import inside does not find."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "mobilenext":
            raise
        raise InputError(_missing(error.name)) from None


@contextmanager
def _note_while_loading() -> Iterator[None]:
    note = "loading torch ..." if has_terminal() else ""
    sys.stderr.write(note)
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\r" + " " * len(note) + "\r" if note else "")


def start(job: str) -> None:
    """Run a job with the config that the command line describes; see `mobilenext.main.launch`.

    Args:
        job: Its name.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    try:
        with _packages_needed():
            from mobilenext.main import launch
        launch(lambda: find_job(job)[0], find_schema(job), job)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        raise SystemExit(130) from None


def _missing(package: str) -> str:
    """What to do about a package that this Python does not have."""
    said = (
        f"{package} is not installed for {sys.executable}, which runs this command (Python "
        f"{sys.version_info.major}.{sys.version_info.minor})"
    )
    here = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"
    if here.exists() and not sys.prefix.startswith(str(here.parents[1])):
        again = shlex.join([str(here), *sys.argv])
        return f"{said}; run  source {here.parent}/activate  first, or: {again}"
    return f"{said}; install what is missing with: {sys.executable} -m pip install -e ."
