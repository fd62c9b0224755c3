"""A trained network for elsewhere: the hub and timm, ONNX Runtime, ExecuTorch, torch.export."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilenext.assembly.data import device_batches, evaluation_transform
from mobilenext.assembly.detection import (
    detector_words,
    rebuilt_either_with_cost,
)
from mobilenext.assembly.trained import (
    complete_data,
    evaluation_data,
    is_detector,
    pictures_of,
    rebuilt_with_cost,
)
from mobilenext.config.fields import check, check_choice, path_field
from mobilenext.deploy.detector_graph import expected_outputs, postprocessing_of
from mobilenext.deploy.folder import BESIDE, publish, write_beside
from mobilenext.deploy.formats import (
    BATCHES,
    FORMATS,
    Format,
    check_answers,
    check_packages,
    load,
    load_outputs,
    write,
)
from mobilenext.deploy.hub.card import Publication, model_card, network_words
from mobilenext.deploy.hub.timm_entry import (
    TimmEntry,
    check_rebuilt,
    refuse_nested,
    timm_entry,
    write_config,
)
from mobilenext.deploy.hub.trained import Trained, read_trained, weights_file
from mobilenext.deploy.hub.upload import CARD, CONFIG, FILES, WEIGHTS, push
from mobilenext.deploy.preprocessing import PREPROCESSING, Preprocessing
from mobilenext.errors import InputError
from mobilenext.files import check_output_folder, printable
from mobilenext.runtime.distributed import Process
from mobilenext.training.measures import DETECTION, TOP1, measure_of
from mobilenext.training.progress import say
from mobilenext.training.weights_files import weights_path


@dataclass
class ExportConfig:
    """Job `export`."""

    checkpoint: str = path_field(positional=True, runs=True)
    """A run folder (runs/latest is the newest), or its .pt checkpoint or .safetensors file."""
    output: str = path_field()
    """Folder for the files; new, empty, or one that the job has written before."""
    format: str = "hub"
    """hub (weights, timm's config, a card), onnx, executorch (phones), or torch (torch.export)."""
    push: str | None = None
    """Repository user/name of the Hugging Face hub that gets them as well; null: none."""
    license: str = "other"
    """Licence of the weights, by the hub's names: apache-2.0, cc-by-nc-4.0, other, ..."""
    data_license: str | None = None
    """Licence of the images; null: what is known of the run's data, by its name."""

    def __post_init__(self) -> None:
        check_choice("format", self.format, ("hub", *FORMATS))
        alone = self.push is None or self.format == "hub"
        check(alone, "push", f"null with format={self.format}: the hub gets format=hub", self.push)
        parts = ["user", "name"] if self.push is None else self.push.split("/")
        whole = len(parts) == 2 and all(parts)
        check(whole, "push", "null, or a repository of the hub as user/name", self.push)
        check(bool(self.license.strip()), "license", "a licence's name, or other", self.license)


FILE_NAMES = (*(form.file for form in FORMATS.values()), *BESIDE)
"""What an export of a file leaves in its folder: one of the formats, and what tells of its use."""


def export(config: ExportConfig, process: Process) -> dict[str, Any]:
    """Write a checkpoint's network for the Hugging Face hub, or as a file of another runtime.

    Nothing is written before it has been read back and has given the network's answers: timm's
    network the same logits bit by bit, a file's runtime the same but for rounding, on real
    pictures. A detector's file gives scores and boxes; it is for runtimes only.

    Args:
        config: The job's config.
        process: This process; there may be no others.

    Returns:
        `output`, the folder; `files`, their names; for the hub `pushed`, the address there, or
        None; for a file `difference`, the largest of its outputs, of the largest value.

    Raises:
        InputError: The checkpoint can't be used, its network can't be written so, an optional
            package is missing, the answers are others, the folder has other files or can't be
            written, the upload failed, or there are several processes.
    """
    process.require_alone("export")
    if config.format == "hub":
        return _export_for_the_hub(config)
    return _export_file(config, FORMATS[config.format], process)


def _export_for_the_hub(config: ExportConfig) -> dict[str, Any]:
    output = Path(config.output)
    check_output_folder("output", output, FILES)
    trained = read_trained(weights_path(Path(config.checkpoint)), complete_data)
    if is_detector(trained.model):
        raise InputError(
            f"format=hub: expected a classifier, got a detector, {_words(trained)}: timm and the "
            f"hub's card know classifiers only; choose format={', format='.join(FORMATS)}"
        )
    node, image_size = trained.model["network"], trained.data.eval_size
    refuse_nested(node, trained.path)
    network, cost = rebuilt_with_cost(trained.model, trained.tensors, trained.path, image_size)
    entry = timm_entry(node)
    publication = Publication(
        config.push, output.resolve().name, config.license, config.data_license
    )
    with tempfile.TemporaryDirectory() as staging:
        staged = Path(staging)
        (staged / WEIGHTS).write_bytes(weights_file(network, trained))
        if entry is not None:
            write_config(staged / CONFIG, entry, trained)
            check_rebuilt(staged, network, image_size)
        (staged / CARD).write_bytes(model_card(publication, trained, entry, cost))
        files = publish(staged, output, FILES)
    say(f"{output}: {', '.join(files)} ({_summary(trained)})")
    say(_hint(output, entry))
    pushed = None
    if config.push is not None:
        pushed = push(output, files, config.push)
        say(f"pushed to {pushed}")
    return {"output": str(output), "files": files, "pushed": pushed}


def _export_file(config: ExportConfig, form: Format, process: Process) -> dict[str, Any]:
    output = Path(config.output)
    check_output_folder("output", output, FILE_NAMES)
    check_packages(form, f"format={form.name}")
    trained = read_trained(weights_path(Path(config.checkpoint)), complete_data)
    data = evaluation_data(trained.data.plain, {})
    network, _ = rebuilt_either_with_cost(
        trained.model, trained.tensors, trained.path, data.eval_size
    )
    preprocessing = Preprocessing.of(
        evaluation_transform(data), data.mean, data.std, trained.classes,
        postprocessing_of(network),
    )  # fmt: skip
    detects = preprocessing.postprocessing is not None
    pictures, what = pictures_of(data, sum(BATCHES))
    pixels = torch.from_numpy(pictures)
    with torch.no_grad():
        to_device = device_batches(data, process, channels_last=False)
        images, _ = to_device(pixels, torch.zeros(len(pixels)))
        expected = expected_outputs(network.to(process.device), images)
    planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    with tempfile.TemporaryDirectory() as staging:
        staged = Path(staging)
        write(form, network.cpu(), preprocessing, planes, staged / form.file)
        opened = load_outputs if detects else load
        found = opened(staged / form.file, max(1, process.cpus))
        difference = check_answers(form, found, expected, planes)
        example = write_beside(staged, preprocessing)
        files = publish(staged, output, FILE_NAMES)
    size = (output / form.file).stat().st_size / 1e6
    say(f"{output}: {', '.join(files)} ({_summary(trained)})")
    say(
        f"{form.file} ({size:.2f} MB) was read back by {form.runtime}: the same answers on "
        f"{len(pictures)} {what}, {'scores and boxes' if detects else 'logits'} within "
        f"{difference:.0e} of the largest"
    )
    if detects:
        say(
            f"decoding and softmax are in the graph, with the default boxes; non-maximum "
            f"suppression is outside: {example} has it in numpy, {PREPROCESSING} its thresholds"
        )
    batch = "any batch" if form.any_batch else "one image at a time"
    say(f"use it ({batch}): python {output / example} PICTURE ...")
    return {"output": str(output), "files": files, "difference": difference}


def _summary(trained: Trained) -> str:
    scores = trained.scores or {}
    measure = DETECTION.get(str(trained.result.get("protocol")), measure_of(scores))
    worth = "not evaluated"
    if measure is not None and measure.key in scores:
        value = scores[measure.key]
        worth = f"top-1 {value:.3f} %" if measure is TOP1 else measure.text(value)
    what = f"{_words(trained)}, {printable(trained.data.name)}, {worth}"
    return f"{what}, from {printable(trained.path)}"


def _words(trained: Trained) -> str:
    if is_detector(trained.model):
        return printable(detector_words(trained.model))
    return network_words(trained)


def _hint(output: Path, entry: TimmEntry | None) -> str:
    if entry is None:
        return f"timm has no such network: {output / CARD} says how to build it"
    registers = "import mobilenext, timm" if entry.ours else "import timm"
    return f'use it: {registers}; timm.create_model("local-dir:{output}", pretrained=True)'
