"""Line charts as SVG for an HTML page. Needs matplotlib (the extra `report`).

The SVG is written into the page, not linked: it takes the page's font and colours, light and dark,
and its ids are unlike those of other charts.
"""

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator

SERIES = 4
"""Number of colours for series; the page defines them as --series-1 to --series-4."""

TEXT, LINES = "#010101", "#020202"
"""Colours that matplotlib draws text and grid with; the SVG gets currentColor and --lines instead.

They only have to be colours that nothing else is drawn with.
"""
COLOURS = [f"#0303{number:02x}" for number in range(1, SERIES + 1)]
"""The same for series; the SVG gets --series-1 and so on instead."""

MARKERS = ("o", "s", "D", "^")
"""matplotlib's markers, one for each colour."""
DASHES = ((), (6, 2), (2, 2), (8, 2, 2, 2), (1, 1.5), (10, 3))
"""Lengths of dashes and gaps in units of the line's width; () is a solid line."""

LEGEND_INSIDE = 4, 40
"""Series, and characters of the longest name, up to which the legend lies among the points; a
larger one lies below the axes."""
LEGEND_LINE = 60
"""Characters in a line of a legend below the axes."""
LEGEND_POINTS = 10
"""Size of its font, in points."""


@dataclass(frozen=True)
class Series:
    """One line of a chart: its points, its name in the legend, how it is drawn."""

    name: str
    """Name in the legend and in the chart's data."""
    points: Sequence[tuple[float, float]]
    """(x, y) of each point, in the units of the axes."""
    colour: int = 1
    """Number of its colour, 1 to `SERIES`. It decides the marker, too, so that series can be told
    apart without seeing colours."""
    dashes: int = 0
    """Number of its dash pattern in `DASHES`, from 0; larger numbers begin again."""
    hollow: bool = False
    """Whether markers are outlines."""
    errors: Sequence[float | None] = field(default_factory=tuple)
    """Standard deviation of each point's y, drawn as a bar of that length up and down; None: no
    bar. Empty: no bars at all."""
    labels: Sequence[str] = field(default_factory=tuple)
    """Text beside each point; empty: none."""
    labels_above: bool = False
    """Whether these texts are above and to the left of the points, not below and to the right."""
    line: bool = True
    """Whether points are joined."""
    markers: bool = True
    """Whether points have markers."""


@dataclass(frozen=True)
class Chart:
    """A chart: its drawing, and its points as a table."""

    svg: str
    """An <svg> element, without XML declaration; title and description are in it."""
    title: str
    columns: tuple[str, ...]
    """The table's header: series, x axis, y axis."""
    rows: tuple[tuple[str, ...], ...]
    """A row for each point of each series; x as written by :g, y with two decimals."""


def chart(
    name: str, title: str, x: str, y: str, series: Sequence[Series], whole_x: bool = False
) -> Chart:
    """A chart of some series, with a legend if there are several.

    Args:
        name: Prefix of the ids in the SVG; no other chart of the page may have it.
        title: The chart's title, for the page and for screen readers; it is not drawn.
        x: Label of the horizontal axis, with its unit.
        y: Label of the vertical axis, with its unit.
        series: The series, in the order of the legend.
        whole_x: Whether the horizontal axis has ticks at whole numbers only, as for epochs.

    Returns:
        The chart. Equal arguments give equal SVG.
    """
    with mpl.rc_context(_settings(name)):
        figure = Figure(figsize=(5.4, 3.8), layout="constrained")
        axes = figure.add_subplot()
        _draw_all(axes, x, y, series)
        if whole_x:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(series) > 1:
            _add_legend(figure, axes, [one.name for one in series])
        svg = _written(figure)
    rows = tuple(
        (one.name, *_row(one, number)) for one in series for number in range(len(one.points))
    )
    words = f"{y} over {x} for {', '.join(one.name for one in series)}"
    return Chart(_for_page(svg, name, title, words), title, ("series", x, y), rows)


@dataclass(frozen=True)
class Panel:
    """One of several plots side by side."""

    title: str
    """Drawn above it."""
    x: str
    """Label of the horizontal axis, with its unit."""
    y: str
    """Label of the vertical axis, with its unit."""
    series: Sequence[Series]


@dataclass(frozen=True)
class Palette:
    """Colours of a picture, as CSS has them."""

    text: str
    lines: str
    series: tuple[str, ...]
    """Those of series, the first one for colour 1."""


LIGHT = Palette("#1d2126", "#d5d8dc", ("#0b5cad", "#b23c06", "#2b7430", "#7a3e9d"))
DARK = Palette("#e6e8eb", "#3b424b", ("#84bdf6", "#f5a673", "#86d28b", "#d0a5f0"))
"""Colours of plots on a light and on a dark background, here and in `report.html.jinja`."""


def picture(name: str, title: str, words: str, panels: Sequence[Panel], palette: Palette) -> str:
    """Plots side by side as an SVG file, which needs no page around it and has no background.

    Args:
        name: Prefix of its ids.
        title: For screen readers.
        words: What it shows in words, for screen readers.
        panels: The plots, from left to right.
        palette: Its colours.

    Returns:
        The file's text. Equal arguments give equal text.
    """
    with mpl.rc_context(_settings(name)):
        figure = Figure(figsize=(4.9 * len(panels), 3.9), layout="constrained")
        for number, panel in enumerate(panels, 1):
            axes = figure.add_subplot(1, len(panels), number)
            _draw_all(axes, panel.x, panel.y, panel.series)
            axes.set_title(panel.title, fontsize=11, loc="left", color=TEXT)
            _as_written(axes.legend(frameon=False, handlelength=3.2, loc="lower right"))
        svg = _for_page(_written(figure), name, title, words)
    for number, colour in enumerate(palette.series, 1):
        svg = svg.replace(f"var(--series-{number})", colour)
    svg = svg.replace("currentColor", palette.text).replace("var(--lines)", palette.lines)
    fonts = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
    return svg.replace("<svg ", f'<svg font-family="{fonts}" ', 1) + "\n"


def _settings(name: str) -> dict[Any, Any]:
    """Matplotlib's settings for a chart of this name."""
    return {
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


def _draw_all(axes: Axes, x: str, y: str, series: Sequence[Series]) -> None:
    axes.grid(visible=True, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(0.09)
    axes.patch.set_alpha(0)
    for one in series:
        _draw(axes, one)


def _written(figure: Figure) -> str:
    """The figure as the text of an SVG file."""
    buffer = io.StringIO()
    figure.patch.set_alpha(0)
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def _add_legend(figure: Figure, axes: Axes, names: list[str]) -> None:
    most, longest = LEGEND_INSIDE
    if len(names) <= most and max(map(len, names)) <= longest:
        _as_written(axes.legend(frameon=False, handlelength=3.2, loc="best"))
        return
    texts = ["\n".join(textwrap.wrap(name, LEGEND_LINE)) for name in names]
    handles, _ = axes.get_legend_handles_labels()
    _as_written(
        figure.legend(handles, texts, frameon=False, handlelength=3.2, fontsize=LEGEND_POINTS,
                      loc="outside lower left")
    )  # fmt: skip
    below = "\n".join(texts).count("\n") + 1
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + below * 1.7 * LEGEND_POINTS / 72)


def _as_written(legend: Legend) -> None:
    """Names may come from files: a $ in one is no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


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
        place, align = ((-5, 6), "right") if series.labels_above else ((7, -11), "left")
        axes.annotate(text, (x, y), place, textcoords="offset points", color=colour, fontsize=10,
                      ha=align)  # fmt: skip


def _for_page(svg: str, name: str, title: str, words: str) -> str:
    """The SVG file that matplotlib made as an element of the page.

    XML declaration, metadata and style sheet go; ids get the chart's name in front, colours become
    the page's; title and description come in, which screen readers read out.
    """
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
