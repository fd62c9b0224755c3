"""scripts/tables.py, as a user meets it."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

import mobilenext.jobs.tables as job
from mobilenext.errors import InputError
from mobilenext.genotype import random_genotype
from mobilenext.jobs.tables import MARKED, counted, renew
from mobilenext.runtime.distributed import Process
from mobilenext.tables import (
    Group,
    Network,
    group_results,
    measured_results,
    tables_of,
    to_markdown,
)
from mobilenext.tables.experiments import experiment_pages, experiments, overview, tables_in
from mobilenext.tables.labels import authors_dropout, labels
from mobilenext.tables.results import (
    DETECTION,
    LATENCY,
    MEASURED,
    QUANTIZED,
    SEARCH,
    other_results,
)
from tests.commands import REPO
from tests.results import fake_cell, fake_result, fake_search, small_result, write_results
from tests.test_configs import choices, composed

NO_DROPOUT = {"thin_ends", "thin_ends_depthwise_stride", "extra_depthwise"}
"""Networks that have none in the authors' code."""

NO_ONE_COST = {"darts", "supernet"}
"""Networks that cost what their genotype or their space makes them."""


CPU = Process(torch.device("cpu"))


@cache
def networks() -> list[Network]:
    return [counted(model) for model in composed(job="tables").models.values()]


def test_tables_of_runs(run, tmp_path: Path) -> None:
    runs = write_results(tmp_path, fake_result(), small_result(top1=60.0))
    done = run("scripts/tables.py", runs / "mobilenext" / f"{0:012x}", runs, "output=out")
    assert "| 74.00 |" in " ".join(done.stdout.split())
    assert done.stdout.startswith("**Networks: imagenette, 96 px, 8 epochs")
    named = {name: len(one.networks) for name, one in labels().comparisons.items()}
    shown = [name for name, one in labels().comparisons.items() if "mobilenext" in one.networks]
    of_shown = sum(named[name] - 1 for name in shown)
    assert done.stdout.count("not measured") == 9 + 3 + of_shown
    left_out = [name for name in named if name not in shown] + [
        "state_of_the_art",
        "detection_paper",
        "search_paper",
        "int8_paper",
        "latency_paper",
    ]
    assert f"(paper=true prints them too): {', '.join([*left_out, 'complexity'])}\n" in done.stdout
    names = {re.sub("_[0-9a-f]{6}$", "", path.stem) for path in (tmp_path / "out").iterdir()}
    assert names == {"width_table", "identity_table", "networks", "complexity", "detection_paper",
                     "search_paper", "int8_paper", "latency_paper", "state_of_the_art", "paper",
                     *named}  # fmt: skip
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".md", ".csv", ".tex"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The job in this process and in a fresh folder, which counts each network once for all."""
    known = {network.model: network for network in networks()}
    monkeypatch.setattr(job, "counted", lambda model: known[model.name])
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: job.tables(composed(*overrides, job="tables"), CPU)


def test_the_measured_results_without_arguments(
    here: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here()
    assert "imagenette, 96 px, 8 epochs" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_papers_tables_are_printed_where_a_run_stands_or_if_asked_for(
    here: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path, small_result())
    all_tables = here("runs=[runs]")["tables"]
    text = capsys.readouterr().out
    assert "ImageNet at 224 px" not in text
    assert "not measured" not in text
    *_, last = text.splitlines()
    assert last.startswith("Not printed, as none of these runs stands in them (paper=true prints")
    assert last.endswith("complexity")
    assert {"width_table", "complexity", *labels().comparisons} < set(all_tables)
    assert here("runs=[runs]", "paper=true")["tables"] == all_tables
    text = capsys.readouterr().out
    assert "Not printed" not in text
    elsewhere = {"paper", "experiments"}  # `tables.py paper` prints them
    assert all(all_tables[name].rstrip() in text for name in all_tables.keys() - elsewhere)
    assert text.startswith("**Networks: imagenette")


def test_searches_and_their_cells(
    here: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = random_genotype(0, "darts_sandglass")
    odd = fake_search(cell, 1) | {"genotype": None}
    write_results(tmp_path, fake_search(cell), odd)
    here("runs=[runs]")
    text = capsys.readouterr().out
    assert text.startswith("**Searches: cifar10, 32 px**")
    assert "result.json: left out: genotype: expected entries normal and reduce" in text
    assert "Trained cells" not in text
    write_results(tmp_path / "more", fake_cell(cell, "/x/genotype.yaml"))
    here("runs=[runs,more]")
    text = capsys.readouterr().out
    assert "**Trained cells: cifar10, 32 px, 600 epochs" in text
    assert "**Search: the paper and DARTS, CIFAR-10**" in text
    assert "**Networks" not in text


def test_the_paper_on_one_page(
    here: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path, small_result(), small_result(model="mobilenetv2", top1=60.0))
    here("runs=[paper,runs]")
    text = capsys.readouterr().out
    assert text.startswith("**The paper on one page**\n\n| experiment")
    assert "60.00 / 74.00" in text
    assert "\n## Width multipliers\n" in text
    assert "**Networks: imagenette" not in text
    here("runs=[paper]")
    assert "69.85 ± 1.60 / 72.56 ± 1.59" in capsys.readouterr().out


def test_pictures_are_drawn(here: Callable[..., Any], tmp_path: Path) -> None:
    here("pictures=pictures")
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"accuracy-light.svg", "accuracy-dark.svg"}


def test_tables_in_a_file_are_renewed(here: Callable[..., Any], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: width_table -->\nold\n<!-- /table -->\nafter\n")
    here("update=[page.md]")
    text = page.read_text()
    assert text.startswith("before\n<!-- table: width_table -->\n**Width multipliers, ImageNet")
    assert text.endswith("<!-- /table -->\nafter\n")
    assert "old" not in text
    page.write_text("<!-- table: nothing -->\n<!-- /table -->")
    with pytest.raises(InputError, match=r"no table nothing: expected one of .*width_table"):
        here("update=[page.md]")


RENDERED = ("docs/paper.md", "docs/results.md", "docs/networks.md")
"""Pages whose tables `make tables` renews."""


def test_rendered_tables_are_fresh() -> None:
    kinds = (QUANTIZED, LATENCY, DETECTION, SEARCH)
    others = [[*other_results([MEASURED], kind).values()] for kind in kinds]
    all_tables = tables_of(measured_results(), networks(), *others)
    tables = {table.name: to_markdown(table) for table in (*all_tables, overview(all_tables))}
    tables["experiments"] = experiment_pages(all_tables)
    shown = []
    for name in RENDERED:
        text = (REPO / name).read_text()
        assert MARKED.search(text), name
        assert renew(text, tables) == text, f"{name}: make tables renews it"
        shown += MARKED.findall(text)
    papers = {table.name for one in experiments() for table in tables_in(one, all_tables)}
    assert sorted([*shown, *papers]) == sorted(tables)
    command = (REPO / "Makefile").read_text()
    assert f"'update=[{','.join(RENDERED)}]' pictures=docs/pictures" in command


def pooled(protocol: str) -> tuple[list[Group], float, int]:
    """Rows of a protocol with several seeds, their pooled standard deviation, its freedom."""
    rows = [g for g in group_results(measured_results()) if g.first.protocol.short == protocol]
    degrees = sum(len(row.seeds) - 1 for row in rows)
    squares = sum((result.top1 - row.mean) ** 2 for row in rows for result in row.results)
    return rows, (squares / degrees) ** 0.5, degrees


def chance(deviation: float, degrees: int, seeds: int, comparisons: int = 1) -> float:
    """How far two means of so many seeds differ by chance at 95 %, the largest of comparisons."""
    quantile = stats.t.ppf((1 + 0.95 ** (1 / comparisons)) / 2, degrees)
    return float(quantile) * deviation * (2 / seeds) ** 0.5


def test_what_the_results_say_of_chance() -> None:
    text = (REPO / "docs" / "results.md").read_text()
    rows, deviation, degrees = pooled("174ead")
    assert (len(rows), degrees) == (18, 18)
    assert f"a standard deviation of {deviation:.1f} points (pooled over the 18 rows" in text
    assert f"by up to {chance(deviation, degrees, 2):.1f} points at 95 % (Student's t)" in text
    assert f"from MobileNeXt by up to {chance(deviation, degrees, 2, 17):.1f} (Šidák)" in text
    mixed = [row for row in rows if len({r.conditions for r in row.results}) > 1]
    assert f"in {len(mixed)} rows it includes another machine" in text
    means = {row.first.model: row.mean for row in rows}
    difference = {model: mean - means["mobilenext"] for model, mean in means.items()}
    beyond = {model for model, by in difference.items()
              if abs(by) > chance(deviation, degrees, 2, 17)}  # fmt: skip
    assert beyond == {"bottleneck_one", "bottleneck_two", "thin_ends", "activation_last",
                      "activation_reduce", "activation_all", "shortcut_none"}  # fmt: skip
    for model, words in (
        ("ratio_3", "ratio 3 (+{:.1f},"), ("kernel_5", "5x5 kernels (+{:.1f},"),
        ("kernel_7", "7x7 kernels (+{:.1f})"), ("ratio_8", "ratio 8 (+{:.1f})"),
        ("shortcut_thin", "thin middles (−{:.1f})"),
        ("extra_pointwise", "1x1 convolution (−{:.1f})"),
        ("first_removed", "removed (+{:.1f},"), ("mobilenetv2", "−{:.1f}) and its extra"),
        ("activation_last", "cost {:.1f} points (after the last"),
        ("activation_reduce", "{:.1f} (after the reducing"),
        ("activation_all", "{:.1f} (after each"), ("shortcut_none", "no shortcuts costs {:.1f}"),
    ):  # fmt: skip
        assert words.format(abs(difference[model])) in text, model
    rows, deviation, degrees = pooled("51d62b")
    assert f"a standard deviation of {deviation:.1f} points (pooled over the eight rows" in text
    assert f"of three seeds differ by chance by up to {chance(deviation, degrees, 3):.1f}" in text
    assert f"two means of two by up to {chance(deviation, degrees, 2):.1f}" in text


def test_no_results(run, tmp_path: Path) -> None:
    (tmp_path / 'odd "name"').mkdir()
    done = run("scripts/tables.py", 'odd "name"', ok=False)
    assert done.returncode == 1
    assert 'error: odd "name": found no result.json' in done.stderr
    assert "Traceback" not in done.stderr


def test_every_network_is_counted_and_has_a_label() -> None:
    counted_models = {network.model for network in networks()}
    single = {Path(choice).name for choice in choices("model")} - {"timm", "torchvision"}
    assert counted_models == single - NO_ONE_COST == set(labels().labels) - NO_ONE_COST


def test_comparisons_have_the_networks_of_their_experiments() -> None:
    for name, comparison in labels().comparisons.items():
        text = (REPO / "configs" / "experiment" / f"{name}.yaml").read_text()
        listed = re.findall(r"model: (\S+)", text)[-1].split(",")
        assert {Path(choice).name for choice in listed} == set(comparison.networks), name


def test_the_authors_dropout_is_that_of_the_configs() -> None:
    """What may stand beside the paper has the dropout that the network's own config sets."""
    for network in networks():
        dropout = json.loads(network.arguments)["dropout"]
        assert dropout == authors_dropout(network.model), network.model
        assert dropout == (0.0 if network.model in NO_DROPOUT else 0.2), network.model
