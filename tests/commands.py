"""Commands of the project as a user types them, without the imports that each would begin with.

Most of a short command's time goes into importing torch, torchvision and timm. `run_command` forks
commands of one process from a process that has imported them (the standard library's fork server),
so that hundreds of commands fit a suite. All else is theirs alone: arguments, folder, environment,
output, exit code.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]

os.environ["OMP_NUM_THREADS"] = "1"  # for the server, which reads it once, and for all commands
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.commands", "mobilenext.main", "mobilenext.jobs.train"])


def command(*arguments: object, processes: int = 1, torchrun: tuple[str, ...] = ()) -> list[str]:
    """A command of the project, or any script of the repository, as a user types it."""
    script, *rest = [str(argument) for argument in arguments]
    launcher = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", *torchrun]
        launcher.append(f"--nproc-per-node={processes}")
    return [sys.executable, *launcher, str(REPO / script), *rest]


def environment() -> dict[str, str]:
    """The same tests everywhere: without CUDA (`gpu` tests have their own), one thread each."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def run_command(
    *arguments: object,
    cwd: Path,
    processes: int = 1,
    torchrun: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        *arguments: Script and arguments, see `command`.
        cwd: Folder that it runs in.
        processes: How many; with more than one under torchrun.
        torchrun: Options of torchrun.
        env: Variables beside those of `environment`.
        before: What the new process does first; it then comes from no server.
        timeout: Seconds that it may take.
    """
    line = command(*arguments, processes=processes, torchrun=torchrun)
    variables = {**environment(), **(env or {})}
    if processes == 1 and before is None and hasattr(os, "fork"):
        return _fork(line, cwd, variables, timeout)
    return subprocess.run(
        line, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=variables,
        preexec_fn=before,
    )  # fmt: skip


def _fork(
    line: list[str], cwd: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "stdout", Path(folder) / "stderr"
        process = FORKS.Process(target=_become, args=(line[1:], cwd, env, outputs))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(line, timeout)
        stdout, stderr = (output.read_text() for output in outputs)
    return subprocess.CompletedProcess(line, process.exitcode, stdout, stderr)


def _become(
    arguments: list[str], cwd: Path, env: dict[str, str], outputs: tuple[Path, Path]
) -> None:
    """In the forked process: what a new interpreter would do with these arguments."""
    for number, output in enumerate(outputs, start=1):
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
