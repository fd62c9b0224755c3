"""The cached index of class folders is what a walk gives, or is not used."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenext.data import folder_index, image_folder, sources
from mobilenext.data.sources import FolderImages
from mobilenext.errors import InputError

CLASSES = ["flower", "temple"]


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The roots that were walked; small data sets that have just been made are cached as well."""
    walks: list[Path] = []
    walked = sources._walked

    def counted(root: Path, classes: Any) -> folder_index.FolderIndex:
        walks.append(root)
        return walked(root, classes)

    monkeypatch.setattr(sources, "_walked", counted)
    monkeypatch.setattr(folder_index, "FEWEST_CACHED", 1)
    monkeypatch.setattr(folder_index, "SETTLED_NS", 0)
    return walks


@pytest.fixture
def root(photo_folder: Path) -> Path:
    """Class folders with one of everything that an index has to do with."""
    root, elsewhere = photo_folder / "train", photo_folder / "elsewhere"
    flower = root / "flower"
    for folder in (flower / "inner", elsewhere / "one", elsewhere / "two"):
        folder.mkdir(parents=True)
        shutil.copy(flower / "0.jpg", folder / f"of_{folder.name}.jpg")
    (flower / "notes.txt").touch()
    (flower / "loop").symlink_to(flower)
    (elsewhere / "current").symlink_to("one")
    (flower / "more").symlink_to(elsewhere / "current")
    (flower / "later").symlink_to(elsewhere / "three")
    (root / "temple" / os.fsdecode(b"b\xe4d.jpg")).touch()
    tick()
    return root


def tick() -> None:
    """Wait until the file system's clock says another time."""
    time.sleep(0.03)


def same(one: FolderImages, two: FolderImages) -> bool:
    return (
        one.paths.tolist() == two.paths.tolist()
        and one.labels.tolist() == two.labels.tolist()
        and (one.labels.dtype, one.notes) == (two.labels.dtype, two.notes)
    )


def test_what_the_cache_gives(
    root: Path, walks: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FolderImages(root, CLASSES)
    again = FolderImages(root, CLASSES)
    assert walks == [root]
    monkeypatch.chdir(root.parent)
    relative = FolderImages(Path("train"), CLASSES)
    assert walks == [root]
    assert len(list(cache.iterdir())) == 1
    shutil.rmtree(cache)
    walked = FolderImages(root, CLASSES)
    assert walks == [root, root]
    assert all(same(walked, other) for other in (first, again, relative))
    assert len(walked.notes) == 2
    assert b"temple/b\xe4d.jpg" in again.paths.tolist()
    assert (again.read(3), again.targets(np.arange(3)).tolist()) == (walked.read(3), [0, 0, 0])


def test_the_memory_is_that_of_the_file(root: Path, walks: list[Path]) -> None:
    """Of the process that walked, too."""
    del walks
    for _ in range(2):
        images = FolderImages(root, CLASSES)
        assert not images.paths.flags.owndata
        assert not images.labels.flags.writeable
        assert images.labels.flags.aligned


def relink(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


def behind_its_back(flower: Path) -> None:
    """As tar and rsync do, which set times."""
    status = flower.stat()
    (flower / "new.jpg").touch()
    os.utime(flower, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "file added": lambda flower: (flower / "new.jpg").touch(),
    "file added below": lambda flower: (flower / "inner" / "new.jpg").touch(),
    "file removed": lambda flower: (flower / "3.jpg").unlink(),
    "file renamed": lambda flower: (flower / "3.jpg").rename(flower / "three.jpg"),
    "other file added": lambda flower: (flower / "x.heic").touch(),
    "file added, times set back": behind_its_back,
    "folder added": lambda flower: shutil.copytree(flower / "inner", flower / "second"),
    "folder removed": lambda flower: shutil.rmtree(flower / "inner"),
    "folder replaced": lambda flower: (
        shutil.copytree(flower / "inner", flower.parent / "new"),
        (flower.parent / "new" / "new.jpg").touch(),
        shutil.rmtree(flower / "inner"),
        (flower.parent / "new").rename(flower / "inner"),
    ),
    "link elsewhere": lambda flower: relink(flower / "more", "../../elsewhere/two"),
    "link's link elsewhere": lambda flower: relink(
        flower.parents[1] / "elsewhere" / "current", "two"
    ),
    "file added behind a link": lambda flower: (flower / "more" / "new.jpg").touch(),
    "link leads to a folder now": lambda flower: shutil.copytree(
        flower / "inner", flower.parents[1] / "elsewhere" / "three"
    ),
    "link leads nowhere now": lambda flower: shutil.rmtree(flower.parents[1] / "elsewhere" / "one"),
    "loop is none now": lambda flower: relink(flower / "loop", "../../elsewhere/two"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(root: Path, walks: list[Path], cache: Path, change: str) -> None:
    before = FolderImages(root, CLASSES)
    CHANGES[change](root / "flower")
    tick()
    images = FolderImages(root, CLASSES)
    assert walks == [root, root]
    assert not same(images, before)
    assert same(FolderImages(root, CLASSES), images)
    assert walks == [root, root]
    assert len(list(cache.iterdir())) == 1  # the new one has replaced it


def test_other_classes(root: Path, walks: list[Path], cache: Path) -> None:
    both = image_folder(str(root.parent))
    assert FolderImages(root, ["temple"]).labels.tolist() == [0] * 13
    assert len(walks) == 3
    assert len(list(cache.iterdir())) == 2
    assert same(both.train, FolderImages(root, CLASSES))  # type: ignore[arg-type]


def test_an_error_is_the_same_each_time(root: Path, walks: list[Path]) -> None:
    FolderImages(root, CLASSES)
    for path in (root / "temple").iterdir():
        path.rename(path.with_suffix(".heic"))
    tick()
    for _ in range(2):
        with pytest.raises(InputError, match=r"found none in temple .*\.heic \(13\)"):
            FolderImages(root, CLASSES)
    assert len(walks) == 3


def test_a_folder_that_has_just_changed_is_not_cached(
    root: Path, walks: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within the granularity of the clock would not be seen."""
    FolderImages(root, CLASSES)
    monkeypatch.setattr(folder_index, "SETTLED_NS", 2_000_000_000)
    assert len(FolderImages(root, CLASSES)) == 27
    assert len(walks) == 1
    (root / "flower" / "new.jpg").touch()
    for _ in range(2):
        assert len(FolderImages(root, CLASSES)) == 28
    assert len(walks) == 3
    shutil.rmtree(cache)
    FolderImages(root, CLASSES)
    assert not cache.exists()


def test_a_folder_that_changes_while_it_is_walked(
    root: Path, walks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = sources._listed

    def slowly(folder: str) -> Any:
        result = listed(folder)
        if folder.endswith("flower") and not (root / "flower" / "new.jpg").exists():
            tick()
            (root / "flower" / "new.jpg").touch()
        return result

    monkeypatch.setattr(sources, "_listed", slowly)
    assert len(FolderImages(root, CLASSES)) == 27
    assert len(FolderImages(root, CLASSES)) == 28
    assert len(walks) == 2


def test_a_small_data_set_is_not_cached(root: Path, cache: Path) -> None:
    FolderImages(root, CLASSES)
    assert not cache.exists()


def another_version(content: bytes) -> bytes:
    rest = content.split(b"\n", 1)[1].replace(b'"of": [1', b'"of": [0')
    return hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-1],
    "cut shorter": lambda content: content[:100],
    "longer": lambda content: content + b"\0",
    "a byte": lambda content: content[:-9] + b"?" + content[-8:],
    "noise": lambda content: b"\xff\0\n" * 9999,
    "another version": another_version,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again(
    root: Path, walks: list[Path], cache: Path, damage: str
) -> None:
    images = FolderImages(root, CLASSES)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    path.unlink()  # it is still mapped
    path.write_bytes(DAMAGES[damage](content))
    for _ in range(2):
        assert same(FolderImages(root, CLASSES), images)
    assert len(walks) == 2
    assert path.read_bytes() == content


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_something_else_in_place_of_the_cache(
    root: Path, walks: list[Path], cache: Path, make: Callable[[Path], object]
) -> None:
    images = FolderImages(root, CLASSES)
    (path,) = cache.iterdir()
    path.unlink()
    make(path)
    assert same(FolderImages(root, CLASSES), images)
    assert len(walks) == 2
    assert list(cache.iterdir()) == [path]


def test_a_cache_that_cannot_be_written(
    root: Path, walks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert same(FolderImages(root, CLASSES), FolderImages(root, CLASSES))
    assert len(walks) == 2


def test_only_caches_of_this_machine_are_mapped(tmp_path: Path) -> None:
    """Another machine that replaces a file on a network file system would end a process."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda1 / ext4 rw 0 0\nhome:/x {tmp_path}/a\\040home nfs4 rw 0 0\n"
        f"/dev/sdb1 {tmp_path}/a\\040home/disk xfs rw 0 0\n"
    )
    places = {"here": True, "a home/x": False, "a home/disk/x": True}
    for place, local in places.items():
        assert folder_index._is_local(tmp_path / place, mounts) is local
    assert not folder_index._is_local(tmp_path, tmp_path / "absent")
    path = tmp_path / "file"
    path.write_bytes(b"line\nrest")
    with path.open("rb") as file:
        file.readline()
        assert bytes(folder_index._content(file, path)) == b"line\nrest"
        assert file.tell() == 5
