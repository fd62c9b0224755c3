"""Reports of a run while it goes: lines or a progress bar, metrics.jsonl, TensorBoard."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mobilenext.runtime.cores import Competition
from mobilenext.runtime.distributed import Process
from mobilenext.training.measures import Measure
from mobilenext.training.meter import Interval, TrainMeter
from mobilenext.training.pictures import contact_sheet
from mobilenext.training.progress import Progress, format_seconds, say
from mobilenext.training.run_folder import RunFolder

T = TypeVar("T")

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
        self.started = time.monotonic()
        self.board: SummaryWriter | None = None
        self.competition = Competition(process.cpus)
        self.progress: Progress | None = None
        self.counted = measure if measure.counted_in_training else None
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

    def show(self, name: str, pictures: Tensor, captions: Sequence[str], step: int) -> None:
        """Show some pictures, uint8 (N, H, W, 3), with what is said of each, in TensorBoard."""
        if self.board is not None:
            with self.folder.writable():
                sheet = contact_sheet(pictures, captions)
                self.board.add_image(name, sheet, step, dataformats="HWC")

    def steps(self, batches: Iterable[T], epoch: int, first: int) -> Iterator[T]:
        """Pass an epoch's batches on, from batch `first`; `step` then tells how far it is."""
        title, total = self._title(epoch), self.steps_per_epoch
        with Progress(title, "steps", total, first, self.process) as self.progress:
            yield from batches

    def evaluation(self, batches: Iterable[T], epoch: int, total: int) -> Iterator[T]:
        """Pass the batches of an evaluation on; moves a bar if there is a terminal."""
        title = f"{self._title(epoch)} evaluation"
        with Progress(title, "batches", total, 0, self.process, lines=False) as self.progress:
            yield from self.progress.through(batches)

    def step(self, epoch: int, step: int, meter: TrainMeter) -> None:
        """Tell how far the run is after `step`, if it is time to; never waits for the device."""
        done = step - epoch * self.steps_per_epoch
        due = self.progress is not None and self.progress.is_due(done)
        if not due or done == self.steps_per_epoch:  # the epoch's own line follows its end
            return
        recent = meter.recent()
        if recent is not None:
            assert self.progress is not None
            self.progress.tell(*self._texts(recent.means(self.counted), step))

    def point(self, step: int, lr: float, interval: Interval) -> None:
        """Plot an interval as far as `step`."""
        if self.board is not None:
            self._scalars("train", {"lr": lr, **interval.means(self.counted)}, step)

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
        note = self.competition.note()
        if note is not None and self.process.device.type == "cpu":
            say(f"note: {note}")

    def epoch(
        self,
        epoch: int,
        step: int,
        lr: float,
        interval: Interval,
        scores: dict[str, dict[str, Any]],
        best: str | None,
    ) -> None:
        """Report the end of an epoch.

        Args:
            epoch: From 0 on.
            step: Steps of the run so far.
            lr: Learning rate of the last one.
            interval: The epoch's sums.
            scores: By the weights' name, `val` or `ema`.
            best: Those of these weights that are the best of the run so far, if any are.
        """
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
        texts = [f"train {_loss(means)}"]
        for kind, values in scores.items():
            mark = " (best)" if kind == best else ""
            score = self.measure.text(values[self.measure.key])
            texts.append(f"{kind} {score}{mark}, loss {values['loss']:.4f}")
        texts += [f"lr {lr:.3g}", *_pace(means)]
        if epoch + 1 < self.epochs:
            texts.append(f"left {format_seconds(self._seconds_left(step))}")
        say("  ".join([self._title(epoch), *texts]))

    def report(
        self, kind: str, row: dict[str, Any], curves: dict[str, float], epoch: int, step: int
    ) -> None:
        """Tell what else is known at the end of an epoch.

        Args:
            kind: Of the row in metrics.jsonl.
            row: Its entries.
            curves: Numbers for TensorBoard, by their names.
            epoch: From 0 on.
            step: Steps of the run so far.
        """
        if self.board is None:
            return
        self.folder.append_metrics({"kind": kind, "epoch": epoch + 1, "step": step, **row})
        with self.folder.writable():
            for name, value in curves.items():
                self.board.add_scalar(name, value, step)

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
        """Finish the TensorBoard file, and remove what a bar has left."""
        if self.progress is not None:
            self.progress.close()
        if self.board is not None:
            with self.folder.writable():
                self.board.close()

    def _scalars(self, kind: str, values: dict[str, Any], step: int) -> None:
        assert self.board is not None
        with self.folder.writable():
            for name, value in values.items():
                if value is not None and name not in NOT_PLOTTED:
                    self.board.add_scalar(f"{kind}/{name}", value, step)

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch + 1:>{len(str(self.epochs))}}/{self.epochs}"

    def _texts(self, means: dict[str, Any], step: int) -> Iterator[list[str]]:
        """How training goes, in parts: in full, and as 80 columns have room for it."""
        measure, share = self.measure, means.get(self.measure.key)
        pace, left = means["images_per_second"], self._seconds_left(step)
        counted = [] if share is None else [measure.text(share)]
        yield [_loss(means), *[f"train {text}" for text in counted], *_pace(means),
               f"left {format_seconds(left)}"]  # fmt: skip
        loss = "none" if means["loss"] is None else f"{means['loss']:.3f}"
        unit = measure.unit.strip()
        counted = [] if share is None else [f"{measure.label} {share:.1f}{unit}"]
        rate = f"{pace:,.0f}" if pace < 10_000 else f"{pace / 1000:.1f}k"
        yield [f"loss {loss}", *counted, f"{rate} images/s",
               f"left {format_seconds(left, short=True)}"]  # fmt: skip

    def _seconds_left(self, step: int) -> float:
        pace = (time.monotonic() - self.started) / max(1, step - self.first_step)
        return pace * (self.epochs * self.steps_per_epoch - step)


def _loss(means: dict[str, Any]) -> str:
    loss = "none" if means["loss"] is None else f"{means['loss']:.4f}"
    skipped = means.get("skipped_steps")
    return f"loss {loss}" + (f" ({skipped} steps skipped)" if skipped else "")


def _pace(means: dict[str, Any]) -> tuple[str, str]:
    share = means["data_wait_share"]
    return f"{means['images_per_second']:,.0f} images/s", f"data wait {share:.0%}"
