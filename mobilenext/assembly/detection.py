"""From a config to a detector and its batches, and back from a file of one."""

import dataclasses
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilenext.assembly.data import images_of_pass, loading
from mobilenext.assembly.network import keep_statistics, on_device, refused, tried
from mobilenext.assembly.trained import (
    SLACK,
    elements_of,
    is_detector,
    rebuilt_with_cost,
    try_images,
)
from mobilenext.config import DataConfig, DetectConfig, to_plain
from mobilenext.config.targets import STORED_NETWORKS, allocating_at_most, build
from mobilenext.data import (
    Augment,
    BoxData,
    BoxImages,
    BoxTransform,
    DeviceBatches,
    Loader,
    Photometric,
    eval_loader,
    train_loader,
)
from mobilenext.data.boxes import BOX_TARGETS, PADDING
from mobilenext.errors import InputError
from mobilenext.files import printable
from mobilenext.metrics.detection import MultiBoxLoss
from mobilenext.models.complexity import Complexity, measure_complexity
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import Precision
from mobilenext.seeding import seed_devices
from mobilenext.training.unreadable import Loaders
from mobilenext.training.weights_files import load_into

MOST_NEGATIVES = 10_000


def check_box_data(images: Any, name: str) -> BoxData:
    """Raise `InputError` unless a data source gave images with boxes."""
    if not isinstance(images, BoxData):
        raise InputError(
            f"data={printable(name)}: expected images with boxes (data=voc, data=coco), got images "
            "of one class each; scripts/train.py trains classifiers"
        )
    if images.val.boxes.difficult.all():
        raise InputError(
            f"data={printable(name)}: expected objects that are not difficult in the images that "
            "are evaluated on (data.source.val), found none: nothing could be measured"
        )
    return images


@contextmanager
def box_loaders(config: DetectConfig, images: BoxData, process: Process) -> Iterator[Loaders]:
    """This process's batches of both splits; their threads end with the context.

    Raises:
        InputError: The batch can't be shared or split, or a decoder is not to be had.
    """
    with (
        closing(box_training_loader(config, images, process)) as train,
        closing(box_validation_loader(config.data, images.val, process)) as val,
    ):
        yield Loaders(train, val)


def box_training_loader(config: DetectConfig, images: BoxData, process: Process) -> Loader:
    """Augmented batches of this process, with their boxes.

    Raises:
        InputError: The batch can't be shared by the processes or split into micro-batches, or the
            decoder is not to be had.
    """
    data = config.data
    augment = {k: v for k, v in to_plain(config.augment).items() if k != "photometric"}
    loader = train_loader(
        images.train,
        BoxTransform(data.image_size, images.train.boxes, **augment),
        seed=config.seed,
        global_batch_size=data.global_batch_size,
        order=data.order,
        **loading(data, process),
    )
    images_of_pass(config, process)
    return loader


def box_validation_loader(data: DataConfig, images: BoxImages, process: Process) -> Loader:
    """This process's whole batches of a split, its images squeezed to squares."""
    return eval_loader(
        images,
        BoxTransform(data.eval_size, images.boxes, interpolation=data.eval_interpolation),
        batch_size=data.eval_batch_size,
        whole_batches=True,
        **loading(data, process),
    )


def box_batches(data: DataConfig, process: Process, channels_last: bool) -> DeviceBatches:
    """From batches on the host to normalised images on this process's device."""
    return DeviceBatches(data.mean, data.std, process.device, channels_last, fills=True)


def box_augment(config: DetectConfig, process: Process) -> Augment | None:
    """Distortion of the colours of training images, if the config asks for it."""
    if not config.augment.photometric:
        return None
    batch, rank = config.data.global_batch_size, process.rank
    return Photometric(config.seed, batch, rank, process.world_size)


def new_detector(
    config: DetectConfig, classes: int, process: Process
) -> tuple[nn.Module, Complexity]:
    """The detector with its random weights on its device, and what it costs.

    Raises:
        InputError: The network has no such feature maps, or does not take the images.
    """
    seed_devices("init", config.seed)
    size = config.data.image_size
    backbone: nn.Module = build(config.model.network, num_classes=classes)
    network: nn.Module = build(
        config.detector.network, backbone=backbone, num_classes=classes, image_size=size
    )
    try:
        complexity = measure_complexity(network, size)
    except Exception as error:  # networks have no type for it
        raise refused(config, "evaluation (data.eval_size)", (1, 3, size, size), error) from error
    network = on_device(network, config, process)
    if config.freeze_backbone:
        network.frozen_part().requires_grad_(False)  # pyright: ignore[reportCallIssue]
    return network, complexity


def train_detector_mode(network: nn.Module, config: DetectConfig) -> None:
    """Put a detector into training mode, all but what the run's config freezes."""
    network.train()
    if config.freeze_backbone:
        network.frozen_part().eval()  # pyright: ignore[reportCallIssue]
    if config.freeze_norms:
        keep_statistics(network.frozen_part())  # pyright: ignore[reportCallIssue]


def try_detector(
    config: DetectConfig, network: nn.Module, precision: Precision, process: Process
) -> int:
    """Try a forward and a backward pass, and take back what they did to the network.

    Returns:
        Bytes that the forward pass keeps for the backward pass, for each image.

    Raises:
        InputError: The network does not take such a batch.
    """
    loss = MultiBoxLoss(network, config.negatives)  # pyright: ignore[reportArgumentType]

    def attempt(images: Tensor) -> Tensor:
        targets = torch.zeros(len(images), 2, BOX_TARGETS, device=images.device)
        targets[:, 1:, 2:4] = images.shape[2]
        targets[1:, 1:, 4] = PADDING
        with precision.autocast():
            return loss(network, images, targets)[0]

    train_detector_mode(network, config)
    return tried(config, network, attempt, process)


def described_detector(config: DetectConfig, images: BoxData) -> dict[str, Any]:
    """Description of a detector and its training data, for checkpoints."""
    model = {
        **to_plain(config.model),
        "num_classes": len(images.classes),
        "detector": to_plain(config.detector),
        "negatives": config.negatives,
    }
    return {
        "model": model,
        "classes": list(images.classes),
        "data": to_plain(config.data),
        "train_images": len(images.train),
        "train_labels_crc32": images.train.boxes.checksum,
    }


def negatives_of(model: dict[str, Any], path: Path) -> float:
    """Background boxes for each match, as the run of a checkpoint counted them.

    Raises:
        InputError: It is no such number.
    """
    value = model.get("negatives", 3.0)
    if type(value) not in (int, float) or not 0 < value <= MOST_NEGATIVES:
        raise InputError(f"{printable(path)}: negatives: expected a number above 0, got {value!r}")
    return float(value)


def only_evaluated(data: DataConfig, classes: list[str]) -> DataConfig:
    """A run's data without its training images, which evaluation has no need of.

    Args:
        data: As `evaluation_data` makes it.
        classes: Those of the run, which may have come from the training images.
    """
    source = data.source
    if not {"train", "val", "classes"} <= source.keys():
        return data
    source = {**source, "train": source["val"], "classes": list(classes)}
    return dataclasses.replace(data, source=source)


def detector_words(model: dict[str, Any]) -> str:
    """A detector and its backbone in words, for instance `ssdlite_authors on mobilenetv2 0.35`.

    Args:
        model: As checkpoints have it. A width multiplier of 1 is not said.
    """
    width = model["network"].get("width_mult") or 1.0
    words = f"{model['detector'].get('name', 'detector')} on {model['name']}"
    return words if width == 1 else f"{words} {width:g}"


def rebuilt_either_with_cost(
    model: dict[str, Any], tensors: dict[str, Tensor], path: Path, image_size: int, batch: int = 2
) -> tuple[nn.Module, Complexity]:
    """The classifier or detector that a checkpoint describes, and its cost for one image.

    See `rebuilt_with_cost` and `rebuilt_detector`, which have the arguments and errors.
    """
    either = rebuilt_detector_with_cost if is_detector(model) else rebuilt_with_cost
    return either(model, tensors, path, image_size, batch)


def evaluation_pixels(data: DataConfig, images: BoxImages, index: int) -> np.ndarray:
    """An image of a split as detectors see it in evaluation: uint8 (S, S, 3).

    Raises:
        InputError: It can't be read.
    """
    transform = BoxTransform(data.eval_size, images.boxes, interpolation=data.eval_interpolation)
    image, _ = images[index]
    view = transform.views(np.array([image.size]), np.array([index]), seed=0, epoch=0)[0]
    return transform.render(image, view)


def rebuilt_detector(
    model: dict[str, Any], tensors: dict[str, Tensor], path: Path, image_size: int, batch: int = 2
) -> nn.Module:
    """The detector that a checkpoint describes, with its weights.

    Args:
        model: `network`, `detector` and `num_classes`, as checkpoints have them.
        tensors: By name.
        path: Where they come from, for the error.
        image_size: Height and width of its images, in pixels.
        batch: Images of one forward pass.

    Raises:
        InputError: The checkpoint asks for something else than a detector, its weights don't fit,
            or it does not take such images.
    """
    return rebuilt_detector_with_cost(model, tensors, path, image_size, batch)[0]


def rebuilt_detector_with_cost(
    model: dict[str, Any], tensors: dict[str, Tensor], path: Path, image_size: int, batch: int = 2
) -> tuple[nn.Module, Complexity]:
    """The detector of `rebuilt_detector`, and its cost for one such image."""
    place, classes = printable(path), model["num_classes"]
    try:
        detector = model["detector"]["network"]
        with allocating_at_most(8 * elements_of(tensors) + SLACK):
            backbone = build(model["network"], STORED_NETWORKS, num_classes=classes)
            if not isinstance(backbone, nn.Module):
                raise InputError(f"expected a network, got {type(backbone).__name__}")
            network = build(
                detector, STORED_NETWORKS, backbone=backbone, num_classes=classes,
                image_size=image_size,
            )  # fmt: skip
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{place}: its detector can't be built: {error}") from error
    if not isinstance(network, nn.Module) or not hasattr(network, "detections"):
        raise InputError(f"{place}: expected the description of a detector, got another one")
    load_into(network, tensors, path)

    def check_outputs(outputs: tuple[Tensor, Tensor]) -> None:
        logits, codes = outputs
        if not logits.isfinite().all() or logits.shape[2] != 1 + classes:
            raise ValueError("its logits are not finite, or not those of its classes")
        if not codes.isfinite().all():
            raise ValueError("its boxes are not finite")

    return network, try_images(network.eval(), check_outputs, image_size, batch, path)
