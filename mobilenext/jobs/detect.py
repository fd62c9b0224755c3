"""Training of a detector, from top to bottom; the same story as `train`, with boxes for targets."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from mobilenext.assembly.detection import (
    box_augment,
    box_batches,
    box_loaders,
    check_box_data,
    described_detector,
    new_detector,
    train_detector_mode,
    try_detector,
)
from mobilenext.assembly.network import (
    averages,
    computed_by,
    hyperparameters,
    memory_note,
    new_optimizer,
    new_schedule,
    new_update,
    result_entries,
    run_settings,
)
from mobilenext.config import DetectConfig, to_yaml
from mobilenext.config.targets import build
from mobilenext.data import BoxData, box_texts
from mobilenext.metrics.detection import MultiBoxLoss, Precision, score_all_detections
from mobilenext.metrics.detection_report import detection_files, lines_of, with_targets
from mobilenext.models.complexity import Complexity
from mobilenext.optim import set_learning_rate
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import Precision as Computing
from mobilenext.seeding import seed_devices
from mobilenext.training.endings import already_finished, next_commands
from mobilenext.training.measures import DETECTION, Measure
from mobilenext.training.meter import TrainMeter
from mobilenext.training.progress import format_seconds, say
from mobilenext.training.run import Run
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.state import Scores, TrainState


def detect(config: DetectConfig, process: Process) -> dict[str, Any]:
    """Train a detector, evaluate it after every epoch, and leave a run folder behind.

    Beside what every run leaves, the folder gets average precision by class (ap_by_class.csv),
    curves (precision_recall.json) and test pictures with what was found (detections.jpg).

    Args:
        config: The job's config.
        process: This process among those of the job; rank 0 writes.

    Returns:
        What result.json says. Average precision is in per cent, of the weights after the last
        epoch: the averaged ones if `ema_decay` is set.

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
        images = process.first_on_node(lambda: build(config.data.source))
        images = check_box_data(images, config.data.name)
        loaders = opened.enter_context(box_loaders(config, images, process))
        to_device = box_batches(config.data, process, config.runtime.channels_last)
        augment = box_augment(config, process)

        # ---- network, optimiser, schedule ----
        network, cost = new_detector(config, len(images.classes), process)
        average = averages(network, config)
        optimizer = new_optimizer(network, config)
        rate = new_schedule(config, len(loaders.train))
        computing = Computing(config.runtime.precision, process.device)
        kept = try_detector(config, network, computing, process)
        tight = memory_note(config, kept, process)
        update = new_update(network, optimizer, computing, config, process)
        loss = MultiBoxLoss(network, config.negatives)  # pyright: ignore[reportArgumentType]

        # ---- the run; nothing has been written so far ----
        meter = TrainMeter(process, update.skips_nonfinite, computing.scaler.is_enabled())
        state = TrainState(
            described_detector(config, images), network, average, {"optimizer": optimizer},
            computing.scaler, meter, DETECTION[images.protocol], config.batch_norm,
        )  # fmt: skip
        run = Run(process, folder, state, loaders, rate, run_settings(config), to_yaml(config))
        opened.enter_context(run)
        if run.earlier is not None:
            return run.earlier
        say(_start_lines(config, run, cost, images, computing, tight), process)
        found: dict[str, Precision] = {}

        def score(networks: Mapping[str, nn.Module]) -> Scores | None:
            precisions = score_all_detections(
                networks, loaders.val, to_device, process, images.val, len(images.classes), loss,
                run.interrupted, run.evaluating,
            )  # fmt: skip
            if precisions is None:
                return None
            found.update(precisions)
            return {name: precision.scores for name, precision in precisions.items()}

        for epoch in run.epochs():
            train_detector_mode(network, config)
            for step in run.steps(epoch, to_device.ahead):
                pixels, host_targets = step.batch
                drawn = None if augment is None else augment.at(epoch, step.index)
                inputs, targets = to_device(pixels, host_targets, drawn)
                if step.number == 0:
                    pictures = with_targets(to_device.pictures(inputs), targets, images.classes)
                    run.show("train/images", pictures, box_texts(targets, images.classes))
                set_learning_rate(optimizer, step.lr)
                seed_devices("step", config.seed, step.number, process.rank)
                step.measured = update((inputs, targets), loss)
                if average is not None:
                    average.update(network, step.number + 1)
            run.end_epoch(epoch, score)
        final = state.headline
        # A run that ended after its last checkpoint, and before its result, is evaluated again.
        if final not in found and score({final: state.evaluated()[final]}) is None:
            raise run.preempted()
        _leave(run, images, found[final])
        result = run.finish(
            _entries(config, run, cost, images, found[final], computing),
            _hyperparameters(config, computing),
            shown=(*state.measure.reported, "num_params", "madds"),
        )
    say(_last_lines(result, config, folder, images, found[final], state.measure), process)
    return result


def _leave(run: Run, images: BoxData, precision: Precision) -> None:
    """Write what detections are worth, and show some of them in TensorBoard."""

    def write() -> None:
        files, pictures, captions = detection_files(precision, images)
        run.folder.write_files(files)
        if images.problems:
            run.folder.write_files({"bad_boxes.txt": "\n".join(images.problems) + "\n"})
        if len(pictures):
            run.show("val/detections", torch.from_numpy(pictures), captions)

    run.process.on_main(write)


def _start_lines(
    config: DetectConfig,
    run: Run,
    cost: Complexity,
    images: BoxData,
    computing: Computing,
    tight: list[str],
) -> str:
    step, process = run.state.step, run.process
    done_before = f" (going on after step {step:,})" if step else ""
    first = (
        f"{config.detector.name} on {config.model.name} width {config.width:g} ({cost.params:,} "
        f"parameters, {cost.madds / 1e6:.1f} M MAdds at {config.data.image_size} px) on "
        f"{config.data.name}: {len(images.train):,} + {len(images.val):,} images, "
        f"{len(images.classes)} classes, epochs: {config.epochs}{done_before}, batch "
        f"{config.data.global_batch_size} on {process.world_size} x {process.device.type}, "
        f"{computing.name}"
    )
    notes = [f"note: {note}" for note in (*images.notes, *tight)]
    if config.init_from is None and not config.pretrained:
        notes.append(
            "note: the backbone has random weights; detectors need a trained one (init_from=RUN): "
            "from scratch on some thousand images they find little"
        )
    return "\n".join([first, *notes, computed_by(run), f"run folder: {run.folder.path}"])


def _entries(
    config: DetectConfig,
    run: Run,
    cost: Complexity,
    images: BoxData,
    precision: Precision,
    computing: Computing,
) -> dict[str, Any]:
    """What result.json says of network, data and settings."""
    return {
        "kind": "detection",
        **result_entries(config, run, cost, computing),
        "detector": config.detector.name,
        "taps": config.detector.network.get("taps"),
        "split": images.split_name,
        "protocol": images.protocol,
        "objects": images.counts,
        "ap_by_class": _by_class(precision, images),
    }


def _by_class(precision: Precision, images: BoxData) -> dict[str, float | None]:
    """AP of the protocol by class; None for a class without objects."""
    values = (precision.coco if images.protocol == "coco" else precision.eleven_point).by_class
    return {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(images.classes, values, strict=True)
    }


def _hyperparameters(config: DetectConfig, computing: Computing) -> dict[str, float | str]:
    """What runs are compared by in TensorBoard; the same keys for all of them."""
    return {
        **hyperparameters(config, computing),
        "detector": config.detector.name,
        "taps": str(config.detector.network.get("taps")),
        "frozen_backbone": str(config.freeze_backbone),
    }


def _last_lines(
    result: dict[str, Any],
    config: DetectConfig,
    folder: RunFolder,
    images: BoxData,
    precision: Precision,
    measure: Measure,
) -> str:
    return "\n".join(
        [
            *lines_of(precision, images.classes),
            f"finished: {measure.text(result[measure.key])} of {result['count']:,} "
            f"{config.data.name} images (best epoch: {result['best_epoch']:.0f}, "
            f"{result[f'best_{measure.key}']:.2f} %) in {format_seconds(result['wall_seconds'])}",
            f"run folder: {folder.path}",
            next_commands(folder.path, config.output_dir),
        ]
    )
