"""Training of a classifier, from top to bottom.

`train` is the order of things. What it calls is in the rooms: `assembly` makes the objects that the
config describes, `data` makes batches, `training.run` does what every run does (checkpoints,
reports, signals), `training.step` one optimiser step, `metrics` counts. The network, the optimiser,
the schedule and the data source arrive by `_target_` from the config.
"""

from contextlib import ExitStack
from typing import Any

from mobilenext.assembly.data import class_loaders, device_augment, device_batches, mixing
from mobilenext.assembly.network import (
    averages,
    computed_by,
    described,
    hyperparameters,
    memory_note,
    new_network,
    new_optimizer,
    new_schedule,
    new_update,
    result_entries,
    run_settings,
    train_mode,
    try_step,
    unites_by,
)
from mobilenext.config import TrainConfig, to_yaml
from mobilenext.config.targets import build
from mobilenext.data import ImageData, target_texts
from mobilenext.metrics.classification import SmoothedCrossEntropy, score_all
from mobilenext.models.complexity import Complexity
from mobilenext.optim import set_learning_rate
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import Precision
from mobilenext.seeding import seed_devices
from mobilenext.training.endings import already_finished, next_commands
from mobilenext.training.measures import TOP1
from mobilenext.training.meter import TrainMeter
from mobilenext.training.progress import format_seconds, say
from mobilenext.training.run import Run
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.state import TrainState


def train(config: TrainConfig, process: Process) -> dict[str, Any]:
    """Train a network, evaluate it after every epoch, and leave a run folder behind.

    A finished folder is not touched: its result comes back at once. A folder with a checkpoint is
    taken up after the checkpoint's step.

    Args:
        config: The job's config.
        process: This process among those of the job; rank 0 writes.

    Returns:
        What result.json says. Accuracies are in per cent, of the weights after the last epoch: the
        averaged ones if `ema_decay` is set.

    Raises:
        InputError: Something in the config, the data or the folder is not what it has to be.
        DivergedError: The loss or the gradient stopped being finite.
        Preempted: A signal asked for the end; a checkpoint has been written.
    """
    folder = RunFolder(config.run_path)
    finished = process.on_main(folder.result)
    if finished is not None:
        say(already_finished(finished, folder.path, config.output_dir), process)
        return finished
    with ExitStack() as opened:
        # ---- data ----
        images: ImageData = process.first_on_node(lambda: build(config.data.source))
        loaders = opened.enter_context(class_loaders(config, images, process))
        to_device = device_batches(config.data, process, config.runtime.channels_last)
        augment = device_augment(config, process)
        mix = mixing(config, len(images.classes))

        # ---- network, optimiser, schedule ----
        network, cost = new_network(config, len(images.classes), process)
        average = averages(network, config)
        optimizer = new_optimizer(network, config)
        rate = new_schedule(config, len(loaders.train))
        precision = Precision(config.runtime.precision, process.device)
        kept = try_step(config, network, len(images.classes), precision, process)
        tight = memory_note(config, kept, process)
        update = new_update(network, optimizer, precision, config, process)
        loss = SmoothedCrossEntropy(config.label_smoothing, config.auxiliary_weight)

        # ---- the run; nothing has been written so far ----
        meter = TrainMeter(process, update.skips_nonfinite, precision.scaler.is_enabled())
        state = TrainState(
            described(config, images), network, average, {"optimizer": optimizer},
            precision.scaler, meter, TOP1, unites_by(config),
        )  # fmt: skip
        run = Run(process, folder, state, loaders, rate, run_settings(config), to_yaml(config))
        opened.enter_context(run)
        if run.earlier is not None:
            return run.earlier
        say(_start_lines(config, run, cost, images, precision, tight), process)
        for epoch in run.epochs():
            train_mode(network, config, epoch / config.epochs)
            for step in run.steps(epoch, to_device.ahead):
                pixels, host_labels = step.batch
                inputs, labels = to_device(pixels, host_labels, augment.at(epoch, step.index))
                inputs, targets = mix(inputs, labels, epoch, step.index)
                if step.number == 0:
                    captions = target_texts(targets, images.classes)
                    run.show("train/images", to_device.pictures(inputs), captions)
                set_learning_rate(optimizer, step.lr)
                seed_devices("step", config.seed, step.number, process.rank)
                step.measured = update((inputs, targets, labels), loss)
                if average is not None:
                    average.update(network, step.number + 1)
            run.end_epoch(
                epoch,
                lambda networks: score_all(
                    networks, loaders.val, to_device, process, len(images.val), run.interrupted,
                    shown=run.evaluating,
                ),
            )  # fmt: skip
        result = run.finish(
            {"kind": "training", **result_entries(config, run, cost, precision)},
            _hyperparameters(config, precision),
            shown=("top1", "top5", "best_top1", "num_params", "madds"),
        )
    say(_last_line(result, config, folder, len(images.classes)), process)
    return result


def _start_lines(
    config: TrainConfig,
    run: Run,
    cost: Complexity,
    images: ImageData,
    precision: Precision,
    tight: list[str],
) -> str:
    step, process = run.state.step, run.process
    done_before = f" (going on after step {step:,})" if step else ""
    first = (
        f"{config.model.name} width {config.width:g} ({cost.params:,} parameters, "
        f"{cost.madds / 1e6:.1f} M MAdds at {config.data.eval_size} px) on "
        f"{config.data.name}: {len(images.train):,} + {len(images.val):,} images, "
        f"epochs: {config.epochs}{done_before}, batch {config.data.global_batch_size} on "
        f"{process.world_size} x {process.device.type}, {precision.name}"
    )
    notes = [
        f"note: {note}" for note in (*images.notes, *_short_epochs(config, run, images), *tight)
    ]
    return "\n".join([first, *notes, computed_by(run), f"run folder: {run.folder.path}"])


FEW_STEPS = 20
"""An epoch of fewer optimiser steps has a batch that is large for so few images."""
MUCH_LEFT_OUT = 0.1
"""Share of the images: an epoch has whole batches, and the rest is left out, others each time."""


def _short_epochs(config: TrainConfig, run: Run, images: ImageData) -> list[str]:
    """A note on a batch that does not suit the number of images, if it is so."""
    batch, count, steps = config.data.global_batch_size, len(images.train), len(run.loaders.train)
    left_out = count - steps * batch
    if steps >= FEW_STEPS and left_out <= MUCH_LEFT_OUT * count:
        return []
    smaller = 1 << max(0, (count // FEW_STEPS).bit_length() - 1)
    noun = "step" if steps == 1 else "steps"
    advice = f"; try data.global_batch_size={smaller}" if smaller < batch else ""
    return [
        f"an epoch has {steps} optimiser {noun} of {batch} images and leaves {left_out:,} of "
        f"{count:,} images out (others each time){advice}"
    ]


def _hyperparameters(config: TrainConfig, precision: Precision) -> dict[str, float | str]:
    """What runs are compared by in TensorBoard; the same keys for all of them."""
    return {
        **hyperparameters(config, precision),
        "eval_size": config.data.eval_size,
        "label_smoothing": config.label_smoothing,
        "mixup": config.augment.mixup,
        "cutmix": config.augment.cutmix,
    }


FEW_STEPS_FOR_NORMS = 500


def _at_chance(result: dict[str, Any], config: TrainConfig, classes: int) -> str:
    """A line on the usual reason, if a short run's accuracy is what guessing would give."""
    if result["steps"] > FEW_STEPS_FOR_NORMS or result["top1"] > 150 / classes:
        return ""
    what = f"note: top-1 is what guessing among {classes} classes gives. "
    if config.freeze_backbone or config.freeze_norms:
        return (
            f"{what}Running statistics are frozen, so the images have to come as the given weights "
            "know them: see whether data.mean and data.std are those of their training, and "
            "whether the learning rate suits a classifier that begins anew\n"
        )
    return (
        f"{what}After {result['steps']} steps that need not mean that nothing was learned: the "
        "running statistics of batch norms, which evaluation uses, need some hundred steps. See "
        "the training loss, and train longer\n"
    )


def _last_line(result: dict[str, Any], config: TrainConfig, folder: RunFolder, classes: int) -> str:
    return (
        f"finished: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % of "
        f"{result['count']:,} held-out {config.data.name} images "
        f"(best epoch: {result['best_epoch']:.0f}, {result['best_top1']:.2f} %) "
        f"in {format_seconds(result['wall_seconds'])}\n"
        f"{_at_chance(result, config, classes)}run folder: {folder.path}\n"
        f"{next_commands(folder.path, config.output_dir)}"
    )
