"""Reports of a run while it goes: lines or a progress bar, metrics.jsonl, TensorBoard."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import make_grid
from tqdm import tqdm

from mobilenext.console import format_seconds, say
from mobilenext.runtime.distributed import Process
from mobilenext.training.measures import Measure
from mobilenext.training.meter import Interval
from mobilenext.training.run_folder import RunFolder

T = TypeVar("T")

LINE_EVERY_SECONDS = 10.0
NOT_PLOTTED = ("kind", "epoch", "step", "count", "unreadable", "seconds_left")
"""Entries of a row of metrics.jsonl that TensorBoard does not get."""


class Monitor:
    """Reports of a training run; silent on ranks other than 0.

    Args:
        folder: Where metrics.jsonl and the TensorBoard events go.
        process: This process.
        measure: What the run is judged by.
        epochs: Epochs of the whole run.
        steps_per_epoch: Optimiser steps in an epoch.
        first_step: Steps done in earlier sessions of the run; what was logged beyond it is dropped.
        first_epoch: Whole epochs done in them.

    Raises:
        InputError: By any method: the folder can't be written to.
    """

    def __init__(
        self,
        folder: RunFolder,
        process: Process,
        measure: Measure,
        epochs: int,
        steps_per_epoch: int,
        first_step: int,
        first_epoch: int,
    ) -> None:
        self.folder, self.process, self.measure = folder, process, measure
        self.epochs, self.steps_per_epoch, self.first_step = epochs, steps_per_epoch, first_step
        self.started = self.last_line = time.monotonic()
        self.board: SummaryWriter | None = None
        self.bar: tqdm[Any] | None = None
        self.counted = measure if measure.counted_in_training else None
        self.shown: set[str] = set()
        if process.is_main:
            kept = folder.rewind_metrics(first_step, first_epoch)
            # TensorBoard can only drop all of a step. Where an epoch's evaluation is still to come,
            # the reports of its last step go as well, and are written again.
            again = first_step == (first_epoch + 1) * steps_per_epoch
            purge_step = first_step if again else first_step + 1
            with folder.writable():
                self.board = SummaryWriter(str(folder.path), purge_step=purge_step)
            for row in kept if again else []:
                if row["step"] == first_step:
                    self._scalars("train", row, first_step)

    def tell_config(self, config_yaml: str) -> None:
        """Show the config in TensorBoard."""
        if self.board is not None:
            with self.folder.writable():
                self.board.add_text("config", f"```yaml\n{config_yaml}\n```", self.first_step)

    def show_once(self, name: str, pictures: Tensor) -> None:
        """Show some of the first pictures of a name, uint8 (N, H, W, 3), in TensorBoard."""
        if self.board is not None and name not in self.shown:
            self.shown.add(name)
            grid = make_grid(pictures[:16].permute(0, 3, 1, 2), nrow=8)
            with self.folder.writable():
                self.board.add_image(name, grid, self.first_step)

    def steps(self, batches: Iterable[T], epoch: int, first: int) -> Iterator[T]:
        """Pass an epoch's batches on, from batch `first`; moves a bar if there is a terminal."""
        if not self.process.is_main or not sys.stderr.isatty():
            yield from batches
            return
        title = f"epoch {epoch + 1}/{self.epochs}"
        total = self.steps_per_epoch
        with tqdm(batches, title, total, leave=False, unit="step", initial=first) as self.bar:
            yield from self.bar
        self.bar = None

    def interval(self, epoch: int, step: int, lr: float, interval: Interval) -> None:
        """Report a logging interval that ended with `step`."""
        if self.board is None:
            return
        means = interval.means(self.counted)
        self.folder.append_metrics(
            {"kind": "train", "epoch": epoch + 1, "step": step, "lr": lr, **means}
            | {"seconds_left": self._seconds_left(step)}
        )
        self._scalars("train", {"lr": lr, **means}, step)
        text = (
            f"{_loss(means)}  {self._train_share(means)}"
            f"{self._pace(means)}  left {self._time_left(step)}"
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text)
            return
        done = step - epoch * self.steps_per_epoch
        due = time.monotonic() - self.last_line > LINE_EVERY_SECONDS
        if due and done < self.steps_per_epoch:  # the epoch's own line follows its end
            self._line(
                f"epoch {epoch + 1}/{self.epochs} step {done}/{self.steps_per_epoch}  {text}"
            )

    def epoch(
        self, epoch: int, step: int, interval: Interval, scores: dict[str, dict[str, Any]]
    ) -> None:
        """Report the end of an epoch: its sums, and scores by the weights' name, `val` or `ema`."""
        if self.board is None:
            return
        means = interval.means(self.counted)
        self.folder.append_metrics(
            {"kind": "epoch", "epoch": epoch + 1, "step": step, **means}
            | {"seconds_left": self._seconds_left(step)}
        )
        for kind, values in scores.items():
            self.folder.append_metrics({"kind": kind, "epoch": epoch + 1, "step": step, **values})
            self._scalars(kind, values, step)
        self.flush()
        texts = "  ".join(
            f"{kind} {self.measure.text(values[self.measure.key])}"
            for kind, values in scores.items()
        )
        self._line(
            f"epoch {epoch + 1}/{self.epochs}  {_loss(means)}  {texts}  "
            f"{self._pace(means)}  left {self._time_left(step)}"
        )

    def hyperparameters(
        self,
        chosen: dict[str, float | str],
        results: dict[str, float],
        scores: dict[str, dict[str, Any]],
        step: int,
    ) -> None:
        """Tell TensorBoard's HParams tab of a finished run, which compares it with others there.

        Args:
            chosen: Hyperparameters; all runs should have the same keys.
            results: Numbers of the whole run.
            scores: Last scores by the weights' name, as `epoch` got them.
            step: Optimiser steps of the run.
        """
        if self.board is None:
            return
        names = {
            f"{kind}/{name}"
            for kind, values in scores.items()
            for name in values
            if name not in NOT_PLOTTED
        }
        finals = {f"result/{name}": value for name, value in results.items()}
        # A step later than the last: should a kill come before result.json, the next session
        # purges them and tells them again.
        step += 1
        # `SummaryWriter.add_hparams` would make another run of it, in a folder below.
        parts = hparams(dict(chosen), dict.fromkeys([*sorted(names), *finals]))
        with self.folder.writable():
            for part in parts:
                self.board._get_file_writer().add_summary(part, step)
            for name, value in finals.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()

    def flush(self) -> None:
        """Have all that was reported in the files; a checkpoint that follows counts on it."""
        if self.board is not None:
            with self.folder.writable():
                self.board.flush()
                self.folder.sync_metrics()

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self.board is not None:
            with self.folder.writable():
                self.board.close()

    def _scalars(self, kind: str, values: dict[str, Any], step: int) -> None:
        assert self.board is not None
        with self.folder.writable():
            for name, value in values.items():
                if value is not None and name not in NOT_PLOTTED:
                    self.board.add_scalar(f"{kind}/{name}", value, step)

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        say(text)

    def _train_share(self, means: dict[str, Any]) -> str:
        """Share of correct predictions among training images, if it is counted."""
        value = means.get(self.measure.key)
        return "" if value is None else f"train {self.measure.text(value)}  "

    @staticmethod
    def _pace(means: dict[str, Any]) -> str:
        share = means["data_wait_share"]
        return f"{means['images_per_second']:,.0f} images/s  data wait {share:.0%}"

    def _seconds_left(self, step: int) -> float:
        pace = (time.monotonic() - self.started) / max(1, step - self.first_step)
        return pace * (self.epochs * self.steps_per_epoch - step)

    def _time_left(self, step: int) -> str:
        return format_seconds(self._seconds_left(step))


def _loss(means: dict[str, Any]) -> str:
    loss = "none" if means["loss"] is None else f"{means['loss']:.4f}"
    skipped = means.get("skipped_steps")
    return f"loss {loss}" + (f" ({skipped} steps skipped)" if skipped else "")
