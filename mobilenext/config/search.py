"""The config of an architecture search."""

from dataclasses import asdict, dataclass, field
from typing import Any

from mobilenext.config.fields import MISSING, check, check_choice, machine_only
from mobilenext.config.groups import AugmentConfig
from mobilenext.config.training import LoopConfig
from mobilenext.errors import InputError
from mobilenext.genotype import MOST_NODES, BlockSettings

ORDERS = ("first", "second", "second_fd")


@dataclass
class BlockConfig:
    """A block as an operator; the paper published none of these."""

    kernel: int = 3
    """Of its depthwise convolutions, odd."""
    ratio: int = 6
    """Reduction in a sandglass block's middle, or expansion of an inverted residual."""
    shortcut: bool = True
    """Whether it adds its input where the stride is 1."""


@dataclass
class SpaceConfig:
    """Group `space`: the operators of each edge."""

    name: str = MISSING
    """Short name, for run folders and tables."""
    operators: list[str] = MISSING
    """By name, `none` for no connection; see `mobilenext/genotype.py`."""
    sandglass: BlockConfig = field(default_factory=BlockConfig)
    inverted_residual: BlockConfig = field(default_factory=BlockConfig)

    def __post_init__(self) -> None:
        for name in ("sandglass", "inverted_residual"):
            BlockSettings.of(asdict(getattr(self, name)), f"space.{name}")


@dataclass
class SearchConfig(LoopConfig):
    """Job `search`."""

    space: SpaceConfig = MISSING
    channels: int = 16
    """Channels of a node in the supernet's first cells."""
    cells: int = 8
    """Cells of the supernet; a third and two thirds of the way are reduction cells."""
    nodes: int = 4
    """Nodes of a cell."""
    stem_stride: int = 1
    """Of the first convolution; 2 halves all maps, at a quarter of the cost."""
    order: str = "first"
    """Gradient of the alphas: with the weights as they are (first), or after a step of theirs,
    exactly (second), or by DARTS' finite differences (second_fd), whose error can be larger than
    what they add."""
    train_share: float = 0.5
    """Share of the training images that the weights learn from; the alphas learn from the rest."""
    warmup_epochs: int = 0
    """Epochs at the beginning in which the alphas stay as they are."""
    partial_channels: int = 1
    """PC-DARTS: one of so many channels goes through the operators."""
    edge_weights: bool = False
    """PC-DARTS: edges have weights of their own."""
    auxiliary_skip: bool = False
    """DARTS-: a second skip connection on each edge, whose weight falls from 1 towards 0."""
    max_skips: int | None = None
    """Ends the search after an epoch whose normal cell has as many skip connections; null: not."""
    checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time; order=first only."""
    architecture_optimizer: dict[str, Any] = MISSING
    """`_target_` of the alphas' optimiser and its arguments, all but `params`."""
    augment: AugmentConfig = MISSING
    pictures: bool = machine_only(True)
    """Draw the cells after each epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, ORDERS)
        share, nodes, skips = self.train_share, self.nodes, self.max_skips
        check(0 < share < 1, "train_share", "a share above 0 and below 1", share)
        check(1 <= nodes <= MOST_NODES, "nodes", f"1 to {MOST_NODES}", nodes)
        check(skips is None or skips >= 1, "max_skips", "null, or at least 1", skips)
        for key in ("width", "identity"):
            value = getattr(self, key)
            check(value == 1, key, "1: a supernet's size is channels=...", value)
        expected = "1 in a search, which writes its cells after each epoch"
        check(self.eval_every == 1, "eval_every", expected, self.eval_every)
        check(self.ema_decay is None, "ema_decay", "null in a search", self.ema_decay)
        for key in ("freeze_backbone", "freeze_norms"):
            check(not getattr(self, key), key, "false in a search", True)
        expected = "false in a search, which does two kinds of steps"
        check(self.runtime.graph is not True, "runtime.graph", expected, True)
        expected = "false in a search, whose cells have no ReLU6"
        check(not self.runtime.fused, "runtime.fused", expected, self.runtime.fused)
        expected = "null in a search; runtime.micro_batch divides its batches"
        check(self.norm_batch is None, "norm_batch", expected, self.norm_batch)
        expected = "reduce or broadcast: a supernet's norms have no synchronised form"
        check(self.batch_norm != "sync", "batch_norm", expected, self.batch_norm)
        alphas = self.architecture_optimizer
        check("lr" in alphas, "architecture_optimizer", "an entry lr", sorted(alphas))
        check(not (self.checkpointing and self.runtime.compile), "checkpointing",
              "false with runtime.compile=true, which can't compile it", True)  # fmt: skip
        warmup = self.warmup_epochs
        expected = f"0 to {self.epochs - 1} of {self.epochs} epochs: the alphas learn in the others"
        check(0 <= warmup < self.epochs, "warmup_epochs", expected, warmup)
        for key in ("mixup", "cutmix"):
            value = getattr(self.augment, key)
            check(value == 0, f"augment.{key}", "0 in a search", value)
        if self.order != "first":
            self._check_second_order()

    def _check_second_order(self) -> None:
        expected = f"false with order={self.order}: activations would be computed again with other"
        check(not self.checkpointing, "checkpointing", f"{expected} weights", True)
        if self.runtime.precision == "fp16":
            raise InputError(
                f"order={self.order} with runtime.precision=fp16: the gradient of a gradient does "
                "not go through fp16's scaler; use runtime.precision=bf16 or fp32, or order=first"
            )
        if self.runtime.compile:
            raise InputError(
                f"order={self.order} with runtime.compile=true: torch.compile has no gradient of a "
                "gradient; use runtime.compile=false, or order=first"
            )
        if not str(self.optimizer.get("_target_")).endswith(".SGD"):
            raise InputError(
                f"order={self.order}: expected optimizer._target_=torch.optim.SGD, whose step is "
                f"looked ahead, got {self.optimizer.get('_target_')}"
            )
        check(not self.optimizer.get("nesterov"), "optimizer.nesterov",
              f"false with order={self.order}", True)  # fmt: skip
