"""Accuracy over cost: series of measured and of published points. Needs the extra `report`."""

from collections import Counter

from mobilenext.tables.charts import SERIES, Series
from mobilenext.tables.differences import what_differs, with_width
from mobilenext.tables.labels import labels
from mobilenext.tables.paper import published_rows, published_table
from mobilenext.tables.results import Group, decimal

FAMILIES = {"mobilenext": 1, "mobilenetv2": 2}
"""Colours of the two families; others share the rest."""


def colour_of(model: str) -> int:
    """Number of a network's colour, 1 to `SERIES`."""
    return FAMILIES.get(model, 3)


def measured_series(groups: list[Group], ours: str = "") -> dict[str, list[Series]]:
    """Measured accuracy over cost: a line for each network and recipe through its widths.

    Args:
        groups: Runs; those with a partial shortcut are left out.
        ours: Words behind each name in the legend.

    Returns:
        Series by cost, madds and params, both in millions, the cheapest point first.
    """
    found: dict[str, list[Series]] = {"madds": [], "params": []}
    lines: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        if group.first.identity == 1:
            key = (group.first.model, group.first.protocol.text, group.first.arguments)
            lines.setdefault(key, []).append(group)
    models = Counter(model for model, *_ in lines)
    ordered = sorted(lines, key=lambda key: (colour_of(key[0]), key))
    for number, key in enumerate(ordered):
        model = key[0]
        mine = sorted(lines[key], key=lambda group: group.first.values["madds"])
        others = [lines[other][0].first for other in ordered if other[0] == model]
        alone = len(mine) == 1
        name = with_width(mine[0].first) if alone else labels().label(model)
        label = ", ".join([name, *what_differs(mine[0].first, others)])
        colour, dashes = colour_of(model), 0
        if max(models.values()) > 1:
            colour, dashes = number % SERIES + 1, number // SERIES
        for cost, entry in (("madds", "madds"), ("params", "num_params")):
            found[cost].append(
                Series(
                    label + ours,
                    [(round(g.first.values[entry] / 1e6, 3), g.mean) for g in mine],
                    colour,
                    dashes=dashes,
                    errors=[g.std for g in mine],
                    labels=[] if alone else [decimal(g.first.width) for g in mine],
                )
            )
    return found


def paper_series() -> dict[str, list[Series]]:
    """Published accuracy over costs that were counted alike for both families.

    Returns:
        Series by cost, madds and params, both in millions, one for each family.
    """
    counts = {row.name: row.numbers for row in published_table("counts")}
    found: dict[str, list[Series]] = {"madds": [], "params": []}
    for model, colour in FAMILIES.items():
        rows = [row for row in published_rows("width_table") if row.model == model][::-1]
        tags = sorted({row.numbers["top1"].tag for row in rows})
        for cost, series in found.items():
            series.append(
                Series(
                    f"{labels().label(model)}, paper [{', '.join(tags)}]",
                    [(counts[f"{model} {row.width}"][cost].value, row.numbers["top1"].value)
                     for row in rows],
                    colour,
                    dashes=2,
                    hollow=True,
                    labels=[decimal(row.width) for row in rows],
                )
            )  # fmt: skip
    return found
