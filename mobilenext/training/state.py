"""The state of a training run, named once: what a checkpoint has and what training goes on from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mobilenext.errors import InputError
from mobilenext.files import printable
from mobilenext.models.weights import fit_into, shrink_classifier
from mobilenext.program import as_typed, fraction
from mobilenext.runtime.distributed import Process
from mobilenext.training.averages import AveragedWeights
from mobilenext.training.measures import TOP1, Measure
from mobilenext.training.meter import TrainMeter
from mobilenext.training.progress import say
from mobilenext.training.weights_files import (
    load_into,
    load_weights,
    read_weights,
    sha256_of,
    weights_path,
)

Scores = dict[str, dict[str, Any]]


class Part(Protocol):
    """Something with a state of its own, an optimiser for instance."""

    def state_dict(self) -> dict[str, Any]:
        """Its state: tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Go on from a state."""
        ...


@dataclass
class TrainState:
    """Weights, averages, optimisers, scaler, position and records of a run.

    No generator state: all random numbers are functions of counters (`mobilenext.seeding`).
    """

    described: dict[str, Any]
    """Description of the network and its training data: `model`, `classes`, `data`, ..."""
    network: nn.Module
    ema: AveragedWeights | None
    parts: dict[str, Part]
    """Optimisers and other parts with a state, by their names in checkpoints."""
    scaler: torch.amp.GradScaler
    meter: TrainMeter
    measure: Measure = TOP1
    """Measure that the run is judged by."""
    batch_norm: str = "reduce"
    """Way in which processes get the same running statistics: reduce, broadcast or sync."""
    epoch: int = 0
    """Whole epochs done, evaluation included."""
    step: int = 0
    """Optimiser steps done."""
    best: dict[str, float] = field(default_factory=dict)
    """Highest `measure` of the headline weights, and after how many epochs and steps."""
    scores: Scores = field(default_factory=dict)
    """Scores of the last evaluation: `val` of the raw weights, `ema` of their averages."""
    unreadable: dict[str, dict[int, str]] = field(default_factory=lambda: {"train": {}, "val": {}})
    """Images that could not be read so far: by split and index, what is wrong with them."""
    united: bool = True
    """Whether all processes have the same running statistics now."""
    rank_buffers: list[list[Tensor]] | None = None
    """If they don't, and each one's own count: those of all ranks, for a checkpoint."""

    def __post_init__(self) -> None:
        self.best = self.best or {self.measure.key: -1.0, "epoch": 0, "step": 0}

    def begin_with(self, path: Path, process: Process) -> None:
        """Give network and averages the weights of a file, and note which file it was.

        A classifier for other classes keeps its random weights, made small (`shrink_classifier`).

        Args:
            path: As `read_weights` takes it, or a run folder.
            process: This process; rank 0 reads.

        Raises:
            InputError: The file can't be read, or its weights are of another network.
        """
        given = None
        try:
            path = process.on_main(lambda: weights_path(path))
            given, checksum = process.on_main(lambda: (read_weights(path), sha256_of(path)))
            fitted = fit_into(given.tensors, self.network)
        except InputError as error:
            about = "" if str(path) in str(error) else f"{path}: "
            both = "" if given is None else _both_networks(self.described["model"], path)
            raise InputError(f"init_from: {about}{error}{both}") from error
        is_detector = "detector" in self.described["model"]
        if fitted.classifier_left_out and not is_detector:
            shrink_classifier(self.network)
        begun = {**self.network.state_dict(), **fitted.tensors}
        for network in self.evaluated().values():
            network.load_state_dict(begun)
        self.described["init_from"] = {"path": str(path), "sha256": checksum}
        classes = len(self.described["classes"])
        part = "head" if is_detector else "classifier"
        anew = f" (new {part} for {classes} classes)" if fitted.classifier_left_out else ""
        which = f", its entry {given.entry}" if given.entry else ""
        say(f"weights from {path}{which}{anew}", process)
        differ = _other_knobs(self.described, given.described)
        if differ:
            say(f"note: {differ}", process)

    def evaluated(self) -> dict[str, nn.Module]:
        """The weights to evaluate, by name."""
        averages = {"ema": self.ema.module} if self.ema is not None else {}
        return {"val": self.network, **averages}

    def nonfinite(self) -> Tensor:
        """Number of tensors of weights and statistics that are not finite, on the device."""
        networks = self.evaluated().values()
        tensors = [value for one in networks for value in (*one.parameters(), *one.buffers())]
        return torch.stack([~value.isfinite().all() for value in tensors]).sum()

    @property
    def headline(self) -> str:
        """Name of the weights that are the run's result: the averages if there are any."""
        return "val" if self.ema is None else "ema"

    @property
    def is_best(self) -> bool:
        """Whether the weights as they are now have the highest measure of the run so far."""
        return self.step == self.best["step"]

    def record(self, scores: Scores) -> None:
        """Note an epoch's end, its scores, and whether they are the best so far.

        Args:
            scores: By the weights' name; empty for an epoch that is not evaluated.
        """
        self.epoch += 1
        if not scores:
            return
        self.scores = scores
        value, key = scores[self.headline][self.measure.key], self.measure.key
        if value > self.best[key]:
            self.best = {key: value, "epoch": self.epoch, "step": self.step}

    def stepped(self) -> None:
        """Note an optimiser step, after which each process has running statistics of its own."""
        self.step += 1
        self.united = False

    def unite_batch_norms(self, process: Process) -> None:
        """Give all processes the same running statistics, as `batch_norm` says.

        While training, each process's norms follow the images of that process (unless they are
        synchronised). Evaluation is of the united ones, of the network and of its averages.
        """
        if not self.united:
            for network in self.evaluated().values():
                if self.batch_norm == "reduce":
                    process.average_buffers(network)
                else:
                    process.broadcast_buffers(network)
        self.united, self.rank_buffers = True, None

    def gather(self, process: Process) -> None:
        """Bring to rank 0 what only the others know; all of them call this before a checkpoint."""
        self.rank_buffers = None
        if self.batch_norm == "reduce" and process.world_size > 1 and not self.united:
            own = [buffer.cpu() for buffer in self._buffers()]
            self.rank_buffers = process.gather(own)

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint: tensors and plain values only."""
        return {
            **self.described,
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            **{name: part.state_dict() for name, part in self.parts.items()},
            "scaler": self.scaler.state_dict(),
            "meter": self.meter.to_plain(),
            "unreadable": self.unreadable,
            "united": self.united,
            "rank_buffers": self.rank_buffers,
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "scores": self.scores,
        }

    def restore(self, plain: dict[str, Any], path: Path, process: Process) -> None:
        """Go on from a checkpoint.

        Args:
            plain: The checkpoint.
            path: Where it came from, for messages.
            process: This process; if there were as many as now, it gets its own statistics back.

        Raises:
            InputError: It is of another network.
        """
        _check_same(self.described, plain, path)
        load_into(self.network, plain["network"], path)
        if self.ema is not None:
            load_into(self.ema.module, plain["ema"], path)
        for name, part in self.parts.items():
            part.load_state_dict(plain[name])
        self.scaler.load_state_dict(plain["scaler"])
        self.meter.restore(plain["meter"])
        self.epoch, self.step = plain["epoch"], plain["step"]
        self.best, self.scores = plain["best"], plain["scores"]
        if "init_from" in plain:
            self.described["init_from"] = plain["init_from"]
        self.unreadable, self.united = plain["unreadable"], plain["united"]
        ranks = plain["rank_buffers"]
        if ranks is not None and len(ranks) == process.world_size:
            for buffer, value in zip(self._buffers(), ranks[process.rank], strict=True):
                buffer.copy_(value)

    def _buffers(self) -> list[Tensor]:
        return [b for network in self.evaluated().values() for b in network.buffers()]


KNOBS = {
    "identity": ("model", "network", "identity_tensor_multiplier"),
    "strides": ("model", "network", "strides"),
    "data.mean": ("data", "mean"),
    "data.std": ("data", "std"),
}
"""What changes the network's answers and no tensor, so that weights fit if it differs."""


def _other_knobs(wanted: dict[str, Any], stored: dict[str, Any] | None) -> str:
    """In what a file's run differs from this one though its weights fit; empty: in nothing."""
    here, there = [], []
    for name, keys in KNOBS.items():
        texts = [_knob(described, keys) for described in (wanted, stored)]
        if texts[0] != texts[1] and "" not in texts:
            here.append(f"{name} {texts[0]}")
            there.append(f"{name} {texts[1]}")
    if not there:
        return ""
    return f"init_from was trained with {', '.join(there)}, this run has {', '.join(here)}"


def _knob(described: Any, keys: Sequence[str]) -> str:
    """One of a description's values in words; empty: it is not there, or nothing that fits."""
    value: Any = described
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    numbers: list[Any] = value if isinstance(value, list) and len(value) < 20 else [value]
    if not all(isinstance(one, int | float) and 0 <= one <= 2 for one in numbers):
        return ""
    return as_typed(value) if isinstance(value, list) else fraction(numbers[0])


def _both_networks(wanted: dict[str, Any], path: Path) -> str:
    """What a run's network and that of a file with weights are called; empty if it does not say."""
    try:
        stored = load_weights(path)[1]["model"]
    except InputError:
        return ""  # of another program
    ours, theirs = wanted["network"], stored["network"]
    differ = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    named = []
    for model in (wanted, stored):
        values = ", ".join(f"{key}={as_typed(model['network'].get(key))}" for key in differ)
        named.append(f"{printable(model['name'])} ({printable(values)})")
    return f". This run's network is {named[0]}, the file's {named[1]}"


def _check_same(described: dict[str, Any], plain: dict[str, Any], path: Path) -> None:
    for part in ("model", "classes", "train_images", "train_labels_crc32"):
        if part not in described:
            continue
        expected, found = described[part], plain.get(part, described[part])
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
