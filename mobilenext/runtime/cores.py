"""Processor cores for a process: its share of what the processes of its machine may use.

Two things limit them: the set of cores that a process may run on (its affinity, which SLURM or
torchrun's `--numa-binding` may have narrowed to its own share already), and the time that a
container's control group may use, which no affinity shows.
"""

import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mobilenext.runtime.cgroups import CGROUPS, MEMBERSHIP, own_groups

TASKS = Path("/proc/self/task")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Allowance:
    """Processor cores and time that the system allows a process.

    Attributes:
        machine: Tells machines apart.
        cores: Numbers of the cores that it may run on.
        quotas: For each of its control groups that has one, which group it is and how many cores'
            time the group may use.
    """

    machine: str
    cores: frozenset[int]
    quotas: tuple[tuple[str, float], ...] = ()


def own_allowance() -> Allowance:
    """The allowance of this process."""
    if hasattr(os, "sched_getaffinity"):
        cores = frozenset(os.sched_getaffinity(0))
    else:
        cores = frozenset(range(os.cpu_count() or 1))
    try:
        machine = BOOT_ID.read_text().strip()
    except OSError:
        machine = socket.gethostname()
    return Allowance(machine, cores, cpu_quotas())


def share(mine: Allowance, everyones: Iterable[Allowance]) -> int:
    """Cores for one process, at least 1.

    Cores that several processes may run on are divided evenly, and so is a quota by the processes
    that are in its group.

    Args:
        mine: Of that process.
        everyones: Of all processes of the job, that one included.
    """
    here = [other for other in everyones if other.machine == mine.machine]
    cores = sum(1 / sum(core in other.cores for other in here) for core in mine.cores)
    for group, quota in mine.quotas:
        users = sum(any(name == group for name, _ in other.quotas) for other in here)
        cores = min(cores, quota / users)
    return max(1, int(cores + 1e-6))


def scheduled(tasks: Path = TASKS) -> tuple[float, float] | None:
    """Seconds that this process's threads have run, and that they were ready and had no core.

    None where the kernel does not say (it is Linux that does).
    """
    ran = waited = 0
    try:
        for task in tasks.iterdir():
            run, wait, *_ = (task / "schedstat").read_text().split()
            ran, waited = ran + int(run), waited + int(wait)
    except (OSError, ValueError):  # also where a thread has just ended
        return None
    return ran / 1e9, waited / 1e9


class Competition:
    """Notices that other programs take the cores of this process.

    Args:
        cores: Processor cores for it.
    """

    LONG_ENOUGH, MUCH_WAITING, ALL_USED = 20.0, 0.3, 0.75
    """Seconds of running and waiting; shares of them, and of what the cores could have given."""

    def __init__(self, cores: int) -> None:
        self.cores, self.said = cores, False
        self.before, self.begun = scheduled(), time.monotonic()

    def note(self) -> str | None:
        """What to do about it, once; None: nothing is wrong, too little is known, or it was said.

        Threads wait for cores also where this process alone has more of them than cores; then it
        has used all that there was to have.
        """
        now = None if self.said else scheduled()
        if self.before is None or now is None:
            return None
        ran, waited = now[0] - self.before[0], now[1] - self.before[1]
        if ran + waited < self.LONG_ENOUGH or waited < self.MUCH_WAITING * (ran + waited):
            return None
        if ran > self.ALL_USED * (time.monotonic() - self.begun) * self.cores:
            return None
        self.said = True
        return (
            f"other programs use this machine's processor: threads of this one waited for a core "
            f"{waited / (ran + waited):.0%} of the time that they could have run. End those, or "
            "give fewer threads: runtime.threads=1"
        )


def cpu_quotas(
    cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP
) -> tuple[tuple[str, float], ...]:
    """The CPU quotas of this process's control groups; see `cgroups.own_groups`."""
    quotas = {group: _quota(group) for group in own_groups("cpu", cgroups, membership)}
    # Containers call different groups by the same path.
    host = socket.gethostname()
    return tuple(
        sorted((f"{host}:{group}", quota) for group, quota in quotas.items() if quota is not None)
    )


def _quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").is_file():
            limit, period = (group / "cpu.max").read_text().split()
        else:
            limit = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return int(limit) / int(period) if limit.isdigit() and int(limit) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
