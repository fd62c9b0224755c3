"""Common base of our networks: timm's interface of an image classifier.

timm asks its models for `forward_features`, `forward_head`, `get_classifier`, `reset_classifier`,
`forward_intermediates`, `feature_info` and some more
(https://huggingface.co/docs/timm/feature_extraction); whoever has them works with its feature
extraction, fine-tuning and optimisers.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mobilenext.models.parts import Pooling, taken

Step = tuple[str, nn.Module]


def taps(reductions: list[tuple[str, int, int]]) -> list[dict[str, Any]]:
    """The last of the modules at each total stride, as timm's `feature_info`.

    Args:
        reductions: Name, channels and total stride of each module, in order.
    """
    last = {reduction: (name, channels) for name, channels, reduction in reductions}
    return [
        {"module": name, "num_chs": channels, "reduction": reduction, "stage": stage}
        for stage, (reduction, (name, channels)) in enumerate(sorted(last.items()))
    ]


class Classifier(nn.Module):
    """A trunk of modules in a row, pooling, dropout, a linear layer.

    A subclass fills `num_features` and `feature_info`, names its trunk (`steps`) and its linear
    layer (`get_classifier`, `_set_classifier`), and has the `forward` methods.
    """

    num_classes: int
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]
    """For each resolution, where it ends: num_chs, reduction (total stride), module."""
    if TYPE_CHECKING:  # TorchScript takes no annotation of a module
        global_pool: Pooling

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False

    def steps(self) -> Iterator[Step]:
        """Names and modules of the trunk, in order."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        """The linear layer that makes logits; nn.Identity if there are no classes."""
        raise NotImplementedError

    def _set_classifier(self, layer: nn.Module) -> None:
        raise NotImplementedError

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the last feature map (N, num_features, h, w)."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new linear layer in place, for `num_classes`; 0 leaves the features.

        Args:
            num_classes: Logits.
            global_pool: avg, max, avgmax, catavgmax, or "" for none; None leaves it as it is.
        """
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = Pooling(global_pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        layer = self._new_classifier()
        if isinstance(layer, nn.Linear):
            some = next(self.parameters())
            layer.to(some.device, some.dtype)
            nn.init.normal_(layer.weight, 0.0, 0.01)
            nn.init.zeros_(layer.bias)
        self._set_classifier(layer)

    def _new_classifier(self) -> nn.Module:
        if not self.num_classes:
            return nn.Identity()
        return nn.Linear(self.head_hidden_size, self.num_classes)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps on the way, one for each entry of `feature_info` that is asked for.

        Args:
            x: Images (N, 3, H, W).
            indices: Which entries; a number: the last so many; None: all.
            norm: Not used; timm passes it.
            stop_early: Compute no further than the last of them.
            output_fmt: NCHW.
            intermediates_only: Return only them, not the last feature map as well.
        """
        del norm
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: expected NCHW, got {output_fmt}")
        wanted = [self.feature_info[i]["module"] for i in taken(len(self.feature_info), indices)]
        end = self.feature_info[max(taken(len(self.feature_info), indices))]["module"]
        found: list[Tensor] = []
        last = x
        for name, last in self._maps(x):
            if name in wanted:
                found.append(last)
            if name == end and stop_early:
                break
        return found if intermediates_only else (last, found)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what `forward_intermediates` does not need for these indices; returns them."""
        del prune_norm
        kept = taken(len(self.feature_info), indices)
        last = self.feature_info[max(kept)]
        self._drop_after(last["module"])
        self.num_features = last["num_chs"]
        if prune_head:
            self.reset_classifier(0, "")
        return kept

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def _maps(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """What each step of the trunk makes of images, by the step's name."""
        for name, module in self.steps():
            x = self._step(module, x)
            yield name, x

    def _drop_after(self, last: str) -> None:
        """Leave nothing of the trunk's steps after one."""
        after = False
        for name, _ in list(self.steps()):
            if after:
                parent, _, child = name.rpartition(".")
                setattr(self.get_submodule(parent), child, nn.Identity())
            after = after or name == last

    def _step(self, module: nn.Module, x: Tensor) -> Tensor:
        # Not single layers: an in-place activation would overwrite the input that is kept.
        layered = next(module.children(), None) is not None
        if self.grad_checkpointing and layered and torch.is_grad_enabled():
            out = checkpoint(module, x, use_reentrant=False)
            assert isinstance(out, Tensor)
            return out
        return module(x)
