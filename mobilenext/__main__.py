"""The commands from anywhere: `mobilenext train width=0.5`, or `python -m mobilenext train ...`."""

import ast
import sys
from pathlib import Path

import mobilenext.jobs
from mobilenext import program
from mobilenext.start import job_names, start


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
    start(name)


if __name__ == "__main__":
    main()
