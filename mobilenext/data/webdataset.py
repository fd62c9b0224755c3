"""Data sets in the WebDataset layout, read in place: images and labels as members of tars."""

import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mobilenext.data.class_lists import class_names
from mobilenext.data.sources import EXTENSIONS, ImageData, data_folder, is_hidden
from mobilenext.data.tar_index import cached_index, index_arrays, indexed_images
from mobilenext.data.tars import Member, tar_members
from mobilenext.errors import InputError
from mobilenext.files import open_regular, printable

TRAIN_TARS = "train-*.tar"
"""Pattern of the training split's tars."""
MOST_LABEL = 1 << 24
"""Bytes of a .cls or .json with a label; a .json may have captions and the like as well."""
MOST_LABEL_VALUE = 2**31 - 1
"""Highest label: labels are kept as int32."""


def webdataset(root: str | Path | None) -> ImageData:
    """Tars in the WebDataset layout, read in place and in any order.

    `root/train-*.tar` and `root/val-*.tar` with members `key.jpg` (or another image's ending) and
    `key.cls` (the class index as text), or `key.json` with an entry `label`. Class names come from
    `root/classes.txt`, one a line; else they are the numbers.

    Args:
        root: The folder with the tars.

    Raises:
        InputError: Tars are missing, compressed or damaged, or an image has no label.
    """
    base = data_folder(root, "the folder with train-*.tar and val-*.tar")
    found: dict[str, tuple[list[Path], dict[str, np.ndarray]]] = {}
    for split in ("train", "val"):
        files = sorted(base.glob(f"{split}-*.tar"))
        if not files:
            packed = sorted([*base.glob(f"{split}-*.tar.*"), *base.glob(f"{split}-*.tgz")])
            advice = (
                f"{printable(packed[0].name)} is compressed, so its images can't be found one by "
                "one: unpack it to a plain tar (gunzip), JPEGs do not shrink anyway"
                if packed
                else "fix the path, or name the tars like that"
            )
            raise InputError(f"{printable(base)}: expected {split}-*.tar, found none; {advice}")
        found[split] = files, cached_index(files, functools.partial(_index_samples, files))
    classes = class_names(base, [arrays["label"] for _, arrays in found.values()])
    train, val = (indexed_images(*found[split]) for split in ("train", "val"))
    return ImageData(train, val, classes)


def _index_samples(files: Sequence[Path]) -> dict[str, np.ndarray]:
    names: list[str] = []
    offsets: list[int] = []
    lengths: list[int] = []
    labels: list[int] = []
    numbers: list[int] = []
    for number, path in enumerate(files):
        with open_regular(path) as file:
            for key, members in _samples(path):
                image, label = _image_and_label(file, path, key, members)
                names.append(image.name)
                offsets.append(image.offset)
                lengths.append(image.size)
                labels.append(label)
                numbers.append(number)
    if not names:
        raise InputError(
            f"{printable(files[0])}: expected images in it, found none; rewrite the tar"
        )
    return index_arrays(names, offsets, lengths, labels, numbers)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Neighbouring members with the same name up to the first dot of the file's name."""
    key, members = None, {}
    for member in tar_members(path):
        folder, base = os.path.split(member.name)
        stem, _, ending = base.partition(".")
        if not stem or not ending or is_hidden(folder):
            continue
        this = f"{folder}/{stem}" if folder else stem
        if this != key:
            if key is not None:
                yield key, members
            key, members = this, {}
        twin = members.setdefault(ending.lower(), member)
        if twin is not member:
            raise InputError(
                f"{printable(path)}: expected one .{printable(ending.lower())} with each key, "
                f"found {printable(twin.name)} at byte {twin.offset} and "
                f"{printable(member.name)} at byte {member.offset}; give each sample a key of its "
                "own and write the tar again"
            )
    if key is not None:
        yield key, members


def _image_and_label(
    file: BinaryIO, path: Path, key: str, members: dict[str, Member]
) -> tuple[Member, int]:
    images = [member for ending, member in members.items() if f".{ending}" in EXTENSIONS]
    source = members.get("cls") or members.get("json")
    if len(images) != 1 or source is None:
        raise InputError(
            f"{printable(path)}: expected one image and a .cls or .json with each key, found "
            f"{printable(', '.join(members))} with {printable(key)}; fix or rewrite the tar"
        )
    content = _content(file, path, source)
    try:
        is_text = source.name.lower().endswith(".cls")
        return images[0], _label(content.strip() if is_text else json.loads(content)["label"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{printable(path)}: expected the class index in {printable(source.name)}, as text or "
            f"as label of a JSON object, from 0 to {MOST_LABEL_VALUE:,}, got "
            f"{content[:40]!r}; fix or rewrite the tar"
        ) from error


def _content(file: BinaryIO, path: Path, member: Member) -> bytes:
    if member.size > MOST_LABEL:
        raise InputError(
            f"{printable(path)}: expected at most {MOST_LABEL:,} bytes in "
            f"{printable(member.name)}, got {member.size:,}; fix or rewrite the tar"
        )
    file.seek(member.offset)
    return file.read(member.size)


def _label(value: Any) -> int:
    """A class index from a JSON integer or from ASCII digits; ValueError otherwise."""
    digits = str(value) if type(value) is int else value
    digits = digits.decode("ascii") if isinstance(digits, bytes) else digits
    if not (isinstance(digits, str) and re.fullmatch("[0-9]{1,10}", digits)):
        raise ValueError
    if int(digits) > MOST_LABEL_VALUE:
        raise ValueError
    return int(digits)
