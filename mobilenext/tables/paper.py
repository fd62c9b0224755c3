"""Reads paper.yaml."""

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
"""Those with numbers of networks in configs/model; the first that has a network counts."""


@dataclass(frozen=True)
class PublishedNumber:
    """A number as somebody published it."""

    value: float
    tag: str
    """Trust tag; see `tag_meanings`."""
    source: str


@dataclass(frozen=True)
class PublishedRow:
    """A row of the paper's table of widths or of identity tensor multipliers."""

    table: str
    model: str
    width: float
    identity: float
    numbers: dict[str, PublishedNumber] = field(default_factory=dict)
    """By column: params and madds in millions, top1 in per cent, latency in milliseconds."""
    notes: tuple[str, ...] = ()
    """Known disagreements, as sentences."""


@dataclass(frozen=True)
class NamedRow:
    """A row of another published table."""

    name: str
    numbers: dict[str, PublishedNumber]
    notes: tuple[str, ...] = ()
    model: str | None = None
    """Name of the network in configs/model, if it is one of ours at width 1.0."""


@dataclass(frozen=True)
class ReleasedCurve:
    """Points of the log of a run that the authors released."""

    identity: float
    """The run's identity tensor multiplier; its width is 1.0."""
    points: tuple[tuple[int, float, float], ...]
    """Epoch (from 0), training loss, top-1 on the validation images in per cent."""
    images_per_norm: int
    """Training images that a batch norm of the run saw at once."""
    tag: str
    source: str


@cache
def _paper() -> dict[str, Any]:
    text = resources.files(__package__ or "mobilenext.tables").joinpath("paper.yaml").read_text()
    return yaml.safe_load(text)


def tag_meanings() -> dict[str, str]:
    """Meaning of each trust tag."""
    return dict(_paper()["tags"])


def published_rows(table: str) -> list[PublishedRow]:
    """The rows of `width_table` or `identity_table`."""
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
    """The rows of one of the other `TABLES`; paper.yaml has the units."""
    return [
        NamedRow(row["name"], _numbers(row), _notes(row), row.get("model"))
        for row in _paper()[table]
    ]


def published_of(model: str) -> tuple[dict[str, PublishedNumber], tuple[str, ...]]:
    """Published numbers of a network at width 1.0, and notes on them."""
    for row in published_rows("width_table"):
        if (row.model, row.width) == (model, 1):
            return row.numbers, row.notes
    for table in PUBLISHED_IN:
        for named in published_table(table):
            if named.model == model:
                return named.numbers, named.notes
    return {}, ()


def released_curves() -> list[ReleasedCurve]:
    """The learning curves of the released MobileNeXt-1.0 runs."""
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
    """The recipe of the released MobileNeXt-1.0 runs: values by the places of our config."""
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
