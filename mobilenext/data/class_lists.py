"""Class names from a list beside the files, for formats whose labels are numbers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mobilenext.data.sources import some
from mobilenext.errors import InputError
from mobilenext.files import printable, read_text

CLASS_LIST = "classes.txt"
MOST_TEXT = 1 << 26
"""Bytes of a list of classes or labels."""
MOST_UNNAMED = 1 << 20
"""Classes of a data set that does not name them; a higher label is taken for damage."""


def read_list(path: Path) -> str:
    """The text of a list of classes or labels.

    Raises:
        InputError: It can't be read, is too large, or is not UTF-8.
    """
    try:
        return read_text(path, MOST_TEXT)
    except OSError as error:
        raise InputError(
            f"{printable(path)}: expected a text file that can be read ({error.strerror}); fix its "
            "permissions"
        ) from error


def class_names(base: Path, labels: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Class names: the lines of classes.txt, or else the labels as numbers.

    Args:
        base: Folder that may have the list.
        labels: Class indices of each split.

    Raises:
        InputError: The list is damaged, or a label is not in it.
    """
    path = base / CLASS_LIST
    if path.exists():
        names = tuple(line.strip() for line in read_list(path).rstrip().splitlines())
        _check_listed(path, names)
    else:
        highest = max(int(part.max()) for part in labels)
        if highest >= MOST_UNNAMED:
            raise InputError(
                f"{printable(base)}: expected labels below {MOST_UNNAMED:,}, got {highest:,}; fix "
                f"the labels, or name the classes in {CLASS_LIST}"
            )
        names = tuple(str(number) for number in range(highest + 1))
    check_labels(base, labels, len(names))
    return names


def _check_listed(path: Path, names: Sequence[str]) -> None:
    if "" in names:
        raise InputError(
            f"{printable(path)}: expected the name of a class in each line, found none in line "
            f"{1 + names.index('')}; fill or remove it"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"{printable(path)}: expected each class once, got several times: {some(twice)}; give "
            "the classes names of their own"
        )


def check_labels(base: Path, labels: Sequence[np.ndarray], classes: int) -> None:
    """Raise `InputError` unless the labels of each split are below the number of classes."""
    for part in labels:
        if int(part.min()) < 0 or int(part.max()) >= classes:
            raise InputError(
                f"{printable(base)}: expected labels from 0 to {classes - 1}, got "
                f"{int(part.min())} to {int(part.max())}; fix the labels or the list of classes"
            )
