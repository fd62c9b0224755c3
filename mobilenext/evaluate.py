"""Evaluation: each image exactly once, for any number of processes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenext.config import (
    DataConfig,
    EvaluateConfig,
    evaluation_data,
    from_plain,
    to_yaml,
)
from mobilenext.data import DeviceBatches, ImageData, Loader, eval_loader, eval_transform
from mobilenext.errors import InputError, first_line
from mobilenext.files import printable
from mobilenext.models.complexity import measure_complexity
from mobilenext.runtime.checkpoint import load_into, load_weights
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.environment import provenance
from mobilenext.runtime.monitor import say
from mobilenext.runtime.precision import ieee_float32
from mobilenext.runtime.run_folder import RunFolder
from mobilenext.seeding import generator
from mobilenext.targets import (
    DATA_SOURCES,
    STORED_NETWORKS,
    STORED_SOURCES,
    allocating_at_most,
    build,
    confined,
)

SLACK = 1 << 24
"""Values that building a network may need beside those of its weights, for tables of indices."""

MOST_MADDS, MOST_VALUES = 2 * 10**12, 1 << 31
"""Bounds for an image's multiply-adds and for the values of a batch in one layer (8 GB)."""

OF_EVALUATION = ("eval_size", "eval_crop_ratio", "eval_interpolation", "mean", "std")
"""What data config says of how images are evaluated."""


def evaluate(config: EvaluateConfig, process: Process, folder: RunFolder) -> dict[str, Any]:
    """Rebuild a checkpoint's network and print its top-1, top-5 and loss.

    Args:
        config: The job's config.
        process: This process among those of the job.
        folder: Gets config.yaml and result.json.

    Returns:
        What result.json says: accuracies in per cent, loss in nats.

    Raises:
        InputError: The checkpoint can't be used, or its classes are not those of the data.
    """
    path = Path(config.checkpoint)
    tensors, described = load_weights(path)
    trained_on = from_plain(DataConfig, described["data"])
    data = evaluation_data(described["data"], config.data)
    images = images_of(config, data)
    if list(images.classes) != described["classes"]:
        known = printable(", ".join(described["classes"][:3])[:200])
        raise InputError(
            f"{path} knows {len(described['classes'])} classes ({known}, ...), "
            f"data={printable(data.name)} has {len(images.classes)} "
            f"({', '.join(images.classes[:3])}, ...): expected the same; choose the data that the "
            "network was trained for"
        )
    for note in images.notes:
        say(f"note: {note}", process)
    for key in OF_EVALUATION:
        if getattr(data, key) != getattr(trained_on, key):
            say(
                f"note: data.{key}={getattr(data, key)}, while the run evaluated with "
                f"{getattr(trained_on, key)}",
                process,
            )
    model = described["model"]
    network = rebuilt(model, tensors, path, data.eval_size, data.eval_batch_size).to(process.device)

    loader = validation_loader(data, images, process)
    to_device = DeviceBatches(data.mean, data.std, process.device, config.runtime.channels_last)
    scores = score(network, loader, to_device, process, len(images.val))
    assert scores is not None  # nobody interrupts it
    loader.close()
    if not math.isfinite(scores["loss"]):
        raise InputError(f"{path}: the loss on {data.name} is {scores['loss']}, no finite number")
    for part in process.gather(loader.unreadable):
        for text in part.values():
            say(f"warning: left out: {text}", process)
    result = {
        "model": model["name"],
        "data": data.name,
        **scores,
        "decoder": loader.decoder,
        "checkpoint": str(path),
        **provenance(process),
    }
    process.on_main(lambda: folder.create(to_yaml(config)))
    process.on_main(lambda: folder.write_result(result))
    say(
        f"{path}: top-1 {scores['top1']:.3f} %, top-5 {scores['top5']:.3f} %, "
        f"loss {scores['loss']:.4f}, {scores['count']} images of {data.name}",
        process,
    )
    return result


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
    elements = sum({t.untyped_storage().data_ptr(): t.numel() for t in tensors.values()}.values())
    try:
        with allocating_at_most(4 * elements + SLACK):
            network = build(model["network"], STORED_NETWORKS, num_classes=model["num_classes"])
    except InputError as error:
        raise InputError(f"{printable(path)}: its network can't be built: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{printable(path)}: expected the description of a network, got one of a "
            f"{type(network).__name__}"
        )
    load_into(network, tensors, path)
    _try_images(network.eval(), model["num_classes"], image_size, batch, printable(path))
    return network


def _try_images(network: nn.Module, classes: int, image_size: int, batch: int, place: str) -> None:
    """Raise `InputError` unless a network makes logits of images, at a cost that can be meant."""
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
            logits = network(images)
        check_logits(logits, (2, classes))
        if not logits.isfinite().all():
            raise ValueError("its logits are not finite")
    except Exception as error:  # networks have no type for it
        raise InputError(
            f"{place}: its network does not take images of {image_size} x {image_size} pixels: "
            f"{first_line(error)}"
        ) from error


def check_logits(logits: Any, shape: tuple[int, int]) -> None:
    """Raise `ValueError` unless a network's output is a tensor of this shape (N, num_classes)."""
    if not isinstance(logits, Tensor) or logits.shape != shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"expected logits of shape {shape}, got {got}")


def images_of(config: EvaluateConfig, data: DataConfig) -> ImageData:
    """The images to evaluate on: of the command line's choice, or what the checkpoint names.

    Args:
        config: The job's config.
        data: What `evaluation_data` makes of it.

    Raises:
        InputError: There are no such images, or the checkpoint asks for something else.
    """
    if config.data.get("source") is not None:
        return build(data.source, DATA_SOURCES)
    asked = {"download": True} if data.download else {}
    return build(data.source, STORED_SOURCES, **asked)


def validation_loader(data: DataConfig, images: ImageData, process: Process) -> Loader:
    """This process's share of the validation split, transformed as the config says."""
    transform = eval_transform(
        data.eval_size, crop_ratio=data.eval_crop_ratio, interpolation=data.eval_interpolation
    )
    return eval_loader(
        images.val,
        transform,
        batch_size=data.eval_batch_size,
        rank=process.rank,
        world_size=process.world_size,
        workers=process.cpus if data.workers is None else data.workers,
        pin_memory=process.device.type == "cuda",
        on_bad_image=data.on_bad_image,
        max_bad_share=data.max_bad_share,
        decoder=data.decoder,
        device=process.device,
    )


@torch.no_grad()
def score(
    network: nn.Module,
    loader: Loader,
    to_device: DeviceBatches,
    process: Process,
    expected: int,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Top-1 and top-5 in per cent, mean cross-entropy in nats, and the number of images.

    Every process adds up its own images; one sum over all processes follows. Float64 sums of whole
    numbers below 2**53 are exact, so the accuracies do not depend on the number of processes.

    Args:
        network: The bare network (not its distributed wrapper), the same on all processes; is left
            in evaluation mode. Computes in float32.
        loader: This process's share of the images.
        to_device: From host batches to normalised images.
        process: This process.
        expected: Images of all processes together.
        interrupted: Asked before each batch; where it says so, this process gives up.

    Returns:
        top1, top5, loss, count; unreadable: images that are not part of the count. None if any
        process gave up.

    Raises:
        RuntimeError: The processes saw another number of images than expected.
    """
    network.eval()
    exact = torch.float32 if process.device.type == "mps" else torch.float64
    sums = torch.zeros(4, dtype=exact, device=process.device)
    gave_up = interrupted()
    for pixels, host_labels in to_device.ahead(loader.epoch(0)):
        gave_up = gave_up or interrupted()
        if gave_up:
            break
        images, labels = to_device(pixels, host_labels)
        with ieee_float32():
            logits = network(images)
        losses = F.cross_entropy(logits, labels, reduction="none")
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        seen = torch.tensor(float(len(labels)), device=sums.device)
        sums += torch.stack([best[:, 0].sum(), best.sum(), losses.to(exact).sum(), seen])
    others = torch.tensor([loader.missed, gave_up], dtype=exact, device=process.device)
    told = process.all_reduce_sum(torch.cat([sums, others])).tolist()
    top1, top5, loss, count, unreadable, given_up = told
    if given_up:
        return None
    if int(count + unreadable) != expected or not count:
        raise RuntimeError(
            f"evaluated {int(count)} images and could not read {int(unreadable)}, the split has "
            f"{expected}"
        )
    return {
        "top1": 100 * top1 / count,
        "top5": 100 * top5 / count,
        "loss": loss / count,
        "count": int(count),
        "unreadable": int(unreadable),
    }
