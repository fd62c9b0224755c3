"""Data sets that are read in place give the images of the class folders which they are made of."""

import ctypes
import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenext.data import image_folder
from mobilenext.data.archives import (
    _pax,
    has_parquet,
    has_tars,
    has_webdataset,
    imagenet_tars,
    parquet,
    tar_members,
    webdataset,
)
from mobilenext.errors import InputError

SYNSETS = {"flower": "n01440764", "temple": "n02102040"}
Images = Any


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mobilenext"


@pytest.fixture
def folder(photo_folder: Path) -> Path:
    """Class folders with the names that ImageNet's files have."""
    for split in ("train", "val"):
        number = 0
        for name, synset in SYNSETS.items():
            (photo_folder / split / name).rename(photo_folder / split / synset)
            for path in sorted((photo_folder / split / synset).iterdir()):
                number += 1
                name = f"{synset}_{number}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
                path.rename(path.with_name(f"{name}.JPEG"))
    return photo_folder


def tar(path: Path, members: dict[str, bytes], **settings: Any) -> Path:
    with tarfile.open(path, "w", **settings) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def devkit(path: Path, numbers: list[int]) -> None:
    from scipy.io import savemat

    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"),
            ("num_children", "O")]  # fmt: skip
    synsets = [(2, "n01440764", "tench", "", 0), (1, "n02102040", "springer", "", 0),
               (1001, "n00001740", "entity", "", 2)]  # fmt: skip
    file = io.BytesIO()
    savemat(file, {"synsets": np.array(synsets, dtype=kind)})
    truth = "".join(f"{number}\n" for number in numbers).encode()
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in (("meta.mat", file.getvalue()),
                              ("ILSVRC2012_validation_ground_truth.txt", truth)):  # fmt: skip
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path.write_bytes(data.getvalue())


@pytest.fixture
def official(folder: Path, tmp_path: Path) -> Path:
    """The two tars in the official layout; validation labels as a text file."""
    root = tmp_path / "tars"
    root.mkdir()
    inner = {}
    for synset in reversed(SYNSETS.values()):  # the official order is another one as well
        files = sorted((folder / "train" / synset).iterdir(), reverse=True)
        members = {path.name: path.read_bytes() for path in files}
        inner[f"{synset}.tar"] = tar(tmp_path / "inner.tar", members).read_bytes()
    tar(root / "ILSVRC2012_img_train.tar", inner)
    files = sorted((folder / "val").rglob("*.JPEG"), key=lambda path: path.name)
    tar(root / "ILSVRC2012_img_val.tar", {path.name: path.read_bytes() for path in files[::-1]})
    labels = "".join(f"{path.parent.name}\n" for path in files)
    (root / "imagenet_2012_validation_synset_labels.txt").write_text(labels)
    return root


def check_same(ours: Images, theirs: Images, root: Path | None = None) -> None:
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert len(ours) == len(theirs)
    order = np.random.default_rng(0).permutation(len(ours))
    located = ours.locate(order)
    for place, index in enumerate(order.tolist()):
        item, data = located.items[place], theirs.read(index)
        assert bytes(ours.read(index)) == data
        assert ctypes.string_at(int(item["data"]), int(item["length"])) == data
        if root is not None:
            assert str(Path(theirs.name(index)).relative_to(root)) == ours.names[index]
    image, label = ours[1]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(theirs[1][0]))
    assert label == theirs[1][1]
    again = pickle.loads(pickle.dumps(ours))
    assert bytes(again.read(2)) == theirs.read(2)
    assert again.name(2) == ours.name(2)


def test_official_tars_are_the_class_folders(folder: Path, official: Path, cache: Path) -> None:
    expected = image_folder(str(folder))
    assert has_tars(official)
    assert not has_tars(folder)
    for _ in range(2):  # the second time from the cache
        data = imagenet_tars(official)
        assert data.classes == expected.classes
        check_same(data.train, expected.train, folder / "train")
        check_same(data.val, expected.val, folder / "val")
        assert len(list(cache.glob("index-*.npz"))) == 2
    assert "ILSVRC2012_img_train.tar: n01440764/n01440764_1.JPEG" in data.train.name(0)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="expected the 1 synsets of ImageNet-1k, got 2"):
        imagenet_tars(official, ["n01440764"])


def test_validation_labels_from_the_development_kit(folder: Path, official: Path) -> None:
    (official / "imagenet_2012_validation_synset_labels.txt").write_text("nonsense")
    kit = official / "ILSVRC2012_devkit_t12.tar.gz"
    devkit(kit, [2] * 5 + [1] * 5)
    check_same(imagenet_tars(official).val, image_folder(str(folder)).val, folder / "val")
    devkit(kit, [2] * 9)
    with pytest.raises(InputError, match=r"expected a label for each of the 10 images of .*got 9"):
        imagenet_tars(official)
    devkit(kit, [2] * 9 + [1001])
    with pytest.raises(InputError, match=r"expected validation labels among .*1 others: n00001740"):
        imagenet_tars(official)
    kit.write_bytes(kit.read_bytes()[:200])
    with pytest.raises(InputError, match="expected ImageNet's development kit"):
        imagenet_tars(official)


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    path.write_bytes(edit(path.read_bytes()))


def test_damaged_and_missing_tars(official: Path, cache: Path) -> None:
    labels = official / "imagenet_2012_validation_synset_labels.txt"
    train, val = official / "ILSVRC2012_img_train.tar", official / "ILSVRC2012_img_val.tar"
    whole = train.read_bytes()
    imagenet_tars(official)
    (cached, *_) = cache.iterdir()
    cached.write_bytes(b"not an index")
    imagenet_tars(official)  # a cache is no reason to fail

    change(train, lambda data: data[:70_000])
    with pytest.raises(InputError, match=r"expected \d+ bytes of .*it was cut short; fetch it"):
        imagenet_tars(official)
    change(train, lambda _: whole[:512] + b"\xff" * 512 + whole[1024:])
    with pytest.raises(InputError, match=r"expected a tar header at byte 512, found other bytes"):
        imagenet_tars(official)
    train.write_bytes(gzip.compress(whole, 1))
    with pytest.raises(InputError, match="it is compressed; unpack it"):
        imagenet_tars(official)
    train.write_bytes(b"")
    with pytest.raises(InputError, match="found the end of the file at byte 0"):
        imagenet_tars(official)
    tar(train, {})
    with pytest.raises(InputError, match="expected one tar for each class in it, got 0"):
        imagenet_tars(official)
    train.write_bytes(whole)
    labels.unlink()
    with pytest.raises(InputError, match=r"found neither ILSVRC2012_devkit_t12.tar.gz .* nor \*"):
        imagenet_tars(official)
    val.unlink()
    with pytest.raises(
        InputError, match=r"img_val.tar: expected ImageNet's official tar, found no"
    ):
        imagenet_tars(official)
    with pytest.raises(InputError, match=r"data.root is not set"):
        imagenet_tars(None)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_of_any_kind(tmp_path: Path, form: int) -> None:
    long = "folder/" * 20 + "x" * 60 + ".jpg"
    members = {"a.jpg": b"1" * 700, long: b"22", "../../etc/passwd": b"333", "empty": b""}
    if form != tarfile.USTAR_FORMAT:
        members["ü" * 80] = b"4"
    path = tar(tmp_path / "a.tar", members, format=form)
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo("a.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    data = path.read_bytes()
    found = {m.name: data[m.offset : m.offset + m.size] for m in tar_members(path)}
    assert found == members
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]  # nothing is made of names
    change(path, lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512))
    with pytest.raises(InputError, match="expected the end marker of a tar"):
        list(tar_members(path))


def shards(folder: Path, root: Path, label: Callable[[int], dict[str, bytes]]) -> Path:
    root.mkdir(exist_ok=True)
    data = image_folder(str(folder))
    for split, images in (("train", data.train), ("val", data.val)):
        for shard, indices in enumerate(np.array_split(np.arange(len(images)), 2)):
            members = {}
            for index in indices.tolist():
                members[f"./{index:04d}.jpg"] = images.read(index)  # type: ignore[attr-defined]
                for ending, text in label(int(images.labels[index])).items():  # type: ignore[attr-defined]
                    members[f"./{index:04d}.{ending}"] = text
            tar(root / f"{split}-{shard:04d}.tar", members)
    return root


@pytest.mark.parametrize(
    "label",
    [
        lambda label: {"cls": str(label).encode()},
        lambda label: {"json": json.dumps({"label": label}).encode(), "txt": b"a photo"},
    ],
)
def test_webdataset(folder: Path, tmp_path: Path, label: Callable[[int], dict[str, bytes]]) -> None:
    root = shards(folder, tmp_path / "shards", label)
    assert has_webdataset(root)
    data, expected = webdataset(root), image_folder(str(folder))
    assert data.classes == ("0", "1")
    check_same(data.train, expected.train)
    check_same(data.val, expected.val)
    assert data.val.name(9).endswith("val-0001.tar: ./0009.jpg")  # type: ignore[attr-defined]
    (root / "classes.txt").write_text("tench\nspringer\n")
    assert webdataset(root).classes == ("tench", "springer")
    (root / "classes.txt").write_text("tench\n")
    with pytest.raises(InputError, match="expected labels from 0 to 0, got 0 to 1"):
        webdataset(root)


def test_odd_webdatasets(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "shards"
    shards(folder, root, lambda label: {})
    with pytest.raises(InputError, match=r"expected one image and a .cls or .json .*found jpg"):
        webdataset(root)
    shards(folder, root, lambda label: {"cls": b"tench"})
    with pytest.raises(InputError, match=r"expected the class index in ./0000.cls.*got b'tench'"):
        webdataset(root)
    shards(folder, root, lambda label: {"json": b"[]"})
    with pytest.raises(InputError, match=r"as label of a JSON object, got b'\[\]'"):
        webdataset(root)
    for path in root.glob("*.tar"):
        path.rename(path.with_suffix(".tar.gz"))
    with pytest.raises(InputError, match=r"train-0000.tar.gz is compressed.*unpack it"):
        webdataset(root)
    with pytest.raises(InputError, match="expected a folder, found none"):
        webdataset(tmp_path / "nowhere")
    assert not has_webdataset(root)


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
    assert has_parquet(root)
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
    with pytest.raises(InputError, match="expected a Parquet file, could not open it"):
        parquet(tmp_path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "train-0.parquet").touch()
    with pytest.raises(InputError, match="found none; pip install pyarrow"):
        parquet(tmp_path)
    with pytest.raises(InputError, match=r"expected train-\*.parquet there or in data/"):
        parquet(tmp_path / "..")


@pytest.mark.parametrize("records", [b"0 path=x\n", b"99 path=x\n", b"9x a=b\n", b"11 size=-5\n"])
def test_damaged_pax_records_are_named(records: bytes) -> None:
    with pytest.raises(InputError, match=r"x\.tar, byte 512: expected pax records"):
        _pax(records, "x.tar, byte 512")
    assert _pax(b"9 path=x\n11 size=12\n", "") == {"path": "x", "size": "12"}
