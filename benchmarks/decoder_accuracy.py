"""Does it matter to accuracy which decoder reads the images? Prints top-1 for each of them.

    python benchmarks/decoder_accuracy.py [--data FOLDER] [--threads 2]

Baseline: Pillow. Images come through our own evaluation loader at 224 px, the short side resized to
256 before, by each decoder that is installed, and are classified by MobileNetV2 1.0 with weights
that were trained elsewhere (taken from a TFLite model, batch norms folded in). Target: top-1 moves
by less than 0.5 points.

Data: `--data` (default $MOBILENEXT_DATA or ../shared/data): weights/mobilenet_v2_1.0_224_folded_
fp16.npz and imagenet_samples, one folder a synset. These photographs are probably of the training
split, and few: read the differences, not the accuracies. One image is the smallest difference there
can be; `gained` and `lost` count images that only this decoder, or only Pillow, gets right.
"""

import argparse
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from mobilenext.data import eval_loader, eval_transform
from mobilenext.data.decoders import open_decoder
from mobilenext.data.sources import FolderImages
from mobilenext.errors import InputError

WEIGHTS = "weights/mobilenet_v2_1.0_224_folded_fp16.npz"
SAMPLES = "imagenet_samples"
SIZE = 224
BASELINE = "pillow"
DECODERS = (BASELINE, "torchvision", "native", "simplejpeg")
MOST_POINTS = 0.5
"""The target."""

# (expansion, blocks, stride of the first): table 2 of arXiv 1801.04381. Widths are in the weights.
STAGES = ((1, 1, 1), (6, 2, 2), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))


class FoldedMobileNetV2:
    """MobileNetV2 without batch norms, from TFLite's weights.

    Args:
        path: An .npz with NN_KIND_w (out, height, width, in; of depthwise ones 1, height, width,
            channels) and NN_KIND_b, numbered in the order in which they are used.
    """

    def __init__(self, path: Path) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        with np.load(path) as stored:
            for name in sorted(stored.files):
                if not name.endswith("_w"):
                    continue
                weight = torch.from_numpy(stored[name].astype(np.float32))
                bias = torch.from_numpy(stored[f"{name[:-2]}_b"].astype(np.float32))
                order = (3, 0, 1, 2) if "DEPTHWISE" in name else (0, 3, 1, 2)
                self.layers.append((weight.permute(order).contiguous(), bias))
        expected = 3 + sum(blocks * (2 + (expand > 1)) for expand, blocks, _ in STAGES)
        if len(self.layers) != expected:
            raise InputError(f"{path}: expected {expected} layers, got {len(self.layers)}")

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, 1001), the first of the background, of images (N, 3, H, W) in [-1, 1]."""
        layers = iter(self.layers)

        def conv(x: Tensor, stride: int = 1) -> Tensor:
            weight, bias = next(layers)
            groups = x.shape[1] // weight.shape[1]
            return F.conv2d(_padded(x, weight.shape[2], stride), weight, bias, stride, 0, 1, groups)

        x = F.relu6(conv(images, 2))
        for expand, blocks, first_stride in STAGES:
            for block in range(blocks):
                before, stride = x, first_stride if block == 0 else 1
                if expand > 1:
                    x = F.relu6(conv(x))
                x = conv(F.relu6(conv(x, stride)))
                if stride == 1 and before.shape == x.shape:
                    x = before + x
        x = F.relu6(conv(x)).mean((2, 3), keepdim=True)
        return conv(x).flatten(1)


def _padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's SAME: an odd pixel goes to the right and to the bottom."""
    sides: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides) if any(sides) else x


def predictions(
    network: FoldedMobileNetV2, images: FolderImages, decoder: str, interpolation: str, threads: int
) -> np.ndarray:
    """What the network takes each image for, as an index of ImageNet's 1,001 with background."""
    transform = eval_transform(SIZE, crop_ratio=0.875, interpolation=interpolation)
    loader = eval_loader(images, transform, batch_size=32, workers=threads, decoder=decoder)
    found = []
    with closing(loader), torch.inference_mode():
        for pixels, _ in loader.epoch(0):
            inputs = ((pixels.float() - 127.5) / 127.5).permute(0, 3, 1, 2)
            found.append(network(inputs).argmax(1))
    return torch.cat(found).numpy()


def available(decoder: str) -> bool:
    """Whether a decoder is installed; says so if not."""
    try:
        open_decoder(decoder, 1).close()
    except InputError as error:
        print(f"left out: {error}")
        return False
    return True


def main() -> None:
    """Print the tables."""
    here = Path(__file__).resolve().parents[1]
    default = os.environ.get("MOBILENEXT_DATA", str(here.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    samples, weights = arguments.data / SAMPLES, arguments.data / WEIGHTS
    if not samples.is_dir() or not weights.is_file():
        raise SystemExit(f"expected {SAMPLES} and {WEIGHTS} in {arguments.data}; use --data")

    synsets = sorted(ImageNetInfo("imagenet-1k").label_names())
    classes = [synset for synset in synsets if (samples / synset).is_dir()]
    images = FolderImages(samples, classes)
    # The weights count from 1, after the background.
    labels = np.array([1 + synsets.index(name) for name in classes])[images.labels]
    network = FoldedMobileNetV2(weights)
    names = [name for name in DECODERS if available(name)]
    print(f"{len(images)} images of {len(classes)} classes; one image is {100 / len(images):.2f}")
    worst = 0.0
    for interpolation in ("bilinear", "bicubic"):
        heads = f"{'top-1':>8}{'to pillow':>12}{'same answer':>14}{'gained':>8}{'lost':>6}"
        print(f"\n{interpolation:<14}{heads}")
        baseline, top1 = np.array([]), 0.0
        for name in names:
            found = predictions(network, images, name, interpolation, arguments.threads)
            score = 100 * float(np.mean(found == labels))
            if name == BASELINE:
                baseline, top1 = found, score
            same = 100 * float(np.mean(found == baseline))
            worst = max(worst, abs(score - top1))
            right, before = found == labels, baseline == labels
            gained, lost = int(np.sum(right & ~before)), int(np.sum(before & ~right))
            print(
                f"{name:<14}{score:>7.2f}%{score - top1:>+12.2f}{same:>13.2f}%{gained:>8}{lost:>6}"
            )
    verdict = "met" if worst < MOST_POINTS else "missed"
    print(f"\nlargest difference {worst:.2f} points, target below {MOST_POINTS}: {verdict}")


if __name__ == "__main__":
    main()
