"""The report as text; tests/test_report.py opens it in a browser."""

import html
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

pytest.importorskip("matplotlib", reason="needs the extra report: matplotlib")

from mobilenext.genotype import random_genotype
from mobilenext.tables import read_results
from mobilenext.tables.charts import Series, chart
from mobilenext.tables.experiments import experiments
from mobilenext.tables.page import render_page
from mobilenext.tables.results import other_results
from mobilenext.tables.search_views import search_views
from tests.results import fake_cell, fake_result, fake_search, small_result, write_results

SERIES = [Series("ours", [(1, 50.0), (2, 60.0)], 1, errors=[None, 1.5], labels=["a", "b"]),
          Series("paper <S>", [(1, 55.0), (2, 66.0)], 2, dashes=2, hollow=True)]  # fmt: skip


def page(tmp_path: Path, *results: dict[str, Any]) -> str:
    return render_page(read_results([write_results(tmp_path, *results)]), "A title")


def test_a_chart_has_names_and_its_data() -> None:
    one = chart("c", "A & B", "epoch", "top-1, %", SERIES, whole_x=True)
    root = ElementTree.fromstring(one.svg)
    assert root.attrib["role"] == "img"
    names = {root.find(f".//*[@id='{name}']") for name in root.attrib["aria-labelledby"].split()}
    assert {getattr(name, "text", None) for name in names} == {
        "A & B", "top-1, % over epoch for ours, paper <S>"
    }  # fmt: skip
    assert one.rows == (
        ("ours", "1", "50.00"), ("ours", "2", "60.00 ± 1.50"),
        ("paper <S>", "1", "55.00"), ("paper <S>", "2", "66.00"),
    )  # fmt: skip
    assert "<text" in one.svg
    assert "paper &lt;S&gt;" in one.svg


def test_charts_take_the_colours_of_the_page_and_share_no_ids() -> None:
    one, two = (chart(name, "T", "x", "y", SERIES).svg for name in ("c1", "c2"))
    assert "var(--series-1)" in one
    assert "var(--series-2)" in one
    assert not re.search(r"#0[0-9]0[0-9]", one)
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, two)]
    assert not ids[0] & ids[1]
    for svg, known in zip((one, two), ids, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= known


def test_charts_are_the_same_each_time() -> None:
    assert chart("c", "T", "x", "y", SERIES) == chart("c", "T", "x", "y", SERIES)


def sections(text: str) -> dict[str, str]:
    """HTML of the page's sections by their headings, in the page's order."""
    parts = text.split("<section")[1:]
    return {re.findall(r"<h2[^>]*>(.*?)</h2>", part)[0]: part for part in parts}


PAPER = "Beside the paper"
FOLD = r'<details class="paper"( open)?><summary>([^<]*?)(?: <span.*)?</summary>'
TASK = "imagenette, 96 px, 8 epochs"
TITLES = [one.title for one in experiments()]


def test_the_paper_on_one_page_comes_with_commands_and_states(tmp_path: Path) -> None:
    found = sections(page(tmp_path, small_result(), small_result(model="mobilenetv2", top1=60.0)))
    text = html.unescape(found[PAPER])
    assert "The paper on one page" in text
    assert "60.00 / 74.00" in text
    assert 'Width multipliers <span class="quiet">– measured small</span>' in text
    assert all(command in text for one in experiments() for command in one.commands)
    assert "about 490 GPU-hours (H200, estimated)" in text
    assert "MobileNetV1-1.0" in text


def test_paper_points_and_ours_share_a_plot_only_where_they_compare(tmp_path: Path) -> None:
    found = sections(page(tmp_path, fake_result(), small_result(), small_result(width=0.5)))
    assert "MobileNeXt 1.0, ours" in found[PAPER]
    assert "MobileNeXt, paper [S]" in found[PAPER]
    assert "released log, identity 1 [S]" in found[PAPER]
    assert "<svg" in found[TASK]
    assert "paper [S]" not in found[TASK]
    assert "released log" not in found[TASK]


def test_own_runs_come_first_and_the_papers_numbers_are_folded(tmp_path: Path) -> None:
    found = sections(page(tmp_path, small_result()))
    assert list(found) == [TASK, PAPER, "Runs: speed, command, config"]
    folds = re.findall(FOLD, html.unescape(found[PAPER]))
    assert [name for _, name in folds] == [*TITLES, "Plots: accuracy over cost"]
    assert not any(is_open for is_open, _ in folds)
    assert "None of these runs may stand beside the paper" in found[PAPER]


def test_the_papers_numbers_are_open_where_a_run_stands(tmp_path: Path) -> None:
    found = sections(page(tmp_path, fake_result("bottleneck_one"), fake_result(width=0.75)))
    assert list(found) == [PAPER, "Runs: speed, command, config"]
    folds = re.findall(FOLD, html.unescape(found[PAPER]))
    assert [name for is_open, name in folds if is_open] == [
        "Width multipliers", "Where depthwise convolutions and shortcuts sit",
        "Plots: accuracy over cost, learning curves",
    ]  # fmt: skip
    assert [name for _, name in folds[:-1]] == TITLES
    assert "None of these runs" not in found[PAPER]


def captions(text: str) -> list[str]:
    return re.findall(r"<figcaption>(.*?)</figcaption>", text)


CURVES = ["Learning curves", "Training loss"]


def test_no_chart_of_one_point(tmp_path: Path) -> None:
    one = sections(page(tmp_path / "one", small_result(), small_result(seed=1, top1=60.0)))
    assert captions(one[TASK]) == CURVES
    lrs = [small_result(config__optimizer__lr=lr) for lr in (0.1, 0.05)]
    assert captions(sections(page(tmp_path / "cost", *lrs))[TASK]) == CURVES  # both cost the same
    two = sections(page(tmp_path / "two", small_result(), small_result(width=0.5)))
    assert captions(two[TASK]) == [
        "Top-1 at the last epoch over MAdds", "Top-1 at the last epoch over parameters", *CURVES
    ]  # fmt: skip
    short = small_result()
    short["history"] = short["history"][:1]
    assert captions(sections(page(tmp_path / "short", short))[TASK]) == []


def test_curves_and_runs_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    lrs = [small_result(config__optimizer__lr=lr, seed=s) for lr in (0.1, 0.05) for s in (0, 1)]
    found = sections(page(tmp_path, *lrs, small_result(model="mobilenetv2")))
    for lr in ("0.05", "0.1"):
        assert f">MobileNeXt 1.0, optimizer.lr {lr}</text>" in found[TASK]
        for seed in (0, 1):
            name = f"MobileNeXt 1.0, optimizer.lr {lr}, seed {seed}"
            assert f">{name}</a>" in found["Runs: speed, command, config"]
    assert ">MobileNetV2 1.0</text>" in found[TASK]
    # two lines of one network through its widths, not one through both recipes
    wider = [small_result(config__optimizer__lr=lr, width=0.5) for lr in (0.1, 0.05)]
    found = sections(page(tmp_path / "wider", *lrs, *wider))
    for lr in ("0.05", "0.1"):
        assert f">MobileNeXt, optimizer.lr {lr}</text>" in found[TASK]


def test_a_point_alone_is_named_with_its_width_and_has_no_label(tmp_path: Path) -> None:
    """Labels that say the same of each network would lie on each other."""
    alone = [small_result(), small_result(model="mobilenetv2", width=0.5)]
    found = sections(page(tmp_path / "alone", *alone))
    assert captions(found[TASK])[0] == "Top-1 at the last epoch over MAdds"
    charts = found[TASK].partition("Learning curves")[0]
    assert ">MobileNetV2 0.5</text>" in charts
    assert not re.search(r"fill: var\(--series[^>]*>0.5</text>", charts)
    line = sections(page(tmp_path / "line", *alone, small_result(width=0.5)))
    assert re.search(r"fill: var\(--series[^>]*>0.5</text>", line[TASK])


def test_runs_of_cells_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    typed = [f"random:{n}:darts_sandglass" for n in (2, 0, 1)]
    cells = [fake_cell(random_genotype(n, "darts_sandglass"), name)
             for n, name in zip((2, 0, 1), typed, strict=True)]  # fmt: skip
    runs = sections(page(tmp_path, *cells))["Runs: speed, command, config"]
    assert re.findall(r"genotype (random:\d)\S*</a>", runs) == ["random:0", "random:1", "random:2"]


def test_runs_are_linked_to_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "javascript:x y#z"
    results = read_results([write_results(tmp_path, small_result(), small_result(model=odd))])
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    for folder, up in ((tmp_path / "out", "../"), (Path("out"), "../"), (None, "")):
        hrefs = set(re.findall(r'<a href="([^#"][^"]*)"', render_page(results, "T", folder)))
        assert hrefs == {f"{up}runs/mobilenext/{0:012x}/",
                         f"{up}runs/javascript%3Ax%20y%23z/{1:012x}/"}  # fmt: skip
        for href in hrefs:
            assert ((folder or Path()) / unquote(href) / "result.json").is_file()


def test_a_legend_too_large_for_the_chart_lies_below_it() -> None:
    def height(names: list[str]) -> float:
        series = [Series(name, [(1, 2.0), (2, 3.0)]) for name in names]
        box = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', chart("c", "T", "x", "y", series).svg)
        assert box is not None
        return float(box[1])

    small = height(["a", "b", "c", "d"])
    assert height(["a"]) == small
    assert height(["a", "b", "c", "d", "e"]) > small
    assert small < height(["a", "b" * 50]) < height(["a", "b " * 50])


def test_what_a_page_tells_of_a_run(tmp_path: Path) -> None:
    text = page(tmp_path, small_result(command="python train.py width=1.0"))
    for words in ("python train.py width=1.0", "image_size: 96", "1,000", "2.0%", "8 × A GPU",
                  "01234567", "torch 2.14.1"):  # fmt: skip
        assert words in text


def test_nothing_that_a_result_says_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'"
    text = page(
        tmp_path,
        small_result(command=evil, model=evil.replace("/", "-"), git_commit=evil, precision=evil),
        small_result(seed=1, config__name=evil, config__data__name=evil),
    )
    assert "<script" not in text
    assert "&lt;script&gt;" in text


SEARCH = "Search for cells"
CELL, OTHER = random_genotype(0, "darts_sandglass"), random_genotype(1, "darts_sandglass")


def searched_page(tmp_path: Path, *results: dict[str, Any]) -> str:
    runs = write_results(tmp_path, *results)
    searches = other_results([runs], "search")
    return render_page(read_results([runs], True), "T", tmp_path, searched=searches)


def test_searches_show_their_cells_and_how_they_went(tmp_path: Path) -> None:
    text = searched_page(tmp_path, fake_search(CELL, 3, command="python scripts/search.py"))
    found = sections(text)
    assert list(found) == [SEARCH, PAPER]
    assert "0 finished runs and 1 search." in text
    part = found[SEARCH]
    (title,) = re.findall(r"<h3>(.*?)</h3>", part)
    assert re.fullmatch(r"DARTS \+ sandglass, second order, seed 3: genotype [0-9a-f]{6}", title)
    assert captions(part) == [
        "The normal and the reduction cell that it found",
        "Entropy of the alphas, and skip connections of the normal cell",
        "Strongest operator of each edge of the normal cell (not counting none)",
    ]
    assert part.count("<svg ") == 3
    assert '<th scope="row" class="words">entropy over its maximum</th><td>3</td><td>0.70</td>' in (
        part.replace("\n", "")
    )
    assert ">skip connections, of 8 operators</th><td>2</td><td>0.25</td>" in part
    assert ">c(k-2) to 0, at the end sandglass</th><td>1</td><td>0.50</td>" in part
    assert ">3</td>" in part
    assert f'href="runs/supernet/{0:012x}/"' in part
    assert "python scripts/search.py" in part


def test_trained_cells_have_learning_curves_of_their_own(tmp_path: Path) -> None:
    cells = [fake_cell(CELL, "/a/genotype.yaml", seed, 96 + seed) for seed in (0, 1)]
    others = [fake_cell(OTHER, "random:1:darts_sandglass"), small_result(), small_result(seed=1)]
    text = searched_page(tmp_path, *cells, *others, fake_search(CELL))
    found = sections(text)
    assert list(found) == [TASK, SEARCH, PAPER, "Runs: speed, command, config"]
    assert captions(found[TASK]) == CURVES
    assert "cells" not in found[TASK]
    task = "cifar10, 32 px, 600 epochs, 36 channels, 20 cells"
    assert captions(found[SEARCH])[:2] == [
        f"Learning curves of cells, means of rows: {task}",
        f"Training loss of cells, means of rows: {task}",
    ]
    row = ">DARTS + sandglass, searched, second order, 50 epochs</th><td>2</td><td>96.50</td>"
    assert row in found[SEARCH]
    runs = found["Runs: speed, command, config"]
    assert re.search(r">network of DARTS&#39; cells, genotype [0-9a-f]{6}, seed 1</a>", runs)
    assert ">network of DARTS&#39; cells, genotype random:1:darts_sandglass, seed 0</a>" in runs


def test_no_more_searches_are_drawn_than_a_page_bears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilenext.tables.search_views.MOST_DRAWN", 2)
    monkeypatch.setattr("mobilenext.tables.page.MOST_DRAWN", 2)
    bad = fake_search(CELL, 0) | {"genotype": {"normal": "<script>"}}
    short = [fake_search(CELL, seed, architecture=None) for seed in range(1, 5)]
    part = sections(searched_page(tmp_path, bad, *short))[SEARCH]
    assert part.count("<h3>") == 2
    assert "<li>2 more searches stand in the table only.</li>" in part
    assert "left out: genotype: expected entries normal and reduce" in part
    assert "<script" not in part


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": None}, {"architecture": [{}, {}]}, {"operators": ["<b>"]},
        {"architecture": "xx"}, {"operators": None}, {"operators": [[]]}, {"hardware": 3},
        {"architecture": [{"epoch": n, "entropy": float("inf"), "skips": 0} for n in (1, 2)]},
        {"architecture": [{"epoch": n, "entropy": 1, "skips": 0, "alphas": [[[1], [2]]]}
                          for n in (1, 2)]},
        {"architecture": [{"epoch": n, "entropy": 1, "skips": 0, "alphas": [[[1e999] * 9] * 14]}
                          for n in (1, 2)]},
    ],
)  # fmt: skip
def test_a_course_that_is_no_course_is_not_drawn(tmp_path: Path, changes: dict[str, Any]) -> None:
    part = sections(searched_page(tmp_path, fake_search(CELL) | changes))[SEARCH]
    drawn = captions(part)
    assert drawn[0] == "The normal and the reduction cell that it found"
    assert len(drawn) == (3 if "hardware" in changes else 1)


def test_long_searches_are_thinned_out() -> None:
    one = fake_search(CELL)
    entries = [one["architecture"][0] | {"epoch": n} for n in range(1, 602)]
    (view,) = search_views({Path("/a/result.json"): one | {"architecture": entries}}, str)
    epochs = [row[1] for row in view.charts[0].rows[: len(view.charts[0].rows) // 2]]
    assert (len(epochs), epochs[0], epochs[-1]) == (56, "1", "601")


def test_a_dollar_in_a_name_is_no_formula() -> None:
    for name in ("$a^b$ and $", "a" * 60 + r"$\nothing$"):
        one = chart("c", "T", "x", "y", [Series(name, [(1, 1)]), Series("b", [(1, 1)])])
        assert "$" in one.svg


def test_results_too_old_for_curves(tmp_path: Path) -> None:
    old = small_result()
    for key in ("history", "images_per_second", "hardware", "versions"):
        del old[key]
    assert "Learning curves" not in page(tmp_path, old)
