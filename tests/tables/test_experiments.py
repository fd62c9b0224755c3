"""The paper on one page: commands, costs, states and numbers of its experiments."""

import re
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml

from mobilenext.tables import Table, measured_results, read_results, tables_of
from mobilenext.tables.experiments import (
    IN_PART,
    MEASURED,
    SMALL,
    Cost,
    Experiment,
    Speed,
    cost_words,
    experiment_pages,
    experiments,
    hours_words,
    overview,
    standing,
    tables_in,
)
from mobilenext.tables.results import DETECTION, LATENCY, QUANTIZED, SEARCH, other_results
from mobilenext.tables.results import MEASURED as FOLDER
from tests.commands import REPO
from tests.composed import composed_command, composed_untyped
from tests.results import fake_result, small_result, write_results


def named(name: str) -> Experiment:
    return next(one for one in experiments() if one.name == name)


@pytest.mark.parametrize("one", experiments(), ids=lambda one: one.name)
def test_commands_compose(one: Experiment) -> None:
    assert one.commands
    for command in one.commands:
        assert composed_command(command)[1] is not None


def sweep(command: str) -> tuple[int, Any]:
    """Number of a sweep's jobs, and the config of its first one."""
    (name,) = re.findall(r"experiment=(\w+)", command)
    file = REPO / "configs" / "experiment" / f"{name}.yaml"
    params = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]
    jobs = prod(len(str(value).split(",")) for value in params.values())
    return jobs, composed_command(command)[1]


def test_costs_are_those_of_the_configs() -> None:
    for one in experiments():
        if not one.costs or one.name in ("search", "widths"):
            continue
        jobs = [sweep(command) for command in one.commands]
        assert sum(count for count, _ in jobs) == sum(cost.trainings for cost in one.costs), one
        (config,) = {
            (job.epochs, job.data.global_batch_size, getattr(job, "norm_batch", None))
            for _, job in jobs
        }
        for cost in one.costs:
            assert cost.epochs == config[0], one.name
            assert cost.images_per_pass == (config[2] or config[1]), one.name
    (official, _) = [sweep(command) for command in named("widths").commands]
    assert official[0] == sum(cost.trainings for cost in named("widths").costs)
    searches, search = sweep(named("search").commands[0])
    found, trained = named("search").costs
    assert (found.trainings, found.epochs) == (searches, search.epochs)
    assert found.images_per_pass == search.data.global_batch_size
    train = composed_untyped("model=darts", "experiment=darts_train", "data.root=/data")
    assert (trained.trainings, trained.epochs) == (3 * searches, train.epochs)
    assert trained.images_per_pass == train.data.global_batch_size


def test_hours() -> None:
    speed = Speed("H200", host_ms=36.0, image_ms=0.5)
    launches = Cost(2, 10, 1_000_000, 100, operators=1.0, activations=0.1)
    assert launches.hours(speed) == pytest.approx(2 * 10 * 10_000 * 36 / 3.6e6)
    moves = Cost(1, 10, 1_000_000, 100, operators=1.0, activations=1.0, passes=2)
    assert moves.hours(speed) == pytest.approx(10 * 10_000 * 2 * (2 * 100 * 0.5) / 3.6e6)
    assert [hours_words(value) for value in (0, 13.9, 487.2, 1234.0)] == ["", "14", "490", "1,200"]
    assert cost_words(named("latency")).startswith("Cost: minutes on the device")
    assert "10 trainings, about 490 GPU-hours (H200, estimated)" in cost_words(named("widths"))


def all_tables(folder: Path, *results: dict[str, Any]) -> list[Table]:
    return tables_of(read_results([write_results(folder, *results)]))


@pytest.fixture(scope="module")
def measured() -> list[Table]:
    others = [
        [*other_results([FOLDER], kind).values()]
        for kind in (QUANTIZED, LATENCY, DETECTION, SEARCH)
    ]
    return tables_of(measured_results(), (), *others)


def test_every_table_of_the_paper_belongs_to_one_experiment(measured: list[Table]) -> None:
    for table in measured:
        owners = [
            one.name
            for one in experiments()
            if any(fnmatchcase(table.name, pattern) for pattern in one.tables)
        ]
        assert len(owners) == (table.task is None), (table.name, owners)
    assert all(tables_in(one, measured) for one in experiments() if one.name != "layout")


def test_without_runs_nothing_is_measured(tmp_path: Path) -> None:
    tables = all_tables(
        tmp_path, fake_result(config__epochs=20, data="digits", config__data__name="digits")
    )
    states = {one.name: standing(one, tables).state for one in experiments()}
    assert {name: state for name, state in states.items() if state != "not measured"} == {
        "layout": "counted"
    }


def test_small_runs_stand_where_the_papers_do_not(tmp_path: Path) -> None:
    runs = [small_result(model="mobilenetv2", top1=60.0), small_result(top1=62.0)]
    found = standing(named("widths"), all_tables(tmp_path / "small", *runs))
    assert (found.state, found.ours) == (SMALL, "60.00 / 62.00")
    assert found.source == "imagenette, 96 px, 8 epochs"
    assert found.paper == "72.3 [S] / 74.02 [S]"
    half = standing(
        named("widths"),
        all_tables(tmp_path / "half", *runs[:1], small_result(top1=62.0, width=0.5)),
    )
    assert (half.state, half.ours) == ("not measured", "")
    halves: list[dict[str, Any]] = [small_result(model=m, top1=50.0 + n, width=0.5)
              for n, m in enumerate(("mobilenetv2", "mobilenext"))]  # fmt: skip
    pair = all_tables(tmp_path / "pair", halves[0], small_result(top1=70.0))
    assert standing(named("extra_depthwise"), pair).ours == ""
    both = standing(named("extra_depthwise"), all_tables(tmp_path / "both", *runs[:1], *halves))
    assert both.ours == "50.00 / – / 51.00"
    assert both.source == "imagenette, 96 px, 8 epochs, width 0.5"
    full = standing(named("widths"), all_tables(tmp_path / "full", *runs, fake_result(top1=73.5)))
    assert (full.state, full.ours, full.source) == (IN_PART, "– / 73.50", "")
    runs += [fake_result(top1=73.5), fake_result("mobilenetv2", top1=72.0)]
    whole = standing(named("widths"), all_tables(tmp_path / "whole", *runs))
    assert (whole.state, whole.ours) == (MEASURED, "72.00 / 73.50")


def test_partial_shortcuts_name_their_width(tmp_path: Path) -> None:
    runs = [small_result(width=0.5, identity=1 / n, top1=60.0 + n) for n in (1, 2)]
    found = standing(named("identity"), all_tables(tmp_path / "identity", *runs))
    assert found.ours == "61.00 / 62.00 / – / –"
    assert found.source == "imagenette, 96 px, 8 epochs, width 0.5"


def test_what_came_with_the_source(measured: list[Table]) -> None:
    table = overview(measured)
    states = {row[0]: row[2] for row in table.rows}
    assert states["Other mobile networks"] == "not measured"
    assert states["Latency"] == "measured, other device"
    assert list(states.values()).count(SMALL) == len(states) - 3
    for row in table.rows:
        count = row[1].count(" / ")
        assert row[3].count(" / ") == count, row
        assert row[4].count(" / ") == (count if row[4] else 0), row
    assert any(note.startswith("[R] recollected") for note in table.footnotes)


def test_the_page_has_all_commands_and_tables(measured: list[Table]) -> None:
    text = experiment_pages(measured)
    for one in experiments():
        assert f"## {one.title}\n\n{one.question}" in text
        assert all(f"\n{command}\n" in text for command in one.commands)
        assert (REPO / "docs" / one.page).is_file()
    for table in measured:
        assert (f"**{table.title}**" in text) == (table.task is None)
