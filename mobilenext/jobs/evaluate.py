"""Evaluation of a classifier or a detector: each image once, for any number of processes."""

import math
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from mobilenext.assembly.data import device_batches, validation_loader
from mobilenext.assembly.detection import (
    box_batches,
    box_validation_loader,
    check_box_data,
    negatives_of,
    only_evaluated,
    rebuilt_detector,
)
from mobilenext.assembly.trained import (
    check_classes,
    evaluation_data,
    images_of,
    is_detector,
    note_differences,
    rebuilt,
)
from mobilenext.config import DataConfig, HasRun, RuntimeConfig, to_yaml
from mobilenext.config.fields import MISSING, check, machine_only, path_field
from mobilenext.config.run import absolute
from mobilenext.data import BoxData, ImageData, Loader, evaluated_indices, relative_name
from mobilenext.errors import InputError
from mobilenext.files import check_output_file, printable, writable, write_whole
from mobilenext.metrics.classification import Observer, score
from mobilenext.metrics.detection import MultiBoxLoss, score_detections
from mobilenext.metrics.detection_report import detection_files, detections_table
from mobilenext.metrics.detection_report import lines_of as detection_lines
from mobilenext.metrics.predictions import (
    MOST_CLASSES,
    ConfusionMatrix,
    Predicted,
    Predictions,
)
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.provenance import provenance
from mobilenext.tables import to_csv
from mobilenext.tables.confusion import (
    lines_of,
    matrix_files,
    mean_class_top1,
)
from mobilenext.tables.predictions import predictions_table
from mobilenext.training.measures import DETECTION
from mobilenext.training.progress import Progress, say
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.weights_files import load_weights, weights_path

ADDED_LATER = ("val_folder", "val_share", "on_bad_box", "readahead")
"""Entries of `data` that are part of the recipe only if they say something; see `added_later`."""


@dataclass
class EvaluateConfig(HasRun):
    """Job `evaluate`."""

    checkpoint: str = path_field(positional=True, runs=True)
    """A run folder (runs/latest is the newest), or its .pt checkpoint or .safetensors file."""
    name: str = "evaluate"
    output_dir: str = machine_only("runs", path=True)
    data: dict[str, Any] = field(default_factory=dict, metadata={"entries_of": DataConfig})
    """Entries of a `DataConfig`; what is null is as in the run, or all is of a chosen group."""
    predictions: str | None = machine_only(None, path=True)
    """CSV file that gets a row for each validation image; null: none."""
    runtime: RuntimeConfig = MISSING

    def __post_init__(self) -> None:
        is_csv = self.predictions is None or self.predictions.lower().endswith(".csv")
        check(is_csv, "predictions", "null, or the path of a .csv file", self.predictions)

    def recipe(self) -> dict[str, Any]:
        """See `HasRun.recipe`; the checkpoint is named by the absolute path of its file."""
        data = {k: v for k, v in self.data.items() if v is not None or k not in ADDED_LATER}
        return {**super().recipe(), "data": data, "checkpoint": absolute(str(self.weights))}

    @property
    def weights(self) -> Path:
        """The file that `checkpoint` means.

        Raises:
            InputError: It is a folder that has none.
        """
        return weights_path(Path(self.checkpoint))


def evaluate(config: EvaluateConfig, process: Process) -> dict[str, Any]:
    """Rebuild a checkpoint's network and print its top-1, top-5 and loss, and accuracy by class.

    Of a detector, average precision and loss, and average precision by class.

    The run folder gets config.yaml, classes.csv, the confusion matrix (see `tables.confusion`) and
    result.json.

    Args:
        config: The job's config.
        process: This process among those of the job.

    Returns:
        What result.json says: accuracies and average precision in per cent, loss in nats.

    Raises:
        InputError: The checkpoint can't be used, its classes are not those of the data, or a file
            can't be written.
    """
    output = None if config.predictions is None else Path(config.predictions)
    if output is not None:
        process.on_main(lambda: check_output_file("predictions", output))
    path = config.weights
    tensors, described = load_weights(path)
    data = evaluation_data(described["data"], config.data)
    if is_detector(described["model"]):
        return _evaluate_detector(tensors, described, data, config, process)
    images = _classified(_images(data, config, process), path, data)
    check_classes(described, path, images, data.name)
    for note in images.notes:
        say(f"note: {note}", process)
    note_differences(described, path, data, process)
    model = described["model"]
    network = rebuilt(model, tensors, path, data.eval_size, data.eval_batch_size).to(process.device)

    with closing(validation_loader(data, images, process)) as loader:
        found = _predict(network, loader, images, data, config, process)
    scores, counts = found.scores, found.counts
    if not math.isfinite(scores["loss"]):
        raise InputError(f"{path}: the loss on {data.name} is {scores['loss']}, no finite number")
    result = {
        "kind": "evaluation",
        "model": model["name"],
        "data": data.name,
        **scores,
        "mean_class_top1": None if counts is None else mean_class_top1(counts),
        "decoder": loader.decoder,
        "checkpoint": str(path),
        **provenance(process),
    }
    folder = RunFolder(config.run_path)

    def leave() -> None:
        if output is not None and found.predicted is not None:
            _write_predictions(output, found.predicted, images)
        folder.create(to_yaml(config))
        if counts is not None:
            folder.write_files(matrix_files(counts, images.classes))
        folder.write_result(result)

    process.on_main(leave)
    say(
        f"{path}: top-1 {scores['top1']:.3f} %, top-5 {scores['top5']:.3f} %, "
        f"loss {scores['loss']:.4f}, {scores['count']} images of {data.name}",
        process,
    )
    if counts is None:
        by_class = (
            f"note: no accuracy by class: {len(images.classes):,} classes, expected at most "
            f"{MOST_CLASSES:,} for their matrix to fit; predictions=FILE.csv has every image"
        )
    else:
        by_class = "\n".join(lines_of(counts, images.classes))
    say(f"{by_class}\nrun folder: {folder.path}", process)
    return result


def _chosen(config: EvaluateConfig) -> bool:
    """Whether the command line names the data's source."""
    return config.data.get("source") is not None


def _images(data: DataConfig, config: EvaluateConfig, process: Process) -> Any:
    """The images to evaluate on, opened on the first process of each machine before the others."""
    return process.first_on_node(lambda: images_of(data, _chosen(config)))


def _classified(images: Any, path: Path, data: DataConfig) -> ImageData:
    """Raise `InputError` if a classifier's data are images with boxes."""
    if isinstance(images, BoxData):
        raise InputError(
            f"{printable(path)} is a classifier, data={printable(data.name)} has images with "
            "boxes: expected images of one class each, or a detector"
        )
    return images


def _evaluate_detector(
    tensors: dict[str, Tensor],
    described: dict[str, Any],
    data: DataConfig,
    config: EvaluateConfig,
    process: Process,
) -> dict[str, Any]:
    """Average precision of a detector, by class; the folder gets what `detect` leaves, too."""
    path, model = config.weights, described["model"]
    if not _chosen(config):
        data = only_evaluated(data, described["classes"])
    images = check_box_data(_images(data, config, process), data.name)
    check_classes(described, path, images, data.name)
    for note in images.notes:
        if note.startswith("val:"):
            say(f"note: {note}", process)
    note_differences(described, path, data, process)
    network = rebuilt_detector(model, tensors, path, data.eval_size, data.eval_batch_size)
    network.to(process.device)
    loss = MultiBoxLoss(network, negatives_of(model, path))  # pyright: ignore[reportArgumentType]
    to_device = box_batches(data, process, config.runtime.channels_last)
    with (
        closing(box_validation_loader(data, images.val, process)) as loader,
        Progress("evaluation", "batches", len(loader), 0, process, lines=False) as progress,
    ):
        found = score_detections(
            network, loader, to_device, process, images.val, len(images.classes), loss,
            shown=progress.through,
        )  # fmt: skip
        _say_unreadable(loader, process)
    if not math.isfinite(found.scores["loss"]):
        raise InputError(f"{path}: the loss on {data.name} is {found.scores['loss']}, not finite")
    result = {
        "kind": "evaluation",
        "task": "detection",
        "model": model["name"],
        "detector": str(model["detector"].get("name")),
        "data": data.name,
        "split": images.split_name,
        "protocol": images.protocol,
        "objects": images.counts["val"],
        **found.scores,
        "decoder": loader.decoder,
        "checkpoint": str(path),
        **provenance(process),
    }
    folder = RunFolder(config.run_path)

    def leave() -> None:
        if config.predictions is not None:
            table = detections_table(found, images.val, images.classes)
            with writable(f"predictions={config.predictions}"):
                write_whole(Path(config.predictions), table)
        folder.create(to_yaml(config))
        folder.write_files(detection_files(found, images)[0])
        folder.write_result(result)

    process.on_main(leave)
    measure = DETECTION[images.protocol]
    lines = [
        f"{path}: {measure.text(found.scores[measure.key])}, loss {found.scores['loss']:.4f}, "
        f"{found.scores['count']} images of {data.name}",
        *detection_lines(found, images.classes),
        f"run folder: {folder.path}",
    ]
    say("\n".join(lines), process)
    return result


class _Found(NamedTuple):
    scores: dict[str, Any]
    """See `score`."""
    counts: np.ndarray | None
    """The confusion matrix; None: there are too many classes."""
    predicted: Predicted | None
    """None: not asked for."""


def _predict(
    network: nn.Module,
    loader: Loader,
    images: ImageData,
    data: DataConfig,
    config: EvaluateConfig,
    process: Process,
) -> _Found:
    """Evaluate the network on all images of the split, and name those that can't be read."""
    countable = len(images.classes) <= MOST_CLASSES
    matrix = ConfusionMatrix(len(images.classes), process.device) if countable else None
    kept = None if config.predictions is None else Predictions()
    observers: list[Observer] = [one for one in (matrix, kept) if one is not None]
    to_device = device_batches(data, process, config.runtime.channels_last)
    split = len(images.val)
    with Progress("evaluation", "batches", len(loader), 0, process, lines=False) as progress:
        scores = score(
            network, loader, to_device, process, split, observers=observers, shown=progress.through
        )
    _say_unreadable(loader, process)
    counts = None if matrix is None else matrix.total(process)
    predicted = None
    if kept is not None:
        read = evaluated_indices(split, process.rank, process.world_size, loader.unreadable)
        predicted = kept.gathered(process, read)
    return _Found(scores, counts, predicted)


def _say_unreadable(loader: Loader, process: Process) -> None:
    """Name the images that any process could not read; all of them call this together."""
    for part in process.gather(loader.unreadable):
        for text in part.values():
            say(f"warning: left out: {text}", process)


def _write_predictions(path: Path, predicted: Predicted, images: ImageData) -> None:
    """Write the table of `predictions`: image, class, and the classes that it was taken for."""
    names = [relative_name(images.val, index) for index in predicted.indices.tolist()]
    labels = images.val.targets(predicted.indices).numpy()
    classes = np.array(images.classes, dtype=object)
    table = predictions_table(
        names,
        classes[labels].tolist(),
        classes[predicted.classes].tolist(),
        predicted.probabilities.tolist(),
    )
    with writable(f"predictions={path}"):
        write_whole(path, to_csv(table))
