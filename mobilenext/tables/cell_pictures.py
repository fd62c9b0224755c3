"""Pictures of searched cells: a genotype's normal and reduction cell as SVG, pixels and PNG.

A cell is a layered graph from left to right: its inputs, its nodes in columns by depth, its output;
the names of operators have columns of their own between them. `picture_of` decides where everything
lies, so that SVG and pixels show the same.

An edge that passes several columns does so on one horizontal lane, which has its place among the
boxes of each column, and edges bend between columns only, where nothing lies. So no box lies on
another one, and no edge runs through a box, whatever the genotype.
"""

import io
import math
import unicodedata
from collections.abc import Sequence
from html import escape
from itertools import pairwise, permutations
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
from PIL import ImageFont, features

from mobilenext.files import printable
from mobilenext.genotype import NONE, SKIP, Edges, Genotype

FONTS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
INK, LINES, FAINT, PAPER = "#24292f", "#57606a", "#8b949e", "#ffffff"
FILLS = {"input": "#e9ecf0", "node": PAPER, "output": "#e9ecf0"}
"""Colours of boxes, by kind of state."""

LETTERS, HEADING, TITLE = 13, 15, 17
"""Sizes of the font. All lengths are in units of the picture, about a pixel on a screen."""
WIDTHS = {"input": 58, "node": 38, "output": 50}
LEAST_HEIGHT, CORNER, BORDER = 34, 7, 1.3
"""Of the boxes of states."""
LABEL_HEIGHT, PADDING = 22, 7
ROOM = 9
"""Least room between what lies in one column."""
LEAST_GAP, MOST_GAP, STEEPNESS, STRETCH = 32, 80, 0.55, 25
"""Room between two columns: a share of the height that edges climb there, within bounds; and how
much more it may be, so that the narrower cell is as wide as the other one."""
MARGIN = 18
PORTS = 8
"""Distance of two edges at a box."""
ARROW, ARROW_HALF = 8, 3.6
"""Length of an arrow's head, and half its width."""
LEAST_WIDTH = 340
"""Of a picture without its margin, so that titles have room."""

PIXELS, REDUCTION, MANY = 2, 3, 1.2e6
"""Pixels for a unit, and how many times as many are drawn and reduced; a picture of that many
square units gets one pixel for a unit."""


class Style(NamedTuple):
    """How the edges of an operator are drawn."""

    colour: str
    width: float
    dashes: tuple[float, ...] = ()
    """Lengths of dashes and gaps; (): a solid line."""
    fill: str = PAPER
    """Colour behind the operator's name."""
    border: str = FAINT
    """Colour around it."""


PLAIN, CONCATENATION = Style(LINES, 1.5), Style(FAINT, 1.2)
STYLES = {
    "sandglass": Style("#c24e00", 3.0, (), "#fdebdc", "#c24e00"),
    "inverted_residual": Style("#0064a4", 3.0, (11, 3, 3, 3), "#e0effa", "#0064a4"),
    SKIP: Style(LINES, 1.5, (6, 4)),
    NONE: Style(FAINT, 1.2, (1.5, 3.5)),
}
"""Styles of operators that are not drawn as `PLAIN`; the two colours are Okabe and Ito's vermilion
and blue, which nobody confuses, darkened for thin lines on white."""

Point = tuple[float, float]
Path = tuple[tuple[float, ...], ...]
"""A point where it starts, then pieces: (x, y) for a straight line to there, (x1, y1, x2, y2, x, y)
for a cubic curve."""


class Box(NamedTuple):
    """A rectangle."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def centre(self) -> Point:
        """Its middle."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2


class State(NamedTuple):
    """A box that stands for an input, a node or the output."""

    box: Box
    text: str
    kind: str
    """A key of `FILLS`."""


class Edge(NamedTuple):
    """An arrow from one state to another."""

    path: Path
    """Its last piece is a straight line to the right, to the arrow's tip."""
    style: Style
    text: str
    """The operator's name; "": an edge to the output."""
    label: Box | None
    """Where it stands."""

    @property
    def line(self) -> Path:
        """The path without the arrow's head."""
        *before, (x, y) = self.path
        return (*before, (x - ARROW + 1, y))

    @property
    def head(self) -> tuple[Point, Point, Point]:
        """Corners of the arrow's head."""
        x, y = self.path[-1]
        return (x, y), (x - ARROW, y - ARROW_HALF), (x - ARROW, y + ARROW_HALF)


class Heading(NamedTuple):
    """A line of text; its place is its left end, at half the height of capitals."""

    place: Point
    text: str
    size: int


class Picture(NamedTuple):
    """Where everything lies."""

    width: int
    height: int
    states: tuple[State, ...]
    edges: tuple[Edge, ...]
    headings: tuple[Heading, ...]


def picture_of(genotype: Genotype, title: str = "") -> Picture:
    """The layout of a picture: the title, the normal cell, and below it the reduction cell."""
    cells = {
        "Normal cell": _arranged(genotype.normal),
        "Reduction cell": _arranged(genotype.reduce),
    }
    wide = max(LEAST_WIDTH, *(_columns(cell)[-1][1] for cell in cells.values()))
    states, edges, headings = [], [], []
    y = float(MARGIN)
    for line in _lines(printable(title), wide):
        headings.append(Heading((MARGIN, y + TITLE / 2), line, TITLE))
        y += 1.4 * TITLE
    for number, (name, cell) in enumerate(cells.items()):
        y += MARGIN if number else MARGIN / 2 if headings else 0
        headings.append(Heading((MARGIN, y + HEADING / 2), name, HEADING))
        y += 2 * HEADING
        more_states, more_edges = _drawn(cell, _columns(cell, wide), y)
        states += more_states
        edges += more_edges
        y += cell.height
    size = math.ceil(wide + 2 * MARGIN), math.ceil(y + MARGIN)
    return Picture(*size, tuple(states), tuple(edges), tuple(headings))


def _lines(text: str, width: float) -> list[str]:
    """A text in lines of a width; a word that is wider is broken."""
    lines = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, TITLE) <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for letter in word:
            if text_width(lines[-1] + letter, TITLE) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def text_width(text: str, size: float) -> float:
    """About the width of a text in any of `FONTS`; nobody knows which one a reader has."""
    widths = (("ijlI.,:;'|!()[] ", 0.31), ("frt-/", 0.42), ("mwMW@%", 0.98))
    return size * sum(
        next((width for letters, width in widths if letter in letters),
             1.0 if not letter.isascii() else 0.7 if letter.isupper() else 0.59)
        for letter in text
    )  # fmt: skip


# ---- the graph of a cell ----


class _Segment(NamedTuple):
    """What lies at one height: a state, or the part of an edge that passes columns.

    Columns are counted from the inputs' on. An edge's label is a box in one of its columns; edges
    to the output have none.
    """

    first: int
    last: int
    high: float = 0
    wide: float = 0
    at: int = -1
    """Column of the box; -1: there is none."""

    def half_height(self, column: int) -> float:
        return self.high / 2 if column == self.at else 0.0


class _Link(NamedTuple):
    """A piece of an edge between two columns, which joins two segments."""

    left: int
    right: int
    weight: float


class _Way(NamedTuple):
    """An edge: numbers of the segments that it joins and of its own one, if it has one."""

    source: int
    lane: int | None
    target: int
    operator: str


class _Graph(NamedTuple):
    """A cell; its first segments are its states, in order, and then the output."""

    segments: list[_Segment]
    ways: list[_Way]
    links: list[_Link]
    nodes: int

    @property
    def output(self) -> int:
        return self.nodes + 2


OUTPUT_WEIGHT = 0.4
"""How much it matters how edges to the output run; of others, 1."""


def _graph(edges: Edges, late: bool) -> _Graph:
    """The graph of a cell.

    Args:
        edges: Two for each node.
        late: Whether labels are rather near the edges' ends than near their starts.
    """
    nodes = len(edges) // 2
    depths = [0, 0]
    for node in range(nodes):
        depths.append(1 + max(depths[source] for _, source in edges[2 * node : 2 * node + 2]))
    output = 2 * max(depths) + 1
    joined = [(source, 2 + number // 2) for number, (_, source) in enumerate(edges)]
    joined += [(state, nodes + 2) for state in range(2, nodes + 2)]
    segments = []
    for state, column in enumerate([*(2 * depth for depth in depths), output]):
        ends = [sum(way[end] == state for way in joined) for end in (0, 1)]
        high = max(LEAST_HEIGHT, PORTS * (max(ends) - 1) + 2 * CORNER)
        segments.append(_Segment(column, column, high, WIDTHS[_kind(state, nodes)], column))
    lanes = _labelled(edges, [segment.first for segment in segments], late)
    ways = []
    for number, (source, target) in enumerate(joined):
        labelled = number < len(edges)
        lane = lanes[number] if labelled else _Segment(segments[source].last + 1, output - 1)
        place = len(segments) if lane.first <= lane.last else None
        if place is not None:
            segments.append(lane)
        ways.append(_Way(source, place, target, edges[number][0] if labelled else ""))
    links = []
    for way in ways:
        weight = 1.0 if way.operator else OUTPUT_WEIGHT
        stops = [stop for stop in way[:3] if stop is not None]
        links += [_Link(left, right, weight) for left, right in pairwise(stops)]
    return _Graph(segments, ways, links, nodes)


def _kind(state: int, nodes: int) -> str:
    return "input" if state < 2 else "node" if state < nodes + 2 else "output"


def _labelled(edges: Edges, columns: Sequence[int], late: bool) -> list[_Segment]:
    """The segments of edges with operators; their labels are spread over columns.

    The shortest edges come first, since longer ones have the choice.
    """
    spans = [
        range(columns[source] + 1, columns[2 + number // 2], 2)
        for number, (_, source) in enumerate(edges)
    ]
    used = dict.fromkeys(range(max(columns)), 0)
    places = {}
    for number in sorted(range(len(edges)), key=lambda number: len(spans[number])):
        choice = reversed(spans[number]) if late else spans[number]
        places[number] = min(choice, key=used.__getitem__)
        used[places[number]] += 1
    return [
        _Segment(span[0], span[-1], LABEL_HEIGHT, text_width(operator, LETTERS) + 2 * PADDING,
                 places[number])
        for number, (span, (operator, _)) in enumerate(zip(spans, edges, strict=True))
    ]  # fmt: skip


# ---- what lies above what ----

CHOICE = 2
"""Orders of which the better picture is taken."""
SIFTINGS = 12
"""Most of them from one order on."""
FEW_NODES, MANY_NODES = 4, 8
STARTS, FEW_STARTS = 12, 3
"""All orders of few nodes are tried, so many of more nodes, and few of many."""


def _orders(graph: _Graph) -> list[tuple[float, list[int]]]:
    """Some orders of all segments from top to bottom that cost little, each with its cost.

    Sifting: a segment goes where it costs least, one after the other, until none moves.
    """
    count, costs = len(graph.segments), _Costs(graph)
    places = np.argsort(np.argsort(_starts(graph), kind="stable")).astype(np.int16)
    for _ in range(SIFTINGS):
        moved = [costs.sift(one, places) for one in range(count)]
        if not any(moved):
            break
    # Upside down an order is as good, and all pictures have the inputs in one order.
    wrong = places[:, 0] > places[:, 1]
    places[wrong] = count - 1 - places[wrong]
    found = costs.of(places)
    # Orders of equal cost are nearly always the same picture.
    best = np.unique(found.round(6), return_index=True)[1][:CHOICE]
    return [(float(found[one]), np.argsort(places[one]).tolist()) for one in best]


def _starts(graph: _Graph) -> np.ndarray:
    """Rough heights of all segments (starts, segments): nodes in many orders, lanes in between.

    Sifting does not exchange nodes together with their edges, so the nodes' order is tried out.
    """
    nodes = graph.nodes
    if nodes <= FEW_NODES:
        orders = np.array(list(permutations(range(nodes))))
    else:
        generator = np.random.default_rng(0)
        starts = STARTS if nodes <= MANY_NODES else FEW_STARTS
        orders = np.array([generator.permutation(nodes) for _ in range(starts)])
    heights = np.zeros((len(orders), len(graph.segments)))
    heights[:, :2] = -0.25, 0.25
    heights[:, 2 : 2 + nodes] = (orders + 0.5) / nodes - 0.5
    for way in graph.ways:
        if way.lane is not None:
            heights[:, way.lane] = heights[:, [way.source, way.target]].mean(1)
    return heights


class _Costs:
    """What an order costs: crossings; and, much less, long ways and nodes out of order."""

    LENGTH, TURNED = 0.01, 0.1

    def __init__(self, graph: _Graph) -> None:
        segments, nodes = graph.segments, range(2, graph.output)
        pairs, weights = _may_cross(graph)
        turned = [(i, j) for j in nodes for i in range(2, j)
                  if segments[i].first == segments[j].first]  # fmt: skip
        self.pairs = np.array(pairs, int).reshape(-1, 4).T
        self.pair_weights = np.array(weights, float)
        self.links = np.array([link[:2] for link in graph.links]).T
        self.link_weights = np.array([link.weight for link in graph.links])
        self.turned = np.array(turned, int).reshape(-1, 2).T
        with_one = [(self.pairs == one).any(0) for one in range(len(segments))]
        self.of_one = [(self.pairs[:, mask], self.pair_weights[mask]) for mask in with_one]

    def of(self, places: np.ndarray) -> np.ndarray:
        """Costs (N,) of orders, given as the place of each segment (N, segments)."""
        return self._many(places.T[:, None], self.pairs, self.pair_weights)[0]

    def _many(self, places: np.ndarray, pairs: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Costs (M, N) of orders (segments, M, N), with the crossings of some pairs only."""
        a, b, c, d = (places[ends] for ends in pairs)
        crossed = np.tensordot(weights, (a < c) != (b < d), 1)
        left, right = (places[ends] for ends in self.links)
        long = np.tensordot(self.link_weights, np.abs(left - right), 1)
        upper, lower = (places[ends] for ends in self.turned)
        return crossed + self.LENGTH * long + self.TURNED * (upper > lower).sum(0)

    def sift(self, one: int, places: np.ndarray) -> bool:
        """Move a segment to its best place in each order; whether it moved in any.

        Args:
            one: The segment.
            places: The place of each segment, (orders, segments); it is changed.
        """
        now, tried = places[:, one], np.arange(places.shape[1], dtype=np.int16)
        rest = (places - (places > now[:, None])).T[..., None]
        many = rest + (rest >= tried)
        many[one] = tried
        costs = self._many(many, *self.of_one[one])
        orders, best = np.arange(len(places)), costs.argmin(1)
        better = costs[orders, best] < costs[orders, now] - 1e-9
        places[:] = many[:, orders, np.where(better, best, now)].T
        return bool(better.any())


def _may_cross(graph: _Graph) -> tuple[list[tuple[int, int, int, int]], list[float]]:
    """Pairs of pieces between the same columns, as segments left and right of both, and weights."""
    gaps: dict[int, list[_Link]] = {}
    for link in graph.links:
        gaps.setdefault(graph.segments[link.left].last, []).append(link)
    for number, one in enumerate(graph.segments):
        weight = OUTPUT_WEIGHT if one.at < 0 else 1.0
        for column in range(one.first, one.last):
            gaps.setdefault(column, []).append(_Link(number, number, weight))
    found = [
        ((one.left, one.right, other.left, other.right), one.weight * other.weight)
        for pieces in gaps.values()
        for number, one in enumerate(pieces)
        for other in pieces[:number]
        if one.left != other.left
        and one.right != other.right
        # Two lanes side by side are in the same order on both sides.
        and (one.left != one.right or other.left != other.right)
    ]
    return [pair for pair, _ in found], [weight for _, weight in found]


# ---- heights ----

ROUNDS, PRECISE = 400, 1e-3
"""Most rounds, and the change of a force below which there are no more."""
PULL = 0.02
"""Of the middle, as a share of an edge's; without one nothing would say where all of it is."""


def _heights(graph: _Graph, order: Sequence[int]) -> list[float]:
    """Heights of the middles of all segments: what is joined as near as this order allows.

    Least squares under linear inequalities, by Hildreth's method: each inequality in turn gets the
    force that it needs.
    """
    room = _room(graph, order)
    pull = PULL * np.eye(len(graph.segments))
    for left, right, weight in graph.links:
        pull[[left, right], [left, right]] += weight
        pull[[left, right], [right, left]] -= weight
    moves = np.linalg.inv(pull)
    steps = {(upper, lower): moves[lower] - moves[upper] for upper, lower in room}
    forces = dict.fromkeys(room, 0.0)
    y = np.zeros(len(graph.segments))
    for _ in range(ROUNDS):
        most = 0.0
        for (upper, lower), least in room.items():
            step = steps[upper, lower]
            lacking = least - (y[lower] - y[upper])
            force = max(-forces[upper, lower], lacking / (step[lower] - step[upper]))
            forces[upper, lower] += force
            y += force * step
            most = max(most, abs(force))
        if most < PRECISE:
            break
    # The method comes near; what still lacks is added from top to bottom.
    places = {one: place for place, one in enumerate(order)}
    found = y.tolist()
    for upper, lower in sorted(room, key=lambda pair: places[pair[1]]):
        found[lower] = max(found[lower], found[upper] + room[upper, lower])
    return found


def _room(graph: _Graph, order: Sequence[int]) -> dict[tuple[int, int], float]:
    """Least distance of the middles of any two segments that are neighbours in a column."""
    room: dict[tuple[int, int], float] = {}
    for column in range(graph.segments[graph.output].last):
        here = [one for one in order
                if graph.segments[one].first <= column <= graph.segments[one].last]  # fmt: skip
        for upper, lower in pairwise(here):
            halves = [graph.segments[one].half_height(column) for one in (upper, lower)]
            room[upper, lower] = max(room.get((upper, lower), 0.0), sum(halves) + ROOM)
    return room


# ---- places ----

CROSSING = 50
"""Units of climbing that a crossing is as bad as."""


class _Arranged(NamedTuple):
    """A cell's graph with the height of each segment's middle, from 0 on."""

    graph: _Graph
    y: list[float]
    height: float


def _arranged(edges: Edges) -> _Arranged:
    """The better arrangement of a cell: labels near the starts of edges, or near their ends."""
    graphs = [_graph(edges, late) for late in (False, True)]
    found = []
    for graph in graphs[: 1 if graphs[0] == graphs[1] else 2]:
        for cost, order in _orders(graph):
            y = _heights(graph, order)
            halves = [segment.high / 2 for segment in graph.segments]
            top = min(middle - half for middle, half in zip(y, halves, strict=True))
            height = max(middle + half for middle, half in zip(y, halves, strict=True)) - top
            climbed = sum(weight * abs(y[left] - y[right]) for left, right, weight in graph.links)
            arranged = _Arranged(graph, [middle - top for middle in y], height)
            found.append((CROSSING * cost + climbed + height, arranged))
    return min(found, key=lambda one: one[0])[1]


def _columns(cell: _Arranged, wanted: float = 0) -> list[tuple[float, float]]:
    """Left and right ends of columns.

    Args:
        cell: The cell.
        wanted: Width to which it is stretched, within `STRETCH`.
    """
    segments = cell.graph.segments
    widths = [0.0] * (segments[cell.graph.output].last + 1)
    for one in segments:
        if one.at >= 0:
            widths[one.at] = max(widths[one.at], one.wide)
    climbs = [0.0] * (len(widths) - 1)
    for left, right, _ in cell.graph.links:
        gap = segments[left].last
        climbs[gap] = max(climbs[gap], abs(cell.y[left] - cell.y[right]))
    gaps = [min(MOST_GAP, max(LEAST_GAP, STEEPNESS * climb)) for climb in climbs]
    lacking = (wanted - sum(widths) - sum(gaps)) / len(gaps)
    stretch = min(STRETCH, max(0.0, lacking))
    columns, x = [], 0.0
    for width, gap in zip(widths, [*gaps, 0.0], strict=True):
        columns.append((x, x + width))
        x += width + gap + stretch
    return columns


def _drawn(
    cell: _Arranged, columns: Sequence[tuple[float, float]], top: float
) -> tuple[list[State], list[Edge]]:
    """States and edges of a cell at their places in the picture."""
    graph = cell.graph
    ends = [(MARGIN + left, MARGIN + right) for left, right in columns]
    y = [top + middle for middle in cell.y]

    def box(number: int) -> Box:
        one = graph.segments[number]
        x = sum(ends[one.at]) / 2
        return Box(x - one.wide / 2, y[number] - one.high / 2,
                   x + one.wide / 2, y[number] + one.high / 2)  # fmt: skip

    names = ["c(k-2)", "c(k-1)", *map(str, range(graph.nodes)), "c(k)"]
    states = [State(box(state), name, _kind(state, graph.nodes))
              for state, name in enumerate(names)]  # fmt: skip
    edges = []
    ports = zip(_ports(graph, y, "source"), _ports(graph, y, "target"), strict=True)
    for way, (leaves, comes) in zip(graph.ways, ports, strict=True):
        start = states[way.source].box.x1, leaves
        tip = states[way.target].box.x0, comes
        neck = tip[0] - ARROW, comes
        if way.lane is None:
            edges.append(Edge((start, _bend(start, neck), tip), CONCATENATION, "", None))
            continue
        lane = graph.segments[way.lane]
        left, right = (ends[lane.first][0], y[way.lane]), (ends[lane.last][1], y[way.lane])
        path = start, _bend(start, left), right, _bend(right, neck), tip
        style = STYLES.get(way.operator, PLAIN) if way.operator else CONCATENATION
        edges.append(Edge(path, style, way.operator, box(way.lane) if way.operator else None))
    return states, edges


def _bend(start: Point, end: Point) -> tuple[float, ...]:
    """A curve that is horizontal at both ends."""
    middle = (start[0] + end[0]) / 2
    return middle, start[1], middle, end[1], *end


def _ports(graph: _Graph, y: Sequence[float], end: str) -> list[float]:
    """Heights at which edges leave their source or come to their target, so that none cross."""
    found = [0.0] * len(graph.ways)
    for state in range(graph.output + 1):
        here = []
        for number, way in enumerate(graph.ways):
            if getattr(way, end) == state:
                other = way.target if end == "source" else way.source
                here.append((y[other if way.lane is None else way.lane], number))
        step = min(PORTS, (graph.segments[state].high - 2 * CORNER) / max(1, len(here) - 1))
        for place, (_, number) in enumerate(sorted(here)):
            found[number] = y[state] + step * (place - (len(here) - 1) / 2)
    return found


# ---- as SVG ----


def cells_svg(genotype: Genotype, title: str = "") -> str:
    """Both cells of a genotype as an <svg> element, without XML declaration.

    It has a white background of its own, so that it may stand on a dark page.

    Args:
        genotype: What is drawn.
        title: What stands above it; "": nothing does.
    """
    picture = picture_of(genotype, title)
    parts = [_svg_box(Box(0, 0, picture.width, picture.height), 6, PAPER)]
    for heading in picture.headings:
        parts.append(_svg_text(*heading, bold=True))
    for edge in _lowest_first(picture.edges):
        parts.append(_svg_edge(edge))
    for edge in picture.edges:
        if edge.label:
            style = edge.style
            parts.append(_svg_box(edge.label, LABEL_HEIGHT / 2, style.fill, style.border))
            parts.append(_svg_text(edge.label.centre, edge.text, LETTERS))
    for box, text, kind in picture.states:
        parts.append(_svg_box(box, CORNER, FILLS[kind], INK))
        parts.append(_svg_text(box.centre, text, LETTERS))
    name = escape(printable(title)) or "Normal and reduction cell"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {picture.width} {picture.height}" '
        f'width="{picture.width}" height="{picture.height}" '
        f'style="max-width: {picture.width}px; height: auto" role="img" font-family="{FONTS}" '
        f'fill="{INK}"><title>{name}</title>{"".join(parts)}</svg>'
    )


def _lowest_first(edges: Sequence[Edge]) -> list[Edge]:
    """Edges in the order of drawing: those that stand out are not hidden by others."""
    return sorted(edges, key=lambda edge: edge.style.width)


def _svg_edge(edge: Edge) -> str:
    start, *pieces = edge.line
    words = f"M{_numbers(start)}" + "".join(
        f"{'L' if len(piece) == 2 else 'C'}{_numbers(piece)}" for piece in pieces
    )
    style = edge.style
    dashes = f' stroke-dasharray="{" ".join(map(str, style.dashes))}"' if style.dashes else ""
    return (
        f'<path d="{words}" fill="none" stroke="{style.colour}" stroke-width="{style.width:g}"'
        f'{dashes}/><polygon points="{" ".join(map(_numbers, edge.head))}" fill="{style.colour}"/>'
    )


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{round(value, 1):g}" for value in values)


def _svg_box(box: Box, corner: float, fill: str, border: str = "") -> str:
    x0, y0, x1, y1 = (round(value, 1) for value in box)
    line = f' stroke="{border}" stroke-width="{BORDER}"' if border else ""
    return (
        f'<rect x="{x0:g}" y="{y0:g}" width="{x1 - x0:g}" height="{y1 - y0:g}" rx="{corner:g}" '
        f'fill="{fill}"{line}/>'
    )


def _svg_text(place: Point, text: str, size: float, bold: bool = False) -> str:
    x, y = place
    more = ' font-weight="600"' if bold else ' text-anchor="middle"'
    return (
        f'<text x="{x:.1f}" y="{y + 0.36 * size:.1f}" font-size="{size:g}"{more}>'
        f"{escape(text)}</text>"
    )


# ---- as pixels ----


def cells_picture(genotype: Genotype, title: str = "") -> np.ndarray:
    """The picture of `cells_svg` as pixels, two for a unit; one, if it is large.

    Letters are those of ASCII, since Pillow's own font has few others.

    Args:
        genotype: What is drawn.
        title: What stands above it; "": nothing does.

    Returns:
        uint8 (H, W, 3).
    """
    return np.array(_drawn_by_pillow(picture_of(genotype, title))[0])


def cells_png(genotype: Genotype, title: str = "") -> bytes:
    """A PNG file of `cells_picture`; it says how many pixels an inch has."""
    image, pixels = _drawn_by_pillow(picture_of(genotype, title))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, dpi=(96 * pixels, 96 * pixels))
    return file.getvalue()


def _drawn_by_pillow(picture: Picture) -> tuple[PIL.Image.Image, int]:
    """The image, and its pixels for a unit."""
    pixels = PIXELS if picture.width * picture.height < MANY else 1
    scale = pixels * REDUCTION
    large = PIL.Image.new("RGB", (picture.width * scale, picture.height * scale), PAPER)
    pen = _Pen(PIL.ImageDraw.Draw(large), scale)
    for edge in _lowest_first(picture.edges):
        pen.edge(edge)
    for edge in picture.edges:
        if edge.label:
            pen.box(edge.label, LABEL_HEIGHT / 2, edge.style.fill, edge.style.border)
    for box, _, kind in picture.states:
        pen.box(box, CORNER, FILLS[kind], INK)
    image = large.reduce(REDUCTION)
    # Letters need no reduction, and without FreeType there is one size of them only.
    letters = _Pen(PIL.ImageDraw.Draw(image), pixels)
    for edge in picture.edges:
        if edge.label:
            letters.text(edge.label.centre, edge.text, LETTERS)
    for box, text, _ in picture.states:
        letters.text(box.centre, text, LETTERS)
    for heading in picture.headings:
        letters.text(*heading, bold=True)
    return image, pixels


class _Pen:
    """Draws in the units of a picture."""

    def __init__(self, draw: PIL.ImageDraw.ImageDraw, scale: int) -> None:
        self.draw, self.scale = draw, scale

    def edge(self, edge: Edge) -> None:
        style = edge.style
        for points in _dashed(_polyline(edge.line), style.dashes):
            line = [(x * self.scale, y * self.scale) for x, y in points]
            self.draw.line(line, style.colour, round(style.width * self.scale), "curve")
        self.draw.polygon([(x * self.scale, y * self.scale) for x, y in edge.head], style.colour)

    def box(self, box: Box, corner: float, fill: str, border: str) -> None:
        half = BORDER / 2
        outer = (box.x0 - half, box.y0 - half, box.x1 + half, box.y1 + half)
        self.draw.rounded_rectangle(
            [value * self.scale for value in outer], (corner + half) * self.scale, fill, border,
            round(BORDER * self.scale),
        )  # fmt: skip

    def text(self, place: Point, text: str, size: int, bold: bool = False) -> None:
        """A text whose middle lies at a place, or a bold one that begins there."""
        scalable = features.check("freetype2")
        font = ImageFont.load_default(size * self.scale if scalable else None)
        shown = unicodedata.normalize("NFKD", text)
        shown = "".join(letter for letter in shown if not unicodedata.combining(letter))
        shown = shown.encode("ascii", "replace").decode("ascii")
        _, high, _, low = font.getbbox("H")
        x, y = place[0] * self.scale, place[1] * self.scale - (high + low) / 2
        if not bold:
            self.draw.text((x - font.getlength(shown) / 2, y), shown, INK, font)
            return
        # The font has no bold letters.
        for shift in (0, 0.25 * self.scale):
            self.draw.text((x + shift, y), shown, INK, font)


CURVE_POINTS = 24


def _polyline(path: Path) -> list[Point]:
    """Points of a path, as near as its curves need."""
    points: list[Point] = [(path[0][0], path[0][1])]
    for piece in path[1:]:
        if len(piece) == 2:
            points.append((piece[0], piece[1]))
            continue
        corners = np.array([points[-1], *zip(piece[::2], piece[1::2], strict=True)])
        t = np.linspace(0, 1, CURVE_POINTS + 1)[1:, None]
        weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
        points += [(x, y) for x, y in (weights @ corners).tolist()]
    return points


def _dashed(points: list[Point], dashes: Sequence[float]) -> list[list[Point]]:
    """A line cut into its dashes."""
    if not dashes:
        return [points]
    ends = np.array(points)
    far = np.concatenate([[0.0], np.hypot(*np.diff(ends, axis=0).T).cumsum()])

    def between(start: float, end: float) -> list[Point]:
        inner = far[(far > start) & (far < end)].tolist()
        there = [start, *inner, end]
        return list(zip(*(np.interp(there, far, ends[:, axis]).tolist() for axis in (0, 1)),
                        strict=True))  # fmt: skip

    found, at, number = [], 0.0, 0
    while at < far[-1]:
        end = min(at + dashes[number % len(dashes)], float(far[-1]))
        if number % 2 == 0:
            found.append(between(at, end))
        at, number = end, number + 1
    return found
