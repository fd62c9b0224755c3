"""Packs: the same images in the same order, and every damage is named."""

import ctypes
import json
import pickle
import re
import shutil
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenext.data import image_folder, native, train_loader, train_transform
from mobilenext.data.encoded import Located
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
)
from mobilenext.errors import InputError

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


def bytes_at(located: Located, place: int) -> bytes:
    item = located.items[place]
    return ctypes.string_at(int(item["data"]), int(item["length"]))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit(pack: Path, change: dict[str, Any]) -> None:
    path = pack / "pack.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


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
            assert ours.read(index) == theirs.read(index) == bytes_at(located, index)
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
    assert items["segments"][0] == 0
    table = ctypes.string_at(int(items["segments"][1]), 6)
    assert table == TABLE.tobytes()
    assert items["data"][1] == items["segments"][1] + 6
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


def test_a_pickled_split_maps_anew(pack: Path) -> None:
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
    for _ in range(2):
        statuses = images.locate([6, 7, 8]).items["status"].tolist()
        assert statuses == [native.OK, native.CHECKSUM, native.OK]
    with pytest.raises(InputError, match=r"bytes \d+ to \d+, is corrupt"):
        images.read(7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "expected mobilenext-pack, version 1, got mobilenext-pack, version 0; "
                         "make the pack anew"),
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
    with pytest.raises(InputError, match=r"found no pack.json there; mend the path"):
        open_pack(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data.root is not set"):
        open_pack(None)
    assert not is_pack(tmp_path)
    assert not is_pack(None)


def test_an_index_that_leads_elsewhere_is_refused(pack: Path) -> None:
    index = np.load(pack / "train-index.npy")
    index["offset"][2] = 1 << 40
    np.save(pack / "train-index.npy", index)
    described = json.loads((pack / "pack.json").read_text())
    crc = zlib.crc32((pack / "train-index.npy").read_bytes())
    described["splits"]["train"]["index"]["train-index.npy"] = crc
    edit(pack, described)
    with pytest.raises(InputError, match="puts image 2 elsewhere"):
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
    """ImageNet's size: opening and using it takes a byte an image, beside what is mapped."""
    count, one = 1_281_167, b"\xff\xd8 no image"
    index = np.zeros(count, INDEX)
    index["length"], index["checksum"] = len(one), zlib.crc32(one)
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
    plain = {"format": "mobilenext-pack", "version": 1, "splits": splits, **described(["a"])}
    (tmp_path / "pack.json").write_text(json.dumps(plain))

    tracemalloc.start()
    images = open_pack(tmp_path).train
    assert isinstance(images, PackImages)
    for start in range(0, count, 40_009):
        items = images.locate(np.arange(start, min(start + 256, count))).items
        assert items["verify"].all()
    assert images.names[count - 1] == "n01440764/n01440764_18.JPEG "
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2.0e6
    assert peak < 16e6


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
