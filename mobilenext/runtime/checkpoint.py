"""Checkpoints: everything that training goes on from, and what the network in them is.

A checkpoint is a dict of tensors and plain values, so `torch.load(weights_only=True)` reads it and
a foreign file can't run code. Its `model` entry describes the network: the config's name, the
constructor's `_target_` and arguments, the number of classes. Final weights are safetensors with
the same description as metadata.

The file is what `torch.save` writes, a zip archive, with the SHA-256 of all before it as the
archive's comment: `torch.load` reads it as ever, and a single altered bit is found.
"""

import argparse
import hashlib
import io
import json
import pickle
import re
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from mobilenext.errors import DamagedFileError, InputError, first_line
from mobilenext.files import (
    link_atomically,
    open_regular,
    printable,
    read_regular,
    what_is,
    write_atomically,
)
from mobilenext.plain import check_plain

FORMAT = 2
SEAL = b"sha256:"
SEAL_LENGTH = len(SEAL) + 64

ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model",
           "model_state_dict")  # fmt: skip
"""Where trainers keep weights in their checkpoints, averages first: timm's, torchvision's and
others' names; the first entry that has weights counts."""

MOST_CLASSES = 1 << 20
MOST_NAME, MOST_DOTS, MOST_NAMES = 1_000, 64, 1 << 24
"""Characters of a tensor's or a class's name, levels of a tensor's, characters of all classes'."""


@dataclass(frozen=True)
class Found:
    """What `Checkpoints.load` has found."""

    state: dict[str, Any] | None
    """The checkpoint; None if there are none."""
    path: Path
    passed_over: list[str]
    """What the user should know of newer ones that were damaged or missing."""


class Checkpoints:
    """A run's checkpoints: `last.pt`, the ones before it (`last-1.pt`, ...), and `best.pt`.

    `best.pt` is a second name (a hard link) of its checkpoint while that is among the newest.

    Args:
        folder: The run's folder.
        keep: How many of the newest to keep, `last.pt` included.
        every_steps: Optimiser steps between checkpoints within an epoch; None: not by steps.
        every_minutes: Minutes between them; None: not by time.
        max_share: Bound for the share of the time that writing may take, in (0, 1]; a checkpoint
            that would exceed it is put off.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        max_share: float = 1.0,
    ) -> None:
        self.last, self.best = folder / "last.pt", folder / "best.pt"
        self.generations = [self.last] + [folder / f"last-{n}.pt" for n in range(1, keep)]
        self.every_steps, self.max_share = every_steps, max_share
        self.every_seconds = None if every_minutes is None else 60 * every_minutes
        self.started = self.saved_at = time.monotonic()
        self.writing, self.longest = 0.0, 0.0

    def due(self, step: int) -> bool:
        """Whether a checkpoint within an epoch is wanted after this step, and may cost its time."""
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        waited = time.monotonic() - self.saved_at
        by_time = self.every_seconds is not None and waited >= self.every_seconds
        return (by_steps or by_time) and self.affordable()

    def affordable(self) -> bool:
        """Whether one more write, as long as the longest so far, stays within `max_share`."""
        return self.writing + self.longest <= self.max_share * (time.monotonic() - self.started)

    def save(self, state: dict[str, Any]) -> None:
        """Write `last.pt`; the one that had this name steps back once the new one is verified.

        Raises:
            InputError: It can't be written (a full disk, say); those before it are intact.
        """
        begun = time.monotonic()
        save_checkpoint(self.last, state, before_rename=self._step_back)
        for path in self.last.parent.glob("last-*.pt"):  # from an earlier, larger `keep`
            if path not in self.generations:
                path.unlink(missing_ok=True)
        self.saved_at = time.monotonic()
        self.writing += self.saved_at - begun
        self.longest = max(self.longest, self.saved_at - begun)

    def mark_best(self, path: Path) -> None:
        """Make `best.pt` a second name of a checkpoint.

        Raises:
            InputError: It can't be written.
        """
        try:
            if path != self.best:
                link_atomically(path, self.best)
        except OSError as error:
            raise InputError(
                f"can't write {self.best} ({error}); {path} is intact. Make room and run the same "
                "command again"
            ) from error

    def load(self) -> "Found":
        """The newest checkpoint that is whole, if there are any at all.

        A damaged file is renamed to `*.damaged`, so that it can't push a good one out. One that
        can't be read at all just now (a file system that is away, say) is not.

        Raises:
            InputError: A checkpoint can't be read, or there are only damaged ones.
        """
        older = self.last.parent.glob("last-*.pt")  # also those from a larger `keep`
        candidates = [self.last, *sorted(older, key=_generation), self.best]
        present = [path for path in candidates if path.exists()]
        passed_over: list[str] = []
        for path in present:
            try:
                state = load_checkpoint(path)
            except DamagedFileError as error:
                passed_over.append(str(error))
                _set_aside(path)
                continue
            if path is not self.last:
                if not passed_over:
                    passed_over.append(f"{self.last} is missing")
                passed_over.append(f"going on from {path}, step {state['step']}")
            return Found(state, path, passed_over)
        damaged = sorted(path.name for path in self.last.parent.glob("*.damaged*"))
        if damaged:
            raise InputError(
                f"{self.last.parent}: no checkpoint of this run is whole, and these are damaged: "
                f"{', '.join(damaged)}. Put a good copy in place as last.pt, or remove these to "
                "start over"
            )
        return Found(None, self.last, [])

    def _step_back(self, verified: Path) -> None:
        _read_sealed(verified)
        for newer, older in reversed(
            list(zip(self.generations, self.generations[1:], strict=False))
        ):
            if newer.exists():
                link_atomically(newer, older)


def save_checkpoint(
    path: Path, state: dict[str, Any], before_rename: Callable[[Path], object] | None = None
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: The file.
        state: Tensors and plain values.
        before_rename: As for `write_atomically`.

    Raises:
        InputError: It can't be written (a full disk, say); what was there before stays.
    """
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    try:
        write_atomically(path, lambda file: _write_sealed(content, file), before_rename)
    except (OSError, DamagedFileError) as error:
        raise InputError(
            f"can't write the checkpoint {path} ({error}); the one before it, if any, is intact. "
            "Make room and run the same command again"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: The file.

    Raises:
        DamagedFileError: It is cut short or altered, or is not a checkpoint of this package.
        InputError: It is missing, or holds what a checkpoint never does.
    """
    if path.is_dir():
        raise InputError(
            f"{path}: expected a checkpoint, got a folder; a run has {path / 'best.pt'}"
        )
    try:
        content = _read_sealed(path)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint={path}: expected a file, found none there") from error
    except OSError as error:
        raise InputError(
            f"{path}: could not read it ({error}); nothing was changed. Mend that and run the same "
            "command again"
        ) from error
    state = _unpickled(content, path, "a checkpoint")
    if not isinstance(state, dict) or state.get("format") != FORMAT or "model" not in state:
        raise InputError(
            f"{path}: expected a checkpoint of this version of mobilenext (format {FORMAT}), got "
            "something else"
        )
    return state


def _unpickled(content: bytes, path: Path, expected: str, allowed: Sequence[type] = ()) -> Any:
    """What torch.save wrote, on the CPU: tensors, plain values and objects of `allowed`.

    Raises:
        InputError: It holds something else, or can't be read.
    """
    try:
        _check_stored(content)
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # guesses about foreign files
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises almost anything
        raise InputError(
            f"{printable(path)}: expected {expected}, {_unreadable(content, error)}"
        ) from error


def _check_stored(content: bytes) -> None:
    """Raise `ValueError` for an archive with compressed parts, which torch.save never writes."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("its parts are compressed, unlike those that torch.save writes")


def _unreadable(content: bytes, error: Exception) -> str:
    """What is wrong with a file that torch does not read, in words."""
    kind = what_is(content[:64])
    if kind is not None and kind != "a zip archive":  # which is what torch.save writes
        return f"got {kind}; fetch the file again from where it lies"
    refuses = isinstance(error, pickle.UnpicklingError) and "Weights only load" in str(error)
    if not refuses:
        return f"could not read it ({type(error).__name__}: {first_line(error)})"
    # torch's own message recommends to switch the safety off; we don't.
    refused = re.search(r"(?:GLOBAL|class|global:?) `?([\w.]+\.[\w.]+)", str(error))
    named = f" ({refused[1]})" if refused else ""
    return (
        f"got a file that holds more than tensors and plain values{named} and is therefore not "
        "read; whoever trusts it can save its state dict alone with torch.save"
    )


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


def _write_sealed(content: io.BytesIO, file: BinaryIO) -> None:
    # An archive without a comment ends with the comment's length, two zero bytes.
    archive = content.getbuffer()[:-2]
    file.write(archive)
    file.write(SEAL_LENGTH.to_bytes(2, "little"))
    file.write(SEAL + hashlib.sha256(archive).hexdigest().encode())


def _read_sealed(path: Path) -> bytes:
    """A file's content, if it is as `_write_sealed` left it.

    Raises:
        DamagedFileError: It is not.
        OSError: It can't be read.
    """
    content = read_regular(path)
    archive, ending = content[: -SEAL_LENGTH - 2], content[-SEAL_LENGTH - 2 :]
    length, seal = ending[:2], ending[2:]
    if not seal.startswith(SEAL) or length != SEAL_LENGTH.to_bytes(2, "little"):
        raise DamagedFileError(
            f"{path}: expected a checkpoint of mobilenext, but the checksum at its end is missing: "
            "it was cut short or altered, or something else wrote it"
        )
    if hashlib.sha256(archive).hexdigest().encode() != seal.removeprefix(SEAL):
        raise DamagedFileError(
            f"{path}: expected a checkpoint of mobilenext, but its content does not match the "
            "checksum at its end: it was altered after it had been written"
        )
    return content


def _set_aside(path: Path) -> None:
    number, aside = 0, path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    try:
        path.replace(aside)
    except OSError as error:
        raise InputError(f"{path} is damaged and can't be set aside ({error})") from error


def _generation(path: Path) -> int:
    number = path.stem.removeprefix("last-")
    return int(number) if number.isdigit() else 1 << 30


def save_weights(path: Path, network: nn.Module, description: dict[str, Any]) -> None:
    """Write a network's weights as safetensors, with a JSON description as metadata."""
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    data = safetensors.torch.save(tensors, {"mobilenext": json.dumps(description)})
    write_atomically(path, lambda file: file.write(data))


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
    """What `read_weights` returns."""

    tensors: dict[str, torch.Tensor]
    entry: str
    """Where in a trainer's checkpoint they stood, for instance `model_ema`; "": there is only one
    set of weights."""


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
        stored: Any = _read_safetensors(path)[0]
    else:
        try:
            content = read_regular(path)
        except OSError as error:
            raise InputError(f"{printable(path)}: could not read it ({error})") from error
        if content[-SEAL_LENGTH:].startswith(SEAL):
            state = load_checkpoint(path)
            averaged = state.get("ema") is not None
            stored = state["ema"] if averaged else state.get("network")
            return GivenWeights(checked_tensors(stored, path), "ema" if averaged else "")
        stored = _unpickled(content, path, "a network's weights", [argparse.Namespace])
    for key in ENTRIES:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            return GivenWeights(checked_tensors(stored[key], path), key)
    return GivenWeights(checked_tensors(stored, path), "")


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
        raise InputError(
            f"{path}: expected the weights of the {type(network).__name__} that the config "
            f"describes, got those of another network ({first_line(error, 1)})"
        ) from error
