from pathlib import Path

import pytest

from tests.data.archives import SYNSETS, tar


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
