"""From a file of a trained network to the network, and the data to evaluate it on.

The file may come from anywhere: what it says of its network is built from a narrow table, within
bounds, and what it says of its data opens nothing but data.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilenext.assembly.data import evaluation_transform
from mobilenext.config import DataConfig, from_plain, to_plain
from mobilenext.config.targets import (
    DATA_SOURCES,
    STORED_NETWORKS,
    STORED_SOURCES,
    allocating_at_most,
    build,
    confined,
)
from mobilenext.data import BoxData, ImageData, digits
from mobilenext.errors import InputError, first_line
from mobilenext.files import printable
from mobilenext.metrics.classification import check_logits
from mobilenext.models.complexity import Complexity, measure_complexity
from mobilenext.program import as_typed
from mobilenext.runtime.distributed import Process
from mobilenext.seeding import generator
from mobilenext.training.progress import say
from mobilenext.training.weights_files import load_into

SLACK = 1 << 24
"""Values that building a network may need beside those of its weights, for tables of indices."""

MOST_MADDS, MOST_VALUES = 2 * 10**12, 1 << 31
"""Bounds for an image's multiply-adds and for the values of a batch in one layer (8 GB)."""

EVALUATION_FIELDS = ("eval_size", "eval_crop_ratio", "eval_interpolation", "mean", "std")
"""Fields of a data config that decide how images are evaluated."""


def rebuilt(
    model: dict[str, Any], tensors: dict[str, Tensor], path: Path, image_size: int, batch: int = 2
) -> nn.Module:
    """The network that a checkpoint describes, with its weights.

    Args:
        model: `network` and `num_classes`, as checkpoints have them.
        tensors: By name.
        path: Where they come from, for the error.
        image_size: Height and width of the images that it is for, in pixels.
        batch: Images of one forward pass.

    Raises:
        InputError: The checkpoint asks for something else than a network, its weights don't fit, or
            the network does not make logits of such images.
    """
    return rebuilt_with_cost(model, tensors, path, image_size, batch)[0]


def rebuilt_with_cost(
    model: dict[str, Any], tensors: dict[str, Tensor], path: Path, image_size: int, batch: int = 2
) -> tuple[nn.Module, Complexity]:
    """The network of `rebuilt`, and its cost for one such image."""
    if is_detector(model):
        raise InputError(
            f"{printable(path)}: expected a classifier, got a detector; what takes detectors is "
            "evaluate, predict, export, quantize and latency"
        )
    try:
        with allocating_at_most(4 * elements_of(tensors) + SLACK):
            network = build(model["network"], STORED_NETWORKS, num_classes=model["num_classes"])
    except InputError as error:
        raise InputError(f"{printable(path)}: its network can't be built: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{printable(path)}: expected the description of a network, got one of a "
            f"{type(network).__name__}"
        )
    load_into(network, tensors, path)

    def check_outputs(logits: Any) -> None:
        check_logits(logits, (2, model["num_classes"]))
        if not logits.isfinite().all():
            raise ValueError("its logits are not finite")

    return network, try_images(network.eval(), check_outputs, image_size, batch, path)


def is_detector(model: dict[str, Any]) -> bool:
    """Whether what a file says of its network is of a detector."""
    return "detector" in model


def elements_of(tensors: dict[str, Tensor]) -> int:
    """Values of tensors, those that share memory counted once."""
    return sum({t.untyped_storage().data_ptr(): t.numel() for t in tensors.values()}.values())


def try_images(
    network: nn.Module,
    check_outputs: Callable[[Any], object],
    image_size: int,
    batch: int,
    path: Path,
) -> Complexity:
    """The cost of a network out of a file, which takes images within bounds.

    Args:
        network: In evaluation mode.
        check_outputs: Raises an error about what it makes of two images.
        image_size: Height and width of the images, in pixels.
        batch: Images of one forward pass.
        path: The file, for the error.

    Raises:
        InputError: It does not take them, costs more than the bounds, or gives something else.
    """
    images = torch.randn(2, 3, image_size, image_size, generator=generator("trial", 0))
    try:
        cost = measure_complexity(network, image_size)
        values = cost.largest * batch
        if cost.madds > MOST_MADDS or values > MOST_VALUES:
            raise ValueError(
                f"it takes {cost.madds:,} MAdds for an image, and {values:,} values in one layer "
                f"for a batch of {batch}; expected at most {MOST_MADDS:,} and {MOST_VALUES:,} "
                "(data.eval_batch_size is the size of the batch)"
            )
        with torch.no_grad(), confined():
            outputs = network(images)
        check_outputs(outputs)
    except Exception as error:  # networks have no type for it
        raise InputError(
            f"{printable(path)}: its network does not take images of {image_size} x {image_size} "
            f"pixels: {first_line(error)}"
        ) from error
    return cost


def complete_data(stored: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its data, checked, with what is not there filled in.

    Raises:
        InputError: A name or a type does not fit.
    """
    return to_plain(from_plain(DataConfig, stored))


def evaluation_data(stored: dict[str, Any], wanted: dict[str, Any]) -> DataConfig:
    """The data to evaluate on: a chosen group, or the run's own with some entries replaced.

    Args:
        stored: The run's `DataConfig` as plain values.
        wanted: Those of the command line, entries of a `DataConfig`.

    Raises:
        InputError: A name or a type does not fit.
    """
    given = {key: value for key, value in wanted.items() if value is not None}
    if "source" in given:
        source = {key: value for key, value in given["source"].items() if value is not None}
        return from_plain(DataConfig, {**given, "source": source})
    # Whoever wrote the file does not decide that something is fetched.
    values = {**stored, "download": False, **given}
    source = {key: value for key, value in stored["source"].items() if key != "download"}
    if "root" in given and "root" not in source:
        raise InputError(f"data.root: the run's data, {stored['name']}, lies in no folder")
    for key in ("root", "val_folder", "val_share", "reencoded"):
        if key in given:
            source = {**source, key: given[key]}
    for key in ("on_bad_image", "on_bad_box"):  # of sources with boxes
        if key in given and key in source:
            source = {**source, key: given[key]}
    values["source"] = source
    return from_plain(DataConfig, values)


def images_of(data: DataConfig, chosen: bool) -> ImageData:
    """The images to evaluate on: of the command line's choice, or what the checkpoint names.

    Args:
        data: What `evaluation_data` makes of both.
        chosen: Whether the command line names the source.

    Raises:
        InputError: There are no such images, or the checkpoint asks for something else.
    """
    if chosen:
        return build(data.source, DATA_SOURCES)
    asked = {"download": True} if data.download else {}
    return build(data.source, STORED_SOURCES, **asked)


def check_classes(
    described: dict[str, Any], path: Path, images: ImageData | BoxData, data_name: str
) -> None:
    """Raise `InputError` unless a trained network knows the classes of some data.

    Args:
        described: What the file says of its network.
        path: The file.
        images: The data.
        data_name: Its name on the command line.
    """
    if list(images.classes) != described["classes"]:
        known = printable(", ".join(described["classes"][:3])[:200])
        raise InputError(
            f"{path} knows {len(described['classes'])} classes ({known}, ...), "
            f"data={printable(data_name)} has {len(images.classes)} "
            f"({', '.join(images.classes[:3])}, ...): expected the same; choose the data that the "
            "network was trained for"
        )


def note_differences(
    described: dict[str, Any], path: Path, data: DataConfig, process: Process
) -> None:
    """Print where images are evaluated in another way than the run of a checkpoint did.

    Raises:
        InputError: What the file says of its data does not fit.
    """
    trained_on = from_plain(DataConfig, described["data"])
    for key in EVALUATION_FIELDS:
        here, there = getattr(data, key), getattr(trained_on, key)
        if here != there:
            say(
                f"note: data.{key}={as_typed(here)}, while the run of {path} evaluated with "
                f"{as_typed(there)}",
                process,
            )


def pictures_of(data: DataConfig, count: int) -> tuple[np.ndarray, str]:
    """Pixels of real pictures to try a network with: of its data if they are at hand.

    Args:
        data: What the network was trained for, see `evaluation_data`.
        count: Number of pictures, spread over the validation split. Where there are fewer, they
            come more than once.

    Returns:
        uint8 (count, eval_size, eval_size, 3), transformed as in evaluation, and what they are, in
        words.

    Raises:
        InputError: None of them can be read.
    """
    transform = evaluation_transform(data)
    what = f"validation images of {printable(data.name)}"
    try:
        images = images_of(data, chosen=False)
    except InputError:
        what = "scanned digits, since the data that it was trained on are not here"
        images = digits()
    places = np.linspace(0, len(images.val) - 1, count).astype(int).tolist()
    pixels = []
    for place in places:
        try:
            image, _ = images.val[place]
        except Exception:  # whatever damaged files raise; evaluation names them
            continue
        pixels.append(transform(image).numpy())
    if not pixels:
        raise InputError(f"data={printable(data.name)}: none of {count} {what} can be read")
    return np.stack([pixels[number % len(pixels)] for number in range(count)]), what
