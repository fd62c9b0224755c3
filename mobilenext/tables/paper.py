"""Published numbers: the content of paper.yaml.

Each function reads the file that comes with the package, once; a name that the file doesn't have is
a KeyError.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from importlib import resources
from typing import Any

import yaml

TABLES = (
    "counts",
    "other_readings",
    "state_of_the_art",
    "quantization",
    "extra_depthwise",
    "ablation",
    "activation",
    "latency_ranges",
    "detection",
    "darts",
    "released_runs",
    "reimplementations",
)
"""Published tables by the names that `published_table` takes."""

PUBLISHED_IN = ("ablation", "activation", "extra_depthwise", "state_of_the_art")
"""Published tables that `published_of` looks a network up in, the first one that has it."""


@dataclass(frozen=True)
class PublishedNumber:
    """A published number, with its source and how far to trust it."""

    value: float
    """The number, in the unit of its column."""
    tag: str
    """Trust tag: a key of `tag_meanings`."""
    source: str
    """Where the number was seen, in words."""


@dataclass(frozen=True)
class PublishedRow:
    """A row of the paper's table of width multipliers or of identity tensor multipliers."""

    table: str
    """width_table or identity_table."""
    model: str
    """Name of the network in configs/model."""
    width: float
    """Width multiplier."""
    identity: float
    """Identity tensor multiplier, in (0, 1]."""
    numbers: dict[str, PublishedNumber] = field(default_factory=dict)
    """Numbers by column: params and madds in millions, top1 in per cent, latency in milliseconds.
    A number that was not recovered has no entry."""
    notes: tuple[str, ...] = ()
    """Remarks on the row, such as known disagreements between sources, as sentences."""


@dataclass(frozen=True)
class NamedRow:
    """A row of one of the published `TABLES`."""

    name: str
    """The row's name in paper.yaml."""
    numbers: dict[str, PublishedNumber]
    """Numbers by column; the head of paper.yaml has the columns' units."""
    notes: tuple[str, ...] = ()
    """Remarks on the row, as sentences."""
    model: str | None = None
    """Name of the row's network in configs/model, which it has at width 1.0; None: it is none of
    those."""


@dataclass(frozen=True)
class ReleasedCurve:
    """The learning curve of a run of the authors, from the log that they released."""

    identity: float
    """The run's identity tensor multiplier; its width is 1.0."""
    points: tuple[tuple[int, float, float], ...]
    """Epoch (from 0), training loss, top-1 on the validation images in per cent, of each epoch that
    paper.yaml has."""
    images_per_norm: int
    """Number of training images over which a batch norm of the run took its statistics."""
    tag: str
    """Trust tag: a key of `tag_meanings`."""
    source: str
    """Where the log was seen, in words."""


@cache
def _paper() -> dict[str, Any]:
    text = resources.files(__package__ or "mobilenext.tables").joinpath("paper.yaml").read_text()
    return yaml.safe_load(text)


def tag_meanings() -> dict[str, str]:
    """Trust tags, each with what it means in words."""
    return dict(_paper()["tags"])


def published_rows(table: str) -> list[PublishedRow]:
    """Rows of the paper's `width_table` or `identity_table`, in the paper's order."""
    return [
        PublishedRow(
            table,
            row["model"],
            float(row["width"]),
            float(Fraction(row.get("identity", "1"))),
            _numbers(row),
            _notes(row),
        )
        for row in _paper()[table]
    ]


def published_table(table: str) -> list[NamedRow]:
    """Rows of one of the published `TABLES`, in the order of paper.yaml."""
    return [
        NamedRow(row["name"], _numbers(row), _notes(row), row.get("model"))
        for row in _paper()[table]
    ]


def published_of(model: str) -> tuple[dict[str, PublishedNumber], tuple[str, ...]]:
    """Published numbers of a network at width 1.0, and remarks on them.

    Args:
        model: Name of the network in configs/model.

    Returns:
        Numbers by column (params and madds in millions, top1 in per cent) and remarks as sentences;
        both empty for a network of which nothing was published.
    """
    for row in published_rows("width_table"):
        if (row.model, row.width) == (model, 1):
            return row.numbers, row.notes
    for table in PUBLISHED_IN:
        for named in published_table(table):
            if named.model == model:
                return named.numbers, named.notes
    return {}, ()


def released_curves() -> list[ReleasedCurve]:
    """Learning curves of the MobileNeXt-1.0 runs whose logs the authors released, one for each."""
    source = _paper()["sources"][_paper()["curves_source"]]
    return [
        ReleasedCurve(
            float(Fraction(identity)),
            tuple((int(epoch), float(loss), float(top1)) for epoch, loss, top1 in points),
            _paper()["curves_images_per_norm"],
            _paper()["curves_tag"],
            source,
        )
        for identity, points in _paper()["curves"].items()
    ]


def released_recipe() -> dict[str, Any]:
    """The recipe of the released MobileNeXt-1.0 runs: values by dotted keys of our config."""
    return dict(_paper()["curves_recipe"])


def _numbers(row: dict[str, Any]) -> dict[str, PublishedNumber]:
    return {
        column: PublishedNumber(float(value), tag, _paper()["sources"][source])
        for column, cell in row.items()
        if isinstance(cell, list) and column != "notes"
        for value, tag, source in [cell]
    }


def _notes(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(_paper()["notes"][name] for name in row.get("notes", []))
