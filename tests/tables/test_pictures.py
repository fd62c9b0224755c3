"""The README's picture: what it draws, and that it is the one in docs/."""

import re
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="needs the extra report: matplotlib")

from mobilenext.tables import Group, group_results, measured_results, read_results
from mobilenext.tables.charts import DARK, LIGHT, Palette
from mobilenext.tables.pictures import accuracy_panels, accuracy_pictures
from tests.commands import REPO
from tests.results import fake_result, small_result, write_results


def groups(folder: Path, *results: dict[str, Any]) -> list[Group]:
    return group_results(read_results([write_results(folder, *results)]))


def both(width: float, **changes: Any) -> list[dict[str, Any]]:
    return [small_result(model=model, width=width, **changes)
            for model in ("mobilenext", "mobilenetv2")]  # fmt: skip


def test_the_recipe_with_most_widths_is_drawn(tmp_path: Path) -> None:
    few = both(1.0, config__optimizer__lr=0.5)
    many = [*both(1.0, top1=50.0), *both(0.5, top1=40.0), small_result(identity=0.5, top1=1.0)]
    own, paper = accuracy_panels(groups(tmp_path, *few, *many, small_result(model="kernel_5")))
    assert own.title == "Measured: imagenette, 96 px, 8 epochs, 1 seed"
    assert [one.name for one in own.series] == ["MobileNeXt", "MobileNetV2"]
    assert [y for one in own.series for _, y in one.points] == [40.0, 50.0, 40.0, 50.0]
    assert [one.labels_above for one in own.series] == [True, False]
    assert paper.title == "ImageNet, 224 px: the paper"
    assert all(one.hollow and len(one.points) == 5 for one in paper.series)


def test_runs_that_compare_share_the_papers_plot(tmp_path: Path) -> None:
    found = groups(tmp_path, fake_result(), fake_result(seed=1, top1=75.0))
    (panel,) = accuracy_panels(found)
    results = [result for group in found for result in group.results]
    words = described(accuracy_pictures(results)["accuracy-dark.svg"])
    assert "MobileNeXt 1.0, ours 74.50 at 311.265 M (± 0.71)" in words
    assert panel.title == "ImageNet, 224 px: the paper and ours"
    ours, *paper = panel.series
    assert (ours.name, ours.hollow, ours.points[0][1]) == ("MobileNeXt 1.0, ours", False, 74.5)
    assert len(paper) == 2


def described(text: str) -> str:
    (words,) = re.findall(r"<desc[^>]*>(.*?)</desc>", text)
    return unescape(words)


@pytest.mark.parametrize(("name", "palette"), [("light", LIGHT), ("dark", DARK)])
def test_the_picture_in_the_docs_is_fresh(name: str, palette: Palette) -> None:
    """Its description has every point; lines may differ a little with matplotlib's version."""
    text = (REPO / "docs" / "pictures" / f"accuracy-{name}.svg").read_text()
    ElementTree.fromstring(text)
    expected = accuracy_pictures(measured_results())[f"accuracy-{name}.svg"]
    assert described(text) == described(expected), "make tables draws it"
    assert "72.56 at 56.963 M (± 1.59)" in described(text)
    assert all(colour in text for colour in (palette.text, palette.lines, *palette.series[:2]))
    assert "var(" not in text
    assert "currentColor" not in text
