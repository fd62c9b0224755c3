"""The way in of every command: finds its job, and says so in a line if a package is missing.

Nothing is loaded until a job is started.
"""

import importlib
import pkgutil
import shlex
import sys
from pathlib import Path
from typing import Any

import mobilenext.jobs


def job_names() -> list[str]:
    """Names of all jobs: those of the modules in `mobilenext.jobs`."""
    return sorted(module.name for module in pkgutil.iter_modules(mobilenext.jobs.__path__))


def find_job(name: str) -> tuple[Any, type]:
    """A job's function and its config's dataclass: `train` and `TrainConfig`, for instance."""
    module: Any = importlib.import_module(f"mobilenext.jobs.{name}")
    schema = "".join(word.capitalize() for word in name.split("_")) + "Config"
    return getattr(module, name), getattr(module, schema)


def start(job: str) -> None:
    """Run a job with the config that the command line describes; see `mobilenext.main.launch`.

    Args:
        job: Its name.
    """
    note = "loading torch ..." if sys.stderr.isatty() else ""
    sys.stderr.write(note)
    sys.stderr.flush()
    try:
        from mobilenext.main import launch

        found = find_job(job)
    except ModuleNotFoundError as error:
        if (error.name or "mobilenext").startswith("mobilenext"):
            raise
        raise SystemExit(_missing(error.name or "")) from None
    finally:
        sys.stderr.write("\r" + " " * len(note) + "\r" if note else "")
    launch(*found, job)


def _missing(package: str) -> str:
    """What to do about a package that this Python does not have."""
    said = (
        f"error: {package} is not installed for {sys.executable}, which runs this command (Python "
        f"{sys.version_info.major}.{sys.version_info.minor})"
    )
    here = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"
    if here.exists() and not sys.prefix.startswith(str(here.parents[1])):
        again = shlex.join([str(here), *sys.argv])
        return f"{said}; run  source {here.parent}/activate  first, or: {again}"
    return f"{said}; install what is missing with: {sys.executable} -m pip install -e ."
