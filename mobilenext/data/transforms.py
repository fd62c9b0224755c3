"""From a decoded image to uint8 pixels of the network's size; runs on the host, image by image.

Random draws come from the host's global generators, which the loader seeds for each image.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torch import Tensor
from torchvision.transforms import v2

from mobilenext.errors import InputError

INTERPOLATIONS = ("bilinear", "bicubic")

Transform = Callable[[PIL.Image.Image], Tensor]


def train_transform(
    image_size: int,
    *,
    crop_scale: Sequence[float] = (0.08, 1.0),
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
    interpolation: str = "random",
    hflip: float = 0.5,
    color_jitter: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    randaugment: str | None = None,
    erasing: float = 0.0,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
) -> Transform:
    """Random resized crop, flip, RandAugment, colour jitter, random erasing, in this order.

    Args:
        image_size: Height and width of the result, in pixels.
        crop_scale: Range of the crop's share of the area.
        crop_ratio: Range of the crop's width over height.
        interpolation: bilinear, bicubic, or random: one of the two for each image.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength for brightness, contrast, saturation and hue.
        randaugment: timm's description, for instance rand-m9-mstd0.5 (arXiv 1909.13719), or None.
        erasing: Probability of random erasing (arXiv 1708.04896).
        mean: Channel means in [0, 1]; fills what RandAugment uncovers and what is erased.

    Returns:
        A function from an RGB image to uint8 pixels (image_size, image_size, 3).

    Raises:
        InputError: An unknown interpolation or RandAugment description.
    """
    fill = [round(255 * value) for value in mean]
    _check_interpolation("augment.interpolation", interpolation, ("random", *INTERPOLATIONS))
    steps: list[Callable[..., Any]] = [
        RandomResizedCropAndInterpolation(
            image_size, tuple(crop_scale), tuple(crop_ratio), interpolation
        )
    ]
    if hflip > 0:
        steps.append(v2.RandomHorizontalFlip(hflip))
    if randaugment is not None:
        settings = {"translate_const": int(image_size * 0.45), "img_mean": tuple(fill)}
        try:
            steps.append(rand_augment_transform(randaugment, settings))
        except (AssertionError, ValueError, KeyError) as error:
            raise InputError(
                f"augment.randaugment={randaugment}: expected timm's description of RandAugment, "
                "for instance rand-m9-mstd0.5"
            ) from error
    if any(color_jitter):
        steps.append(v2.ColorJitter(*color_jitter))
    erase: Callable[..., Tensor] | None = None
    if erasing > 0:
        erase = v2.RandomErasing(erasing, value=fill)  # pyright: ignore[reportArgumentType]

    return _HostTransform(steps, erase)


def eval_transform(
    image_size: int, *, crop_ratio: float = 0.875, interpolation: str = "bicubic"
) -> Transform:
    """Resize the short side to image_size / crop_ratio, then crop the centre.

    Args:
        image_size: Height and width of the crop, in pixels.
        crop_ratio: 0.875 is the usual 256 for 224; 1 keeps all of a square image.
        interpolation: bilinear or bicubic, antialiased as Pillow does.

    Returns:
        A function from an RGB image to uint8 pixels (image_size, image_size, 3).

    Raises:
        InputError: An unknown interpolation.
    """
    _check_interpolation("data.eval_interpolation", interpolation, INTERPOLATIONS)
    resize = v2.Resize(
        math.floor(image_size / crop_ratio), interpolation=str_to_interp_mode(interpolation)
    )
    crop = v2.CenterCrop(image_size)
    return _HostTransform([resize, crop])


def _check_interpolation(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{key}: expected one of {', '.join(choices)}, got {value!r}")


class _HostTransform:
    """Steps on the image, then one on the pixels; picklable, for loader processes."""

    def __init__(
        self, steps: Sequence[Callable[..., Any]], erase: Callable[..., Tensor] | None = None
    ) -> None:
        self.steps, self.erase = steps, erase

    def __call__(self, image: PIL.Image.Image) -> Tensor:
        for step in self.steps:
            image = step(image)
        pixels = torch.from_numpy(np.array(image))
        if self.erase is not None:
            pixels = self.erase(pixels.permute(2, 0, 1)).permute(1, 2, 0)
        return pixels
