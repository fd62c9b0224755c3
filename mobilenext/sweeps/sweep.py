"""A sweep: jobs in fresh processes, some at a time, each on devices and cores of its own.

What is finished is passed over, what was torn goes on, and a job that fails stops no other. The
jobs' own locks keep two of them out of one folder, so sweeps on several machines with a common
file system can share the same list of jobs.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from mobilenext.errors import InputError, UserError
from mobilenext.program import as_typed, has_terminal
from mobilenext.runtime.signals import StopSignals
from mobilenext.training.measures import measure_of
from mobilenext.training.progress import format_seconds, say
from mobilenext.training.run_folder import RunFolder

LOOK_EVERY_SECONDS = 0.2
TELL_EVERY_SECONDS = 1.0
GRACE_SECONDS = 120
"""Time that torchrun gives its processes for a step and a checkpoint after a signal."""

STARTED_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR",
                       "MASTER_PORT", "TORCHELASTIC_RUN_ID")  # fmt: skip

BOOTSTRAP = """
import ctypes, os, sys
parent, cores, *command = sys.argv[1:]
if cores:
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
    if os.getppid() != int(parent):
        sys.exit("the sweep is gone")
os.execv(command[0], command)
"""
"""Becomes the job: its cores, and SIGTERM should the sweep's own process be killed."""


@dataclass
class SweepJob:
    """One combination of a sweep's values."""

    number: int
    label: str
    """Overrides that set this job apart, for instance width=0.5 seed=1."""
    command: list[str]
    """Arguments of the process to start; torchrun starts several."""
    log: Path
    """Gets what it prints."""
    folder: RunFolder | None = None
    """Folder of its run, if it has one."""
    epochs: int | None = None
    nodes: int = 1
    """Machines that have to start it together."""
    problem: str | None = None
    """The reason that it can't be started, or None."""

    state: str = "waiting"
    """waiting, running, finished, failed or preempted."""
    note: str = ""
    """Remark about the state."""
    attempts: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    slot: "Slot | None" = None
    shown: tuple[Any, ...] = ()
    """Its state, note and epoch as they were shown last."""

    @property
    def result(self) -> dict[str, Any] | None:
        """Its result.json, once it is finished."""
        return None if self.folder is None else self.folder.result()


@dataclass(frozen=True)
class Slot:
    """Devices and cores of one job at a time."""

    devices: tuple[str, ...] | None = None
    """CUDA devices by number or UUID; None: whatever there is."""
    cores: tuple[int, ...] = ()
    """Processor cores; empty: all."""


def share_out(jobs: int, devices: Sequence[str], per_job: int) -> list[Slot]:
    """Disjoint devices and cores for so many jobs at once.

    Args:
        jobs: How many at most.
        devices: The CUDA devices to share, none without CUDA.
        per_job: Devices of one job.

    Raises:
        InputError: There are too few devices.
    """
    if devices and per_job and jobs * per_job > len(devices):
        raise InputError(
            f"{jobs} job{'s' if jobs > 1 else ''} at once on {per_job} CUDA device"
            f"{'s' if per_job > 1 else ''} each: there are {len(devices)} "
            f"({', '.join(devices)}); use fewer hydra.launcher.jobs or hydra.launcher.processes"
        )
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    slots = []
    for number in range(jobs):
        mine: tuple[str, ...] | None = None
        if devices:
            mine = tuple(devices[number * per_job : (number + 1) * per_job])
        share: tuple[int, ...] = ()
        if 1 < jobs <= len(cores):
            first, last = number * len(cores) // jobs, (number + 1) * len(cores) // jobs
            share = tuple(cores[first:last])
        slots.append(Slot(mine, share))
    return slots


def job_command(
    arguments: Sequence[str],
    processes: int = 1,
    nodes: int = 1,
    address: str | None = None,
    number: int = 0,
) -> list[str]:
    """The command of a job: Python itself, or torchrun where there are several processes.

    Args:
        arguments: A script and its arguments.
        processes: Of the job on each node.
        nodes: Machines of the job, on each of which the same sweep has to be started.
        address: host:port of one of them; the job with number n meets at port + n.
        number: The job's number in the sweep.

    Raises:
        InputError: Several nodes without an address.
    """
    if processes == nodes == 1:
        return [sys.executable, *arguments]
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}",
                f"--shutdown-timeout={GRACE_SECONDS}"]  # fmt: skip
    if nodes == 1:
        return [*torchrun, "--standalone", *arguments]
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(
            f"hydra.launcher.address={as_typed(address)}: expected host:port of one of the "
            f"{nodes} nodes, the same on all of them"
        )
    # A port for each job: the store of the one before may still be closing.
    return [*torchrun, f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-id=job-{number}",
            f"--rdzv-endpoint={host}:{int(port) + number}", *arguments]  # fmt: skip


@dataclass
class Sweep:
    """Runs jobs until all have ended, or until a signal asks for the end.

    After a signal the running jobs save and end, and no other is started.
    """

    jobs: list[SweepJob]
    slots: list[Slot]
    retries: int = 0
    """Number of times that a failed job is started again; it goes on from its checkpoint."""
    looked_at: float = 0.0
    waiting: deque[SweepJob] = field(default_factory=deque)
    free: list[Slot] = field(default_factory=list)

    failures: ClassVar[list[str]] = []
    """Labels of jobs that failed in any sweep of this process; decides its exit code."""

    def run(self) -> str | None:
        """Run them.

        Returns:
            The signal that ended the sweep early, or None.
        """
        self.waiting, self.free = deque(self.jobs), list(self.slots)
        with StopSignals() as signals, View(self.jobs) as view:
            passed_on = False
            while True:
                if signals.received is None:
                    self._start_some()
                elif not passed_on:
                    passed_on = True
                    self._stop(signals.received)
                self._collect(stopping=passed_on)
                view.show()
                if not self._running and (passed_on or not self.waiting):
                    break
                time.sleep(LOOK_EVERY_SECONDS)
        Sweep.failures += [job.label for job in self.jobs if job.state == "failed"]
        say(summary(self.jobs))
        return signals.received

    @property
    def _running(self) -> list[SweepJob]:
        return [job for job in self.jobs if job.process is not None]

    def _start_some(self) -> None:
        """Start what can be; all are looked at first, then when there is room, once a second."""
        now = time.monotonic()
        if self.looked_at and (not self.free or now - self.looked_at < TELL_EVERY_SECONDS):
            return
        self.looked_at = now
        for _ in range(len(self.waiting)):
            job = self.waiting.popleft()
            if job.problem is not None:
                job.state, job.note = "failed", job.problem
                continue
            try:
                result = job.result
            except UserError as error:  # a result.json that is not JSON
                job.state, job.note = "failed", str(error)
                continue
            if result is not None:
                job.state, job.note = "finished", "earlier"
                continue
            here = any(other.folder and _same(other, job) for other in self._running)
            elsewhere = not here and _used_elsewhere(job)
            job.note = "its folder is in use" if here or elsewhere else ""
            if here or elsewhere or not self.free:
                self.waiting.append(job)
                continue
            slot = self.free.pop(0)
            try:
                self._start(job, slot)
            except OSError as error:  # of its log, or no more processes can be had
                self.free.append(slot)
                job.state = "failed"
                job.note = f"it could not be started with its log {job.log} ({error})"

    def _start(self, job: SweepJob, slot: Slot) -> None:
        job.attempts += 1
        job.log.parent.mkdir(parents=True, exist_ok=True)
        env = {key: value for key, value in os.environ.items() if key not in STARTED_BY_TORCHRUN}
        if slot.devices is not None:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(slot.devices)
        cores = ",".join(str(core) for core in slot.cores)
        with job.log.open("ab") as log:
            now = datetime.now(UTC).isoformat(" ", "seconds")
            log.write(f"# {now} {socket.gethostname()} {' '.join(job.command)}\n".encode())
            log.flush()
            bootstrap = [sys.executable, "-c", BOOTSTRAP, str(os.getpid()), cores]
            job.process = subprocess.Popen(
                [*(bootstrap if os.name == "posix" else []), *job.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,  # Ctrl-C is passed on once, by the sweep
            )
        job.state, job.slot = "running", slot

    def _collect(self, stopping: bool) -> None:
        for job in self._running:
            assert job.process is not None
            assert job.slot is not None
            code = job.process.poll()
            if code is None:
                continue
            job.process = None
            self.free.append(job.slot)
            self.looked_at = 0.0
            if code == 0:
                self._finish(job)
            elif stopping:
                job.state = "preempted"
            elif _used_elsewhere(job):
                job.state, job.attempts = "waiting", job.attempts - 1  # somebody was faster
                self.waiting.append(job)
            elif job.attempts <= self.retries:
                job.state, job.note = "waiting", f"has failed {job.attempts} times"
                self.waiting.append(job)
            else:
                job.state, job.note = "failed", f"{_ending(code)}: {_last_words(job.log)}"

    @staticmethod
    def _finish(job: SweepJob) -> None:
        try:
            _ = job.result  # which the summary will read
            job.state = "finished"
        except UserError as error:  # a result.json that is not JSON
            job.state, job.note = "failed", str(error)

    def _stop(self, name: str) -> None:
        running = self._running
        say(f"{name}: no more jobs are started, {len(running)} running end with a checkpoint")
        for job in running:
            assert job.process is not None
            job.process.send_signal(signal.SIGTERM)


ENDED = ("finished", "failed", "preempted")
"""States that no other follows."""


class View:
    """A line for each job: bars where there is a terminal, else a line at each change."""

    def __init__(self, jobs: list[SweepJob]) -> None:
        self.jobs = jobs
        self.shown_at = 0.0
        self.bars: list[tqdm[Any]] = []

    def __enter__(self) -> "View":
        if has_terminal():
            width = max(len(job.label) for job in self.jobs)
            for place, job in enumerate(self.jobs):
                text: Any = [""]  # a string would come with a comma before it
                bar = tqdm(
                    total=job.epochs,
                    desc=f"{job.label:<{width}}",
                    position=place,
                    bar_format="{desc} {bar:12} {postfix[0]}",
                    leave=False,  # the summary has a line for each
                    postfix=text,
                )
                self.bars.append(bar)
        return self

    def __exit__(self, *_: object) -> None:
        self.shown_at = 0.0
        self.show()
        for bar in reversed(self.bars):  # the first one leaves the cursor where its line began
            bar.close()

    def show(self) -> None:
        """Look at the jobs, and show what is new."""
        if time.monotonic() - self.shown_at < TELL_EVERY_SECONDS:
            return
        self.shown_at = time.monotonic()
        for place, job in enumerate(self.jobs):
            if job.shown and job.shown[0] == job.state in ENDED:
                continue
            epoch, text = progress(job)
            if self.bars:
                bar = self.bars[place]
                bar.n = (job.epochs or 0) if job.state == "finished" else epoch
                line: Any = [text]
                bar.postfix = line
                bar.refresh()
                job.shown = (job.state,)
            elif (job.state, job.note, epoch) != job.shown:
                if job.shown or job.state != "waiting":
                    say(f"#{job.number} {job.label}: {text}")
                job.shown = (job.state, job.note, epoch)


def progress(job: SweepJob) -> tuple[int, str]:
    """Whole epochs that a job has done, and a line about it."""
    if job.state == "finished":
        text = f"finished{f' {job.note}' if job.note else ''}{_scored(job.result or {})}"
        return job.epochs or 0, text
    rows = [] if job.folder is None else job.folder.newest_metrics()
    epoch = max((row["epoch"] for row in rows if row["kind"] != "train"), default=0)
    if job.state != "running":
        return epoch, job.state + (f": {job.note}" if job.note else "")
    parts = [f"epoch {epoch}/{job.epochs}" if epoch and job.epochs else "running"]
    scores = [row for row in rows if row["kind"] in ("val", "ema")]
    if scores:
        parts.append(_scored(scores[-1]).strip())
    paces = [row for row in rows if "images_per_second" in row]
    if paces:
        parts.append(f"{paces[-1]['images_per_second']:,.0f} images/s")
        parts.append(f"left {format_seconds(paces[-1].get('seconds_left', 0))}")
    return epoch, "  ".join(parts)


def _scored(scores: dict[str, Any]) -> str:
    """The number that a run is judged by, in words; empty if it has none."""
    measure = measure_of(scores)
    return "" if measure is None else f"  {measure.text(scores[measure.key])}"


def summary(jobs: list[SweepJob]) -> str:
    """Summary of how the jobs have ended; failed ones by name, with their logs."""
    counts: dict[str, int] = dict.fromkeys(("finished", "failed", "preempted", "waiting"), 0)
    for job in jobs:
        counts[job.state] += 1
    names = {"waiting": "not started"}
    counted = ", ".join(f"{n} {names.get(state, state)}" for state, n in counts.items() if n)
    lines = [f"sweep of {len(jobs)} job{'s' if len(jobs) != 1 else ''}: {counted}"]
    heads = [f"#{job.number} {job.label}:" for job in jobs]
    width = max(map(len, heads))
    for job, head in zip(jobs, heads, strict=True):
        lines.append(f"{head:<{width}} {progress(job)[1]}")
        if job.state == "failed" and job.attempts:
            lines.append(f"   log: {job.log}")
        elif job.state == "finished" and job.folder is not None:
            lines[-1] += f"  {job.folder.path}"
    return "\n".join(lines)


def _used_elsewhere(job: SweepJob) -> bool:
    """Whether another sweep runs it, perhaps on another machine, unless that is part of the job."""
    return job.nodes == 1 and job.folder is not None and job.folder.in_use()


def _same(one: SweepJob, other: SweepJob) -> bool:
    return (
        one.folder is not None
        and other.folder is not None
        and (one.folder.path.resolve() == other.folder.path.resolve())
    )


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _last_words(log: Path) -> str:
    """The last error message of a log, or its last line."""
    try:
        text = log.read_text(errors="replace")
    except OSError as error:
        return f"its log can't be read ({error})"
    lines = [line.strip() for line in text[-8000:].splitlines()]
    lines = [line for line in lines if line] or ["(it said nothing)"]
    errors = [line for line in lines if line.startswith("error")]
    return (errors or lines)[-1]
