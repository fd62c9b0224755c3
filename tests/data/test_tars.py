"""Tars are read by their headers, and what is no tar is named."""

import bz2
import lzma
import os
import tarfile
from pathlib import Path

import pytest

from mobilenext.data import image_folder, imagenet
from mobilenext.data.imagenet_tars import imagenet_tars
from mobilenext.data.tars import _pax, tar_members
from mobilenext.data.webdataset import webdataset
from mobilenext.errors import InputError
from tests.data.archives import change, check_same, shards, tar


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
