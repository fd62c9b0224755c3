"""Evaluation: each image exactly once, for any number of processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenext.config import (
    DataConfig,
    EvaluateConfig,
    build,
    evaluation_data,
    from_plain,
    to_yaml,
)
from mobilenext.data import DeviceBatches, ImageData, Loader, eval_loader, eval_transform
from mobilenext.errors import InputError
from mobilenext.runtime.checkpoint import load_into, load_weights
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.environment import provenance
from mobilenext.runtime.monitor import say
from mobilenext.runtime.precision import ieee_float32
from mobilenext.runtime.run_folder import RunFolder

RESTORABLE_TARGETS = (
    "mobilenext.models.",
    "timm.create_model",
    "timm.layers.",
    "torch.nn.",
    "torchvision.models.",
    "torchvision.ops.",
)
"""What a checkpoint may ask for: narrower than what the command line may."""

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
    images: ImageData = build(data.source, ("mobilenext.data.",))
    if list(images.classes) != described["classes"]:
        raise InputError(
            f"{path} knows {len(described['classes'])} classes "
            f"({', '.join(described['classes'][:3])}, ...), data={data.name} has "
            f"{len(images.classes)} ({', '.join(images.classes[:3])}, ...): expected the same; "
            "choose the data that the network was trained for"
        )
    for key in OF_EVALUATION:
        if getattr(data, key) != getattr(trained_on, key):
            say(
                f"note: data.{key}={getattr(data, key)}, while the run evaluated with "
                f"{getattr(trained_on, key)}",
                process,
            )
    model = described["model"]
    network = rebuilt(model, tensors, path).to(process.device)

    loader = validation_loader(data, images, process)
    to_device = DeviceBatches(data.mean, data.std, process.device, config.runtime.channels_last)
    scores = score(network, loader, to_device, process, len(images.val))
    assert scores is not None  # nobody interrupts it
    loader.close()
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


def rebuilt(model: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """The network that a checkpoint describes, with its weights.

    Args:
        model: `network` and `num_classes`, as checkpoints have them.
        tensors: By name.
        path: Where they come from, for the error.

    Raises:
        InputError: The checkpoint asks for something else than a network, or its weights don't fit.
    """
    network: nn.Module = build(
        model["network"], RESTORABLE_TARGETS, num_classes=model["num_classes"]
    )
    load_into(network, tensors, path)
    return network


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
