"""Evaluation of a trained network: each image exactly once, for any number of processes."""

import math
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilenext.assembly.data import device_batches, validation_loader
from mobilenext.assembly.trained import (
    check_classes,
    evaluation_data,
    images_of,
    note_differences,
    rebuilt,
)
from mobilenext.config import DataConfig, HasRun, RuntimeConfig, to_yaml
from mobilenext.config.fields import MISSING, machine_only, path_field
from mobilenext.config.run import absolute
from mobilenext.errors import InputError
from mobilenext.metrics.classification import score
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.provenance import provenance
from mobilenext.training.progress import Progress, say
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.weights_files import load_weights, weights_path


@dataclass
class EvaluateConfig(HasRun):
    """Job `evaluate`."""

    checkpoint: str = path_field(positional=True)
    """A run folder, or a .pt checkpoint or .safetensors file of a run; see `weights_path`."""
    name: str = "evaluate"
    output_dir: str = machine_only("runs", path=True)
    data: dict[str, Any] = field(default_factory=dict, metadata={"entries_of": DataConfig})
    """Entries of a `DataConfig`; what is null is as in the run, or all is of a chosen group."""
    runtime: RuntimeConfig = MISSING

    def recipe(self) -> dict[str, Any]:
        """See `HasRun.recipe`; the checkpoint is named by the absolute path of its file."""
        return {**super().recipe(), "checkpoint": absolute(str(self.weights))}

    @property
    def weights(self) -> Path:
        """The file that `checkpoint` means.

        Raises:
            InputError: It is a folder that has none.
        """
        return weights_path(Path(self.checkpoint))


def evaluate(config: EvaluateConfig, process: Process) -> dict[str, Any]:
    """Rebuild a checkpoint's network and print its top-1, top-5 and loss.

    The run folder gets config.yaml and result.json.

    Args:
        config: The job's config.
        process: This process among those of the job.

    Returns:
        What result.json says: accuracies in per cent, loss in nats.

    Raises:
        InputError: The checkpoint can't be used, or its classes are not those of the data.
    """
    path = config.weights
    tensors, described = load_weights(path)
    data = evaluation_data(described["data"], config.data)
    images = images_of(data, chosen=config.data.get("source") is not None)
    check_classes(described, path, images, data.name)
    for note in images.notes:
        say(f"note: {note}", process)
    note_differences(described, path, data, process)
    model = described["model"]
    network = rebuilt(model, tensors, path, data.eval_size, data.eval_batch_size).to(process.device)

    to_device = device_batches(data, process, config.runtime.channels_last)
    with (
        closing(validation_loader(data, images, process)) as loader,
        Progress("evaluation", "batches", len(loader), 0, process, lines=False) as progress,
    ):
        scores = score(network, loader, to_device, process, len(images.val), shown=progress.through)
    assert scores is not None  # nobody interrupts it
    if not math.isfinite(scores["loss"]):
        raise InputError(f"{path}: the loss on {data.name} is {scores['loss']}, no finite number")
    for part in process.gather(loader.unreadable):
        for text in part.values():
            say(f"warning: left out: {text}", process)
    result = {
        "model": model["name"],
        "data": data.name,
        **scores,
        "decoder": loader.decoder,
        "checkpoint": str(path),
        **provenance(process),
    }
    folder = RunFolder(config.run_path)
    process.on_main(lambda: folder.create(to_yaml(config)))
    process.on_main(lambda: folder.write_result(result))
    say(
        f"{path}: top-1 {scores['top1']:.3f} %, top-5 {scores['top5']:.3f} %, "
        f"loss {scores['loss']:.4f}, {scores['count']} images of {data.name}",
        process,
    )
    return result
