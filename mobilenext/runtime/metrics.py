"""Numbers of training, kept on the device and read once per logging interval."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mobilenext.runtime.distributed import Process

T = TypeVar("T")


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

    def as_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return asdict(self)


@dataclass(frozen=True)
class Interval:
    """Sums over some optimiser steps and all ranks, between two looks at the device."""

    steps: int
    images: int
    loss_sum: float
    """Of the steps' mean losses."""
    correct: int
    """Augmented training images that were classified as their own label."""
    seconds: float
    waited: float
    """Seconds in which rank 0 waited for the loader."""
    bad_step: int | None = None
    """First step with a loss that is not finite; steps count from 1."""

    def __add__(self, other: "Interval") -> "Interval":
        return Interval(
            self.steps + other.steps,
            self.images + other.images,
            self.loss_sum + other.loss_sum,
            self.correct + other.correct,
            self.seconds + other.seconds,
            self.waited + other.waited,
        )

    def means(self) -> dict[str, float]:
        """loss, top1 in per cent, images_per_second, data_wait_share in [0, 1]."""
        return {
            "loss": self.loss_sum / self.steps,
            "top1": 100 * self.correct / self.images,
            "images_per_second": self.images / self.seconds,
            "data_wait_share": self.waited / self.seconds,
        }


class TrainMeter:
    """Collects losses and correct predictions without waiting for the device."""

    def __init__(self, process: Process, clock: Clock) -> None:
        self.process, self.clock = process, clock
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.images = 0
        self.started = time.perf_counter()
        self.waited = 0.0

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

    def add(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """Note one optimiser step of this rank.

        Args:
            loss: Mean over the rank's images, a scalar on the device.
            correct: Number of correct predictions, a scalar on the device.
            images: The rank's images.
        """
        self.losses.append(loss)
        self.correct.append(correct)
        self.images += images

    def read(self, step: int) -> Interval:
        """Close the interval that ends with `step`: the one place that waits for the device."""
        ranks = self.process.world_size
        first = step - len(self.losses) + 1
        sums = torch.stack([*self.losses, torch.stack(self.correct).sum().to(self.losses[0].dtype)])
        *losses, correct = self.process.all_reduce_sum(sums).tolist()
        losses = [loss / ranks for loss in losses]
        interval = Interval(
            steps=len(losses),
            images=self.images * ranks,
            loss_sum=sum(losses),
            correct=round(correct) if math.isfinite(correct) else 0,
            seconds=time.perf_counter() - self.started,
            waited=self.waited,
            bad_step=next(
                (first + i for i, loss in enumerate(losses) if not math.isfinite(loss)), None
            ),
        )
        self.clock.train_seconds += interval.seconds
        self.clock.wait_seconds += interval.waited
        self.clock.images += interval.images
        self.losses, self.correct, self.images = [], [], 0
        self.started, self.waited = time.perf_counter(), 0.0
        return interval
