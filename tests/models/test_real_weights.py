"""Weights that were trained elsewhere, in our MobileNetV2, on real photographs.

From a TFLite model: batch norms are folded into the convolutions, there is a class for background
before ImageNet's 1,000, and padding is TensorFlow's, which puts an odd pixel to the right and to
the bottom. The images are probably from the training split: that nearly all are recognised says
that the network computes what it should, and nothing about how well it generalises.
"""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data.imagenet_info import ImageNetInfo
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from mobilenext.data import eval_loader, eval_transform
from mobilenext.data.sources import FolderImages
from mobilenext.models import MobileNetV2
from mobilenext.models.weights import fit_weights

WEIGHTS = "weights/mobilenet_v2_1.0_224_folded_fp16.npz"
SAMPLES = "imagenet_samples"


def folded(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weights (out, in, height, width) and biases of the layers, in order of use."""
    layers = []
    with np.load(path) as stored:
        for name in sorted(name for name in stored.files if name.endswith("_w")):
            weight = torch.from_numpy(stored[name].astype(np.float32))
            bias = torch.from_numpy(stored[f"{name[:-2]}_b"].astype(np.float32))
            order = (3, 0, 1, 2) if "DEPTHWISE" in name else (0, 3, 1, 2)
            layers.append((weight.permute(order).contiguous(), bias))
    return layers


def state_dict(layers: list[tuple[Tensor, Tensor]], network: nn.Module) -> dict[str, Tensor]:
    """The layers under the network's names; each norm only adds its convolution's bias."""
    found: dict[str, Tensor] = {}
    rest = iter(layers)
    weight = bias = torch.empty(0)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight, bias = next(rest)
        if isinstance(module, nn.Conv2d):
            found[f"{name}.weight"] = weight
        elif isinstance(module, nn.BatchNorm2d):
            channels = module.num_features
            found[f"{name}.weight"], found[f"{name}.bias"] = torch.ones(channels), bias
            found[f"{name}.running_mean"] = torch.zeros(channels)
            found[f"{name}.running_var"] = torch.full((channels,), 1 - module.eps)
        elif isinstance(module, nn.Linear):
            found[f"{name}.weight"], found[f"{name}.bias"] = weight.flatten(1), bias
    assert next(rest, None) is None
    return found


def pad_as_tensorflow(network: nn.Module) -> None:
    """Replace the convolutions that stride; the others pad both sides alike in either code."""
    replaced = 0
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                same = Conv2dSame(
                    module.in_channels,
                    module.out_channels,
                    module.kernel_size,
                    stride=2,
                    groups=module.groups,
                    bias=False,
                )
                setattr(parent, name, same)
                replaced += 1
    assert replaced == 5


def share_recognised(network: nn.Module, data: Path, every: int) -> tuple[float, int]:
    """Top-1 in per cent, of each `every`-th class, and the number of images."""
    synsets = sorted(ImageNetInfo("imagenet-1k").label_names())
    classes = [name for name in synsets if (data / SAMPLES / name).is_dir()][::every]
    images = FolderImages(data / SAMPLES, classes)
    # The weights count from 1, after the background.
    labels = torch.tensor([1 + synsets.index(name) for name in classes])[images.labels]
    transform = eval_transform(224, crop_ratio=0.875, interpolation="bilinear")
    right = []
    with (
        closing(eval_loader(images, transform, batch_size=32, workers=1)) as loader,
        torch.inference_mode(),
    ):
        for pixels, _ in loader.epoch(0):
            inputs = ((pixels.float() - 127.5) / 127.5).permute(0, 3, 1, 2)
            right.append(network(inputs).argmax(1))
    return 100 * float((torch.cat(right) == labels).double().mean()), len(images)


@pytest.mark.parametrize(
    ("every", "least"), [(3, 100), pytest.param(1, 300, marks=pytest.mark.slow)]
)
def test_real_weights_recognise_photographs(development_data: Path, every: int, least: int) -> None:
    missing = [name for name in (WEIGHTS, SAMPLES) if not (development_data / name).exists()]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} in {development_data}")
    network = MobileNetV2(num_classes=1001)
    tensors = state_dict(folded(development_data / WEIGHTS), network)
    fitted = fit_weights(tensors, network)
    assert not fitted.classifier_left_out
    network.load_state_dict({**network.state_dict(), **fitted.tensors})
    untouched = network.eval()(torch.zeros(1, 3, 224, 224))
    pad_as_tensorflow(network)
    network.load_state_dict({**network.state_dict(), **fitted.tensors})
    network.eval()
    assert not torch.equal(untouched, network(torch.zeros(1, 3, 224, 224)))  # padding matters
    top1, count = share_recognised(network, development_data, every)
    assert count >= least
    assert top1 >= 88
