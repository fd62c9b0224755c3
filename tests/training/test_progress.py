"""What a command says while it works, on terminals of several widths and without one."""

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import mobilenext.training.progress as module
from mobilenext.program import folded, has_terminal
from mobilenext.runtime.distributed import Process
from mobilenext.training.progress import Progress, fitted

LONG = ("loss 2.2764", "train top-1 25.43 %", "12,345 images/s", "data wait 12%", "left 10 d 04 h")
SHORT = ("loss 2.276", "top-1 25.4%", "12.3k images/s", "left 10d04h")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError

    def states(self) -> list[str]:
        return self.getvalue().split("\r")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """Standard error becomes a terminal; a function, since pytest puts its own back for a test."""

    def use(term: str = "xterm", columns: int = 80) -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("COLUMNS", str(columns))
        return terminal

    return use


Use = Callable[..., Terminal]


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 200])
def test_a_bar_fits_its_terminal(use: Use, columns: int) -> None:
    """Also that of the longest run."""
    terminal = use(columns=columns)
    with Progress("epoch 100/300", "steps", 10009, 5000) as progress:
        progress.tell(LONG, SHORT)
        state = terminal.states()[-1]
    assert len(state) < columns
    assert "epoch 100/300" in state
    assert " 5000/10009" in state
    assert "░" in state
    said = LONG if columns >= 120 else SHORT if columns >= 80 else SHORT[: columns >= 60]
    assert all(part in state for part in said)
    assert terminal.states()[-2].strip() == ""  # the bar is gone


def test_what_does_not_fit_is_left_out_from_the_end() -> None:
    assert fitted(100, [SHORT]) == (24, "  " + "  ".join(SHORT))
    assert fitted(58, [LONG, SHORT]) == (58 - 4 - len("".join(SHORT)), " " + " ".join(SHORT))
    assert fitted(30, [LONG, SHORT]) == (7, " loss 2.276 top-1 25.4%")
    assert fitted(2, [LONG, SHORT]) == (3, "")


def test_a_bar_is_told_by_the_clock(use: Use, clock: Clock) -> None:
    terminal = use()
    with Progress("work", "images", 1000) as progress:
        for done in range(1, 901):
            clock.now += 0.01
            progress.move(done)
    told = [state for state in terminal.states() if "images/s" in state]
    assert len(told) == 9  # one at once, then one a second
    assert "801/1000  100 images/s  left 2 s" in told[-1]


@pytest.mark.parametrize("term", ["dumb", None])
def test_lines_by_time_without_a_terminal(
    use: Use, clock: Clock, capsys: pytest.CaptureFixture[str], term: str | None
) -> None:
    if term is not None:
        use(term)
    assert not has_terminal()
    with Progress("prepare", "images", 100, first=10) as progress:
        for _ in progress.through(range(50)):
            clock.now += 1
    said = capsys.readouterr().out
    assert "\r" not in said
    assert said.splitlines()[0] == "prepare: 20/100 images  1 images/s  left 1 min 20 s"
    assert len(said.splitlines()) == 5


@pytest.mark.parametrize("silent", [{"lines": False}, {"process": 1}])
def test_silence(clock: Clock, capsys: pytest.CaptureFixture[str], silent: dict[str, Any]) -> None:
    if "process" in silent:
        silent = {"process": Process(torch.device("cpu"), rank=1, world_size=2)}
    with Progress("evaluation", "batches", 100, **silent) as progress:
        for _ in progress.through(range(50)):
            clock.now += 1
    assert capsys.readouterr() == ("", "")


def test_other_ranks_have_no_bar(use: Use) -> None:
    terminal = use()
    process = Process(torch.device("cpu"), rank=1, world_size=2)
    with Progress("work", "images", 10, process=process) as progress:
        assert list(progress.through(range(10))) == list(range(10))
    assert terminal.getvalue() == ""


def test_a_terminal_that_has_no_blocks(use: Use, clock: Clock) -> None:
    terminal = use()
    terminal.encoding = "ascii"
    with Progress("work", "images", 10) as progress:
        clock.now += 1
        progress.move(5)
    assert "work ############............  5/10  5 images/s  left 1 s" in terminal.getvalue()


def test_slow_work_has_a_pace(use: Use, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("prepare", "images", 10) as progress:
        clock.now += 40
        progress.move(2)
    assert capsys.readouterr().out == "prepare: 2/10 images  0.05 images/s  left 2 min 40 s\n"


EPOCH = (
    "epoch  9/10  train loss 0.7998  val top-1 86.11 % (best), loss 0.4776  lr 0.01  33 images/s"
)


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("short", "short"),
        (EPOCH, EPOCH.replace("  33", "\n  33")),
        (
            "note: " + "word " * 20 + "end",
            "note: " + "word " * 13 + "word\n  " + "word " * 6 + "end",
        ),
        ("run folder: /" + "long/" * 20, "run folder:\n  /" + "long/" * 20),
        ("  python train.py " + "key=value " * 9, "  python train.py " + "key=value " * 9),
        ("x" * 70 + " 86.111 %, more", "x" * 70 + "\n  86.111 %, more"),
        ("one\n" + "two " * 20 + "three", "one\n" + "two " * 19 + "two\n  three"),
    ],
)
def test_a_terminal_gets_lines_that_are_broken_between_words(
    use: Use, line: str, lines: str
) -> None:
    """Commands to copy and paths stay whole, which a terminal breaks so that they can be copied."""
    assert folded(line, use()) == lines
    assert folded(line, io.StringIO()) == line


def test_a_failure_takes_the_bar_away(use: Use) -> None:
    terminal = use()

    def fails() -> Iterator[int]:
        yield 1
        raise ValueError

    with pytest.raises(ValueError), Progress("work", "images", 10) as progress:  # noqa: PT011
        for _ in progress.through(fails()):
            pass
    assert "0/10" in terminal.getvalue()
    assert [state.strip() for state in terminal.states()[-2:]] == ["", ""]
