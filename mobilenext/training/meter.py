"""Numbers of training, kept on the device and read once per logging interval."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from mobilenext.runtime.distributed import Process
from mobilenext.training.measures import TOP1, Measure
from mobilenext.training.step import Measured

T = TypeVar("T")

MOST_SKIPS_IN_A_ROW = 30
"""More than fp16's gradient scaler needs to come down from its first scale, 65,536."""


@dataclass
class Clock:
    """Time and work of training so far, over all the sessions of a run; evaluation not counted."""

    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    images: int = 0
    wall_seconds: float = 0.0
    """All of the run, evaluation and checkpoints too."""

    @property
    def images_per_second(self) -> float:
        """Training images of all ranks per second."""
        return self.images / self.train_seconds if self.train_seconds else 0.0

    @property
    def data_wait_share(self) -> float:
        """Share of the training time in which rank 0 waited for the loader, in [0, 1]."""
        return self.wait_seconds / self.train_seconds if self.train_seconds else 0.0


@dataclass(frozen=True)
class Interval:
    """Sums over some optimiser steps and all ranks, between two looks at the device."""

    steps: int = 0
    images: int = 0
    loss_sum: float = 0.0
    """Sum of the steps' mean losses, as far as they are finite."""
    losses: int = 0
    """Number of steps whose loss was finite."""
    correct: int = 0
    """Augmented training images that were classified as their own label."""
    skipped: int = 0
    """Steps that were not applied, since loss or gradient was not finite."""
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds in which rank 0 waited for the loader."""

    def __add__(self, other: "Interval") -> "Interval":
        names = self.__dataclass_fields__
        return Interval(*[getattr(self, name) + getattr(other, name) for name in names])

    def means(self, counted: Measure | None = TOP1) -> dict[str, float | None]:
        """Means over the interval, as they are reported.

        Args:
            counted: What `correct` says of the training images; None: it is not counted.

        Returns:
            loss (None if none was finite), the share of correct predictions in per cent by the name
            of its measure, images_per_second, data_wait_share in [0, 1]; skipped_steps if there are
            any.
        """
        share = {} if counted is None else {counted.key: 100 * self.correct / self.images}
        return {
            "loss": self.loss_sum / self.losses if self.losses else None,
            **share,
            "images_per_second": self.images / self.seconds,
            "data_wait_share": self.waited / self.seconds,
            **({"skipped_steps": self.skipped} if self.skipped else {}),
        }


@dataclass
class Glance:
    """Losses and hits on their way from the device, which nobody waits for."""

    numbers: Tensor
    """Losses of some steps and, below them, correct predictions; (2, steps), on the host."""
    arrived: torch.cuda.Event | None
    """When they can be read; None: at once."""
    known: Interval
    """What the host knows of these steps: images and times."""


class TrainMeter:
    """Collects losses and correct predictions without waiting for the device.

    Args:
        process: This process.
        skips: Whether a step with a loss or gradient that is not finite is left out, not an error.
        scaled: Whether gradients overflow now and then as a matter of course (fp16's scaler).
    """

    def __init__(self, process: Process, skips: bool = False, scaled: bool = False) -> None:
        self.process, self.skips, self.scaled = process, skips, scaled
        self.clock = Clock()
        self.interval, self.epoch = Interval(), Interval()
        """Since the last report, and since the beginning of the epoch; both over all sessions."""
        self.skips_in_a_row = 0
        self.pending: list[Measured] = []
        self.points_due: list[int] = []
        """Numbers of pending steps after which the interval so far is a point of the curves."""
        self.points: list[tuple[int, Interval]] = []
        self.latest = Interval()
        """The epoch's newest interval that has been closed."""
        self.glance: Glance | None = None
        self.waited = 0.0
        self.started = self.ticked = time.perf_counter()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches on, noting how long each was waited for."""
        iterator = iter(batches)
        self.started = time.perf_counter()
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - asked
            yield batch

    def add(self, measured: Measured, point: bool = False) -> None:
        """Note one optimiser step of this rank.

        Args:
            measured: Its measurements.
            point: Whether the interval so far is to be told by `take_points`.
        """
        self.pending.append(measured)
        if point:
            self.points_due.append(len(self.pending))

    def collect(self, step: int) -> int | None:
        """Add the steps up to `step` to the interval: the one place that waits for the device.

        Returns:
            The first step that must not have been: its loss or gradient is not finite, or it is one
            skipped step too many in a row. Steps count from 1. None if all is well.
        """
        if not self.pending:
            return None
        ranks, count = self.process.world_size, len(self.pending)
        first = step - count + 1
        parts = zip(*[(m.loss, m.finite, m.correct) for m in self.pending], strict=True)
        # Float64 sums of a few float32 values are exact, so they do not depend on how the steps are
        # divided between two calls, nor on the order in which ranks are added.
        exact = torch.float32 if self.pending[0].loss.device.type == "mps" else torch.float64
        sums = torch.cat([torch.stack(values).to(exact) for values in parts])
        totals = self.process.all_reduce_sum(sums).tolist()
        now = time.perf_counter()
        seconds = now - self.started
        self.clock.train_seconds += seconds
        self.clock.wait_seconds += self.waited
        bad_step = None
        steps = zip(totals[:count], totals[count : 2 * count], totals[2 * count :], strict=True)
        for number, (loss, finite, correct) in enumerate(steps):
            has_loss = math.isfinite(loss)
            applied = has_loss and finite == ranks
            self.skips_in_a_row = 0 if applied else self.skips_in_a_row + 1
            expected = applied or self.skips or (self.scaled and has_loss)
            if not expected or self.skips_in_a_row > MOST_SKIPS_IN_A_ROW:
                bad_step = first + number
                break
            self.interval += Interval(
                steps=1,
                images=self.pending[number].images * ranks,
                loss_sum=loss / ranks if has_loss else 0.0,
                losses=int(has_loss),
                correct=round(correct),
                skipped=int(not applied),
                seconds=seconds / count,
                waited=self.waited / count,
            )
            if number + 1 in self.points_due:
                self.points.append((first + number, self.interval))
        self.clock.images += sum(measured.images for measured in self.pending) * ranks
        self.pending, self.points_due, self.glance = [], [], None
        self.started, self.waited = now, 0.0
        return bad_step

    def take_points(self) -> list[tuple[int, Interval]]:
        """Points of the curves that have been collected: a step, and its interval up to there."""
        points, self.points = self.points, []
        return points

    def recent(self) -> Interval | None:
        """Sums of about the last interval, to be looked at; never waits for the device.

        What is not collected yet is this rank's share, taken for all ranks.

        Returns:
            None if the device has not come that far; to be asked again after the next step.
        """
        past = self.latest + self.interval
        if not self.pending:
            return past
        if self.glance is None:
            self.glance = self._glance()
        if self.glance.arrived is not None and not self.glance.arrived.query():
            return None
        seen, self.glance = self.glance, None
        losses, correct = seen.numbers.tolist()
        finite = [loss for loss in losses if math.isfinite(loss)]
        right = round(sum(correct)) * self.process.world_size
        return past + replace(seen.known, loss_sum=sum(finite), losses=len(finite), correct=right)

    def _glance(self) -> Glance:
        """Have the pending steps' numbers sent to the host, behind what the device has to do."""
        device, steps = self.pending[0].loss.device, len(self.pending)
        losses = torch.stack([measured.loss for measured in self.pending])
        correct = torch.stack([measured.correct for measured in self.pending])
        numbers = torch.stack([losses.float(), correct.float()])
        arrived = None
        if device.type == "cuda":  # other devices' copies are there when they come back
            numbers = numbers.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(device))
        known = Interval(
            steps=steps,
            images=sum(measured.images for measured in self.pending) * self.process.world_size,
            seconds=time.perf_counter() - self.started,
            waited=self.waited,
        )
        return Glance(numbers, arrived, known)

    def pause(self) -> None:
        """Leave the time since the last `collect` out: it went to something else than training."""
        self.started = time.perf_counter()

    def close(self) -> Interval:
        """End the interval whose steps have been collected."""
        closed, self.interval = self.interval, Interval()
        self.epoch += closed
        self.latest = closed
        return closed

    def close_epoch(self) -> Interval:
        """End the epoch, all its intervals closed."""
        closed, self.epoch, self.latest = self.epoch, Interval(), Interval()
        return closed

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        now = time.perf_counter()
        self.clock.wall_seconds += now - self.ticked
        self.ticked = now
        return {
            "clock": asdict(self.clock),
            "interval": asdict(self.interval),
            "epoch": asdict(self.epoch),
            "skips_in_a_row": self.skips_in_a_row,
        }

    def restore(self, plain: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.clock = Clock(**plain["clock"])
        self.interval, self.epoch = Interval(**plain["interval"]), Interval(**plain["epoch"])
        self.skips_in_a_row = plain["skips_in_a_row"]
