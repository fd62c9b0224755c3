"""Training, from top to bottom.

`train` is the order of things; `_update` is one optimiser step. What they call is in the rooms:
`data` makes batches, `optim` sorts parameters and says how fast to learn, `runtime` knows the other
processes, the number formats and the run folder. The network, the optimiser, the schedule and the
data source arrive by `_target_` from the config.
"""

import math
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.norm_act import convert_sync_batchnorm
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mobilenext.config import TrainConfig, to_plain, to_yaml
from mobilenext.data import (
    Augment,
    DeviceBatches,
    ImageData,
    Loader,
    Mixing,
    check_bad_share,
    labels_checksum,
    train_loader,
    train_transform,
)
from mobilenext.errors import DivergedError, InputError, first_line
from mobilenext.evaluate import check_logits, score, validation_loader
from mobilenext.models.complexity import Complexity, measure_complexity
from mobilenext.models.weights import classifier_modules, fit_weights
from mobilenext.optim import weight_decay_groups
from mobilenext.runtime.checkpoint import Checkpoints, read_weights, save_weights, sha256_of
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.environment import provenance
from mobilenext.runtime.metrics import TrainMeter
from mobilenext.runtime.monitor import Monitor, format_seconds, say
from mobilenext.runtime.precision import Precision
from mobilenext.runtime.run_folder import RunFolder
from mobilenext.runtime.session import Session
from mobilenext.runtime.state import Scores, TrainState
from mobilenext.seeding import seed_devices
from mobilenext.targets import build

PREFETCH = 4
"""Batches before the end of an epoch at which those of the evaluation are begun: the threads of
training have nothing left to decode by then."""


def train(  # noqa: C901 - one linear story
    config: TrainConfig, process: Process, folder: RunFolder
) -> dict[str, Any]:
    """Train a network, evaluate it after every epoch, and leave a run folder behind.

    A finished folder is not touched: its result comes back at once. A folder with a checkpoint is
    taken up after the checkpoint's step.

    Args:
        config: The job's config.
        process: This process among those of the job; rank 0 writes.
        folder: The run's folder.

    Returns:
        What result.json says. Accuracies are in per cent, of the weights after the last epoch: the
        averaged ones if `ema_decay` is set.

    Raises:
        InputError: Something in the config, the data or the folder is not what it has to be.
        DivergedError: The loss or the gradient stopped being finite.
        Preempted: A signal asked for the end; a checkpoint has been written.
    """
    result = process.on_main(folder.result)
    if result is not None:
        say(_finished_line(result, folder), process)
        return result
    source, device, data = provenance(process), process.device, config.data

    with ExitStack() as stack:
        # ---- data ----
        images: ImageData = build(data.source)
        batches = stack.enter_context(closing(_training_loader(config, images, process)))
        val_batches = stack.enter_context(closing(validation_loader(data, images, process)))
        to_device = DeviceBatches(data.mean, data.std, device, config.runtime.channels_last)
        augment = _device_augment(config, process)
        mixing = Mixing(
            config.augment.mixup, config.augment.cutmix, len(images.classes), config.seed
        )

        # ---- network, optimiser, schedule ----
        network, complexity = _network(config, len(images.classes), process)
        ema = None
        if config.ema_decay is not None:
            ema = ModelEmaV3(network, config.ema_decay, use_warmup=config.ema_warmup)
        decay = config.optimizer.get("weight_decay", 0.0)
        groups = weight_decay_groups(network, decay, config.decay_norm_and_bias, config.layer_decay)
        optimizer = build(config.optimizer, params=groups)
        learning_rate = partial(
            build(config.schedule), base_lr=config.optimizer["lr"], steps_per_epoch=len(batches)
        )
        _check_schedule(learning_rate, config.epochs, len(batches))
        precision = Precision(config.runtime.precision, device)
        _try_step(config, network, len(images.classes), precision, process)
        wrapped = _wrap(network, config.runtime.compile, process)

        # ---- the state, from the run's newest good checkpoint if there is one ----
        meter = TrainMeter(process, config.nonfinite == "skip", precision.scaler.is_enabled())
        model = {**to_plain(config.model), "num_classes": len(images.classes)}
        described = {"model": model, "classes": list(images.classes), "data": to_plain(data)}
        described["train_images"] = len(images.train)
        described["train_labels_crc32"] = labels_checksum(images.train)
        # What all have the same, a mean over processes could still round.
        unite = "broadcast" if config.freeze_backbone else config.batch_norm
        state = TrainState(described, network, ema, optimizer, precision.scaler, meter, unite)
        checkpoints = Checkpoints(folder.path, **to_plain(config.checkpoint))
        session = Session(process, folder, config.runtime.timeout_minutes)
        loaders = {"train": batches, "val": val_batches}

        def save() -> None:
            _collect(state, learning_rate, checkpoints)
            _check_weights(state, learning_rate, checkpoints, process)
            _gather_unreadable(state, loaders, images, config, process, folder)
            monitor.flush()
            state.gather(process)
            process.on_main(lambda: _write(state, checkpoints))
            meter.pause()

        stack.enter_context(session)
        result = process.on_main(folder.result)
        if result is not None:  # another job had the folder, and finished it meanwhile
            return result
        _restore(config, state, checkpoints, process)
        config_yaml = to_yaml(config)
        process.on_main(lambda: folder.create(config_yaml))
        say(_start_line(config, state, complexity, images, process, precision), process)
        for note in images.notes:
            say(f"note: {note}", process)
        say(f"images decoded by: {batches.decoder}\nrun folder: {folder.path}", process)
        session.begin(state.step)
        monitor = Monitor(folder, process, config.epochs, len(batches), state.step, state.epoch)
        stack.callback(monitor.close)

        # ---- epochs ----
        for epoch in range(state.epoch, config.epochs):
            _train_mode(network, config.freeze_backbone)
            first = state.step - epoch * len(batches)
            ahead = to_device.ahead(batches.epoch(epoch, first))
            loaded = monitor.steps(session.watched(ahead), epoch, first)
            for batch, (pixels, host_labels) in enumerate(meter.timed(loaded), first):
                monitor.describe_once(config_yaml, pixels)
                inputs, labels = to_device(pixels, host_labels, augment.at(epoch, batch))
                inputs, targets = mixing(inputs, labels, epoch, batch)
                lr = learning_rate(state.step)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group.get("lr_scale", 1.0)
                seed_devices("step", config.seed, state.step, process.rank)
                loss, correct, finite = _update(
                    config, wrapped, optimizer, precision, inputs, targets, labels
                )
                state.stepped()
                if ema is not None:
                    ema.update(network, state.step)

                meter.add(loss, correct, finite, len(labels))
                last = batch + 1 == len(batches)
                if batch + PREFETCH == len(batches):
                    val_batches.prefetch(0)
                if (batch + 1) % config.runtime.log_every == 0 or last:
                    _collect(state, learning_rate, checkpoints)
                    monitor.interval(epoch, state.step, lr, meter.close())
                wish = not last and checkpoints.due(state.step)
                stop, due = session.after(state.step, wish)
                if stop or (due and not last):
                    save()
                if stop:
                    raise session.preempted()

            state.unite_batch_norms(process)
            if epoch + 1 < config.epochs:
                batches.prefetch(epoch + 1)
            scores = _evaluate(state, val_batches, to_device, process, len(images.val), session)
            if scores is None:
                save()
                raise session.preempted()
            _check_scores(scores, state, learning_rate, checkpoints)
            state.record(scores)
            monitor.epoch(epoch, state.step, meter.close_epoch(), scores)
            last = epoch + 1 == config.epochs
            if last or state.is_best or process.on_main(checkpoints.affordable):
                save()

        # ---- result ----
        told = partial(_result, config, state, complexity, precision, batches.decoder, folder)
        result = process.on_main(told) | source | {"config": to_plain(config)}
        process.on_main(lambda: _finish(config, state, folder, monitor, result))
    say(_last_line(result, config, state, folder), process)
    return result


def _update(
    config: TrainConfig,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    inputs: Tensor,
    targets: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One optimiser step from this process's share of a batch, micro-batch by micro-batch.

    Returns:
        Mean loss over the share, number of correct predictions, and whether the gradient is finite,
        on the device: nothing here waits for it, except fp16's scaler and `nonfinite=skip`.
    """
    skips = config.nonfinite == "skip"
    # A forward pass that overflows leaves its mark in the running statistics.
    before = [buffer.clone() for buffer in network.buffers()] if skips else []
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
    precision.scaler.unscale_(optimizer)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if config.clip_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(network.parameters(), config.clip_grad_norm, norm)
    finite = norm.isfinite()
    if not skips or bool(finite):
        precision.scaler.step(optimizer)
    else:
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss, correct, finite


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
        on_bad_image=data.on_bad_image,
        max_bad_share=data.max_bad_share,
        decoder=data.decoder,
        device=process.device,
    )
    share = data.global_batch_size // process.world_size
    if share % 2 and (augment["mixup"] or augment["cutmix"]):
        raise InputError(
            f"mixup and cutmix pair images: expected an even number of them on each process, got "
            f"{share}; change data.global_batch_size"
        )
    micro_batch = config.runtime.micro_batch
    if micro_batch is not None and share % micro_batch:
        fits = max(size for size in range(1, min(micro_batch, share) + 1) if share % size == 0)
        raise InputError(
            f"runtime.micro_batch={micro_batch}: expected a divisor of {share}, the images of one "
            f"process (data.global_batch_size={data.global_batch_size} over {process.world_size}), "
            f"for instance runtime.micro_batch={fits}; batch norms then see {fits} images at a "
            f"time. With {micro_batch} the batch needs processes that have a multiple of it each"
        )
    return loader


def _device_augment(config: TrainConfig, process: Process) -> Augment:
    """What is done to training images batch by batch."""
    return Augment(
        config.augment.color_jitter,
        config.augment.erasing,
        config.seed,
        config.data.global_batch_size,
        process.rank,
        process.world_size,
    )


def _network(
    config: TrainConfig, num_classes: int, process: Process
) -> tuple[nn.Module, Complexity]:
    """The network with its random weights on its device, and what it costs."""
    seed_devices("init", config.seed)
    network: nn.Module = build(config.model.network, num_classes=num_classes)
    size = config.data.eval_size
    try:
        complexity = measure_complexity(network, size)
    except Exception as error:  # networks have no type for it
        raise _refused(config, "evaluation (data.eval_size)", (1, 3, size, size), error) from error
    if config.batch_norm == "sync":
        network = _synchronised(network, process)
    if config.runtime.channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    network.to(process.device)
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


def _try_step(
    config: TrainConfig, network: nn.Module, classes: int, precision: Precision, process: Process
) -> None:
    """Try a forward and a backward pass, and take back what they did to the network.

    What a network says of images that it does not take should come before anything is written. Two
    images stand for a larger batch: no network needs more of them than its norms do.

    Raises:
        InputError: The network does not take such a batch, or does not make logits of it.
    """
    share = config.data.global_batch_size // process.world_size
    count, size = min(config.runtime.micro_batch or share, 2), config.data.image_size
    before = [buffer.clone() for buffer in network.buffers()]
    _train_mode(network, config.freeze_backbone)
    shape = (count, 3, size, size)
    try:
        with precision.autocast():
            logits = network(torch.zeros(shape, device=process.device))
        check_logits(logits, (count, classes))
        logits.float().sum().backward()
    except Exception as error:  # networks have no type for it
        raise _refused(config, "training (data.image_size)", shape, error) from error
    network.zero_grad(set_to_none=True)
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)


def _refused(
    config: TrainConfig, when: str, shape: tuple[int, ...], error: Exception
) -> InputError:
    return InputError(
        f"model={config.model.name} does not take the images of {when}, a batch of shape {shape} "
        f"for one process: {first_line(error)}. Change the images' size, data.global_batch_size or "
        "runtime.micro_batch, strides, or the model"
    )


def _train_mode(network: nn.Module, frozen_backbone: bool) -> None:
    """Frozen layers stay in evaluation mode: their running statistics would follow the images."""
    network.train(not frozen_backbone)
    for module in classifier_modules(network):
        module.train()


def _wrap(network: nn.Module, compile_it: bool, process: Process) -> nn.Module:
    """The network as training calls it; its parameters are those of the bare one.

    Gives all processes the tensors of rank 0, so it comes before a checkpoint is read.
    """
    wrapped: Any = torch.compile(network) if compile_it else network
    if process.world_size == 1:
        return wrapped
    return DistributedDataParallel(
        wrapped,
        device_ids=[process.device.index] if process.device.type == "cuda" else None,
        forward_sync_buffers=False,  # united before each evaluation instead of at every step
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
    done_before = f" (going on after step {state.step:,})" if state.step else ""
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


def _synchronised(network: nn.Module, process: Process) -> nn.Module:
    """The network with batch norms that see the batches of all processes."""
    if process.world_size == 1:
        return network
    if process.device.type != "cuda":
        raise InputError(
            "batch_norm=sync: torch has synchronised batch norms for CUDA only, and this is "
            f"{process.device.type}; use batch_norm=reduce or broadcast"
        )
    # Not torch's: it drops the activation that timm's BatchNormAct2d has inside.
    return convert_sync_batchnorm(network)


def _restore(
    config: TrainConfig, state: TrainState, checkpoints: Checkpoints, process: Process
) -> None:
    """Go on from the newest whole checkpoint, or begin with given weights; says what it took."""
    found = process.on_main(checkpoints.load)
    for text in found.passed_over:
        say(f"warning: {text}", process)
    if found.state is not None:
        state.restore(found.state, found.path, process)
        if "init_from" in found.state:
            state.described["init_from"] = found.state["init_from"]
        if state.is_best:  # a kill may have come before it was marked
            process.on_main(lambda: checkpoints.mark_best(found.path))
    elif config.init_from is not None:
        _begin_with(Path(config.init_from).expanduser(), state, process)


def _begin_with(path: Path, state: TrainState, process: Process) -> None:
    """Give network and averages the weights of a file; the run's records tell which file it was."""
    try:
        given, checksum = process.on_main(lambda: (read_weights(path), sha256_of(path)))
        fitted = fit_weights(given.tensors, state.network)
    except InputError as error:
        about = "" if str(path) in str(error) else f"{path}: "
        raise InputError(f"init_from: {about}{error}") from error
    for network in state.evaluated().values():
        network.load_state_dict({**network.state_dict(), **fitted.tensors})
    state.described["init_from"] = {"path": str(path), "sha256": checksum}
    classes = len(state.described["classes"])
    anew = f" (classifier made anew for {classes} classes)" if fitted.classifier_left_out else ""
    which = f", its entry {given.entry}" if given.entry else ""
    say(f"weights from {path}{which}{anew}", process)


def _write(state: TrainState, checkpoints: Checkpoints) -> None:
    checkpoints.save(state.to_plain())
    if state.is_best:
        checkpoints.mark_best(checkpoints.last)


def _collect(state: TrainState, learning_rate: partial[float], checkpoints: Checkpoints) -> None:
    """Read the device; nothing is reported or saved of a step that must not have been."""
    bad_step = state.meter.collect(state.step)
    if bad_step is not None:
        raise _diverged(bad_step, state, learning_rate, checkpoints)


def _evaluate(
    state: TrainState,
    loader: Loader,
    to_device: DeviceBatches,
    process: Process,
    expected: int,
    session: Session,
) -> Scores | None:
    """Scores by the weights' name; None if a signal came meanwhile."""
    scores: Scores = {}
    for name, weights in state.evaluated().items():
        values = score(weights, loader, to_device, process, expected, session.interrupted)
        if values is None:
            return None
        scores[name] = values
    return scores


def _check_weights(
    state: TrainState, learning_rate: partial[float], checkpoints: Checkpoints, process: Process
) -> None:
    """The last step's update may have gone too far though its gradient was finite."""
    tensors = [
        value
        for network in state.evaluated().values()
        for value in (*network.parameters(), *network.buffers())
    ]
    bad = torch.stack([~value.isfinite().all() for value in tensors]).sum()
    if process.all_reduce_sum(bad).item():
        raise _diverged(state.step, state, learning_rate, checkpoints)


def _check_scores(
    scores: Scores, state: TrainState, learning_rate: partial[float], checkpoints: Checkpoints
) -> None:
    if not all(math.isfinite(values["loss"]) for values in scores.values()):
        raise _diverged(state.step, state, learning_rate, checkpoints)


def _gather_unreadable(
    state: TrainState,
    loaders: dict[str, Loader],
    images: ImageData,
    config: TrainConfig,
    process: Process,
    folder: RunFolder,
) -> None:
    """Bring together which images the processes could not read; each is named once."""
    if config.data.on_bad_image == "error":
        return
    found = process.gather({split: loader.unreadable for split, loader in loaders.items()})
    news: list[str] = []
    for split, known in state.unreadable.items():
        for part in found:
            news += [text for index, text in part[split].items() if index not in known]
            known |= part[split]
        check_bad_share(known, len(getattr(images, split)), config.data.max_bad_share)
    for text in news:
        say(f"warning: left out: {text}", process)
    if news:
        parts = state.unreadable.items()
        lines = [f"{split} {known[index]}" for split, known in parts for index in sorted(known)]
        process.on_main(lambda: folder.write_unreadable(lines))


def _result(
    config: TrainConfig,
    state: TrainState,
    complexity: Complexity,
    precision: Precision,
    decoder: str,
    folder: RunFolder,
) -> dict[str, Any]:
    """What result.json says of the run itself."""
    clock = state.meter.clock
    given = {"init_from": state.described["init_from"]} if config.init_from is not None else {}
    return {
        "model": config.model.name,
        "width": config.width,
        "identity": config.identity,
        "data": config.data.name,
        **state.scores[state.headline],
        "best_top1": state.best["top1"],
        "best_epoch": state.best["epoch"],
        "scores": state.scores,
        "num_params": complexity.params,
        "madds": complexity.madds,
        "image_size": config.data.eval_size,
        "epochs": config.epochs,
        "steps": state.step,
        "images_seen": clock.images,
        "unreadable_images": {split: len(them) for split, them in state.unreadable.items()},
        "images_per_second": clock.images_per_second,
        "data_wait_share": clock.data_wait_share,
        "wall_seconds": clock.wall_seconds,
        "sessions": folder.sessions_begun(),
        "seed": config.seed,
        "precision": precision.name,
        "decoder": decoder,
        "history": folder.history(),
        **given,
    }


def _finish(
    config: TrainConfig,
    state: TrainState,
    folder: RunFolder,
    monitor: Monitor,
    result: dict[str, Any],
) -> None:
    final = state.evaluated()[state.headline]
    description = {**state.described, "scores": state.scores}
    with folder.writable():
        save_weights(folder.weights, final, description)
    numbers = ("top1", "top5", "best_top1", "num_params", "madds")
    results = {name: result[name] for name in numbers}
    monitor.hyperparameters(_hyperparameters(config, result), results, state.scores, state.step)
    folder.write_result(result)


def _hyperparameters(config: TrainConfig, result: dict[str, Any]) -> dict[str, float | str]:
    """What runs are compared by in TensorBoard; the same keys for all of them."""
    optimizer = config.optimizer
    return {
        "model": config.model.name,
        "width": config.width,
        "identity": config.identity,
        "data": config.data.name,
        "image_size": config.data.image_size,
        "eval_size": config.data.eval_size,
        "batch": config.data.global_batch_size,
        "epochs": config.epochs,
        "optimizer": optimizer["_target_"].rpartition(".")[2],
        "lr": optimizer["lr"],
        "weight_decay": optimizer.get("weight_decay", 0.0),
        "schedule": config.schedule["_target_"].rpartition(".")[2],
        "label_smoothing": config.label_smoothing,
        "mixup": config.augment.mixup,
        "cutmix": config.augment.cutmix,
        "ema_decay": config.ema_decay or 0.0,
        "precision": result["precision"],
        "seed": config.seed,
    }


def _last_line(
    result: dict[str, Any], config: TrainConfig, state: TrainState, folder: RunFolder
) -> str:
    return (
        f"finished: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % of "
        f"{result['count']:,} held-out {config.data.name} images "
        f"(best epoch: {state.best['epoch']:.0f}, {state.best['top1']:.2f} %) "
        f"in {format_seconds(state.meter.clock.wall_seconds)}\nrun folder: {folder.path}"
    )


def _finished_line(result: dict[str, Any], folder: RunFolder) -> str:
    used = result["hardware"]
    return (
        f"already finished: top-1 {result['top1']:.2f} % (on {used['processes']} x "
        f"{used['device']}, {used['threads_per_process']} threads each)\nrun folder: {folder.path}"
    )


def _diverged(
    step: int, state: TrainState, learning_rate: partial[float], checkpoints: Checkpoints
) -> DivergedError:
    kept = "there is no checkpoint yet"
    if checkpoints.last.exists():
        kept = f"the last good checkpoint is {checkpoints.last}"
    return DivergedError(
        f"loss, gradient or weights are not finite at step {step} (epoch {state.epoch + 1}, "
        f"learning rate {learning_rate(step - 1):g}); {kept}. Try a lower optimizer.lr, a longer "
        "schedule.warmup_epochs, or clip_grad_norm=1; nonfinite=skip leaves single such steps out"
    )
