"""The README's picture: accuracy over multiply-adds. Needs the extra `report`."""

from collections.abc import Sequence
from dataclasses import replace

from mobilenext.tables.accuracy import FAMILIES, measured_series, paper_series
from mobilenext.tables.charts import DARK, LIGHT, Panel, Series, picture
from mobilenext.tables.results import (
    Group,
    Protocol,
    Result,
    group_results,
    groups_of,
    protocols_of,
)

X, Y = "multiply-adds, millions", "top-1, %"


def accuracy_pictures(results: Sequence[Result]) -> dict[str, str]:
    """The picture for a light and for a dark background.

    Runs that may stand beside the paper share a plot with it; of the others those of the recipe
    that trained both families at most widths have a plot of their own.

    Args:
        results: Runs.

    Returns:
        Texts of SVG files by their names.
    """
    groups = group_results(result for result in results if not result.of_cells)
    panels = accuracy_panels(groups)
    title = "Accuracy over multiply-adds of MobileNeXt and MobileNetV2"
    words = ". ".join(f"{one.title}: {points_in_words(one.series)}" for one in panels)
    return {
        f"accuracy-{name}.svg": picture("accuracy", title, words, panels, palette)
        for name, palette in (("light", LIGHT), ("dark", DARK))
    }


def accuracy_panels(groups: Sequence[Group]) -> list[Panel]:
    """What `accuracy_pictures` draws."""
    panels = []
    own = {protocol: _families(protocol, groups) for protocol in protocols_of(groups)}
    best = max(own, key=lambda protocol: _pairs(own[protocol]), default=None)
    if best is not None and _pairs(own[best]):
        seeds = sorted({len(group.seeds) for group in own[best]})
        spread = " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
        title = f"Measured: {best.task}, {spread} seed{'s' if seeds[-1] > 1 else ''}"
        panels.append(_panel(title, measured_series(own[best])["madds"]))
    with_paper = [group for group in groups if group.of_the_paper and group.first.model in FAMILIES]
    series = [*measured_series(with_paper, ", ours")["madds"], *paper_series()["madds"]]
    title = "ImageNet, 224 px: the paper"
    panels.append(_panel(f"{title} and ours" if with_paper else title, series))
    return panels


def _panel(title: str, series: Sequence[Series]) -> Panel:
    """A plot in which the texts of the two families stay apart."""
    above = FAMILIES["mobilenext"]
    return Panel(title, X, Y, [replace(one, labels_above=one.colour == above) for one in series])


def points_in_words(series: Sequence[Series]) -> str:
    """All points of some series."""
    return "; ".join(
        f"{one.name} "
        + ", ".join(
            f"{label}{y:.2f} at {x:g} M" + (f" (± {error:.2f})" if error else "")
            for label, (x, y), error in zip(
                [f"{label}: " for label in one.labels] or [""] * len(one.points),
                one.points,
                one.errors or [None] * len(one.points),
                strict=True,
            )
        )
        for one in series
    )


def _families(protocol: Protocol, groups: Sequence[Group]) -> list[Group]:
    """A protocol's runs of both families that may not stand beside the paper."""
    return [
        group
        for group in groups_of(protocol, groups)
        if not group.of_the_paper
        and group.first.model in FAMILIES
        and group.first.plain
        and group.first.identity == 1
    ]


def _pairs(groups: Sequence[Group]) -> int:
    """Number of widths at which both families were trained."""
    widths = [{g.first.width for g in groups if g.first.model == model} for model in FAMILIES]
    return len(set.intersection(*widths))
