"""Training from JPEGs, ours beside timm's train.py and a bare loop: prints the ratios.

    python benchmarks/peers.py --timm TRAIN_PY --images FOLDER [--size 224] [--width 1.0]
        [--batch 32] [--count 640] [--rounds 3]

FOLDER has class folders of JPEGs. `--count` links to them make the training images, one of each
class the validation images. TRAIN_PY is train.py of pytorch-image-models, at a tag near that of the
installed timm. Whole processes in turns, each the second of two epochs: same network (MobileNeXt),
images, batch, random crops and flips, bilinear interpolation, channels_last, SGD; as many loader
processes as cores. timm's runs with glibc as it is, as its users have it. The bare loop has one
ready batch in memory, nothing to load, count, seed or check, and keeps freed memory as ours does;
its norms are torch's.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from whole_runs import timm_train, train

BARE_SECONDS = 12.0


def linked(images: Path, folder: Path, count: int) -> Path:
    """A folder with train/ and val/, of links to images, class by class in turn."""
    classes = {path.name: sorted(path.glob("*.[jJ]*")) for path in sorted(images.iterdir())}
    classes = {name: files for name, files in classes.items() if files}
    names = list(classes)
    if count < len(names):
        raise SystemExit(f"--count {count}: expected at least the {len(names)} classes of {images}")
    for split, number in (("train", count), ("val", len(names))):
        for name in names:
            (folder / split / name).mkdir(parents=True)
        for index in range(number):
            name = names[index % len(names)]
            file = classes[name][index // len(names) % len(classes[name])]
            (folder / split / name / f"{index}.jpg").symlink_to(file.resolve())
    return folder


def ours(a: argparse.Namespace, data: Path) -> float:
    """Images per second of our train.py."""
    overrides = ["data=imagefolder", f"data.root={data}", f"width={a.width}",
                 f"data.image_size={a.size}", f"data.eval_size={a.size}",
                 f"data.global_batch_size={a.batch}", "epochs=2", "schedule=constant",
                 "augment=crop_flip", "augment.interpolation=bilinear",
                 "data.eval_batch_size=8"]  # fmt: skip
    return train(overrides).epoch["images_per_second"]


def timms(a: argparse.Namespace, data: Path) -> float:
    """Images per second of timm's train.py."""
    network = f"mobilenext_{round(100 * a.width):03d}"
    classes = len(list((data / "train").iterdir()))
    arguments = [str(data), "--model", network, "--num-classes", str(classes), "--img-size",
                 str(a.size), "-b", str(a.batch), "-vb", "8", "--device", "cpu", "--channels-last",
                 "-j", str(os.cpu_count()), "--opt", "nesterov", "--lr", "0.1", "--sched",
                 "cosine", "--warmup-epochs", "0", "--smoothing", "0.1", "--drop", "0.2",
                 "--color-jitter", "0", "--reprob", "0", "--train-interpolation", "bilinear",
                 "--log-interval", "5"]  # fmt: skip
    return timm_train(a.timm, arguments)[0]


def bare(a: argparse.Namespace) -> float:
    """Images per second of a loop over one batch in memory; run in a process of its own."""
    import torch
    import torch.nn.functional as F

    from mobilenext.models import MobileNeXt
    from mobilenext.runtime.memory import keep_freed_memory

    keep_freed_memory()
    network = MobileNeXt(a.width, num_classes=10).to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer = torch.optim.SGD(
        network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, foreach=True
    )
    images = torch.randn(a.batch, 3, a.size, a.size).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (a.batch,))
    steps, begun = -3, time.perf_counter()
    while steps < 3 or time.perf_counter() - begun < BARE_SECONDS:
        if steps == 0:
            begun = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels, label_smoothing=0.1).backward()
        optimizer.step()
        steps += 1
    return steps * a.batch / (time.perf_counter() - begun)


def main() -> None:
    """Rounds in turns, then the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--timm", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--count", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", action="store_true", help="only the bare loop, in this process")
    a = parser.parse_args()
    if a.bare:
        sys.stdout.write(f"{bare(a)}\n")
        return
    if a.images is None:
        parser.error("--images FOLDER: expected class folders of JPEGs")
    rows = []
    with tempfile.TemporaryDirectory() as work:
        data = linked(a.images, Path(work) / "data", a.count)
        for number in range(a.rounds):
            command = [sys.executable, __file__, *sys.argv[1:], "--bare"]
            floor = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            row = {"ours": ours(a, data), "bare loop": float(floor)}
            if a.timm is not None:
                row["timm"] = timms(a, data)
            rows.append(row)
            texts = ", ".join(f"{name} {rate:.1f}" for name, rate in row.items())
            print(f"round {number + 1}: images/s: {texts}", flush=True)
    what = f"MobileNeXt {a.width:g}, {a.size} px, batch {a.batch}"
    for name in rows[0]:
        if name != "ours":
            ratio = statistics.median(row["ours"] / row[name] for row in rows)
            print(f"{what}: ours over {name}, median of {a.rounds}: {ratio:.2f}")


if __name__ == "__main__":
    main()
