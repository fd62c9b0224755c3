"""Networks of found cells: DARTS' network for CIFAR-10 (arXiv 1806.09055)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mobilenext.errors import InputError
from mobilenext.genotype import BLOCKS, Genotype, genotype_named, reductions
from mobilenext.models.classifier import Classifier, Step, taps
from mobilenext.models.darts.operators import (
    FEWEST_CHANNELS,
    FactorizedReduction,
    operator,
    relu_conv_norm,
)
from mobilenext.models.layers import conv_norm
from mobilenext.models.parts import Pooling


class FoundCell(nn.Module):
    """A cell of a genotype.

    Args:
        genotype: Says which operators join which states.
        before: Channels of the output of the cell before the last.
        last: Channels of the last cell's output.
        channels: Of each node.
        reduction: Whether it halves height and width.
        after_reduction: Whether the last cell did, so that the one before has larger maps.

    Shapes:
        two (N, C, H, W), to (N, nodes * channels, ...).
    """

    def __init__(
        self,
        genotype: Genotype,
        before: int,
        last: int,
        channels: int,
        reduction: bool,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        blocks = {name: getattr(genotype, name) for name in BLOCKS}
        if after_reduction:
            self.preprocess0: nn.Module = FactorizedReduction(before, channels)
        else:
            self.preprocess0 = relu_conv_norm(before, channels)
        self.preprocess1 = relu_conv_norm(last, channels)
        edges = genotype.reduce if reduction else genotype.normal
        self.sources = [source for _, source in edges]
        self.operators = nn.ModuleList(
            operator(name, channels, 2 if reduction and source < 2 else 1, blocks)
            for name, source in edges
        )

    def forward(self, before: Tensor, last: Tensor, kept: Tensor | None = None) -> Tensor:
        """The nodes side by side.

        Args:
            before: Output of the cell before the last.
            last: Output of the last cell.
            kept: Probability with which each operator's output is kept, for each image apart; None:
                all are.
        """
        states = [self.preprocess0(before), self.preprocess1(last)]
        for node in range(len(self.sources) // 2):
            first, second = (self._branch(edge, states, kept) for edge in (2 * node, 2 * node + 1))
            states.append(first + second)
        return torch.cat(states[2:], 1)

    def _branch(self, edge: int, states: list[Tensor], kept: Tensor | None) -> Tensor:
        apply = self.operators[edge]
        x = apply(states[self.sources[edge]])
        if kept is None or isinstance(apply, nn.Identity):
            return x
        mask = torch.rand((len(x), 1, 1, 1), device=x.device) < kept
        return x * (mask / kept).to(x.dtype)


class AuxiliaryHead(nn.Module):
    """A second classifier in the middle of the network, for training only.

    Args:
        into: Channels of the feature map.
        num_classes: Logits.

    Shapes:
        (N, into, 8, 8) to (N, num_classes); larger maps are pooled at the end.

    Raises:
        ValueError: By the call: the map is smaller than 8 x 8.
    """

    def __init__(self, into: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(), nn.AvgPool2d(5, 3, count_include_pad=False), *conv_norm(into, 128, 1),
            nn.ReLU(), nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if min(x.shape[2:]) < 8:
            raise ValueError(
                f"the auxiliary head needs feature maps of 8 x 8, got {x.shape[2]} x {x.shape[3]}: "
                "larger images (data.image_size), or model.network.auxiliary=false"
            )
        return self.classifier(self.features(x).mean((2, 3)))


class DartsNetwork(Classifier):
    """A stem, cells of a genotype, a linear classifier: the network that DARTS trains on CIFAR-10.

    A third and two thirds of the way the cells are reduction cells, which double the channels.
    The official code's auxiliary head and scheduled drop-path are for training only.

    Args:
        genotype: A name, `random:SEED` or plain values; see `mobilenext.genotype`.
        num_classes: Logits.
        channels: Channels of a node in the first cells.
        cells: At least 3.
        auxiliary: Whether training gets the logits of a second head, after the second reduction.
        drop_path: Probability with which an operator's output is dropped at the end of training, in
            [0, 1); it grows from 0 with `set_progress`. Skip connections are never dropped.
        width_mult: Factor of `channels`, rounded to an even number.
        identity_tensor_multiplier: Has to be 1: the network has no such knob.
        stem_stride: Of the first convolution; 2 halves all maps.

    Shapes:
        (N, 3, H, W) to (N, num_classes); in training with an auxiliary head a pair of such logits,
        the auxiliary ones second.

    Raises:
        InputError: A genotype or a size that can't be built.
    """

    def __init__(
        self,
        genotype: str | Mapping[str, Any] = "darts_v2",
        num_classes: int = 10,
        channels: int = 36,
        cells: int = 20,
        auxiliary: bool = False,
        drop_path: float = 0.0,
        width_mult: float = 1.0,
        identity_tensor_multiplier: float = 1.0,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        found = genotype_named(genotype, files=False)
        check_size(channels, cells, stem_stride)
        if identity_tensor_multiplier != 1:
            raise InputError(
                "DartsNetwork has no identity tensor multiplier: expected identity=1, got "
                f"{identity_tensor_multiplier:g}"
            )
        if not 0 <= drop_path < 1:
            raise InputError(f"drop_path: expected a probability in [0, 1), got {drop_path}")
        channels = max(FEWEST_CHANNELS, 2 * round(channels * width_mult / 2))
        self.genotype, self.num_classes, self.drop_path = found, num_classes, drop_path
        width = 3 * channels
        self.stem = nn.Sequential(*conv_norm(3, width, 3, stride=stem_stride))
        self.cells = nn.ModuleList()
        before, last, reduced = width, width, False
        strided: list[tuple[str, int, int]] = [("stem", width, stem_stride)]
        total = stem_stride
        for number in range(cells):
            reduction = number in reductions(cells)
            channels, total = channels * (1 + reduction), total * (1 + reduction)
            self.cells.append(FoundCell(found, before, last, channels, reduction, reduced))
            before, last, reduced = last, channels * found.nodes, reduction
            strided.append((f"cells.{number}", last, total))
        self.feature_info = taps(strided)
        self.num_features = last
        self.global_pool = Pooling("avg")
        self.auxiliary_head: AuxiliaryHead | None = None
        self.auxiliary_after = reductions(cells)[1]
        if auxiliary:
            into = strided[1 + self.auxiliary_after][1]
            self.auxiliary_head = AuxiliaryHead(into, num_classes)
        # A tensor: a number that changes would have torch.compile start anew.
        self.register_buffer("kept", torch.ones(()), persistent=False)
        self.reset_classifier(num_classes)

    def set_progress(self, share: float) -> None:
        """Drop as many paths as at this share of the training, in [0, 1]."""
        kept = self.get_buffer("kept")
        kept.fill_(1 - self.drop_path * share)

    def steps(self) -> Iterator[Step]:
        """Names and modules of the trunk; cells take the outputs of two of them."""
        yield "stem", self.stem
        yield from ((f"cells.{number}", cell) for number, cell in enumerate(self.cells))

    def get_classifier(self) -> nn.Module:
        """The linear layer that makes logits."""
        return self.classifier

    def _set_classifier(self, layer: nn.Module) -> None:
        self.classifier = layer

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As of every `Classifier`; the auxiliary head gets a new layer too, or goes."""
        super().reset_classifier(num_classes, global_pool)
        if self.auxiliary_head is not None:
            if num_classes:
                self.auxiliary_head.classifier = nn.Linear(768, num_classes).to(
                    next(self.parameters()).device
                )
            else:
                self.auxiliary_head = None

    def _drop_after(self, last: str) -> None:
        # Cells take two maps, so nothing stands for one.
        names = [name for name, _ in self.steps()]
        self.cells = self.cells[: names.index(last)]
        if len(self.cells) <= self.auxiliary_after:
            self.auxiliary_head = None

    def _maps(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        kept = self.get_buffer("kept") if self.training and self.drop_path else None
        before = last = self.stem(x)
        yield "stem", last
        for number, cell in enumerate(self.cells):
            if self.grad_checkpointing and torch.is_grad_enabled():
                out = checkpoint(cell, before, last, kept, use_reentrant=False)
                assert isinstance(out, Tensor)
            else:
                out = cell(before, last, kept)
            before, last = last, out
            yield f"cells.{number}", last

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the last feature map (N, num_features, h, w)."""
        last = images
        for _, out in self._maps(images):
            last = out
        return last

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map feature maps to logits, or to the pooled features before them."""
        pooled = self.global_pool(x)
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (N, num_classes); in training with an auxiliary head also its logits."""
        if self.auxiliary_head is None or not self.training:
            return self.forward_head(self.forward_features(images))
        maps = dict(self._maps(images))  # which training keeps in any case
        auxiliary = self.auxiliary_head(maps[f"cells.{self.auxiliary_after}"])
        return self.forward_head(maps[f"cells.{len(self.cells) - 1}"]), auxiliary


def check_size(channels: int, cells: int, stem_stride: int) -> None:
    """Raise `InputError` unless DARTS' networks can have this size."""
    if channels < FEWEST_CHANNELS or channels % 2:
        raise InputError(
            f"channels: expected an even number from {FEWEST_CHANNELS} on, got {channels}"
        )
    if cells < 3:
        raise InputError(
            f"cells: expected at least 3, got {cells}: a third and two thirds of the way are "
            "reduction cells, and one has to come before them"
        )
    if stem_stride not in (1, 2):
        raise InputError(f"stem_stride: expected 1 or 2, got {stem_stride}")
