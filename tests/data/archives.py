"""Data sets in archives, made of class folders, for the tests of what reads them."""

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
from tests.items import bytes_of

SYNSETS = {"flower": "n01440764", "temple": "n02102040"}
Images = Any
ONE_EACH = {"train": [0, 1], "validation": [0, 1]}


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


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    path.write_bytes(edit(path.read_bytes()))


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


def two_samples(root: Path, endings: dict[str, bytes]) -> Path:
    for split in ("train", "val"):
        tar(root / f"{split}-0.tar", {f"a.{ending}": data for ending, data in endings.items()})
    return root


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
