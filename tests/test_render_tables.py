"""scripts/tables.py, as a user meets it."""

import re
from functools import cache
from pathlib import Path

import pytest

from mobilenext.render_tables import MARKED, counted, renew
from mobilenext.tables import Network, measured_results, tables_of, to_markdown
from mobilenext.tables.layout import COMPARISONS, LABELS
from tests.commands import REPO
from tests.results import fake_result, small_result, write_results
from tests.test_configs import choices, composed


@cache
def networks() -> list[Network]:
    return [counted(model) for model in composed(job="tables").models.values()]


def test_tables_of_runs(run, tmp_path: Path) -> None:
    runs = write_results(tmp_path, fake_result(), small_result(top1=60.0))
    done = run("scripts/tables.py", runs / "mobilenext" / f"{0:012x}", runs, "output=out")
    assert "| 74.00 |" in " ".join(done.stdout.split())
    assert "imagenette, 96 px, 8 epochs" in done.stdout
    named = {name: len(models) for name, (_, models) in COMPARISONS.items()}
    with_mobilenext = sum("mobilenext" in models for _, models in COMPARISONS.values())
    assert done.stdout.count("not measured") == 9 + 3 + sum(named.values()) - with_mobilenext
    names = {re.sub("_[0-9a-f]{6}$", "", path.stem) for path in (tmp_path / "out").iterdir()}
    assert names == {"width_table", "identity_table", "networks", "complexity", *named}
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".md", ".csv", ".tex"}


def test_the_measured_results_without_arguments(run, tmp_path: Path) -> None:
    done = run("scripts/tables.py")
    assert "imagenette, 96 px, 8 epochs" in done.stdout
    assert not list(tmp_path.iterdir())


def test_tables_in_a_file_are_renewed(run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: width_table -->\nold\n<!-- /table -->\nafter\n")
    run("scripts/tables.py", "update=[page.md]")
    text = page.read_text()
    assert text.startswith("before\n<!-- table: width_table -->\n**Width multipliers, ImageNet")
    assert text.endswith("<!-- /table -->\nafter\n")
    assert "old" not in text
    page.write_text("<!-- table: nothing -->\n<!-- /table -->")
    done = run("scripts/tables.py", "update=[page.md]", ok=False)
    assert "error: there is no table nothing: expected one of width_table" in done.stderr


@pytest.mark.parametrize("name", ["README.md", "docs/tables.md"])
def test_rendered_tables_are_fresh(name: str) -> None:
    """`make tables` renews them."""
    text = (REPO / name).read_text()
    all_tables = tables_of(measured_results(), networks())
    tables = {table.name: to_markdown(table) for table in all_tables}
    assert MARKED.search(text)
    assert renew(text, tables) == text
    if name != "README.md":
        assert set(MARKED.findall(text)) == set(tables)


def test_no_results(run, tmp_path: Path) -> None:
    (tmp_path / 'odd "name"').mkdir()
    done = run("scripts/tables.py", 'odd "name"', ok=False)
    assert done.returncode == 1
    assert 'error: odd "name": found no result.json' in done.stderr
    assert "Traceback" not in done.stderr


def test_every_network_is_counted_and_has_a_label() -> None:
    counted_models = {network.model for network in networks()}
    single = {Path(choice).name for choice in choices("model")} - {"timm", "torchvision"}
    assert counted_models == single == set(LABELS)
    assert {model for _, models in COMPARISONS.values() for model in models} <= set(LABELS)


def test_comparisons_have_the_networks_of_their_experiments() -> None:
    for name, (_, models) in COMPARISONS.items():
        text = (REPO / "configs" / "experiment" / f"{name}.yaml").read_text()
        listed = re.findall(r"model: (\S+)", text)[-1].split(",")
        assert {Path(choice).name for choice in listed} <= set(models), name
        assert set(models) - {Path(choice).name for choice in listed} <= {"mnext_l"}, name
