"""The paper's tables of widths and of identity tensor multipliers, beside what was measured."""

from collections.abc import Iterable

from mobilenext.program import fraction
from mobilenext.tables.cells import (
    LAST_EPOCH,
    MEASURED,
    condition_notes,
    footnotes,
    group_cost,
    marks,
    measured_cells,
    published_cell,
)
from mobilenext.tables.labels import labels
from mobilenext.tables.paper import NamedRow, PublishedRow, published_table
from mobilenext.tables.render import Table
from mobilenext.tables.results import Group, Protocol, decimal


def paper_table(
    name: str, rows: list[PublishedRow], protocol: Protocol | None, groups: list[Group]
) -> Table:
    """A table of the paper beside the runs of one protocol.

    Args:
        name: width_table or identity_table.
        rows: The table's published rows.
        protocol: The runs' protocol; None: there are no runs.
        groups: The runs.
    """
    by_width = name == "width_table"
    notes: list[str] = []
    tags: set[str] = set()
    cells = []
    for row in rows:
        group = find_group(row, groups)
        mark = marks([*row.notes, *condition_notes(group, groups)], notes)
        knob = decimal(row.width) if by_width else fraction(row.identity)
        published = row.numbers["top1"]
        numbers = [published_cell(row.numbers.get("latency"), tags, "latency")]
        if by_width:
            params, madds = _cost(row, group, tags)
            numbers = [published_cell(row.numbers.get("params"), tags), params]
            numbers += [published_cell(row.numbers.get("madds"), tags, "madds"), madds]
        cells.append(
            (
                f"{labels().label(row.model)}{mark}",
                knob,
                *numbers,
                published_cell(published, tags),
                *measured_cells(group, published.value),
            )
        )
    what = "Width multipliers" if by_width else "Identity tensor multipliers at width 1.0"
    recipe = "no run yet" if protocol is None else protocol.describe()
    cost = ("latency, ms: paper",)
    if by_width:
        cost = ("params, M: paper", "ours", "MAdds, M: paper", "ours")
    return Table(
        name if protocol is None or len(groups) == 0 else f"{name}_{protocol.short}",
        f"{what}, ImageNet at 224 px: {recipe}",
        ("network", "width" if by_width else "identity", *cost, "top-1: paper", *MEASURED),
        tuple(cells),
        footnotes(notes, tags, LAST_EPOCH),
        measured=any(stands_in(row, group) for row in rows for group in groups),
    )


def find_group(row: PublishedRow, groups: Iterable[Group]) -> Group | None:
    """The first runs that may stand in a published row."""
    return next((group for group in groups if stands_in(row, group)), None)


def stands_in(row: PublishedRow, group: Group) -> bool:
    """Whether runs are of a published row's network, built without other arguments."""
    multipliers = (row.model, round(row.width, 6), round(row.identity, 6))
    return group.first.plain and group.first.network_key == multipliers


def _cost(row: PublishedRow, group: Group | None, tags: set[str]) -> tuple[str, str]:
    """Parameters and MAdds in millions: the run's, or those counted of the same network."""
    if group is not None:
        return group_cost(group)
    for counted in published_table("counts"):
        if counted.name == f"{row.model} {row.width}":
            params, madds = counted.numbers["params"], counted.numbers["madds"]
            tags.add(params.tag)
            return f"{params.value:.3f} [{params.tag}]", f"{madds.value:.1f} [{madds.tag}]"
    return "", ""


def named_table(
    name: str, title: str, source: str, columns: dict[str, str], *remarks: str
) -> Table:
    """A published table as it is, without numbers of ours.

    Args:
        name: The table's.
        title: The table's.
        source: One of `paper.TABLES`.
        columns: Headers, each with its entry in paper.yaml; the first one is the row's name.
        *remarks: Footnotes on the whole table.
    """
    tags: set[str] = set()
    notes: list[str] = []
    entries = list(columns.values())[1:]
    rows = tuple(
        (f"{row.name}{marks(row.notes, notes)}", *(_entry(row, entry, tags) for entry in entries))
        for row in published_table(source)
    )
    return Table(
        name, title, tuple(columns), rows, footnotes(notes, tags, *remarks), measured=False
    )


def _entry(row: NamedRow, entry: str, tags: set[str]) -> str:
    number = row.numbers.get(entry)
    return "" if number is None else published_cell(number, tags, entry)


def published_networks() -> Table:
    """The paper's comparison of mobile networks."""
    return named_table(
        "state_of_the_art",
        "Mobile networks in the paper, ImageNet at 224 px",
        "state_of_the_art",
        {"network": "", "params, M": "params", "MAdds, M": "madds", "top-1, %": "top1"},
    )
