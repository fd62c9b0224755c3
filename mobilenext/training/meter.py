"""Numbers of training, kept on the device and read once per logging interval."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
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
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Interval(*[one + two for one, two in pairs])

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
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.finite: list[Tensor] = []
        self.images = 0
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

    def add(self, measured: Measured) -> None:
        """Note one optimiser step of this rank."""
        self.losses.append(measured.loss)
        self.correct.append(measured.correct)
        self.finite.append(measured.finite)
        self.images += measured.images

    def collect(self, step: int) -> int | None:
        """Add the steps up to `step` to the interval: the one place that waits for the device.

        Returns:
            The first step that must not have been: its loss or gradient is not finite, or it is one
            skipped step too many in a row. Steps count from 1. None if all is well.
        """
        if not self.losses:
            return None
        ranks = self.process.world_size
        first = step - len(self.losses) + 1
        # Float64 sums of a few float32 values are exact, so they do not depend on how the steps are
        # divided between two calls, nor on the order in which ranks are added.
        exact = torch.float32 if self.losses[0].device.type == "mps" else torch.float64
        sums = torch.cat(
            [torch.stack(values).to(exact) for values in (self.losses, self.finite, self.correct)]
        )
        count = len(self.losses)
        totals = self.process.all_reduce_sum(sums).tolist()
        losses, finite, correct = totals[:count], totals[count : 2 * count], totals[2 * count :]
        bad_step, loss_sum, counted, skipped = None, self.interval.loss_sum, 0, 0
        for number, (loss, is_finite) in enumerate(zip(losses, finite, strict=True)):
            if math.isfinite(loss):
                loss_sum += loss / ranks
                counted += 1
                if is_finite == ranks:
                    self.skips_in_a_row = 0
                    continue
            skipped += 1
            self.skips_in_a_row += 1
            expected = self.skips or (self.scaled and math.isfinite(loss))
            if not expected or self.skips_in_a_row > MOST_SKIPS_IN_A_ROW:
                bad_step = first + number
                break
        now = time.perf_counter()
        read = Interval(
            steps=count,
            images=self.images * ranks,
            losses=counted,
            correct=sum(round(value) for value in correct if math.isfinite(value)),
            skipped=skipped,
            seconds=now - self.started,
            waited=self.waited,
        )
        # The loss goes on from the sum so far, not by adding two sums: rounding is then the same.
        self.interval = Interval(**{**asdict(self.interval + read), "loss_sum": loss_sum})
        self.clock.train_seconds += read.seconds
        self.clock.wait_seconds += read.waited
        self.clock.images += read.images
        self.losses, self.correct, self.finite, self.images = [], [], [], 0
        self.started, self.waited = now, 0.0
        return bad_step

    def pause(self) -> None:
        """Leave the time since the last `collect` out: it went to something else than training."""
        self.started = time.perf_counter()

    def close(self) -> Interval:
        """End the interval whose steps have been collected."""
        closed, self.interval = self.interval, Interval()
        self.epoch += closed
        return closed

    def close_epoch(self) -> Interval:
        """End the epoch, all its intervals closed."""
        closed, self.epoch = self.epoch, Interval()
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
