"""Data sets that are read in place give the images of the class folders which they are made of."""

import bz2
import ctypes
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenext.data import archives, image_folder, imagenet, imagenette
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
from tests.items import bytes_of

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
        assert bytes_of(item) == data
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
    with pytest.raises(InputError, match="it is gzip-compressed; unpack it"):
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
    with pytest.raises(InputError, match=r"as label of a JSON object, .*got b'\[\]'"):
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
    with pytest.raises(InputError, match="expected a Parquet file, could not read it"):
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
    with pytest.raises(InputError, match="expected pax records"):
        _pax(b"9" * 5000, "x")  # Python's int() refuses so many digits
    with pytest.raises(InputError, match="expected pax records"):
        _pax(b"%d size=%s\n" % (5010, b"9" * 5000), "x")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_of_gigabytes_are_not_read(tmp_path: Path, kind: bytes) -> None:
    path, length = tmp_path / "a.tar", 3 << 30
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, length
    with path.open("wb") as file:
        file.write(header.tobuf())
        file.truncate(512 + length + 1024)  # a sparse file
    with pytest.raises(InputError, match="an extended header of at most 1,048,576 bytes, got 3,2"):
        list(tar_members(path))


def test_a_pipe_in_place_of_a_file(official: Path, folder: Path, tmp_path: Path) -> None:
    pipe = "expected a regular file, got a named pipe"
    labels = official / "imagenet_2012_validation_synset_labels.txt"
    kit, *tars = (
        official / f"ILSVRC2012_{name}"
        for name in ("devkit_t12.tar.gz", "img_val.tar", "img_train.tar")
    )
    for path in (labels, kit, *tars):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        with pytest.raises(InputError, match=pipe):
            imagenet(str(official)) if "train" in path.name else imagenet_tars(official)
    root = shards(folder, tmp_path / "shards", lambda label: {"cls": str(label).encode()})
    os.mkfifo(root / "classes.txt")
    with pytest.raises(InputError, match=f"classes.txt: {pipe}"):
        webdataset(root)
    (root / "train-0000.tar").unlink()
    os.mkfifo(root / "train-0000.tar")
    with pytest.raises(InputError, match=f"train-0000.tar: {pipe}"):
        image_folder(str(root))
    (root / "train-0000.tar").unlink()
    (root / "train-0000.tar").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"train-0000.tar: expected a file that can be read \(No"):
        image_folder(str(root))


def test_a_pipe_in_place_of_the_index(official: Path, cache: Path) -> None:
    imagenet_tars(official)
    cached = sorted(cache.iterdir())
    for path in cached:
        path.unlink()
        os.mkfifo(path)
    assert len(imagenet_tars(official).train) == 24
    assert all(path.is_file() for path in cached)


def test_hidden_members_of_tars_are_passed_over(
    official: Path, folder: Path, tmp_path: Path
) -> None:
    """As tar on macOS makes them: ._x beside each x."""

    def hidden(path: Path) -> None:
        members = {}
        with tarfile.open(path) as archive:
            for member in archive:
                data = archive.extractfile(member)
                assert data is not None
                members[f"._{member.name}"] = b"\0\5\x16\7"
                members[f".Trash/{member.name}"] = b"nothing"
                members[member.name] = data.read()
        tar(path, members)

    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        hidden(official / name)
    (official / "._imagenet_2012_validation_synset_labels.txt").write_bytes(b"\0\5\x16\7")
    expected, data = image_folder(str(folder)), imagenet_tars(official)
    assert data.classes == expected.classes
    check_same(data.train, expected.train)
    check_same(data.val, expected.val)
    root = shards(folder, tmp_path / "shards", lambda label: {"cls": str(label).encode()})
    for path in root.glob("*.tar"):
        hidden(path)
    check_same(webdataset(root).train, expected.train)


def test_class_names_of_tars_have_to_be_text(official: Path) -> None:
    inner = tar(official / "inner.tar", {"a.JPEG": b"x"}).read_bytes()
    for name in ("caf\udce9.tar", "two\nlines.tar"):
        tar(official / "ILSVRC2012_img_train.tar", {name: inner})
        with pytest.raises(InputError, match=r"class names in UTF-8, .* got (caf|two)\\.*; rename"):
            imagenet_tars(official)


def test_names_of_members_are_shown_with_escapes(folder: Path, tmp_path: Path) -> None:
    tar(tmp_path / "train-0.tar", {"b\udce4d.jpg": b"x", "b\udce4d.cls": b"0"})
    tar(tmp_path / "val-0.tar", {"b\udce4d.jpg": b"x", "b\udce4d.cls": b"0"})
    data = webdataset(tmp_path)
    with pytest.raises(InputError, match=r"train-0\.tar: b\\xe4d\.jpg: expected an image file"):
        data.train[0]
    assert data.train.names[0] == "b\udce4d.jpg"  # type: ignore[attr-defined]
    tar(tmp_path / "train-0.tar", {"b\udce4d.jpg": b"x", "b\udce4d.cls": b"\xe4"})
    with pytest.raises(InputError, match=r"class index in b\\xe4d\.cls"):
        webdataset(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lzma.compress(bytes(9000)), "it is xz-compressed; unpack it to a plain tar"),
        (bz2.compress(bytes(9000)), "it is bzip2-compressed; unpack it to a plain tar"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "a Git LFS pointer.*; fetch it"),
        (b"<html><body>404</body></html>", "it is a web page or other XML; fetch it again"),
    ],
)
def test_what_lies_in_place_of_a_tar_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    for split in ("train", "val"):
        (tmp_path / f"{split}-0.tar").write_bytes(data)
    with pytest.raises(
        InputError, match=f"train-0.tar: expected a tar header at byte 0.*{message}"
    ):
        image_folder(str(tmp_path))


def two_samples(root: Path, endings: dict[str, bytes]) -> Path:
    for split in ("train", "val"):
        tar(root / f"{split}-0.tar", {f"a.{ending}": data for ending, data in endings.items()})
    return root


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    """The second image would take the place of the first, with the label of either."""
    two_samples(tmp_path, {"jpg": b"1", "cls": b"0"})
    for ending in ("jpg", "JPG"):
        with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
            for name in ("a.jpg", "a.cls", f"a.{ending}", "a.cls"):
                member = tarfile.TarInfo(name)
                member.size = 1
                archive.addfile(member, io.BytesIO(b"1"))
        message = rf"one \.jpg with each key, found a\.jpg at byte 512 and a\.{ending} at byte 2560"
        with pytest.raises(InputError, match=message):
            webdataset(tmp_path)


@pytest.mark.parametrize(
    "label",
    [
        {"cls": b"1_0"}, {"cls": b"1e3"}, {"cls": b"1.5"}, {"cls": b"+1"}, {"cls": b"-1"},
        {"cls": "١".encode()}, {"cls": b"2147483648"}, {"cls": b"9" * 5000}, {"cls": b"\xff"},
        {"json": b'{"label": Infinity}'}, {"json": b'{"label": NaN}'},
        {"json": b'{"label": true}'},
        {"json": b'{"label": 1.5}'}, {"json": b'{"label": 2147483648}'},
        {"json": b'{"label": "1_0"}'},
        {"json": b'{"label": null}'}, {"json": b'{"label": [0]}'}, {"json": b"[" * 100_000},
        {"json": b'{"label": ' + b"9" * 5000 + b"}"},
    ],
)  # fmt: skip
def test_labels_have_to_be_plain_integers(tmp_path: Path, label: dict[str, bytes]) -> None:
    two_samples(tmp_path, {"jpg": b"1", **label})
    with pytest.raises(InputError, match=r"expected the class index in a\.(cls|json), as text"):
        webdataset(tmp_path)


@pytest.mark.parametrize("label", [{"cls": b" 7\n"}, {"json": b'{"label": 7}'},
                                   {"json": b'{"label": "7"}'}])  # fmt: skip
def test_labels_of_any_usual_form(tmp_path: Path, label: dict[str, bytes]) -> None:
    assert webdataset(two_samples(tmp_path, {"jpg": b"1", **label})).train.labels.tolist() == [7]  # type: ignore[attr-defined]


def test_a_damaged_label_does_not_make_a_billion_classes(tmp_path: Path) -> None:
    two_samples(tmp_path, {"jpg": b"1", "cls": b"2000000000"})
    with pytest.raises(
        InputError, match=r"expected labels below 1,048,576, got 2,000,000,000; fix"
    ):
        webdataset(tmp_path)


def test_label_files_of_gigabytes_are_not_read(tmp_path: Path) -> None:
    two_samples(tmp_path, {"jpg": b"1", "json": b"{}"})
    length, path = 2 << 30, tmp_path / "train-0.tar"
    image, label = tarfile.TarInfo("a.jpg"), tarfile.TarInfo("a.json")
    label.size = length
    with path.open("wb") as file:
        file.write(image.tobuf() + label.tobuf())
        file.truncate(1024 + length + 1024)
    with pytest.raises(InputError, match=r"at most 16,777,216 bytes in a\.json, got 2,147,483,648"):
        webdataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caf\xe9\nte\n".encode("latin-1"), "expected text in UTF-8, got byte 0xe9 at 3"),
        (b"cat\n\ndog\n", "the name of a class in each line, found none in line 2; fill"),
        (b"cat\ndog\ncat\n", "expected each class once, got several times: cat; give"),
    ],
)
def test_odd_lists_of_classes(tmp_path: Path, content: bytes, message: str) -> None:
    two_samples(tmp_path, {"jpg": b"1", "cls": b"1"})
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"classes.txt: .*{message}"):
        webdataset(tmp_path)
    (tmp_path / "classes.txt").write_bytes("\ufeffKatze\r\nHündin\r\n\r\n".encode())
    assert webdataset(tmp_path).classes == ("Katze", "Hündin")


def test_a_list_of_classes_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    two_samples(tmp_path, {"jpg": b"1", "cls": b"0"})
    with (tmp_path / "classes.txt").open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(
        InputError, match=r"classes.txt: expected at most 67,108,864 bytes, got 2,14"
    ):
        webdataset(tmp_path)


def test_odd_validation_labels(official: Path) -> None:
    labels = official / "imagenet_2012_validation_synset_labels.txt"
    labels.write_bytes(b"n01440764\xe9\n")
    with pytest.raises(InputError, match="expected text in UTF-8, got byte 0xe9"):
        imagenet_tars(official)
    member = tarfile.TarInfo("data/meta.mat")
    member.size = 100 << 20
    kit = official / "ILSVRC2012_devkit_t12.tar.gz"
    kit.write_bytes(gzip.compress(member.tobuf() + bytes(member.size + 1024), 1))
    with pytest.raises(InputError, match=r"ValueError: meta.mat has 104,857,600 bytes\); fetch it"):
        imagenet_tars(official)


def hub(
    root: Path,
    names: dict[str, Any],
    labels: dict[str, list[int]],
    place: str = "{split}-0.parquet",
) -> Path:
    """Parquet files with such names of classes and such labels."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    for split in ("train", "validation"):
        for shard, label in enumerate(labels[split]):
            image = {"bytes": f"{split} {shard}".encode(), "path": "a"}
            table = arrow.table({"image": [image], "label": [label]})
            if names.get(split) is not None:
                features = {"label": {"names": names[split], "_type": "ClassLabel"}}
                told = {"huggingface": json.dumps({"info": {"features": features}})}
                table = table.replace_schema_metadata(told)
            path = root / place.format(split=split).replace("0", str(shard))
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
    return root


ONE_EACH = {"train": [0, 1], "validation": [0, 1]}


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
    monkeypatch.setattr(archives, "ROW_BYTES", 20_000)
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
