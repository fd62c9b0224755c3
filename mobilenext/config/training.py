"""The configs of training runs: what all loops have, and what training a classifier has."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilenext.config.fields import (
    MISSING,
    added_later,
    check,
    check_choice,
    check_multipliers,
    machine_only,
    parse_number,
)
from mobilenext.config.groups import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    RuntimeConfig,
    check_source,
)
from mobilenext.config.run import LATEST, HasRun, absolute
from mobilenext.errors import InputError

NOT_GIVEN = "FILE"
"""`init_from` of `experiment=finetune`, which does not go without weights."""


@dataclass
class LoopConfig(HasRun):
    """What every training has, whatever is learned."""

    name: str = MISSING
    """First part of the run folder's name."""
    output_dir: str = machine_only("runs", path=True)
    """Folder in which run folders are made."""
    seed: int = 0
    """Decides initial weights, order, augmentation and dropout."""
    width: float = 1.0
    """Width multiplier of the network."""
    identity: Any = 1.0
    """Identity tensor multiplier of the network, in (0, 1]; a number or a fraction such as 1/6."""
    strides: list[int] = MISSING
    """Strides of the network's five downsampling layers, the stem first: 1 or 2 each."""
    epochs: int = MISSING
    """Passes over the training split, cool-down included."""
    eval_every: int = added_later(1)
    """Epochs between evaluations; there is one after the last epoch in any case."""
    decay_norm_and_bias: bool = False
    """Whether weight decay also holds for norms and biases."""
    clip_grad_norm: float | None = None
    """Upper bound of the gradient's norm; null: none."""
    ema_decay: float | None = None
    """Decay per step of averaged weights, which are then the run's result; null: no averaging."""
    ema_warmup: bool = False
    """Begin with a smaller decay that grows towards `ema_decay`."""
    nonfinite: str = "stop"
    """A loss or gradient that is not finite ends the run (stop), or its step is left out and
    counted (skip; the host then waits for the device once a step, and more than 30 in a row end
    the run). With fp16, gradients that overflow are left out in either case, by its scaler."""
    batch_norm: str = "reduce"
    """Running statistics of several processes: averaged before each evaluation (reduce), those of
    rank 0 (broadcast), or of batches over all processes in the first place (sync)."""
    norm_batch: int | None = added_later(None)
    """Images that a batch norm sees at a time, for any number of processes: one with more of them
    accumulates gradients, several with fewer share their norms' statistics. null: the images of one
    forward pass of one process, whose number follows that of the processes."""
    init_from: str | None = added_later(None, path=True)
    """A file with weights to begin with: of a run (model.safetensors, best.pt), or from elsewhere
    (.safetensors, or a file of torch.save). A classifier for other classes keeps random weights."""
    freeze_backbone: bool = added_later(False)
    """Train the classifier only (of a detector: all but its backbone); the rest stays as it is,
    running statistics included, and is in evaluation mode."""
    freeze_norms: bool = added_later(False)
    """Batch norms (of a detector: of its backbone) compute with the running statistics that they
    begin with, also in training, and keep them; their weights and biases learn. For few images, or
    small batches."""
    checkpoint: CheckpointConfig = field(
        default_factory=CheckpointConfig, metadata={"machine_only": True}
    )
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    optimizer: dict[str, Any] = MISSING
    """`_target_` of a torch optimiser and its arguments, all but `params`."""
    schedule: dict[str, Any] = MISSING
    """`_target_` of a function in `mobilenext.optim.schedules` and its arguments."""
    runtime: RuntimeConfig = MISSING

    @property
    def key_of_pass(self) -> str:
        """Key that decides how many images a forward pass of one process has at most."""
        return "runtime.micro_batch" if self.norm_batch is None else "norm_batch"

    @property
    def pretrained(self) -> bool:
        """Whether the network begins with weights that its library has published."""
        return self.model.network.get("pretrained") is True

    def recipe(self) -> dict[str, Any]:
        """See `HasRun.recipe`; a file with weights is named by its absolute path."""
        plain = super().recipe()
        if self.init_from is not None:
            plain["init_from"] = absolute(self.init_from)
        return plain

    def __post_init__(self) -> None:
        self.identity = parse_number(self.identity)
        check_multipliers(self.width, self.identity)
        if self.init_from == NOT_GIVEN:
            if not self.pretrained:
                raise InputError(
                    "init_from has no value: add init_from=runs/NAME/HASH (a run of yours) or a "
                    "file with weights to the command; networks of timm and torchvision can begin "
                    "with published weights instead, +model.network.pretrained=true"
                )
            self.init_from = None
        check(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        check(self.eval_every >= 1, "eval_every", "at least 1", self.eval_every)
        check_source(self.data)
        decay, clip = self.ema_decay, self.clip_grad_norm
        check(decay is None or 0 < decay < 1, "ema_decay", "null or in (0, 1)", decay)
        check(clip is None or clip > 0, "clip_grad_norm", "null or above 0", clip)
        check(
            self.init_from is None or os.path.exists(absolute(self.init_from))
            or LATEST not in Path(self.init_from).parts,
            "init_from",
            "a run that stays the same, runs/NAME/HASH; this command's own run would be the latest",
            self.init_from,
        )  # fmt: skip
        given = self.init_from is not None or self.pretrained
        for key in ("freeze_backbone", "freeze_norms"):
            expected = (
                "false, or init_from=FILE beside it (+model.network.pretrained=true for networks "
                "of timm and torchvision): there is nothing to keep in random weights"
            )
            check(given or not getattr(self, key), key, expected, True)
        check("lr" in self.optimizer, "optimizer", "an entry lr", sorted(self.optimizer))
        lr = self.optimizer["lr"]
        check(isinstance(lr, int | float) and lr >= 0, "optimizer.lr", "a number from 0 on", lr)
        check_choice("nonfinite", self.nonfinite, ("stop", "skip"))
        check_choice("batch_norm", self.batch_norm, ("reduce", "broadcast", "sync"))
        images, micro = self.norm_batch, self.runtime.micro_batch
        check(images is None or images >= 1, "norm_batch", "null, or at least 1", images)
        expected = "null beside norm_batch, which decides how many images a forward pass has"
        check(images is None or micro is None, "runtime.micro_batch", expected, micro)
        expected = "reduce or broadcast beside norm_batch: sync has norms of the whole batch"
        fits = images is None or self.batch_norm != "sync"
        check(fits, "batch_norm", expected, self.batch_norm)
        is_sgd = str(self.optimizer.get("_target_")).endswith(".SGD")
        if is_sgd and self.optimizer.get("fused") and self.runtime.precision == "fp16":
            # torch 2.14 leaves uninitialised memory in the momentum when the first step overflows.
            raise InputError(
                "optimizer.fused=true: SGD's fused form spoils its momentum together with the "
                "gradient scaler of runtime.precision=fp16; use bf16, or optimizer.fused=false"
            )


@dataclass
class TrainConfig(LoopConfig):
    """Job `train`, and what a checkpoint says of the run that it belongs to."""

    label_smoothing: float = 0.0
    """Share of the target spread over all classes, in [0, 1)."""
    layer_decay: float | None = added_later(None)
    """Learning rate of each group of layers over that of the next one, from the classifier down; in
    (0, 1]; null: all learn at the same rate."""
    genotype: str = machine_only("darts_v2")
    """Cells of model=darts: darts_v2, darts_v2_sandglass3, random:SEED, random:SEED:SPACE:2.45M, or
    a genotype.yaml of scripts/search.py. The network's own entry has what it says."""
    auxiliary_weight: float = added_later(0.4)
    """Factor of the loss of a network's auxiliary head, where it has one."""
    augment: AugmentConfig = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        smoothing, layers = self.label_smoothing, self.layer_decay
        check(0 <= smoothing < 1, "label_smoothing", "a number in [0, 1)", smoothing)
        genotype = self.genotype
        check("genotype" in self.model.network or genotype == "darts_v2", "genotype",
              f"model=darts beside it; model={self.model.name} has no cells", genotype)  # fmt: skip
        auxiliary = self.auxiliary_weight
        check(auxiliary >= 0, "auxiliary_weight", "0 or more", auxiliary)
        check(layers is None or 0 < layers <= 1, "layer_decay", "null or in (0, 1]", layers)
