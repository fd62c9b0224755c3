"""Checkpoints: everything that training goes on from, and what the network in them is.

A checkpoint is a dict of tensors and plain values, so `torch.load(weights_only=True)` reads it and
a foreign file can't run code. Its `model` entry describes the network: the config's name, the
constructor's `_target_` and arguments, the number of classes. Final weights are safetensors with
the same description as metadata.

The file is what `torch.save` writes, a zip archive, with the SHA-256 of all before it as the
archive's comment: `torch.load` reads it as ever, and a single altered bit is found.

While a run goes on, a thread writes its checkpoints, each from a copy of the state.
"""

import copy
import hashlib
import io
import pickle
import re
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor

from mobilenext.errors import DamagedFileError, InputError, first_line
from mobilenext.files import (
    link_atomically,
    printable,
    read_regular,
    what_is,
    write_atomically,
)
from mobilenext.training.progress import say

FORMAT = 2
PATIENCE = 50
"""Steps after which a checkpoint that was asked for, and did not come, is asked for again."""
SEAL = b"sha256:"
SEAL_LENGTH = len(SEAL) + 64
"""Bytes of the checksum at a checkpoint's end."""


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint of a folder."""

    state: dict[str, Any] | None
    """The checkpoint; None if there are none."""
    path: Path
    passed_over: list[str]
    """Warnings about newer ones that were damaged or missing."""


class Checkpoints:
    """A run's checkpoints: `last.pt`, the ones before it (`last-1.pt`, ...), and `best.pt`.

    `best.pt` is a second name (a hard link) of its checkpoint while that is among the newest.

    A run enters it and calls `begin`, which leaves the writing to a thread. If that fails, the
    next `begin` or `wait` raises the error, and `due` and `affordable` ask for one. What is being
    written when the run leaves is finished, whatever it leaves with.

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
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.under_way: Future[None] | None = None
        """The newest write, until it has been waited for."""
        self.asked: int | None = None
        """Step after which a checkpoint was asked for that has not begun."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.thread.shutdown()
        failure = None if self.under_way is None else self.under_way.exception()
        if failure is not None and error is None:
            raise failure
        if failure is not None:  # what ended the run matters more
            say(f"warning: {failure}")

    def due(self, step: int) -> bool:
        """Whether a checkpoint within an epoch is wanted after this step, and may cost its time."""
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        waited = time.monotonic() - self.saved_at
        # Several processes save some steps after one of them has asked.
        asked = self.asked is not None and self.asked < step <= self.asked + PATIENCE
        by_time = self.every_seconds is not None and waited >= self.every_seconds and not asked
        due = self._failed() or ((by_steps or by_time) and self.affordable())
        if due:
            self.asked = step
        return due

    def affordable(self) -> bool:
        """Whether one more write, as long as the longest so far, stays within `max_share`.

        True after one that failed: the sooner is its error raised.
        """
        now, written = time.monotonic(), self.under_way is None or self.under_way.done()
        so_far = 0.0 if written else now - self.saved_at
        cost = self.writing + so_far + max(self.longest, so_far)
        return self._failed() or cost <= self.max_share * (now - self.started)

    def begin(self, state: dict[str, Any], best: bool) -> None:
        """Copy a state, and have a thread `save` it; waits until the one before is written.

        Args:
            state: Tensors and plain values; they may change afterwards.
            best: Whether it becomes `best.pt` as well.

        Raises:
            InputError: The one before could not be written.
        """
        self.wait()
        self.asked = None
        self.saved_at = time.monotonic()
        self.under_way = self.thread.submit(self._save, copied(state), best)

    def wait(self) -> None:
        """Have what was begun on the disk.

        Raises:
            InputError: It could not be written.
        """
        under_way, self.under_way = self.under_way, None
        if under_way is not None:
            under_way.result()

    def exist(self) -> bool:
        """Whether there are any, once what was begun is written or has failed."""
        if self.under_way is not None:
            self.under_way.exception()
        return self.last.exists()

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
        now = time.monotonic()
        self.writing += now - begun
        self.longest = max(self.longest, now - begun)
        self.saved_at = now

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

    def _failed(self) -> bool:
        write = self.under_way
        return write is not None and write.done() and write.exception() is not None

    def _save(self, state: dict[str, Any], best: bool) -> None:
        self.save(state)
        if best:
            self.mark_best(self.last)

    def _step_back(self, verified: Path) -> None:
        _read_sealed(verified)
        for newer, older in reversed(
            list(zip(self.generations, self.generations[1:], strict=False))
        ):
            if newer.exists():
                link_atomically(newer, older)


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of a state, its tensors on the CPU.

    Those of a GPU are copied into pinned memory, which torch keeps for the next time, and waited
    for once.
    """
    copies: dict[int, Any] = {}
    found: list[Any] = [state]
    while found:
        value = found.pop()
        if isinstance(value, Tensor):
            copies[id(value)] = value.detach().to("cpu", non_blocking=value.is_cuda, copy=True)
        elif isinstance(value, dict):
            found += value.values()
        elif isinstance(value, list | tuple):
            found += value
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copy.deepcopy(state, copies)


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
            f"{path}: could not read it ({error}); nothing was changed. Fix that and run the same "
            "command again"
        ) from error
    state = unpickled(content, path, "a checkpoint")
    if not isinstance(state, dict) or state.get("format") != FORMAT or "model" not in state:
        raise InputError(
            f"{path}: expected a checkpoint of this version of mobilenext (format {FORMAT}), got "
            "something else"
        )
    return state


def is_sealed(content: bytes) -> bool:
    """Whether a file's content ends with the checksum that our checkpoints have."""
    return content[-SEAL_LENGTH:].startswith(SEAL)


def unpickled(content: bytes, path: Path, expected: str, allowed: Sequence[type] = ()) -> Any:
    """Content of a file of torch.save, on the CPU: tensors, plain values, objects of `allowed`.

    Args:
        content: The file's bytes.
        path: The file, for the message.
        expected: What it should be, for the message.
        allowed: Classes of other objects that it may hold.

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
    """Explanation of why torch does not read a file."""
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
