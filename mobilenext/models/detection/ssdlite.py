"""SSDLite: default boxes at six scales on the maps of a classifier (arXiv 1801.04381, 1512.02325).

The head, the box coder and the post-processing are torchvision's. Anchors, extra maps and the last
level of the head follow the MobileNeXt authors' detection code where asked
(https://github.com/Andrew-Qibin/ssdlite-pytorch-mobilenext).
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import batched_nms

from mobilenext.errors import InputError, first_line
from mobilenext.models.detection.taps import Taps, find_taps
from mobilenext.models.weights import FittedWeights, fit_weights

PARTS = ("authors", "torchvision")
"""Values of `extras` and `head`."""

REFERENCE = 320
"""Image size in pixels that the sizes and steps of default boxes are given for."""

LEVELS = 6
MOST_DETECTIONS = 1000
"""Detections of an image that may be asked for."""

MIN_SIZES = (45, 90, 135, 180, 225, 270)
MAX_SIZES = (120, 180, 220, 260, 300, 320)
STEPS = (16, 32, 64, 120, 160, 320)
"""The authors' default boxes for VOC, in pixels of 320; ratios 2 and 3 at each level."""
RATIOS = (2.0, 3.0)

EXTRA_CHANNELS = {"sandglass": (512, 256, 256, 128), "inverted": (512, 256, 256, 64),
                  "torchvision": (512, 256, 256, 128)}  # fmt: skip
EXTRA_RATIOS = {"sandglass": (0.2, 0.25, 0.5, 0.5), "inverted": (0.2, 0.5, 0.5, 0.5),
                "torchvision": (0.5, 0.5, 0.5, 0.5)}  # fmt: skip


class SSDLite(SSD):
    """Finds objects: for each default box the logits of the classes, and how to move the box.

    `forward` gives raw outputs, in training and in evaluation: the loss and what becomes of the
    outputs (`detections`) are steps of their own, so that it can be compiled, wrapped and exported.

    Args:
        backbone: A classifier; its feature maps at strides 16 and 32 are used, its classifier is
            left out.
        num_classes: Classes without the background, which is class 0 of the logits.
        image_size: Height and width of the images, in pixels.
        taps: authors or expansion, see `find_taps`.
        extras: Blocks that make four further maps: authors (inverted residuals with a narrow
            middle, or for sandglass networks a depthwise convolution in front of a narrow middle),
            or torchvision.
        head: authors (a plain 1x1 convolution at the last level) or torchvision.
        min_sizes: Sides of the default boxes at each level, in pixels of 320.
        max_sizes: Sides that the second square of each level is made with.
        steps: Pixels of 320 between the default boxes of each level; at other image sizes they
            follow the maps.
        score_threshold: Least score of a detection.
        nms_threshold: Largest IoU of two detections of a class.
        most: Detections of an image.
        candidates: Detections of a class that non-maximum suppression sees.

    Raises:
        InputError: The backbone has no such maps, or an argument has another value.
    """

    anchors: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        image_size: int = REFERENCE,
        *,
        taps: str = "authors",
        extras: str = "authors",
        head: str = "authors",
        min_sizes: Sequence[float] = MIN_SIZES,
        max_sizes: Sequence[float] = MAX_SIZES,
        steps: Sequence[float] = STEPS,
        score_threshold: float = 0.01,
        nms_threshold: float = 0.45,
        most: int = 100,
        candidates: int = 400,
    ) -> None:
        for key, value in (("extras", extras), ("head", head)):
            if value not in PARTS:
                raise InputError(f"{key}: expected one of {', '.join(PARTS)}, got {value!r}")
        if not len(min_sizes) == len(max_sizes) == len(steps) == LEVELS:
            raise InputError(
                f"min_sizes, max_sizes, steps: expected {LEVELS} numbers each, got "
                f"{len(min_sizes)}, {len(max_sizes)} and {len(steps)}"
            )
        for key, value, least, below in (
            ("score_threshold", score_threshold, 0, 1), ("nms_threshold", nms_threshold, 0, 1.01),
            ("most", most, 1, MOST_DETECTIONS + 1), ("candidates", candidates, 1, 10_001),
        ):  # fmt: skip
            if not least <= value < below:
                raise InputError(f"{key}: expected {least} or more and below {below}, got {value}")
        maps = Maps(backbone, find_taps(backbone, taps), extras)
        sizes, channels = maps.shapes(image_size)
        default = DefaultBoxes(image_size, sizes, min_sizes, max_sizes, steps)
        places = default.num_anchors_per_location()
        new_head = SSDLiteHead(channels, places, 1 + num_classes, nn.BatchNorm2d)
        if head == "authors":
            last, boxes = channels[-1], places[-1]
            for part, outputs in (
                (new_head.classification_head, 1 + num_classes),
                (new_head.regression_head, 4),
            ):
                layers: Any = part.module_list
                layers[-1] = nn.Conv2d(last, boxes * outputs, 1)
        initialise = _xavier if head == "authors" else _normal
        new_head.apply(initialise)
        maps.extras.apply(_xavier if extras == "authors" else _normal)
        super().__init__(
            maps, default, (image_size, image_size), 1 + num_classes, head=new_head,
            score_thresh=score_threshold, nms_thresh=nms_threshold, detections_per_img=most,
            topk_candidates=candidates,
        )  # fmt: skip
        self.register_buffer("anchors", default.corners(), persistent=False)
        self.image_size = image_size
        # In a tuple, so that it is no part of this network. It has shapes, and no values.
        self._classifier = (copy.deepcopy(backbone).to("meta"),)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Logits (N, A, 1 + classes) and box codes (N, A, 4) of images (N, 3, H, W).

        A is the number of default boxes, `anchors`; class 0 is the background.
        """
        maps = list(self.backbone(images).values())
        found: dict[str, Tensor] = self.head(maps)
        return found["cls_logits"], found["bbox_regression"]

    def detections(self, logits: Tensor, codes: Tensor) -> list[dict[str, Tensor]]:
        """What is found in each image: `boxes` (n, 4) in its pixels, `scores`, `labels` from 0 on.

        Scores above `score_threshold`, after non-maximum suppression by class, highest first: what
        torchvision's `postprocess_detections` finds, which goes through images class by class.

        Args:
            logits: See `forward`.
            codes: See `forward`.
        """
        return self.chosen(logits.float().softmax(2), self.decoded(codes.float()))

    def chosen(self, scores: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
        """What is found in each image, see `detections`.

        Args:
            scores: Probabilities (N, A, 1 + classes), of which the first is the background's.
            boxes: x0, y0, x1, y1 in pixels of the image, (N, A, 4).
        """
        count, classes = len(scores), scores.shape[2] - 1
        scores = scores[..., 1:].transpose(1, 2)
        kept = min(self.topk_candidates, scores.shape[2])
        scores, places = scores.topk(kept, dim=2)
        boxes = boxes.gather(1, places.reshape(count, -1, 1).expand(-1, -1, 4))
        labels = torch.arange(classes, device=scores.device).repeat_interleave(kept)
        scores = scores.flatten(1)
        found = []
        for image_scores, image_boxes, sure in zip(
            scores, boxes, scores > self.score_thresh, strict=True
        ):
            some = {
                "boxes": image_boxes[sure], "scores": image_scores[sure], "labels": labels[sure]
            }  # fmt: skip
            best = batched_nms(some["boxes"], some["scores"], some["labels"], self.nms_thresh)
            best = best[: self.detections_per_img]
            found.append({name: values[best] for name, values in some.items()})
        return found

    def decoded(self, codes: Tensor) -> Tensor:
        """Boxes (N, A, 4) of codes (N, A, 4): x0, y0, x1, y1 within the image, in its pixels."""
        anchors = self.anchors.expand_as(codes).reshape(-1, 4)
        boxes = self.box_coder.decode_single(codes.reshape(-1, 4), anchors)
        return boxes.clamp(0, self.image_size).view_as(codes)

    def get_classifier(self) -> list[nn.Module]:
        """The layers that make the logits of the classes."""
        layers: Any = self.head.classification_head.module_list  # pyright: ignore[reportAttributeAccessIssue]
        return [layer[-1] if isinstance(layer, nn.Sequential) else layer for layer in layers]

    def frozen_part(self) -> nn.Module:
        """The part of the network that comes from a classifier."""
        return self.backbone.body  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]

    def fitted(self, tensors: Mapping[str, Tensor]) -> FittedWeights:
        """Weights of a detector or of a classifier, brought to the names of this network.

        Args:
            tensors: A state dict of such a detector, or one that the backbone's classifier takes
                (`fit_weights`); extra maps and head then keep the values they have.

        Raises:
            InputError: They are of another network.
        """
        if any(name.startswith("head.classification_head.") for name in tensors):
            return fit_weights(tensors, self)
        given = fit_weights(tensors, self._classifier[0])
        own = self.frozen_part().state_dict()
        return FittedWeights(
            {f"backbone.body.{name}": value for name, value in given.tensors.items()
             if name in own}, True,
        )  # fmt: skip


class Maps(nn.Module):
    """Six feature maps of images: two taps of a classifier, and four that further blocks make.

    Args:
        backbone: The classifier.
        taps: Where its maps are.
        extras: authors or torchvision.
    """

    def __init__(self, backbone: nn.Module, taps: Taps, extras: str) -> None:
        super().__init__()
        names = {taps.middle: "middle", taps.last: "last"}
        self.ends_later = taps.end != taps.last
        if self.ends_later:
            names[taps.end] = "end"
        try:
            self.body = create_feature_extractor(backbone, names, suppress_diff_warning=True)
        except Exception as error:  # torch.fx has no common type for it
            raise InputError(
                f"a detector needs a network that torch.fx can take apart, got a "
                f"{type(backbone).__name__} ({first_line(error)}): choose another model"
            ) from error
        kind = "torchvision"
        if extras == "authors":
            kind = "sandglass" if taps.sandglass else "inverted"
        channels = self._channels()
        self.out_channels = [channels["middle"], channels["last"], *EXTRA_CHANNELS[kind]]
        make, blocks = EXTRAS[kind], []
        inputs = channels["end" if self.ends_later else "last"]
        for outputs, ratio in zip(EXTRA_CHANNELS[kind], EXTRA_RATIOS[kind], strict=True):
            blocks.append(make(inputs, outputs, ratio))
            inputs = outputs
        self.extras = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """The maps of images (N, 3, H, W), the largest first."""
        found = self.body(images)
        maps = [found["middle"], found["last"]]
        x = found["end"] if self.ends_later else found["last"]
        for block in self.extras:
            x = block(x)
            maps.append(x)
        return OrderedDict((str(level), one) for level, one in enumerate(maps))

    def shapes(self, image_size: int) -> tuple[list[int], list[int]]:
        """Height (and width) and channels of each map, for images of this size."""
        trial = copy.deepcopy(self).to("meta").eval()
        with torch.no_grad():
            maps = trial(torch.empty(1, 3, image_size, image_size, device="meta"))
        return [one.shape[2] for one in maps.values()], [one.shape[1] for one in maps.values()]

    def _channels(self) -> dict[str, int]:
        trial = copy.deepcopy(self.body).to("meta").eval()
        with torch.no_grad():
            maps = trial(torch.empty(1, 3, 64, 64, device="meta"))
        return {name: one.shape[1] for name, one in maps.items()}


class DefaultBoxes(DefaultBoxGenerator):
    """Default boxes, six at each place of each map: two squares, and two of each ratio.

    torchvision makes the second square of a level with the next level's size; here each level has a
    largest size of its own, as in SSD's own code.

    Args:
        image_size: Height and width of the images, in pixels.
        map_sizes: Height and width of each map.
        min_sizes: See `SSDLite`.
        max_sizes: See `SSDLite`.
        steps: See `SSDLite`.
    """

    def __init__(
        self,
        image_size: int,
        map_sizes: Sequence[int],
        min_sizes: Sequence[float],
        max_sizes: Sequence[float],
        steps: Sequence[float],
    ) -> None:
        self.largest = [size / REFERENCE for size in max_sizes]
        self.image_size, self.map_sizes = image_size, list(map_sizes)
        # Steps made for maps of other sizes would leave parts of the image without boxes.
        theirs = list(steps) if image_size == REFERENCE else [image_size / n for n in map_sizes]
        super().__init__(
            [[int(ratio) for ratio in RATIOS]] * len(min_sizes),
            scales=[*(size / REFERENCE for size in min_sizes), 1.0],
            steps=theirs,  # pyright: ignore[reportArgumentType]
        )

    def _generate_wh_pairs(
        self,
        num_outputs: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> list[Tensor]:
        pairs = super()._generate_wh_pairs(num_outputs, dtype, device)
        for level, sides in enumerate(pairs):
            sides[1] = math.sqrt(self.scales[level] * self.largest[level])
        return pairs

    def corners(self) -> Tensor:
        """All of them as x0, y0, x1, y1 in pixels, float32 (A, 4)."""
        size = self.image_size
        images = ImageList(torch.empty(1, 3, size, size), [(size, size)])
        return self(images, [torch.empty(1, 1, n, n) for n in self.map_sizes])[0]


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return [*layers, nn.ReLU6(inplace=True)] if act else layers


def _sandglass_extra(inputs: int, outputs: int, ratio: float) -> nn.Module:
    """The authors' for MobileNeXt: depthwise with stride 2, narrow and linear, wide."""
    hidden = int(inputs * ratio)
    return nn.Sequential(
        *_conv(inputs, inputs, 3, 2, inputs),
        *_conv(inputs, hidden, act=False),
        *_conv(hidden, outputs),
    )


def _inverted_extra(inputs: int, outputs: int, ratio: float) -> nn.Module:
    """The authors' for MobileNetV2: an inverted residual with a narrow middle."""
    hidden = round(inputs * ratio)
    return nn.Sequential(
        *_conv(inputs, hidden), *_conv(hidden, hidden, 3, 2, hidden),
        *_conv(hidden, outputs, act=False),
    )  # fmt: skip


def _torchvision_extra(inputs: int, outputs: int, ratio: float) -> nn.Module:
    """torchvision's: half the outputs in the middle, a depthwise convolution with stride 2."""
    hidden = int(outputs * ratio)
    return nn.Sequential(
        *_conv(inputs, hidden), *_conv(hidden, hidden, 3, 2, hidden), *_conv(hidden, outputs)
    )


EXTRAS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "sandglass": _sandglass_extra,
    "inverted": _inverted_extra,
    "torchvision": _torchvision_extra,
}


def _initialise(module: nn.Module, weights: Callable[[Tensor], Any]) -> None:
    if isinstance(module, nn.Conv2d):
        weights(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_xavier = partial(_initialise, weights=nn.init.xavier_uniform_)
_normal = partial(_initialise, weights=partial(nn.init.normal_, mean=0.0, std=0.03))
