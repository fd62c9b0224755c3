"""Training throughput of our loop against a plain one, in one run: prints the ratio.

    python benchmarks/loop.py [--rounds 5] [overrides of train.py ...]

Peer: the loop of torchvision's classification reference (references/classification/train.py of
pytorch/vision), written out below without its options: DataLoader with PIL transforms to float32,
NCHW weights and images, loss and accuracy read from the device at every step. Same network, images,
batch, optimiser, autocast and device; same number of loader processes. Rounds alternate, and the
ratio is taken round by round, since the speed of a machine drifts. Not for data=synthetic, which
costs ours nothing to load.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace

import torch
from hydra import compose, initialize_config_dir
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from mobilenext.config import TrainConfig, register, typed
from mobilenext.config.targets import build
from mobilenext.data import ImageData
from mobilenext.data.sources import Images
from mobilenext.jobs.train import train
from mobilenext.main import CONFIG_DIR
from mobilenext.runtime.distributed import Process, process_group
from mobilenext.runtime.precision import Precision


class Transformed(Dataset):  # noqa: D101
    def __init__(self, images: Images, transform: Callable[..., torch.Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label


def peer(config: TrainConfig, data_set: ImageData, process: Process) -> float:
    """Images per second of the plain loop."""
    data, images = config.data, data_set.train
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(data.image_size, tuple(config.augment.crop_scale)),
            transforms.RandomHorizontalFlip(config.augment.hflip),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    size = data.global_batch_size
    workers = process.cpus if data.workers is None else data.workers
    steps = len(images) // size
    dataset = Subset(Transformed(images, transform), range(steps * size))
    pinned = process.device.type == "cuda"
    loader = DataLoader(dataset, size, shuffle=True, num_workers=workers, pin_memory=pinned)
    model = build(config.model.network, num_classes=len(data_set.classes)).to(process.device)
    optimizer = build(config.optimizer, params=model.parameters())
    precision = Precision(config.runtime.precision, process.device)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    model.train()
    started = time.perf_counter()
    for image, target in loader:
        image, target = image.to(process.device, non_blocking=True), target.to(process.device)
        with precision.autocast():
            output = model(image)
            loss = criterion(output, target)
        optimizer.zero_grad()
        precision.scaler.scale(loss).backward()
        precision.scaler.step(optimizer)
        precision.scaler.update()
        (output.topk(1).indices[:, 0] == target).sum().item()
        loss.item()
    return steps * size / (time.perf_counter() - started)


def ours(config: TrainConfig, process: Process) -> float:
    """Images per second of `mobilenext.jobs.train`, as its result says."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        return train(replace(config, output_dir=folder), process)["images_per_second"]


def main() -> None:  # noqa: D103
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    register(TrainConfig)
    short = ["epochs=1", "augment.color_jitter=[0,0,0,0]", "augment.interpolation=bilinear"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = typed(compose("train", [*short, *arguments.overrides]))
    with process_group(config.runtime.device, 10) as process:
        images: ImageData = build(config.data.source)
        ratios = []
        for number in range(arguments.rounds + 1):
            theirs = peer(config, images, process)
            mine = ours(config, process)
            if number:  # the first round warms up
                ratios.append(mine / theirs)
                print(f"round {number}: ours {mine:,.0f}, plain {theirs:,.0f} images/s")
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(
        f"{config.model.name} width {config.width:g}, {config.data.name} {config.data.image_size} "
        f"px, batch {config.data.global_batch_size}, {process.device.type}: ours / plain = "
        f"{statistics.median(ratios):.2f} (quartiles {quartiles[0]:.2f} to {quartiles[2]:.2f})"
    )


if __name__ == "__main__":
    main()
