"""Files with weights: final ones as safetensors, those in checkpoints, and those of other origin.

Whatever a file holds is data: tensors by name, and a description whose entries are checked.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from mobilenext.errors import InputError, first_line
from mobilenext.files import open_regular, printable, read_regular, what_is, write_atomically
from mobilenext.plain import check_plain
from mobilenext.training.checkpoint import is_sealed, load_checkpoint, unpickled

MOST_WHY = 300
"""Characters of a list of names that do not fit."""
ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model",
           "model_state_dict")  # fmt: skip
"""Entries of checkpoints in which trainers keep weights, averages first: timm's, torchvision's and
others' names; the first entry that has weights counts."""

MOST_CLASSES = 1 << 20
MOST_NAME, MOST_DOTS, MOST_NAMES = 1_000, 64, 1 << 24
"""Characters of a tensor's or a class's name, levels of a tensor's, characters of all classes'."""


def save_weights(path: Path, network: nn.Module, description: dict[str, Any]) -> None:
    """Write a network's weights as safetensors, with a JSON description as metadata."""
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    data = safetensors.torch.save(tensors, {"mobilenext": json.dumps(description)})
    write_atomically(path, lambda file: file.write(data))


IN_RUNS = ("best.pt", "model.safetensors")
"""Files of a run folder that stand for its network, the first one that is there."""


EXPORTED = (".onnx", ".pte", ".pt2")
"""Suffixes of what scripts/export.py and scripts/quantize.py write."""


def weights_path(given: Path, names: Sequence[str] = IN_RUNS) -> Path:
    """The file with weights that a path means: itself, or a file of the run folder that it is.

    Args:
        given: A file, which need not be there, or a run folder.
        names: What to take of a run folder; the first that it has.

    Raises:
        InputError: It is a folder that has none of them, or an exported network.
    """
    if not given.is_dir():
        if given.suffix in EXPORTED:
            raise InputError(
                f"{printable(given)}: expected a checkpoint or weights of training, got a network "
                "that was exported from them: give that run's folder or its best.pt"
            )
        return given
    for name in names:
        if (given / name).is_file():
            return given / name
    have = sorted(item.name for item in given.iterdir() if not item.name.startswith("."))
    found = f"a folder with {', '.join(have[:5])}" if have else "an empty folder"
    others = [given / name for name in have if name.endswith((".pt", ".safetensors"))]
    others += [path for name in names for path in sorted(given.glob(f"*/{name}"))]
    advice = f"give {others[0]}" if others else "give a run folder, runs/NAME/HASH, or a file"
    raise InputError(
        f"{printable(given)}: expected a run folder with {' or '.join(names)}, or a file with "
        f"weights, got {printable(found)}{', ...' if len(have) > 5 else ''}; {printable(advice)}"
    )


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights to evaluate and their description, from a checkpoint or a safetensors file.

    Where a checkpoint has averaged (EMA) weights, it is these.

    Raises:
        InputError: The file is missing, damaged or not one of this package.
    """
    if path.suffix != ".safetensors":
        state = load_checkpoint(path)
        check_description(state, path)
        description = {key: state[key] for key in ("model", "classes", "data")}
        return checked_tensors(state.get("ema") or state.get("network"), path), description
    tensors, metadata = _read_safetensors(path)
    if "mobilenext" not in metadata:
        raise InputError(
            f"{printable(path)}: expected weights written by mobilenext; the file does not say "
            "which network it belongs to"
        )
    try:
        described = json.loads(metadata["mobilenext"])
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{printable(path)}: expected a description of the network as JSON in its metadata, "
            f"could not read it ({error})"
        ) from error
    check_description(described, path)
    return checked_tensors(tensors, path), described


def check_description(described: Any, path: Path) -> None:
    """Raise `InputError` unless a file says of its network what `save_weights` writes.

    Args:
        described: A checkpoint, or the description of final weights.
        path: The file, for the message.
    """
    what = "the description of a network as training writes it"
    plain = ("model", "data", "scores", "best", "init_from", "step", "epoch", "train_images")
    if isinstance(described, dict):
        given = {key: described[key] for key in plain if key in described}
        check_plain(given, what, printable(path))
    try:
        model, classes, data = (described[key] for key in ("model", "classes", "data"))
        count = model["num_classes"]
        wrong = {
            "model.name": not isinstance(model["name"], str),
            "model.network": not isinstance(model["network"]["_target_"], str),
            "model.num_classes": type(count) is not int or not 1 <= count <= MOST_CLASSES,
            "classes": not _are_texts(classes) or len(classes) != count,
            "data.name": not isinstance(data["name"], str),
            "data.source": not isinstance(data["source"]["_target_"], str),
            "scores": not _are_numbers(described.get("scores", {})),
            "best": not _are_numbers({"": described.get("best", {})}),
            "data.global_batch_size": type(data.get("global_batch_size", 1)) is not int
            or data.get("global_batch_size", 1) < 1,
            **{
                key: type(described.get(key, 0)) is not int
                for key in ("step", "epoch", "train_images")
            },
        }
    except (KeyError, TypeError, AttributeError) as error:
        wrong = {f"{error}": True}
    named = [key for key, is_wrong in wrong.items() if is_wrong]
    if named:
        raise InputError(
            f"{printable(path)}: expected the description of a network as training writes it "
            f"(model, classes, data), got another one: {', '.join(named)}"
        )


def _are_texts(values: Any) -> bool:
    return (
        isinstance(values, list)
        and all(isinstance(value, str) and len(value) <= MOST_NAME for value in values)
        and sum(map(len, values)) <= MOST_NAMES
    )


def _are_numbers(values: Any) -> bool:
    """Whether it is a dict of dicts of numbers."""
    return isinstance(values, dict) and all(
        isinstance(part, dict) and all(type(number) in (int, float) for number in part.values())
        for part in values.values()
    )


class GivenWeights(NamedTuple):
    """Weights out of a file."""

    tensors: dict[str, torch.Tensor]
    entry: str
    """Their entry in a trainer's checkpoint, for instance `model_ema`; "": there is only one
    set of weights."""
    described: dict[str, Any] | None = None
    """What a file of ours says of its network (`model`) and its data; None: it does not say."""


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A network's weights by name; see `read_weights`."""
    return read_weights(path).tensors


def read_weights(path: Path) -> GivenWeights:
    """A network's weights from a file of any origin; no file can run code.

    - Checkpoints and final weights of this package: as `load_weights`.
    - safetensors, with or without a description; in the order of their names.
    - What `torch.save` wrote, also before torch 1.6: a state dict, or a trainer's checkpoint that
      has one under a name of `ENTRIES`, averages before others. Besides tensors and plain values
      it may hold an `argparse.Namespace`, which trainers keep their arguments in.

    Raises:
        InputError: The file is missing, damaged, holds more than that, or has no weights.
    """
    if path.is_dir() or not path.exists():
        here = f"a folder; a run has {path / 'model.safetensors'}" if path.is_dir() else "nothing"
        raise InputError(f"{printable(path)}: expected a file with weights, got {here}")
    if path.suffix == ".safetensors":
        stored, metadata = _read_safetensors(path)
        described = _description_in(metadata.get("mobilenext"), path)
        return GivenWeights(checked_tensors(stored, path), "", described)
    try:
        content = read_regular(path)
    except OSError as error:
        raise InputError(f"{printable(path)}: could not read it ({error})") from error
    if is_sealed(content):
        state = load_checkpoint(path)
        averaged = state.get("ema") is not None
        stored = state["ema"] if averaged else state.get("network")
        tensors, described = checked_tensors(stored, path), _description_in(state, path)
        return GivenWeights(tensors, "ema" if averaged else "", described)
    stored = unpickled(content, path, "a network's weights", [argparse.Namespace])
    for key in ENTRIES:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            return GivenWeights(checked_tensors(stored[key], path), key)
    return GivenWeights(checked_tensors(stored, path), "")


def _description_in(described: Any, path: Path) -> dict[str, Any] | None:
    """What JSON or a checkpoint says of its network and data; None: nothing that can be used."""
    try:
        described = json.loads(described) if isinstance(described, str) else described
        check_description(described, path)
    except (InputError, ValueError, RecursionError):
        return None
    return {key: described[key] for key in ("model", "data")}


def checked_tensors(stored: Any, path: Path) -> dict[str, torch.Tensor]:
    """The same, if they are tensors by name that the file has in full.

    Args:
        stored: What a file has in place of a state dict.
        path: The file, for the message.

    Raises:
        InputError: They are not.
    """
    if not isinstance(stored, dict) or not stored:
        kind = "an empty dict" if isinstance(stored, dict) else f"a {type(stored).__name__}"
        raise InputError(f"{printable(path)}: expected a network's weights by name, got {kind}")
    for name, value in stored.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"{printable(path)}: expected a network's weights by name, got {name!r}, a "
                f"{type(value).__name__}"
            )
        _check_tensor(name, value, path)
    return dict(stored)


def _check_tensor(name: str, value: torch.Tensor, path: Path) -> None:
    """Raise `InputError` unless a tensor is a name and an array that the file has in full.

    One that repeats a few bytes, or that has none, would fill the memory once it is copied.
    """
    whole = (
        type(value) in (torch.Tensor, nn.Parameter)
        and not value.is_nested
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
    if not whole or len(name) > MOST_NAME or name.count(".") > MOST_DOTS:
        raise InputError(
            f"{printable(path)}: expected a network's weights by name, got one that no network "
            f"has: {printable(name[:80])}, {value.dtype} {tuple(value.shape)} as {value.layout} on "
            f"{value.device.type}"
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits.

    Raises:
        InputError: It can't be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: could not read it ({error})") from error


def load_into(network: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Copy weights into a network that has to have exactly these names and shapes.

    Raises:
        InputError: The weights are of another network, or are not numbers of its kind.
    """
    for name, own in network.state_dict().items():
        given = tensors.get(name)
        if given is None:
            continue
        if given.is_floating_point() != own.is_floating_point():
            raise InputError(
                f"{printable(path)}: expected {name} as {own.dtype}, got {given.dtype}: these are "
                "not the weights of a trained network"
            )
        if given.is_floating_point() and not given.float().isfinite().all():
            raise InputError(
                f"{printable(path)}: expected finite numbers in {name}, got NaN or infinite ones; "
                "take a checkpoint from before that training diverged"
            )
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        why = first_line(error, 1)
        why = why if len(why) <= MOST_WHY else f"{why[:MOST_WHY]} ..."
        raise InputError(
            f"{path}: expected the weights of the {type(network).__name__} that the config "
            f"describes, got those of another network ({why})"
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors, sorted by name, and metadata."""
    kind = None
    try:
        with open_regular(path) as file:
            kind = what_is(file.read(64))
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, metadata
    except FileNotFoundError as error:
        raise InputError(
            f"checkpoint={printable(path)}: expected a file, found none there"
        ) from error
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        got = f"got {kind}" if kind else f"could not read it ({error})"
        raise InputError(f"{printable(path)}: expected safetensors, {got}") from error
