"""Reads paper.yaml."""

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True)
class PublishedNumber:
    """A number as somebody published it."""

    value: float
    tag: str
    """How far to trust it; see `tag_meanings`."""
    source: str


@dataclass(frozen=True)
class PublishedRow:
    """A row of the paper's table of widths or of identity tensor multipliers."""

    table: str
    model: str
    width: float
    identity: float
    numbers: dict[str, PublishedNumber] = field(default_factory=dict)
    """By column: params and madds in millions, top1 in per cent."""


@cache
def _paper() -> dict[str, Any]:
    text = resources.files(__package__ or "mobilenext.tables").joinpath("paper.yaml").read_text()
    return yaml.safe_load(text)


def tag_meanings() -> dict[str, str]:
    """What each trust tag means."""
    return dict(_paper()["tags"])


def published_rows(table: str) -> list[PublishedRow]:
    """The rows of `width_table` or `identity_table`."""
    columns = ("params", "madds", "top1")
    return [
        PublishedRow(
            table,
            row["model"],
            float(row["width"]),
            float(Fraction(row.get("identity", "1"))),
            {
                column: PublishedNumber(float(value), tag, _paper()["sources"][source])
                for column in columns
                if column in row
                for value, tag, source in [row[column]]
            },
        )
        for row in _paper()[table]
    ]
