"""Ends a job in which one process hangs or has died, and says which one.

A process that waits in a collective for another can't say for whom it waits. So each process tells
a store beside the collectives what it does; where nothing has moved for the time allowed, the first
to notice compares these notes.

gloo tells a process at once that another has died. NCCL tells nobody: the others wait for their
devices, where no signal reaches them. So a process that waits also looks who gives no sign of life
any more. Silence alone is no death (the whole job may have been suspended), so that takes a second
sign, see `Watchdog`.
"""

import itertools
import json
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NoReturn, Self

from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]

from mobilenext.runtime.distributed import Process, agent_store

LOOKS = 4
"""Looks at the others' notes, a period apart, in which a dead one's stays the same. They are
counted, not timed: a process that was suspended wakes with its clock far ahead."""

GOES_ON = "The same command goes on from the last checkpoint"

PHASES = ("evaluating", "waiting for data", "in the next step")
"""Phases of a step, in the order in which a process passes through them."""


@dataclass(frozen=True)
class Note:
    """The report of a process about itself."""

    sign: int
    """Grows with every note: whether the process lives."""
    step: int
    """Optimiser steps done."""
    phase: str
    """One of `PHASES`."""
    seconds: float
    """For how long it has been there."""
    host: str
    pid: int

    @property
    def position(self) -> tuple[int, int]:
        """Which of two processes has come further."""
        return self.step, PHASES.index(self.phase)


class Watchdog:
    """While entered, ends this process if it has not moved for too long.

    It ends it far sooner, in some 20 s, if another process gives no sign of life and there is a
    second sign that it has died: `suspicious`, or a third process that has ended for that reason.

    Does nothing for a single process: there is nobody to wait for.

    Args:
        process: This process.
        minutes: How long it may take from one `move` to the next.
        on_orphaned: Called if torchrun was killed, and has left this process behind.
        suspicious: Whether there is reason to think that another process may have died. torchrun,
            for instance, asks all to stop when one has failed.
    """

    def __init__(
        self,
        process: Process,
        minutes: float,
        on_orphaned: Callable[[], None] = lambda: None,
        suspicious: Callable[[], bool] = lambda: False,
    ) -> None:
        self.process, self.allowed = process, 60 * minutes
        self.on_orphaned, self.suspicious = on_orphaned, suspicious
        self.period = min(5.0, self.allowed / 10)
        self.looks: deque[dict[int, Note]] = deque(maxlen=LOOKS)
        self.place, self.moved_at = (0, PHASES[0]), time.monotonic()
        self.over = threading.Event()

    def move(self, step: int, phase: str) -> None:
        """Note that this process, `step` optimiser steps done, begins with a phase of the next."""
        self.place, self.moved_at = (step, phase), time.monotonic()

    def __enter__(self) -> Self:
        self.moved_at = time.monotonic()
        if self.process.world_size > 1:
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Watch no more: this process waits for no other, and those that left are not dead."""
        self.over.set()

    def _watch(self) -> None:
        try:
            client = agent_store(timedelta(seconds=30))
        except RuntimeError:
            return  # there is no store to tell: the backend's own time-out has to do
        store = PrefixStore(f"{self.process.rendezvous_prefix}/watchdog", client)
        for sign in itertools.count():
            note = self._note(sign)
            try:
                store.set(str(self.process.rank), json.dumps(asdict(note)))
                self._look(store, note)
            except RuntimeError:  # the store is gone, with the process that had it
                if self.process.rendezvous_prefix:
                    if not self.over.is_set():
                        self.on_orphaned()
                else:
                    self._outlive_rank_0()
                return
            if self.over.wait(self.period):
                return

    def _look(self, store: Store, mine: Note) -> None:
        """End this process if it waits for one that is dead, or if all have waited too long."""
        waits = mine.seconds > 2 * self.period
        if not waits and not self.suspicious():
            self.looks.clear()
            return
        self.looks.append(self._notes(store))
        if not waits or len(self.looks) < LOOKS:
            return
        before, now = self.looks[0], self.looks[-1]
        silent = silent_ranks(before, now)
        who = who_hangs(before, now, self.process.world_size)
        if silent and (self.suspicious() or store.check(["told"])):
            self._end(store, f"another process is lost; {who}. {GOES_ON}")
        living = [note for rank, note in now.items() if rank not in silent]
        # If one has moved, it is slow, with an evaluation say, and the others wait for good reason.
        if all(note.seconds > self.allowed for note in living):
            self._end(
                store,
                f"nothing has moved for {mine.seconds:.0f} s; {who}. {GOES_ON}; "
                f"runtime.timeout_minutes={self.allowed / 60:g} is the time allowed",
            )

    def _outlive_rank_0(self) -> None:
        """End this process, unless it does so itself: without rank 0 nothing more is saved."""
        while not self.over.wait(self.period):
            if self._note(-1).seconds > 2 * self.period:
                self._end(None, f"another process is lost; rank 0 took the store along. {GOES_ON}")

    def _end(self, store: Store | None, why: str) -> NoReturn:
        """Say it, or leave that to the first process that does, and end at once."""
        if store is None or store.add("told", 1) == 1:
            sys.stderr.write(f"error: {why}\n")
            sys.stderr.flush()
        else:
            time.sleep(1)  # the one who tells comes first
        os._exit(1)

    def _note(self, sign: int) -> Note:
        seconds = time.monotonic() - self.moved_at
        return Note(sign, *self.place, seconds, socket.gethostname(), os.getpid())

    def _notes(self, store: Store) -> dict[int, Note]:
        ranks = range(self.process.world_size)
        reported = [rank for rank in ranks if store.check([str(rank)])]
        return {rank: Note(**json.loads(store.get(str(rank)))) for rank in reported}


def silent_ranks(before: dict[int, Note], now: dict[int, Note]) -> list[int]:
    """Ranks that have told nothing since; arguments as of `who_hangs`."""
    return [rank for rank, note in now.items() if rank in before and note.sign == before[rank].sign]


def who_hangs(before: dict[int, Note], now: dict[int, Note], world_size: int) -> str:
    """Name the ranks that the others wait for.

    Args:
        before: Earlier notes by rank.
        now: Notes by rank, some time later.
        world_size: Number of ranks.
    """
    never = [rank for rank in range(world_size) if rank not in now]
    silent = silent_ranks(before, now)
    furthest = max(note.position for note in now.values())
    behind = [rank for rank, note in now.items() if note.position < furthest]
    if never:
        return f"rank {_list(never)} never began to train"
    if silent:
        return "stopped or dead: " + _described(silent, now)
    if behind:
        return "behind the others: " + _described(behind, now)
    return "no rank is behind: " + _described(sorted(now), now)


def _described(ranks: list[int], notes: dict[int, Note]) -> str:
    most = 4
    texts = [
        f"rank {rank} ({note.step} steps done, {note.phase}; process {note.pid} on {note.host})"
        for rank, note in ((rank, notes[rank]) for rank in ranks[:most])
    ]
    more = [f"{len(ranks) - most} more"] if len(ranks) > most else []
    return ", ".join(texts + more)


def _list(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
