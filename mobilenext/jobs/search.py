"""Search for cells by DARTS, from top to bottom; the same story as `train`, with two optimisers."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from mobilenext.assembly.data import device_augment, device_batches, search_loaders
from mobilenext.assembly.network import (
    computed_by,
    described,
    hyperparameters,
    new_optimizer,
    new_schedule,
    new_update,
    result_entries,
    run_settings,
    train_mode,
    unites_by,
)
from mobilenext.assembly.search import (
    memory_notes,
    new_architecture_update,
    new_supernet,
    pairs_apart,
    time_note,
    try_supernet,
)
from mobilenext.config import SearchConfig, to_yaml
from mobilenext.config.targets import build
from mobilenext.data import ImageData, target_texts, two_parts
from mobilenext.genotype import Genotype, edges_of, state_name
from mobilenext.metrics.classification import SmoothedCrossEntropy, score_all
from mobilenext.models.complexity import Complexity
from mobilenext.optim import set_learning_rate
from mobilenext.program import command
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import Precision
from mobilenext.seeding import seed_devices
from mobilenext.tables.cell_pictures import cells_picture, cells_png, cells_svg
from mobilenext.training.architecture import Searched
from mobilenext.training.endings import already_finished, next_commands
from mobilenext.training.measures import TOP1
from mobilenext.training.meter import TrainMeter
from mobilenext.training.progress import format_seconds, say
from mobilenext.training.run import Run
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.state import Scores, TrainState

ROWS = "architecture"
"""Kind of the rows of metrics.jsonl that say what the alphas are."""


def search(config: SearchConfig, process: Process) -> dict[str, Any]:
    """Search for cells, and leave a run folder behind.

    Beside what every run leaves, the folder gets genotype.yaml (for `train.py model=darts
    genotype=FILE`), genotype.svg and genotype.png, whole after each epoch. Accuracies are of the
    supernet on the images that its weights don't learn from; the validation split is not used.

    Args:
        config: The job's config.
        process: This process among those of the job; rank 0 writes.

    Returns:
        What result.json says: the cells of the last epoch, not of the best one.

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
        loaders = opened.enter_context(search_loaders(config, images, process))
        to_device = device_batches(config.data, process, config.runtime.channels_last)
        augment = device_augment(config, process, images_of_one=2)
        held_out = len(two_parts(len(images.train), config.seed, config.train_share)[1])

        # ---- supernet, optimisers, schedule ----
        network, cost = new_supernet(config, len(images.classes), process)
        optimizer = new_optimizer(network, config)
        rate = new_schedule(config, len(loaders.train))
        precision = Precision(config.runtime.precision, process.device)
        kept = try_supernet(config, network, len(images.classes), precision, process)
        notes = memory_notes(config, kept, process)
        alphas = new_architecture_update(network, optimizer, precision, config, process)
        notes.append(time_note(config, network, alphas, len(loaders.train), process))
        update = new_update(network, optimizer, precision, config, process)
        loss = SmoothedCrossEntropy()

        # ---- the run; nothing has been written so far ----
        meter = TrainMeter(process, update.skips_nonfinite, precision.scaler.is_enabled())
        state = TrainState(
            described(config, images), network, None,
            {"optimizer": optimizer, "architecture_optimizer": alphas.optimizer},
            precision.scaler, meter, TOP1, unites_by(config),
        )  # fmt: skip
        run = Run(process, folder, state, loaders, rate, run_settings(config), to_yaml(config))
        opened.enter_context(run)
        if run.earlier is not None:
            return run.earlier
        say(_start_lines(config, run, cost, images, held_out, precision, notes), process)

        def score(networks: Mapping[str, nn.Module]) -> Scores | None:
            scores = score_all(
                networks, loaders.val, to_device, process, held_out, run.interrupted,
                shown=run.evaluating,
            )  # fmt: skip
            if scores is None:
                return None
            found = network.genotype()
            row = _row(network, found)
            run.report(ROWS, row, _curves(network, row["alphas"]))
            _leave(config, run, found)
            scores["val"] |= {key: row[key] for key in ("skips", "entropy", "found_params")}
            return scores

        for epoch in run.epochs():
            if _collapsed(config, network, epoch):
                break
            train_mode(network, config, epoch / config.epochs)
            for step in run.steps(epoch, to_device.ahead):
                pixels, host_labels = step.batch
                inputs, labels = to_device(pixels, host_labels, augment.at(epoch, step.index))
                if step.number == 0:
                    captions = target_texts(labels, images.classes)
                    run.show("train/images", to_device.pictures(inputs), captions)
                train, others = pairs_apart(inputs, labels, config.runtime.channels_last)
                set_learning_rate(optimizer, step.lr)
                seed_devices("step", config.seed, step.number, process.rank)
                if epoch >= config.warmup_epochs:
                    alphas(others, train, step.lr)
                step.measured = update((*train, train[1]), loss)
            run.end_epoch(epoch, score)
        result = run.finish(
            {"kind": "search", **result_entries(config, run, cost, precision),
             **_entries(config, run, network)},
            _hyperparameters(config, precision),
            shown=("top1", "num_params", "found_params", "skips", "entropy"),
        )  # fmt: skip
    say(_last_lines(result, config, folder), process)
    return result


def _collapsed(config: SearchConfig, network: Searched, epoch: int) -> bool:
    """Whether the search is to end before an epoch, since its cell has too many skips."""
    learned = epoch > config.warmup_epochs
    return (
        learned and config.max_skips is not None and (network.genotype().skips >= config.max_skips)
    )


def _row(network: Searched, found: Genotype) -> dict[str, Any]:
    """What the alphas are now, and the cells that they make."""
    weights, edges = network.weights()
    return {
        "genotype": found.to_plain(),
        "skips": found.skips,
        "entropy": network.entropy(),
        "found_params": found.count_params(),
        "alphas": weights,
        **({} if edges is None else {"edges": edges}),
    }


def _curves(network: Searched, weights: list[Any]) -> dict[str, float]:
    """The softmax's weights by their names in TensorBoard."""
    return {
        f"alphas_{kind}/{source}_to_{2 + node}/{operator}": value
        for kind, rows in zip(("normal", "reduce"), weights, strict=True)
        for (node, source), row in zip(edges_of(network.nodes), rows, strict=True)
        for operator, value in zip(network.operators, row, strict=True)
    }


def _leave(config: SearchConfig, run: Run, found: Genotype) -> None:
    """Write the cells that were found by an epoch's end, before its checkpoint."""
    epochs = run.state.epoch + 1
    title = f"{config.space.name}, seed {config.seed}, {epochs} epochs"

    def write() -> None:
        comment = (
            f"Found by scripts/search.py: {title} of {config.epochs}, {config.data.name}.\n"
            f"{found.count_params():,} parameters with 36 channels and 20 cells.\n"
            f"{command('train')} model=darts genotype={run.folder.path / 'genotype.yaml'}"
        )
        run.folder.write_files({"genotype.yaml": found.to_yaml(comment)})
        if config.pictures:
            run.folder.write_files(
                {"genotype.svg": cells_svg(found, title), "genotype.png": cells_png(found, title)}
            )
            picture = torch.from_numpy(cells_picture(found, title))
            run.show("search/cells", picture[None], [title])

    run.process.on_main(write)


def _start_lines(
    config: SearchConfig,
    run: Run,
    cost: Complexity,
    images: ImageData,
    held_out: int,
    precision: Precision,
    notes: list[str],
) -> str:
    step, process = run.state.step, run.process
    done_before = f" (going on after step {step:,})" if step else ""
    warmup = f", {config.warmup_epochs} of them without the alphas" if config.warmup_epochs else ""
    first = (
        f"search in {config.space.name} ({len(config.space.operators)} operators), order "
        f"{config.order}: {config.cells} cells of {config.nodes} nodes and {config.channels} "
        f"channels ({cost.params:,} parameters, {cost.madds / 1e6:.1f} M MAdds at "
        f"{config.data.image_size} px) on {config.data.name}: "
        f"{len(images.train) - held_out:,} images for the weights, {held_out:,} for the alphas, "
        f"epochs: {config.epochs}{warmup}{done_before}, batch {config.data.global_batch_size} on "
        f"{process.world_size} x {process.device.type}, {precision.name}"
    )
    wrong = []
    if config.order == "second_fd":
        wrong.append(
            "order=second_fd is DARTS' own: on small networks its finite differences (r = 0.01) "
            "were further from the second order than the first order is; order=second is exact"
        )
    lines = [f"note: {note}" for note in (*images.notes, *wrong, *notes)]
    return "\n".join([first, *lines, computed_by(run), f"run folder: {run.folder.path}"])


def _entries(config: SearchConfig, run: Run, network: Searched) -> dict[str, Any]:
    """What result.json says of the search: what was found is what the last epoch has."""
    rows = run.process.on_main(lambda: run.folder.rows(ROWS))
    left_out = ("kind", "step")
    return {
        "space": config.space.name,
        "order": config.order,
        "operators": list(network.operators),
        **{key: rows[-1][key] for key in ("genotype", "found_params", "skips", "entropy")},
        "architecture": [{k: v for k, v in row.items() if k not in left_out} for row in rows],
    }


def _hyperparameters(config: SearchConfig, precision: Precision) -> dict[str, float | str]:
    """What searches are compared by in TensorBoard; the same keys for all of them."""
    return {
        **hyperparameters(config, precision),
        "space": config.space.name,
        "order": config.order,
        "channels": config.channels,
        "cells": config.cells,
        "nodes": config.nodes,
        "alphas_lr": config.architecture_optimizer["lr"],
    }


def _cell_line(name: str, edges: Sequence[tuple[str, int]]) -> str:
    """A cell in words, node by node, with the names that its picture has."""
    parts = [f"{operator} of {state_name(source)}" for operator, source in edges]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    nodes = (f"{node} = {one} + {other}" for node, (one, other) in enumerate(pairs))
    return f"{name}:  {',  '.join(nodes)}"


def _last_lines(result: dict[str, Any], config: SearchConfig, folder: RunFolder) -> str:
    genotype = folder.path / "genotype.yaml"
    name = config.data.name
    trains = f"  {command('train')} model=darts genotype={genotype} data={name} epochs=1"
    cells = [
        _cell_line(f"{name} cell", result["genotype"][kind])
        for kind, name in (("normal", "normal"), ("reduce", "reduction"))
    ]
    return "\n".join(
        [
            *cells,
            f"finished: {result['skips']} skip connections in the normal cell, "
            f"{result['found_params']:,} parameters with 36 channels and 20 cells, entropy of the "
            f"alphas {result['entropy']:.3f} of its maximum; shared weights have "
            f"{TOP1.text(result['top1'])} of {result['count']:,} held-out training images, in "
            f"{format_seconds(result['wall_seconds'])}",
            f"run folder: {folder.path}",
            next_commands(folder.path, config.output_dir, answers=False),
            *([trains] if name in ("digits", "cifar10") else []),  # others' settings are unknown
        ]
    )
