"""One training run, from an empty or torn folder to its result: what every loop does alike.

A loop builds its data, network and optimiser, enters a `Run`, and writes its own epochs and steps.
The run gives it the batches, one after the other; what has to follow a step (count, report, agree
with the other processes, save, end) follows when the loop asks for the next batch. It never calls
the network, has no hooks and is not subclassed.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from torch import Tensor, nn

from mobilenext.errors import DivergedError, Preempted
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.memory import return_kept_memory
from mobilenext.runtime.provenance import provenance
from mobilenext.training.checkpoint import Checkpoints
from mobilenext.training.meter import Clock
from mobilenext.training.monitor import Monitor
from mobilenext.training.progress import say
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.session import Session
from mobilenext.training.state import Scores, TrainState
from mobilenext.training.step import Measured
from mobilenext.training.unreadable import Loaders, gather_unreadable
from mobilenext.training.weights_files import save_weights

T = TypeVar("T")

PREFETCH = 4
"""Batches before the end of an epoch at which those of the evaluation are begun: the threads of
training have nothing left to decode by then."""
POINTS = 8
"""Points that the curves have, about, in an epoch that is shorter than a logging interval."""


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run that do not depend on what it learns."""

    epochs: int
    """Number of epochs of the whole run."""
    log_every: int = 50
    """Optimiser steps between reports."""
    timeout_minutes: float = 30.0
    """Minutes that a process may hang before the job is ended."""
    init_from: Path | None = None
    """File with weights to begin with."""
    checkpoint: dict[str, Any] = field(default_factory=dict)
    """Arguments of `Checkpoints`."""
    eval_every: int = 1
    """Epochs between evaluations; there is one after the last epoch in any case."""


@dataclass
class Step:
    """One optimiser step, as the loop sees it."""

    epoch: int
    index: int
    """Number of its batch in the epoch."""
    number: int
    """Optimiser steps done before it, in the whole run."""
    batch: Any
    lr: float
    """Learning rate, before the scales of parameter groups."""
    measured: Measured | None = None
    """Measurements of the step; the loop has to set them."""


class Run:
    """A run's state, folder, session and reports, together.

    Entering it takes the folder's lock and the newest whole checkpoint, or the given weights, and
    rewinds the reports to it. Nothing is written before.

    Args:
        process: This process.
        folder: The run's folder.
        state: What a checkpoint has; its meter counts the steps.
        loaders: Their epochs are iterated over, and begun ahead of their use.
        rate: Learning rate at a step.
        settings: See there.
        config_yaml: The resolved config, for the folder and TensorBoard.

    Attributes:
        earlier: The result of a run that another job finished meanwhile; there is nothing to do.
    """

    def __init__(
        self,
        process: Process,
        folder: RunFolder,
        state: TrainState,
        loaders: Loaders,
        rate: Callable[[int], float],
        settings: RunSettings,
        config_yaml: str,
    ) -> None:
        self.process, self.folder, self.state, self.loaders = process, folder, state, loaders
        self.rate, self.settings, self.config_yaml = rate, settings, config_yaml
        self.checkpoints = Checkpoints(folder.path, **settings.checkpoint)
        self.session = Session(process, folder, settings.timeout_minutes)
        self.provenance = provenance(process)
        self.earlier: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.session)
            stack.enter_context(self.checkpoints)
            self.earlier = self.process.on_main(self.folder.result)
            if self.earlier is None:
                self._restore()
                self.process.on_main(lambda: self.folder.create(self.config_yaml))
                self.session.begin(self.state.step)
                self.monitor = Monitor(
                    self.folder, self.process, self.state.measure, self.settings.epochs,
                    len(self.loaders.train), self.state.step, self.state.epoch,
                )  # fmt: skip
                stack.callback(self.monitor.close)
                self.monitor.tell_config(self.config_yaml)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> bool | None:
        return self.stack.__exit__(*raised)

    def _restore(self) -> None:
        found = self.process.on_main(self.checkpoints.load)
        for text in found.passed_over:
            say(f"warning: {text}", self.process)
        if found.state is not None:
            self.state.restore(found.state, found.path, self.process)
            if self.state.is_best:  # a kill may have come before it was marked
                self.process.on_main(lambda: self.checkpoints.mark_best(found.path))
        elif self.settings.init_from is not None:
            self.state.begin_with(self.settings.init_from, self.process)

    def epochs(self) -> range:
        """Numbers of the epochs that are to be done, from 0 on."""
        return range(self.state.epoch, self.settings.epochs)

    def steps(self, epoch: int, ahead: Callable[[Iterable[Any]], Iterator[Any]]) -> Iterator[Step]:
        """The epoch's steps from where the run is; has to be iterated over to its end.

        Args:
            epoch: Of `epochs()`.
            ahead: Passes batches on, begun ahead of their use; see `DeviceBatches.ahead`.
        """
        batches, state = self.loaders.train, self.state
        first = state.step - epoch * len(batches)
        waited_for = self.session.watched(ahead(batches.epoch(epoch, first)))
        shown = self.monitor.steps(waited_for, epoch, first)
        for index, batch in enumerate(state.meter.timed(shown), first):
            step = Step(epoch, index, state.step, batch, self.rate(state.step))
            yield step
            assert step.measured is not None, "the loop has to set step.measured"
            self._after(step, step.measured, last=index + 1 == len(batches))

    def _after(self, step: Step, measured: Measured, last: bool) -> None:
        self.state.stepped()
        done, steps, log_every = step.index + 1, len(self.loaders.train), self.settings.log_every
        reports = done % log_every == 0 or last
        on_the_way = steps <= log_every and done % math.ceil(steps / POINTS) == 0
        self.state.meter.add(measured, point=on_the_way and not reports)
        if step.index + PREFETCH == steps and self._evaluates(step.epoch):
            self.loaders.val.prefetch(0)
        if reports:
            self._collect()
            self.monitor.interval(step.epoch, self.state.step, step.lr, self.state.meter.close())
        self.monitor.step(step.epoch, self.state.step, self.state.meter)
        due = not last and self.checkpoints.due(self.state.step)
        stop, save = self.session.after(self.state.step, due)
        if stop:
            raise self.preempted()
        if save and not last:
            self.save()

    def show(self, name: str, pictures: Tensor, captions: Sequence[str]) -> None:
        """Show some of the pictures, uint8 (N, H, W, 3), with their captions in TensorBoard."""
        self.monitor.show(name, pictures, captions, self.state.step)

    def report(self, kind: str, row: dict[str, Any], curves: dict[str, float]) -> None:
        """Tell metrics.jsonl and TensorBoard what else an evaluation finds; called within it."""
        self.monitor.report(kind, row, curves, self.state.epoch, self.state.step)

    def evaluating(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass the batches of an evaluation on; a terminal shows how far it is."""
        return self.monitor.evaluation(batches, self.state.epoch, len(self.loaders.val))

    def interrupted(self) -> bool:
        """Whether this process got a signal; asked between the batches of an evaluation."""
        return self.session.interrupted()

    def end_epoch(
        self, epoch: int, score: Callable[[Mapping[str, nn.Module]], Scores | None]
    ) -> None:
        """Unite the norms, evaluate, record, report, and save if that is due.

        Args:
            epoch: Of `epochs()`.
            score: Scores of the sets of weights, by their names; None if a signal came meanwhile
                (see `interrupted`): then the state is saved and the run ends.
        """
        state = self.state
        state.unite_batch_norms(self.process)
        if epoch + 1 < self.settings.epochs:
            self.loaders.train.prefetch(epoch + 1)
        scores: Scores = {}
        if self._evaluates(epoch):
            return_kept_memory()
            found = score(state.evaluated())
            if found is None:
                raise self.preempted()
            scores = found
            return_kept_memory()
        if not all(math.isfinite(values["loss"]) for values in scores.values()):
            raise self._diverged(state.step)
        state.record(scores)
        best, lr = state.headline if state.is_best else None, self.rate(state.step - 1)
        self.monitor.epoch(epoch, state.step, lr, state.meter.close_epoch(), scores, best)
        due = epoch + 1 == self.settings.epochs or state.is_best
        if due or self.process.on_main(self.checkpoints.affordable):
            self.save()

    def _evaluates(self, epoch: int) -> bool:
        done = epoch + 1
        return done % self.settings.eval_every == 0 or done == self.settings.epochs

    def preempted(self) -> Preempted:
        """Save the state; the exception by which a run ends after a signal."""
        self.save()
        self.process.on_main(self.checkpoints.wait)
        return self.session.preempted()

    def save(self) -> None:
        """Begin a checkpoint of the state as it is; all processes call this together."""
        self._collect()
        self._check_weights()
        gather_unreadable(self.state, self.loaders, self.process, self.folder)
        self.monitor.flush()
        self.state.gather(self.process)
        self.process.on_main(
            lambda: self.checkpoints.begin(self.state.to_plain(), self.state.is_best)
        )
        self.state.meter.pause()

    def finish(
        self, own: dict[str, Any], hyperparameters: dict[str, float | str], shown: tuple[str, ...]
    ) -> dict[str, Any]:
        """Write the final weights and the result, which marks the run as finished.

        Args:
            own: Entries of the result that the loop knows: network, data, settings.
            hyperparameters: What TensorBoard compares runs by.
            shown: Entries of the result that it shows beside them.

        Returns:
            The result.
        """
        result = self.process.on_main(lambda: own | self._records()) | self.provenance

        def write() -> None:
            state = self.state
            self.checkpoints.wait()
            with self.folder.writable():
                description = {**state.described, "scores": state.scores}
                save_weights(self.folder.weights, state.evaluated()[state.headline], description)
            numbers = {name: result[name] for name in shown}
            self.monitor.hyperparameters(hyperparameters, numbers, state.scores, state.step)
            self.folder.write_result(result)

        self.process.on_main(write)
        return result

    def _records(self) -> dict[str, Any]:
        state, clock, measure = self.state, self.clock, self.state.measure.key
        return {
            **state.scores[state.headline],
            f"best_{measure}": state.best[measure],
            "best_epoch": state.best["epoch"],
            "scores": state.scores,
            "steps": state.step,
            "images_seen": clock.images,
            "unreadable_images": {split: len(known) for split, known in state.unreadable.items()},
            "images_per_second": clock.images_per_second,
            "data_wait_share": clock.data_wait_share,
            "wall_seconds": clock.wall_seconds,
            "sessions": self.folder.sessions_begun(),
            "history": self.folder.history(self.state.measure),
        }

    @property
    def clock(self) -> Clock:
        """Time and work of the run so far."""
        return self.state.meter.clock

    def _collect(self) -> None:
        """Read the device; nothing is reported or saved of a step that must not have been."""
        bad_step = self.state.meter.collect(self.state.step)
        if bad_step is not None:
            raise self._diverged(bad_step)
        for number, interval in self.state.meter.take_points():
            self.monitor.point(number, self.rate(number - 1), interval)

    def _check_weights(self) -> None:
        """The last step's update may have gone too far though its gradient was finite."""
        if self.process.all_reduce_sum(self.state.nonfinite()).item():
            raise self._diverged(self.state.step)

    def _diverged(self, step: int) -> DivergedError:
        kept = "there is no checkpoint yet"
        if self.process.on_main(self.checkpoints.exist):
            kept = f"the last good checkpoint is {self.checkpoints.last}"
        return DivergedError(
            f"loss, gradient or weights are not finite at step {step} (epoch "
            f"{self.state.epoch + 1}, learning rate {self.rate(step - 1):g}); {kept}. Try a lower "
            "optimizer.lr, a longer schedule.warmup_epochs, or clip_grad_norm=1; nonfinite=skip "
            "leaves single such steps out"
        )
