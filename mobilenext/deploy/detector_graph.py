"""A detector made ready for other runtimes: from pixels to scores and boxes.

Decoding is in the graph, with the default boxes; non-maximum suppression is not: runtimes differ in
it, and few lines of numpy do it (`find_objects`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder

from mobilenext.deploy.graph import FromPixels
from mobilenext.deploy.preprocessing import Postprocessing
from mobilenext.metrics import detection as metrics

SCORES_AND_BOXES = ("scores", "boxes")
"""Names of an exported detector's outputs."""


class Detector(metrics.Detector, Protocol):
    """What a network has to have; see `models.detection.ssdlite.SSDLite`."""

    box_coder: BoxCoder
    image_size: int
    score_thresh: float
    nms_thresh: float
    detections_per_img: int
    topk_candidates: int

    def decoded(self, codes: Tensor) -> Tensor:
        """Boxes in pixels of the image, (N, A, 4), of codes of this shape."""
        ...

    def chosen(self, scores: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
        """What is found in each image: boxes, scores, labels; the surest first."""
        ...


class DetectorFromPixels(FromPixels):
    """A detector that takes pixels: uint8 (N, 3, H, W) in RGB to its scores and boxes.

    Args:
        network: A `Detector`, which takes normalised images.
        mean: Channel means in [0, 1].
        std: Channel standard deviations in [0, 1].
    """

    outputs = SCORES_AND_BOXES
    centres: Tensor
    steps: Tensor
    halves: Tensor
    shrink: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(network, mean, std)
        detector: Any = network
        anchors = detector.anchors.detach().float() / detector.image_size
        sides = anchors[:, 2:] - anchors[:, :2]
        weights = sides.new_tensor(detector.box_coder.weights)
        self.register_buffer("centres", (anchors[:, :2] + anchors[:, 2:]) / 2)
        self.register_buffer("steps", sides / weights[:2])
        self.register_buffer("halves", sides / 2)
        self.register_buffer("shrink", 1 / weights[2:])
        self.most = float(detector.box_coder.bbox_xform_clip)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 (N, 3, H, W) to what is in each of A boxes, and where these lie.

        Returns:
            Probabilities (N, A, 1 + classes), of which the first is the background's, and x0, y0,
            x1, y1 in [0, 1] of the image's width and height, (N, A, 4).
        """
        logits, codes = self.network(self.normalised(pixels))
        centres = self.centres + codes[..., :2] * self.steps
        halves = (codes[..., 2:] * self.shrink).clamp(max=self.most).exp() * self.halves
        boxes = torch.cat([centres - halves, centres + halves], 2).clamp(0, 1)
        return logits.softmax(2), boxes


def is_detector(network: nn.Module) -> bool:
    """Whether a network is a `Detector`."""
    return isinstance(getattr(network, "box_coder", None), BoxCoder)


def from_pixels(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> FromPixels:
    """A network that takes pixels: a detector gives scores and boxes, a classifier logits.

    Args:
        network: Takes normalised images.
        mean: Channel means in [0, 1].
        std: Channel standard deviations in [0, 1].
    """
    whole = DetectorFromPixels if is_detector(network) else FromPixels
    return whole(network, mean, std).eval()


@torch.no_grad()
def expected_outputs(network: nn.Module, images: Tensor) -> np.ndarray | tuple[np.ndarray, ...]:
    """What `from_pixels` has to give: a classifier's logits, or a detector's scores and boxes.

    Boxes are decoded by the detector's own code.

    Args:
        network: A classifier or a `Detector`.
        images: Normalised, (N, 3, H, W).
    """
    detector: Any = network
    if not is_detector(network):
        return network(images).float().cpu().numpy()
    logits, codes = network(images)
    boxes = detector.decoded(codes.float()) / detector.image_size
    return logits.float().softmax(2).cpu().numpy(), boxes.cpu().numpy()


def postprocessing_of(network: nn.Module) -> Postprocessing | None:
    """How objects are chosen from the scores and boxes of a `Detector`; None: it is none."""
    if not is_detector(network):
        return None
    detector: Any = network
    return Postprocessing(
        detector.score_thresh, detector.nms_thresh, detector.topk_candidates,
        detector.detections_per_img,
    )  # fmt: skip


class Counted(nn.Module):
    """A form of a detector that gives scores and boxes, as `metrics.detection` counts detectors.

    Args:
        network: The `Detector` whose form it is; it chooses among them.
        form: Maps pixels, uint8 (N, 3, H, W), to scores and boxes, on any device.
    """

    def __init__(self, network: nn.Module, form: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        detector: Any = network
        # In a tuple, so that they are no part of this module: exported graphs have no eval().
        self._held: tuple[Detector, Callable[[Tensor], tuple[Tensor, Tensor]]] = detector, form

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (N, A, 1 + classes) and boxes in [0, 1] (N, A, 4) of pixels (N, 3, H, W)."""
        scores, boxes = (one.to(pixels.device) for one in self._held[1](pixels.to(torch.uint8)))
        return scores.float(), boxes.float()

    def detections(self, scores: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
        """What is found in each image, see `SSDLite.detections`; of what `forward` gives."""
        detector = self._held[0]
        return detector.chosen(scores, boxes * detector.image_size)
