"""MobileNeXt (arXiv 2007.02269) in the layout that its authors trained.

Source: `mobilenext/codebase/models/mnext.py` of https://github.com/yitu-opensource/MobileNeXt.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mobilenext.errors import InputError
from mobilenext.models.classifier import Classifier, Step, taps
from mobilenext.models.layers import (
    ActivationLayer,
    NormLayer,
    check_blocks,
    check_share,
    check_strides,
    check_width,
    conv_norm,
    initialize,
    make_divisible,
    relu6,
)
from mobilenext.models.parts import Pooling, checkpointed
from mobilenext.models.sandglass import Depthwise, SandglassBlock, WideBlock

BlockFactory = Callable[..., WideBlock]
"""Makes a block from `in_channels, out_channels` and the keywords of `SandglassBlock`."""
Shortcut = Literal["wide", "thin", "none"]


class Stage(NamedTuple):
    """Blocks of equal width; the first of them changes the shape, the others repeat it."""

    reduction_ratio: int
    channels: int
    repeats: int
    stride: int
    first_block: Depthwise
    """Depthwise convolutions that the first block keeps; the repeats keep both."""
    kernel_size: int = 3
    shortcut: bool = True
    """Whether blocks that keep the shape of their input have a shortcut."""


STAGES = (
    Stage(2, 96, 1, 2, "both", shortcut=False),
    Stage(6, 144, 1, 1, "both"),
    Stage(6, 192, 3, 2, "last"),
    Stage(6, 288, 3, 2, "last"),
    Stage(6, 384, 4, 1, "none"),
    Stage(6, 576, 4, 2, "last"),
    Stage(6, 960, 3, 1, "none"),
    Stage(6, 1280, 1, 1, "both"),
)
"""Table 2 of the paper, as trained."""


class MobileNeXt(Classifier):
    """MobileNeXt with a width multiplier and an identity tensor multiplier.

    Where the authors' code and the paper's text differ, this follows the code, since the released
    checkpoints and logs come from it:

    1. The 960-channel stage repeats 3 times; the arXiv table says 2 (a typo by the authors' word,
       corrected in the camera-ready version).
    2. Blocks that change the number of channels drop the first depthwise convolution, or both if
       they do not stride either. The 96, 144 and 1280-channel blocks keep both. The paper draws one
       uniform block.
    3. The bottleneck has a floor (`sandglass.bottleneck_channels`); the text has only a ratio.
    4. The last stage stays 1280 wide for multipliers below 1, and is scaled above 1.
    5. There is no 1x1 convolution head: the 1280-channel block is the head.
    6. Blocks of ratio 2 (the 96-channel stage) have no shortcut, also where `depth_mult` repeats
       them.

    Module names and order (`features.N.conv.M`, `classifier.1`) are those of the authors' code.

    Args:
        width_mult: Width multiplier, above 0; the paper has 1.4, 1.0, 0.75, 0.5 and 0.35.
        identity_tensor_multiplier: Share of the channels that each shortcut carries, in (0, 1];
            the paper has 1, 1/2, 1/3 and 1/6. Changes neither parameters nor MAdds.
        num_classes: Logits.
        dropout: Probability before the classifier; 0.2 is fixed in the authors' code.
        strides: Of the five downsampling layers: the stem and the first blocks of the 96, 192, 288
            and 576-channel stages. All 2 for 224 px (total stride 32); put 1 in front for small
            images.
        stages: The table to build.
        norm_layer: Makes the norm for a number of channels.
        activation_layer: Makes the activation.
        block: Makes the blocks; a `functools.partial` of `SandglassBlock` for its knobs, or another
            block with wide ends.
        reduction_ratio: In place of the stages' 6, for the bottleneck's floor too.
        kernel_size: Of all depthwise convolutions, in place of the stages'.
        depthwise: Which depthwise convolutions blocks keep that have both and don't stride.
        shortcut: Between the blocks' wide ends, in stages that have shortcuts; between the thin
            middles of blocks that follow each other and have the same shape there; or none.
        drop_path: Stochastic depth (arXiv 1603.09382): probability for the block after the last,
            from 0 for the first one on in proportion.
        depth_mult: Multiplies the stages' repeats, rounded up.
        padding: "" or "same", see `conv_norm`.
        initialization: Initialises the network; None: torch's own way.
        in_chans: Channels of the images.
        global_pool: See `reset_classifier`.

    Shapes:
        images (N, in_chans, H, W) to logits (N, num_classes).

    Raises:
        InputError: A multiplier, a stride or another knob outside its range.
    """

    def __init__(
        self,
        width_mult: float = 1.0,
        identity_tensor_multiplier: float = 1.0,
        num_classes: int = 1000,
        dropout: float = 0.2,
        strides: Sequence[int] = (2, 2, 2, 2, 2),
        stages: Sequence[Stage] = STAGES,
        norm_layer: NormLayer = nn.BatchNorm2d,
        activation_layer: ActivationLayer = relu6,
        *,
        block: BlockFactory = SandglassBlock,
        reduction_ratio: int | None = None,
        kernel_size: int | None = None,
        depthwise: Depthwise = "both",
        shortcut: Shortcut = "wide",
        drop_path: float = 0.0,
        depth_mult: float = 1.0,
        padding: str = "",
        initialization: Callable[[nn.Module], None] | None = initialize,
        in_chans: int = 3,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        check_width(width_mult)
        check_strides(strides, 1 + sum(stage.stride == 2 for stage in stages), "MobileNeXt")
        _check_knobs(shortcut, depthwise, reduction_ratio, identity_tensor_multiplier)
        check_share("dropout", dropout)
        check_share("drop_path", drop_path)
        divisor = 4 if width_mult == 0.1 else 8  # the authors' code singles out 0.1
        common: dict[str, Any] = {
            "identity_tensor_multiplier": identity_tensor_multiplier,
            "norm_layer": norm_layer,
            "activation_layer": activation_layer,
        }
        # Blocks of another kind need not know what is not asked for.
        if padding:
            common["padding"] = padding
        if reduction_ratio is not None:
            common["floor_ratio"] = reduction_ratio

        channels = make_divisible(32 * width_mult, divisor)
        reduction = strides[0]
        stem = conv_norm(
            in_chans,
            channels,
            3,
            stride=reduction,
            norm_layer=norm_layer,
            activation_layer=activation_layer,
            padding=padding,
        )
        features: list[nn.Module] = [nn.Sequential(*stem)]
        reductions = [("features.0", channels, reduction)]
        check_blocks(sum(math.ceil(depth_mult * stage.repeats) for stage in stages))
        plan = list(_plan(stages, strides[1:], depth_mult, depthwise))
        for number, (stage, kept, stride) in enumerate(plan):
            fixed_head = stage.channels == 1280 and width_mult < 1
            out_channels = (
                1280 if fixed_head else make_divisible(stage.channels * width_mult, divisor)
            )
            reduction *= stride
            replaced = reduction_ratio is not None and stage.reduction_ratio == 6
            own: dict[str, Any] = {}
            if drop_path:
                own["drop_path"] = drop_path * number / len(plan)
            if shortcut != "wide" or not stage.shortcut:
                own["shortcut"] = False
            features.append(
                block(
                    channels,
                    out_channels,
                    stride=stride,
                    reduction_ratio=reduction_ratio if replaced else stage.reduction_ratio,
                    depthwise=kept,
                    kernel_size=kernel_size or stage.kernel_size,
                    **common,
                    **own,
                )
            )
            channels = out_channels
            reductions.append((f"features.{number + 1}", channels, reduction))
        self.features = ThinShortcuts(*features) if shortcut == "thin" else nn.Sequential(*features)
        self.feature_info = taps(reductions)
        self.num_features = channels
        self.num_classes = num_classes
        self.global_pool = Pooling(global_pool)
        self.head_hidden_size = channels * self.global_pool.feat_mult()
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Identity())
        self._set_classifier(self._new_classifier())
        if initialization is not None:
            initialization(self)

    def steps(self) -> Iterator[Step]:
        """Names and modules of the trunk, in order."""
        for index, module in enumerate(self.features):
            yield f"features.{index}", module

    def get_classifier(self) -> nn.Module:
        """The linear layer that makes logits; nn.Identity if there are no classes."""
        return self.classifier[1]

    def _set_classifier(self, layer: nn.Module) -> None:
        self.classifier[1] = layer

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of layers from input to output, as timm's optimisers ask for them."""
        del coarse
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)\."}

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to the last feature map (N, num_features, h, w)."""
        if self.grad_checkpointing and not torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            return checkpointed(self.features, images)
        return self.features(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map a feature map to logits, or to what dropout and the linear layer would get."""
        x = self.global_pool(features)
        return x if pre_logits else self.classifier(x)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(images))


def _plan(
    stages: Sequence[Stage], strides: Sequence[int], depth_mult: float, depthwise: Depthwise
) -> Iterator[tuple[Stage, Depthwise, int]]:
    """For each block its stage, the depthwise convolutions that it keeps, and its stride."""
    downsampling = iter(strides)
    for stage in stages:
        for repeat in range(math.ceil(depth_mult * stage.repeats)):
            strided = repeat == 0 and stage.stride == 2
            kept: Depthwise = "both" if repeat else stage.first_block
            if kept == "both" and not strided:
                kept = depthwise
            yield stage, kept, next(downsampling) if strided else 1


def _check_knobs(
    shortcut: str, depthwise: str, reduction_ratio: int | None, identity: float
) -> None:
    if shortcut not in ("wide", "thin", "none"):
        raise InputError(f"shortcut: expected wide, thin or none, got {shortcut!r}")
    if shortcut != "wide" and identity != 1:
        raise InputError(
            f"shortcut={shortcut} has no identity tensor multiplier: expected identity=1, got "
            f"{identity}"
        )
    if depthwise not in ("both", "first", "last"):
        raise InputError(f"depthwise: expected both, first or last, got {depthwise!r}")
    if reduction_ratio is not None and reduction_ratio < 1:
        raise InputError(f"reduction ratio: expected 1 or more, got {reduction_ratio}")


class ThinShortcuts(nn.Sequential):
    """Blocks whose shortcuts run between their thin middles, an ablation.

    The bottleneck of a block is added to that of the next one where both have the same shape and
    the next one keeps the shape of its input; the blocks themselves have no shortcut.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) as the blocks in a row do."""
        x, before = input, None
        for block in self:
            if not isinstance(block, WideBlock):
                x, before = block(x), None
                continue
            thin = block.conv[: block.thin_end](x)
            same = before is not None and before.shape == thin.shape
            if same and x.shape[1] == block.out_channels:
                thin = thin + before
            x = block.se(block.conv[block.thin_end :](thin))
            before = thin
        return x
