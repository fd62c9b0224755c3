"""ImageNet-1k from its two official tars, read in place."""

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mobilenext.data.class_lists import MOST_TEXT, read_list
from mobilenext.data.sources import (
    ImageData,
    check_class_names,
    data_folder,
    is_hidden,
    is_image,
    some,
)
from mobilenext.data.stored import Names
from mobilenext.data.tar_index import cached_index, index_arrays, indexed_images
from mobilenext.data.tars import tar_members
from mobilenext.errors import InputError
from mobilenext.files import open_regular, printable

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LABELS_PATTERN = "*validation_synset_labels.txt"


def imagenet_tars(
    root: str | Path | None, expected_classes: Sequence[str] | None = None
) -> ImageData:
    """ImageNet-1k from its two official tars, read in place.

    The order is that of class folders: synset, then file name. Labels of the validation images come
    from the official development kit beside the tars, or from a text file with one synset a line,
    for the images in the order of their names. The first opening walks over all headers; the
    index is then cached under $XDG_CACHE_HOME or ~/.cache.

    Args:
        root: Folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, and
            ILSVRC2012_devkit_t12.tar.gz or *validation_synset_labels.txt.
        expected_classes: If given, the synsets have to be exactly these.

    Raises:
        InputError: A file is missing, damaged or cut short, or labels and images do not fit.
    """
    base = data_folder(root, f"the folder with {TRAIN_TAR} and {VAL_TAR}")
    train_tar, val_tar = base / TRAIN_TAR, base / VAL_TAR
    for path in (train_tar, val_tar):
        if not path.exists():
            raise InputError(
                f"{printable(path)}: expected ImageNet's official tar, found none; put it there, "
                "or a link"
            )
    train = cached_index([train_tar], lambda: _index_train(train_tar))
    classes = str(train.pop("classes").tobytes(), "utf-8").split("\n")
    if expected_classes is not None and classes != list(expected_classes):
        odd = sorted(set(classes) ^ set(expected_classes))
        raise InputError(
            f"{printable(train_tar)}: expected the {len(expected_classes)} synsets of "
            f"ImageNet-1k, got {len(classes)}; missing or unknown: {some(odd)}; fetch the official "
            "archive"
        )
    val = cached_index([val_tar], lambda: _index_val(val_tar))
    synsets = _validation_synsets(base, len(val["length"]))
    number = {synset: label for label, synset in enumerate(classes)}
    unknown = sorted(set(synsets) - set(classes))
    if unknown:
        raise InputError(
            f"{printable(base)}: expected validation labels among the {len(classes)} synsets of "
            f"{TRAIN_TAR}, got {len(unknown)} others: {some(unknown)}; training archive and labels "
            "have to be of the same data set (ILSVRC2012)"
        )
    labels = np.array([number[synset] for synset in synsets], np.int32)
    order = np.argsort(labels, kind="stable")  # within a class the names are in order already
    plain = Names(val["text"], val["ends"])
    names = Names.of([f"{synsets[index]}/{plain[index]}" for index in order.tolist()])
    val = {name: val[name][order] for name in ("offset", "length", "which")}
    val |= {"label": labels[order], "text": names.text, "ends": names.ends}
    images = indexed_images([train_tar], train), indexed_images([val_tar], val)
    return ImageData(*images, tuple(classes))


def _index_train(path: Path) -> dict[str, np.ndarray]:
    """Index of the training tar, which has a tar for each class."""
    inner = sorted(
        (Path(member.name).stem, member)
        for member in tar_members(path)
        if member.name.endswith(".tar") and not is_hidden(member.name)
    )
    classes = [synset for synset, _ in inner]
    check_class_names(classes, str(path))
    if not classes or len(set(classes)) != len(classes):
        raise InputError(
            f"{printable(path)}: expected one tar for each class in it, got {len(classes)} tars of "
            f"{len(set(classes))} names; fetch the official archive"
        )
    parts = []
    for label, (synset, tar) in enumerate(inner):
        images = sorted(
            (os.path.basename(member.name), member.offset, member.size)
            for member in tar_members(path, tar.offset, tar.offset + tar.size)
            if is_image(member.name)
        )
        if not images:
            raise InputError(
                f"{printable(path)}: expected images in {printable(tar.name)}, found none; fetch "
                "it again"
            )
        # As arrays at once: all the tuples together would take half a gigabyte.
        names, offsets, lengths = zip(*images, strict=True)
        full = [f"{synset}/{name}" for name in names]
        count = len(full)
        parts.append(index_arrays(full, list(offsets), list(lengths), [label] * count, [0] * count))
    shift = np.cumsum([0, *(len(part["text"]) for part in parts[:-1])])
    for part, before in zip(parts, shift, strict=True):
        part["ends"] = part["ends"] + before
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {**arrays, "classes": np.frombuffer("\n".join(classes).encode(), np.uint8)}


def _index_val(path: Path) -> dict[str, np.ndarray]:
    """Index of the validation tar, a flat one of images; all labels are 0 as yet."""
    images = sorted(
        (os.path.basename(member.name), member.offset, member.size)
        for member in tar_members(path)
        if is_image(member.name)
    )
    if not images:
        raise InputError(
            f"{printable(path)}: expected images in it, found none; fetch the official archive"
        )
    names, offsets, lengths = (list(column) for column in zip(*images, strict=True))
    return index_arrays(names, offsets, lengths, [0] * len(names), [0] * len(names))


def _validation_synsets(base: Path, images: int) -> list[str]:
    """The synset of each validation image, in the order of their names."""
    devkit = base / DEVKIT
    texts = sorted(path for path in base.glob(LABELS_PATTERN) if not path.name.startswith("."))
    if devkit.exists():
        path, synsets = devkit, _read_devkit(devkit)
    elif texts:
        path, synsets = texts[0], read_list(texts[0]).split()
    else:
        raise InputError(
            f"{printable(base)}: expected the labels of the validation images, found neither "
            f"{DEVKIT} (it is offered where the tars are) nor {LABELS_PATTERN} (one synset a "
            "line); put one there"
        )
    if len(synsets) != images:
        raise InputError(
            f"{printable(path)}: expected a label for each of the {images} images of {VAL_TAR}, "
            f"got {len(synsets)}; fetch both again, they have to be of the same data set "
            "(ILSVRC2012)"
        )
    return synsets


def _read_devkit(path: Path) -> list[str]:
    from scipy.io import loadmat

    truth = "ILSVRC2012_validation_ground_truth.txt"
    try:
        found = {}
        with open_regular(path) as opened, tarfile.open(fileobj=opened, mode="r:gz") as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if member.isreg() and name in (truth, "meta.mat"):
                    if member.size > MOST_TEXT:
                        raise ValueError(f"{name} has {member.size:,} bytes")
                    file = archive.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
        synsets = np.atleast_1d(loadmat(io.BytesIO(found["meta.mat"]), squeeze_me=True)["synsets"])
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        return [names[int(number)] for number in found[truth].split()]
    except Exception as error:  # gzip, tarfile and scipy raise nearly anything on damaged files
        raise InputError(
            f"{printable(path)}: expected ImageNet's development kit with data/{truth} and "
            f"data/meta.mat, could not read them ({type(error).__name__}: {error}); fetch it "
            f"again, or give the labels as {LABELS_PATTERN}"
        ) from error
