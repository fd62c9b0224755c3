"""Confusion matrices: what they say of each class, their files, and pictures of them.

An evaluation leaves `classes.csv` in its run folder, and the matrix as `confusion.csv`, or as
`confusion.npz` (arrays `counts` and `classes`) for more than `MOST_COLUMNS` classes. Rows are the
images' classes, columns those that they are taken for.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mobilenext.errors import InputError
from mobilenext.files import printable, read_text
from mobilenext.tables.labels import labels
from mobilenext.tables.render import Table, to_csv
from mobilenext.tables.results import EVALUATION, other_results

CLASSES, MATRIX, LARGE_MATRIX = "classes.csv", "confusion.csv", "confusion.npz"
MOST_COLUMNS = 100
"""Classes of the largest matrix in CSV."""
MOST_DRAWN = 40
"""Classes of the largest matrix that is drawn."""
FEW = 10
"""Classes that are all listed, and rows of longer lists in a page."""
SHOWN = 5
"""Rows of lists on a terminal that leave something out."""

COLUMNS = ("class", "images", "top1", "taken_for", "times")
MOST_BYTES = 1 << 26


class ClassAccuracy(NamedTuple):
    """How the images of one class are classified."""

    name: str
    images: int
    top1: float | None
    """Share of them that is right, in per cent; None: there are none."""
    taken_for: str
    """The other class that they are taken for most often; "": none of them is."""
    times: int
    """How many are taken for it."""


class Confusion(NamedTuple):
    """Images of one class that are taken for another one."""

    name: str
    taken_for: str
    times: int
    images: int
    """Images of the class."""


def accuracy_by_class(counts: np.ndarray, classes: Sequence[str]) -> list[ClassAccuracy]:
    """What a matrix says of each class, in their order.

    Args:
        counts: Whole numbers, (C, C).
        classes: The names of the C classes.
    """
    images, right = counts.sum(1), counts.diagonal()
    wrong = _wrong(counts)
    other = wrong.argmax(1)
    return [
        ClassAccuracy(
            classes[one],
            int(images[one]),
            100 * int(right[one]) / int(images[one]) if images[one] else None,
            classes[int(other[one])] if wrong[one, other[one]] else "",
            int(wrong[one, other[one]]),
        )
        for one in range(len(classes))
    ]


def mean_class_top1(counts: np.ndarray) -> float:
    """Mean of the accuracies of all classes with images, in per cent: each has the same weight."""
    images, right = counts.sum(1), counts.diagonal()
    known = images > 0
    return float(100 * (right[known] / images[known]).mean())


def worst_classes(by_class: Sequence[ClassAccuracy], most: int) -> list[ClassAccuracy]:
    """Classes with errors, those of the lowest accuracy first."""
    wrong = [one for one in by_class if one.top1 is not None and one.top1 < 100]
    return sorted(wrong, key=lambda one: (one.top1, -one.images))[:most]


def frequent_confusions(counts: np.ndarray, classes: Sequence[str], most: int) -> list[Confusion]:
    """Pairs of classes by how many images are confused, most first."""
    wrong, images = _wrong(counts), counts.sum(1)
    places = np.flatnonzero(wrong)
    order = np.argsort(-wrong.flat[places], kind="stable")[:most]
    pairs = [divmod(int(place), len(classes)) for place in places[order]]
    return [
        Confusion(classes[row], classes[column], int(wrong[row, column]), int(images[row]))
        for row, column in pairs
    ]


def _wrong(counts: np.ndarray) -> np.ndarray:
    return counts - np.diag(counts.diagonal())


# ---- on a terminal ----


def lines_of(counts: np.ndarray, classes: Sequence[str]) -> list[str]:
    """The classes of a matrix in some lines of at most 80 characters.

    All of them, up to `FEW`; else the worst ones and the most frequent confusions.
    """
    by_class = accuracy_by_class(counts, classes)
    if len(by_class) <= FEW:
        return _class_lines("class", by_class)
    worst = worst_classes(by_class, SHOWN)
    if not worst:
        return [f"no image of the {len(classes):,} classes is misclassified"]
    confusions = frequent_confusions(counts, classes, SHOWN)
    pairs = [
        f"  {_cut(one.name)} taken for {_cut(one.taken_for)}: {one.times:,} of {one.images:,}"
        for one in confusions
    ]
    title = f"worst of {len(classes):,} classes"
    return [*_class_lines(title, worst), "most frequent confusions", *pairs]


def _class_lines(title: str, rows: Sequence[ClassAccuracy]) -> list[str]:
    names = [title, *(_cut(one.name) for one in rows)]
    width = max(map(len, names))
    lines = [f"{title:{width}}  images  top-1, %  most often taken for"]
    for name, one in zip(names[1:], rows, strict=True):
        top1 = "-" if one.top1 is None else f"{one.top1:.2f}"
        other = f"  {_cut(one.taken_for)} ({one.times:,})" if one.times else ""
        lines.append(f"{name:{width}}  {one.images:6,}  {top1:>8}{other}")
    return lines


def _cut(name: str, most: int = 24) -> str:
    name = printable(name)
    return name if len(name) <= most else f"{name[: most - 3]}..."


# ---- files ----


def matrix_files(counts: np.ndarray, classes: Sequence[str]) -> dict[str, str | bytes | None]:
    """Content of the files of a matrix, by name; None: there must be none of this name."""
    names = tuple(map(printable, classes))
    by_class = accuracy_by_class(counts, names)
    files: dict[str, str | bytes | None] = {
        CLASSES: to_csv(Table("classes", "", COLUMNS, tuple(map(_cells, by_class)))),
        MATRIX: None,
        LARGE_MATRIX: None,
    }
    if len(names) <= MOST_COLUMNS:
        files[MATRIX] = to_csv(matrix_table(counts, names, ""))
    else:
        file = io.BytesIO()
        np.savez_compressed(file, counts=counts, classes=np.array(names))
        files[LARGE_MATRIX] = file.getvalue()
    return files


def matrix_table(counts: np.ndarray, classes: Sequence[str], title: str) -> Table:
    """A matrix with the names of its rows and columns."""
    rows = ((name, *map(str, row)) for name, row in zip(classes, counts.tolist(), strict=True))
    return Table("confusion", title, ("class", *classes), tuple(rows))


def _cells(one: ClassAccuracy) -> tuple[str, ...]:
    top1 = "" if one.top1 is None else f"{one.top1:.3f}"
    return one.name, str(one.images), top1, one.taken_for, str(one.times) if one.times else ""


# ---- evaluations in a page ----


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation."""

    values: dict[str, Any]
    """Entries of its result.json."""
    by_class: list[ClassAccuracy]
    counts: np.ndarray | None
    """The matrix, (C, C), where it may be drawn."""

    @property
    def title(self) -> str:
        """What was evaluated, and how well it did."""
        values = self.values
        what = f"{labels().label(str(values.get('model')))} on {values.get('data')}"
        return f"{what}: top-1 {values.get('top1', 0):.2f} % of {values.get('count', 0):,} images"

    @property
    def table(self) -> Table:
        """All classes, if they are few; else the worst ones."""
        few = len(self.by_class) <= FEW
        rows = self.by_class if few else worst_classes(self.by_class, FEW)
        title = "Accuracy by class" if few else f"The worst of {len(self.by_class):,} classes"
        columns = ("class", "images", "top-1, %", "most often taken for", "how often")
        cells = (
            (*_cells(one)[:2], "–" if one.top1 is None else f"{one.top1:.2f}", *_cells(one)[3:])
            for one in rows
        )
        return Table("classes", title, columns, tuple(cells))

    @property
    def matrix(self) -> Table | None:
        """Counts of the matrix, where it may be drawn."""
        if self.counts is None:
            return None
        names = [one.name for one in self.by_class]
        return matrix_table(self.counts, names, f"Confusion matrix, {self.title}")

    def svg(self, name: str) -> str | None:
        """A picture of the matrix; see `matrix_svg`."""
        if self.counts is None:
            return None
        classes = [one.name for one in self.by_class]
        return matrix_svg(name, f"Confusion matrix, {self.title}", self.counts, classes)


def read_evaluations(paths: Sequence[Path]) -> list[Evaluation]:
    """Evaluations that lie among run folders, if they have left their classes.

    Args:
        paths: As `read_results` takes them.

    Raises:
        InputError: A file is not what an evaluation writes.
    """
    found = []
    for path, values in other_results(paths, EVALUATION).items():
        try:
            by_class, counts = _read_classes(path.parent)
        except FileNotFoundError:  # it comes from before, or has too many classes
            continue
        except (OSError, ValueError) as error:
            raise InputError(
                f"{printable(path.parent)}: expected {CLASSES} and {MATRIX} as evaluate writes "
                f"them ({error}); evaluate again, or remove the folder"
            ) from error
        found.append(Evaluation(values, by_class, counts))
    return found


def _read_classes(folder: Path) -> tuple[list[ClassAccuracy], np.ndarray | None]:
    """Rows of classes.csv, and the matrix if it may be drawn.

    Raises:
        ValueError: A file has other columns, or something else than numbers.
        OSError: A file can't be read.
    """
    header, *rows = _read_csv(folder / CLASSES)
    if tuple(header) != COLUMNS or not rows:
        raise ValueError(f"{CLASSES} has columns {', '.join(header)}")
    by_class = [
        ClassAccuracy(name, int(images), float(top1) if top1 else None, other, int(times or 0))
        for name, images, top1, other, times in rows
    ]
    if len(by_class) > MOST_DRAWN:
        return by_class, None
    header, *rows = _read_csv(folder / MATRIX)
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows])
    if counts.shape != (len(by_class), len(by_class)) or (counts < 0).any():
        raise ValueError(f"{MATRIX} has not one row and column for each class")
    return by_class, counts


def _read_csv(path: Path) -> list[list[str]]:
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, MOST_BYTES))))
    except csv.Error as error:
        raise ValueError(f"{path.name}: {error}") from error
    return rows or [[]]


MOST_OPACITY = 0.5
"""Text in the page's colour can be read on a cell of this opacity, in light and in dark."""


def matrix_svg(name: str, title: str, counts: np.ndarray, classes: Sequence[str]) -> str:
    """A confusion matrix in the colours of the page, for up to `MOST_DRAWN` classes.

    A cell is the more opaque the larger its share of the row, by the square root, so that rare
    errors are seen; right ones and errors have different colours. Up to 20 classes, cells show
    their counts.

    Args:
        name: Sets the ids in the SVG apart from those of others.
        title: What it shows.
        counts: Whole numbers, (C, C).
        classes: The names of the C classes.
    """
    size = 34 if len(classes) <= 20 else 18
    shown = [_cut(label, 18) for label in classes]
    letters = max(map(len, shown))
    left, top = 30 + 7 * letters, 30 + 6 * letters
    side = size * len(classes)
    width, height = left + side + 4 * letters + 10, top + side + 4
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    parts = []
    for place, label in enumerate(map(escape, shown)):
        middle = size * place + size / 2
        parts.append(
            f'<text x="{left - 6}" y="{top + middle + 4:g}" text-anchor="end">{label}</text>'
        )
        x, y = left + middle + 4, top - 6
        parts.append(f'<text x="{x:g}" y="{y}" transform="rotate(-55 {x:g} {y})">{label}</text>')
    parts.append(
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" '
        'stroke="var(--lines)"/>'
    )
    for row, column in np.argwhere(counts).tolist():
        count, x, y = int(counts[row, column]), left + size * column, top + size * row
        opacity = MOST_OPACITY * float(shares[row, column]) ** 0.5
        said = f"{shown[row]} taken for {shown[column]}: {count:,} of {counts[row].sum():,}"
        parts.append(
            f'<g><title>{escape(said)}</title><rect x="{x}" y="{y}" width="{size}" '
            f'height="{size}" fill="var(--series-{1 if row == column else 2})" '
            f'fill-opacity="{opacity:.3f}"/>'
        )
        if size > 20:
            place = f'x="{x + size // 2}" y="{y + size // 2 + 4}"'
            parts.append(f'<text {place} text-anchor="middle">{_short(count)}</text>')
        parts.append("</g>")
    right = int(counts.diagonal().sum())
    words = (
        f"Rows are the images' classes, columns the classes that they are taken for; "
        f"{right:,} of {int(counts.sum()):,} images lie on the diagonal, which is right."
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width: {width}px" role="img" '
        f'aria-labelledby="{name}-title {name}-desc" font-size="11" fill="currentColor" '
        f'xmlns="http://www.w3.org/2000/svg"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(words)}</desc>{"".join(parts)}</svg>'
    )


def _short(count: int) -> str:
    """A count in at most four characters: 999, 9.9k, 120k, 2M."""
    if count < 10_000:
        return str(count)
    return f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.0f}M"
