"""A job in this process: torch's settings, the other processes, memory, and what runs out.

Importing it loads torch; `main`, which imports it once a config is whole, does not.
"""

import sys
from collections.abc import Callable
from typing import Any

from mobilenext import program
from mobilenext.config import HasRun, RuntimeConfig
from mobilenext.errors import InputError, first_line
from mobilenext.runtime.distributed import Process, choose_device, process_group
from mobilenext.runtime.memory import is_out_of_memory, keep_freed_memory
from mobilenext.runtime.precision import resolve_precision
from mobilenext.runtime.torch_settings import configure_torch
from mobilenext.sweeps.submitit_tasks import (
    in_submitit_task,
    join_submitit_tasks,
    requeued_if_preempted,
)

Job = Callable[[Any, Process], dict[str, Any]]


def execute(
    job: Job, config: Any, typed_again: list[str], started_as: str | None
) -> dict[str, Any]:
    """Run a job with its config, together with the other processes that were started for it.

    Args:
        job: The function; it is called as `job(config, process)`.
        config: The job's dataclass.
        typed_again: The command's script and overrides, for the result of a submitit task.
        started_as: As `program.start_as` takes it, for the same.

    Returns:
        The job's result.

    Raises:
        InputError: There is no such device, memory ran out, or the processes were given
            different runs.
    """
    runtime = getattr(config, "runtime", None) or RuntimeConfig(device="cpu")
    configure_torch(runtime.threads, runtime.deterministic)
    if in_submitit_task():
        join_submitit_tasks()
        # What a result says of its command should be of use to whoever reads it.
        sys.argv = typed_again
        program.start_as(started_as)
    with process_group(runtime.device, runtime.timeout_minutes) as process:
        # Resolved before the run folder is named, since it decides the result.
        runtime.precision = resolve_precision(runtime.precision, process.device)
        _check_that_all_do_the_same(config, process)
        if process.device.type == "cpu":
            keep_freed_memory()
        with requeued_if_preempted(process):
            try:
                return job(config, process)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                key = getattr(config, "key_of_pass", "runtime.micro_batch")
                raise InputError(
                    f"out of memory on {process.device}: {first_line(error)}. In training lower "
                    f"data.global_batch_size, or set {key} to a part of it (gradients "
                    "are accumulated); in evaluation lower data.eval_batch_size"
                ) from error


def _check_that_all_do_the_same(config: Any, process: Process) -> None:
    """Raise `InputError` if the processes were given different runs, as tasks of srun may be."""
    if not isinstance(config, HasRun) or not config.leaves_run:
        return
    runs = dict.fromkeys(map(str, process.gather(config.run_path)))
    if len(runs) > 1:
        raise InputError(
            f"expected one run of all {process.world_size} processes, got {len(runs)}: "
            f"{', '.join(list(runs)[:4])}. They train together, so each needs the same arguments; "
            "runs of their own are started one by one (srun --ntasks=1), or by a sweep (-m)"
        )


def precision_here(runtime: RuntimeConfig) -> str:
    """The precision that other processes on this machine will compute in.

    Raises:
        InputError: There is no such device.
    """
    return resolve_precision(runtime.precision, choose_device(runtime.device, local_rank=0))
