"""Layouts: what lies in a folder, which of several counts, and what is nearly one."""

from pathlib import Path

import pytest

from mobilenext.data import image_folder, imagenet
from mobilenext.data.layouts import Layout, layout_of
from mobilenext.errors import InputError

FILES = {
    Layout.IMAGENET_TARS: "ILSVRC2012_img_val.tar",
    Layout.PACK: "pack.json",
    Layout.WEBDATASET: "train-0.tar",
    Layout.PARQUET: "data/train-0.parquet",
    Layout.CLASS_FOLDERS: "train/cat/0.jpg",
}
"""A file by which each layout is known."""


def fill(root: Path, layouts: list[Layout]) -> Path:
    for layout in layouts:
        (root / FILES[layout]).parent.mkdir(parents=True, exist_ok=True)
        (root / FILES[layout]).touch()
    return root


@pytest.mark.parametrize("number", range(len(Layout)))
def test_the_first_of_several_layouts_counts(tmp_path: Path, number: int) -> None:
    """In the order of `Layout`; those that a caller does not accept are passed over."""
    layouts = list(Layout)[number:]
    fill(tmp_path, layouts)
    assert layout_of(tmp_path) is layouts[0]
    assert layout_of(tmp_path, layouts[1:]) is (layouts[1] if layouts[1:] else None)


def test_no_layout(tmp_path: Path) -> None:
    assert layout_of(tmp_path / "nowhere") is None
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.jpg").touch()
    assert layout_of(tmp_path) is None


def test_an_unfinished_pack_is_a_pack(tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "journal.jsonl").touch()
    assert layout_of(tmp_path) is Layout.PACK


@pytest.mark.parametrize("layout", [Layout.PACK, Layout.CLASS_FOLDERS])
def test_imagenet_reads_its_tars_first_and_image_folder_never(
    tmp_path: Path, layout: Layout
) -> None:
    fill(tmp_path, [Layout.IMAGENET_TARS, layout])
    with pytest.raises(InputError, match=r"img_train\.tar: expected ImageNet's official tar"):
        imagenet(str(tmp_path))
    message = r"pack\.json: expected .* pack" if layout is Layout.PACK else "expected val/<class>"
    with pytest.raises(InputError, match=message):
        image_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-0.tar.gz", "val-0.tar.gz"], r"train-0\.tar\.gz is compressed.*: unpack it"),
        (["train-0.tgz"], r"train-0\.tgz is compressed.*: unpack it"),
        (["train.tar", "val.tar"], r"train\.tar is one tar: unpack it into class folders"),
        (["train/0.tar"], r"train/0\.tar lies in a folder: shards of WebDataset have to be"),
        (["train/part.parquet"], r"train/part\.parquet lies in a folder: it has to be data\.root"),
        (["mine.parquet"], r"mine\.parquet has another name: the files of the splits have to be"),
        (["imagenette2.zip"], r"imagenette2\.zip is an archive: unpack it"),
        (["imagenette2/train/cat/0.jpg"], r"imagenette2/train lies one folder below: data\.root"),
        (["ILSVRC2012_img_train.tar"], r"is ImageNet's official tar: use data=imagenet"),
    ],
)
def test_layouts_that_are_nearly_right_are_named(
    tmp_path: Path, names: list[str], message: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        image_folder(str(tmp_path))


def test_other_archives_beside_class_folders_do_not_matter(photo_folder: Path) -> None:
    (photo_folder / "train.tar").touch()
    (photo_folder / "train-0.tar.gz").touch()
    assert len(image_folder(str(photo_folder)).train) == 24


def test_shards_come_before_class_folders(tmp_path: Path) -> None:
    """Shards beside class folders are read, not the folders."""
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cat").mkdir(parents=True)
    assert layout_of(tmp_path) is Layout.CLASS_FOLDERS
    for name, layout in (("train-0.parquet", Layout.PARQUET), ("train-0.tar", Layout.WEBDATASET)):
        (tmp_path / name).touch()
        assert layout_of(tmp_path) is layout
