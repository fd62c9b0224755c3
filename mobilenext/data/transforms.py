"""Transforms: crops, flips and interpolation of images; and RandAugment, image by image.

A transform says for many images at once which part of each becomes which pixels (`views`), as a
function of (seed, epoch, index) and the images' sizes. Decoders then decode no more than that.
Colours are jittered and rectangles erased on the device, batch by batch (`mobilenext.data.device`).
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mobilenext.data.encoded import FILTERS, VIEW
from mobilenext.data.sources import Images
from mobilenext.errors import InputError
from mobilenext.seeding import host_draws, uniforms

if TYPE_CHECKING:
    from timm.data.auto_augment import AugmentOp, RandAugment

RESAMPLING = (PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC)
"""FILTERS as Pillow names them."""

CROP_TRIES = 10

MOST_RESIZED = 4
"""Evaluation resizes a whole image only while no side becomes longer than this many crops."""


class Transform(Protocol):
    """Maps images to pixels of the network's size."""

    @property
    def image_size(self) -> int:
        """Height and width of the result, in pixels."""
        ...

    def views(
        self,
        sizes: np.ndarray,
        indices: np.ndarray,
        seed: int,
        epoch: int,
        own: np.ndarray | None = None,
    ) -> np.ndarray:
        """The view of each image: the part that is seen, and how.

        Args:
            sizes: Widths and heights in pixels, (N, 2).
            indices: The places in the split that draws are made for, (N,).
            seed: The run's seed.
            epoch: Counter of the draws.
            own: The images' own places, if others' draws are used; (N,).

        Returns:
            A `VIEW` for each image.
        """
        ...

    def keep_context(self, views: np.ndarray) -> np.ndarray:
        """Whether each view keeps its context: bool (N,).

        Such a view is cut out of the resized whole image, so its border depends on pixels outside
        of its box. Any other view is a crop that is cut out first and resized by itself.

        Args:
            views: Views of this transform, (N,).
        """
        ...

    def render(self, image: PIL.Image.Image, view: np.void) -> np.ndarray:
        """A view of an RGB image by Pillow: uint8 (image_size, image_size, 3)."""
        ...

    def targets(self, images: Images, indices: np.ndarray, views: np.ndarray) -> Tensor:
        """The targets of a batch, in memory of their own on the host.

        Args:
            images: The split.
            indices: The images' places in it, (N,).
            views: How each is seen, (N,).
        """
        ...

    @property
    def fill(self) -> tuple[int, int, int] | None:
        """Colour of what views show beyond their images, put there on the host; None: nothing."""
        ...

    @property
    def finish(self) -> Callable[[np.ndarray, int, int, int], np.ndarray] | None:
        """A further step on the host, (pixels, seed, epoch, index) to pixels; or None."""
        ...


def covered(views: np.ndarray, size: int) -> np.ndarray:
    """Where the images lie in the pixels of their views: x0, y0, x1, y1, float32 (N, 4).

    Args:
        views: `VIEW` (N,). A side that lies beyond the image ends at the view's limits.
        size: Height and width of the pixels.
    """
    box = views["box"]
    origin, scale = np.tile(box[:, :2], 2), size / np.tile(box[:, 2:] - box[:, :2], 2)
    places = ((views["limits"] - origin) * scale).clip(0, size)
    return mirrored(places, views["flip"] != 0, size).astype(np.float32)


def mirrored(boxes: np.ndarray, flip: np.ndarray, size: int) -> np.ndarray:
    """Boxes (N, 4), left and right exchanged where `flip` (N,) says so, in `size` pixels."""
    turned = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [size, 0, size, 0]
    return np.where(flip[:, None], turned, boxes)


def is_beyond(view: np.void) -> bool:
    """Whether a view shows more than its image."""
    (x0, y0, x1, y1), (left, top, right, bottom) = view["box"].tolist(), view["limits"].tolist()
    return x0 < left or y0 < top or x1 > right or y1 > bottom


def render_beyond(image: PIL.Image.Image, view: np.void, size: int) -> np.ndarray:
    """A view that shows more than its image, by Pillow; 0 where there is no image.

    Pillow resizes parts of an image only. So the pixels that have something of the image are
    resized, from a box that reaches less than one of them beyond it, over repeated edge pixels.
    """
    one = np.array([view], view.dtype)
    one["flip"] = 0
    place = covered(one, size)[0]
    first = np.floor(place[:2]).astype(int).clip(0, size - 1)
    last = np.maximum(np.ceil(place[2:]).astype(int), first + 1)
    corner, limits = view["box"][:2], view["limits"].astype(np.float64)
    step = (view["box"][2:] - corner) / size
    box = np.concatenate([corner + first * step, corner + last * step])
    before = np.ceil((limits[:2] - box[:2]).clip(0)).astype(int)
    after = np.ceil((box[2:] - limits[2:]).clip(0)).astype(int)
    part = np.asarray(image.crop(tuple(view["limits"].tolist())))
    margins = ((before[1], after[1]), (before[0], after[0]), (0, 0))
    source = PIL.Image.fromarray(np.pad(part, margins, mode="edge"))
    shift = np.tile(before - limits[:2], 2)
    inner = (box + shift).clip(0, np.tile(source.size, 2)).tolist()
    shape = (int(last[0] - first[0]), int(last[1] - first[1]))
    pixels = np.zeros((size, size, 3), np.uint8)
    resized = source.resize(shape, RESAMPLING[view["filter"]], box=inner)
    pixels[first[1] : last[1], first[0] : last[0]] = np.asarray(resized)
    return pixels


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
    pad_crop: int | None = None,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
) -> "TrainTransform":
    """Random resized crop, flip, RandAugment, colour jitter, random erasing, in this order.

    Args:
        image_size: Height and width of the result, in pixels.
        crop_scale: Range of the crop's share of the area.
        crop_ratio: Range of the crop's width over height.
        interpolation: bilinear, bicubic, or random: one of the two for each image.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength for brightness, contrast, saturation and hue; applied on the device.
        randaugment: timm's description, for instance rand-m9-mstd0.5 (arXiv 1909.13719), or None.
        erasing: Probability of random erasing (arXiv 1708.04896); applied on the device.
        pad_crop: In place of the random resized crop, the whole image shifted by up to this many
            pixels of the result on each axis, over black: torchvision's RandomCrop with padding,
            as networks for CIFAR are trained. None: random resized crops.
        mean: Channel means in [0, 1]; fills what RandAugment uncovers.

    Raises:
        InputError: An unknown interpolation or RandAugment description.
    """
    _check_interpolation("augment.interpolation", interpolation, ("random", *FILTERS))
    policy = None
    if randaugment is not None:
        from timm.data.auto_augment import rand_augment_transform

        fill = tuple(round(255 * value) for value in mean)
        settings = {"translate_const": int(image_size * 0.45), "img_mean": fill}
        try:
            policy = _RandAugment(rand_augment_transform(randaugment, settings))
        except (AssertionError, ValueError, KeyError) as error:
            raise InputError(
                f"augment.randaugment={randaugment}: expected timm's description of RandAugment, "
                "for instance rand-m9-mstd0.5"
            ) from error
    low, high = crop_scale
    return TrainTransform(
        image_size,
        (low, high),
        (crop_ratio[0], crop_ratio[1]),
        interpolation,
        hflip,
        tuple(color_jitter),
        erasing,
        policy,
        pad_crop,
    )


def eval_transform(
    image_size: int, *, crop_ratio: float = 0.875, interpolation: str = "bicubic"
) -> "EvalTransform":
    """Resize the short side to image_size / crop_ratio, then crop the centre.

    Args:
        image_size: Height and width of the crop, in pixels.
        crop_ratio: 0.875 is the usual 256 for 224; 1 keeps all of a square image.
        interpolation: bilinear or bicubic, antialiased as Pillow does.

    Raises:
        InputError: An unknown interpolation.
    """
    _check_interpolation("data.eval_interpolation", interpolation, FILTERS)
    return EvalTransform(image_size, math.floor(image_size / crop_ratio), interpolation)


def limits_within(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The whole pixels of images that boxes touch: left, top, right, bottom, (N, 4).

    At least one pixel, the nearest where a box lies beside its image.

    Args:
        boxes: x0, y0, x1, y1 in pixels of each image, (N, 4).
        sizes: Widths and heights of the images, (N, 2).
    """
    low = np.minimum(np.floor(boxes[:, :2]).clip(0), sizes - 1)
    high = np.maximum(np.minimum(np.ceil(boxes[:, 2:]), sizes), low + 1)
    return np.concatenate([low, high], axis=1)


def render_crop(image: PIL.Image.Image, view: np.void, size: int) -> np.ndarray:
    """A view that is cut out, then resized, by Pillow: uint8 (size, size, 3)."""
    if is_beyond(view):
        pixels = render_beyond(image, view, size)
    else:
        crop = image.crop(tuple(view["limits"].tolist()))
        pixels = np.asarray(crop.resize((size, size), RESAMPLING[view["filter"]]))
    return pixels[:, ::-1] if view["flip"] else pixels


@dataclass(frozen=True)
class TrainTransform:
    """See `train_transform`."""

    image_size: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    interpolation: str
    hflip: float
    color_jitter: tuple[float, ...]
    erasing: float
    randaugment: "_RandAugment | None"
    pad_crop: int | None = None

    def views(
        self,
        sizes: np.ndarray,
        indices: np.ndarray,
        seed: int,
        epoch: int,
        own: np.ndarray | None = None,
    ) -> np.ndarray:
        """Random crops as torchvision and timm draw them; see `Transform.views`."""
        del own
        if self.pad_crop is not None:
            return self._shifted(self.pad_crop, sizes, indices, seed, epoch)
        draws = uniforms(indices, 2 * CROP_TRIES + 4, "sample", seed, epoch)
        width, height = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
        low, high = self.crop_scale
        area = width * height * (low + (high - low) * draws[:, :CROP_TRIES])
        least, most = np.log(self.crop_ratio)
        ratio = np.exp(least + (most - least) * draws[:, CROP_TRIES : 2 * CROP_TRIES])
        widths, heights = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
        fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
        first = (np.arange(len(sizes)), fits.argmax(1))
        w, h = widths[first], heights[first]
        # None fits: the largest central crop within the range of ratios.
        none, width, height = ~fits.any(1), width[:, 0], height[:, 0]
        least, most = self.crop_ratio
        w = np.where(none, np.minimum(width, np.maximum(1, np.round(height * most))), w)
        h = np.where(none, np.minimum(height, np.maximum(1, np.round(width / least))), h)
        x, y, flip, cubic = draws[:, 2 * CROP_TRIES :].T
        left = np.where(none, np.round((width - w) / 2), np.floor(x * (width - w + 1)))
        top = np.where(none, np.round((height - h) / 2), np.floor(y * (height - h + 1)))
        views = np.zeros(len(sizes), VIEW)
        views["box"] = views["limits"] = np.stack([left, top, left + w, top + h], axis=1)
        views["flip"] = flip < self.hflip
        random_one = self.interpolation == "random"
        views["filter"] = cubic < 0.5 if random_one else FILTERS.index(self.interpolation)
        return views

    def _shifted(
        self, most: int, sizes: np.ndarray, indices: np.ndarray, seed: int, epoch: int
    ) -> np.ndarray:
        """Whole images, shifted by up to `most` pixels of the result."""
        draws = uniforms(indices, 4, "shift", seed, epoch)
        shift = np.floor(draws[:, :2] * (2 * most + 1)) - most
        corner = shift * sizes / self.image_size
        views = np.zeros(len(sizes), VIEW)
        views["box"] = np.concatenate([corner, corner + sizes], axis=1)
        views["limits"] = limits_within(views["box"], sizes)
        views["flip"] = draws[:, 2] < self.hflip
        random_one = self.interpolation == "random"
        views["filter"] = draws[:, 3] < 0.5 if random_one else FILTERS.index(self.interpolation)
        return views

    def targets(self, images: Images, indices: np.ndarray, views: np.ndarray) -> Tensor:
        """The images' own targets; see `Transform.targets`."""
        del views
        return images.targets(indices)

    @property
    def fill(self) -> tuple[int, int, int] | None:
        """See `Transform.fill`."""
        return None if self.pad_crop is None else (0, 0, 0)

    def keep_context(self, views: np.ndarray) -> np.ndarray:
        """No crop keeps its context; see `Transform.keep_context`."""
        return np.zeros(len(views), bool)

    def render(self, image: PIL.Image.Image, view: np.void) -> np.ndarray:
        """See `Transform.render`."""
        return render_crop(image, view, self.image_size)

    @property
    def finish(self) -> Callable[[np.ndarray, int, int, int], np.ndarray] | None:
        """See `Transform.finish`."""
        return self.randaugment

    def __call__(
        self, image: PIL.Image.Image, seed: int = 0, epoch: int = 0, index: int = 0
    ) -> Tensor:
        """The pixels of one image, uint8 (image_size, image_size, 3)."""
        return _whole(self, image, seed, epoch, index)


@dataclass(frozen=True)
class EvalTransform:
    """See `eval_transform`."""

    image_size: int
    short_side: int
    interpolation: str

    finish = None
    fill = None

    def views(
        self,
        sizes: np.ndarray,
        indices: np.ndarray,
        seed: int,
        epoch: int,
        own: np.ndarray | None = None,
    ) -> np.ndarray:
        """The centre, without a draw; see `Transform.views`."""
        del indices, seed, epoch, own
        resized = self._resized(sizes)
        offset = _centre(resized, self.image_size)
        scale = sizes / resized
        views = np.zeros(len(sizes), VIEW)
        views["box"] = np.concatenate([offset, offset + self.image_size], axis=1) * np.tile(
            scale, 2
        )
        views["limits"][:, 2:] = sizes
        views["filter"] = FILTERS.index(self.interpolation)
        return views

    def targets(self, images: Images, indices: np.ndarray, views: np.ndarray) -> Tensor:
        """The images' own targets; see `Transform.targets`."""
        del views
        return images.targets(indices)

    def keep_context(self, views: np.ndarray) -> np.ndarray:
        """Every view keeps it, unless it is of a whole image; see `Transform.keep_context`."""
        return (views["box"] != views["limits"]).any(axis=1)

    def render(self, image: PIL.Image.Image, view: np.void) -> np.ndarray:
        """See `Transform.render`."""
        if is_elongated(view):
            # The same but for rounding, which is why other images are resized as a whole.
            size = (self.image_size, self.image_size)
            box = np.minimum(view["box"], np.tile(image.size, 2)).tolist()
            return np.asarray(image.resize(size, RESAMPLING[view["filter"]], box=box))
        resized = self._resized(np.array([image.size]))
        left, top = _centre(resized, self.image_size)[0].tolist()
        whole = image.resize(tuple(resized[0].tolist()), RESAMPLING[view["filter"]])
        box = (left, top, left + self.image_size, top + self.image_size)
        return np.asarray(whole.crop(box))

    def _resized(self, sizes: np.ndarray) -> np.ndarray:
        """Sizes with the short side as asked, the long one cut to whole pixels."""
        return sizes * self.short_side // sizes.min(axis=1, keepdims=True)

    def __call__(self, image: PIL.Image.Image) -> Tensor:
        """The pixels of one image, uint8 (image_size, image_size, 3)."""
        return _whole(self, image, 0, 0, 0)


def is_elongated(view: np.void) -> bool:
    """Whether the image is so long and thin that resizing all of it would take too much memory.

    Args:
        view: A `VIEW` of it.
    """
    left, top, right, bottom = view["limits"].tolist()
    x0, y0, x1, y1 = view["box"].tolist()
    longest = max((right - left) / (x1 - x0), (bottom - top) / (y1 - y0))
    return longest > MOST_RESIZED


def _whole(
    transform: Transform, image: PIL.Image.Image, seed: int, epoch: int, index: int
) -> Tensor:
    view = transform.views(np.array([image.size]), np.array([index]), seed, epoch)[0]
    pixels = transform.render(image, view)
    if transform.finish is not None:
        pixels = transform.finish(pixels, seed, epoch, index)
    return torch.from_numpy(np.array(pixels))


def _centre(sizes: np.ndarray, size: int) -> np.ndarray:
    """Corner of a central square; halves are rounded to even, as torchvision does."""
    return np.round((sizes - size) / 2).astype(np.int64)


def _check_interpolation(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{key}: expected one of {', '.join(choices)}, got {value!r}")


class _RandAugment:
    """timm's RandAugment, safe for threads.

    Its operations draw from the global generators while they compute. Here all draws come first,
    while other threads wait, and the operations then run beside them.
    """

    def __init__(self, policy: "RandAugment") -> None:
        self.policy = policy

    def __call__(self, pixels: np.ndarray, seed: int, epoch: int, index: int) -> np.ndarray:
        """Augmented pixels, uint8 (H, W, 3), of pixels of this shape."""
        with host_draws("augment", seed, epoch, index):
            operations = np.random.choice(  # noqa: NPY002
                self.policy.ops,
                self.policy.num_layers,
                replace=self.policy.choice_weights is None,
                p=self.policy.choice_weights,
            )
            steps = [self._drawn(operation) for operation in operations]
        image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
        for step in steps:
            image = step(image)
        return np.asarray(image)

    @staticmethod
    def _drawn(operation: "AugmentOp") -> Callable[[PIL.Image.Image], PIL.Image.Image]:
        """One operation with its draws made, in timm's order of drawing."""
        if operation.prob < 1 and random.random() > operation.prob:
            return lambda image: image
        magnitude = operation.magnitude
        spread: Any = operation.magnitude_std
        if spread == math.inf:
            magnitude = random.uniform(0, magnitude)
        elif spread > 0:
            magnitude = random.gauss(magnitude, spread)
        magnitude = max(0.0, min(magnitude, operation.magnitude_max or 10.0))
        level: tuple[Any, ...] = ()
        if operation.level_fn is not None:
            level = operation.level_fn(magnitude, operation.hparams)
        resample = operation.kwargs["resample"]
        if isinstance(resample, list | tuple):
            resample = random.choice(resample)
        settings = {**operation.kwargs, "resample": resample}
        return lambda image: operation.aug_fn(image, *level, **settings)
