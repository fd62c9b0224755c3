"""How long networks take beside each other: interleaved rounds, ratios within a round.

A machine's speed moves with what else it does, in seconds and in hours. Candidates are therefore
timed in turns, each round begins with another one, and what is compared are their ratios within a
round.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

FEWEST_ROUNDS = 10
SHORTEST_MS = 2.0
"""A candidate that is faster is run several times for each measurement."""


class Quartiles(NamedTuple):
    """Three quartiles of some values."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """Those of at least two values."""
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


class Lap(NamedTuple):
    """What a measurement gave, in milliseconds for one run."""

    wall: float
    cpu: float | None
    """Of all threads of this process; None where others compute."""


class Clock(Protocol):
    """Times a number of runs."""

    def __call__(self, run: Callable[[], object], repeats: int) -> Lap:
        """The time of one run, the mean of `repeats` ones."""
        ...


def processor_clock(run: Callable[[], object], repeats: int) -> Lap:
    """Wall and processor time; see `Clock`."""
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    for _ in range(repeats):
        run()
    cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
    return Lap(wall / repeats / 1e6, cpu / repeats / 1e6)


def cuda_clock(run: Callable[[], object], repeats: int) -> Lap:
    """Time on a CUDA device, between events in its stream; see `Clock`."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return Lap(begin.elapsed_time(end) / repeats, None)


@dataclass(frozen=True)
class Timing:
    """A candidate's times, round by round, in milliseconds.

    Attributes:
        laps: One for each round.
        repeats: Runs that a lap is the mean of.
        ratios: To the baseline in the same round; empty: it is the baseline, or there is none.
        by_cpu: Whether ratios are of processor time, which other programs disturb less.
    """

    laps: tuple[Lap, ...]
    repeats: int
    ratios: tuple[float, ...]
    by_cpu: bool

    @property
    def wall(self) -> list[float]:
        """Wall times."""
        return [lap.wall for lap in self.laps]

    @property
    def cpu(self) -> list[float] | None:
        """Processor times of all threads."""
        return None if self.laps[0].cpu is None else [lap.cpu or 0.0 for lap in self.laps]

    def busy_share(self, threads: int) -> float | None:
        """Share of `threads` cores that it had; low where other programs ran."""
        cpu = self.cpu
        return None if cpu is None else sum(cpu) / (sum(self.wall) * threads)

    @property
    def ratio(self) -> Quartiles | None:
        """Of the ratios to the baseline."""
        return Quartiles.of(self.ratios) if self.ratios else None

    @property
    def is_resolved(self) -> bool | None:
        """Whether the quartiles of the ratio exclude 1."""
        ratio = self.ratio
        return None if ratio is None else not ratio.q1 <= 1.0 <= ratio.q3


def measure(
    candidates: Sequence[Callable[[], object]],
    baselines: Sequence[int | None],
    rounds: int,
    warmup: int,
    precision: float,
    by_cpu: bool,
    clock: Clock = processor_clock,
    shown: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Timing]:
    """Time candidates in turns.

    Args:
        candidates: What to run.
        baselines: For each the place of the candidate that it is compared with; its own or None:
            it is compared with none.
        rounds: At most so many rounds, at least 2.
        warmup: Runs of each before.
        precision: Rounds end early, but not before `FEWEST_ROUNDS`, once the quartiles of all
            ratios are at most this far apart.
        by_cpu: Whether ratios are of processor time.
        clock: Times runs.
        shown: Passes round numbers on, and shows how far they are.
    """
    repeats = []
    for run in candidates:
        for _ in range(max(1, warmup)):
            run()
        repeats.append(max(1, round(SHORTEST_MS / max(clock(run, 1).wall, 1e-6))))
    laps: list[list[Lap]] = [[] for _ in candidates]

    def ratios(place: int) -> list[float]:
        base = baselines[place]
        if base is None or base == place:
            return []
        return [
            _time(mine, by_cpu) / _time(other, by_cpu)
            for mine, other in zip(laps[place], laps[base], strict=True)
        ]

    with _no_garbage_collection():
        for number in shown(range(rounds)):
            for turn in range(len(candidates)):
                place = (number + turn) % len(candidates)
                laps[place].append(clock(candidates[place], repeats[place]))
            if number + 1 >= min(FEWEST_ROUNDS, rounds) and _is_precise(
                [ratios(place) for place in range(len(candidates))], precision
            ):
                break
    return [
        Timing(tuple(laps[place]), repeats[place], tuple(ratios(place)), by_cpu)
        for place in range(len(candidates))
    ]


def _time(lap: Lap, by_cpu: bool) -> float:
    return lap.cpu if by_cpu and lap.cpu else lap.wall


def _is_precise(ratios: list[list[float]], precision: float) -> bool:
    found = [Quartiles.of(values) for values in ratios if len(values) >= 2]
    return bool(found) and all(one.q3 - one.q1 <= precision for one in found)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
