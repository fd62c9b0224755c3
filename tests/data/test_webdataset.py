"""WebDataset's tars give the images of the class folders which they are made of."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilenext.data import image_folder
from mobilenext.data.layouts import Layout, layout_of
from mobilenext.data.webdataset import webdataset
from mobilenext.errors import InputError
from tests.data.archives import check_same, shards, tar, two_samples


@pytest.mark.parametrize(
    "label",
    [
        lambda label: {"cls": str(label).encode()},
        lambda label: {"json": json.dumps({"label": label}).encode(), "txt": b"a photo"},
    ],
)
def test_webdataset(folder: Path, tmp_path: Path, label: Callable[[int], dict[str, bytes]]) -> None:
    root = shards(folder, tmp_path / "shards", label)
    assert layout_of(root) is Layout.WEBDATASET
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
    assert layout_of(root) is None


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
