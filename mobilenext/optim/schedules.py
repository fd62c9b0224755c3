"""Learning-rate schedules: pure functions of the step, with nothing to save or restore.

Every schedule has the same frame: warm-up, the curve, cool-down. `epochs` is the whole run; the
last `cooldown_epochs` of it stay at `min_lr`, and the curve's horizon is what lies before them.
Warm-up goes linearly from `warmup_lr` towards the base rate and overlays the curve's start. This is
what timm did in 2020, when the released MobileNeXt runs were trained.

`every="epoch"` holds the rate constant within an epoch; `every="step"` moves it each step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from mobilenext.errors import InputError

Every = Literal["step", "epoch"]


def cosine(
    step: int,
    *,
    base_lr: float,
    steps_per_epoch: int,
    epochs: int,
    min_lr: float = 0.0,
    warmup_epochs: float = 0.0,
    warmup_lr: float = 0.0,
    cooldown_epochs: int = 0,
    every: Every = "step",
) -> float:
    """min_lr + (base_lr - min_lr) * (1 + cos(pi * t / horizon)) / 2 at epoch t (arXiv 1608.03983).

    Args:
        step: Optimiser steps done so far, from 0.
        base_lr: The rate that the curve starts from.
        steps_per_epoch: Optimiser steps in an epoch.
        epochs: Epochs of the whole run, cool-down included.
        min_lr: The rate at the end of the curve and during cool-down.
        warmup_epochs: Length of the warm-up, within the horizon.
        warmup_lr: The rate at step 0 where there is a warm-up.
        cooldown_epochs: Epochs at `min_lr` at the end.
        every: Whether the rate moves each step or each epoch.
    """

    def curve(t: float, horizon: float) -> float:
        return min_lr + 0.5 * (base_lr - min_lr) * (1 + math.cos(math.pi * t / horizon))

    frame = (step, steps_per_epoch, epochs, warmup_epochs, cooldown_epochs, every)
    return _framed(curve, *frame, base_lr, warmup_lr, min_lr)


def step_decay(
    step: int,
    *,
    base_lr: float,
    steps_per_epoch: int,
    epochs: int,
    decay_rate: float,
    decay_epochs: float,
    min_lr: float = 0.0,
    warmup_epochs: float = 0.0,
    warmup_lr: float = 0.0,
    cooldown_epochs: int = 0,
    every: Every = "epoch",
) -> float:
    """base_lr * decay_rate ** floor(t / decay_epochs) at epoch t, never below `min_lr`.

    Args:
        step: Optimiser steps done so far, from 0.
        base_lr: The rate at the start.
        steps_per_epoch: Optimiser steps in an epoch.
        epochs: Epochs of the whole run, cool-down included.
        decay_rate: Factor at each decay, for instance 0.97.
        decay_epochs: Epochs between decays, for instance 2.4.
        min_lr: Lower bound of the rate, and the rate during cool-down.
        warmup_epochs: Length of the warm-up.
        warmup_lr: The rate at step 0 where there is a warm-up.
        cooldown_epochs: Epochs at `min_lr` at the end.
        every: Whether the rate may move each step or each epoch.
    """
    if not (decay_epochs > 0 and 0 < decay_rate <= 1):
        raise InputError(
            f"schedule: expected decay_epochs above 0 and decay_rate in (0, 1], got {decay_epochs} "
            f"and {decay_rate}"
        )

    def curve(t: float, horizon: float) -> float:
        return max(min_lr, base_lr * decay_rate ** math.floor(t / decay_epochs))

    frame = (step, steps_per_epoch, epochs, warmup_epochs, cooldown_epochs, every)
    return _framed(curve, *frame, base_lr, warmup_lr, min_lr)


def milestones(
    step: int,
    *,
    base_lr: float,
    steps_per_epoch: int,
    epochs: int,
    decay_rate: float,
    at: Sequence[float],
    warmup_epochs: float = 0.0,
    warmup_lr: float = 0.0,
    every: Every = "step",
) -> float:
    """base_lr times `decay_rate` for each milestone that lies behind.

    Args:
        step: Optimiser steps done so far, from 0.
        base_lr: The rate at the start.
        steps_per_epoch: Optimiser steps in an epoch.
        epochs: Epochs of the whole run.
        decay_rate: Factor at each milestone, for instance 0.1.
        at: Milestones, as shares of the run: 0.5 is its middle.
        warmup_epochs: Length of the warm-up.
        warmup_lr: The rate at step 0 where there is a warm-up.
        every: Whether the rate may move each step or each epoch.
    """
    if not 0 < decay_rate <= 1:
        raise InputError(f"schedule: expected decay_rate in (0, 1], got {decay_rate}")

    def curve(t: float, horizon: float) -> float:
        return base_lr * decay_rate ** sum(t >= share * horizon for share in at)

    frame = (step, steps_per_epoch, epochs, warmup_epochs, 0, every)
    return _framed(curve, *frame, base_lr, warmup_lr, 0.0)


def constant(
    step: int,
    *,
    base_lr: float,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: float = 0.0,
    warmup_lr: float = 0.0,
    every: Every = "step",
) -> float:
    """base_lr throughout, after the warm-up if there is one.

    Args:
        step: Optimiser steps done so far, from 0.
        base_lr: The rate.
        steps_per_epoch: Optimiser steps in an epoch.
        epochs: Epochs of the whole run.
        warmup_epochs: Length of the warm-up.
        warmup_lr: The rate at step 0 where there is a warm-up.
        every: Whether the warm-up moves each step or each epoch.
    """
    frame = (step, steps_per_epoch, epochs, warmup_epochs, 0, every)
    return _framed(lambda _t, _horizon: base_lr, *frame, base_lr, warmup_lr, base_lr)


def _framed(
    curve: Callable[[float, float], float],
    step: int,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: float,
    cooldown_epochs: int,
    every: Every,
    base_lr: float,
    warmup_lr: float,
    min_lr: float,
) -> float:
    """Warm-up, then `curve(t, horizon)`, then cool-down, at the epoch t that `step` lies in."""
    horizon = epochs - cooldown_epochs
    if horizon <= 0 or cooldown_epochs < 0 or not 0 <= warmup_epochs <= horizon:
        raise InputError(
            f"schedule: {epochs} epochs leave {horizon} before a cool-down of {cooldown_epochs}, "
            f"and the warm-up takes {warmup_epochs}: raise epochs, or lower "
            "schedule.cooldown_epochs and schedule.warmup_epochs, or choose schedule=cosine"
        )
    if every not in ("step", "epoch"):
        raise InputError(f"schedule.every: expected step or epoch, got {every!r}")
    t = step // steps_per_epoch if every == "epoch" else step / steps_per_epoch
    if t < warmup_epochs:
        return warmup_lr + (base_lr - warmup_lr) * t / warmup_epochs
    return curve(t, horizon) if t < horizon else min_lr
