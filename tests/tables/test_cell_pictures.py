import io
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import PIL.Image
import pytest

from mobilenext.genotype import BLOCKS, DARTS_V2, SKIP, SPACES, Genotype, random_genotype
from mobilenext.tables.cell_pictures import (
    PIXELS,
    PLAIN,
    STYLES,
    Box,
    Edge,
    Picture,
    cells_picture,
    cells_png,
    cells_svg,
    picture_of,
)

SVG = "{http://www.w3.org/2000/svg}"
SAME_SOURCES = Genotype(
    (("sandglass", 0), ("inverted_residual", 0), (SKIP, 2), ("none", 2)),
    (("sep_conv_3x3", 1), ("sep_conv_3x3", 1), ("avg_pool_3x3", 1), ("avg_pool_3x3", 1)),
)
"""Both edges of each node come from one state, and one input of the reduction cell is not used."""
CASES = {
    "darts_v2": DARTS_V2,
    "sandglass": random_genotype(0, "darts_sandglass"),
    "inverted_residual": random_genotype(1, "darts_inverted_residual", nodes=3),
    "same_sources": SAME_SOURCES,
    "1_node": random_genotype(3, "darts_sandglass", nodes=1),
    "8_nodes": random_genotype(5, "darts_inverted_residual", nodes=8),
}
LARGEST = random_genotype(5, "darts_sandglass", nodes=16)
each = pytest.mark.parametrize("genotype", CASES.values(), ids=CASES)


def operators(genotype: Genotype) -> Counter[str]:
    return Counter(name for name, _ in (*genotype.normal, *genotype.reduce))


def overlap(one: Box, other: Box) -> bool:
    return min(one.x1, other.x1) > max(one.x0, other.x0) and (
        min(one.y1, other.y1) > max(one.y0, other.y0)
    )


def points(edge: Edge) -> np.ndarray:
    """Many points of an edge's path, (N, 2), worked out otherwise than the module does."""
    found = [np.array([edge.path[0]])]
    for piece in edge.path[1:]:
        corners = np.array([found[-1][-1], *np.reshape(piece, (-1, 2))])[:, None]
        t = np.linspace(0, 1, 50)[:, None]
        while len(corners) > 1:  # de Casteljau
            corners = np.stack([(1 - t) * a + t * b for a, b in pairwise(corners)])
        found.append(corners[0])
    return np.concatenate(found)


def check_boxes(picture: Picture) -> None:
    """No box on another one, none outside."""
    boxes = [*(edge.label for edge in picture.edges if edge.label),
             *(state.box for state in picture.states)]  # fmt: skip
    assert not [pair for pair in combinations(boxes, 2) if overlap(*pair)]
    assert min(min(box) for box in boxes) > 0
    assert max(box.x1 for box in boxes) < picture.width
    assert max(box.y1 for box in boxes) < picture.height


@each
def test_each_operator_is_named_as_often_as_it_is_there(genotype: Genotype) -> None:
    svg = cells_svg(genotype, "A cell")
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.findtext(f"{SVG}title") == "A cell"
    texts = Counter(one.text for one in root.iter(f"{SVG}text"))
    names = ["A cell", "Normal cell", "Reduction cell"]
    states = ["c(k-2)", "c(k-1)", *map(str, range(genotype.nodes)), "c(k)"]
    assert texts == operators(genotype) + Counter(names) + Counter(2 * states)
    for name, times in operators(genotype).items():
        assert svg.count(f">{name}<") == times


@each
def test_edges_join_what_the_genotype_says(genotype: Genotype) -> None:
    picture = picture_of(genotype)
    count = genotype.nodes + 3
    found = []
    for edge in picture.edges:
        (x0, y0), (x1, y1) = edge.path[0], edge.path[-1]
        ends = [[number for number, state in enumerate(picture.states)
                 if (state.box.x1 if end == 0 else state.box.x0) == x
                 and state.box.y0 < y < state.box.y1]
                for end, (x, y) in enumerate([(x0, y0), (x1, y1)])]  # fmt: skip
        assert [len(end) for end in ends] == [1, 1]
        found.append((ends[0][0], ends[1][0], edge.text))
    expected = []
    for first, cell in ((0, genotype.normal), (count, genotype.reduce)):
        for number, (name, source) in enumerate(cell):
            expected.append((first + source, first + 2 + number // 2, name))
        for node in range(genotype.nodes):
            expected.append((first + 2 + node, first + count - 1, ""))
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    "seeds", [range(10), pytest.param(range(10, 50), marks=pytest.mark.slow)], ids=["few", "more"]
)
@pytest.mark.parametrize("nodes", [3, 4])
@pytest.mark.parametrize("space", SPACES)
def test_no_label_lies_on_another_box(space: str, nodes: int, seeds: range) -> None:
    for seed in seeds:
        check_boxes(picture_of(random_genotype(seed, space, nodes)))


@pytest.mark.parametrize("genotype", [*CASES.values(), LARGEST], ids=[*CASES, "16_nodes"])
def test_no_edge_runs_through_a_box_of_others(genotype: Genotype) -> None:
    picture = picture_of(genotype, "title")
    check_boxes(picture)
    for edge in picture.edges:
        x, y = points(edge).T
        others = [other.label for other in picture.edges if other.label and other is not edge]
        for box in [*others, *(state.box for state in picture.states)]:
            inside = (x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)
            assert not inside.any()
        if edge.label:
            assert np.interp(edge.label.centre[0], x, y) == pytest.approx(edge.label.centre[1])


@each
def test_inputs_lie_in_order_on_the_left_and_edges_go_right(genotype: Genotype) -> None:
    picture = picture_of(genotype)
    for cell in (picture.states[: genotype.nodes + 3], picture.states[genotype.nodes + 3 :]):
        assert cell[0].box.x0 == cell[1].box.x0 < min(state.box.x0 for state in cell[2:])
        assert cell[0].box.y1 < cell[1].box.y0
        assert cell[-1].box.x1 == max(state.box.x1 for state in cell)
    for edge in picture.edges:
        assert (np.diff(points(edge)[:, 0]) >= 0).all()


def test_arrows_and_ports_of_one_box_are_apart() -> None:
    for genotype in CASES.values():
        edges = picture_of(genotype).edges
        for end in (0, -1):
            ports = sorted(edge.path[end] for edge in edges)
            for one, other in pairwise(ports):
                assert one[0] != other[0] or other[1] - one[1] > 5


def test_operators_are_told_apart_by_colour_and_by_line() -> None:
    styles = [STYLES.get(name, PLAIN) for name in (*BLOCKS, SKIP, "sep_conv_3x3")]
    sandglass, inverted, skip, plain = styles
    assert len({sandglass.colour, inverted.colour, plain.colour}) == 3
    assert min(sandglass.width, inverted.width) > plain.width
    assert len({sandglass.dashes, inverted.dashes, skip.dashes}) == 3
    assert plain.dashes == ()
    # A luminance of at most 0.183 has a contrast of 4.5 to white or more (WCAG 2).
    for style in styles:
        rgb = np.array([int(style.colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
        assert np.where(rgb > 0.04, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92) @ [
            0.2126, 0.7152, 0.0722,
        ] <= 0.183  # fmt: skip


@each
def test_the_svg_shows_the_layout(genotype: Genotype) -> None:
    picture = picture_of(genotype, "title")
    root = ElementTree.fromstring(cells_svg(genotype, "title"))
    assert root.attrib["viewBox"] == f"0 0 {picture.width} {picture.height}"
    paper, *rectangles = root.iter(f"{SVG}rect")
    assert (paper.attrib["fill"], paper.attrib["width"]) == ("#ffffff", str(picture.width))
    boxes = [*(edge.label for edge in picture.edges if edge.label),
             *(state.box for state in picture.states)]  # fmt: skip
    drawn = [[float(one.attrib[name]) for name in ("x", "y", "width", "height")]
             for one in rectangles]  # fmt: skip
    expected = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]
    np.testing.assert_allclose(drawn, expected, atol=0.11)
    paths, heads = list(root.iter(f"{SVG}path")), list(root.iter(f"{SVG}polygon"))
    assert len(paths) == len(heads) == len(picture.edges)
    lines = [tuple(map(float, re.findall(r"-?[\d.]+", one.attrib["d"]))) for one in paths]
    expected = [tuple(round(v, 1) for piece in edge.line for v in piece) for edge in picture.edges]
    assert sorted(lines) == sorted(expected)
    tips = [tuple(map(float, one.attrib["points"].split()[:2])) for one in heads]
    assert sorted(tips) == sorted(
        tuple(round(v, 1) for v in edge.path[-1]) for edge in picture.edges
    )
    dashes = Counter(one.attrib.get("stroke-dasharray", "") for one in paths)
    assert dashes["6 4"] == operators(genotype)[SKIP]
    assert dashes["11 3 3 3"] == operators(genotype)["inverted_residual"]


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])


@pytest.mark.parametrize("name", ["darts_v2", "sandglass", "same_sources", "16_nodes"])
def test_the_pixels_show_the_layout(name: str) -> None:
    genotype, scale = (LARGEST, 1) if name == "16_nodes" else (CASES[name], PIXELS)
    picture, pixels = picture_of(genotype, "title"), cells_picture(genotype, "title")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (picture.height * scale, picture.width * scale, 3)

    def at(x: float, y: float) -> np.ndarray:
        return pixels[int(y * scale), int(x * scale)].astype(int)

    def ink(box: Box) -> int:
        """Dark pixels in the middle of a box."""
        (x, y), half = box.centre, (box.x1 - box.x0) / 2 - 4
        part = pixels[int((y - 8) * scale) : int((y + 8) * scale),
                      int((x - half) * scale) : int((x + half) * scale)]  # fmt: skip
        return int((part.max(2) < 100).sum())

    for edge in picture.edges:
        tip = edge.path[-1]
        assert abs(at(tip[0] - 4, tip[1]) - rgb(edge.style.colour)).max() < 90
        if edge.label:
            assert (at(edge.label.x0 + 4, edge.label.centre[1]) == rgb(edge.style.fill)).all()
            assert ink(edge.label) > 3 * scale * len(edge.text)
        if edge.label and edge.style.width > 2 and not edge.style.dashes:
            for x, y in (points(edge)[2:-60:5] * scale).astype(int):
                if not edge.label.x0 - 3 < x / scale < edge.label.x1 + 3:
                    near = pixels[y - 1 : y + 2, x - 1 : x + 2].astype(int)
                    assert abs(near - rgb(edge.style.colour)).max(2).min() < 60
    for state in picture.states:
        assert ink(state.box) > 3 * scale
    assert (pixels[0] == 255).all()
    assert (pixels[:, -1] == 255).all()


def test_dashes_have_gaps() -> None:
    genotype = Genotype(((SKIP, 0), ("sep_conv_3x3", 1)), ((SKIP, 0), ("sep_conv_3x3", 1)))
    pixels = cells_picture(genotype).astype(int)
    for edge in picture_of(genotype).edges[:2]:
        assert edge.label is not None
        inner = points(edge)
        inner = inner[(inner[:, 0] > edge.path[0][0] + 2) & (inner[:, 0] < edge.label.x0 - 2)]
        drawn = [pixels[int(y * PIXELS), int(x * PIXELS)].max() < 200 for x, y in inner]
        changes = sum(one != other for one, other in pairwise(drawn))
        assert (changes >= 3) if edge.text == SKIP else all(drawn)


def test_a_png_opens() -> None:
    with PIL.Image.open(io.BytesIO(cells_png(DARTS_V2, "DARTS"))) as image:
        assert image.format == "PNG"
        assert (np.asarray(image.convert("RGB")) == cells_picture(DARTS_V2, "DARTS")).all()
        assert image.info["dpi"] == pytest.approx((192, 192), abs=0.1)


def test_a_title_is_escaped_and_wrapped() -> None:
    svg = cells_svg(DARTS_V2, "<&> \"a\" 'b' \x00\udcff é")
    root = ElementTree.fromstring(svg)
    assert root.findtext(f"{SVG}title") == "<&> \"a\" 'b' \\x00\\xff é"
    assert next(root.iter(f"{SVG}text")).text == "<&> \"a\" 'b' \\x00\\xff é"
    picture = picture_of(DARTS_V2, "word " * 60 + "x" * 200)
    lines = [heading for heading in picture.headings if heading.text not in
             ("Normal cell", "Reduction cell")]  # fmt: skip
    assert len(lines) > 5
    assert " ".join(line.text for line in lines[:-5]) in "word " * 60
    assert "".join(line.text.replace(" ", "") for line in lines) == "word" * 60 + "x" * 200
    for one, other in pairwise(picture.headings):
        assert other.place[1] - one.place[1] >= one.size
    assert lines[-1].place[1] < min(state.box.y0 for state in picture.states)
    # Pillow's letters do not reach the margin either.
    pixels = cells_picture(DARTS_V2, "word " * 60 + "W" * 200)
    assert (pixels[:, -10:] == 255).all()


def test_without_a_title_nothing_stands_above() -> None:
    root = ElementTree.fromstring(cells_svg(DARTS_V2))
    assert root.findtext(f"{SVG}title") == "Normal and reduction cell"
    assert next(root.iter(f"{SVG}text")).text == "Normal cell"
    assert picture_of(DARTS_V2).height < picture_of(DARTS_V2, "title").height


def test_equal_genotypes_have_equal_pictures() -> None:
    again = Genotype.of(DARTS_V2.to_plain())
    assert cells_svg(DARTS_V2) == cells_svg(again)
    assert (cells_picture(DARTS_V2) == cells_picture(again)).all()


def test_without_freetype_there_are_letters_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    bitmap = cells_picture(DARTS_V2, "é title")
    monkeypatch.undo()
    scalable = cells_picture(DARTS_V2, "é title")
    assert bitmap.shape == scalable.shape
    assert 0.1 < (bitmap < 100).sum() / (scalable < 100).sum() < 1


def test_few_edges_cross() -> None:
    """What the published cell can't do without: three nodes that have both inputs cross 3 times."""
    picture = picture_of(DARTS_V2)
    lines = [points(edge) for edge in picture.edges[: 3 * 4]]
    crossings = 0
    grid = np.linspace(0, picture.width, 2000)
    ys = [np.interp(grid, line[:, 0], line[:, 1], np.nan, np.nan) for line in lines]
    for one, other in combinations(ys, 2):
        signs = np.sign(one - other)
        signs = signs[np.isfinite(signs) & (signs != 0)]
        crossings += int((signs[1:] != signs[:-1]).sum())
    assert crossings == 3
