"""Ends a job in which one process hangs, and says which one.

A process that waits in a collective for another can't say for whom it waits. So each process tells
a store beside the collectives what it does; where nothing has moved for the time allowed, the first
to notice compares these notes.
"""

import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Self

from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]

from mobilenext.runtime.distributed import Process, agent_store

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

    Does nothing for a single process: there is nobody to wait for.

    Args:
        process: This process.
        minutes: How long it may take from one `move` to the next.
        on_orphaned: Called if torchrun was killed, and has left this process behind.
    """

    def __init__(
        self, process: Process, minutes: float, on_orphaned: Callable[[], None] = lambda: None
    ) -> None:
        self.process, self.allowed, self.on_orphaned = process, 60 * minutes, on_orphaned
        self.period = min(5.0, self.allowed / 10)
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
        self.over.set()

    def _watch(self) -> None:
        try:
            client = agent_store(timedelta(seconds=30))
        except RuntimeError:
            return  # not by torchrun that they met: the backend's own time-out has to do
        store = PrefixStore(f"{self.process.rendezvous_prefix}/watchdog", client)
        for sign in itertools.count():
            if self.over.wait(self.period):
                return
            note = self._note(sign)
            try:
                store.set(str(self.process.rank), json.dumps(asdict(note)))
                if note.seconds > self.allowed:
                    self._give_up(store)
            except RuntimeError:  # the store is gone, and it was torchrun's
                if not self.over.is_set():
                    self.on_orphaned()
                return

    def _give_up(self, store: Store) -> None:
        before = self._notes(store)
        # A process that can't even tell that it hangs has stopped as a whole.
        if self.over.wait(3 * self.period):
            return
        notes = {**self._notes(store), self.process.rank: self._note(-1)}
        living = {r: n for r, n in notes.items() if r not in before or n.sign != before[r].sign}
        if any(note.seconds <= self.allowed for note in living.values()):
            return  # somebody is slow, with an evaluation say, and the others wait for good reason
        if store.add("told", 1) == 1:
            waited = notes[self.process.rank].seconds
            sys.stderr.write(f"error: nothing has moved for {waited:.0f} s; ")
            sys.stderr.write(who_hangs(before, notes, self.process.world_size))
            sys.stderr.write(
                ". The same command goes on from the last checkpoint; runtime.timeout_minutes="
                f"{self.allowed / 60:g} is the time allowed\n"
            )
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


def who_hangs(before: dict[int, Note], now: dict[int, Note], world_size: int) -> str:
    """Name the ranks that the others wait for.

    Args:
        before: Earlier notes by rank.
        now: Notes by rank, some time later.
        world_size: Number of ranks.
    """
    never = [rank for rank in range(world_size) if rank not in now]
    silent = [r for r, note in now.items() if r in before and note.sign == before[r].sign]
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
