"""From a config to batches: loaders of both splits, and what happens to batches on the device."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from mobilenext.config import DataConfig, LoopConfig, SearchConfig, TrainConfig, to_plain
from mobilenext.data import (
    Augment,
    DeviceBatches,
    ImageData,
    Loader,
    Mixing,
    eval_loader,
    eval_transform,
    train_loader,
    train_transform,
    two_parts,
)
from mobilenext.data.transforms import EvalTransform
from mobilenext.errors import InputError
from mobilenext.runtime.distributed import Process
from mobilenext.training.unreadable import Loaders

GENTLE_CROPS = (0.35, 1.0)
"""Range of a crop's share of an image's area, as in configs/augment/gentle.yaml."""


@contextmanager
def class_loaders(config: TrainConfig, images: ImageData, process: Process) -> Iterator[Loaders]:
    """This process's batches of both splits; their threads end with the context.

    Raises:
        InputError: The batch can't be shared or split, or a decoder is not to be had.
    """
    with (
        closing(training_loader(config, images, process)) as train,
        closing(validation_loader(config.data, images, process)) as val,
    ):
        yield Loaders(train, val)


ON_DEVICE = ("mixup", "cutmix", "cutout")
"""Entries of `augment` that are done with batches on the device."""


def training_loader(
    config: TrainConfig | SearchConfig,
    images: ImageData,
    process: Process,
    paired_share: float | None = None,
) -> Loader:
    """Augmented batches of this process.

    Args:
        config: The run's config.
        images: Its data.
        process: This process.
        paired_share: See `train_loader`.

    Raises:
        InputError: The batch can't be shared by the processes or split into micro-batches, the
            decoder is not to be had, or the images do not suit `data.order` or `data.readahead`.
    """
    data = config.data
    augment = to_plain(config.augment)
    on_host = {key: value for key, value in augment.items() if key not in ON_DEVICE}
    loader = train_loader(
        images.train,
        train_transform(data.image_size, mean=data.mean, **on_host),
        seed=config.seed,
        global_batch_size=data.global_batch_size,
        paired_share=paired_share,
        order=data.order,
        **loading(data, process),
    )
    share = data.global_batch_size // process.world_size
    if share % 2 and (augment["mixup"] or augment["cutmix"]):
        raise InputError(
            f"mixup and cutmix pair images: expected an even number of them on each process, got "
            f"{share}; change data.global_batch_size"
        )
    images_of_pass(config, process)
    return loader


def images_of_pass(config: LoopConfig, process: Process) -> tuple[int, int]:
    """Images of one forward pass of one process, and the processes that share a norm's statistics.

    Args:
        config: The run's config: `norm_batch`, or `runtime.micro_batch`, or the whole share; norms
            are of all processes with `batch_norm` sync.
        process: This process.

    Raises:
        InputError: This process's share of a batch can't be divided like that.
    """
    data, micro_batch, wanted = config.data, config.runtime.micro_batch, config.norm_batch
    share, ranks = data.global_batch_size // process.world_size, process.world_size
    whole = f"data.global_batch_size={data.global_batch_size} over {ranks}"
    if wanted is not None:
        if share % wanted == 0:
            return wanted, 1
        if wanted % share == 0 and ranks % (wanted // share) == 0:
            return share, wanted // share
        fits = [even_micro_batch(share, wanted)]
        fits += [share * size for size in range(2, ranks + 1) if ranks % size == 0]
        raise InputError(
            f"norm_batch={wanted}: expected a divisor of {share}, the images of one process "
            f"({whole}), or {share} times a divisor of the number of processes: for instance "
            f"norm_batch={min(fits, key=lambda size: abs(size - wanted))}"
        )
    together = ranks if config.batch_norm == "sync" else 1
    if micro_batch is None:
        return share, together
    if share % micro_batch:
        fit = even_micro_batch(share, micro_batch)
        raise InputError(
            f"runtime.micro_batch={micro_batch}: expected a divisor of {share}, the images of one "
            f"process ({whole}), for instance runtime.micro_batch={fit}; batch norms then see "
            f"{fit} images at a time. norm_batch={micro_batch} in its place keeps their number "
            "where processes have fewer images as well"
        )
    return micro_batch, together


def finetuning_loader(data: DataConfig, images: ImageData, seed: int, process: Process) -> Loader:
    """Training images as evaluation sees them but for gentle crops and flips.

    Raises:
        InputError: The split has fewer images than a batch, or the decoder is not to be had.
    """
    transform = train_transform(
        data.eval_size, crop_scale=GENTLE_CROPS, interpolation=data.eval_interpolation,
        mean=data.mean,
    )  # fmt: skip
    return train_loader(
        images.train, transform, seed=seed, global_batch_size=data.global_batch_size,
        order=data.order, **loading(data, process),
    )  # fmt: skip


def even_micro_batch(share: int, most: int) -> int:
    """The largest micro-batch of at most `most` images that divides a process's share evenly."""
    return max(size for size in range(1, min(most, share) + 1) if share % size == 0)


@contextmanager
def search_loaders(config: SearchConfig, images: ImageData, process: Process) -> Iterator[Loaders]:
    """Pairs of training images, and those that the weights don't learn from, for evaluation.

    The validation split is not touched: the alphas must not have seen what found networks are
    judged by.

    Raises:
        InputError: As `class_loaders`, or a part of the images is smaller than a batch.
    """
    data = config.data
    with closing(training_loader(config, images, process, config.train_share)) as train:
        _, held_out = two_parts(len(images.train), config.seed, config.train_share)
        val = eval_loader(
            images.train, evaluation_transform(data), batch_size=data.eval_batch_size,
            places=held_out, **loading(data, process),
        )  # fmt: skip
        with closing(val):
            yield Loaders(train, val)


def validation_loader(data: DataConfig, images: ImageData, process: Process) -> Loader:
    """This process's share of the validation split, transformed as the config says."""
    return eval_loader(
        images.val,
        evaluation_transform(data),
        batch_size=data.eval_batch_size,
        **loading(data, process),
    )


def loading(data: DataConfig, process: Process) -> dict[str, Any]:
    """Arguments that both loaders share: which part of a batch, by which threads, where to."""
    return {
        "rank": process.rank,
        "world_size": process.world_size,
        "workers": decoding_threads(data, process),
        "pin_memory": process.device.type == "cuda",
        "on_bad_image": data.on_bad_image,
        "max_bad_share": data.max_bad_share,
        "decoder": data.decoder,
        "device": process.device,
        "readahead": data.readahead,
    }


def evaluation_transform(data: DataConfig) -> EvalTransform:
    """Transform of evaluation images."""
    return eval_transform(
        data.eval_size, crop_ratio=data.eval_crop_ratio, interpolation=data.eval_interpolation
    )


def decoding_threads(data: DataConfig, process: Process) -> int:
    """Number of threads of this process that decode images."""
    return process.cpus if data.workers is None else data.workers


def device_batches(data: DataConfig, process: Process, channels_last: bool) -> DeviceBatches:
    """From batches on the host to normalised images on this process's device."""
    return DeviceBatches(data.mean, data.std, process.device, channels_last)


def device_augment(
    config: TrainConfig | SearchConfig, process: Process, images_of_one: int = 1
) -> Augment:
    """Colour jitter, erasing and cutout of training images, batch by batch on the device.

    Args:
        config: The run's config.
        process: This process.
        images_of_one: Images in a batch for each of `data.global_batch_size`; 2 for pairs.
    """
    return Augment(
        config.augment.color_jitter,
        config.augment.erasing,
        config.seed,
        images_of_one * config.data.global_batch_size,
        process.rank,
        process.world_size,
        config.augment.cutout,
        compiled=config.runtime.compile and process.device.type == "cuda",
    )


def mixing(config: TrainConfig, num_classes: int) -> Mixing:
    """Mixup and CutMix of training batches."""
    return Mixing(config.augment.mixup, config.augment.cutmix, num_classes, config.seed)
