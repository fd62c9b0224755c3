"""From a search's config to its supernet, the steps of both, and what it will cost."""

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenext.assembly.data import images_of_pass
from mobilenext.assembly.network import memory_of_step, new_network, train_mode, tried
from mobilenext.config import SearchConfig
from mobilenext.config.targets import build
from mobilenext.errors import InputError
from mobilenext.metrics.classification import check_logits
from mobilenext.models.complexity import Complexity
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.memory import available_bytes
from mobilenext.runtime.precision import Precision
from mobilenext.training.architecture import ArchitectureUpdate, Batch, Searched
from mobilenext.training.progress import format_seconds

LARGEST_CELL = 2
"""Memory of the largest cell, as a multiple of the cells' mean: 1.8 in DARTS' supernet."""
TWICE_TIMED = 5.0
"""Seconds of a first step, below which a second one is timed: the first has things to set up."""


def new_supernet(
    config: SearchConfig, num_classes: int, process: Process
) -> tuple[Any, Complexity]:
    """The supernet (a module that is `Searched`) with its random weights, and what it costs.

    Raises:
        InputError: The model is another network.
    """
    network, cost = new_network(config, num_classes, process)
    if not isinstance(network, Searched):
        raise InputError(
            "model.network: expected mobilenext.models.Supernet, got a "
            f"{type(network).__name__}; a search's size is channels, cells and nodes"
        )
    return network, cost


def new_architecture_update(
    network: Any,
    weights: torch.optim.Optimizer,
    precision: Precision,
    config: SearchConfig,
    process: Process,
) -> ArchitectureUpdate:
    """The step of the alphas; compiled if the run is."""
    optimizer = build(config.architecture_optimizer, params=network.architecture)
    called: Any = torch.compile(network) if config.runtime.compile else network
    return ArchitectureUpdate(
        called,
        network.architecture,
        optimizer,
        weights,
        precision,
        process,
        config.order,
        images_of_pass(config, process)[0],
        skips_nonfinite=config.nonfinite == "skip",
    )


def try_supernet(
    config: SearchConfig, network: Any, classes: int, precision: Precision, process: Process
) -> int:
    """Try the passes of a step with two images, and take back what they did to the network.

    Returns:
        Bytes that they keep for the backward pass at their most, for each image, about.

    Raises:
        InputError: The network does not take such images.
    """

    def attempt(images: Tensor) -> Tensor:
        leaves = [tensor.detach().requires_grad_() for tensor in network.architecture]
        with precision.autocast():
            logits = network(images, *leaves)
        check_logits(logits, (len(images), classes))
        return logits.float().square().sum()

    def attempt_twice(images: Tensor) -> Tensor:
        parameters = list(network.parameters())
        inner = torch.autograd.grad(attempt(images), parameters, create_graph=True)
        return torch.stack([gradient.sum() for gradient in inner]).sum()

    train_mode(network, config)
    kept = tried(config, network, attempt, process)
    if config.order == "second":  # both graphs are there at the same time
        return kept + tried(config, network, attempt_twice, process)
    if config.checkpointing:  # one cell's activations come on top; the first have the largest maps
        network.checkpointing = False
        whole = tried(config, network, attempt, process)
        network.checkpointing = True
        return kept + LARGEST_CELL * whole // config.cells
    return kept


def memory_notes(config: SearchConfig, kept: int, process: Process) -> list[str]:
    """How much memory a step needs, and what to change if there is not so much.

    Args:
        config: The run's config.
        kept: What `try_supernet` returned.
        process: This process.

    Raises:
        InputError: There is not so much memory.
    """
    images, needed = memory_of_step(config, kept, process)
    available = available_bytes(process.device)
    text = f"a step needs about {needed / 1e9:.1f} GB on each process"
    if available is not None and needed > available:
        larger = [] if config.checkpointing or config.order != "first" else ["checkpointing=true"]
        if config.order == "second":
            larger.append("order=first")
        if config.partial_channels == 1:
            larger.append("partial_channels=4 edge_weights=true")
        raise InputError(
            f"{text}, and {available / 1e9:.1f} GB are left: set {', '.join([*larger, ''])}"
            f"a smaller runtime.micro_batch (now {images}), data.global_batch_size or channels"
        )
    return [text]


def time_note(
    config: SearchConfig,
    network: nn.Module,
    update: ArchitectureUpdate,
    steps_per_epoch: int,
    process: Process,
) -> str:
    """How long the whole search takes, from a step on black images that changes nothing."""
    share, size = config.data.global_batch_size // process.world_size, config.data.image_size
    images = torch.zeros((share, 3, size, size), device=process.device)
    if config.runtime.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    batch = images, torch.zeros(share, dtype=torch.long, device=process.device)
    before = [buffer.clone() for buffer in network.buffers()]
    alphas, weights = _timed(config, update, batch, process.device)
    # All processes time again, or none: they wait for each other in it.
    if process.on_main(lambda: config.runtime.compile or alphas + weights < TWICE_TIMED):
        alphas, weights = _timed(config, update, batch, process.device)
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)
    learned = config.epochs - config.warmup_epochs
    total = steps_per_epoch * (config.epochs * weights + learned * alphas)
    return (
        f"about {format_seconds(total)} for all {config.epochs * steps_per_epoch:,} steps of "
        f"{alphas + weights:.2f} s, evaluation not counted"
    )


def _timed(
    config: SearchConfig, update: ArchitectureUpdate, batch: Batch, device: torch.device
) -> tuple[float, float]:
    """Seconds of the gradient of the alphas, and of that of the weights."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    update.gradient(batch, batch, config.optimizer["lr"])
    middle = now()
    size = update.micro_batch or len(batch[0])
    for images, labels in zip(batch[0].split(size), batch[1].split(size), strict=True):
        with update.precision.autocast():
            loss = F.cross_entropy(update.network(images), labels)
        torch.autograd.grad(loss, list(update.network.parameters()))
    return middle - start, now() - middle


def pairs_apart(
    images: Tensor, labels: Tensor, channels_last: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The images of a batch of pairs: those of the weights, and those of the alphas."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    first, second = (
        (images[place::2].contiguous(memory_format=memory_format), labels[place::2])
        for place in (0, 1)
    )
    return first, second
