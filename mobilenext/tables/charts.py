"""Plots as SVG that live in a page: its colours in light and dark, its font, no ids in common.

Needs matplotlib (the extra `report`).
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SERIES = 4
"""How many colours there are; `report.html.jinja` defines them as --series-1 and so on."""

TEXT, LINES = "#010101", "#020202"
COLOURS = [f"#0303{number:02x}" for number in range(1, SERIES + 1)]
"""Stand-ins that become the page's own colours: no plot needs colours this dark."""

MARKERS = ("o", "s", "D", "^")
DASHES = ((), (6, 2), (2, 2), (8, 2, 2, 2), (1, 1.5), (10, 3))


@dataclass(frozen=True)
class Series:
    """Points of one kind."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 1
    """1 to `SERIES`; also decides the marker, for those who see no colours."""
    dashes: int = 0
    """Index of `DASHES`."""
    hollow: bool = False
    errors: Sequence[float | None] = field(default_factory=tuple)
    """Half lengths of bars, for each point."""
    labels: Sequence[str] = field(default_factory=tuple)
    """Words beside the points."""
    line: bool = True
    markers: bool = True


@dataclass(frozen=True)
class Chart:
    """A plot and what it shows in words and numbers."""

    svg: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def chart(
    name: str, title: str, x: str, y: str, series: Sequence[Series], whole_x: bool = False
) -> Chart:
    """Draw series of points.

    Args:
        name: Sets the ids in the SVG apart from those of others.
        title: What it shows.
        x: Label of the horizontal axis, with its unit.
        y: Label of the vertical axis, with its unit.
        series: What to draw.
        whole_x: Whether only whole numbers make sense on the horizontal axis.
    """
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 11,
        "axes.edgecolor": LINES,
        "axes.labelcolor": TEXT,
        "text.color": TEXT,
        "xtick.color": TEXT,
        "ytick.color": TEXT,
        "grid.color": LINES,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(6.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=True, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.margins(0.09)
        if whole_x:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for one in series:
            _draw(axes, one)
        if len(series) > 1:
            axes.legend(frameon=False, handlelength=3.2, loc="best")
        buffer = io.StringIO()
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    rows = tuple(
        (one.name, *_row(one, number)) for one in series for number in range(len(one.points))
    )
    words = f"{y} over {x} for {', '.join(one.name for one in series)}"
    return Chart(_for_page(buffer.getvalue(), name, title, words), title, ("series", x, y), rows)


def _row(series: Series, number: int) -> tuple[str, str]:
    x, y = series.points[number]
    error = series.errors[number] if series.errors else None
    return f"{x:g}", f"{y:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _draw(axes: Axes, series: Series) -> None:
    xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
    colour = COLOURS[series.colour - 1]
    axes.plot(
        xs,
        ys,
        label=series.name,
        color=colour,
        linewidth=1.6 if series.line else 0,
        dashes=DASHES[series.dashes % len(DASHES)] or (None, None),
        marker=MARKERS[series.colour - 1] if series.markers else None,
        markersize=6,
        markerfacecolor="none" if series.hollow else colour,
    )
    bars = [error or 0.0 for error in series.errors]
    if any(bars):
        axes.errorbar(xs, ys, bars, color=colour, fmt="none", capsize=3)
    for (x, y), text in zip(series.points, series.labels, strict=False):
        axes.annotate(text, (x, y), (7, -11), textcoords="offset points", color=colour, fontsize=10)


def _for_page(svg: str, name: str, title: str, words: str) -> str:
    """The drawing without what makes it a file, with names for those who can't see it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    head, _, rest = svg.partition(">")
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None
    svg = (
        f'<svg {box[0]} role="img" aria-labelledby="{name}-title {name}-desc" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(words)}</desc>{rest}'
    )
    for number, colour in enumerate(COLOURS, 1):
        svg = svg.replace(colour, f"var(--series-{number})")
    return svg.replace(TEXT, "currentColor").replace(LINES, "var(--lines)")
