"""A session: one life of the processes of a run, from a start to a finish, a signal or a failure.

Keeps other jobs out of the folder, listens to signals, watches for hung processes, and leaves a
line about its beginning and its end in sessions.jsonl. A session that was killed leaves no end.
"""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from mobilenext.errors import Preempted, UserError
from mobilenext.program import command_line
from mobilenext.runtime.distributed import Agreement, Process
from mobilenext.runtime.signals import StopSignals
from mobilenext.runtime.watchdog import Watchdog
from mobilenext.training.run_folder import RunFolder

T = TypeVar("T")

FEW = 8
"""Processes that agree at each step: a message among so many is shorter than a step."""
AGREEMENT_SECONDS = 0.5
"""Time between two agreements of more processes, about."""


class Session:
    """Entered by all processes of a run together; rank 0 holds the folder's lock.

    Args:
        process: This process.
        folder: The run's folder.
        timeout_minutes: How long a process may hang before the job is ended.

    Raises:
        InputError: On entering: the folder is in use or can't be written to.
    """

    def __init__(self, process: Process, folder: RunFolder, timeout_minutes: float) -> None:
        self.process, self.folder = process, folder
        answer = "a checkpoint is written, then the run ends; once more ends it at once"
        self.signals = StopSignals(answer if process.is_main else "")
        self.watchdog = Watchdog(
            process, timeout_minutes, on_orphaned=self._orphaned, suspicious=self._suspicious
        )
        self.step = 0
        self.began = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.process.on_main(lambda: stack.enter_context(self.folder.locked()))
            many = self.process.world_size > FEW
            self.agreement = Agreement(self.process, 2, AGREEMENT_SECONDS if many else 0.0)
            stack.enter_context(self.signals)
            stack.enter_context(self.watchdog)
            self.stack = stack.pop_all()
        return self

    def begin(self, step: int) -> None:
        """Note that training goes on after `step`; rank 0 leaves a line."""
        self.step, self.began = step, True
        self.process.on_main(
            lambda: self.folder.append_session(
                {
                    "event": "start",
                    "step": step,
                    "processes": self.process.world_size,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "command": command_line(),
                }
            )
        )

    def watched(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches on, so that the watchdog knows who waits for data and who computes."""
        iterator = iter(batches)
        while True:
            self.watchdog.move(self.step, "waiting for data")
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.watchdog.move(self.step, "in the next step")
            yield batch

    def after(self, step: int, wants_save: bool) -> tuple[bool, bool]:
        """Whether all processes end, and whether they save, after this step.

        A signal to any process, or a request of rank 0 to save, reaches all of them one step later
        if there are several, within a second or so if there are many, and at once if there is one.
        """
        self.step = step
        signalled = self.signals.received is not None
        stop, save = self.agreement.exchange(signalled, wants_save and self.process.is_main)
        return stop, save

    def interrupted(self) -> bool:
        """Whether this process got a signal; asked between the batches of an evaluation."""
        self.watchdog.move(self.step, "evaluating")
        return self.signals.received is not None

    def preempted(self) -> Preempted:
        """The end of this session, to be raised on all processes once the checkpoint is written."""
        names = [name for name in self.process.gather(self.signals.received) if name]
        return Preempted(names[0] if names else "a signal", self.step)

    def _suspicious(self) -> bool:
        """Whether another process may have died: torchrun then asks the others to stop."""
        return self.signals.received is not None or self.agreement.failed()

    def _orphaned(self) -> None:
        """Nobody would end these processes, and they would keep the next start out."""
        self.signals.receive("the death of torchrun")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self.stack:
            if error is None or isinstance(error, Preempted):
                self.agreement.agreed()  # nobody leaves while others wait for its request
                self.watchdog.stop()
            if self.began and self.process.is_main:
                try:
                    self.folder.append_session(
                        {"event": "end", "step": self.step, **_ending(error)}
                    )
                except UserError:
                    if error is None:
                        raise  # else what ended the session matters more


def _ending(error: BaseException | None) -> dict[str, Any]:
    if error is None:
        return {"reason": "finished"}
    if isinstance(error, Preempted):
        return {"reason": "preempted", "signal": error.args[0]}
    if isinstance(error, UserError):
        return {"reason": "failed", "message": str(error)}
    return {"reason": "crashed", "message": f"{type(error).__name__}: {error}"}
