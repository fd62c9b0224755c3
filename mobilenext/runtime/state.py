"""The state of a training run, named once: what a checkpoint has and what training goes on from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from mobilenext.errors import InputError
from mobilenext.runtime.checkpoint import load_into
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.metrics import Clock

Scores = dict[str, dict[str, Any]]


@dataclass
class TrainState:
    """Weights, averages, optimiser, scaler, position and records of a run.

    No generator state: all random numbers are functions of counters (`mobilenext.seeding`).
    """

    described: dict[str, Any]
    """What the network is and was trained on: `model`, `classes`, `data`."""
    network: nn.Module
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    clock: Clock = field(default_factory=Clock)
    epoch: int = 0
    """Whole epochs done."""
    step: int = 0
    """Optimiser steps done."""
    best: dict[str, float] = field(default_factory=lambda: {"top1": -1.0, "epoch": 0})
    """Highest top-1 of the headline weights, and after how many epochs."""
    scores: Scores = field(default_factory=dict)
    """Of the last evaluation, by the weights' name: `val` for the raw ones, `ema` for averages."""

    def evaluated(self) -> dict[str, nn.Module]:
        """The weights to evaluate, by name."""
        averages = {"ema": self.ema.module} if self.ema is not None else {}
        return {"val": self.network, **averages}

    @property
    def headline(self) -> str:
        """Name of the weights that are the run's result: the averages if there are any."""
        return "val" if self.ema is None else "ema"

    def record(self, scores: Scores) -> None:
        """Note the scores after an epoch, and whether they are the best so far."""
        self.scores = scores
        top1 = scores[self.headline]["top1"]
        if top1 > self.best["top1"]:
            self.best = {"top1": top1, "epoch": self.epoch}

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint: tensors and plain values only."""
        return {
            **self.described,
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "clock": self.clock.as_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "scores": self.scores,
        }

    def restore(self, plain: dict[str, Any], path: Path) -> None:
        """Go on from a checkpoint.

        Args:
            plain: The checkpoint.
            path: Where it came from, for messages.

        Raises:
            InputError: It is of another network.
        """
        _check_same(self.described, plain, path)
        load_into(self.network, plain["network"], path)
        if self.ema is not None:
            load_into(self.ema.module, plain["ema"], path)
        self.optimizer.load_state_dict(plain["optimizer"])
        self.scaler.load_state_dict(plain["scaler"])
        self.clock = Clock(**plain["clock"])
        self.epoch, self.step = plain["epoch"], plain["step"]
        self.best, self.scores = plain["best"], plain["scores"]

    def broadcast_buffers(self, process: Process) -> None:
        """Give every rank rank 0's running statistics, of the network and of its averages."""
        for network in self.evaluated().values():
            process.broadcast_buffers(network)


def _check_same(described: dict[str, Any], plain: dict[str, Any], path: Path) -> None:
    for part in ("model", "classes"):
        expected, found = described[part], plain[part]
        if found == expected:
            continue
        if part == "model":
            keys = sorted(
                k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)
            )
            expected, found = ({key: it.get(key) for key in keys} for it in (expected, found))
        raise InputError(
            f"{path}: expected a checkpoint with the {part} {expected}, it has {found}; move the "
            "file away, or keep the runs apart with another name=..."
        )
