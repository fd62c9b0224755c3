"""A trained network as a folder of the Hugging Face hub: weights, timm's config, a model card."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenext.assembly.trained import complete_data, rebuilt_with_cost
from mobilenext.config.fields import check, path_field
from mobilenext.deploy.hub.card import Publication, model_card, network_words
from mobilenext.deploy.hub.timm_entry import (
    TimmEntry,
    check_rebuilt,
    refuse_nested,
    timm_entry,
    write_config,
)
from mobilenext.deploy.hub.trained import Trained, read_trained, weights_file
from mobilenext.deploy.hub.upload import CARD, CONFIG, WEIGHTS, check_output, publish, push
from mobilenext.files import printable
from mobilenext.runtime.distributed import Process
from mobilenext.training.progress import say
from mobilenext.training.weights_files import weights_path


@dataclass
class ExportConfig:
    """Job `export`."""

    checkpoint: str = path_field(positional=True)
    """A run folder (runs/latest is the newest), or its .pt checkpoint or .safetensors file."""
    output: str = path_field()
    """Folder for the files; new, empty, or one that the job has written before."""
    push: str | None = None
    """Repository user/name of the Hugging Face hub that gets them as well; null: none."""
    license: str = "other"
    """Licence of the weights, by the hub's names: apache-2.0, cc-by-nc-4.0, other, ..."""
    data_license: str | None = None
    """Licence of the images; null: what is known of the run's data, by its name."""

    def __post_init__(self) -> None:
        parts = ["user", "name"] if self.push is None else self.push.split("/")
        whole = len(parts) == 2 and all(parts)
        check(whole, "push", "null, or a repository of the hub as user/name", self.push)
        check(bool(self.license.strip()), "license", "a licence's name, or other", self.license)


def export(config: ExportConfig, process: Process) -> dict[str, Any]:
    """Write a checkpoint's network as a folder of the Hugging Face hub, and perhaps upload it.

    The folder has a network that gives the same logits bit by bit when timm rebuilds it: that is
    tried before anything is written.

    Args:
        config: The job's config.
        process: This process; there may be no others.

    Returns:
        `output`, the folder; `files`, their names; `pushed`, the address on the hub, or None.

    Raises:
        InputError: The checkpoint can't be used, its network has arguments that config.json can't
            hold, the folder has other files or can't be written, the upload failed, or there are
            several processes.
    """
    process.require_alone("export")
    output = Path(config.output)
    check_output(output)
    trained = read_trained(weights_path(Path(config.checkpoint)), complete_data)
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
        files = publish(staged, output)
    say(f"{output}: {', '.join(files)} ({_summary(trained)})")
    say(_hint(output, entry))
    pushed = None
    if config.push is not None:
        pushed = push(output, files, config.push)
        say(f"pushed to {pushed}")
    return {"output": str(output), "files": files, "pushed": pushed}


def _summary(trained: Trained) -> str:
    scores = trained.scores
    accuracy = "not evaluated" if scores is None else f"top-1 {scores['top1']:.3f} %"
    what = f"{network_words(trained)}, {printable(trained.data.name)}, {accuracy}"
    return f"{what}, from {printable(trained.path)}"


def _hint(output: Path, entry: TimmEntry | None) -> str:
    if entry is None:
        return f"timm has no such network: {output / CARD} says how to build it"
    registers = "import mobilenext, timm" if entry.ours else "import timm"
    return f'use it: {registers}; timm.create_model("local-dir:{output}", pretrained=True)'
