import math
import time

import pytest
import torch

from mobilenext.runtime.distributed import Process
from mobilenext.training.meter import MOST_SKIPS_IN_A_ROW, Interval, TrainMeter
from mobilenext.training.progress import format_seconds
from mobilenext.training.step import Measured

CPU = Process(torch.device("cpu"))


def slow_batches():
    for number in range(3):
        time.sleep(0.05)
        yield number


YES, NO = torch.tensor(True), torch.tensor(False)


def add(meter: TrainMeter, *losses: float, finite: torch.Tensor = YES) -> None:
    for loss in losses:
        meter.add(Measured(torch.tensor(loss), torch.tensor(2), finite, 4))


def test_interval() -> None:
    meter = TrainMeter(CPU)
    for number in meter.timed(slow_batches()):
        add(meter, float(number))
    assert meter.collect(step=13) is None
    interval = meter.close()
    assert interval.means()["loss"] == 1.0
    assert interval.means()["top1"] == 50.0
    waited = interval.means()["data_wait_share"]
    assert waited is not None
    assert waited > 0.8
    assert (meter.clock.images, interval.steps) == (12, 3)
    assert meter.clock.wait_seconds >= 0.15
    assert meter.clock.images_per_second == pytest.approx(12 / meter.clock.train_seconds)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_first_bad_step_is_named(bad: float) -> None:
    meter = TrainMeter(CPU)
    add(meter, 1.0, 2.0, bad, 1.0, bad)
    assert meter.collect(step=105) == 103  # steps 101 to 105


def test_a_gradient_that_is_not_finite_is_a_bad_step() -> None:
    meter = TrainMeter(CPU)
    add(meter, 1.0)
    add(meter, 1.0, finite=NO)
    assert meter.collect(step=2) == 2


def test_overflow_under_a_gradient_scaler_is_no_bad_step() -> None:
    meter = TrainMeter(CPU, scaled=True)
    add(meter, 1.0, 3.0)
    add(meter, 100.0, finite=NO)
    assert meter.collect(step=3) is None
    assert (meter.interval.means()["loss"], meter.interval.skipped) == (104 / 3, 1)
    add(meter, math.nan, finite=NO)
    assert meter.collect(step=4) == 4


def test_skipped_steps_are_counted_and_bounded() -> None:
    meter = TrainMeter(CPU, skips=True)
    add(meter, 1.0, math.nan, 3.0)
    assert meter.collect(step=3) is None
    assert meter.interval.means()["loss"] == 2.0
    assert meter.interval.means()["skipped_steps"] == 1
    meter.close()
    add(meter, *[math.nan] * MOST_SKIPS_IN_A_ROW)
    assert meter.collect(step=33) is None
    assert meter.interval.means()["loss"] is None
    add(meter, math.inf)
    assert meter.collect(step=34) == 34


def test_intervals_add_up() -> None:
    meter = TrainMeter(CPU)
    for step, losses in ((2, [1.0, 2.0]), (3, [6.0])):
        add(meter, *losses)
        meter.collect(step)
        meter.close()
    epoch = meter.close_epoch()
    assert epoch.means()["loss"] == 3.0
    assert epoch.means()["top1"] == 50.0
    assert meter.epoch.steps == 0


def test_a_checkpoint_within_an_interval_changes_no_number() -> None:
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    whole, parts = TrainMeter(CPU), TrainMeter(CPU)
    add(whole, *losses)
    whole.collect(50)
    add(parts, *losses[:17])
    parts.collect(17)
    resumed = TrainMeter(CPU)
    resumed.restore(parts.to_plain())
    add(resumed, *losses[17:])
    resumed.collect(50)
    assert resumed.interval.loss_sum == whole.interval.loss_sum
    assert resumed.interval.steps == whole.interval.steps == 50
    assert resumed.clock.images == whole.clock.images == 200


def test_points_on_the_way_are_the_interval_so_far() -> None:
    """The same ones with a checkpoint in between."""
    losses = [1.0, 2.0, 6.0, 3.0, 8.0]

    def points(*sessions: int) -> list[tuple[int, float | None, int]]:
        meter, told = TrainMeter(CPU), []
        for number, loss in enumerate(losses, 1):
            meter.add(Measured(torch.tensor(loss), torch.tensor(2), YES, 4), point=number % 2 == 0)
            if number in (*sessions, len(losses)):
                meter.collect(number)
                told += meter.take_points()
                plain, meter = meter.to_plain(), TrainMeter(CPU)
                meter.restore(plain)
        return [(step, sums.means()["loss"], sums.images) for step, sums in told]

    assert points() == points(1) == points(2, 3) == [(2, 1.5, 8), (4, 3.0, 16)]


def test_a_look_at_what_is_not_collected_yet() -> None:
    meter = TrainMeter(Process(torch.device("cpu"), world_size=2))
    assert meter.recent() == Interval()
    add(meter, 1.0, math.nan, 3.0)
    recent = meter.recent()
    assert recent is not None
    assert recent.means()["loss"] == 2.0
    assert (recent.steps, recent.images, recent.correct) == (3, 24, 12)  # of both ranks
    assert recent.seconds > 0
    assert meter.interval == Interval()


def test_a_look_goes_back_as_far_as_the_last_interval() -> None:
    meter = TrainMeter(CPU)
    for step, loss in enumerate([1.0, 2.0, 6.0], 1):
        add(meter, loss)
        meter.collect(step)
        meter.close()
    add(meter, 4.0)
    recent = meter.recent()
    assert recent is not None
    assert (recent.steps, recent.means()["loss"]) == (2, 5.0)
    meter.collect(4)
    meter.close()
    meter.close_epoch()
    assert meter.recent() == Interval()


class Copying:
    """An event of a device that has not come so far."""

    there = False

    def query(self) -> bool:
        return self.there


def test_a_look_never_waits() -> None:
    meter, event = TrainMeter(CPU), Copying()
    add(meter, 1.0)
    meter.glance = meter._glance()
    meter.glance.arrived = event  # pyright: ignore[reportAttributeAccessIssue]
    add(meter, 9.0)
    assert meter.recent() is None
    event.there = True
    recent = meter.recent()
    assert recent is not None
    assert (recent.steps, recent.means()["loss"]) == (1, 1.0)
    meter.glance = meter._glance()
    meter.glance.arrived = Copying()  # pyright: ignore[reportAttributeAccessIssue]
    meter.collect(2)  # the steps under way would be counted twice
    recent = meter.recent()
    assert recent is not None
    assert recent.steps == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45.4, "45 s"), (200, "3 min 20 s"), (18120, "5 h 02 min"), (273600, "3 d 04 h")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
    assert format_seconds(seconds, short=True) == text.replace("min", "m").replace(" ", "")
