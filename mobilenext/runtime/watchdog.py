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
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from mobilenext.runtime.distributed import Process


@dataclass(frozen=True)
class Note:
    """What a process has told of itself."""

    sign: int
    """Grows with every note: whether the process lives."""
    moves: int
    """Grows with every `move`: how far it has come."""
    what: str
    host: str
    pid: int


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
        self.moves, self.moved_at, self.what = 0, time.monotonic(), "starting"
        self.over = threading.Event()

    def move(self, what: str) -> None:
        """Note what this process does from now on."""
        self.moves, self.moved_at, self.what = self.moves + 1, time.monotonic(), what

    def __enter__(self) -> Self:
        self.move("starting")
        if self.process.world_size > 1:
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over.set()

    def _watch(self) -> None:
        store = _store()
        for sign in itertools.count():
            if self.over.wait(self.period):
                return
            note = Note(sign, self.moves, self.what, socket.gethostname(), os.getpid())
            try:
                store.set(str(self.process.rank), json.dumps(note.__dict__))
                if time.monotonic() - self.moved_at > self.allowed:
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
        own = Note(-1, self.moves, self.what, socket.gethostname(), os.getpid())
        notes = {**self._notes(store), self.process.rank: own}
        if store.add("told", 1) == 1:
            waited = time.monotonic() - self.moved_at
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

    def _notes(self, store: Store) -> dict[int, Note]:
        ranks = range(self.process.world_size)
        told = [rank for rank in ranks if store.check([str(rank)])]
        return {rank: Note(**json.loads(store.get(str(rank)))) for rank in told}


def who_hangs(before: dict[int, Note], now: dict[int, Note], world_size: int) -> str:
    """Name the ranks that the others wait for.

    Args:
        before: Earlier notes by rank.
        now: Notes by rank, some time later.
        world_size: Number of ranks.
    """
    never = [rank for rank in range(world_size) if rank not in now]
    silent = [r for r, note in now.items() if r in before and note.sign == before[r].sign]
    furthest = max(note.moves for note in now.values())
    behind = [rank for rank, note in now.items() if note.moves < furthest]
    if never:
        return f"rank {_list(never)} never began to train"
    if silent:
        return "stopped or dead: " + _described(silent, now)
    if behind:
        return "behind the others: " + _described(behind, now)
    return "no rank is behind: " + _described(sorted(now), now)


def _described(ranks: list[int], notes: dict[int, Note]) -> str:
    most = 4
    told = [
        f"rank {rank} ({notes[rank].what}; process {notes[rank].pid} on {notes[rank].host})"
        for rank in ranks[:most]
    ]
    more = [f"{len(ranks) - most} more"] if len(ranks) > most else []
    return ", ".join(told + more)


def _list(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


def _store() -> Store:
    """The store where torchrun's processes met, apart from their own entries in it."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    client = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"mobilenext/watchdog/{attempt}", client)
