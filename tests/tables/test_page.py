"""The report as text; tests/test_report.py opens it in a browser."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="needs the extra report: matplotlib")

from mobilenext.tables import read_results
from mobilenext.tables.charts import Series, chart
from mobilenext.tables.page import render_page
from tests.results import fake_result, small_result, write_results

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


def test_paper_points_and_ours_share_a_plot_only_where_they_compare(tmp_path: Path) -> None:
    text = page(tmp_path, fake_result(), small_result(), small_result(seed=1, top1=60.0))
    paper, *others = text.split("<section")[1:]
    assert "MobileNeXt, ours" in paper
    assert "MobileNeXt, paper [S]" in paper
    assert "released log, identity 1 [S]" in paper
    (small,) = [part for part in others if "imagenette, 96 px" in part]
    assert "paper [S]" not in small
    assert "released log" not in small


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


def test_results_too_old_for_curves(tmp_path: Path) -> None:
    old = small_result()
    for key in ("history", "images_per_second", "hardware", "versions"):
        del old[key]
    assert "Learning curves" not in page(tmp_path, old)
