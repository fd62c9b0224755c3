"""The folder of a run: what is in it, and what it takes to be finished.

config.yaml         the resolved config
metrics.jsonl       a line for each logging interval, each epoch of training and each evaluation
sessions.jsonl      a line for each start and each end of a session, with the reason of the end
last.pt, last-1.pt  the newest checkpoint and the one before it (see `checkpoint`)
best.pt             the checkpoint of the best epoch
unreadable.txt      images that could not be read, if there are any
events.out.*        TensorBoard
model.safetensors   final weights, once finished
result.json         the numbers, once finished; tables are built from these files only
.lock               held while a job uses the folder
"""

import json
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not kept apart there
    fcntl = None

from mobilenext.errors import InputError
from mobilenext.files import read_text, write_atomically, write_whole
from mobilenext.training.measures import TOP1, Measure

MOST_RESULT = 1 << 26
"""Bytes of a result.json."""


class RunFolder:
    """A run's folder, by its path; nothing is created before `create`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / "model.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.sessions = path / "sessions.jsonl"

    def create(self, config_yaml: str) -> None:
        """Make the folder and write the config into it.

        Raises:
            InputError: The folder can't be made or written to.
        """
        with self.writable():
            self.path.mkdir(parents=True, exist_ok=True)
            self._write_text("config.yaml", config_yaml)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other jobs out of the folder, which is made if need be.

        The lock is the operating system's, so it goes with the process, however that ends; unlike
        others of its kind it is not handed on to forked processes, and it works over NFS.

        Raises:
            InputError: Another process has it, or the folder can't be made or written to.
        """
        with self.writable():
            new = [path for path in (self.path, *self.path.parents) if not path.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a+")
        with file:
            with self.writable():
                self._lock(file)
            try:
                yield
            finally:
                if new:
                    self._remove_if_unused(new)

    def _remove_if_unused(self, made: list[Path]) -> None:
        """Leave no folders of a run that has not begun; those that were made, the innermost first.

        Other jobs may use the outer ones, or have made something there meanwhile.
        """
        with suppress(OSError):
            if [item.name for item in self.path.iterdir()] == [".lock"]:
                (self.path / ".lock").unlink()
                for folder in made:
                    folder.rmdir()  # an error if it is not empty

    def _lock(self, file: IO[str]) -> None:
        if fcntl is None:
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise InputError(
                f"{self.path} is in use by {file.read().strip() or 'another process'}; two runs "
                "can't share a folder: wait for that one or stop it, or keep this one apart with "
                "output_dir=... or name=..."
            ) from error
        except OSError as error:
            sys.stderr.write(
                f"warning: {self.path} can't be locked ({error}): see to it that no other run uses "
                "it\n"
            )
            return
        if not self._is_lock(file):
            raise InputError(
                f"{self.path} was removed by another job at this moment; run the same command again"
            )
        file.truncate(0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        file.flush()

    def _is_lock(self, file: IO[str]) -> bool:
        """Whether an open file is still the one that others would lock."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), (self.path / ".lock").stat())
        except FileNotFoundError:
            return False

    def in_use(self) -> bool:
        """Whether another process has the folder's lock at this moment."""
        if fcntl is None:
            return False
        try:
            with (self.path / ".lock").open("r+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:  # no lock file yet, or a file system without locks
            return False
        return False

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, or None.

        Raises:
            InputError: The file is not JSON, or something other than an object.
        """
        path = self.path / "result.json"
        try:
            result = json.loads(read_text(path, MOST_RESULT))
            if isinstance(result, dict):
                return result
            problem = f"it is a {type(result).__name__}"
        except (FileNotFoundError, NotADirectoryError):
            return None
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            problem = str(error)
        raise InputError(
            f"{path} is not JSON as runs write it ({problem}); remove it, and the same command "
            "takes up the run again"
        )

    def write_files(self, files: Mapping[str, str | bytes | None]) -> None:
        """Write files by their names; those whose content is None are removed."""
        with self.writable():
            for name, content in files.items():
                if content is None:
                    (self.path / name).unlink(missing_ok=True)
                else:
                    write_whole(self.path / name, content)

    def write_result(self, result: dict[str, Any]) -> None:
        """Mark the run as finished."""
        self._write_text("result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")

    def rewind_metrics(self, step: int, epoch: int) -> list[dict[str, Any]]:
        """Drop what came after a checkpoint, and a torn last line, to go on from there.

        Args:
            step: Optimiser steps that the checkpoint has.
            epoch: Whole epochs that it has; evaluations of later ones will be made again.

        Returns:
            The rows that stay.
        """
        if not self.metrics.exists():
            return []
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            done = row["step"] <= step if row["kind"] == "train" else row["epoch"] <= epoch
            if done:
                kept.append(row)
        self._write_text("metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in kept))
        return kept

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        self._append(self.metrics, row)

    def history(self, measure: Measure = TOP1) -> list[dict[str, Any]]:
        """Records of whole epochs in metrics.jsonl, in order.

        Args:
            measure: What the run is judged by.

        Returns:
            For each epoch `epoch` (from 1), `step`, `lr`, and by kind (train, val, ema) a dict of
            loss and what `measure` reports: top1 and, evaluated, top5, in per cent.
        """
        epochs: dict[int, dict[str, Any]] = {}
        for line in self.metrics.read_text().splitlines():
            row = json.loads(line)
            entry = epochs.setdefault(row["epoch"], {"epoch": row["epoch"]})
            if "loss" not in row:  # says something else of the epoch
                continue
            if row["kind"] == "train":
                entry["lr"] = row["lr"]  # the last one stays
                continue
            kind = "train" if row["kind"] == "epoch" else row["kind"]
            entry["step"] = row["step"]
            entry[kind] = {key: row[key] for key in ("loss", *measure.reported) if key in row}
        return [epochs[number] for number in sorted(epochs)]

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The rows of a kind in metrics.jsonl, in order."""
        rows = map(json.loads, self.metrics.read_text().splitlines())
        return [row for row in rows if row["kind"] == kind]

    def newest_metrics(self, count: int = 8) -> list[dict[str, Any]]:
        """The last lines of metrics.jsonl, oldest first; read while a run writes them."""
        try:
            with self.metrics.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 512 * count))
                lines = file.read().splitlines()
        except OSError:
            return []
        rows = []
        for line in lines[-count:]:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # cut by the seek, or not written to its end yet
                continue
        return [row for row in rows if isinstance(row, dict)]

    def append_session(self, row: dict[str, Any]) -> None:
        """Add a line to sessions.jsonl, with the time."""
        self._append(self.sessions, {"time": datetime.now(UTC).isoformat("T", "seconds"), **row})

    def sessions_begun(self) -> int:
        """Number of sessions that the run has had."""
        lines = self.sessions.read_text().splitlines()
        return sum('"event": "start"' in line for line in lines)

    def sync_metrics(self) -> None:
        """Have what metrics.jsonl says on the disk: a checkpoint that follows counts on it."""
        if self.metrics.exists():
            with self.metrics.open("a") as file:
                os.fsync(file.fileno())

    def write_unreadable(self, lines: Iterable[str]) -> None:
        """Replace the list of images that could not be read."""
        self._write_text("unreadable.txt", "".join(f"{line}\n" for line in lines))

    def _append(self, path: Path, row: dict[str, Any]) -> None:
        with self.writable(), path.open("a+b") as file:
            line = json.dumps(row, allow_nan=False) + "\n"
            if file.tell():  # a full disk or a power cut may have torn the line before
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else f"\n{line}"
            file.write(line.encode())

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Turn a failed write inside (a full disk, say) into an `InputError` with advice."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"can't write to the run folder {self.path} ({error}); fix that and run the same "
                "command again, or choose another place with output_dir=/path"
            ) from error

    def _write_text(self, name: str, text: str) -> None:
        with self.writable():
            write_atomically(self.path / name, lambda file: file.write(text.encode()))
