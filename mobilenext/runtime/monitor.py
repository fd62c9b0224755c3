"""What a run tells while it goes: lines or a progress bar, metrics.jsonl, TensorBoard."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid
from tqdm import tqdm

from mobilenext.runtime.distributed import Process
from mobilenext.runtime.metrics import Interval
from mobilenext.runtime.run_folder import RunFolder

T = TypeVar("T")

LINE_EVERY_SECONDS = 10.0


def say(text: str, process: Process | None = None) -> None:
    """Print a line once, from rank 0, without breaking a progress bar."""
    if process is None or process.is_main:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


class Monitor:
    """Reports of a training run; silent on ranks other than 0.

    Args:
        folder: Where metrics.jsonl and the TensorBoard events go.
        process: This process.
        epochs: Epochs of the whole run.
        steps_per_epoch: Optimiser steps in an epoch.
        first_step: Steps done in earlier sessions of the run; what was logged beyond it is dropped.
    """

    def __init__(
        self,
        folder: RunFolder,
        process: Process,
        epochs: int,
        steps_per_epoch: int,
        first_step: int,
    ) -> None:
        self.folder, self.process = folder, process
        self.epochs, self.steps_per_epoch, self.first_step = epochs, steps_per_epoch, first_step
        self.started = self.last_line = time.monotonic()
        self.board: SummaryWriter | None = None
        self.bar: tqdm[Any] | None = None
        self.described = False
        self.epoch_so_far: Interval | None = None
        if process.is_main:
            folder.rewind_metrics(first_step)
            self.board = SummaryWriter(str(folder.path), purge_step=first_step + 1)

    def describe_once(self, config_yaml: str, pixels: Tensor) -> None:
        """Show the config and a few input images, uint8 (N, H, W, 3), in TensorBoard."""
        if self.board is not None and not self.described:
            self.described = True
            self.board.add_text("config", f"```yaml\n{config_yaml}\n```", self.first_step)
            grid = make_grid(pixels[:16].permute(0, 3, 1, 2), nrow=8)
            self.board.add_image("train/images", grid, self.first_step)

    def steps(self, batches: Iterable[T], epoch: int) -> Iterator[T]:
        """Pass an epoch's batches on, moving a progress bar if standard error is a terminal."""
        if not self.process.is_main or not sys.stderr.isatty():
            yield from batches
            return
        title = f"epoch {epoch + 1}/{self.epochs}"
        with tqdm(batches, title, self.steps_per_epoch, leave=False, unit="step") as self.bar:
            yield from self.bar
        self.bar = None

    def interval(self, epoch: int, step: int, lr: float, interval: Interval) -> None:
        """Report a logging interval that ended with `step`."""
        if self.board is None:
            return
        self.epoch_so_far = interval if self.epoch_so_far is None else self.epoch_so_far + interval
        means = interval.means()
        self.folder.append_metrics(
            {"kind": "train", "epoch": epoch + 1, "step": step, "lr": lr, **means}
        )
        for name, value in {"lr": lr, **means}.items():
            self.board.add_scalar(f"train/{name}", value, step)
        text = (
            f"loss {means['loss']:.4f}  train top-1 {means['top1']:.2f} %  "
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

    def epoch(self, epoch: int, step: int, scores: dict[str, dict[str, Any]]) -> None:
        """Report the end of an epoch: scores by the weights' name, `val` or `ema`."""
        if self.board is None or self.epoch_so_far is None:
            return
        means, self.epoch_so_far = self.epoch_so_far.means(), None
        for kind, values in scores.items():
            self.folder.append_metrics({"kind": kind, "epoch": epoch + 1, "step": step, **values})
            for name in ("loss", "top1", "top5"):
                self.board.add_scalar(f"{kind}/{name}", values[name], step)
        self.board.flush()
        told = "  ".join(f"{kind} top-1 {values['top1']:.2f} %" for kind, values in scores.items())
        self._line(
            f"epoch {epoch + 1}/{self.epochs}  loss {means['loss']:.4f}  {told}  "
            f"{self._pace(means)}  left {self._time_left(step)}"
        )

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self.board is not None:
            self.board.close()

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        say(text)

    @staticmethod
    def _pace(means: dict[str, float]) -> str:
        share = means["data_wait_share"]
        return f"{means['images_per_second']:,.0f} images/s  data wait {share:.0%}"

    def _time_left(self, step: int) -> str:
        pace = (time.monotonic() - self.started) / max(1, step - self.first_step)
        return format_seconds(pace * (self.epochs * self.steps_per_epoch - step))


def format_seconds(seconds: float) -> str:
    """For instance 45 s, 3 min 20 s, 5 h 02 min, 3 d 04 h."""
    whole = round(seconds)
    for unit, size, small_unit, small in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small:02d} {small_unit}"
    return f"{whole} s"
