import numpy as np
import PIL.Image
import pytest
import torch

from mobilenext.data import eval_transform, train_transform
from mobilenext.errors import InputError


def photo(width: int = 300, height: int = 200) -> PIL.Image.Image:
    from sklearn.datasets import load_sample_image

    return PIL.Image.fromarray(load_sample_image("china.jpg")).resize((width, height))


def test_evaluation_is_resize_then_crop() -> None:
    image = photo()
    pixels = eval_transform(112, crop_ratio=0.875, interpolation="bicubic")(image)
    resized = image.resize((192, 128), PIL.Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((40, 8, 152, 120)))
    assert np.array_equal(pixels.numpy(), expected)


def test_evaluation_resizes_224_from_256() -> None:
    pixels = eval_transform(224)(photo(512, 256))
    assert np.array_equal(pixels.numpy(), np.asarray(photo(512, 256).crop((144, 16, 368, 240))))


def test_whole_image_without_draws() -> None:
    transform = train_transform(
        64, crop_scale=(1, 1), crop_ratio=(1, 1), interpolation="bilinear", hflip=0
    )
    image = photo(80, 80)
    expected = np.asarray(image.resize((64, 64), PIL.Image.Resampling.BILINEAR))
    assert np.array_equal(transform(image).numpy(), expected)


@pytest.mark.parametrize(
    "knob",
    [{"hflip": 1.0}, {"randaugment": "rand-m9"}, {"interpolation": "bicubic"},
     {"crop_scale": (0.3, 0.3)}],
)  # fmt: skip
def test_each_knob_changes_pixels_and_follows_the_seed(knob: dict) -> None:
    plain = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "interpolation": "bilinear", "hflip": 0}
    image = photo(90, 90)
    results = []
    for seed in (1, 1, 2):
        results.append(train_transform(64, **{**plain, **knob})(image, seed))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], train_transform(64, **plain)(image))
    if "hflip" not in knob and "interpolation" not in knob:
        assert not torch.equal(results[0], results[2])


def test_random_interpolation_uses_both() -> None:
    whole = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "hflip": 0}
    image = photo(90, 90)
    fixed = {
        name: train_transform(64, interpolation=name, **whole)(image)
        for name in ("bilinear", "bicubic")
    }
    seen = set()
    for seed in range(20):
        pixels = train_transform(64, interpolation="random", **whole)(image, seed)
        seen.add(next(name for name, other in fixed.items() if torch.equal(pixels, other)))
    assert seen == {"bilinear", "bicubic"}


def test_refuses_unknown_names() -> None:
    with pytest.raises(
        InputError, match="expected one of random, bilinear, bicubic, got 'lanczos'"
    ):
        train_transform(64, interpolation="lanczos")
    with pytest.raises(InputError, match="expected one of bilinear, bicubic, got 'random'"):
        eval_transform(64, interpolation="random")
    with pytest.raises(InputError, match=r"rand-m9-mstd0\.5"):
        train_transform(64, randaugment="autoaugment")


def by_whole_image(image: PIL.Image.Image, size: int, interpolation: str) -> np.ndarray:
    """Evaluation as it is defined: resize all of the image, then crop the centre."""
    short = int(size / 0.875)
    width, height = (side * short // min(image.size) for side in image.size)
    how = PIL.Image.Resampling[interpolation.upper()]
    left, top = round((width - size) / 2), round((height - size) / 2)
    whole = image.resize((width, height), how)
    return np.asarray(whole.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "sides", [(500, 375), (375, 500), (224, 224), (40, 30), (613, 411), (640, 190), (180, 620)]
)
def test_evaluation_of_photographs_is_bit_for_bit_that_of_whole_images(
    sides: tuple[int, int], interpolation: str
) -> None:
    image = photo(*sides)
    pixels = eval_transform(64, interpolation=interpolation)(image).numpy()
    assert np.array_equal(pixels, by_whole_image(image, 64, interpolation))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sides", [(640, 160), (3000, 117), (90, 1000), (37, 640), (701, 53)])
def test_evaluation_of_thin_images_differs_by_rounding_only(
    sides: tuple[int, int], interpolation: str
) -> None:
    image = photo(*sides)
    pixels = eval_transform(64, interpolation=interpolation)(image).numpy().astype(int)
    off = np.abs(pixels - by_whole_image(image, 64, interpolation))
    assert off.max() <= 2  # Pillow may begin with the other direction
    assert off.mean() < 0.15


@pytest.mark.parametrize("sides", [(8000, 1), (1, 8000), (60_000, 3)])
def test_evaluation_of_a_thin_image_makes_no_large_one(
    sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of an image of 8000 x 1, resized to 256 rows, would take 2 GB."""
    image = PIL.Image.new("RGB", sides, (10, 20, 30))
    made = []
    resize = PIL.Image.Image.resize

    def counted(self: PIL.Image.Image, size: tuple[int, int], *arguments, **named):
        made.append(size[0] * size[1])
        assert made[-1] < 10**7
        return resize(self, size, *arguments, **named)

    monkeypatch.setattr(PIL.Image.Image, "resize", counted)
    pixels = eval_transform(224)(image)
    assert made
    assert pixels.reshape(-1, 3).unique(dim=0).tolist() == [[10, 20, 30]]
