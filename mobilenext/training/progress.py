"""What a command says while it works: lines, and how far it is."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tqdm import tqdm

from mobilenext.program import columns_of, folded, has_terminal

if TYPE_CHECKING:  # it loads torch
    from mobilenext.runtime.distributed import Process

T = TypeVar("T")

BAR_EVERY_SECONDS = 1.0
LINE_EVERY_SECONDS = 10.0
SHORTEST_BAR, SHORT_BAR, LONGEST_BAR = 3, 8, 24
"""Columns: with the shortest text, with the others, and where there is room."""


def say(text: str, process: "Process | None" = None) -> None:
    """Print lines once, from rank 0, without breaking a progress bar; a terminal folds them."""
    if process is None or process.is_main:
        tqdm.write(folded(text, sys.stdout), file=sys.stdout)
        sys.stdout.flush()


class Progress:
    """How far a piece of work is: a bar on a terminal, elsewhere a line every ten seconds.

    What is beside the bar is told by the clock, not by the count, so slow work is not silent and
    fast work is not slowed down. To be closed, or entered, so that the bar goes away.

    Args:
        title: Of the work, for instance `epoch 3/90`.
        units: What is counted, for instance `steps`.
        total: Units of the whole work.
        first: Units done before.
        process: Ranks other than 0 are silent.
        lines: Whether it is told in lines where there is no terminal.
    """

    def __init__(
        self,
        title: str,
        units: str,
        total: int,
        first: int = 0,
        process: "Process | None" = None,
        lines: bool = True,
    ) -> None:
        self.title, self.units, self.total, self.first = title, units, total, first
        self.done = first
        self.started = time.monotonic()
        is_main = process is None or process.is_main
        self.bar: tqdm[Any] | None = None
        self.next = self.started
        if is_main and has_terminal():
            columns, line = self._line(())
            self.bar = tqdm(
                total=total, initial=first, leave=False, ncols=columns, bar_format=line,
                ascii=_blocks(),
            )  # fmt: skip
        elif is_main and lines:
            self.next += LINE_EVERY_SECONDS
        else:
            self.next = float("inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        self.next = float("inf")
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def through(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items on, and count those that are done with."""
        for done, item in enumerate(items, self.first + 1):
            yield item
            self.move(done)

    def move(self, done: int) -> None:
        """Count; says how fast it goes and what is left, if it is time to."""
        if self.is_due(done):
            seconds = time.monotonic() - self.started
            pace = (done - self.first) / seconds if seconds else 0.0
            rate = f"{pace:,.0f}" if pace >= 1 else f"{pace:.2g}"
            left = (self.total - done) / pace if pace else 0.0
            self.tell(
                (f"{rate} {self.units}/s", f"left {format_seconds(left)}"),
                (f"left {format_seconds(left, short=True)}",),
            )

    def is_due(self, done: int) -> bool:
        """Count, and whether it is time to tell; costs a look at the clock."""
        self.done = done
        return time.monotonic() >= self.next

    def tell(self, *texts: Sequence[str]) -> None:
        """Tell how far it is.

        Args:
            *texts: The same in parts, from the longest text to the shortest. A line gets the first,
                a bar the first that leaves room for it.
        """
        if self.bar is not None:
            self.bar.n = self.done
            self.bar.ncols, self.bar.bar_format = self._line(*texts)
            self.bar.refresh()
            self.next = time.monotonic() + BAR_EVERY_SECONDS
        else:
            count = f"{self.title}: {self.done}/{self.total} {self.units}"
            say("  ".join([count, *texts[0]]))
            self.next = time.monotonic() + LINE_EVERY_SECONDS

    def _line(self, *texts: Sequence[str]) -> tuple[int, str]:
        """Columns that a line may have, and the line as tqdm fills it in."""
        columns = (
            columns_of(sys.stderr) - 1
        )  # some terminals wrap a line that is as wide as they are
        total = str(self.total)
        count = f"{self.done:>{len(total)}}/{total}"
        taken = len(f"{self.title}  {count}")
        length, text = fitted(columns - taken, texts)
        return columns, f"{self.title} {{bar:{length}}} {count}{text}"


def fitted(columns: int, texts: Sequence[Sequence[str]]) -> tuple[int, str]:
    """Length of a bar, and the text after its count, in columns that both share.

    Args:
        columns: Their number; 3 at least are the bar's.
        texts: In parts, from the longest to the shortest, of which parts at the end are left out
            where even that does not fit.
    """
    last = texts[-1]
    tries = [(parts, "  ", SHORT_BAR) for parts in texts]
    tries += [(last[:count], " ", SHORTEST_BAR) for count in range(len(last), -1, -1)]
    for parts, between, shortest in tries:
        text = "".join(between + part for part in parts)
        if columns - len(text) >= shortest:
            return min(columns - len(text), LONGEST_BAR), text
    return SHORTEST_BAR, ""


def _blocks() -> str:
    """What an empty and a full column of a bar look like."""
    try:
        "░█".encode(sys.stderr.encoding)
    except UnicodeEncodeError:
        return ".#"
    return "░█"


def format_seconds(seconds: float, short: bool = False) -> str:
    """For instance 45 s, 3 min 20 s, 5 h 02 min, 3 d 04 h; in short 45s, 3m20s, 5h02m, 3d04h."""
    whole = round(seconds)
    text = f"{whole} s"
    for unit, size, small_unit, small in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            text = f"{whole // size} {unit} {whole % size // small:02d} {small_unit}"
            break
    return text.replace("min", "m").replace(" ", "") if short else text
