"""`hydra/launcher=torchrun`: each job of a sweep runs in processes of its own.

Hydra finds launchers only in the namespace `hydra_plugins`, and imports all of them whenever any
Hydra program of the environment starts: heavy imports wait until a sweep does.
"""

import copy
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write


@dataclass
class TorchrunLauncherConfig:
    """Options of the launcher, `hydra.launcher.*`."""

    _target_: str = "hydra_plugins.mobilenext_torchrun.TorchrunLauncher"
    processes: int = 1
    """Processes of a job on each node; torchrun starts more than one."""
    devices: int | None = None
    """CUDA devices of a job; null: one for each of its processes."""
    jobs: int = 1
    """Number of jobs at once, on disjoint devices and processor cores."""
    retries: int = 0
    """Number of times that a failed job is started again; it goes on from its checkpoint."""
    nodes: int = 1
    """Machines of a job; the same sweep has to be started on each of them."""
    address: str | None = None
    """With several nodes: host:port of one of them; the next ports are used, too."""
    objective: str | None = None
    """Entry of result.json that a sweeper such as Optuna gets as a job's value."""


ConfigStore.instance().store(
    group="hydra/launcher", name="torchrun", node=TorchrunLauncherConfig, provider="mobilenext"
)


class TorchrunLauncher(Launcher):
    """See `TorchrunLauncherConfig`."""

    def __init__(
        self,
        processes: int,
        devices: int | None,
        jobs: int,
        retries: int,
        nodes: int,
        address: str | None,
        objective: str | None,
    ) -> None:
        self.processes, self.devices, self.jobs, self.retries = processes, devices, jobs, retries
        self.nodes, self.address, self.objective = nodes, address, objective

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over; the task runs elsewhere."""
        del task_function
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run jobs; those that fail are named in a summary, and in the exit code at the end.

        Raises:
            SystemExit: The options can't be (1), or a signal asked for the end (75).
        """
        from mobilenext.errors import UserError
        from mobilenext.main import (
            EXIT_PREEMPTED,
            refuse_sweep_under_torchrun,
            restore_full_error,
            show,
        )
        from mobilenext.sweeps.sweep import Sweep
        from mobilenext.training.endings import next_commands_of_sweep
        from mobilenext.training.progress import say

        restore_full_error()
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        try:
            refuse_sweep_under_torchrun()
            slots = self._slots()
            jobs, configs = self._plan(job_overrides, initial_job_idx)
        except UserError as error:
            show(error)
            raise SystemExit(1) from None
        some = "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"
        say(f"sweep of {some}, {min(len(slots), len(jobs))} at once")
        ended_by = Sweep(jobs, slots, self.retries).run()
        if ended_by is not None:
            sys.stderr.write(f"\n{ended_by}: the sweep ends; the same command goes on with it\n")
            raise SystemExit(EXIT_PREEMPTED)
        trained = [job for job in jobs if job.epochs is not None and job.state == "finished"]
        if self.objective is None and trained:
            say(next_commands_of_sweep(str(self.config.output_dir)))
        return [
            self._returned(job, config, overrides)
            for job, config, overrides in zip(jobs, configs, job_overrides, strict=True)
        ]

    def _slots(self) -> list[Any]:
        from mobilenext.errors import InputError
        from mobilenext.sweeps.sweep import share_out

        for key in ("processes", "jobs", "nodes"):
            if getattr(self, key) < 1:
                raise InputError(f"hydra.launcher.{key}={getattr(self, key)}: expected at least 1")
        if self.nodes > 1 and self.jobs > 1:
            raise InputError("hydra.launcher: several jobs at once need nodes=1")
        per_job = self.processes if self.devices is None else self.devices
        devices = self._cuda_devices()
        if devices and per_job < self.processes:
            raise InputError(
                f"hydra.launcher.devices={per_job}: expected at least one for each of the "
                f"{self.processes} processes"
            )
        return share_out(self.jobs, devices, per_job)

    def _cuda_devices(self) -> list[str]:
        """Those to share out; torch is loaded only where there may be some."""
        from mobilenext.runtime.cuda_driver import cuda_is_ruled_out

        device = str(OmegaConf.select(self.config, "runtime.device", default="auto"))
        if cuda_is_ruled_out() or not (device == "auto" or device.startswith("cuda")):
            return []
        from mobilenext.runtime.distributed import cuda_devices

        return cuda_devices()

    def _plan(
        self, job_overrides: Sequence[Sequence[str]], first: int
    ) -> tuple[list[Any], list[DictConfig]]:
        from mobilenext.config import typed
        from mobilenext.errors import UserError
        from mobilenext.main import run_folder_of
        from mobilenext.program import start_again
        from mobilenext.sweeps.sweep import SweepJob, job_command

        common = set(sys.argv[1:])
        place = "" if self.nodes == 1 else f"-{socket.gethostname()}"
        logs = Path(str(self.config.hydra.sweep.dir)) / "logs"
        jobs, configs = [], []
        for number, overrides in enumerate(job_overrides, first):
            config = self.hydra_context.config_loader.load_sweep_config(
                self.config, list(overrides)
            )
            with open_dict(config):
                config.hydra.job.id, config.hydra.job.num = str(number), number
            configs.append(config)
            arguments = [*start_again(), *_flags(config), *overrides, "hydra.mode=RUN"]
            command = job_command(arguments, self.processes, self.nodes, self.address, number)
            apart = [text for text in overrides if text not in common]
            label = " ".join(apart or overrides or ["(no overrides)"])
            job = SweepJob(number, label, command, logs / f"{number}{place}.log")
            composed = copy.deepcopy(config)
            with read_write(composed), open_dict(composed):
                del composed["hydra"]
            try:
                wanted = typed(composed)
                job.folder = run_folder_of(wanted)
                job.epochs, job.nodes = getattr(wanted, "epochs", None), self.nodes
            except UserError as error:
                job.problem = f"error: {error}"
            if job.folder is not None:
                name = f"{job.folder.path.parent.name}-{job.folder.path.name}{place}.log"
                job.log = logs / name
            jobs.append(job)
        return jobs, configs

    def _returned(self, job: Any, config: DictConfig, overrides: Sequence[str]) -> JobReturn:
        """Value for Hydra's sweepers; a basic one would stop at the first job that failed."""
        returned = JobReturn(overrides=list(overrides), cfg=config, status=JobStatus.COMPLETED)
        result = job.result if job.state == "finished" else None
        returned.return_value = result
        if self.objective is not None:
            if result is None or self.objective not in result:
                returned.status = JobStatus.FAILED
                returned.return_value = RuntimeError(
                    job.note or f"its result has no entry {self.objective}"
                )
            else:
                returned.return_value = float(result[self.objective])
        return returned


def _flags(config: DictConfig) -> list[str]:
    """Those of Hydra's own flags that change the composed config."""
    flags = []
    if {"--config-name", "-cn"} & {argument.split("=")[0] for argument in sys.argv[1:]}:
        flags += ["--config-name", str(config.hydra.job.config_name)]
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", str(source.path)]
    return flags
