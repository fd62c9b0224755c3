import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage]
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
)

from mobilenext.runtime import watchdog
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.watchdog import PHASES, Note, Watchdog, who_hangs


def notes(*pairs: tuple[int, int]) -> dict[int, Note]:
    """By rank, from (sign, number of the phase) after seven steps."""
    return {
        rank: Note(sign, 7, PHASES[phase], 9.0, "node1", 100 + rank)
        for rank, (sign, phase) in enumerate(pairs)
    }


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        # rank 1 gives no sign of life any more
        (
            notes((5, 2), (4, 2)),
            notes((8, 2), (4, 2)),
            "stopped or dead: rank 1 (7 steps done, in ",
        ),
        # rank 0 lives, and waits for its data while the others wait for it
        (notes((5, 1), (5, 2), (5, 2)), notes((8, 1), (8, 2), (8, 2)), "behind the others: rank 0"),
        (
            notes((5, 0), (5, 1)),
            notes((8, 0), (8, 1)),
            "behind the others: rank 0 (7 steps done, e",
        ),
        (notes((5, 2), (5, 2)), notes((8, 2), (8, 2)), "no rank is behind: rank 0"),
        (notes((5, 2)), notes((8, 2)), "rank 1, 2 never began to train"),
    ],
)
def test_the_rank_that_others_wait_for(
    before: dict[int, Note], now: dict[int, Note], named: str
) -> None:
    told = who_hangs(before, now, 3 if len(now) in (1, 3) else 2)
    assert told.startswith(named)


def test_a_long_list_is_cut() -> None:
    stuck = notes(*[(1, 1)] * 8)
    assert who_hangs(stuck, stuck, 8).endswith("process 103 on node1), 4 more")


class EndedError(Exception):
    """In place of the end of this process."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes with which the watchdog would have ended this process; its thread ends instead."""
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise EndedError

    monkeypatch.setattr(watchdog.os, "_exit", end)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    return codes


@contextmanager
def a_peer(
    monkeypatch: pytest.MonkeyPatch, lives: bool, prefix: str = "start"
) -> Iterator[Process]:
    """Rank 0 of two, and a rank 1 that tells it is there, until it is over or just once."""
    store = HashStore()
    monkeypatch.setattr(watchdog, "agent_store", lambda timeout: store)
    over = threading.Event()

    def tell() -> None:
        told = PrefixStore(f"{prefix}/watchdog", store)
        for sign in range(10_000):
            note = Note(sign, 7, PHASES[2], 0.1 * sign, "node1", 101)
            told.set("1", json.dumps(asdict(note)))
            if not lives or over.wait(0.03):
                return

    thread = threading.Thread(target=tell)
    thread.start()
    yield Process(torch.device("cpu"), 0, 2, rendezvous_prefix=prefix)
    over.set()
    thread.join()


MINUTES = 0.05  # looks a third of a second apart


@pytest.mark.parametrize(
    ("lives", "suspicious", "code"),
    [(False, True, [1]), (False, False, []), (True, True, [])],
    ids=["dead", "silent", "alive"],
)
def test_it_takes_silence_and_suspicion(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ends: list[int],
    lives: bool,
    suspicious: bool,
    code: list[int],
) -> None:
    with a_peer(monkeypatch, lives) as process:
        watching = Watchdog(process, MINUTES, suspicious=lambda: suspicious)
        with watching:
            watching.thread.join(2.5)
    assert ends == code
    said = "error: another process is lost; stopped or dead: rank 1 (7 steps done, in the next step"
    error = capsys.readouterr().err
    assert error.startswith(said) if code else error == ""


def test_a_process_that_moves_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch, ends: list[int]
) -> None:
    with a_peer(monkeypatch, lives=False) as process:
        watching = Watchdog(process, MINUTES, suspicious=lambda: True)
        with watching:
            for step in range(25):
                watching.move(step, PHASES[2])
                watching.thread.join(0.1)
    assert not ends


def test_rank_0_took_the_store_along(
    monkeypatch: pytest.MonkeyPatch, ends: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no torchrun holds it, whoever still waits will not be told otherwise."""
    with a_peer(monkeypatch, lives=True, prefix="") as process:
        monkeypatch.setattr(PrefixStore, "set", broken)
        with Watchdog(process, MINUTES) as watching:
            watching.thread.join(5)
    assert ends == [1]
    assert "error: another process is lost; rank 0 took the store" in capsys.readouterr().err


def broken(*_: object) -> None:
    raise RuntimeError("Connection reset by peer")
