"""Searches and trained cells: what is averaged, beside what it stands, what is left out."""

import re
from pathlib import Path
from typing import Any

import pytest

from mobilenext.errors import InputError
from mobilenext.genotype import (
    DARTS_V2,
    BlockSettings,
    Genotype,
    genotype_named,
    named_genotypes,
    random_genotype,
)
from mobilenext.tables import Table, read_results, tables_of, to_markdown
from mobilenext.tables.results import SEARCH, Result, other_results
from mobilenext.tables.searched import (
    RANDOM_MOST,
    RANDOM_RANGE,
    left_out,
    operators_in_words,
    published_search,
    search_tables,
)
from tests.results import fake_cell, fake_search, small_result, write_results

SPACE = "darts_sandglass"
REDUCE = 2 * (("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 0), ("skip_connect", 2))
FOUND = [
    Genotype(2 * (("sandglass", 0), ("sep_conv_3x3", 1), (last, 0), ("sandglass", 1)), REDUCE)
    for last in ("sep_conv_3x3", "dil_conv_3x3", "skip_connect")
]
"""Cells that searches found."""
RANDOM = [random_genotype(seed, SPACE) for seed in range(3)]
MINI = {"config__epochs": 20, "epochs": 20, "config__model__network__channels": 16,
        "config__model__network__cells": 8, "num_params": 300_000}  # fmt: skip


def change(values: dict[str, Any], **changes: Any) -> None:
    """Entries of a result, or of its config as config__KEY."""
    for key, value in changes.items():
        holder = values["config"] if key.startswith("config__") else values
        holder[key.removeprefix("config__")] = value


def trained(*values: dict[str, Any]) -> list[Result]:
    return [Result(Path(f"/runs/darts/{number}/result.json"), one)
            for number, one in enumerate(values)]  # fmt: skip


def searched(**changes: Any) -> list[dict[str, Any]]:
    """Three trainings of two cells that two searches found: 97.0, 97.2 and 96.8 %."""
    return [
        fake_cell(FOUND[0], "/runs/search/0/genotype.yaml", 0, 97.0, **changes),
        fake_cell(FOUND[0], "/runs/search/0/genotype.yaml", 1, 97.2, **changes),
        fake_cell(FOUND[1], "/elsewhere/genotype.yaml", 0, 96.8, **changes),
    ]


def randoms(**changes: Any) -> list[dict[str, Any]]:
    """Four trainings of three random cells, whose means are 96.0, 96.5 and 97.0 %."""
    top1s = ((0, 0, 95.5), (0, 1, 96.5), (1, 0, 96.5), (2, 0, 97.0))
    return [fake_cell(RANDOM[cell], f"random:{cell}:{SPACE}", seed, top1, **changes)
            for cell, seed, top1 in top1s]  # fmt: skip


def rows(table: Table) -> dict[str, dict[str, str]]:
    """A table of cells by its second column, each row by the names of its columns."""
    return {row[1]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_what_was_searched_stands_beside_random_cells_of_its_space() -> None:
    searches = [fake_search(one, seed) for seed, one in enumerate(FOUND)]
    results = trained(*searched(), *randoms())
    cells, _ = search_tables(searches, results)
    found = rows(cells)
    assert list(found) == ["searched, second order, 50 epochs", "random cells"]
    mine, chance = found.values()
    assert mine["space"] == chance["space"] == "DARTS + sandglass"
    assert mine["top-1, %"] == "97.00 ± 0.20"  # 97.0, 97.2, 96.8
    assert chance["top-1, %"] == "96.50 ± 0.50"  # 96.0, 96.5, 97.0: cells, not trainings
    assert (mine["searches"], mine["genotypes"], mine["trainings"]) == ("2 of 3", "2", "3")
    assert (chance["searches"], chance["genotypes"], chance["trainings"]) == ("", "3", "4")
    assert mine["RI, %"] == "+0.52"  # 100 * 0.5 / 96.5
    assert chance["RI, %"] == ""
    mean = (2 * FOUND[0].count_params() + FOUND[1].count_params()) / 3
    assert mine["params, M"] == f"{mean / 1e6:.3f}"
    mean = sum(one.count_params() for one in RANDOM) / 3
    assert chance["params, M"] == f"{mean / 1e6:.3f}"
    assert "at 36 channels, 20 cells, M" not in mine
    text = to_markdown(cells)
    for words in ("n of m", "Esperança", "1,000 random cells", "3x3 kernels, ratio 6 and a short"):
        assert words in text
    assert "nothing published compares" not in text
    assert "do not compare" not in text


def test_no_table_picks_the_best(tmp_path: Path) -> None:
    searches = [fake_search(one, seed) for seed, one in enumerate(FOUND)]
    for table in search_tables(searches, trained(*searched(), *randoms())):
        text = to_markdown(table)
        assert not re.search(r"\bbest\b", text)
        assert "97.20" not in text.replace("97.00 ± 0.20", "")


def test_a_search_that_finds_less_than_chance_says_so() -> None:
    below = [fake_cell(FOUND[0], "/a.yaml", 0, 95.535)]
    table = search_tables([fake_search(FOUND[0])], trained(*below, *randoms()))[0]
    assert rows(table)["searched, second order, 50 epochs"]["RI, %"] == "−1.00"


def test_without_random_cells_there_is_no_improvement() -> None:
    others = [fake_cell(random_genotype(0), "random:0")]  # of another space
    table = search_tables([fake_search(FOUND[0])], trained(searched()[0], *others))[0]
    found = rows(table)
    assert found["searched, second order, 50 epochs"]["RI, %"] == "not measured"
    assert found["random cells"]["space"] == "DARTS"


def test_other_operators_are_another_space() -> None:
    search = fake_search(FOUND[0], operators=["sandglass", "sep_conv_3x3"])
    table = search_tables([search], trained(searched()[0], *randoms()))[0]
    found = rows(table)
    assert found["searched, second order, 50 epochs"]["RI, %"] == "not measured"
    assert found["searched, second order, 50 epochs"]["space"] == "darts_sandglass, other operators"


def test_random_cells_of_other_settings_are_another_space() -> None:
    wide = Genotype(FOUND[0].normal, FOUND[0].reduce, BlockSettings(kernel=5))
    cell = fake_cell(wide, "/a.yaml")
    assert any("sandglass" in {name for name, _ in one.normal + one.reduce} for one in RANDOM)
    table = search_tables([fake_search(wide)], trained(cell, *randoms()))[0]
    assert rows(table)["searched, second order, 50 epochs"]["RI, %"] == "other settings"
    assert "5x5 kernels" in to_markdown(table)


def test_every_origin_has_its_row() -> None:
    matched = "random:7:darts_sandglass:2.45M"
    three = f"random:4:3nodes:{SPACE}"
    odd = Genotype(FOUND[2].reduce, FOUND[2].normal)
    results = trained(
        *randoms(),
        fake_cell(genotype_named(matched), matched),
        fake_cell(genotype_named(three), three),
        fake_cell(DARTS_V2, "darts_v2", 0, 97.3),
        fake_cell(DARTS_V2, "/copied/by/hand.yaml", 1, 97.1),
        fake_cell(named_genotypes()["darts_v2_sandglass3"], "darts_v2_sandglass3"),
        fake_cell(named_genotypes()["darts_v2_inverted_residual1"], "darts_v2_inverted_residual1"),
        fake_cell(odd, "/a/file.yaml"),
        fake_cell(FOUND[2], "darts_v2"),  # it is not
    )
    (table,) = search_tables([], results)
    found = rows(table)
    digits = r"another file, [0-9a-f]{6}"
    names = [re.sub(digits, "another file", row[1]) for row in table.rows]
    assert names == [
        "random cells, 3 nodes", "random cells", "random, matched to 2.45 M parameters",
        "DARTS_V2, its authors' cell", "DARTS_V2 with 1 × inverted residual",
        "DARTS_V2 with 3 × sandglass", "another file", "another file",
    ]  # fmt: skip
    assert found["DARTS_V2, its authors' cell"]["top-1, %"] == "97.20 ± 0.14"
    assert found["DARTS_V2, its authors' cell"]["trainings"] == "2"


def test_methods_and_recipes_are_never_averaged() -> None:
    first = fake_search(FOUND[1], 1, order="first", config__order="first")
    other = fake_search(FOUND[2], 1, config__optimizer__lr=0.025)
    parts = fake_search(FOUND[2], 1, config__partial_channels=4, config__max_skips=2)
    cells = [*searched(), fake_cell(FOUND[2], "/c.yaml")]
    tables = search_tables([fake_search(FOUND[0]), first, other, parts], trained(*cells))
    names = [re.sub(r"\([0-9a-f]{6}\)", "(digits)", row[1]) for row in tables[0].rows]
    assert sorted(names) == [
        "searched, first order, 50 epochs", "searched, second order, 50 epochs (digits)",
        "searched, second order, 50 epochs (digits)",
        "searched, second order, one of 4 channels, up to 2 skips, 50 epochs",
    ]  # fmt: skip
    slow = fake_cell(FOUND[0], "/a.yaml", 2, config__optimizer__lr=0.01)
    kept = fake_cell(FOUND[0], "/a.yaml", 2, config__model__network__drop_path=0.0)
    thin = fake_cell(FOUND[0], "/a.yaml", 2, width=0.5, config__width=0.5,
                     config__model__network__width_mult=0.5)  # fmt: skip
    tables = search_tables([fake_search(FOUND[0])], trained(*searched(), slow, kept, thin))
    assert [table.name.rpartition("_")[0] for table in tables] == 4 * ["cells_cifar10_32_600"] + [
        "searches_cifar10"
    ]
    assert len({table.name for table in tables}) == len({table.title for table in tables}) == 5


def test_what_was_added_later_changes_no_recipe() -> None:
    cell = fake_cell(DARTS_V2, "darts_v2")
    cell["config"] |= {"auxiliary_weight": 0.4, "augment": {"hflip": 0.5, "cutout": None}}
    assert len(search_tables([], trained(*randoms(), cell))) == 1
    cell["config"]["augment"]["cutout"] = 16
    tables = search_tables([], trained(*randoms(), cell))
    assert len(tables) == 2
    assert sum("cutout 16" in table.title for table in tables) == 1


def test_small_networks_have_both_costs_and_nothing_beside_them() -> None:
    searches = [fake_search(one, seed) for seed, one in enumerate(FOUND[:2])]
    results = trained(*searched(**MINI), *randoms(**MINI))
    table = search_tables(searches, results)[0]
    assert table.title.startswith(
        "Trained cells: cifar10, 32 px, 20 epochs, 16 channels, 8 cells, auxiliary true, drop_path"
    )
    mine = rows(table)["searched, second order, 50 epochs"]
    assert mine["searches"] == "2"
    assert mine["params, M"] == "0.300"
    mean = (2 * FOUND[0].count_params() + FOUND[1].count_params()) / 3
    assert mine["at 36 channels, 20 cells, M"] == f"{mean / 1e6:.3f}"
    assert "they do not compare with these" in table.footnotes[-1]
    part = search_tables(searches, trained(*searched(**MINI, count=1000)))[0]
    assert part.footnotes[-1] == (
        "cifar10 is not the whole of CIFAR-10: nothing published compares."
    )
    digits = {"data": "digits", "config__data__name": "digits"}
    other = search_tables(searches, trained(*searched(**MINI, **digits)))[0]
    assert other.footnotes[-1] == "digits is not CIFAR-10: nothing published compares."


def test_searches_stand_by_themselves() -> None:
    searches = [fake_search(FOUND[2], 3), fake_search(DARTS_V2, 0, "darts", order="first"),
                fake_search(FOUND[0], 0, data="digits", image_size=8)]  # fmt: skip
    one, two = search_tables(searches, [])
    assert (one.name, two.name) == ("searches_cifar10_32", "searches_digits_8")
    assert [row[0] for row in one.rows] == ["DARTS", "DARTS + sandglass"]
    row = dict(zip(one.columns, one.rows[1], strict=True))
    assert (
        row["operators of the normal cell"] == "sandglass × 4, sep_conv_3x3 × 2, skip_connect × 2"
    )
    assert (row["seed"], row["how"], row["epochs"]) == ("3", "second order", "50")
    assert (row["supernet, M"], row["top-1, shared weights"]) == ("2.000", "80.00")
    assert (row["skips"], row["entropy"]) == ("2", "0.75")
    assert row["cell at 36 channels, 20 cells, M"] == f"{FOUND[2].count_params() / 1e6:.3f}"
    assert operators_in_words(DARTS_V2) == "sep_conv_3x3 × 5, skip_connect × 2, dil_conv_3x3 × 1"


def ours(table: Table) -> dict[str, tuple[str, ...]]:
    return {re.sub("[¹²³]", "", row[0]): row[4:] for row in table.rows}


NOTHING = ("not measured", "", "", "")


def test_the_papers_search_without_ours() -> None:
    table = published_search([], [])
    assert not table.measured
    found = ours(table)
    assert [name for name, cells in found.items() if cells == NOTHING] == [
        "DARTS", "DARTS with inverted residuals", "DARTS with sandglass blocks",
        "DARTS, its own README, mean of ten",
    ]  # fmt: skip
    assert set(found.values()) == {NOTHING, ("", "", "", "")}
    text = to_markdown(table)
    for words in ("97.38 [R]", "2.45 [R]", "−25 % [S]", "+0.13 points [S]", "3.05 [S]",
                  "2.76 [S]", "2.98 [R]", "[R] recollected, unverified.",
                  "¹ A second recollection"):  # fmt: skip
        assert words in text


def test_only_the_whole_experiment_stands_beside_the_paper() -> None:
    searches = [fake_search(one, seed) for seed, one in enumerate(FOUND[:2])]
    table = published_search(searches, trained(*searched(), *randoms()))
    found = ours(table)
    mean = (2 * FOUND[0].count_params() + FOUND[1].count_params()) / 3 / 1e6
    assert found["DARTS with sandglass blocks"] == ("3.00 ± 0.20", "2", "3", f"{mean:.3f}")
    assert found["DARTS"] == found["DARTS with inverted residuals"] == NOTHING
    assert table.measured
    assert "sandglass with 3x3 kernels" in table.footnotes[-3]
    for changes in (
        {"epochs": 599, "config__epochs": 599}, {"count": 9_999}, {"images_seen": 30_000},
        {"config__model__network__channels": 16}, {"config__model__network__cells": 8},
        {"unreadable_images": {"train": 1, "val": 0}}, {"data": "digits"},
        {"config__data__image_size": 24}, {"config__init_from": "/a.pt"},
        {"config__model__network__stem_stride": 2}, {"config__model__network__width_mult": 0.5},
    ):  # fmt: skip
        other = published_search(searches, trained(*searched(**changes)))
        assert ours(other)["DARTS with sandglass blocks"] == NOTHING, changes
        assert not other.measured
    for changes in (
        {"epochs": 49}, {"data": "digits"}, {"image_size": 8}, {"config__partial_channels": 4},
        {"config__max_skips": 2}, {"config__channels": 8}, {"operators": ["sandglass"]},
    ):  # fmt: skip
        short = [fake_search(one) for one in FOUND[:2]]
        for values in short:
            change(values, **changes)
        other = published_search(short, trained(*searched()))
        assert ours(other)["DARTS with sandglass blocks"] == NOTHING, changes


def test_darts_published_cell_stands_beside_its_readme() -> None:
    cells = [fake_cell(DARTS_V2, "darts_v2", seed, 97.2 + seed / 10) for seed in (0, 1)]
    found = ours(published_search([], trained(*cells)))
    assert found["DARTS, its own README, mean of ten"] == ("2.75 ± 0.07", "", "2", "3.349")
    assert found["DARTS"] == NOTHING


def test_cells_are_no_rows_of_other_tables(tmp_path: Path) -> None:
    alone = read_results([write_results(tmp_path / "a", small_result(), small_result(seed=1))])
    both = [*alone, *trained(*searched(), *randoms())]
    searches = [fake_search(FOUND[0])]
    before = {table.name: table for table in tables_of(alone)}
    after = {table.name: table for table in tables_of(both, searches=searches)}
    added = {"cells_cifar10_32_600", "searches_cifar10"}
    assert {name.rpartition("_")[0] for name in after.keys() - before.keys()} == added
    assert all(after[name] == table for name, table in before.items() if name != "search_paper")


def test_foreign_files_are_checked(tmp_path: Path) -> None:
    bad = {
        "genotype": {"normal": [["<script>", 0]] * 2, "reduce": [["sep_conv_3x3", 0]] * 2},
        "entropy": float("nan"), "top1": "97", "num_params": 10**400, "seed": True, "space": 3,
        "config": {}, "data": None,
    }  # fmt: skip
    searches = [fake_search(FOUND[0]) | {key: value} for key, value in bad.items()]
    runs = write_results(tmp_path, *searches, fake_search(FOUND[1], 1))
    files = other_results([runs], SEARCH)
    assert len(files) == 9
    odd = fake_cell(FOUND[1], "x")
    odd["config"]["model"]["network"]["genotype"] = {"normal": []}
    cells = trained(fake_cell(FOUND[1], "/b.yaml"), odd,
                    fake_cell(FOUND[1], "x") | {"top1": "<b>"})  # fmt: skip
    lines = left_out(files, cells)
    assert len(lines) == 8 + 2
    for key in bad:
        place = "genotype.normal[0]" if key == "genotype" else key
        assert sum(f": left out: {place}: expected" in line for line in lines) == 1 + (
            key == "top1"
        ), key
    assert sum(": left out: genotype: expected entries normal and reduce" in one
               for one in lines) == 1  # fmt: skip
    values = [*files.values()]
    one, two = search_tables(values, cells)
    assert [row[3] for row in two.rows] == ["1"]
    assert [row[5] for row in one.rows] == ["1"]
    assert "<script>" not in to_markdown(two)
    lacking = fake_search(FOUND[0])
    del lacking["order"]
    with pytest.raises(InputError, match="it lacks order"):
        other_results([write_results(tmp_path / "lacking", lacking)], SEARCH)


def test_texts_of_foreign_files_stay_in_their_line() -> None:
    odd = fake_search(FOUND[0], space="a\n| b", order="x" * 200)
    (table,) = search_tables([odd], [])
    assert table.rows[0][0] == r"a\n| b"
    assert len(table.rows[0][2]) == 60


def test_the_range_of_random_cells_is_as_the_footnote_says() -> None:
    counts = sorted(random_genotype(seed).count_params() / 1e6 for seed in range(1000))
    assert (round(counts[0], 1), round(counts[-1], 1)) == RANDOM_RANGE
    assert (round(counts[25], 1), round(counts[-26], 1)) == RANDOM_MOST
