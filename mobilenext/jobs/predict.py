"""What a trained or exported network answers to pictures: lines, CSV, JSON, and a page."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch

from mobilenext.assembly.data import device_batches, evaluation_transform
from mobilenext.assembly.detection import detector_words, rebuilt_detector
from mobilenext.assembly.trained import complete_data, evaluation_data, is_detector, rebuilt
from mobilenext.config import DataConfig, RuntimeConfig
from mobilenext.config.fields import MISSING, check, path_field, path_list
from mobilenext.data.encoded import FILTERS
from mobilenext.data.pillow import decode_bytes
from mobilenext.data.sources import is_image
from mobilenext.data.transforms import RESAMPLING, EvalTransform
from mobilenext.deploy.answers import Answer, sheet, thumbnail, to_json
from mobilenext.deploy.formats import BY_SUFFIX, load
from mobilenext.deploy.hub.card import network_words
from mobilenext.deploy.hub.trained import Trained, read_trained
from mobilenext.deploy.objects_page import (
    SHOWN_SIDE,
    Objects,
    drawn,
    objects_csv,
    objects_json,
    objects_sheet,
)
from mobilenext.deploy.preprocessing import PREPROCESSING, read_preprocessing
from mobilenext.errors import InputError
from mobilenext.files import check_output_folder, printable, read_regular, writable, write_whole
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.precision import ieee_float32
from mobilenext.tables import to_csv
from mobilenext.tables.predictions import predictions_table
from mobilenext.training.progress import Progress, say
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.weights_files import weights_path

FILES = ("predictions.csv", "predictions.json", "predictions.html")
TOP = 5
BATCH = 32
MOST_LINES = 20
"""Pictures of which a line is printed."""


@dataclass
class PredictConfig:
    """Job `predict`."""

    checkpoint: str = path_field(positional=True, runs=True)
    """A run folder (runs/latest is the newest), its .pt or .safetensors file, or an exported
    network (.onnx, .pte, .pt2) with preprocessing.json beside it, or their folder."""
    images: list[str] = path_list(MISSING, positional=True)
    """Pictures, and folders that are searched for pictures. A picture in a folder that is named
    like a class is known to be of that class."""
    output: str = path_field("predictions")
    """Folder for predictions.csv, .json and .html (a page of the pictures)."""
    shown: int = 400
    """Pictures in the page, wrong ones first; the other two files have all."""
    threshold: float = 0.3
    """Of a detector: least score of an object."""
    runtime: RuntimeConfig = MISSING

    def __post_init__(self) -> None:
        check(0 <= self.threshold < 1, "threshold", "a score in [0, 1)", self.threshold)
        check(self.shown >= 0, "shown", "a number of pictures from 0 on", self.shown)


@dataclass(frozen=True)
class _Network:
    """A network with all that it takes to classify pictures."""

    classes: tuple[str, ...]
    transform: EvalTransform
    logits: Callable[[np.ndarray], np.ndarray]
    """Of pixels, uint8 (N, image_size, image_size, 3)."""


def predict(config: PredictConfig, process: Process) -> dict[str, Any]:
    """Classify pictures, print the five most probable classes of each, and write them.

    A detector finds objects instead, and the page shows their boxes.

    Args:
        config: The job's config.
        process: This process; there may be no others.

    Returns:
        Of a classifier `images`, the number classified; `unreadable`, that of pictures which could
        not be read; `known`, that of pictures whose class their folder says; `right`, that of those
        answered right. Of a detector `images`, `unreadable`, and `objects`, the number found.

    Raises:
        InputError: The network can't be used, there are no pictures or none can be read, the folder
            has other files or can't be written, or there are several processes.
    """
    process.require_alone("predict")
    output = Path(config.output)
    check_output_folder("output", output, FILES)
    paths = list(_pictures(config.images))
    opened = _opened(Path(config.checkpoint), config, process)
    if isinstance(opened, _Detector):
        return _find_objects(paths, opened, config, output, process)
    return _classify(paths, opened, config, output, process)


def _classify(
    paths: list[Path], network: _Network, config: PredictConfig, output: Path, process: Process
) -> dict[str, Any]:
    """Classify pictures, print and write the answers."""
    found, unreadable = _answers(paths, network, config.shown, process)
    for text in unreadable:
        say(f"warning: left out: {text}")
    if not found:
        raise InputError(f"none of {len(paths)} pictures can be read: see the warnings above")
    known = [one for one in found if one.label is not None]
    right = sum(not one.wrong for one in known)
    summary = _summary(len(found), len(known), right, len(unreadable))
    shown = sorted(found, key=lambda one: not one.wrong)[: config.shown]
    page = sheet(shown, f"Predictions of {config.checkpoint}", [summary, *_left_out(found, shown)])
    table = predictions_table(
        [one.image for one in found],
        [one.label or "" for one in found] if known else None,
        [one.classes for one in found],
        [one.probabilities for one in found],
    )
    _leave(output, (to_csv(table), to_json(found), page), [one.line() for one in found], summary)
    return {"images": len(found), "unreadable": len(unreadable), "known": len(known),
            "right": right}  # fmt: skip


def _leave(output: Path, texts: Sequence[str], lines: Sequence[str], summary: str) -> None:
    """Write the files, and print the first lines of the answers."""
    with writable(f"output={output}"):
        for name, text in zip(FILES, texts, strict=True):
            write_whole(output / name, text)
    say("\n".join(lines[:MOST_LINES]))
    if len(lines) > MOST_LINES:
        say(f"... and {len(lines) - MOST_LINES:,} more in the files")
    say(f"{summary}\n{output}: {', '.join(FILES)}")


def _answers(
    paths: list[Path], network: _Network, shown: int, process: Process
) -> tuple[list[Answer], list[str]]:
    """Answers to the pictures that can be read, and why the others can't be.

    The first `shown` wrong ones and the first `shown` others keep a thumbnail.
    """
    found: list[Answer] = []
    unreadable: list[str] = []
    pictured = {True: 0, False: 0}
    batches = [paths[first : first + BATCH] for first in range(0, len(paths), BATCH)]
    with (
        Progress("pictures", "batches", len(batches), 0, process, lines=False) as bar,
        ThreadPoolExecutor(max(1, process.cpus)) as threads,
    ):
        for batch in bar.through(batches):
            read = list(threads.map(lambda path: _read(path, network.transform), batch))
            unreadable += [one for one in read if isinstance(one, str)]
            sound = [
                (path, *one)
                for path, one in zip(batch, read, strict=True)
                if isinstance(one, tuple)
            ]
            if not sound:
                continue
            logits = network.logits(np.stack([pixels for _, pixels, _ in sound]))
            probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
            ranking = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
            for (path, _, small), row, order in zip(
                sound, probabilities.tolist(), ranking.tolist(), strict=True
            ):
                one = Answer(
                    str(path), _label(path, network.classes),
                    tuple(network.classes[index] for index in order),
                    tuple(row[index] for index in order), small,
                )  # fmt: skip
                pictured[one.wrong] += 1
                kept = pictured[one.wrong] <= shown
                found.append(one if kept else dataclasses.replace(one, thumbnail=b""))
    return found, unreadable


def _pictures(given: Iterable[str]) -> Iterator[Path]:
    """Files as they are, folders searched, in the order of their names.

    Raises:
        InputError: Something is not there, or a folder has no pictures.
    """
    count = 0
    for text in given:
        path = Path(text)
        if path.is_dir():
            before = count
            for folder, folders, names in os.walk(path):
                folders.sort()
                for name in sorted(filter(is_image, names)):
                    count += 1
                    yield Path(folder, name)
            if count == before:
                raise InputError(f"images={printable(text)}: expected pictures in it, found none")
        elif path.exists():
            count += 1
            yield path
        else:
            raise InputError(
                f"images={printable(text)}: expected a picture or a folder of pictures, found "
                "nothing there"
            )
    if not count:
        raise InputError("images=[]: expected pictures, or folders of pictures")


def _label(path: Path, classes: tuple[str, ...]) -> str | None:
    return path.parent.name if path.parent.name in classes else None


def _opened(path: Path, config: PredictConfig, process: Process) -> "_Network | _Detector":
    """The network of a run or of an exported file, or a run's detector."""
    path = _exported_in(path)
    if path.suffix in BY_SUFFIX and path.is_file():
        say(f"network: {printable(path)}")
        how = read_preprocessing(path.parent)
        runner = load(path, max(1, process.cpus))
        transform = EvalTransform(how.image_size, how.short_side, how.interpolation)
        return _Network(
            how.classes, transform,
            lambda pixels: runner(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))),
        )  # fmt: skip
    trained = read_trained(weights_path(path), complete_data)
    say(_network_line(trained))
    data = evaluation_data(trained.data.plain, {})
    if is_detector(trained.model):
        return _opened_detector(trained, data, config, process)
    network = rebuilt(trained.model, trained.tensors, trained.path, data.eval_size, BATCH)
    network.to(process.device)
    to_device = device_batches(data, process, config.runtime.channels_last)

    def logits(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad(), ieee_float32():  # as evaluation does
            images, _ = to_device(torch.from_numpy(pixels), torch.zeros(len(pixels)))
            return network(images).float().cpu().numpy()

    return _Network(tuple(trained.classes), evaluation_transform(data), logits)


def _exported_in(path: Path) -> Path:
    """The one exported network of a folder that has `preprocessing.json`; else the path itself."""
    if not (path / PREPROCESSING).is_file():
        return path
    found = [one for one in sorted(path.iterdir()) if one.suffix in BY_SUFFIX]
    if len(found) > 1:
        names = ", ".join(printable(one) for one in found)
        raise InputError(f"{printable(path)}: expected one exported network, got several: {names}")
    return found[0] if found else path


def _network_line(trained: Trained) -> str:
    """Which network answers: `runs/latest` does not say."""
    detects = is_detector(trained.model)
    what = detector_words(trained.model) if detects else network_words(trained)
    epoch = f", epoch {trained.when}" if trained.when else ""
    folder = RunFolder(trained.path.parent)
    unfinished = folder.sessions.exists() and folder.result() is None
    still = " (the run is not finished)" if unfinished else ""
    return f"network: {printable(what)}{epoch}, from {printable(trained.path)}{still}"


# ---- detectors ----


@dataclass(frozen=True)
class _Detector:
    """A detector with all that it takes to find objects in pictures."""

    classes: tuple[str, ...]
    image_size: int
    resampling: PIL.Image.Resampling
    detections: Callable[[np.ndarray], list[dict[str, torch.Tensor]]]
    """Of pixels, uint8 (N, image_size, image_size, 3); boxes in these pixels."""


def _opened_detector(
    trained: Trained, data: DataConfig, config: PredictConfig, process: Process
) -> _Detector:
    network = rebuilt_detector(trained.model, trained.tensors, trained.path, data.eval_size, BATCH)
    network.to(process.device)
    to_device = device_batches(data, process, config.runtime.channels_last)

    def detections(pixels: np.ndarray) -> list[dict[str, torch.Tensor]]:
        with torch.no_grad(), ieee_float32():  # as evaluation does
            images, _ = to_device(torch.from_numpy(pixels), torch.zeros(len(pixels)))
            return network.detections(*network(images))  # pyright: ignore[reportCallIssue]

    resampling = RESAMPLING[FILTERS.index(data.eval_interpolation)]
    return _Detector(tuple(trained.classes), data.eval_size, resampling, detections)


def _find_objects(
    paths: list[Path], detector: _Detector, config: PredictConfig, output: Path, process: Process
) -> dict[str, Any]:
    """Find objects in pictures, print and write them."""
    found: list[Objects] = []
    unreadable: list[str] = []
    batches = [paths[first : first + BATCH] for first in range(0, len(paths), BATCH)]
    with (
        Progress("pictures", "batches", len(batches), 0, process, lines=False) as bar,
        ThreadPoolExecutor(max(1, process.cpus)) as threads,
    ):
        for batch in bar.through(batches):
            read = list(threads.map(lambda path: _square(path, detector), batch))
            unreadable += [one for one in read if isinstance(one, str)]
            squares = [one for one in read if isinstance(one, _Square)]
            if squares:
                found += _objects_in(squares, detector, config, kept=config.shown - len(found))
    for text in unreadable:
        say(f"warning: left out: {text}")
    if not found:
        raise InputError(f"none of {len(paths)} pictures can be read: see the warnings above")
    objects = sum(len(one.scores) for one in found)
    noun = "object" if objects == 1 else "objects"
    summary = (
        f"{objects:,} {noun} with a score of at least {config.threshold:g} in "
        f"{_summary(len(found), 0, 0, len(unreadable))}"
    )
    left_out = len(found) - sum(bool(one.picture) for one in found)
    more = [f"{left_out:,} more pictures are in the other two files."] if left_out else []
    page = objects_sheet(found, f"Objects found by {config.checkpoint}", [summary, *more])
    texts = (objects_csv(found), objects_json(found), page)
    _leave(output, texts, [one.line() for one in found], summary)
    return {"images": len(found), "unreadable": len(unreadable), "objects": objects}


class _Square(NamedTuple):
    """A picture as a detector takes it, and as a page shows it."""

    path: Path
    pixels: np.ndarray
    size: tuple[int, int]
    """Width and height of the picture, in pixels."""
    small: PIL.Image.Image


def _square(path: Path, detector: _Detector) -> _Square | str:
    """A picture squeezed to a square, or why it can't be read."""
    size = detector.image_size
    try:
        image = decode_bytes(read_regular(path), printable(path))
    except (InputError, OSError) as error:
        return str(error)
    pixels = np.asarray(image.resize((size, size), detector.resampling))
    small = image.copy()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return _Square(path, pixels, image.size, small)


def _objects_in(
    images: list[_Square],
    detector: _Detector,
    config: PredictConfig,
    kept: int,
) -> list[Objects]:
    """What is found in some pictures; the first `kept` of them are drawn."""
    answers = []
    found = detector.detections(np.stack([image.pixels for image in images]))
    for number, (image, one) in enumerate(zip(images, found, strict=True)):
        sure = one["scores"] >= config.threshold
        scale = np.tile(image.size, 2) / detector.image_size
        labels: list[int] = one["labels"][sure].tolist()
        answer = Objects(
            str(image.path), tuple(labels), tuple(detector.classes[label] for label in labels),
            tuple(one["scores"][sure].tolist()), one["boxes"][sure].cpu().double().numpy() * scale,
        )  # fmt: skip
        if number < kept:
            answer = dataclasses.replace(answer, picture=drawn(image.small, image.size, answer))
        answers.append(answer)
    return answers


def _read(path: Path, transform: EvalTransform) -> tuple[np.ndarray, bytes] | str:
    """A picture's pixels and its thumbnail, or why it can't be read."""
    try:
        image = decode_bytes(read_regular(path), printable(path))
        return transform(image).numpy(), thumbnail(image)
    except (InputError, OSError) as error:
        return str(error)


def _summary(count: int, known: int, right: int, unreadable: int) -> str:
    texts = [f"{count:,} picture{'' if count == 1 else 's'}"]
    if known:
        texts.append(
            f"{right:,} of {known:,} with a known class right ({100 * right / known:.2f} %)"
        )
    if unreadable:
        texts.append(f"{unreadable:,} could not be read")
    return ", ".join(texts)


def _left_out(found: list[Answer], shown: list[Answer]) -> list[str]:
    count = len(found) - len(shown)
    return [f"{count:,} more are in predictions.csv and predictions.json."] if count else []
