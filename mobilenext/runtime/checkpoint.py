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
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import nn

from mobilenext.errors import DamagedFileError, InputError
from mobilenext.runtime.files import link_atomically, write_atomically

FORMAT = 2
SEAL = b"sha256:"
SEAL_LENGTH = len(SEAL) + 64


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
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # guesses about foreign files
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends to switch the safety off; we don't.
        raise InputError(
            f"{path}: expected {expected}, got a file that holds more than tensors and plain "
            "values and is therefore not read"
        ) from error
    except Exception as error:  # torch's reader raises almost anything
        raise InputError(
            f"{path}: expected {expected}, could not read it ({type(error).__name__}: "
            f"{_first_line(error)})"
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors, sorted by name, and metadata."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, metadata
    except FileNotFoundError as error:
        raise InputError(f"checkpoint={path}: expected a file, found none there") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: expected safetensors, could not read it ({error})") from error


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
    content = path.read_bytes()
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
        description = {key: state[key] for key in ("model", "classes", "data")}
        return state["ema"] or state["network"], description
    tensors, metadata = _read_safetensors(path)
    if "mobilenext" not in metadata:
        raise InputError(
            f"{path}: expected weights written by mobilenext; the file does not say which network "
            "it belongs to"
        )
    return tensors, json.loads(metadata["mobilenext"])


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A network's weights by name, from a file of any origin; no file can run code.

    - Checkpoints and final weights of this package: as `load_weights`.
    - safetensors, with or without a description; in the order of their names.
    - What `torch.save` wrote, also before torch 1.6: a state dict, or a trainer's checkpoint that
      has one as `state_dict_ema` (timm's averages), `state_dict` or `model`; the first of these
      that is there. Besides tensors and plain values it may hold an `argparse.Namespace`, which
      trainers keep their arguments in.

    Raises:
        InputError: The file is missing, damaged, holds more than that, or has no weights.
    """
    if not path.is_file():
        here = f"a folder; a run has {path / 'model.safetensors'}" if path.is_dir() else "nothing"
        raise InputError(f"{path}: expected a file with weights, got {here}")
    if path.suffix == ".safetensors":
        stored: Any = _read_safetensors(path)[0]
    else:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: could not read it ({error})") from error
        if content[-SEAL_LENGTH:].startswith(SEAL):
            return load_weights(path)[0]
        stored = _unpickled(content, path, "a network's weights", [argparse.Namespace])
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
            break
    if not isinstance(stored, dict) or not stored:
        kind = "an empty dict" if isinstance(stored, dict) else f"a {type(stored).__name__}"
        raise InputError(f"{path}: expected a network's weights by name, got {kind}")
    for name, value in stored.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"{path}: expected a network's weights by name, got {name!r}, a "
                f"{type(value).__name__}"
            )
    return dict(stored)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits.

    Raises:
        InputError: It can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: could not read it ({error})") from error


def load_into(network: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Copy weights into a network that has to have exactly these names and shapes.

    Raises:
        InputError: The weights are of another network.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{path}: expected the weights of the {type(network).__name__} that the config "
            f"describes, got those of another network ({_first_line(error, 1)})"
        ) from error


def _first_line(error: BaseException, line: int = 0) -> str:
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return lines[min(line, len(lines) - 1)] if lines else type(error).__name__
