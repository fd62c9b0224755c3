"""A loop on `Run` that takes milliseconds a step: a norm and a linear layer on made-up images.

    python toy_loop.py [epochs=2] [every_steps=3] [seconds=0]    trains in runs/toy

It has what every loop has (averages, a gradient scaler, running statistics, an optimiser with
momentum, evaluation of two sets of weights), so that what a run promises can be tested by killing
it hundreds of times.
"""

import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mobilenext.data import DeviceBatches, target_texts
from mobilenext.errors import Preempted, UserError
from mobilenext.metrics.classification import SmoothedCrossEntropy, score_all
from mobilenext.optim import cosine, set_learning_rate
from mobilenext.runtime.distributed import Process, process_group
from mobilenext.runtime.precision import Precision
from mobilenext.seeding import generator, seed_devices
from mobilenext.training.averages import AveragedWeights
from mobilenext.training.measures import TOP1
from mobilenext.training.meter import TrainMeter
from mobilenext.training.run import Run, RunSettings
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.state import TrainState
from mobilenext.training.step import Update
from mobilenext.training.unreadable import Loaders

STEPS, CLASSES, SHARE, VAL = 10, 4, 6, 30
"""Steps of an epoch, classes, images of one process's batch, validation images."""
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "every_steps": 3,
    "log_every": 4,
    "seconds": 0.0,
    "timeout": 1.0,
    "lr": 0.1,
    "largest_file": 0,
    "eval_every": 1,
}


class ToyLoader:
    """Made-up images, a function of the epoch, the batch and the rank; some are unreadable."""

    decoder = "none"
    skips = True

    def __init__(self, split: str, batches: int, process: Process) -> None:
        self.split, self.batches, self.process = split, batches, process
        self.unreadable: dict[int, str] = {}
        self.missed = 0

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels uint8 (N, 4, 4, 3) and labels (N,) of this rank."""
        rank, ranks = self.process.rank, self.process.world_size
        if self.split == "train" and rank == 0:
            self.unreadable[epoch] = f"image {epoch}: made unreadable"
        for batch in range(first_batch, self.batches):
            source = generator(f"toy-{self.split}", epoch if self.split == "train" else 0, batch)
            labels = torch.randint(CLASSES, (SHARE * 2,), generator=source)
            noise = torch.randint(0, 200, (SHARE * 2, 4, 4, 3), generator=source)
            pixels = (noise + 14 * labels[:, None, None, None]).to(torch.uint8)
            mine = slice(rank * SHARE * 2 // ranks, (rank + 1) * SHARE * 2 // ranks)
            yield pixels[mine], labels[mine]

    def prefetch(self, epoch: int, first_batch: int = 0) -> None:
        """Nothing is made ahead."""

    def check_share(self, unreadable: dict[int, str]) -> None:
        """Any number may be unreadable."""

    def close(self) -> None:
        """Nothing to close."""


class ToyNetwork(nn.Module):
    """A norm, dropout and a linear layer: statistics, draws and weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm2d(3), nn.Dropout(0.2)
        self.linear = nn.Linear(48, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 4)."""
        return self.linear(self.dropout(self.norm(images)).flatten(1))


def toy(process: Process, folder: RunFolder, **changed: Any) -> dict[str, Any]:
    """Train the toy; the same story as `mobilenext.jobs.train`."""
    settings = {**SETTINGS, **changed}
    finished = process.on_main(folder.result)
    if finished is not None:
        return finished
    with ExitStack() as opened:
        loaders: Any = Loaders(
            ToyLoader("train", STEPS, process),  # pyright: ignore[reportArgumentType]
            ToyLoader("val", VAL // (2 * SHARE) + 1, process),  # pyright: ignore[reportArgumentType]
        )
        seed_devices("init", 0)
        network = ToyNetwork()
        average = AveragedWeights(network, 0.8)
        optimizer = torch.optim.SGD(network.parameters(), settings["lr"], momentum=0.9)
        precision = Precision("fp32", process.device)
        several = process.world_size > 1
        wrapped = (
            DistributedDataParallel(network, forward_sync_buffers=False) if several else network
        )
        update = Update(wrapped, optimizer, precision, micro_batch=3)
        state = TrainState(
            {"model": {"name": "toy", "num_classes": CLASSES}, "classes": list("abcd"), "data": {},
             "train_images": 2 * SHARE * STEPS, "train_labels_crc32": 0},
            network, average, {"optimizer": optimizer}, precision.scaler, TrainMeter(process), TOP1,
        )  # fmt: skip

        def rate(step: int) -> float:
            return cosine(
                step, base_lr=settings["lr"], steps_per_epoch=STEPS, epochs=settings["epochs"]
            )

        run = Run(
            process, folder, state, loaders, rate,
            RunSettings(settings["epochs"], settings["log_every"], settings["timeout"], None,
                        {"every_steps": settings["every_steps"], "keep": 2},
                        settings["eval_every"]),
            "toy: true\n",
        )  # fmt: skip
        opened.enter_context(run)
        if run.earlier is not None:
            return run.earlier
        to_device = DeviceBatches([0.5] * 3, [0.25] * 3, process.device)
        for epoch in run.epochs():
            network.train()
            for step in run.steps(epoch, to_device.ahead):
                pixels, host_labels = step.batch
                images, labels = to_device(pixels, host_labels)
                if step.number == 0:
                    captions = target_texts(labels, "abcd")
                    run.show("train/images", to_device.pictures(images), captions)
                set_learning_rate(optimizer, step.lr)
                seed_devices("step", 0, step.number, process.rank)
                step.measured = update((images, labels, labels), SmoothedCrossEntropy())
                average.update(network, step.number + 1)
                time.sleep(settings["seconds"])
            run.end_epoch(
                epoch,
                lambda networks: score_all(
                    networks, loaders.val, to_device, process, 2 * SHARE * len(loaders.val),
                    run.interrupted, shown=run.evaluating,
                ),
            )  # fmt: skip
        return run.finish({"model": "toy"}, {"lr": settings["lr"]}, shown=("top1",))


def main() -> None:
    """Train in runs/toy, with the settings that are given."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error instead
    given = dict(text.split("=", 1) for text in sys.argv[1:])
    settings = {key: type(SETTINGS[key])(value) for key, value in given.items()}
    if "largest_file" in settings:
        most = settings.pop("largest_file")
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        with process_group("cpu", {**SETTINGS, **settings}["timeout"]) as process:
            toy(process, RunFolder(Path("runs/toy/0")), **settings)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None
    except Preempted as end:
        sys.stderr.write(f"preempted by {end.args[0]} at {end.args[1]}\n")
        raise SystemExit(75) from None


if __name__ == "__main__":
    main()
