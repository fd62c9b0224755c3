"""Every experiment of the paper on one page: command, cost, state, the paper's numbers and ours."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

import yaml

from mobilenext.tables.cells import NOT_MEASURED, footnotes
from mobilenext.tables.render import SUPERSCRIPTS, Table, to_markdown

MEASURED, IN_PART, SMALL = "measured", "measured in part", "measured small"
"""States of an experiment: as the paper has it, all or some of the numbers; with less data, smaller
images or fewer epochs, two of the numbers at least."""
EMPTY = ("", NOT_MEASURED, "not recovered")
"""Cells without a number."""
NO_NUMBER = "–"
"""Shown for one of several numbers that is not there."""


@dataclass(frozen=True)
class Speed:
    """Measured times of MobileNeXt 1.0 at 224 px, which costs are estimated from."""

    device: str
    host_ms: float
    """Milliseconds that the host needs for a pass, however few its images."""
    image_ms: float
    """Milliseconds that the device needs for each image of a pass, in bf16."""


@dataclass(frozen=True)
class Cost:
    """What some trainings of an experiment take."""

    trainings: int
    epochs: int
    images: int
    """Training images of an epoch."""
    images_per_pass: int
    operators: float
    """Operators of a pass, over those of MobileNeXt 1.0."""
    activations: float
    """Activations of an image, over those of MobileNeXt 1.0 at 224 px."""
    passes: int = 1
    """Passes of a step."""

    def hours(self, speed: Speed) -> float:
        """GPU-hours, estimated: passes times the longer of the host's and the device's time."""
        device_ms = 2 * self.images_per_pass * self.activations * speed.image_ms  # fp32
        pass_ms = max(self.operators * speed.host_ms, device_ms)
        steps = self.trainings * self.epochs * (self.images // self.images_per_pass)
        return steps * self.passes * pass_ms / 3.6e6


@dataclass(frozen=True)
class Small:
    """Where numbers of a smaller form of an experiment stand."""

    table: str
    """Pattern of the table's name."""
    column: str
    rows: tuple[dict[str, str], ...] = ()
    """Patterns of cells by columns, a row each; none: those of the experiment."""


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper."""

    name: str
    title: str
    question: str
    """What it asks, as a sentence."""
    commands: tuple[str, ...]
    """Command lines that run it here."""
    tables: tuple[str, ...]
    """Patterns of the names of its tables, the paper's numbers beside ours."""
    page: str
    """Page of docs/ that has more about it."""
    compared: str
    """What the numbers of the overview are, with their unit."""
    beside: str
    """Pattern of the name of the table that has them."""
    rows: tuple[dict[str, str], ...]
    """Patterns of cells by columns, for each number its row."""
    paper: str
    """Column of the paper's numbers."""
    ours: str | None = None
    """Column of ours, to the right of the paper's; None: the table has none."""
    ours_prefix: str = ""
    """Word in front of our numbers, where they are of another kind than the paper's."""
    small: Small | None = None
    state: str = MEASURED
    """What the experiment is called where ours are there."""
    small_state: str = SMALL
    """What it is called where only the smaller form's are."""
    costs: tuple[Cost, ...] = field(default_factory=tuple)
    cost_note: str = ""
    """What the cost covers, or why there is none, in words."""

    @property
    def hours(self) -> float:
        """GPU-hours of all trainings, estimated; 0: there are none."""
        return sum(cost.hours(speed()) for cost in self.costs)


@cache
def _content() -> dict[str, Any]:
    folder = resources.files(__package__ or "mobilenext.tables")
    return yaml.safe_load(folder.joinpath("experiments.yaml").read_text())


def speed() -> Speed:
    """The measured times that costs are estimated from."""
    return Speed(**_content()["speed"])


@cache
def experiments() -> tuple[Experiment, ...]:
    """The experiments of experiments.yaml, in its order."""
    return tuple(_experiment(dict(entry)) for entry in _content()["experiments"])


def _experiment(entry: dict[str, Any]) -> Experiment:
    for key in ("commands", "tables", "rows"):
        entry[key] = tuple(entry[key])
    entry["costs"] = tuple(Cost(**cost) for cost in entry.get("costs", ()))
    if "small" in entry:
        small: dict[str, Any] = dict(entry["small"])
        small["rows"] = tuple(small.get("rows", ()))
        entry["small"] = Small(**small)
    return Experiment(**entry)


@dataclass(frozen=True)
class Standing:
    """How far an experiment has come: its numbers, as the tables have them."""

    state: str
    paper: str
    ours: str
    source: str
    """What ours were measured on; empty: they stand in the paper's own table, or there are none."""


def standing(experiment: Experiment, tables: Sequence[Table]) -> Standing:
    """State and numbers of an experiment.

    Args:
        experiment: The experiment.
        tables: All tables, see `tables_of`.
    """
    beside = [table for table in tables if fnmatchcase(table.name, experiment.beside)]
    paper = _find(beside, experiment.rows, experiment.paper)
    numbers = _joined(paper)
    if experiment.ours is not None:
        ours = _find(beside, experiment.rows, experiment.ours, after=experiment.paper)
        if ours is not None:
            state = experiment.state if ours.count == len(experiment.rows) else IN_PART
            return Standing(state, numbers, experiment.ours_prefix + _joined(ours), "")
    if experiment.small is not None:
        small = experiment.small
        names = [one for one in tables if fnmatchcase(one.name, small.table) and one.task]
        ours = _find(names, small.rows or experiment.rows, small.column)
        if ours is not None and ours.count > 1:
            return Standing(experiment.small_state, numbers, _joined(ours), _source(ours))
    return Standing(NOT_MEASURED, numbers, "", "")


def overview(tables: Sequence[Table]) -> Table:
    """The paper on one page: all experiments, a row each.

    Args:
        tables: All tables, see `tables_of`.
    """
    rows = []
    for one in experiments():
        found = standing(one, tables)
        rows.append(
            (one.title, one.compared, found.state, found.paper, found.ours, found.source,
             hours_words(one.hours))
        )  # fmt: skip
    tags = set(re.findall(r"\[(\w+)\]", " ".join(cell for row in rows for cell in row)))
    return Table(
        "paper",
        "The paper on one page",
        ("experiment", "numbers", "state", "paper", "ours", "ours are of", "GPU-hours, about"),
        tuple(rows),
        footnotes([], tags, _cost_remark()),
        6,
    )


def experiment_pages(tables: Sequence[Table]) -> str:
    """Markdown of all experiments: question, commands, cost, tables.

    Args:
        tables: All tables, see `tables_of`.
    """
    parts = []
    for one in experiments():
        lines = "\n".join(one.commands)
        cost = f"{cost_words(one)} More: [{one.page}]({one.page})."
        parts += [f"## {one.title}", one.question, f"```\n{lines}\n```", cost]
        parts += [to_markdown(table).rstrip() for table in tables_in(one, tables)]
    return "\n\n".join(parts) + "\n"


def tables_in(experiment: Experiment, tables: Sequence[Table]) -> list[Table]:
    """An experiment's own tables."""
    return [
        table
        for pattern in experiment.tables
        for table in tables
        if fnmatchcase(table.name, pattern)
    ]


def cost_words(experiment: Experiment) -> str:
    """An experiment's cost, as a sentence."""
    trainings = sum(cost.trainings for cost in experiment.costs)
    note = experiment.cost_note
    if not trainings:
        return f"Cost: {note or 'no training'}."
    hours = f"about {hours_words(experiment.hours)} GPU-hours ({speed().device}, estimated)"
    return f"Cost: {trainings} trainings, {hours}{f': {note}' if note else ''}."


def hours_words(hours: float) -> str:
    """Hours with two significant digits; empty for none."""
    if not hours:
        return ""
    return f"{float(f'{hours:.2g}'):,.0f}"


def _cost_remark() -> str:
    times = speed()
    return (
        "GPU-hours: estimated, not measured: training passes times the longer of the host's time "
        f"for its operators ({times.host_ms:g} ms for MobileNeXt 1.0) and the device's for its "
        f"activations ({times.image_ms:g} ms an image, twice in fp32), both measured on one "
        f"{times.device} whose host is slow; passes as small as the recipes' wait for the host. "
        "Neither evaluation nor communication is in it."
    )


@dataclass(frozen=True)
class _Found:
    """Numbers in a table."""

    table: Table
    rows: tuple[tuple[str, ...] | None, ...]
    """The rows that were looked for; None: the table does not have it, or no number in it."""
    place: int
    """Their column."""

    @property
    def count(self) -> int:
        """Number of the rows that are there."""
        return sum(row is not None for row in self.rows)


def _find(
    tables: Sequence[Table], wanted: Sequence[dict[str, str]], column: str, after: str = ""
) -> _Found | None:
    """Cells of the table and the width that have most of them; None: no table has any."""
    found = [one for table in tables for one in _by_width(table, wanted, column, after)]
    best = max(found, key=lambda one: one.count, default=None)
    return best if best is not None and best.count else None


def _by_width(
    table: Table, wanted: Sequence[dict[str, str]], column: str, after: str
) -> Iterator[_Found]:
    """Cells of a table, those of each width by themselves unless the patterns name widths."""
    start = table.columns.index(after) + 1 if after in table.columns else 0
    if column not in table.columns[start:]:
        return
    place = table.columns.index(column, start)
    parts: dict[str, list[tuple[str, ...]]] = {}
    pinned = any("width" in patterns for patterns in wanted)
    for row in table.rows:
        parts.setdefault("" if pinned else _width(table, row), []).append(row)
    for part in parts.values():
        rows = tuple(_row(table.columns, part, patterns, place) for patterns in wanted)
        yield _Found(table, rows, place)


def _width(table: Table, row: tuple[str, ...]) -> str:
    """A row's width multiplier, in a column or behind the network's name; "": it has none."""
    if "width" in table.columns:
        return row[table.columns.index("width")]
    return next(iter(re.findall(r" (\d\.\d+)(?:,|$)", _plain(row[0]))), "")


def _row(
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    patterns: dict[str, str],
    place: int,
) -> tuple[str, ...] | None:
    asked = [(name, pattern) for name, pattern in patterns.items() if name in columns]
    for row in rows:
        cells = dict(zip(columns, map(_plain, row), strict=True))
        if all(fnmatchcase(cells[name], pattern) for name, pattern in asked):
            return None if row[place] in EMPTY else row
    return None


def _plain(cell: str) -> str:
    """A cell without marks of footnotes and without the words on dropout."""
    return re.sub(rf"[{SUPERSCRIPTS}\s\u202f]*$|, dropout [\d.]+", "", cell)


def _joined(found: _Found | None) -> str:
    if found is None:
        return ""
    return " / ".join(NO_NUMBER if row is None else row[found.place] for row in found.rows)


def _source(found: _Found) -> str:
    """What numbers were measured on: the start of the table's title, and a width other than 1.0."""
    what, _, words = found.table.title.partition(": ")
    parts = words.split(", ")[:3]
    width = re.search(r"at width ([\d.]+)", what)
    widths = {_width(found.table, row) for row in found.rows if row is not None} - {""}
    widths |= {width[1]} if width else set()
    if len(widths) == 1 and widths != {"1.0"}:
        parts.append(f"width {widths.pop()}")
    return ", ".join(parts)
