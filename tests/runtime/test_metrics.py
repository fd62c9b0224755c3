import math
import time

import pytest
import torch

from mobilenext.runtime.distributed import Process
from mobilenext.runtime.metrics import Clock, TrainMeter
from mobilenext.runtime.monitor import format_seconds

CPU = Process(torch.device("cpu"))


def slow_batches():
    for number in range(3):
        time.sleep(0.05)
        yield number


def test_interval() -> None:
    clock = Clock()
    meter = TrainMeter(CPU, clock)
    for number in meter.timed(slow_batches()):
        meter.add(torch.tensor(float(number)), torch.tensor(2), 4)
    interval = meter.read(step=13)
    assert interval.means()["loss"] == 1.0
    assert interval.means()["top1"] == 50.0
    assert interval.bad_step is None
    assert interval.means()["data_wait_share"] > 0.8
    assert (clock.images, interval.steps) == (12, 3)
    assert clock.wait_seconds >= 0.15
    assert clock.images_per_second == pytest.approx(12 / clock.train_seconds)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_first_bad_step_is_named(bad: float) -> None:
    meter = TrainMeter(CPU, Clock())
    for loss in (1.0, 2.0, bad, 1.0, bad):
        meter.add(torch.tensor(loss), torch.tensor(0), 1)
    assert meter.read(step=105).bad_step == 103  # steps 101 to 105


def test_intervals_add_up() -> None:
    meter = TrainMeter(CPU, Clock())
    parts = []
    for losses in ([1.0, 2.0], [6.0]):
        for loss in losses:
            meter.add(torch.tensor(loss), torch.tensor(1), 2)
        parts.append(meter.read(step=3))
    assert (parts[0] + parts[1]).means()["loss"] == 3.0
    assert (parts[0] + parts[1]).means()["top1"] == 50.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45.4, "45 s"), (200, "3 min 20 s"), (18120, "5 h 02 min"), (273600, "3 d 04 h")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
