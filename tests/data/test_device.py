import pytest
import torch

from mobilenext.data import DeviceBatches, Mixing
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
