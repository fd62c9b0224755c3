"""From a config to a network, its optimiser and its schedule; checked before the run begins."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.parallel import DistributedDataParallel

from mobilenext.assembly.data import even_micro_batch, images_of_pass
from mobilenext.config import LoopConfig, SearchConfig, TrainConfig, to_plain
from mobilenext.config.targets import build
from mobilenext.data import ImageData, labels_checksum
from mobilenext.errors import InputError, first_line
from mobilenext.metrics.classification import check_logits, logits_of
from mobilenext.models.complexity import Complexity, measure_complexity
from mobilenext.models.fused import fuse_norms, fused_by, has_native_norms
from mobilenext.models.weights import classifier_modules
from mobilenext.optim import weight_decay_groups
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.memory import available_bytes
from mobilenext.runtime.precision import Precision
from mobilenext.seeding import seed_devices
from mobilenext.training.averages import AveragedWeights
from mobilenext.training.graph import GraphedUpdate
from mobilenext.training.norms import synchronize
from mobilenext.training.progress import say
from mobilenext.training.run import Run, RunSettings
from mobilenext.training.step import Update


def new_network(
    config: TrainConfig | SearchConfig, num_classes: int, process: Process
) -> tuple[nn.Module, Complexity]:
    """The network with its random weights on its device, and what it costs."""
    seed_devices("init", config.seed)
    network: nn.Module = build(config.model.network, num_classes=num_classes)
    size = config.data.eval_size
    try:
        complexity = measure_complexity(network, size)
    except Exception as error:  # networks have no type for it
        raise refused(config, "evaluation (data.eval_size)", (1, 3, size, size), error) from error
    network = on_device(network, config, process)
    if config.freeze_backbone:
        classifier = classifier_modules(network)
        if not classifier:
            raise InputError(
                "freeze_backbone=true: expected a network that has a linear layer as its "
                f"classifier, {type(network).__name__} has none"
            )
        network.requires_grad_(False)
        for module in classifier:
            module.requires_grad_(True)
    return network, complexity


def on_device(network: nn.Module, config: LoopConfig, process: Process) -> nn.Module:
    """The network on its process's device, in its memory format, with the norms that are asked.

    Raises:
        InputError: Norms of several processes can't be compiled, or these norms can't be fused.
    """
    ranks = images_of_pass(config, process)[1]
    if ranks > 1 and config.runtime.compile:
        raise InputError(
            f"runtime.compile=true: expected norms of one process, and these are of {ranks} "
            "(batch_norm=sync, or norm_batch above a process's images), at each of which the "
            "compiled graph would break; use runtime.compile=false"
        )
    network = synchronize(network, process, ranks)
    if _fuses(config, ranks, process):
        network = fuse_norms(network)
        if config.runtime.fused and fused_by(network, process.device) == "torch":
            where = "" if process.device.type == "cpu" else " before an nn.ReLU6"
            raise InputError(
                f"runtime.fused=true: expected a network with an nn.BatchNorm2d{where}, such as "
                f"MobileNeXt's, got a {type(network).__name__} without; or runtime.fused=false"
            )
    if config.runtime.channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network.to(process.device)


def _fuses(config: LoopConfig, ranks: int, process: Process) -> bool:
    """Whether norms are trained together with what follows them.

    Raises:
        InputError: They are to be, and can't.
    """
    wanted, on_cpu = config.runtime.fused, process.device.type == "cpu"
    is_float32 = config.runtime.precision in ("auto", "fp32")
    none_trained = config.freeze_backbone and isinstance(config, TrainConfig)
    if wanted is False or config.freeze_norms or none_trained:
        return False
    if wanted is None:
        runtime = config.runtime
        usual = ranks == 1 and is_float32 and runtime.channels_last and not runtime.compile
        searches = isinstance(config, SearchConfig)  # may take the gradient of a gradient
        return on_cpu and usual and not searches and has_native_norms()
    compilers = [os.environ.get("CC"), *map(shutil.which, ("clang", "gcc"))]
    on_cuda = process.device.type == "cuda"
    reasons = {
        f"the CPU or a CUDA device, got {process.device.type}": not on_cpu and not on_cuda,
        "the native norms, which pip builds where gcc is (not on macOS and Windows), found none":
            on_cpu and not has_native_norms(),
        f"runtime.precision=fp32 on the CPU, got {config.runtime.precision}":
            on_cpu and not is_float32,
        f"norms of one process, and these are of {ranks} (batch_norm=sync, or norm_batch above a "
        "process's images)": ranks > 1,
        "the package triton, which torch's CUDA builds for Linux bring along, found none":
            on_cuda and importlib.util.find_spec("triton") is None,
        "a C compiler for Triton (CC, clang or gcc), found none": on_cuda and not any(compilers),
    }  # fmt: skip
    needed = _missing(reasons)
    if needed is not None:
        raise InputError(f"runtime.fused=true: expected {needed}; or runtime.fused=false")
    return True


def _missing(reasons: dict[str, bool]) -> str | None:
    """The first of some requirements that is missing; None: none is."""
    return next((expected for expected, missing in reasons.items() if missing), None)


def averages(network: nn.Module, config: LoopConfig) -> AveragedWeights | None:
    """Averaged weights of a network, if the config asks for them."""
    if config.ema_decay is None:
        return None
    return AveragedWeights(network, config.ema_decay, config.ema_warmup)


def new_optimizer(network: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """The optimiser of a network's trainable parameters, grouped by decay and layer."""
    decay = config.optimizer.get("weight_decay", 0.0)
    layer_decay = config.layer_decay if isinstance(config, TrainConfig) else None
    groups = weight_decay_groups(network, decay, config.decay_norm_and_bias, layer_decay)
    return build(config.optimizer, params=groups)


def new_schedule(config: LoopConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate as a function of the step, asked for every epoch's rate beforehand.

    Raises:
        InputError: The schedule can't be computed for this run, or falls below 0.
    """
    rate = partial(
        build(config.schedule), base_lr=config.optimizer["lr"], steps_per_epoch=steps_per_epoch
    )
    try:
        rates = [rate(epoch * steps_per_epoch) for epoch in range(config.epochs)]
    except (TypeError, ArithmeticError) as error:
        raise InputError(f"schedule {rate.keywords}: {error}") from error
    if min(rates) < 0:
        raise InputError(f"schedule {rate.keywords}: the rate falls to {min(rates):g}")
    return rate


def new_update(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    config: LoopConfig,
    process: Process,
) -> Update | GraphedUpdate:
    """The optimiser step of a run.

    Gives all processes the tensors of rank 0, so it comes before a checkpoint is read.

    Raises:
        InputError: A step can't be a CUDA graph.
    """
    graph = _as_graph(network, config, process)
    called: Any = torch.compile(network) if config.runtime.compile else network
    if graph:  # the wrapper for several processes has hooks that no graph keeps
        process.broadcast_weights(network)
    elif process.world_size > 1:
        called = _distributed(called, process)
    update = Update(
        called,
        optimizer,
        precision,
        images_of_pass(config, process)[0],
        config.clip_grad_norm,
        skips_nonfinite=config.nonfinite == "skip",
        compiled=config.runtime.compile,
        reduce=process.average if graph else None,
    )
    return GraphedUpdate(update) if graph else update


def _as_graph(network: nn.Module, config: LoopConfig, process: Process) -> bool:
    """Whether the steps of this run are a CUDA graph.

    Raises:
        InputError: They are to be, and can't.
    """
    if not config.runtime.graph:
        return False
    reasons = {
        f"a CUDA device, got {process.device.type}": process.device.type != "cuda",
        "optimizer.fused=true (with optimizer.foreach=null), so that the rate lies on the device":
            not config.optimizer.get("fused"),
        "optimizer.capturable=true, as Adam needs it":
            "Adam" in str(config.optimizer["_target_"]) and not config.optimizer.get("capturable"),
        "a precision other than fp16, whose scaler waits for the device":
            config.runtime.precision == "fp16",
        "nonfinite=stop: leaving a step out waits for the device": config.nonfinite == "skip",
        "norms of one process (norm_batch, batch_norm)": images_of_pass(config, process)[1] > 1,
        "a network whose steps are alike: this one changes with the epoch":
            hasattr(network, "set_progress"),
    }  # fmt: skip
    needed = _missing(reasons)
    if needed is None:
        return True
    if config.runtime.graph != "auto":
        raise InputError(f"runtime.graph=true: expected {needed}; or runtime.graph=false")
    say(f"note: runtime.graph=auto: steps are no CUDA graph, which needs {needed}", process)
    return False


def described(config: TrainConfig | SearchConfig, images: ImageData) -> dict[str, Any]:
    """Description of a network and its training data, for checkpoints."""
    return {
        "model": {**to_plain(config.model), "num_classes": len(images.classes)},
        "classes": list(images.classes),
        "data": to_plain(config.data),
        "train_images": len(images.train),
        "train_labels_crc32": labels_checksum(images.train),
    }


def result_entries(
    config: LoopConfig, run: Run, cost: Complexity, precision: Precision
) -> dict[str, Any]:
    """What every result.json says of network, data and settings."""
    begun_with = run.state.described.get("init_from")
    return {
        "model": config.model.name,
        "width": config.width,
        "identity": config.identity,
        "data": config.data.name,
        "num_params": cost.params,
        "madds": cost.madds,
        "image_size": config.data.eval_size,
        "epochs": config.epochs,
        "seed": config.seed,
        "precision": precision.name,
        "decoder": run.loaders.train.decoder,
        "norms": fused_by(run.state.network, run.process.device),
        **({"init_from": begun_with} if config.init_from is not None else {}),
        "config": to_plain(config),
    }


def computed_by(run: Run) -> str:
    """A line on what decodes a run's images and trains its norms: both decide last bits."""
    norms = fused_by(run.state.network, run.process.device)
    more = "" if norms == "torch" else f"; norms trained by: {norms}"
    return f"images decoded by: {run.loaders.train.decoder}{more}"


def hyperparameters(config: LoopConfig, precision: Precision) -> dict[str, float | str]:
    """What runs of every loop are compared by in TensorBoard; the same keys for all of them."""
    optimizer = config.optimizer
    return {
        "model": config.model.name,
        "width": config.width,
        "identity": config.identity,
        "data": config.data.name,
        "image_size": config.data.image_size,
        "batch": config.data.global_batch_size,
        "epochs": config.epochs,
        "optimizer": optimizer["_target_"].rpartition(".")[2],
        "lr": optimizer["lr"],
        "weight_decay": optimizer.get("weight_decay", 0.0),
        "schedule": config.schedule["_target_"].rpartition(".")[2],
        "ema_decay": config.ema_decay or 0.0,
        "precision": precision.name,
        "seed": config.seed,
    }


def run_settings(config: LoopConfig) -> RunSettings:
    """Settings of a run that do not depend on what it learns."""
    return RunSettings(
        config.epochs,
        config.runtime.log_every,
        config.runtime.timeout_minutes,
        None if config.init_from is None else Path(config.init_from),
        to_plain(config.checkpoint),
        config.eval_every,
    )


def unites_by(config: LoopConfig) -> str:
    """Way in which processes get the same running statistics: reduce, broadcast or sync."""
    # Frozen statistics are equal on all processes; averaging them could still change the last bit.
    frozen = config.freeze_backbone or config.freeze_norms
    return "broadcast" if frozen else config.batch_norm


def try_step(
    config: TrainConfig, network: nn.Module, classes: int, precision: Precision, process: Process
) -> int:
    """Try a forward and a backward pass, and take back what they did to the network.

    What a network says of images that it does not take should come before anything is written. Two
    images stand for a larger batch: no network needs more of them than its norms do.

    Returns:
        Bytes that the forward pass keeps for the backward pass, for each image.

    Raises:
        InputError: The network does not take such a batch, or does not make logits of it.
    """

    def attempt(images: Tensor) -> Tensor:
        with precision.autocast():
            outputs = logits_of(network(images))
        for logits in outputs:
            check_logits(logits, (len(images), classes))
        return torch.stack([logits.float().sum() for logits in outputs]).sum()

    train_mode(network, config)
    return tried(config, network, attempt, process)


def tried(
    config: LoopConfig, network: nn.Module, attempt: Callable[[Tensor], Tensor], process: Process
) -> int:
    """Try a backward pass too, and take back what both did to a network in training mode.

    Args:
        config: The run's config.
        network: The bare network.
        attempt: Maps images (N, 3, H, W), one or two, to a loss.
        process: This process.

    Returns:
        Bytes that the forward pass keeps for the backward pass, for each image.

    Raises:
        InputError: The network does not take such a batch.
    """
    count = min(images_of_pass(config, process)[0], 2)
    size = config.data.image_size
    before = [buffer.clone() for buffer in network.buffers()]
    shape = (count, 3, size, size)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = attempt(torch.zeros(shape, device=process.device))
        loss.backward()
    except Exception as error:  # networks have no type for it
        raise refused(config, "training (data.image_size)", shape, error) from error
    network.zero_grad(set_to_none=True)
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)
    return sum(kept.values()) // count


MEMORY_FACTOR = 1.25
"""Memory of a training step over what its forward pass keeps: gradients of activations, too."""
TIGHT = 0.8
"""Share of the memory that is left, above which a step is worth a note."""


def memory_of_step(config: LoopConfig, kept: int, process: Process) -> tuple[int, int]:
    """Images of a forward pass of one process, and bytes that it and its backward pass need, about.

    Args:
        config: The run's config.
        kept: Bytes that the forward pass keeps for each image, see `tried`.
        process: This process.
    """
    images, _ = images_of_pass(config, process)
    return images, int(MEMORY_FACTOR * kept * images)


def memory_note(config: LoopConfig, kept: int, process: Process) -> list[str]:
    """A note on a training step that needs nearly all memory, if it does.

    Args:
        config: The run's config.
        kept: What `try_step` returned.
        process: This process.

    Raises:
        InputError: On a CPU, where the system would end the process without a word, the step needs
            more memory than there is.
    """
    images, needed = memory_of_step(config, kept, process)
    available = available_bytes(process.device)
    if available is None or needed <= TIGHT * available:
        return []
    share = config.data.global_batch_size // process.world_size
    smaller = even_micro_batch(share, max(1, int(TIGHT * available / (MEMORY_FACTOR * kept))))
    text = (
        f"a step of {images} images at {config.data.image_size} px needs about {needed / 1e9:.1f} "
        f"GB on each process, and {available / 1e9:.1f} GB are left: set "
        f"{config.key_of_pass}={smaller} (gradients are accumulated; batch norms see so many "
        "images at a time), or lower data.global_batch_size or data.image_size"
    )
    if process.device.type == "cpu" and needed > available:
        raise InputError(text)
    return [text]


def refused(config: LoopConfig, when: str, shape: tuple[int, ...], error: Exception) -> InputError:
    """The error about a network that does not take some images."""
    return InputError(
        f"model={config.model.name} does not take the images of {when}, a batch of shape {shape} "
        f"for one process: {first_line(error)}. Change the images' size, data.global_batch_size or "
        f"{config.key_of_pass}, strides, or the model"
    )


def train_mode(network: nn.Module, config: LoopConfig, progress: float = 0.0) -> None:
    """Put a network into training mode, all but frozen layers.

    The running statistics of these would follow the images.

    Args:
        network: The bare network; one with `set_progress` is told how far the training is.
        config: The run's config, which says what is frozen.
        progress: Share of the run's epochs that are done.
    """
    set_progress = getattr(network, "set_progress", None)
    if set_progress is not None:
        set_progress(progress)
    network.train(not config.freeze_backbone)
    for module in classifier_modules(network):
        module.train()
    if config.freeze_norms:
        keep_statistics(network)


def keep_statistics(network: nn.Module) -> None:
    """Have batch norms compute with their running statistics in training, too, and keep them."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def _distributed(network: nn.Module, process: Process) -> nn.Module:
    """A network that takes the means of all processes' gradients; parameters are the same ones.

    Gives all processes the tensors of rank 0.
    """
    return DistributedDataParallel(
        network,
        device_ids=[process.device.index] if process.device.type == "cuda" else None,
        forward_sync_buffers=False,  # united before each evaluation instead of at every step
        gradient_as_bucket_view=True,
    )
