"""Parquet files give the images of the class folders which they are made of."""

import ctypes
import json
import os
from pathlib import Path

import numpy as np
import pytest

from mobilenext.data import image_folder, imagenet, imagenette
from mobilenext.data import parquet as module
from mobilenext.data.layouts import Layout, layout_of
from mobilenext.data.parquet import parquet
from mobilenext.errors import InputError
from tests.data.archives import ONE_EACH, check_same, hub


@pytest.mark.parametrize("place", [".", "data"])
@pytest.mark.parametrize("named", [False, True])
def test_parquet(folder: Path, tmp_path: Path, place: str, named: bool) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    root, expected = tmp_path / "hub", image_folder(str(folder))
    (root / place).mkdir(parents=True)
    features = {"image": {"_type": "Image"},
                "label": {"names": ["tench", "springer"], "_type": "ClassLabel"}}  # fmt: skip
    told = {"huggingface": json.dumps({"info": {"features": features}})} if named else None
    for split, images in (("train", expected.train), ("validation", expected.val)):
        for shard, indices in enumerate(np.array_split(np.arange(len(images)), 2)):
            rows = [{"bytes": images.read(i), "path": f"{i}.jpg"} for i in indices.tolist()]  # type: ignore[attr-defined]
            labels = arrow.array(images.labels[indices])  # type: ignore[attr-defined]
            table = arrow.table({"image": rows, "label": labels}).replace_schema_metadata(told)
            path = root / place / f"{split}-{shard:05d}-of-00002.parquet"
            pq.write_table(table, path, row_group_size=5)
    assert layout_of(root) is Layout.PARQUET
    data = parquet(root)
    assert data.classes == (("tench", "springer") if named else ("0", "1"))
    check_same(data.train, expected.train)
    check_same(data.val, expected.val)
    assert data.val.name(9).endswith("validation-00001-of-00002.parquet: row 4")  # type: ignore[attr-defined]
    located = data.train.locate(np.arange(24))  # type: ignore[attr-defined]
    data.train._groups.clear()  # type: ignore[attr-defined]
    item = located.items[20]
    kept = ctypes.string_at(int(item["data"]), int(item["length"]))
    assert kept == expected.train.read(20)  # type: ignore[attr-defined]


def test_odd_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    image = {"bytes": b"x", "path": "a"}
    for name, columns, message in (
        ("text", {"text": ["a"]}, "expected a column image .* got text: string"),
        ("no label", {"image": [image]}, "and an integer column label, got image: struct"),
        ("null", {"image": [image], "label": arrow.array([None], "int64")}, "rows without one"),
        ("hidden", {"image": [image], "label": [-1]}, "expected labels from 0 to .*got -1"),
    ):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            pq.write_table(arrow.table(columns), tmp_path / name / f"{split}-0.parquet")
        with pytest.raises(InputError, match=message):
            parquet(tmp_path / name)
    image = {"bytes": None, "path": "https://example.org/a.jpg"}
    for split in ("train", "val"):
        kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        table = arrow.table({"image": arrow.array([image], kind), "label": [0]})
        pq.write_table(table, tmp_path / f"{split}-0.parquet")
    with pytest.raises(InputError, match="row 0: expected the bytes of an image, found none"):
        parquet(tmp_path).train[0]
    (tmp_path / "val-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="expected a Parquet file, could not read it"):
        parquet(tmp_path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "train-0.parquet").touch()
    with pytest.raises(InputError, match="found none; pip install pyarrow"):
        parquet(tmp_path)
    with pytest.raises(InputError, match=r"expected train-\*.parquet there or in data/"):
        parquet(tmp_path / "..")


def test_parquet_files_have_to_name_the_same_classes(tmp_path: Path) -> None:
    names = {"train": ["cat", "dog"], "validation": ["dog", "cat"]}
    message = (
        r"train-0.parquet and .*validation-0.parquet: .*\(0 is cat and dog, 1 is dog and cat\)"
    )
    with pytest.raises(InputError, match=message):
        parquet(hub(tmp_path, names, ONE_EACH))
    names["validation"] = ["cat", "dog", "cow"]
    with pytest.raises(
        InputError, match=r"got others \(2 and 3 classes\); take all files from one"
    ):
        parquet(hub(tmp_path, names, ONE_EACH))


def test_all_files_of_a_split_are_compared(tmp_path: Path) -> None:
    hub(tmp_path, {"train": ["cat", "dog"], "validation": ["cat", "dog"]}, ONE_EACH)
    hub(tmp_path / "other", {"train": ["dog", "cat"]}, ONE_EACH)
    (tmp_path / "other" / "train-1.parquet").rename(tmp_path / "train-1.parquet")
    with pytest.raises(
        InputError, match=r"train-0.parquet and .*train-1.parquet: expected the sam"
    ):
        parquet(tmp_path)


def test_names_by_label_are_taken_in_the_order_of_labels(tmp_path: Path) -> None:
    names = {"2": "cow", "0": "cat", "1": "dog"}
    data = parquet(hub(tmp_path, {"train": names, "validation": names}, ONE_EACH))
    assert data.classes == ("cat", "dog", "cow")
    for odd in ({"0": "cat", "2": "cow"}, {"a": "cat"}, ["cat", 1], "cat"):
        hub(tmp_path, {"train": odd, "validation": odd}, ONE_EACH)
        with pytest.raises(InputError, match=r"names of the classes as a list, or by label from 0"):
            parquet(tmp_path)


CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NETTE = ["tench", "English springer", "cassette player", "chain saw", "church", "French horn",
         "garbage truck", "gas pump", "golf ball", "parachute"]  # fmt: skip


def test_ten_other_classes_are_not_imagenette(tmp_path: Path) -> None:
    synsets = imagenette.__globals__["IMAGENETTE_SYNSETS"]
    hub(tmp_path, {"train": CIFAR, "validation": CIFAR}, ONE_EACH)
    with pytest.raises(
        InputError, match=r"got others for 10 labels: 0 is airplane, expected tench"
    ):
        imagenette(str(tmp_path))
    swapped = [NETTE[1], NETTE[0], *NETTE[2:]]
    hub(tmp_path, {"train": swapped, "validation": swapped}, ONE_EACH)
    with pytest.raises(InputError, match=r"got others for 2 labels: 0 is English springer, expect"):
        imagenette(str(tmp_path))
    for names in (NETTE, list(synsets)):
        hub(tmp_path, {"train": names, "validation": names}, ONE_EACH)
        data = imagenette(str(tmp_path))
        assert data.classes == synsets
        assert data.notes == ()
    hub(tmp_path, {"train": NETTE[:9], "validation": NETTE[:9]}, ONE_EACH)
    with pytest.raises(InputError, match=r"expected the 10 classes n01440764, .* got 9: tench"):
        imagenette(str(tmp_path))


def test_files_that_name_no_classes_are_taken_with_a_note(tmp_path: Path) -> None:
    data = imagenette(str(hub(tmp_path, {}, {"train": [0, 9], "validation": [3, 4]})))
    assert data.classes == imagenette.__globals__["IMAGENETTE_SYNSETS"]
    assert "the files do not name their classes" in data.notes[0]
    assert data.notes[1] == "labels are taken to be in the order of the 10 synsets"


def test_imagenets_names_by_words(tmp_path: Path) -> None:
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    words = list(_IMAGENET_CATEGORIES)
    words[517] = "crane2"  # as the hub tells the machine from the bird
    hub(tmp_path, {"train": words, "validation": words}, ONE_EACH)
    assert imagenet(str(tmp_path)).classes[:2] == ("n01440764", "n01443537")
    words[3], words[4] = words[4], words[3]
    hub(tmp_path, {"train": words, "validation": words}, ONE_EACH)
    with pytest.raises(
        InputError, match=r"got others for \d labels: 3 is hammerhead, expected tig"
    ):
        imagenet(str(tmp_path))


@pytest.mark.parametrize("place", ["{split}/0000.parquet", "default/{split}/0000.parquet"])
def test_the_hubs_converted_files_are_found(tmp_path: Path, place: str) -> None:
    pytest.importorskip("pyarrow")
    for split in ("train", "validation"):
        part = hub(tmp_path / "parts", {}, ONE_EACH, f"{split}-{{split}}-0.parquet")
        for number in range(2):
            path = tmp_path / "hub" / place.format(split=split).replace("0000", f"000{number}")
            path.parent.mkdir(parents=True, exist_ok=True)
            (part / f"{split}-{split}-{number}.parquet").rename(path)
    data = image_folder(str(tmp_path / "hub"))
    assert bytes(data.train.read(1)) == b"train 1"  # type: ignore[attr-defined]
    assert bytes(data.val.read(0)) == b"validation 0"  # type: ignore[attr-defined]


def test_row_groups_are_read_in_pieces(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow holds no more than 2 GB of images in one array."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    images = image_folder(str(folder)).train
    rows = [{"bytes": images.read(i), "path": "a"} for i in range(24)]  # type: ignore[attr-defined]
    for split in ("train", "val"):
        table = arrow.table({"image": rows, "label": [0] * 24})
        pq.write_table(table, tmp_path / f"{split}-0.parquet")
    monkeypatch.setattr(module, "ROW_BYTES", 20_000)
    data = parquet(tmp_path).train
    order = np.random.default_rng(0).permutation(24).tolist()
    assert all(bytes(data.read(i)) == rows[i]["bytes"] for i in order)  # type: ignore[attr-defined]
    assert len(data._group(0).pieces) > 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "but it is a Git LFS pointer"),
        (b"<html></html>", "but it is a web page or other XML; fetch the file again"),
        (b"PAR1" + bytes(60), r"could not read it \(Arrow"),
    ],
)
def test_what_lies_in_place_of_a_parquet_file_is_named(
    tmp_path: Path, data: bytes, message: str
) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "train-0.parquet").write_bytes(data)
    with pytest.raises(InputError, match=f"train-0.parquet: expected a Parquet file, {message}"):
        image_folder(str(tmp_path))
    (tmp_path / "train-0.parquet").unlink()
    os.mkfifo(tmp_path / "train-0.parquet")
    with pytest.raises(
        InputError, match=r"train-0.parquet: expected a regular file, got a named pi"
    ):
        image_folder(str(tmp_path))
