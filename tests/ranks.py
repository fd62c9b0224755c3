"""Jobs of several processes without torchrun: each rank is forked."""

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.commands import run_command


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(
    *arguments: object, cwd: Path, ranks: int, ok: bool = True, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in several processes to their end.

    Returns:
        Exit code and standard output of rank 0, and what all of them wrote to standard error.
    """
    port = free_port()

    def one(rank: int) -> subprocess.CompletedProcess[str]:
        variables = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        return run_command(*arguments, cwd=cwd, env={**variables, **(env or {})})

    with ThreadPoolExecutor(ranks) as pool:
        done = list(pool.map(one, range(ranks)))
    errors = "".join(part.stderr for part in done)
    if ok:
        assert [part.returncode for part in done] == [0] * ranks, done[0].stdout + errors
    return subprocess.CompletedProcess(done[0].args, done[0].returncode, done[0].stdout, errors)
