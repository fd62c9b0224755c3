"""Commands of the project as a user types them, without the imports that each would begin with.

Most of a short command's time goes into importing torch, torchvision and timm. `run_command` forks
commands from a process that has imported them (the standard library's fork server), so that
hundreds of commands fit a suite. All else is theirs alone: arguments, folder, environment, output,
exit code. Commands of several processes get a fork for each rank, which meet where torchrun's do;
what a test asks of torchrun itself runs under torchrun.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

REPO = Path(__file__).resolve().parents[1]

os.environ["OMP_NUM_THREADS"] = "1"  # for the server, which reads it once, and for all commands
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["tests.commands", "mobilenext.main", "mobilenext.execution", "mobilenext.jobs.train",
     "mobilenext.jobs.evaluate", "mobilenext.jobs.export", "mobilenext.jobs.gradients",
     "mobilenext.jobs.loader_report",
     "torch.utils.tensorboard", "tests.preloaded"]
)  # fmt: skip


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
    torchrun: tuple[str, ...] | None = None,
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        *arguments: Script and arguments, see `command`.
        cwd: Folder that it runs in.
        processes: How many.
        torchrun: Options of torchrun, which then starts the processes; None: they are forks that
            find each other as torchrun's do.
        env: Variables beside those of `environment`.
        before: What the new process does first; it then comes from no server.
        timeout: Seconds that it may take.

    Returns:
        Exit code and output, of several processes together. If one fails, the others are ended,
        and the code is that of the first that failed.
    """
    line = command(*arguments, processes=processes, torchrun=torchrun or ())
    variables = {**environment(), **(env or {})}
    if torchrun is None and before is None and hasattr(os, "fork"):
        alone = command(*arguments)
        return _fork(alone, cwd, variables, timeout, processes)
    return subprocess.run(
        line, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=variables,
        preexec_fn=before,
    )  # fmt: skip


def _fork(
    line: list[str], cwd: Path, env: dict[str, str], timeout: float, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "stdout", Path(folder) / "stderr"
        store, variables = None, [env]
        if processes > 1:
            # Held here, as torchrun's agent does: the port is found by who listens on it.
            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            variables = [
                {**env, **_torchrun_says(r, processes, store.port)} for r in range(processes)
            ]
        ranks = [start_fork(line, cwd, own, outputs) for own in variables]
        try:
            code = _ended(ranks, timeout)
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
        del store
        stdout, stderr = (output.read_text() for output in outputs)
    if code is None:
        raise subprocess.TimeoutExpired(line, timeout, stdout, stderr)
    return subprocess.CompletedProcess(line, code, stdout, stderr)


def _torchrun_says(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables by which a process that torchrun has started finds the others."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip


GRACE = 30
"""Seconds in which the others have to end when one process has failed, as under torchrun."""


def _ended(ranks: list[Any], timeout: float) -> int | None:
    """Wait for all, end the others once one has failed; the first failure's exit code, or None."""
    until, code = time.monotonic() + timeout, 0
    running = list(ranks)
    while running:
        left = until - time.monotonic()
        if left <= 0:
            return code or None
        wait([rank.sentinel for rank in running], left)
        for rank in [rank for rank in running if rank.exitcode is not None]:
            running.remove(rank)
            if rank.exitcode and not code:
                code, until = rank.exitcode, time.monotonic() + GRACE
                for other in running:
                    other.terminate()
    return code


def start_fork(
    line: list[str], cwd: Path, env: dict[str, str], outputs: tuple[Path, Path]
) -> BaseProcess:
    """Start a command of one process, see `command`, as a fork of the server.

    Args:
        line: The command; its interpreter is this one.
        cwd: Folder that it runs in.
        env: All its variables.
        outputs: Files, or terminals, that its standard output and error are appended to.
    """
    process = FORKS.Process(target=_become, args=(line[1:], cwd, env, outputs))
    process.start()
    return process


def _become(
    arguments: list[str], cwd: Path, env: dict[str, str], outputs: tuple[Path, Path]
) -> None:
    """In the forked process: what a new interpreter would do with these arguments."""
    for number, output in enumerate(outputs, start=1):
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    encoding, _, errors = env.get("PYTHONIOENCODING", "utf-8").partition(":")
    sys.stdout = open(1, "w", encoding=encoding, errors=errors or None, closefd=False)  # noqa: SIM115
    sys.stderr = open(  # noqa: SIM115
        2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False
    )
    os.chdir(cwd)
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
