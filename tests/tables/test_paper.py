from pathlib import Path

import pytest

from mobilenext.tables import published_rows, tag_meanings


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
