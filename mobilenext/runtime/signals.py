"""Signals that ask a run to end: the first is noted, the second ends the process at once."""

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Self

ASKED_TO_STOP = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
"""From schedulers and users. SIGUSR1 and SIGUSR2 are SLURM's advance notice, as it was told by
`sbatch --signal=USR1@120` or by submitit, which takes SIGUSR2."""

ONE_WISH_SECONDS = 1.0
"""torchrun passes on a Ctrl-C that its processes have got already: that is one request, not two."""


class StopSignals:
    """While entered, signals don't end this process; `received` names the first one.

    Python runs signal handlers only between two of its own instructions, so none would run while
    the process waits in a collective. The interpreter writes each signal's number to a socket the
    moment that it arrives, and a thread reads it there.

    Args:
        answer: Text after the first one's name, on standard error, as soon as it is there.
    """

    unheeded: str | None = None
    """A signal that came when the job had nothing left to give up; of use in a sweep."""

    def __init__(self, answer: str = "") -> None:
        self.answer = answer
        self.received: str | None = None
        self.received_at = 0.0

    def receive(self, name: str) -> None:
        """Note a request to stop, if it is the first one."""
        if self.received is None:
            self.received, self.received_at = name, time.monotonic()

    def __enter__(self) -> Self:
        self.listening = threading.current_thread() is threading.main_thread()
        if not self.listening:
            return self  # Python lets no other thread handle signals
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        numbers = [getattr(signal, name) for name in ASKED_TO_STOP if hasattr(signal, name)]
        self._old_handlers = {number: signal.signal(number, _leave_it) for number in numbers}
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(set(numbers),), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.listening:
            return
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._writer.close()
        if error is None and self.received is not None:
            StopSignals.unheeded = self.received

    def _listen(self, numbers: set[int]) -> None:
        with self._reader:
            while data := self._reader.recv(64):
                for number in data:
                    if number in numbers:  # others with a handler, SIGCHLD say, arrive here too
                        self._note(number)

    def _note(self, number: int) -> None:
        name = signal.Signals(number).name
        if self.received is None:
            self.receive(name)
            if self.answer:
                sys.stderr.write(f"\n{name}: {self.answer}\n")
                sys.stderr.flush()
        elif name != self.received and "SIGUSR2" in (name, self.received):
            # SLURM's own order of things, not impatience; which of them came decides whether the
            # job is requeued (see `submitit_tasks`).
            self.received = "SIGUSR2"
        elif time.monotonic() - self.received_at > ONE_WISH_SECONDS:
            sys.stderr.write(f"\n{name} after {self.received}: stopped at once\n")
            sys.stderr.flush()
            os._exit(128 + number)


def _leave_it(number: int, frame: FrameType | None) -> None:
    """A handler has to exist for the interpreter to pass the signal on."""
