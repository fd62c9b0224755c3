"""The commands from anywhere: `mobilenext train width=0.5`, or `python -m mobilenext train ...`."""

import importlib
import pkgutil
import sys
from typing import Any

import mobilenext.jobs
from mobilenext.main import Job, launch


def job_names() -> list[str]:
    """Names of all jobs: those of the modules in `mobilenext.jobs`."""
    return sorted(module.name for module in pkgutil.iter_modules(mobilenext.jobs.__path__))


def find_job(name: str) -> tuple[Job, type]:
    """A job's function and its config's dataclass: `train` and `TrainConfig`, for instance."""
    module: Any = importlib.import_module(f"mobilenext.jobs.{name}")
    schema = "".join(word.capitalize() for word in name.split("_")) + "Config"
    return getattr(module, name), getattr(module, schema)


def main() -> None:
    """Run the job that the first argument names."""
    name = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else ""
    if name not in job_names():
        wanted = "" if name in ("", "__help", "_h") else f"unknown command {sys.argv[1]}\n"
        sys.stderr.write(f"{wanted}usage: mobilenext COMMAND [key=value ...]\n")
        sys.stderr.write("commands: " + ", ".join(job_names()) + "\n")
        raise SystemExit(2)
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    launch(*find_job(name), name)


if __name__ == "__main__":
    main()
