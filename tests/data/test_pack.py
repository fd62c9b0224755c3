"""Packs: the same images in the same order, and every damage is named."""

import json
import os
import pickle
import re
import shutil
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenext.data import image_folder, native, train_loader, train_transform
from mobilenext.data.pack import (
    ALIGNMENT,
    INDEX,
    Names,
    PackImages,
    PackWriter,
    Record,
    check_output,
    is_pack,
    open_pack,
    read_report,
)
from mobilenext.errors import InputError
from tests import on_disk
from tests.items import bytes_of, table_of

TABLE = np.array([3, 1, 4], np.uint16)


def described(classes: list[str], **more: Any) -> dict[str, Any]:
    return {"classes": classes, "lossless": {"train": True, "val": True}, **more}


def records(root: Path, split: str) -> list[Record]:
    """All images of a class folder; every second one with a (made-up) segment table."""
    images = getattr(image_folder(str(root)), split)
    found = []
    for index in range(len(images)):
        name = str(Path(images.name(index)).relative_to(root / split))
        table = TABLE if index % 2 else TABLE[:0]
        found.append(Record(images.read(index), table, int(images.labels[index]), 200, 160, name))
    return found


def write(root: Path, output: Path, part: int = 5, shard_bytes: int = 60_000) -> Path:
    writer = PackWriter(output, described(["flower", "temple"]), shard_bytes)
    for split in ("train", "val"):
        for number, record in enumerate(records(root, split), 1):
            writer.add(split, record)
            if number % part == 0:
                writer.end_part(split, {"number": number})
        writer.end_part(split, {})
    writer.finish({"made": "for a test"})
    return output


@pytest.fixture
def pack(photo_folder: Path, tmp_path: Path) -> Path:
    return write(photo_folder, tmp_path / "pack")


def loaded(images: PackImages, indices: list[int]) -> np.ndarray:
    """Items of images that native code has read."""
    pool, located = native.Pool(1), images.locate(indices)
    pool.load(located.items, 1 << 30)
    pool.release(located.items)
    pool.close()
    return located.items


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit(pack: Path, change: dict[str, Any], with_checksum: bool = True) -> None:
    """Change entries of `pack.json`, with the CRC-32 that belongs to them or without any."""
    path = pack / "pack.json"
    entries = {**json.loads(path.read_text()), **change}
    entries.pop("crc32", None)
    if with_checksum:
        canonical = json.dumps(entries, sort_keys=True, separators=(",", ":"))
        entries["crc32"] = zlib.crc32(canonical.encode())
    path.write_text(json.dumps(entries))


def edit_index(pack: Path, split: str, name: str, array: np.ndarray) -> None:
    """Replace a file of the index, and its CRC-32."""
    path = pack / f"{split}-{name}.npy"
    np.save(path, array)
    splits = json.loads((pack / "pack.json").read_text())["splits"]
    splits[split]["index"][path.name] = zlib.crc32(path.read_bytes())
    edit(pack, {"splits": splits})


def test_same_images_in_the_same_order(photo_folder: Path, pack: Path) -> None:
    folder, packed = image_folder(str(photo_folder)), open_pack(str(pack))
    assert is_pack(pack)
    assert packed.classes == folder.classes
    assert len(list(pack.glob("train-*.bin"))) > 2
    for split in ("train", "val"):
        ours, theirs = getattr(packed, split), getattr(folder, split)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        located = ours.locate(np.arange(len(ours)))
        for index in range(len(theirs)):
            assert ours.read(index) == theirs.read(index) == bytes_of(located.items[index])
            assert theirs.name(index).endswith(f"{split}/{ours.names[index]}")
            assert ours.name(index) == f"{pack}: {split}/{ours.names[index]}"
            assert ours[index][1] == theirs[index][1]
            np.testing.assert_array_equal(np.asarray(ours[index][0]), np.asarray(theirs[index][0]))


def test_segment_tables_and_places(pack: Path) -> None:
    images = open_pack(pack).train
    assert isinstance(images, PackImages)
    assert images.segments(0) is None
    np.testing.assert_array_equal(images.segments(1), TABLE)
    items = images.locate([0, 1]).items
    assert items["num_segments"].tolist() == [0, 3]
    np.testing.assert_array_equal(table_of(items[1]), TABLE)
    assert items["segments_checksum"].tolist() == [zlib.crc32(b""), zlib.crc32(TABLE.tobytes())]
    assert not (images.index["offset"] % ALIGNMENT).any()


def test_each_image_is_verified_once(pack: Path) -> None:
    images = open_pack(pack).train
    assert isinstance(images, PackImages)
    items = images.locate([3, 5]).items
    assert items["verify"].tolist() == [1, 1]
    assert items["checksum"][0] == zlib.crc32(images.read(3))
    assert images.locate([5, 6]).items["verify"].tolist() == [1, 1]  # not compared yet
    images.found_whole(np.array([3, 5]))
    assert images.locate([5, 6]).items["verify"].tolist() == [0, 1]


def test_a_pickled_split_is_opened_again(pack: Path) -> None:
    images = open_pack(pack).val
    text = pickle.dumps(images)
    assert len(text) < 2000
    assert pickle.loads(text).read(1) == images.read(1)  # type: ignore[attr-defined]


def test_reads_as_the_documentation_says(pack: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "packs.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("/data/imagenet-pack", str(pack)).replace("123", "7"), names)
    assert names["data"] == bytes(open_pack(pack).train.read(7))  # type: ignore[attr-defined]
    assert names["label"] == "flower"


def test_a_corrupt_block_is_named(pack: Path) -> None:
    images = open_pack(pack).train
    assert isinstance(images, PackImages)
    row = images.index[7]
    start = int(row["offset"]) + 2 * int(row["segments"])
    shard = pack / f"train-{row['shard']:03d}.bin"
    flip(shard, start + 100)
    images = open_pack(pack).train
    assert isinstance(images, PackImages)
    assert images.problem(6) is None
    message = (
        rf"{pack}: {shard.name}, bytes {start} to {start + row['length']}, is corrupt: "
        rf"expected train/{images.names[7]} as it was written, got another CRC-32; copy the shard"
    )
    with pytest.raises(InputError, match=message):
        images.read(7)
    with pytest.raises(InputError, match=message):
        images[7]
    assert images.locate([7]).items["verify"].tolist() == [1]
    assert images.problem(7) is not None
    assert images.locate([7]).items["verify"].tolist() == [1]  # until it is sound


def test_a_corrupt_segment_table_is_named(pack: Path) -> None:
    images = open_pack(pack).train
    assert isinstance(images, PackImages)
    flip(pack / f"train-{images.index['shard'][7]:03d}.bin", int(images.index["offset"][7]))
    images = open_pack(pack).train
    assert isinstance(images, PackImages)
    if native.library() is not None:
        for _ in range(2):
            items = loaded(images, [6, 7, 8])
            assert items["status"].tolist() == [native.OK, native.CHECKSUM, native.OK]
    with pytest.raises(InputError, match=r"bytes \d+ to \d+, is corrupt"):
        images.read(7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "expected mobilenext-pack, version 1, got mobilenext-pack, version 0; "
                         "make the pack again"),
        ({"format": "beton"}, "got beton, version 1"),
        ({"splits": {}}, "expected an entry 'train'"),
        ({"lossless": {"train": True, "val": False}},
         "expected validation images as the source has them"),
    ],
)  # fmt: skip
def test_other_packs_are_refused(pack: Path, change: dict[str, Any], message: str) -> None:
    edit(pack, change)
    with pytest.raises(InputError, match=message):
        open_pack(pack)


def test_damaged_packs_are_refused(pack: Path, tmp_path: Path) -> None:
    def broken() -> Path:
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
        return shutil.copytree(pack, tmp_path / "broken")

    copy = broken()
    with (copy / "val-000.bin").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"val-000.bin: expected \d+ bytes, got 1000 bytes; copy"):
        open_pack(copy)
    copy = broken()
    (copy / "train-001.bin").unlink()
    with pytest.raises(InputError, match=r"train-001.bin: .*got no such file"):
        open_pack(copy)
    for name in ("train-index.npy", "val-names.npy", "val-name-ends.npy"):
        copy = broken()
        flip(copy / name, -1)
        with pytest.raises(InputError, match=rf"{name}: expected CRC-32 \w+, got \w+: this index"):
            open_pack(copy)
    copy = broken()
    (copy / "pack.json").write_text("{")
    with pytest.raises(InputError, match="expected the description of a pack, could not read"):
        open_pack(copy)
    with pytest.raises(InputError, match=r"found no pack.json there; fix the path"):
        open_pack(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data.root is not set"):
        open_pack(None)
    assert not is_pack(tmp_path)
    assert not is_pack(None)


@pytest.mark.parametrize(
    "offset", [1 << 40, (1 << 64) - 64, (1 << 64) - (1 << 20), (1 << 63) - 64, 65]
)
def test_an_index_that_leads_elsewhere_is_refused(pack: Path, offset: int) -> None:
    """Ends of the last ones wrap around, so they lie inside of the shard."""
    index = np.load(pack / "train-index.npy")
    index["offset"][2] = offset
    edit_index(pack, "train", "index", index)
    with pytest.raises(InputError, match="puts image 2 elsewhere"):
        open_pack(pack)


@pytest.mark.parametrize("beyond", [*range(3), 31, 32, 33, 63, 64, 65])
@pytest.mark.parametrize("grows", ["length", "segments"])
def test_no_image_ends_beyond_its_shard(pack: Path, beyond: int, grows: str) -> None:
    index = np.load(pack / "val-index.npy")
    last = len(index) - 1
    shard = pack / f"val-{index['shard'][last]:03d}.bin"
    row = index[last]
    end = int(row["offset"]) + 2 * int(row["segments"]) + int(row["length"])
    assert end == shard.stat().st_size
    if grows == "length":
        index["length"][last] += beyond
    else:  # a longer table pushes the image on
        index["segments"][last] += 1
        index["length"][last] = int(row["length"]) + beyond - 2
    edit_index(pack, "val", "index", index)
    if not beyond:
        assert len(open_pack(pack).val) == len(index)
        return
    with pytest.raises(InputError, match=f"puts image {last} elsewhere"):
        open_pack(pack)


@pytest.mark.parametrize("torn", [0, 7])
def test_taken_up_after_any_part(photo_folder: Path, pack: Path, tmp_path: Path, torn: int) -> None:
    """Whatever lies behind the last finished part is written again."""
    output = tmp_path / "again"
    for parts in range(1, 5):
        writer = PackWriter(output, described(["flower", "temple"]), 60_000)
        assert len(writer.parts["train"]) == parts - 1
        rest = records(photo_folder, "train")[5 * (parts - 1) :]
        for record in rest[:5]:
            writer.add("train", record)
        writer.end_part("train", {"number": 5 * parts})
        for record in rest[5:12]:  # never finished; goes over the end of a shard
            writer.add("train", record)
        writer.close()
        with writer.journal.open("ab") as file:
            file.write(b'{"split": "train"'[:torn])
        with pytest.raises(InputError, match="expected a finished pack, found an unfinished one"):
            open_pack(output)
        assert is_pack(output)
    writer = PackWriter(output, described(["flower", "temple"]), 60_000)
    assert [part["note"]["number"] for part in writer.parts["train"]] == [5, 10, 15, 20]
    for record in records(photo_folder, "train")[20:]:
        writer.add("train", record)
    writer.end_part("train", {})
    for record in records(photo_folder, "val"):
        writer.add("val", record)
    writer.end_part("val", {})
    writer.finish({"made": "for a test"})
    assert content(output) == content(pack)


def test_what_a_writer_refuses(photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only the training split can be resized"):
        PackWriter(tmp_path / "a", described([], lossless={"train": False, "val": False}))
    with pytest.raises(InputError, match="expected a new or empty folder, found photos"):
        PackWriter(tmp_path, described([]))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    PackWriter(tmp_path / "b", described(["a"])).close()
    with pytest.raises(InputError, match="begun with other values of classes, mode"):
        PackWriter(tmp_path / "b", described(["b"], mode="copy"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="expected a folder, found a file"):
        check_output(tmp_path / "file")
    with pytest.raises(InputError, match=r"expected images in train, got none"):
        PackWriter(tmp_path / "c", described([])).finish({})


def test_a_finished_part_that_is_gone(photo_folder: Path, tmp_path: Path) -> None:
    writer = PackWriter(tmp_path / "a", described(["a"]))
    for record in records(photo_folder, "train")[:3]:
        writer.add("train", record)
    writer.end_part("train", {})
    writer.close()
    (tmp_path / "a" / "train-000.bin").write_bytes(b"")
    writer = PackWriter(tmp_path / "a", described(["a"]))
    with pytest.raises(InputError, match=r"expected at least \d+ bytes, got 0: what was finished"):
        writer.add("train", records(photo_folder, "train")[3])
    writer.close()


def test_a_million_images_are_no_objects(tmp_path: Path) -> None:
    """ImageNet's size: opening and using it takes its index and a byte an image."""
    count, one = 1_281_167, b"\xff\xd8 no image"
    index = np.zeros(count, INDEX)
    index["length"], index["checksum"] = len(one), zlib.crc32(one)
    classes = [f"n{number:08d}" for number in range(1000)]
    index["label"] = np.arange(count) // 1282
    ends = np.arange(1, count + 1) * 28
    names = np.frombuffer(b"n01440764/n01440764_18.JPEG " * count, np.uint8)
    splits = {}
    for split in ("train", "val"):
        (tmp_path / f"{split}-000.bin").write_bytes(one)
        rows = count if split == "train" else 1
        arrays = {"index": index[:rows], "names": names[: rows * 28], "name-ends": ends[:rows]}
        crcs = {}
        for key, array in arrays.items():
            path = tmp_path / f"{split}-{key}.npy"
            np.save(path, array)
            crcs[path.name] = zlib.crc32(path.read_bytes())
        shards = [{"file": f"{split}-000.bin", "bytes": len(one)}]
        splits[split] = {"images": rows, "shards": shards, "index": crcs}
    plain = {"format": "mobilenext-pack", "version": 1, "splits": splits, **described(classes)}
    (tmp_path / "pack.json").write_text(json.dumps(plain))
    read = sum(path.stat().st_size for path in tmp_path.glob("*.npy"))

    tracemalloc.start()
    images = open_pack(tmp_path).train
    assert isinstance(images, PackImages)
    for start in range(0, count, 40_009):
        items = images.locate(np.arange(start, min(start + 256, count))).items
        assert items["verify"].all()
    assert images.names[count - 1] == "n01440764/n01440764_18.JPEG "
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < read + 2.0e6
    assert peak < read + 16e6


def test_names_of_any_kind() -> None:
    texts = ["a", "", "ü/\udcff", "z"]
    names = Names.of(texts)
    assert [names[index] for index in range(len(names))] == texts
    assert names[-1] == "z"
    with pytest.raises(IndexError):
        names[4]
    assert len(Names.of([])) == 0


@pytest.mark.skipif(native.library() is None, reason="the native decoder was not built")
def test_decoding_verifies_each_image_once(pack: Path) -> None:
    images = open_pack(pack).train
    assert isinstance(images, PackImages)
    batches = train_loader(
        images, train_transform(16), seed=0, global_batch_size=8, decoder="native"
    )
    list(batches.epoch(0))
    batches.close()
    seen = 8 * len(batches)
    assert images.locate(np.arange(len(images))).items["verify"].sum() == len(images) - seen


# ---- what is read is checked ----


def changed(pack: Path, entry: str, value: Any) -> dict[str, Any]:
    """Entries of `pack.json`, one of which, named like a/0/b, has another value."""
    entries = json.loads((pack / "pack.json").read_text())
    *path, last = [int(key) if key.isdigit() else key for key in entry.split("/")]
    owner = entries
    for key in path:
        owner = owner[key]
    if value is None:
        del owner[last]
    else:
        owner[last] = value
    return entries


def test_a_description_that_was_changed_is_refused(pack: Path) -> None:
    written = json.loads((pack / "pack.json").read_text())
    for change in (
        {"classes": ["temple", "flower"]},
        {"mode": "another"},
        {"lossless": {"train": False, "val": True}},
        {"crc32": written["crc32"] ^ 1},
        {"crc32": str(written["crc32"])},
    ):
        (pack / "pack.json").write_text(json.dumps({**written, **change}))
        with pytest.raises(
            InputError, match=r"pack.json: expected .* as it was written, got anoth"
        ):
            open_pack(pack)
    # What matters is what it says, not how its JSON is laid out.
    (pack / "pack.json").write_text(json.dumps(dict(reversed(written.items())), indent=7))
    assert open_pack(pack).classes == ("flower", "temple")


def test_a_pack_from_before_there_was_a_checksum_opens(pack: Path) -> None:
    edit(pack, {}, with_checksum=False)
    assert "crc32" not in json.loads((pack / "pack.json").read_text())
    assert open_pack(pack).classes == ("flower", "temple")


@pytest.mark.parametrize("classes", [["flower", "flower"], ["flower"], ["flower", "a", "flower"]])
def test_classes_that_cannot_be_those_of_the_labels(pack: Path, classes: list[str]) -> None:
    edit(pack, {"classes": classes}, with_checksum=False)
    message = (
        "expected class indices of 0 to 0, got 1 for image 12 of train; make the pack again"
        if len(classes) == 1
        else "expected each class once, got several times: flower; give each"
    )
    with pytest.raises(InputError, match=message):
        open_pack(pack)


@pytest.mark.parametrize("label", [-1, 2, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_without_a_class_are_refused(pack: Path, split: str, label: int) -> None:
    index = np.load(pack / f"{split}-index.npy")
    index["label"][3] = label
    edit_index(pack, split, "index", index)
    with pytest.raises(InputError, match=f"of 0 to 1, got {label} for image 3 of {split}"):
        open_pack(pack)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("format", 1), ("version", "1"), ("version", True), ("version", 1.0), ("lossless", []),
        ("lossless/train", None), ("lossless/val", 1), ("classes", None), ("classes", "ab"),
        ("classes", {"flower": 0}), ("classes/0", 7), ("classes/0", ["flower"]),
        ("classes/0", "a\nb"), ("classes/0", "\udce4"), ("splits", []), ("splits/val", None),
        ("splits/val", 3), ("splits/train/images", "24"), ("splits/train/images", 0),
        ("splits/train/images", -24), ("splits/train/images", 10**30),
        ("splits/train/images", 1e300), ("splits/train/images", True),
        ("splits/train/shards", {}), ("splits/train/shards", None), ("splits/train/shards/0", 1),
        ("splits/train/shards/0/bytes", -1), ("splits/train/shards/0/bytes", 10**30),
        ("splits/train/shards/0/bytes", "1"), ("splits/train/shards/0/file", None),
        ("splits/train/shards/0/file", "../train-000.bin"),
        ("splits/train/shards/0/file", "/etc/passwd"),
        ("splits/train/shards/0/file", "train-001.bin"),
        ("splits/train/shards/0/file", "train-000.bin\0"), ("splits/train/shards/0/file", 5),
        ("splits/train/index", []), ("splits/train/index/train-index.npy", None),
        ("splits/train/index/train-names.npy", -1),
        ("splits/train/index/train-names.npy", 2**32),
        ("splits/train/index/train-name-ends.npy", "1"),
    ],
)  # fmt: skip
def test_entries_that_cannot_be_are_refused(pack: Path, entry: str, value: Any) -> None:
    entries = changed(pack, entry, value)
    (pack / "pack.json").write_text("{}")
    for with_checksum in (True, False):
        edit(pack, entries, with_checksum)
        with pytest.raises(InputError, match=r"pack.json: expected .* (got|found) .*; \S+"):
            open_pack(pack)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"[1, 2]", b"null", b"7", b'"mobilenext-pack"', b"\xff\xfe\xfd", b"{\xe4: 1}",
        b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"<!doctype html><html></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
    ids=range(13),
)  # fmt: skip
@pytest.mark.parametrize("name", ["pack.json", "report.json"])
def test_a_description_that_is_none_is_refused(pack: Path, name: str, content: bytes) -> None:
    (pack / name).write_bytes(content)
    with pytest.raises(
        InputError, match=rf"{name}: expected .*(got|found|could not read|but it is)"
    ):
        open_pack(pack) if name == "pack.json" else read_report(pack)


@pytest.mark.parametrize("name", ["pack.json", "report.json", "val-index.npy", "val-names.npy"])
@pytest.mark.parametrize("how", ["huge", "folder", "pipe", "gone"])
def test_files_that_cannot_be_read_are_refused(pack: Path, name: str, how: str) -> None:
    path = pack / name
    if how == "huge":
        os.truncate(path, 1 << 36)
    else:
        path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    message = {
        "huge": "expected at most .* bytes, got 68,719,476,736",
        "folder": "expected a regular file, got a folder",
        "pipe": "expected a regular file, got a named pipe",
        "gone": "No such file|found no pack.json there",
    }[how]
    with pytest.raises(InputError, match=message):
        read_report(pack) if name == "report.json" else open_pack(pack)


def test_an_index_of_another_kind_is_refused(pack: Path) -> None:
    def refused(name: str, array: np.ndarray, message: str) -> None:
        path = pack / f"val-{name}.npy"
        content = path.read_bytes(), (pack / "pack.json").read_bytes()
        edit_index(pack, "val", name, array)
        with pytest.raises(InputError, match=message):
            open_pack(pack)
        path.write_bytes(content[0])
        (pack / "pack.json").write_bytes(content[1])

    index, ends = np.load(pack / "val-index.npy"), np.load(pack / "val-name-ends.npy")
    kind = "expected a one-dimensional array of .*, could not read it as one"
    refused("index", index[None], rf"{kind} \(an array of shape \(1, 10\)")
    refused("index", index.reshape(2, 5), kind)
    refused("index", index[0], kind)
    refused("index", index["label"], kind)
    refused("index", np.array([None, {}], object), kind)
    refused("name-ends", ends.astype(np.int32), kind)
    refused("names", np.zeros(3, "U4"), kind)
    refused("index", index[:-1], "expected an index of 10 images in val, got one of 9")
    refused("name-ends", ends[:-1], "got one of 10 with 9 names")
    refused("name-ends", ends + 1, "expected names of val within the")
    refused("name-ends", ends - 100, "expected names of val within the")
    refused("name-ends", ends[[1, 0, *range(2, 10)]], "expected names of val within the")
    assert len(open_pack(pack).val) == 10


def test_an_index_that_is_no_array_is_refused(pack: Path) -> None:
    splits = json.loads((pack / "pack.json").read_text())["splits"]
    whole = (pack / "val-index.npy").read_bytes()
    for content in (b"", b"\x93NUMPY", whole[:40], whole[:-1], b"\x93NUMPY\x03\0" + whole[8:]):
        (pack / "val-index.npy").write_bytes(content)
        splits["val"]["index"]["val-index.npy"] = zlib.crc32(content)
        edit(pack, {"splits": splits})
        with pytest.raises(InputError, match="expected a one-dimensional array"):
            open_pack(pack)


def test_an_index_that_is_cut_short_in_use_does_no_harm(pack: Path) -> None:
    """It is in memory: a mapping of it would end the process."""
    images = open_pack(pack).train
    assert isinstance(images, PackImages)
    expected = images.labels.copy(), [images.name(index) for index in range(24)]
    for path in pack.glob("train-*.npy"):
        os.truncate(path, 10)
    np.testing.assert_array_equal(images.labels, expected[0])
    assert [images.name(index) for index in range(24)] == expected[1]
    assert images.locate([5]).items["length"].tolist() == [len(images.read(5))]


def test_what_a_pack_cannot_hold_is_not_written(photo_folder: Path, tmp_path: Path) -> None:
    first = records(photo_folder, "train")[0]
    writer = PackWriter(tmp_path / "a", described(["flower", "temple"]))
    for label in (-1, 2, 10**12):
        with pytest.raises(InputError, match=f"train/{first.name}: .*of 0 to 1, got {label}; fix"):
            writer.add("train", replace(first, label=label))
    assert not (tmp_path / "a" / "train-000.bin").exists()
    writer.close()
    with pytest.raises(InputError, match=r"output=.*expected each class once, got .* a; give"):
        PackWriter(tmp_path / "b", described(["a", "b", "a"]))
    assert not (tmp_path / "b").exists()


def test_damaged_work_is_refused(photo_folder: Path, tmp_path: Path) -> None:
    """Whatever is wrong with it, begun packs say so instead of going on from it."""
    entries = described(["flower", "temple"])
    writer = PackWriter(tmp_path / "a", entries, 60_000)
    for record in records(photo_folder, "train")[:5]:
        writer.add("train", record)
    writer.end_part("train", {"number": 5})
    writer.close()
    written = writer.journal.read_bytes()
    first, part = written.splitlines(keepends=True)
    plain = json.loads(part)
    del plain["crc32"]
    for lines in (
        [b"\xff\xfe\n"], [b"7\n"], [b"[]\n"], [b"\n"], [b"[" * 100_000 + b"\n"],
        [first.replace(b"flower", b"tulips")], [first, b"{}\n"], [first, b"null\n"],
        [first, part.replace(b'"number": 5', b'"number": 6')],
        [first, part.replace(b'"end": ', b'"end": 1')],
        *([first, json.dumps({**plain, **change}).encode() + b"\n"]
          for change in ({"split": "test"}, {"split": ["train"]}, {"shard": -1}, {"shard": "0"},
                         {"end": 1.5}, {"end": True}, {"note": []}, {"note": None})),
    ):  # fmt: skip
        writer.journal.write_bytes(b"".join(lines))
        message = r"journal.jsonl: expected what was finished of a pack, could not read it .*begin"
        with pytest.raises(InputError, match=message):
            PackWriter(tmp_path / "a", entries, 60_000)
    # A line from before there were checksums.
    writer.journal.write_bytes(first + json.dumps(plain).encode() + b"\n")
    assert PackWriter(tmp_path / "a", entries, 60_000).parts["train"] == [plain]

    (stored,) = (tmp_path / "a" / ".work").glob("*.npz")
    content = stored.read_bytes()
    arrays = dict(np.load(stored))
    for damage in (
        b"",
        content[:-30],
        content.replace(b"flower", b"tulips"),
        None,
        "kind",
        "entry",
    ):
        if isinstance(damage, bytes):
            stored.write_bytes(damage)
        elif damage is None:
            stored.unlink()
        elif damage == "kind":
            np.savez(stored, **{**arrays, "rows": np.zeros(5)})
        else:
            np.savez(stored, rows=arrays["rows"])
        again = PackWriter(tmp_path / "a", entries, 60_000)
        with pytest.raises(InputError, match=r"train-000000.npz: expected what was finished of"):
            again.finish({})
        again.close()


def test_files_are_on_the_disk_before_what_speaks_of_them(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = on_disk.record(monkeypatch)
    writer = PackWriter(tmp_path / "a", described(["flower", "temple"]))
    for split in ("train", "val"):
        writer.add(split, records(photo_folder, split)[0])
        events.clear()
        writer.end_part(split, {})
        kinds = [event[:2] for event in events]
        shard = ("file", f"{split}-000.bin")
        assert kinds == [
            shard, ("file", f"{split}-000000.npz"), ("folder", "a"), ("folder", ".work"),
            ("file", "journal.jsonl"),
        ]  # fmt: skip
        assert events[0][2] == (tmp_path / "a" / f"{split}-000.bin").read_bytes() != b""
        assert f"{split}-000.bin" in events[2][2]
        assert f"{split}-000000.npz" in events[3][2]
    events.clear()
    writer.finish({"made": "for a test"})
    kinds = [re.sub(r"\.\d+\.tmp", ".tmp", event[1]) for event in events if event[0] != "rename"]
    assert kinds[-4:] == [".report.json.tmp", "a", ".pack.json.tmp", "a"]
    assert set(kinds[:-4]) >= {f"{split}-{name}.npy" for split in ("train", "val")
                               for name in ("index", "names", "name-ends")}  # fmt: skip
