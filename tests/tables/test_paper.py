from pathlib import Path

import pytest

from mobilenext.models import MobileNetV2, MobileNeXt
from mobilenext.models.complexity import measure_complexity
from mobilenext.tables import published_rows, published_table, released_curves, tag_meanings
from mobilenext.tables.paper import TABLES


def test_every_number_has_a_tag_and_a_source() -> None:
    meanings = tag_meanings()
    for table in ("width_table", "identity_table"):
        for row in published_rows(table):
            assert "top1" in row.numbers
            for number in row.numbers.values():
                assert number.tag in meanings
                assert number.source


@pytest.mark.parametrize("model", ["mobilenext", "mobilenetv2"])
def test_widths_of_the_paper(model: str) -> None:
    rows = [row for row in published_rows("width_table") if row.model == model]
    assert [row.width for row in rows] == [1.4, 1.0, 0.75, 0.5, 0.35]
    top1 = [row.numbers["top1"].value for row in rows]
    assert top1 == sorted(top1, reverse=True)


def test_margins_of_the_paper() -> None:
    """+1.2, +1.7, +2.1, +2.3, +4.4 points over MobileNetV2, as the paper says in words."""
    top1 = {
        (row.model, row.width): row.numbers["top1"].value for row in published_rows("width_table")
    }
    margins = [
        round(top1["mobilenext", width] - top1["mobilenetv2", width], 1)
        for width in (1.4, 1.0, 0.75, 0.5, 0.35)
    ]
    assert margins == [1.2, 1.7, 2.1, 2.3, 4.4]


def test_uncertain_row_is_marked() -> None:
    (row,) = [r for r in published_rows("identity_table") if r.identity == pytest.approx(1 / 6)]
    assert row.numbers["top1"].tag == "I"


def test_summary_prints_tags(run, tmp_path: Path) -> None:
    done = run("scripts/summary.py", "model=mobilenext", "width=1.0")
    assert "3,535,416" in done.stdout
    assert "311.3 M" in done.stdout
    assert "74.02 % [S]" in done.stdout
    assert "[S] seen in a copy" in done.stdout
    assert not list(tmp_path.iterdir())
    done = run("scripts/summary.py", "model=mobilenetv2", "width=0.6")
    assert "no row for this network" in done.stdout


def test_other_tables_have_tags_and_sources_too() -> None:
    meanings = tag_meanings()
    for table in TABLES:
        rows = published_table(table)
        assert rows
        for row in rows:
            assert row.numbers, row.name
            for number in row.numbers.values():
                assert number.tag in meanings
                assert number.source
    names = {row.name: row.numbers for row in published_table("released_runs")}
    assert names["MobileNeXt-1.0"]["top1"].value == 74.018
    assert {n.tag for row in published_table("quantization")[:2] for n in row.numbers.values()} == {
        "R"
    }


def test_curves_of_the_released_log() -> None:
    curves = {curve.identity: curve for curve in released_curves()}
    assert curves[1.0].points[-1] == (199, 2.184, 73.98)
    assert curves[0.5].points[1] == (1, 5.805, 17.26)
    for curve in curves.values():
        assert curve.tag == "S"
        assert [point[0] for point in curve.points] == sorted(point[0] for point in curve.points)


def test_counted_costs_are_those_of_our_networks() -> None:
    for row in published_table("counts"):
        model, width = row.name.split() if " " in row.name else (row.name, "")
        network = {"mobilenext": MobileNeXt, "mobilenetv2": MobileNetV2}.get(model)
        if network is None:
            continue
        cost = measure_complexity(network(width_mult=float(width)), 224)
        assert cost.params / 1e6 == pytest.approx(row.numbers["params"].value, abs=0.006)
        assert cost.madds / 1e6 == pytest.approx(row.numbers["madds"].value, abs=0.6)
