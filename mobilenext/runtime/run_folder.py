"""The folder of a run: what is in it, and what it takes to be finished.

config.yaml         the resolved config
metrics.jsonl       a line for each logging interval and each evaluation
last.pt, best.pt    checkpoints (see `checkpoint`)
events.out.*        TensorBoard
model.safetensors   final weights, once finished
result.json         the numbers, once finished; tables are built from these files only
"""

import json
from pathlib import Path
from typing import Any

from mobilenext.errors import InputError
from mobilenext.runtime.files import write_atomically


class RunFolder:
    """A run's folder, by its path; nothing is created before `create`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.weights = path / "model.safetensors"
        self.metrics = path / "metrics.jsonl"

    def create(self, config_yaml: str) -> None:
        """Make the folder and write the config into it.

        Raises:
            InputError: The folder can't be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write_text("config.yaml", config_yaml)
        except OSError as error:
            raise InputError(
                f"can't write to the run folder {self.path} ({error}); mend that or choose another "
                "place with output_dir=/path"
            ) from error

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, or None."""
        try:
            return json.loads((self.path / "result.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except json.JSONDecodeError as error:
            raise InputError(
                f"{self.path / 'result.json'} is not JSON ({error}); remove it, and the same "
                "command takes up the run again"
            ) from error

    def write_result(self, result: dict[str, Any]) -> None:
        """Mark the run as finished."""
        self._write_text("result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of steps after `step`, and a torn last line, to go on from there."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                break
        self._write_text("metrics.jsonl", "".join(kept))

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        write_atomically(self.path / name, lambda file: file.write(text.encode()))
