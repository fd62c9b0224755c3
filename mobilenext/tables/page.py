"""One page about runs: tables, plots and their data, configs. Needs the extra `report`."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mobilenext.tables.charts import Chart, Series, chart
from mobilenext.tables.confusion import Evaluation
from mobilenext.tables.labels import labels
from mobilenext.tables.layout import tables_of
from mobilenext.tables.paper import published_rows, published_table, released_curves
from mobilenext.tables.render import Table
from mobilenext.tables.results import (
    Group,
    Protocol,
    Result,
    decimal,
    fraction,
    group_results,
    groups_of,
    protocols_of,
)

FAMILIES = {"mobilenext": 1, "mobilenetv2": 2}
"""Colours of the two families; others share the rest."""


@dataclass(frozen=True)
class Section:
    """Tables and plots that belong together."""

    name: str
    title: str
    tables: list[Table]
    charts: list[Chart]


def render_page(
    results: Sequence[Result], title: str, evaluations: Sequence[Evaluation] = ()
) -> str:
    """The page, one HTML file that needs no other.

    Args:
        results: The runs.
        title: Its title.
        evaluations: Are shown at its end, with their confusion matrices.

    Raises:
        InputError: Two results contradict each other.
    """
    groups = group_results(results)
    tables = tables_of(results)
    with_paper = [group for group in groups if group.of_the_paper]
    ours = {
        table.name for table in tables if table.name.startswith(("networks", "identity_mobile"))
    }
    sections = [
        Section(
            "paper",
            "Beside the paper",
            [table for table in tables if table.name not in ours],
            _paper_charts(with_paper),
        )
    ]
    for protocol in protocols_of(groups):
        mine = groups_of(protocol, groups)
        sections.append(
            Section(
                f"p{protocol.short}",
                protocol.describe(),
                [t for t in tables if t.name in ours and t.name.endswith(protocol.short)],
                _own_charts(protocol, mine),
            )
        )
    text = resources.files(__package__ or "mobilenext.tables").joinpath("report.html.jinja")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters["svg"] = Markup  # `charts` made it
    template = environment.from_string(text.read_text())
    return template.render(
        title=title,
        sections=sections,
        runs=[_run(result) for result in results],
        evaluations=evaluations,
    )


def _run(result: Result) -> dict[str, Any]:
    """The page's entries about one run."""
    values = result.values
    used = values.get("hardware", {}).get("processes", 1)
    return {
        "label": f"{_label(result)}, seed {result.seed}",
        "folder": "/".join(result.path.parts[-3:-1]),
        "data": values["data"],
        "top1": f"{result.top1:.2f}",
        "best": f"{result.best_top1:.2f}",
        "pace": f"{values['images_per_second']:,.0f}" if "images_per_second" in values else "–",
        "wait": f"{values['data_wait_share']:.1%}" if "data_wait_share" in values else "–",
        "time": f"{values['wall_seconds'] / 60:,.0f}" if "wall_seconds" in values else "–",
        "sessions": values.get("sessions", "–"),
        "hardware": f"{used} × {result.device or 'unknown'}",
        "commit": result.commit,
        "command": str(values.get("command", "")),
        "versions": ", ".join(f"{k} {v}" for k, v in values.get("versions", {}).items()),
        "config": yaml.safe_dump(values["config"], sort_keys=False, allow_unicode=True),
    }


def _label(result: Result) -> str:
    family = labels().label(result.model)
    identity = "" if result.identity == 1 else f", identity {fraction(result.identity)}"
    return f"{family} {decimal(result.width)}{identity}"


def _colour(model: str) -> int:
    return FAMILIES.get(model, 3)


def _cost_charts(name: str, what: str, series: dict[str, list[Series]]) -> list[Chart]:
    """Accuracy against both costs; series by cost."""
    units = {"madds": "MAdds, millions", "params": "parameters, millions"}
    return [
        chart(f"{name}-{cost}", f"{what} over {unit.partition(',')[0]}", unit, "top-1, %", drawn)
        for cost, unit in units.items()
        if (drawn := series[cost])
    ]


def _measured_series(groups: list[Group], ours: str = "") -> dict[str, list[Series]]:
    """A line for each family through its widths, cheapest first."""
    found: dict[str, list[Series]] = {"madds": [], "params": []}
    whole = [group for group in groups if group.first.identity == 1]
    for model in sorted(
        {group.first.model for group in whole}, key=lambda name: (_colour(name), name)
    ):
        mine = sorted(
            (group for group in whole if group.first.model == model),
            key=lambda group: group.first.values["madds"],
        )
        for cost, key in (("madds", "madds"), ("params", "num_params")):
            found[cost].append(
                Series(
                    labels().label(model) + ours,
                    [(round(g.first.values[key] / 1e6, 3), g.mean) for g in mine],
                    _colour(model),
                    errors=[g.std for g in mine],
                    labels=[decimal(g.first.width) for g in mine],
                )
            )
    return found


def _paper_charts(groups: list[Group]) -> list[Chart]:
    """The paper's accuracies over costs counted alike, and ours where they compare."""
    counts = {row.name: row.numbers for row in published_table("counts")}
    series = _measured_series(groups, ", ours")
    for model, colour in FAMILIES.items():
        rows = [row for row in published_rows("width_table") if row.model == model][::-1]
        tags = sorted({row.numbers["top1"].tag for row in rows})
        for cost in ("madds", "params"):
            series[cost].append(
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
    charts = _cost_charts("paper", "ImageNet top-1", series)
    for protocol in protocols_of(groups):
        mine = groups_of(protocol, groups)
        released = [
            Series(
                f"released log, identity {fraction(log.identity)} [{log.tag}]",
                [(epoch + 1, top1) for epoch, _, top1 in log.points],
                3,
                dashes=number + 1,
                hollow=True,
            )
            for number, log in enumerate(released_curves())
        ]
        charts += _curve_charts(f"paper-{protocol.short}", mine, released)
    return charts


def _own_charts(protocol: Protocol, groups: list[Group]) -> list[Chart]:
    if protocol.of_the_paper:
        return []
    name = f"p{protocol.short}"
    charts = _cost_charts(name, "Top-1 at the last epoch", _measured_series(groups))
    return charts + _curve_charts(name, groups, [])


def _curve_charts(name: str, groups: list[Group], released: list[Series]) -> list[Chart]:
    """Top-1 and training loss by epoch, the mean over seeds: widths, then identity multipliers."""
    whole = [group for group in groups if group.first.identity == 1]
    charts = _curves(f"{name}-widths", "widths", whole, released)
    for model, width in sorted({(g.first.model, g.first.width) for g in groups}):
        same = [g for g in groups if (g.first.model, g.first.width) == (model, width)]
        if len({g.first.identity for g in same}) > 1:
            what = f"identity tensor multipliers at width {decimal(width)}"
            charts += _curves(f"{name}-identity-{width:g}".replace(".", "_"), what, same, [])
    return charts


def _curves(name: str, what: str, groups: list[Group], released: list[Series]) -> list[Chart]:
    series: dict[str, list[Series]] = {"top1": [], "loss": []}
    by_identity = len({group.first.identity for group in groups}) > 1
    ordered = sorted(groups, key=lambda g: (_colour(g.first.model), -g.first.width,
                                            -g.first.identity))  # fmt: skip
    seen: dict[str, int] = {}
    for group in ordered:
        histories = [result.history for result in group.results if result.history]
        if not histories:
            continue
        model = group.first.model
        place = seen[model] = seen.get(model, -1) + 1
        colour = place % 4 + 1 if by_identity else _colour(model)
        for key, kind in (("top1", _top1), ("loss", _training_loss)):
            points = []
            for epochs in zip(*histories, strict=False):
                values = [value for epoch in epochs if (value := kind(epoch)) is not None]
                if len(values) == len(epochs):
                    points.append((epochs[0]["epoch"], statistics.fmean(values)))
            series[key].append(
                Series(_label(group.first), points, colour, dashes=place, markers=False)
            )
    charts = []
    if series["top1"]:
        top1 = "top-1 on validation images, %"
        charts.append(
            chart(f"{name}-top1", f"Learning curves: {what}", "epoch", top1,
                  [*series["top1"], *released], whole_x=True)
        )  # fmt: skip
    if series["loss"]:
        charts.append(
            chart(f"{name}-loss", f"Training loss: {what}", "epoch", "training loss",
                  series["loss"], whole_x=True)
        )  # fmt: skip
    return charts


def _top1(epoch: dict[str, Any]) -> float | None:
    return epoch.get("ema", epoch.get("val", {})).get("top1")


def _training_loss(epoch: dict[str, Any]) -> float | None:
    return epoch.get("train", {}).get("loss")
