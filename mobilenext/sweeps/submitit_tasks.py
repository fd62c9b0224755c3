"""The tasks of a job that Hydra's submitit launcher sent to SLURM, one for each device.

submitit starts them without torchrun, and tells each in variables of its own who it is. Its handler
of SIGUSR2 sends the job back into the queue at once; here the run saves first (`signals`), and then
the handler gets its signal.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mobilenext.errors import Preempted

if TYPE_CHECKING:  # it loads torch
    from mobilenext.runtime.distributed import Process

KILL_WAIT_SECONDS = 300.0
"""Time that a task waits after SIGTERM for the signal that may follow it."""


class Requeued(Preempted):
    """The job will run again by itself; all its tasks end with `exit_code`, leaving no result."""

    exit_code = 0


def in_submitit_task() -> bool:
    """Whether submitit started this process."""
    return "SUBMITIT_EXECUTOR" in os.environ


def make_importable(checkout: Path | None) -> None:
    """Have tasks find the project where it is not installed; they don't start from its scripts.

    Args:
        checkout: The folder around the package; None: it is installed. (In PYTHONPATH, all
            installed packages would come before the standard library.)
    """
    if checkout is None:
        return
    there = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(checkout) not in there:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*there, str(checkout)]))


def join_submitit_tasks() -> None:
    """Say in torchrun's variables who this task is, so that `process_group` finds its peers.

    Which devices it sees is left as it is: SLURM shows a task either all of its node's, or with
    gpus_per_task its own only (`distributed.choose_device` knows both).
    """
    if not in_submitit_task():
        return
    import submitit  # pyright: ignore[reportMissingImports] - an extra
    from submitit.helpers import (  # pyright: ignore[reportMissingImports]
        TorchDistributedEnvironment,
    )

    job = submitit.JobEnvironment()
    if job.num_tasks == 1:
        return
    # The variables of whoever submitted the job, inside an allocation say, are not the job's.
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if job.num_nodes == 1:  # whose name needs no address then
        os.environ["MASTER_ADDR"] = "127.0.0.1"


@contextmanager
def requeued_if_preempted(process: "Process") -> Iterator[None]:
    """Send a submitit job that was preempted inside back into the queue, once it has saved.

    Raises:
        Requeued: Instead of the `Preempted` of a job that will run again, on all processes.
    """
    try:
        yield
    except Preempted as end:
        if not in_submitit_task():
            raise
        # No task leaves before rank 0 has done it: SLURM may end them all when the first does.
        code = process.on_main(partial(_requeue, str(end.args[0])))
        if code is None:
            raise
        again = Requeued(*end.args)
        again.exit_code = code
        raise again from None


def _requeue(received: str) -> int | None:
    """Have the job run again if `received` asked for that.

    SIGTERM does not: scancel sends it as well. SLURM kills the task after it, and requeues the job
    itself if that was a preemption, but only a job that has not ended: so it waits.

    Returns:
        What the tasks have to exit with, or None if the job won't run again.
    """
    name = "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    number = signal.Signals[name]
    handler = signal.getsignal(number)
    if not callable(handler):
        return None
    try:
        if received == name:
            handler(number, None)
        elif received == "SIGTERM" and os.environ["SUBMITIT_EXECUTOR"] == "slurm":
            time.sleep(KILL_WAIT_SECONDS)  # the handler runs if its signal comes
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"warning: the job could not be requeued ({error})\n")
    except Exception as error:
        if type(error).__name__ != "UncompletedJobError":  # submitit's, the reason is in it
            raise
        sys.stderr.write(f"warning: {error}\n")
    return None
