"""Class folders as people have them: what is there is said, and what to do."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenext.data import image_folder
from mobilenext.errors import InputError


def names(split: Any) -> set[str]:
    return {split.relative(i) for i in range(len(split))}


@pytest.fixture
def flat(photo_folder: Path, tmp_path: Path) -> Path:
    """Class folders alone, of 12 images each."""
    root = tmp_path / "flat"
    shutil.copytree(photo_folder / "train", root)
    return root


def test_class_folders_alone(flat: Path) -> None:
    with pytest.raises(
        InputError, match=r"found 2 folders with images \(such as flower\).*data.val_share=0.2"
    ):
        image_folder(str(flat))
    data = image_folder(str(flat), val_share=0.3)
    assert data.classes == ("flower", "temple")
    assert names(data.train).isdisjoint(names(data.val))
    assert len(data.train) + len(data.val) == 24
    assert 2 <= len(data.val) <= 13
    assert any("holds" in note for note in data.notes)
    splits: Any = (data.train, data.val)
    for split in splits:  # labels go with their images
        assert all((split.labels[i] == 0) == split.relative(i).startswith("flower")
                   for i in range(len(split)))  # fmt: skip
        assert split[0][0].size == (200, 160)


def test_an_added_image_moves_no_other(flat: Path) -> None:
    before = image_folder(str(flat), val_share=0.3)
    for number in range(5):
        shutil.copy(flat / "temple" / "0.jpg", flat / "temple" / f"aa{number}.jpg")
    after = image_folder(str(flat), val_share=0.3)
    assert names(before.train) <= names(after.train)
    assert names(before.val) <= names(after.val)


def test_the_share_is_nearly_that_of_each_class(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(1000):
            (tmp_path / name / f"IMG_{number:04}.jpg").touch()
    val: Any = image_folder(str(tmp_path), val_share=0.2).val
    assert all(abs(count - 200) < 50 for count in np.bincount(val.labels))  # 4 deviations


def test_a_share_of_train_beside_other_folders(photo_folder: Path) -> None:
    data = image_folder(str(photo_folder), val_share=0.3)
    assert len(data.train) + len(data.val) == 24
    assert any("not read: val" in note for note in data.notes)


def test_a_share_that_leaves_nothing(flat: Path) -> None:
    with pytest.raises(InputError, match="leave training images in each class, left none in"):
        image_folder(str(flat), val_share=0.999)


@pytest.mark.parametrize("name", ["test", "valid", "Val"])
def test_another_name_for_val(photo_folder: Path, name: str) -> None:
    (photo_folder / "val").rename(photo_folder / name)
    with pytest.raises(InputError, match=f"found {name}; add data.val_folder={name}"):
        image_folder(str(photo_folder))
    assert len(image_folder(str(photo_folder), val_folder=name).val) == 10


def test_train_alone(photo_folder: Path) -> None:
    shutil.rmtree(photo_folder / "val")
    with pytest.raises(InputError, match=r"found only train; add data.val_share=0.2"):
        image_folder(str(photo_folder))


def test_one_folder_too_deep(flat: Path, photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    flat.rename(tmp_path / "outer" / "inner")
    with pytest.raises(InputError, match=r"one folder below: data.root=.*outer/inner"):
        image_folder(str(tmp_path / "outer"))
    (tmp_path / "above").mkdir()
    photo_folder.rename(tmp_path / "above" / "photos")
    with pytest.raises(InputError, match="photos/train lies one folder below"):
        image_folder(str(tmp_path / "above"))


def test_training_in_capitals(photo_folder: Path) -> None:
    (photo_folder / "train").rename(photo_folder / "Training")
    with pytest.raises(InputError, match="found Training; rename it to train"):
        image_folder(str(photo_folder))


def test_shards_say_themselves_what_is_validation(tmp_path: Path) -> None:
    (tmp_path / "train-0.tar").touch()
    with pytest.raises(InputError, match=r"is WebDataset, which says itself.*data.val_share=null"):
        image_folder(str(tmp_path), val_share=0.2)
