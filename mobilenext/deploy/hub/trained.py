"""What is known of a trained network: its weights, its scores, and the run that made them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from torch import Tensor, nn

from mobilenext.deploy.hub.markdown import literal
from mobilenext.errors import InputError
from mobilenext.files import printable, read_text
from mobilenext.plain import check_plain
from mobilenext.training.checkpoint import load_checkpoint
from mobilenext.training.progress import say
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.weights_files import check_description, checked_tensors, load_weights

MOST_CONFIG = 1 << 16
"""Bytes of a run's config.yaml."""

CHECKPOINT_ENTRIES = ("network", "ema", "scores", "best", "step", "epoch")
"""Entries of a checkpoint that the model card is made of."""


@dataclass(frozen=True)
class TrainingData:
    """The data of a run: its name, and how its images were made."""

    name: str
    reencoded: bool
    """Whether the training images were encoded again, smaller for instance."""
    image_size: int
    """Height and width of training images, in pixels."""
    eval_size: int
    """Height and width of evaluation images, in pixels."""
    eval_crop_ratio: float
    eval_interpolation: str
    mean: list[float]
    """Channel means in [0, 1], RGB."""
    std: list[float]
    plain: dict[str, Any]
    """All that the run's config says of its data."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> "TrainingData":
        """The data that a complete config of data, as plain values, describes."""
        return cls(
            name=values["name"],
            reencoded=values["reencoded"],
            image_size=values["image_size"],
            eval_size=values["eval_size"],
            eval_crop_ratio=values["eval_crop_ratio"],
            eval_interpolation=values["eval_interpolation"],
            mean=values["mean"],
            std=values["std"],
            plain=values,
        )


@dataclass(frozen=True)
class Trained:
    """A network's weights and what is known of their training.

    Attributes:
        path: The file.
        tensors: Weights by name.
        model: `name`, `network` and `num_classes`, as a checkpoint has them.
        classes: Names of the classes.
        data: The data that it was trained on and evaluated with.
        averaged: Whether the weights are averages over steps.
        scores: Counts of these weights' evaluation; None if there was none.
        when: Epochs and steps, in words; "" if the file does not say.
        highest: Whether it is the epoch with the run's highest top-1, and not its last one.
        init_from: `path` and `sha256` of the weights that training began with, if it was given any.
        config: The run's `TrainConfig` as plain values; empty if it is not there.
        result: The run's result.json; empty if it is not there.
    """

    path: Path
    tensors: dict[str, Tensor]
    model: dict[str, Any]
    classes: list[str]
    data: TrainingData
    averaged: bool
    scores: dict[str, Any] | None
    when: str
    highest: bool
    init_from: dict[str, str] | None
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


def read_trained(path: Path, complete: Callable[[dict[str, Any]], dict[str, Any]]) -> Trained:
    """Read a checkpoint or final weights, and config and result of their run if they lie beside.

    Where a checkpoint has averaged (EMA) weights, it is these.

    Args:
        path: The file.
        complete: Checks the config of data that the file has, and fills in what is not there.

    Raises:
        InputError: The file is missing, damaged or not one of this package, or what lies beside it
            is damaged.
    """
    if path.suffix == ".safetensors":
        tensors, described = load_weights(path)
        scores = described.get("scores", {})
        averaged = "ema" in scores
    else:
        described = load_checkpoint(path)
        check_description(described, path)
        missing = [key for key in CHECKPOINT_ENTRIES if key not in described]
        if missing or not {"step", "epoch"} <= described["best"].keys():
            raise InputError(
                f"{printable(path)}: expected a checkpoint of training, got one without "
                f"{', '.join(missing) or 'its best epoch'}"
            )
        averaged = described["ema"] is not None
        tensors = checked_tensors(described["ema" if averaged else "network"], path)
        scores = described["scores"] if _evaluated(described) else {}
    config, result = _run_beside(path, described)
    epochs = config.get("epochs")
    if "epoch" not in described:  # final weights
        when = literal(f"{epochs} of {epochs}") if epochs else ""
    else:
        when = f"{described['epoch']}" + (f" of {literal(epochs)}" if epochs else "")
        if not _evaluated(described):
            when += f", and a part of the next one (step {described['step']:,})"
    best = described.get("best", {})
    return Trained(
        path=path,
        tensors=tensors,
        model=described["model"],
        classes=list(described["classes"]),
        data=TrainingData.of(complete(described["data"])),
        averaged=averaged,
        scores=scores.get("ema" if averaged else "val"),
        when=when,
        highest=best.get("step") == described.get("step", -1) and best.get("epoch") != epochs,
        init_from=described.get("init_from"),
        config=config,
        result=result,
    )


def weights_file(network: nn.Module, trained: Trained) -> bytes:
    """A file of weights in safetensors, with which `scripts/evaluate.py` can do as with a run's.

    Args:
        network: The network with its weights.
        trained: What the file's metadata say of it; paths of this machine are left out.
    """
    data = {**trained.data.plain, "root": None}
    if "root" in data["source"]:
        data["source"] = {**data["source"], "root": None}
    described: dict[str, Any] = {"model": trained.model, "classes": trained.classes, "data": data}
    if trained.scores is not None:
        described["scores"] = {"ema" if trained.averaged else "val": trained.scores}
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    return safetensors.torch.save(tensors, {"format": "pt", "mobilenext": json.dumps(described)})


def _evaluated(state: dict[str, Any]) -> bool:
    """Whether a checkpoint's scores are those of its weights: it may be from within an epoch."""
    steps = state.get("train_images", 0) // state["data"].get("global_batch_size", 1)
    return state["step"] in (state["best"]["step"], state["epoch"] * steps)


def _run_beside(path: Path, described: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and result that lie beside a file, if they are of its network and data."""
    result = RunFolder(path.parent).result() or {}
    config = result.get("config") if result else None
    if config is None:
        try:
            config = yaml.safe_load(read_text(path.parent / "config.yaml", MOST_CONFIG))
        except FileNotFoundError:
            return {}, {}
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise InputError(
                f"{path.parent / 'config.yaml'}: could not read it ({error}); fix it, or move it "
                "away: the card then goes without the recipe"
            ) from error
    check_plain(config, "the config of a run", printable(path.parent))
    try:
        same_run = (
            config["model"]["network"] == described["model"]["network"]
            and config["data"]["name"] == described["data"]["name"]
        )
    except (KeyError, TypeError):
        same_run = False
    if not same_run:
        say(f"note: what lies beside {path} is of another run, and stays out of the card")
        return {}, {}
    return config, result
