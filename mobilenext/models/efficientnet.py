"""EfficientNet-b0 (arXiv 1905.11946), and the same with sandglass blocks in its blocks' place.

Also `mnext_s` and `mnext_l`, the networks with squeeze-and-excitation that the authors of
MobileNeXt compare with EfficientNet: `mobilenext/codebase/models/efficient_mnext/` of
https://github.com/yitu-opensource/MobileNeXt.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
    initialize_by_fan_out,
    make_divisible,
)
from mobilenext.models.mobilenext import MobileNeXt, Stage
from mobilenext.models.parts import DropPath, Pooling, SqueezeExcite, checkpointed
from mobilenext.models.sandglass import Depthwise, SandglassBlock


def silu() -> nn.Module:
    """The activation of EfficientNet, also called swish."""
    return nn.SiLU()


def tensorflow_norm(channels: int) -> nn.Module:
    """A batch norm with the constants of EfficientNet's TensorFlow code."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidualStage(NamedTuple):
    """Inverted residuals of equal width; the first of them has the stride."""

    kernel_size: int
    expand_ratio: int
    channels: int
    """Number of channels of the thin ends."""
    repeats: int
    stride: int


B0_STAGES = (
    InvertedResidualStage(3, 1, 16, 1, 1),
    InvertedResidualStage(3, 6, 24, 2, 2),
    InvertedResidualStage(5, 6, 40, 2, 2),
    InvertedResidualStage(3, 6, 80, 3, 2),
    InvertedResidualStage(5, 6, 112, 3, 1),
    InvertedResidualStage(5, 6, 192, 4, 2),
    InvertedResidualStage(3, 6, 320, 1, 1),
)
"""EfficientNet's table 1."""


class InvertedResidual(nn.Module):
    """1x1 expand, depthwise with the stride, squeeze-and-excitation, 1x1 reduce; thin shortcut.

    Without expansion (`expand_ratio` 1) the first of them is missing. Layers have timm's names.

    Args:
        in_channels: Channels of the thin input.
        out_channels: Channels of the thin output.
        kernel_size: Of the depthwise convolution, odd.
        stride: 1 or 2.
        expand_ratio: Channels of the wide middle over those of the input.
        se_ratio: Squeezed channels over those of the input; 0: no squeeze-and-excitation.
        drop_path: Probability that an image goes by the shortcut only.
        norm_layer: Makes the norm for a number of channels.
        activation_layer: Makes the activation.

    Shapes:
        input (N, in_channels, H, W), output (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        expand_ratio: int,
        se_ratio: float = 0.25,
        drop_path: float = 0.0,
        norm_layer: NormLayer = nn.BatchNorm2d,
        activation_layer: ActivationLayer = silu,
    ) -> None:
        super().__init__()
        hidden = in_channels * expand_ratio
        squeeze = nn.Identity()
        if se_ratio:
            squeezed = max(1, int(in_channels * se_ratio))
            squeeze = SqueezeExcite(hidden, squeezed, activation_layer)
        pair = partial(conv_norm, norm_layer=norm_layer, activation_layer=activation_layer)
        linear = partial(conv_norm, norm_layer=norm_layer)
        depthwise = pair(hidden, hidden, kernel_size, stride=stride, groups=hidden)
        if expand_ratio == 1:
            self.conv_dw, self.bn1, self.act1 = depthwise
            self.se = squeeze
            self.conv_pw, self.bn2 = linear(hidden, out_channels, 1)
        else:
            self.conv_pw, self.bn1, self.act1 = pair(in_channels, hidden, 1)
            self.conv_dw, self.bn2, self.act2 = depthwise
            self.se = squeeze
            self.conv_pwl, self.bn3 = linear(hidden, out_channels, 1)
        self.residual = stride == 1 and in_channels == out_channels
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = x
        for layer in self.children():
            if layer is not self.drop_path:
                out = layer(out)
        return x + self.drop_path(out) if self.residual else out


class EfficientNet(Classifier):
    """EfficientNet-b0 in its own form, or with sandglass blocks in place of inverted residuals.

    `block=sandglass` regroups the table: where a stage of b0 has thin ends of c channels between
    wide middles, the sandglass stage has wide ends of 6 c channels around bottlenecks of c, with
    the same repeats and kernels. The last one goes from 6 * 192 through 320 to 1280 channels, so
    that the 1x1 head has no work left and is not there. The rest is as MobileNeXt's authors made
    their network of MobileNetV2: the first stage has the second one's stride, blocks that change
    the number of channels drop the first depthwise convolution, or both if they don't stride
    either, except in the first and the last stage. Squeeze-and-excitation weighs the block's
    output, as in `mnext_s` and `mnext_l`. The paper compares `mnext_l` with EfficientNet-b0 (by a
    review of it a fifth fewer parameters, +0.4 points) and has no number for this network.

    With `block=inverted_residual`, layers have the names and shapes of timm's `efficientnet_b0`,
    and weights go from one to the other.

    Args:
        width_mult: Width multiplier, above 0.
        identity_tensor_multiplier: Of sandglass blocks; has to be 1 for inverted residuals.
        num_classes: Logits.
        dropout: Probability before the classifier.
        strides: Of the five downsampling layers: the stem and the first blocks of four stages. All
            2 for 224 px.
        block: inverted_residual or sandglass.
        stages: The table to build.
        head_channels: Of the last feature map.
        se_ratio: See the blocks; 0: no squeeze-and-excitation.
        drop_path: Stochastic depth: probability for the block after the last, from 0 for the first
            one on in proportion.
        norm_layer: Makes the norm for a number of channels.
        activation_layer: Makes the activation.
        in_chans: Channels of the images.
        global_pool: See `reset_classifier`.

    Shapes:
        images (N, in_chans, H, W) to logits (N, num_classes).

    Raises:
        InputError: A knob outside its range, or one that the block does not have.
    """

    def __init__(
        self,
        width_mult: float = 1.0,
        identity_tensor_multiplier: float = 1.0,
        num_classes: int = 1000,
        dropout: float = 0.2,
        strides: Sequence[int] = (2, 2, 2, 2, 2),
        *,
        block: Literal["inverted_residual", "sandglass"] = "inverted_residual",
        stages: Sequence[InvertedResidualStage] = B0_STAGES,
        head_channels: int = 1280,
        se_ratio: float = 0.25,
        drop_path: float = 0.2,
        norm_layer: NormLayer = nn.BatchNorm2d,
        activation_layer: ActivationLayer = silu,
        in_chans: int = 3,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        check_width(width_mult)
        check_strides(strides, 1 + sum(stage.stride == 2 for stage in stages), "EfficientNet")
        check_share("dropout", dropout)
        check_share("drop_path", drop_path)
        if block not in ("inverted_residual", "sandglass"):
            raise InputError(f"block: expected inverted_residual or sandglass, got {block!r}")
        if block == "inverted_residual" and identity_tensor_multiplier != 1:
            raise InputError(
                "EfficientNet's inverted residuals have no identity tensor multiplier: expected "
                f"identity=1, got {identity_tensor_multiplier}; leave it out or use "
                "block=sandglass"
            )
        if block == "sandglass":
            stages = swapped_strides(stages)
        check_blocks(sum(stage.repeats for stage in stages))
        stem_stride, *block_strides = strides
        downsampling = iter(block_strides)
        plan = [
            (stage, repeat, next(downsampling) if stage.stride == 2 and repeat == 0 else 1)
            for stage in stages
            for repeat in range(stage.repeats)
        ]
        common: dict[str, Any] = {
            "se_ratio": se_ratio,
            "norm_layer": norm_layer,
            "activation_layer": activation_layer,
        }
        channels = make_divisible(32 * width_mult)
        conv = partial(conv_norm, norm_layer=norm_layer, activation_layer=activation_layer)
        self.conv_stem, self.bn1, self.act1 = conv(in_chans, channels, 3, stride=stem_stride)
        built: list[list[nn.Module]] = []
        reduction = stem_stride
        reductions = [("act1", channels, reduction)]
        for number, (stage, repeat, stride) in enumerate(plan):
            if repeat == 0:
                built.append([])
            reduction *= stride
            thin = make_divisible(stage.channels * width_mult)
            rate = drop_path * number / len(plan)
            if block == "inverted_residual":
                out_channels = thin
                made: nn.Module = InvertedResidual(
                    channels,
                    thin,
                    stage.kernel_size,
                    stride,
                    stage.expand_ratio,
                    drop_path=rate,
                    **common,
                )
            else:
                last = stage is stages[-1]
                out_channels = head_channels if last else 6 * thin
                ends = stage in (stages[0], stages[-1])
                made = SandglassBlock(
                    channels,
                    out_channels,
                    stride,
                    reduction_ratio=2 if stage.expand_ratio == 1 else 6,
                    identity_tensor_multiplier=identity_tensor_multiplier,
                    depthwise=_kept(repeat, stage.stride, ends),
                    kernel_size=stage.kernel_size,
                    hidden_channels=thin,
                    drop_path=rate,
                    **common,
                )
            built[-1].append(made)
            channels = out_channels
            reductions.append((f"blocks.{len(built) - 1}", channels, reduction))
        self.blocks = nn.Sequential(*(nn.Sequential(*stage) for stage in built))
        if block == "inverted_residual":
            self.conv_head, self.bn2, self.act2 = conv(channels, head_channels, 1)
            channels = head_channels
        else:
            self.conv_head = self.bn2 = self.act2 = nn.Identity()
        self.feature_info = taps(reductions)
        self.num_features = channels
        self.num_classes = num_classes
        self.global_pool = Pooling(global_pool)
        self.head_hidden_size = channels * self.global_pool.feat_mult()
        self.dropout = nn.Dropout(dropout)
        self.classifier: nn.Module = nn.Identity()
        self._set_classifier(self._new_classifier())
        initialize_by_fan_out(self)

    def steps(self) -> Iterator[Step]:
        """Names and modules of the trunk, in order."""
        for name in ("conv_stem", "bn1", "act1"):
            yield name, self.get_submodule(name)
        for index, module in enumerate(self.blocks):
            yield f"blocks.{index}", module
        for name in ("conv_head", "bn2", "act2"):
            yield name, self.get_submodule(name)

    def get_classifier(self) -> nn.Module:
        """The linear layer that makes logits; nn.Identity if there are no classes."""
        return self.classifier

    def _set_classifier(self, layer: nn.Module) -> None:
        self.classifier = layer

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of layers from input to output, as timm's optimisers ask for them."""
        blocks = r"^blocks\.(\d+)" if coarse else r"^blocks\.(\d+)\.(\d+)"
        return {
            "stem": r"^conv_stem|^bn1",
            "blocks": [(blocks, None), (r"^conv_head|^bn2", (99999,))],
        }

    def _all_blocks(self) -> list[nn.Module]:
        return [block for stage in self.blocks.children() for block in stage.children()]

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to the last feature map (N, num_features, h, w)."""
        x = self.act1(self.bn1(self.conv_stem(images)))
        if self.grad_checkpointing and not torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            x = checkpointed(self._all_blocks(), x)
        else:
            x = self.blocks(x)
        return self.act2(self.bn2(self.conv_head(x)))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map a feature map to logits, or to what the linear layer would get."""
        x = self.dropout(self.global_pool(features))
        return x if pre_logits else self.classifier(x)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(images))


def swapped_strides(
    stages: Sequence[InvertedResidualStage],
) -> tuple[InvertedResidualStage, ...]:
    """The table with the strides of its first two stages exchanged."""
    first, second, *rest = stages
    return (first._replace(stride=second.stride), second._replace(stride=first.stride), *rest)


def _kept(repeat: int, stage_stride: int, at_an_end: bool) -> Depthwise:
    if repeat or at_an_end:
        return "both"
    return "last" if stage_stride == 2 else "none"


MNEXT_STAGES = (
    Stage(2, 96, 1, 1, "both", 3, shortcut=False),
    Stage(6, 144, 1, 2, "last", 3),
    Stage(6, 192, 3, 2, "last", 5),
    Stage(6, 288, 3, 2, "last", 3),
    Stage(6, 384, 4, 1, "none", 5),
    Stage(6, 576, 4, 2, "last", 5),
    Stage(6, 960, 3, 1, "none", 3),
    Stage(6, 1280, 1, 1, "none", 3),
)
"""The authors' configuration "large". Their code looks at the ratio first: blocks of ratio 2 have
no shortcut, the one that `mnext_l` repeats at 96 channels included."""

MNEXT_UNUSED_PARAMS = 2560
"""Parameters of a norm that the authors' networks define, never call, and count."""


def mnext_s(
    *,
    se_ratio: float = 0.25,
    depth_mult: float = 1.0,
    pointwise_groups: int = 1,
    norm_layer: NormLayer = tensorflow_norm,
    initialization: Callable[[nn.Module], None] | None = None,
    drop_path: float = 0.2,
    **arguments: Any,
) -> MobileNeXt:
    """MobileNeXt-1.0 with squeeze-and-excitation, the paper's row of 3.94 M parameters.

    MobileNeXt with EfficientNet's habits: 5x5 kernels in some stages, swish, TensorFlow's padding
    and norms, drop-connect; the stride is in the 144-channel stage instead of the 96-channel one,
    the bottleneck has no floor, and the last block no depthwise convolution. The published
    3,937,011 parameters include 2,560 that the authors' network never uses (`MNEXT_UNUSED_PARAMS`);
    this one does not have them.

    Args:
        se_ratio: 0.25 in the paper's rows; 0: without squeeze-and-excitation.
        depth_mult: Multiplies the stages' repeats, rounded up.
        pointwise_groups: See `SandglassBlock`.
        norm_layer: Makes the norm for a number of channels.
        initialization: None is torch's own, which the authors left in place.
        drop_path: Fixed to 0.2 in the authors' code, whatever their command line says.
        **arguments: Of `MobileNeXt`.
    """
    block = partial(
        SandglassBlock,
        floor_ratio=None,
        se_ratio=se_ratio,
        pointwise_groups=pointwise_groups,
    )
    return MobileNeXt(
        stages=MNEXT_STAGES,
        block=block,
        depth_mult=depth_mult,
        norm_layer=norm_layer,
        activation_layer=silu,
        padding="same",
        initialization=initialization,
        drop_path=drop_path,
        **arguments,
    )


def mnext_l(**arguments: Any) -> MobileNeXt:
    """MobileNeXt-1.1 with squeeze-and-excitation, the paper's row of 4.28 M parameters.

    `mnext_s` with 1.1 times its repeats, rounded up, and 1x1 convolutions in two groups where a
    block keeps its width and in the first one. The published 4,287,498 parameters include the
    2,560 unused ones, too.

    Args:
        **arguments: Of `mnext_s`.
    """
    return mnext_s(**{"depth_mult": 1.1, "pointwise_groups": 2, **arguments})
