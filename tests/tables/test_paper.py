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
            assert row.numbers or any("[S2]" in note for note in row.notes), row.name
            for number in row.numbers.values():
                assert number.tag in meanings
                assert number.source
    names = {row.name: row.numbers for row in published_table("released_runs")}
    for name, best, last in (
        ("MobileNeXt-1.0", (74.022, 91.646), (74.018, 91.610)),
        ("MobileNeXt-1.0, identity 1/2", (74.092, 91.812), (74.024, 91.828)),
        ("mnext_s", (76.056, 92.744), (76.046, 92.770)),
        ("mnext_l", (76.586, 92.934), (76.390, 93.046)),
    ):
        run = names[name]
        assert (run["best_top1"].value, run["best_top5"].value) == best
        assert (run["top1"].value, run["top5"].value) == last
    assert {n.tag for row in published_table("quantization")[:2] for n in row.numbers.values()} == {
        "R"
    }


def test_curves_of_the_released_log() -> None:
    curves = {curve.identity: curve for curve in released_curves()}
    assert curves[1.0].points[-1] == (199, 2.184, 73.98)
    assert curves[1.0].points[5] == (49, 2.988, 59.72)
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
        assert cost.params / 1e6 == pytest.approx(row.numbers["params"].value, abs=0.0005)
        assert cost.madds / 1e6 == pytest.approx(row.numbers["madds"].value, abs=0.05)


def test_what_is_compared_with_efficientnet() -> None:
    """A fifth fewer parameters and 0.4 points more: mnext_l has both, mnext_s neither."""
    rows = {row.model: row for row in published_table("state_of_the_art") if row.model}
    b0 = rows["efficientnet_b0"].numbers

    def change(model: str) -> tuple[float, float]:
        ours = rows[model].numbers
        params = 100 * (ours["params"].value / b0["params"].value - 1)
        return round(params), round(ours["top1"].value - b0["top1"].value, 2)

    assert change("mnext_l") == (-19, 0.4)
    assert change("mnext_s") == (-26, -0.25)
    claim = rows["mnext_l"].numbers
    assert (claim["params_change"].value, claim["top1_change"].value) == (-20, 0.4)
    assert {claim[name].tag for name in ("params_change", "top1_change")} == {"S2"}
    assert claim["top1_change"].source == "a review of the paper"
    assert not [
        row for row in rows.values() if "top1_change" in row.numbers and row.model != "mnext_l"
    ]
    assert any("20 % fewer" in note and "[S2]" in note for note in rows["mnext_l"].notes)


def test_what_was_read_and_what_was_inferred_of_the_ablations() -> None:
    """Words are no numbers: "5 points below", "1 above" are inferences, "worse than" a remark."""
    rows = {row.model: row for row in published_table("ablation")}
    for model, top1 in (("bottleneck_one", 69), ("bottleneck_two", 70)):
        assert (rows[model].numbers["top1"].value, rows[model].numbers["top1"].tag) == (top1, "I")
    for model in ("thin_ends", "thin_ends_depthwise_stride"):
        assert "top1" not in rows[model].numbers
        assert any("worse than (b)" in note for note in rows[model].notes)
    (activation,) = published_table("activation")
    assert activation.model == "activation_last"
    assert any("hurts" in note for note in activation.notes)
    extra, plain = published_table("extra_depthwise")
    assert (extra.numbers["top1"].value, plain.numbers["top1"].value) == (73, 74)
    assert {row.numbers["top1"].source for row in (extra, plain)} == {"a review of the paper"}


def test_other_readings_name_the_code_that_was_counted() -> None:
    sources = [
        {number.source for number in row.numbers.values()}
        for row in published_table("other_readings")
    ]
    assert len(sources) == 20
    for number, owner in enumerate(("arXiv", "d-li14", "cjnjuwhy", "RangiLyu")):
        for (source,) in sources[5 * number : 5 * number + 5]:
            assert owner in source
            assert "yitu" not in source


def test_the_two_rules_of_average_precision_are_kept_apart() -> None:
    for row in published_table("detection"):
        key = "coco_ap" if "COCO" in row.name else "map_11point"
        assert {name for name in row.numbers if "ap" in name} - {"params"} == {key}


def test_the_device_of_the_latencies() -> None:
    """The README names the Pixel 4 in the table after that of the identity tensor multipliers."""
    for row in published_rows("identity_table"):
        assert any("Pixel 4" in note and "no device" in note for note in row.notes)
    assert all("Pixel 4" in row.name for row in published_table("latency_ranges"))


def test_the_repositorys_own_counter() -> None:
    rows = {row.name: row.numbers for row in published_table("counts")}
    counted = [
        rows[f"mobilenext {w}"]["madds_own_counter"].value for w in (1.4, 1.0, 0.75, 0.5, 0.35)
    ]
    assert counted == [596.3, 317.0, 212.2, 106.1, 77.3]
