from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as F

from mobilenext.data import Augment, DeviceBatches, Mixing, target_texts
from mobilenext.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize("channels_last", [True, False])
def test_normalise(channels_last: bool) -> None:
    pixels = torch.randint(0, 256, (4, 5, 6, 3), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    images, labels = DeviceBatches(mean, std, CPU, channels_last)(pixels, torch.arange(4))
    expected = (pixels / 255 - torch.tensor(mean)) / torch.tensor(std)
    assert images.dtype == torch.float32
    assert torch.allclose(images, expected.permute(0, 3, 1, 2), atol=1e-5)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=memory_format)
    assert labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("channels_last", [True, False])
def test_normalised_images_as_pictures(channels_last: bool) -> None:
    """Every value comes back; what augmentation has made brighter than white is white."""
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, 16, 16, 3)
    batches = DeviceBatches((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), CPU, channels_last)
    images, _ = batches(pixels, torch.arange(2))
    assert torch.equal(batches.pictures(images), pixels)
    assert batches.pictures(images + 100).unique().tolist() == [255]


def test_targets_in_words() -> None:
    classes = ("cat", "dog", "elk")
    assert target_texts(torch.tensor([2, 0]), classes) == ["elk", "cat"]
    mixed = torch.tensor([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]])
    assert target_texts(mixed, classes) == ["0.75 x elk\n0.25 x cat", "dog"]
    assert target_texts(torch.ones(1, 1), ("only",)) == ["only"]


def batch(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.arange(1.0, size + 1)
    return values.view(-1, 1, 1, 1).expand(size, 3, 16, 16).clone(), torch.arange(size)


def test_off_by_default() -> None:
    images, labels = batch()
    same, hard = Mixing(0, 0, 8, seed=0)(images, labels, 0, 0)
    assert same is images
    assert hard is labels


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_neighbours_are_partners(mixup: float, cutmix: float) -> None:
    images, labels = batch()
    mixed, soft = Mixing(mixup, cutmix, 8, seed=3)(images.clone(), labels, 1, 2)
    assert torch.allclose(soft.sum(1), torch.ones(8))
    for index in range(8):
        partner = index ^ 1
        own, other = soft[index, index], soft[index, partner]
        assert own + other == pytest.approx(1)
        expected = own * images[index].mean() + other * images[partner].mean()
        assert mixed[index].mean().item() == pytest.approx(expected.item(), abs=0.01)
    assert (soft > 0).sum() == 16


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_same_for_any_world_size(world_size: int, mixup: float, cutmix: float) -> None:
    images, labels = batch(24)
    mixing = Mixing(mixup, cutmix, 24, seed=3)
    whole = mixing(images.clone(), labels, 1, 2)
    shares = [
        mixing(x.clone(), y, 1, 2)
        for x, y in zip(images.chunk(world_size), labels.chunk(world_size), strict=True)
    ]
    for one, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(one, torch.cat(parts))


def test_batches_differ_and_repeat() -> None:
    images, labels = batch()
    mixing = Mixing(0.8, 0.0, 8, seed=3)
    first = mixing(images.clone(), labels, 0, 0)[0]
    assert torch.equal(first, mixing(images.clone(), labels, 0, 0)[0])
    assert not torch.equal(first, mixing(images.clone(), labels, 0, 1)[0])


def test_refuses_an_odd_share() -> None:
    images, labels = batch(3)
    with pytest.raises(InputError, match="even number of images on each process, got 3"):
        Mixing(0.8, 0, 3, seed=0)(images, labels, 0, 0)


def pixels_of(size: int = 8) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (size, 12, 10, 3), dtype=torch.uint8, generator=source)


def augment(jitter: tuple[float, ...] = (0, 0, 0, 0), erasing: float = 0.0, **more: Any) -> Augment:
    return Augment(jitter, erasing, seed=5, global_batch_size=more.pop("size", 8), **more).at(1, 2)


def test_no_augmentation_leaves_pixels_alone() -> None:
    pixels = pixels_of()
    assert augment().jittered(pixels) is pixels
    images = pixels.float()
    assert augment().erased(images) is images


@pytest.mark.parametrize("kind", range(4))
def test_each_kind_of_jitter_is_torchvisions(kind: int) -> None:
    """One kind at a time, with the factors that were drawn: the same but for rounding to bytes."""
    strengths = [0.0] * 4
    strengths[kind] = 0.3
    made = augment(tuple(strengths))
    pixels = pixels_of()
    factors = made._factors(made._draws("jitter", 8, CPU)[:, :4])[:, kind].tolist()
    apply = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue][kind]
    jittered = made.jittered(pixels)
    for image, expected, factor in zip(jittered, pixels, factors, strict=True):
        reference = apply(expected.permute(2, 0, 1).float() / 255, factor)
        assert torch.allclose(image.permute(2, 0, 1) / 255, reference, atol=2 / 255)
    assert min(factors) < (0 if kind == 3 else 1) < max(factors)
    assert not torch.equal(jittered, pixels.float())


def test_jitter_in_an_order_of_its_own_for_each_image() -> None:
    made = augment((0.4, 0.4, 0.4, 0.1), size=64)
    order = made._draws("jitter", 8, CPU)[:, 4:].argsort(1)
    assert len(order.unique(dim=0)) > 15
    jittered = made.jittered(pixels_of(64))
    assert jittered.min() >= 0
    assert jittered.max() <= 255


def test_erased_rectangles() -> None:
    images = torch.ones(64, 20, 30, 3)
    erased = augment(erasing=0.5, size=64).erased(images)
    shares = (erased == 0).float().mean((1, 2, 3))
    assert 20 <= (shares > 0).sum() <= 44
    hit = shares[shares > 0]
    assert 0.01 < hit.min() < hit.max() < 0.4
    for image in erased[shares > 0]:
        rows, columns = (image[..., 0] == 0).any(1), (image[..., 0] == 0).any(0)
        assert (image[rows][:, columns] == 0).all()  # one rectangle, all channels
    assert (augment(erasing=1.0).erased(torch.ones(8, 20, 30, 3)) == 0).any((1, 2, 3)).all()


@pytest.mark.parametrize("world_size", [2, 4])
def test_augmentation_is_the_same_for_any_world_size(world_size: int) -> None:
    pixels = pixels_of()
    strengths = (0.4, 0.4, 0.4, 0.2)

    def images(pixels: torch.Tensor, rank: int, world_size: int) -> torch.Tensor:
        made = augment(strengths, 0.5, rank=rank, world_size=world_size)
        to_device = DeviceBatches([0.5] * 3, [0.25] * 3, CPU)
        return to_device(pixels, torch.zeros(len(pixels)), made)[0]

    whole = images(pixels, 0, 1)
    parts = [images(p, rank, world_size) for rank, p in enumerate(pixels.chunk(world_size))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole[0], whole[1])


def test_cutout_is_a_square_around_any_pixel() -> None:
    given = Augment((0, 0, 0, 0), 0.0, seed=5, global_batch_size=2000, cutout=6).at(0, 3)
    cut = given.erased(torch.ones(2000, 12, 10, 3)) == 0
    assert torch.equal(cut[..., 0], cut[..., 2])
    rows, columns = cut[..., 0].any(2).sum(1), cut[..., 0].any(1).sum(1)
    assert torch.equal(cut[..., 0].sum((1, 2)), rows * columns)  # a rectangle
    # The centre is any pixel: of 12 rows 3 + 2 leave a part of the square outside.
    assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (3, 6)
    assert (rows == 6).float().mean() == pytest.approx(7 / 12, abs=0.04)
    assert (columns == 6).float().mean() == pytest.approx(5 / 10, abs=0.04)
    halves = [
        Augment((0, 0, 0, 0), 0.0, 5, 8, rank, 2, cutout=6)
        .at(0, 3)
        .erased(torch.ones(4, 12, 10, 3))
        for rank in (0, 1)
    ]
    whole = Augment((0, 0, 0, 0), 0.0, 5, 8, cutout=6).at(0, 3).erased(torch.ones(8, 12, 10, 3))
    assert torch.equal(torch.cat(halves), whole)


def test_augmentation_differs_from_batch_to_batch_and_repeats() -> None:
    pixels, made = pixels_of(), augment((0.4, 0.4, 0.4, 0))
    first = made.jittered(pixels)
    assert torch.equal(first, made.at(1, 2).jittered(pixels))
    assert not torch.equal(first, made.at(1, 3).jittered(pixels))
    assert not torch.equal(first, made.at(2, 2).jittered(pixels))


def test_ahead_passes_batches_through() -> None:
    batches = [(pixels_of(), torch.arange(8)) for _ in range(3)]
    passed = list(DeviceBatches([0.5] * 3, [0.25] * 3, CPU).ahead(batches))
    assert all(one is other for one, other in zip(batches, passed, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_on_a_side_stream_are_whole() -> None:
    device = torch.device("cuda")
    batches = [(pixels_of(64).pin_memory(), torch.arange(64).pin_memory()) for _ in range(20)]
    to_device = DeviceBatches([0.5] * 3, [0.25] * 3, device)
    for (pixels, labels), (copied, copied_labels) in zip(
        batches, to_device.ahead(batches), strict=True
    ):
        assert torch.equal(copied.cpu(), pixels)
        assert torch.equal(copied_labels.cpu(), labels)


@pytest.mark.slow
def test_compiled_jitter_is_the_same() -> None:
    pixels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    strengths = (0.4, 0.4, 0.4, 0.1)
    plain, compiled = (
        Augment(strengths, 0.0, 3, 4, compiled=compiled).at(0, 0).jittered(pixels)
        for compiled in (False, True)
    )
    assert (plain - compiled).abs().max() < 0.01
