"""Training, from top to bottom.

`train` is the order of things; `_update` is one optimiser step. What they call is in the rooms:
`data` makes batches, `optim` sorts parameters and says how fast to learn, `runtime` knows the other
processes, the number formats and the run folder. The network, the optimiser, the schedule and the
data source arrive by `_target_` from the config.
"""

import math
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mobilenext.config import TrainConfig, build, to_plain, to_yaml
from mobilenext.data import (
    DeviceBatches,
    ImageData,
    Loader,
    Mixing,
    train_loader,
    train_transform,
)
from mobilenext.errors import DivergedError, InputError
from mobilenext.evaluate import score, validation_loader
from mobilenext.models.complexity import Complexity, measure_complexity
from mobilenext.optim import weight_decay_groups
from mobilenext.runtime.checkpoint import load_checkpoint, save_checkpoint, save_weights
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.environment import provenance
from mobilenext.runtime.files import link_atomically
from mobilenext.runtime.metrics import TrainMeter
from mobilenext.runtime.monitor import Monitor, format_seconds, say
from mobilenext.runtime.precision import Precision
from mobilenext.runtime.run_folder import RunFolder
from mobilenext.runtime.state import TrainState
from mobilenext.seeding import seed_devices


def train(  # noqa: C901 - one linear story
    config: TrainConfig, process: Process, folder: RunFolder
) -> dict[str, Any]:
    """Train a network, evaluate it after every epoch, and leave a run folder behind.

    A finished folder is not touched: its result comes back at once. A folder with a checkpoint is
    taken up after its last whole epoch.

    Args:
        config: The job's config.
        process: This process among those of the job; rank 0 writes.
        folder: The run's folder.

    Returns:
        What result.json says. Accuracies are in per cent, of the weights after the last epoch: the
        averaged ones if `ema_decay` is set.

    Raises:
        InputError: Something in the config, the data or the folder is not what it has to be.
        DivergedError: The loss stopped being finite.
    """
    result = process.on_main(folder.result)
    if result is not None:
        say(_finished_line(result, folder), process)
        return result
    session_start, source = time.monotonic(), provenance(process)
    device, data = process.device, config.data

    # ---- data ----
    images: ImageData = build(data.source)
    batches = _training_loader(config, images, process)
    val_batches = validation_loader(data, images, process)
    to_device = DeviceBatches(data.mean, data.std, device, config.runtime.channels_last)
    mixing = Mixing(config.augment.mixup, config.augment.cutmix, len(images.classes), config.seed)

    # ---- network, optimiser, schedule ----
    seed_devices("init", config.seed)
    network: nn.Module = build(config.model.network, num_classes=len(images.classes))
    complexity = measure_complexity(network, data.eval_size)
    if config.runtime.channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    network.to(device)
    ema = None
    if config.ema_decay is not None:
        ema = ModelEmaV3(network, config.ema_decay, use_warmup=config.ema_warmup)
    decay = config.optimizer.get("weight_decay", 0.0)
    groups = weight_decay_groups(network, decay, config.decay_norm_and_bias)
    optimizer = build(config.optimizer, params=groups)
    learning_rate = partial(
        build(config.schedule), base_lr=config.optimizer["lr"], steps_per_epoch=len(batches)
    )
    _check_schedule(learning_rate, config.epochs, len(batches))
    precision = Precision(config.runtime.precision, device)

    # ---- the state, from the run's last checkpoint if there is one ----
    model = {**to_plain(config.model), "num_classes": len(images.classes)}
    described = {"model": model, "classes": list(images.classes), "data": to_plain(data)}
    state = TrainState(described, network, ema, optimizer, precision.scaler)
    checkpoint = process.on_main(lambda: load_checkpoint(folder.last, missing_ok=True))
    if checkpoint is not None:
        state.restore(checkpoint, folder.last)
        process.on_main(lambda: _mark_best(state, folder))  # a kill may have come before it
    config_yaml = to_yaml(config)
    process.on_main(lambda: folder.create(config_yaml))
    wall_before = state.clock.wall_seconds
    say(_start_line(config, state, complexity, images, process, precision), process)
    say(f"run folder: {folder.path}", process)
    monitor = Monitor(folder, process, config.epochs, len(batches), state.step)
    meter = TrainMeter(process, state.clock)
    wrapped = _wrap(network, config.runtime.compile, process)

    # ---- epochs ----
    for epoch in range(state.epoch, config.epochs):
        network.train()
        for batch, (pixels, host_labels) in enumerate(
            meter.timed(monitor.steps(batches.epoch(epoch), epoch))
        ):
            monitor.describe_once(config_yaml, pixels)
            inputs, labels = to_device(pixels, host_labels)
            inputs, targets = mixing(inputs, labels, epoch, batch)
            lr = learning_rate(state.step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            seed_devices("step", config.seed, state.step, process.rank)
            loss, correct = _update(config, wrapped, optimizer, precision, inputs, targets, labels)
            state.step += 1
            if ema is not None:
                ema.update(network, state.step)

            meter.add(loss, correct, len(labels))
            if (batch + 1) % config.runtime.log_every == 0 or batch + 1 == len(batches):
                interval = meter.read(state.step)
                if interval.bad_step is not None:
                    monitor.close()
                    raise _diverged(interval.bad_step, epoch, learning_rate, folder)
                monitor.interval(epoch, state.step, lr, interval)

        state.epoch = epoch + 1
        state.broadcast_buffers(process)
        scores = {
            name: score(weights, val_batches, to_device, process, len(images.val))
            for name, weights in state.evaluated().items()
        }
        if not all(math.isfinite(values["loss"]) for values in scores.values()):
            monitor.close()
            raise _diverged(state.step, epoch, learning_rate, folder)
        state.record(scores)
        state.clock.wall_seconds = wall_before + time.monotonic() - session_start
        monitor.epoch(epoch, state.step, state.scores)
        process.on_main(lambda: _save(state, folder))
    monitor.close()

    # ---- result ----
    scores = state.scores[state.headline]
    result = {
        "model": config.model.name,
        "width": config.width,
        "identity": config.identity,
        "data": data.name,
        **scores,
        "best_top1": state.best["top1"],
        "best_epoch": state.best["epoch"],
        "scores": state.scores,
        "num_params": complexity.params,
        "madds": complexity.madds,
        "image_size": data.eval_size,
        "epochs": config.epochs,
        "steps": state.step,
        "images_seen": state.clock.images,
        "images_per_second": state.clock.images_per_second,
        "data_wait_share": state.clock.data_wait_share,
        "wall_seconds": state.clock.wall_seconds,
        "seed": config.seed,
        "precision": precision.name,
        **source,
        "config": to_plain(config),
    }
    process.on_main(lambda: _finish(state, folder, result))
    say(
        f"finished: top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} % of "
        f"{scores['count']:,} held-out {data.name} images "
        f"(best epoch: {state.best['epoch']:.0f}, {state.best['top1']:.2f} %) "
        f"in {format_seconds(state.clock.wall_seconds)}\nrun folder: {folder.path}",
        process,
    )
    return result


def _update(
    config: TrainConfig,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    inputs: Tensor,
    targets: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor]:
    """One optimiser step from this process's share of a batch, micro-batch by micro-batch.

    Returns:
        Mean loss over the share and number of correct predictions, on the device: nothing here
        waits for it, except fp16's gradient scaler.
    """
    loss = torch.zeros((), device=inputs.device)
    correct = torch.zeros((), dtype=torch.long, device=inputs.device)
    size = config.runtime.micro_batch or len(inputs)
    parts = list(zip(inputs.split(size), targets.split(size), labels.split(size), strict=True))
    for number, (x, target, label) in enumerate(parts, start=1):
        # Processes add up their gradients once, with the last micro-batch.
        no_sync = getattr(network, "no_sync", nullcontext)
        with no_sync() if number < len(parts) else nullcontext():
            with precision.autocast():
                logits = network(x).float()
                part_loss = F.cross_entropy(
                    logits, target, label_smoothing=config.label_smoothing
                ) / len(parts)
            precision.scaler.scale(part_loss).backward()
        loss += part_loss.detach()
        correct += (logits.detach().argmax(1) == label).sum()
    if config.clip_grad_norm is not None:
        precision.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_grad_norm)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss, correct


def _training_loader(config: TrainConfig, images: ImageData, process: Process) -> Loader:
    """Augmented batches of this process; checks that the batch can be shared and split."""
    data = config.data
    augment = to_plain(config.augment)
    on_host = {key: value for key, value in augment.items() if key not in ("mixup", "cutmix")}
    loader = train_loader(
        images.train,
        train_transform(data.image_size, mean=data.mean, **on_host),
        seed=config.seed,
        global_batch_size=data.global_batch_size,
        rank=process.rank,
        world_size=process.world_size,
        workers=process.cpus if data.workers is None else data.workers,
        pin_memory=process.device.type == "cuda",
    )
    share = data.global_batch_size // process.world_size
    if share % 2 and (augment["mixup"] or augment["cutmix"]):
        raise InputError(
            f"mixup and cutmix pair images: expected an even number of them on each process, got "
            f"{share}; change data.global_batch_size"
        )
    micro_batch = config.runtime.micro_batch
    if micro_batch is not None and share % micro_batch:
        raise InputError(
            f"runtime.micro_batch={micro_batch}: expected a divisor of {share}, the images of one "
            f"process (data.global_batch_size={data.global_batch_size} over {process.world_size})"
        )
    return loader


def _wrap(network: nn.Module, compile_it: bool, process: Process) -> nn.Module:
    """The network as training calls it; its parameters are those of the bare one."""
    wrapped: Any = torch.compile(network) if compile_it else network
    if process.world_size == 1:
        return wrapped
    return DistributedDataParallel(
        wrapped,
        device_ids=[process.device.index] if process.device.type == "cuda" else None,
        forward_sync_buffers=False,  # done once before each evaluation instead of at every step
        gradient_as_bucket_view=True,
    )


def _start_line(
    config: TrainConfig,
    state: TrainState,
    complexity: Complexity,
    images: ImageData,
    process: Process,
    precision: Precision,
) -> str:
    done_before = f", {state.epoch} of them done before" if state.epoch else ""
    return (
        f"{config.model.name} width {config.width:g} ({complexity.params:,} parameters, "
        f"{complexity.madds / 1e6:.1f} M MAdds at {config.data.eval_size} px) on "
        f"{config.data.name}: {len(images.train):,} + {len(images.val):,} images, "
        f"epochs: {config.epochs}{done_before}, batch {config.data.global_batch_size} on "
        f"{process.world_size} x {process.device.type}, {precision.name}"
    )


def _check_schedule(learning_rate: partial[float], epochs: int, steps_per_epoch: int) -> None:
    """Ask for every epoch's rate, so that a schedule that can't be stops before training."""
    try:
        rates = [learning_rate(epoch * steps_per_epoch) for epoch in range(epochs)]
    except (TypeError, ArithmeticError) as error:
        raise InputError(f"schedule {learning_rate.keywords}: {error}") from error
    if min(rates) < 0:
        raise InputError(f"schedule {learning_rate.keywords}: the rate falls to {min(rates):g}")


def _save(state: TrainState, folder: RunFolder) -> None:
    save_checkpoint(folder.last, state.to_plain())
    _mark_best(state, folder)


def _mark_best(state: TrainState, folder: RunFolder) -> None:
    """If last.pt is the best so far, make best.pt a second name of it."""
    if state.best["epoch"] == state.epoch:
        link_atomically(folder.last, folder.best)


def _finish(state: TrainState, folder: RunFolder, result: dict[str, Any]) -> None:
    final = state.evaluated()[state.headline]
    save_weights(folder.weights, final, {**state.described, "scores": state.scores})
    folder.write_result(result)


def _finished_line(result: dict[str, Any], folder: RunFolder) -> str:
    used = result["hardware"]
    return (
        f"already finished: top-1 {result['top1']:.2f} % (on {used['processes']} x "
        f"{used['device']}, {used['threads_per_process']} threads each)\nrun folder: {folder.path}"
    )


def _diverged(
    step: int, epoch: int, learning_rate: partial[float], folder: RunFolder
) -> DivergedError:
    kept = f"the last good checkpoint is {folder.last}" if epoch else "there is no checkpoint yet"
    return DivergedError(
        f"the loss is not finite at step {step} (epoch {epoch + 1}, learning rate "
        f"{learning_rate(step - 1):g}); {kept}. Try a lower optimizer.lr, a longer "
        "schedule.warmup_epochs, or clip_grad_norm=1"
    )
