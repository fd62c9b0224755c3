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
