"""One page about runs: tables, plots and their data, configs. Needs the extra `report`."""

import os
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mobilenext.program import fraction
from mobilenext.tables.accuracy import colour_of, measured_series, paper_series
from mobilenext.tables.charts import DARK, LIGHT, SERIES, Chart, Series, chart
from mobilenext.tables.confusion import Evaluation
from mobilenext.tables.deployed import Bars, error_bars, latency_bars
from mobilenext.tables.detected import DetectorView, detector_views
from mobilenext.tables.differences import differing_arguments, run_label
from mobilenext.tables.experiments import (
    cost_words,
    experiments,
    overview,
    standing,
    tables_in,
)
from mobilenext.tables.labels import labels
from mobilenext.tables.layout import tables_of
from mobilenext.tables.paper import released_curves
from mobilenext.tables.render import Table
from mobilenext.tables.results import (
    Group,
    Result,
    decimal,
    group_results,
    groups_of_task,
    tasks_of,
)
from mobilenext.tables.search_views import (
    MOST_DRAWN,
    OPERATOR_COLUMNS,
    SearchView,
    search_views,
)
from mobilenext.tables.searched import left_out, rows_of, searches_of, trained_cells

TITLES = {"detection": "Detection", "search": "Search for cells", "8 bits": "8 bits after training",
          "latency": "Latency"}  # fmt: skip
"""Of sections that are of no training."""


@dataclass(frozen=True)
class Section:
    """Tables and charts that belong together, under a heading."""

    name: str
    """The heading's id in the page."""
    title: str
    tables: list[Table]
    charts: list[Chart]
    bars: Sequence[Bars] = ()
    detectors: Sequence[DetectorView] = ()
    searches: Sequence[SearchView] = ()
    remarks: Sequence[str] = ()
    """On what is not shown."""


def render_page(
    results: Sequence[Result],
    title: str,
    folder: Path | None = None,
    evaluations: Sequence[Evaluation] = (),
    quantized: Sequence[dict[str, Any]] = (),
    timed: Sequence[dict[str, Any]] = (),
    detected: dict[Path, dict[str, Any]] | None = None,
    searched: dict[Path, dict[str, Any]] | None = None,
) -> str:
    """The page: one HTML file that needs no other, runs no script and asks for nothing.

    A section for each task of the runs comes first, then the paper's, where tables and charts are
    folded unless a run stands in them, then the list of the runs.

    Args:
        results: Runs to show.
        title: The page's title.
        folder: Where the page will lie, for links to the runs' folders; None: this folder.
        evaluations: Are shown at its end, with their confusion matrices.
        quantized: Results of `scripts/quantize.py`.
        timed: Results of `scripts/latency.py`.
        detected: Results of `scripts/detect.py` by their files, beside which their curves and
            pictures lie.
        searched: Results of `scripts/search.py` by their files.

    Raises:
        InputError: Two results contradict each other, or a network has no label.
    """
    groups = group_results(result for result in results if not result.of_cells)
    detectors, searches = detected or {}, searched or {}
    tables = tables_of(results, (), quantized, timed, [*detectors.values()], [*searches.values()])
    own = []
    for number, task in enumerate(tasks_of(groups), 1):
        apart = [group for group in groups_of_task(task, groups) if not group.of_the_paper]
        name = f"task-{number}"
        shown = [table for table in tables if table.task == task]
        own.append(Section(name, task, shown, _own_charts(name, apart)))
    for name, task, bars in (
        ("detection", "detection", []),
        ("search", "search", []),
        ("int8", "8 bits", error_bars(quantized)),
        ("latency", "latency", latency_bars(timed)),
    ):
        shown = [table for table in tables if table.task == task]
        section = Section(name, TITLES[task], shown, [], bars)
        if task == "detection":
            views = detector_views(detectors, lambda run: _href(run, folder or Path()))
            section = replace(section, detectors=views)
        if task == "search":
            section = _search_section(section, results, searches, folder or Path())
        own.append(section)
    with_paper = [group for group in groups if group.of_the_paper]
    published = [
        {
            "title": one.title,
            "question": one.question,
            "commands": "\n".join(one.commands),
            "cost": cost_words(one),
            "tables": tables_in(one, tables),
            "state": standing(one, tables).state,
        }
        for one in experiments()
    ]
    text = resources.files(__package__ or "mobilenext.tables").joinpath("report.html.jinja")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters["svg"] = Markup  # `charts` made it
    environment.filters["unbroken"] = _unbroken
    environment.filters["unbroken_header"] = _unbroken_header
    template = environment.from_string(text.read_text())
    return template.render(
        title=title,
        sections=[one for one in own if one.tables or one.charts or one.detectors or one.remarks],
        paper=Section("paper", "Beside the paper", [overview(tables)], _paper_charts(with_paper)),
        experiments=published,
        light=LIGHT,
        dark=DARK,
        compared=bool(with_paper),
        others=_counted({"detector": len(detectors), "search": len(searches)}),
        operator_columns=OPERATOR_COLUMNS,
        runs=[_run(result, results, folder or Path()) for result in sorted(results, key=_place)],
        evaluations=evaluations,
    )


def _unbroken(cell: Any) -> Any:
    """A cell in which no line breaks between a number and its spread or tag."""
    for sign in (" ± ", " [") if isinstance(cell, str) else ():
        cell = cell.replace(sign, sign.replace(" ", "\u00a0"))
    return cell


def _unbroken_header(header: str) -> str:
    """A column's header that is not broken before its unit, nor within top-1."""
    return header.replace(", ", ",\u00a0").replace("top-1", "top\u20111")


def _counted(counts: dict[str, int]) -> str:
    """What a page has beside runs, in words: " and 2 searches"."""
    words = [
        f"{count} {word}{'' if count == 1 else 'es' if word.endswith('h') else 's'}"
        for word, count in counts.items()
        if count
    ]
    return "".join(f", {one}" for one in words[:-1]) + "".join(f" and {one}" for one in words[-1:])


def _search_section(
    section: Section,
    results: Sequence[Result],
    searches: dict[Path, dict[str, Any]],
    page: Path,
) -> Section:
    """The section of searches with learning curves of trained cells, and with each search."""
    trained = [result for result in results if result.of_cells]
    usable = searches_of(searches.values())
    charts = []
    for number, (recipe, cells) in enumerate(trained_cells(trained).items(), 1):
        series: dict[str, list[Series]] = {"top1": [], "loss": []}
        for place, row in enumerate(rows_of(cells, usable)):
            label = ", ".join(words for words in (row.space_words, row.words) if words)
            for key, kind in (("top1", _top1), ("loss", _training_loss)):
                points = _mean_curve(Group(tuple(row.results)), kind)
                if len(points) > 1:
                    colour, dashes = place % SERIES + 1, place // SERIES
                    series[key].append(Series(label, points, colour, dashes, markers=False))
        charts += _titled_curves(
            f"{section.name}-cells-{number}", f" of cells, means of rows: {recipe.task}", series
        )
    remarks = left_out(searches, results)
    if len(usable) > MOST_DRAWN:
        remarks.append(f"{len(usable) - MOST_DRAWN} more searches stand in the table only.")
    views = search_views(searches, lambda run: _href(run, page), section.name)
    return replace(section, charts=charts, searches=views, remarks=remarks)


def _place(result: Result) -> tuple[Any, ...]:
    """A run's place in the list of runs."""
    protocol = result.protocol
    cells = differing_arguments(result, ()) if result.of_cells else []
    return (protocol.task, labels().place(result.model), result.model, -result.width,
            -result.identity, protocol.describe(), cells, result.arguments,
            result.seed)  # fmt: skip


def _run(result: Result, results: Sequence[Result], page: Path) -> dict[str, Any]:
    """The page's entries about one run."""
    values = result.values
    used = values.get("hardware", {}).get("processes", 1)
    return {
        "label": run_label(result, results, seed=True),
        "folder": "/".join(result.path.resolve().parts[-3:-1]),
        "href": _href(result.path.parent, page),
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


def _href(run: Path, page: Path) -> str:
    """A link from the page's folder to a run's, relative unless they lie on different drives."""
    run, page = run.resolve(), page.resolve()
    try:
        relative = os.path.relpath(run, page)
    except ValueError:
        return f"{run.as_uri()}/"
    return f"{quote(Path(relative).as_posix())}/"


def _cost_charts(name: str, what: str, series: dict[str, list[Series]]) -> list[Chart]:
    """Accuracy against both costs; series by cost. None where all points are of one cost."""
    units = {"madds": "MAdds, millions", "params": "parameters, millions"}
    charts = []
    for cost, unit in units.items():
        if len({x for one in series[cost] for x, _ in one.points}) > 1:
            title = f"{what} over {unit.partition(',')[0]}"
            charts.append(chart(f"{name}-{cost}", title, unit, "top-1, %", series[cost]))
    return charts


def _paper_charts(groups: list[Group]) -> list[Chart]:
    """The paper's accuracies over costs counted alike, and ours where they compare."""
    series = measured_series(groups, ", ours")
    for cost, paper in paper_series().items():
        series[cost] += paper
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
    charts = _cost_charts("paper", "ImageNet top-1", series)
    return charts + _curve_charts("paper", groups, released)


def _own_charts(name: str, groups: list[Group]) -> list[Chart]:
    charts = _cost_charts(name, "Top-1 at the last epoch", measured_series(groups))
    return charts + _curve_charts(name, groups, [])


def _curve_charts(name: str, groups: list[Group], released: list[Series]) -> list[Chart]:
    """Top-1 and training loss by epoch, the mean over seeds; identity multipliers by themselves."""
    whole = [group for group in groups if group.first.identity == 1]
    charts = _curves(f"{name}-curves", "", whole, released)
    for number, (model, width) in enumerate(
        sorted({(g.first.model, g.first.width) for g in groups})
    ):
        same = [g for g in groups if (g.first.model, g.first.width) == (model, width)]
        if {g.first.identity for g in same} != {1.0}:
            what = f": identity tensor multipliers, {labels().label(model)} {decimal(width)}"
            charts += _curves(f"{name}-identity-{number}", what, same, [])
    return charts


def _curves(name: str, what: str, groups: list[Group], released: list[Series]) -> list[Chart]:
    """Learning curves of runs of two epochs or more; none, if there are no such runs."""
    series: dict[str, list[Series]] = {"top1": [], "loss": []}
    networks = Counter((group.first.model, group.first.width) for group in groups)
    by_family = max(networks.values(), default=0) == 1
    ordered = sorted(groups, key=lambda g: (colour_of(g.first.model), -g.first.width,
                                            -g.first.identity))  # fmt: skip
    firsts = [group.first for group in groups]
    seen: Counter[str] = Counter()
    for number, group in enumerate(ordered):
        model = group.first.model
        colour, dashes = number % SERIES + 1, number // SERIES
        if by_family:
            colour, dashes = colour_of(model), seen[model]
        seen[model] += 1
        label = run_label(group.first, firsts)
        for key, kind in (("top1", _top1), ("loss", _training_loss)):
            points = _mean_curve(group, kind)
            if len(points) > 1:
                series[key].append(Series(label, points, colour, dashes=dashes, markers=False))
    if series["top1"]:
        series["top1"] += released
    return _titled_curves(name, what, series)


def _titled_curves(name: str, what: str, series: dict[str, list[Series]]) -> list[Chart]:
    """Charts of top-1 and of training loss by epoch; none of what has no lines."""
    charts = []
    if series["top1"]:
        top1 = "top-1 on validation images, %"
        charts.append(
            chart(f"{name}-top1", f"Learning curves{what}", "epoch", top1, series["top1"],
                  whole_x=True)
        )  # fmt: skip
    if series["loss"]:
        charts.append(
            chart(f"{name}-loss", f"Training loss{what}", "epoch", "training loss",
                  series["loss"], whole_x=True)
        )  # fmt: skip
    return charts


def _mean_curve(
    group: Group, kind: Callable[[dict[str, Any]], float | None]
) -> list[tuple[float, float]]:
    """Epochs that all seeds have, each with the mean of a measurement, where all have it."""
    histories = [result.history for result in group.results if result.history]
    points = []
    for epochs in zip(*histories, strict=False):
        values = [value for epoch in epochs if (value := kind(epoch)) is not None]
        if len(values) == len(epochs):
            points.append((epochs[0]["epoch"], statistics.fmean(values)))
    return points


def _top1(epoch: dict[str, Any]) -> float | None:
    return epoch.get("ema", epoch.get("val", {})).get("top1")


def _training_loss(epoch: dict[str, Any]) -> float | None:
    return epoch.get("train", {}).get("loss")
