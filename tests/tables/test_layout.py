"""Which runs stand in which tables, and how these look."""

from pathlib import Path
from typing import Any

import pytest

from mobilenext.errors import InputError
from mobilenext.tables import (
    Network,
    Table,
    arguments_of,
    read_results,
    tables_of,
    to_csv,
    to_latex,
    to_markdown,
)
from mobilenext.tables.labels import labels
from tests.results import fake_result, small_result, write_results


def tables(tmp_path: Path, *results: dict[str, Any]) -> dict[str, Table]:
    found = tables_of(read_results([write_results(tmp_path, *results)]))
    assert len({table.name for table in found}) == len(found)
    return {table.name: table for table in found}


PUBLISHED_ALONE = ["state_of_the_art", "detection_paper", "search_paper", "int8_paper",
                   "latency_paper"]  # fmt: skip
"""Tables in which no run of `train.py` on ImageNet can stand."""


def test_every_row_without_a_run_says_so() -> None:
    width, identity, *others = tables_of([])
    assert [table.name for table in others] == [*labels().comparisons, *PUBLISHED_ALONE]
    assert (len(width.rows), len(identity.rows)) == (10, 4)
    for row in (*width.rows, *identity.rows):
        assert "not measured" in row
    assert "74.02 [S]" in width.rows[3]
    assert "690 [S]" in width.rows[0]
    text = to_markdown(width)
    for words in ("can't be the standard MobileNetV2", "No reading of the paper's table",
                  "of the best epoch", "[S2] seen in a second-hand copy"):  # fmt: skip
        assert words in text


def test_a_run_beside_the_paper(tmp_path: Path) -> None:
    results = [fake_result(seed=seed, top1=top1) for seed, top1 in ((0, 73.8), (1, 74.0))]
    found = tables(tmp_path, *results, fake_result("mobilenetv2", top1=72.0))
    (name,) = [name for name in found if name.startswith("width_table")]
    ours = found[name].columns.index("top-1: paper") + 1
    by_name = {row[0].rstrip("⁰¹²³⁴⁵⁶⁷⁸⁹\u202f") + row[1]: row[ours:] for row in found[name].rows}
    assert by_name["MobileNeXt1.0"] == ("73.90 ± 0.14", "−0.12", "2", "74.00", "01234567")
    assert by_name["MobileNetV21.0"] == ("72.00", "−0.30", "1", "72.10", "01234567")
    assert by_name["MobileNeXt0.5"][0] == "not measured"
    (name,) = [name for name in found if name.startswith("identity_table")]
    assert [row[4] for row in found[name].rows] == ["73.90 ± 0.14"] + ["not measured"] * 3


@pytest.mark.parametrize(
    "changes",
    [
        {"config__epochs": 8, "epochs": 8},
        {"config__epochs": 199},
        {"config__data__name": "imagenette", "data": "imagenette"},
        {"config__data__image_size": 96},
        {"config__data__eval_size": 288},
        {"config__data__reencoded": True},
        {"config__strides": [1, 2, 2, 2, 2]},
        {"count": 49_999},
        {"config__model__network__dropout": 0.0},
    ],
    ids=lambda changes: "-".join(changes).replace("config__", ""),
)
def test_short_and_small_runs_never_stand_in_a_row_of_the_paper(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = tables(tmp_path, fake_result(top1=99.0, **changes))
    for name in ("width_table", "identity_table"):
        assert all("not measured" in row for row in found[name].rows)
    (own,) = [table for name, table in found.items() if name.startswith("networks")]
    assert "99.00" in own.rows[0]
    assert not any("paper" in column for column in own.columns)


def test_one_table_for_each_recipe(tmp_path: Path) -> None:
    found = tables(tmp_path, fake_result(), fake_result(config__optimizer__lr=0.05, top1=73.0))
    widths = [table for name, table in found.items() if name.startswith("width_table")]
    assert len(widths) == 2
    assert len({table.title for table in widths}) == 2
    assert sorted(table.rows[3][7] for table in widths) == ["73.00", "74.00"]


def test_tables_of_other_data(tmp_path: Path) -> None:
    results = [small_result(identity=identity, top1=top1, width=0.5)
               for identity, top1 in ((1.0, 60.0), (0.5, 58.0), (1 / 6, 50.0))]  # fmt: skip
    found = tables(tmp_path, *results, small_result(model="mobilenetv2", width=0.5, top1=55.0))
    networks, identity = list(found.values())[:2]
    assert [row[:2] for row in networks.rows] == [("MobileNetV2", "0.5"), ("MobileNeXt", "0.5")]
    assert [row[1] for row in identity.rows] == ["1", "1/2", "1/6"]
    assert "imagenette, 96 px, 8 epochs" in networks.title


def test_rows_name_the_arguments_that_set_them_apart(tmp_path: Path) -> None:
    """A dropout other than the authors', and whatever two rows of one network differ in."""
    dropout, kernel = "config__model__network__dropout", "config__model__network__kernel_size"
    results = [
        small_result(model="thin_ends", top1=43.0, **{dropout: 0.2}),
        small_result(model="extra_depthwise", top1=66.0, **{dropout: 0.0}),
        small_result(top1=70.0),
        small_result(top1=71.0, **{kernel: 5}),
        small_result(width=0.5, top1=60.0, **{dropout: 0.3}),
    ]
    (table,) = [t for name, t in tables(tmp_path, *results).items() if name.startswith("networks")]
    by_top1 = {row[4]: row[0] for row in table.rows}
    assert by_top1["43.00"].endswith("at the thin ends (c), dropout 0.2")
    assert by_top1["66.00"] == "MobileNetV2, another depthwise convolution"
    assert by_top1["70.00"] == "MobileNeXt"
    assert by_top1["71.00"] == "MobileNeXt, kernel_size 5"
    assert by_top1["60.00"] == "MobileNeXt, dropout 0.3"


OLD_GPU: dict[str, Any] = {
    "decoder": "simplejpeg and OpenCV 5.0.0",
    "hardware": {"device": "cuda", "accelerator": "Old GPU", "processes": 2},
    "versions": {"torch": "2.11.0"},
}


def test_rows_that_mix_machines_say_so(tmp_path: Path) -> None:
    results = [small_result(seed=0, top1=50.0, **OLD_GPU), small_result(seed=1, top1=52.0),
               small_result(model="ratio_3", top1=60.0),
               small_result(model="ratio_8", top1=61.0)]  # fmt: skip
    (table,) = [t for name, t in tables(tmp_path, *results).items() if name.startswith("networks")]
    assert [row[0] for row in table.rows] == [
        "MobileNeXt¹",
        "MobileNeXt, reduction ratio 3²",
        "MobileNeXt, reduction ratio 8²",
    ]
    assert table.footnotes[:2] == (
        "¹ Seed 0: Old GPU, torch 2.11.0, simplejpeg and OpenCV 5.0.0, 256 images per norm; "
        "seed 1: A GPU, torch 2.14.1, native, 64 images per norm.",
        "² All seeds: A GPU, torch 2.14.1, native, 64 images per norm.",
    )


def test_only_what_differs_is_named(tmp_path: Path) -> None:
    fewer = {"device": "cuda", "accelerator": "A GPU", "processes": 2}
    results = [small_result(seed=seed) for seed in (0, 1)]
    found = tables(tmp_path, *results, small_result(seed=2, hardware=fewer))
    (table,) = [table for name, table in found.items() if name.startswith("networks")]
    assert table.footnotes[0] == "¹ Seeds 0, 1: 64 images per norm; seed 2: 256 images per norm."


def test_rows_of_one_machine_need_no_mark(tmp_path: Path) -> None:
    found = tables(tmp_path, small_result(seed=0), small_result(seed=1))
    (table,) = [table for name, table in found.items() if name.startswith("networks")]
    assert table.rows[0][0] == "MobileNeXt"
    assert not any("torch" in note for note in table.footnotes)


def test_rows_beside_the_paper_and_of_recipes_say_so_too(tmp_path: Path) -> None:
    results = [fake_result(seed=0, **OLD_GPU), fake_result(seed=1),
               fake_result(seed=0, config__optimizer=ADAM, **OLD_GPU)]  # fmt: skip
    found = tables_of(read_results([write_results(tmp_path, *results)]), [network("mobilenext")])
    mixed = "Seed 0: Old GPU, torch 2.11.0"
    for name in ("width_table", "identity_table", "ablation_kernel", "recipes"):
        shown = [table for table in found if table.name.startswith(name)]
        notes = [note for table in shown for note in table.footnotes if mixed in note]
        assert notes, name
        for table in shown:
            for note in table.footnotes:
                if mixed in note:
                    assert any(note.partition(" ")[0] in row[0] for row in table.rows)


ADAM = {"_target_": "torch.optim.AdamW", "lr": 0.002}
MIXED = {"hflip": 0.5, "randaugment": "rand-m9", "mixup": 0.2, "cutmix": 0.0}


def test_recipes_of_the_same_network_stand_side_by_side(tmp_path: Path) -> None:
    modern = {"config__optimizer": ADAM, "config__augment": MIXED, "config__ema_decay": 0.99,
              "config__model__network__dropout": 0.3}  # fmt: skip
    results = [
        *(small_result(seed=seed, top1=50.0 + seed) for seed in (0, 1)),
        small_result(**modern, top1=40.0),
        small_result(width=0.5, top1=11.0),
        small_result(config__optimizer=ADAM, config__epochs=12, top1=12.0),
        small_result(config__optimizer=ADAM, config__data__image_size=64, top1=13.0),
        small_result(config__model__network__dropout=0.0, width=0.5, top1=14.0),
    ]
    found = tables(tmp_path, *results)
    assert [name for name in found if "recipes" in name] == ["recipes_imagenette_96_px_8_epochs"]
    table = found["recipes_imagenette_96_px_8_epochs"]
    assert table.title == "Recipes: imagenette, 96 px, 8 epochs"
    networks, recipes, widths, identities, *_ = columns = list(zip(*table.rows, strict=True))
    assert (set(widths), set(identities)) == ({"1.0"}, {"1"})
    assert networks == ("MobileNeXt, ema_decay 0.99, optimizer AdamW, optimizer.lr 0.002",
                        "MobileNeXt, ema_decay null, optimizer SGD, optimizer.lr 0.1")  # fmt: skip
    assert columns[6] == ("40.00", "50.50 ± 0.71")
    assert recipes[0].startswith("dropout 0.3, AdamW 0.002, batch 512")
    assert "RandAugment rand-m9, mixup 0.2, averaged weights 0.99 (protocol " in recipes[0]
    assert recipes[1].startswith("dropout 0.2, SGD 0.1, batch 512")
    assert "don't compare" in table.footnotes[1]
    others = {"width_table", "identity_table", "recipes_imagenette_96_px_8_epochs"}
    assert {name for name in found if not name.startswith("networks")} == {
        *others, *PUBLISHED_ALONE, *labels().comparisons
    }  # fmt: skip


def test_recipes_of_the_paper_are_compared_too(tmp_path: Path) -> None:
    found = tables(tmp_path, fake_result(), fake_result(config__optimizer=ADAM, top1=75.0))
    table = found["recipes_imagenet_224_px_210_epochs"]
    assert [row[4:7] for row in table.rows] == [
        ("3.535", "311.3", "75.00"), ("3.535", "311.3", "74.00")
    ]  # fmt: skip
    assert len(table.footnotes) == 1


def test_own_tables_come_first(tmp_path: Path) -> None:
    results = [fake_result(), fake_result(config__optimizer=ADAM, top1=75.0), small_result()]
    read = read_results([write_results(tmp_path, *results)])
    found = tables_of(read, [network("mobilenext")])
    tasks = ["imagenet, 224 px, 210 epochs", "imagenette, 96 px, 8 epochs"]
    assert [table.task for table in found[:2]] == tasks
    assert {table.task for table in found[2:]} == {None}
    assert all(table.measured for table in found[:2])
    measured = {table.name.rpartition("_")[0] for table in found[2:] if table.measured}
    shown = {name for name, one in labels().comparisons.items() if "mobilenext" in one.networks}
    assert measured == {"width_table", "identity_table"} | shown
    assert {table.name for table in found if not table.measured} == {
        "complexity", *PUBLISHED_ALONE, *(labels().comparisons.keys() - shown)
    }  # fmt: skip
    assert found[-1].name == "complexity"


def test_nothing_of_the_paper_is_measured_by_runs_on_other_data(tmp_path: Path) -> None:
    read = read_results([write_results(tmp_path, small_result(), fake_result("kernel_5", width=2))])
    for table in tables_of(read, [network("mobilenext")]):
        assert table.measured == (table.task is not None), table.name


def test_recipes_and_their_tables_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    rates = [
        small_result(config__optimizer__lr=lr, width=width)
        for lr in (0.1, 0.05)
        for width in (1.0, 0.75)
    ]
    decays = [small_result(config__optimizer__weight_decay=decay, width=0.5) for decay in (0, 1e-4)]
    recipes, *networks = tables(tmp_path, *rates, *decays).values()
    entries = {f"optimizer.{entry}" for entry in
               ("weight_decay 0", "weight_decay 0.0001", "lr 0.05", "lr 0.1")}  # fmt: skip
    assert {row[0] for row in recipes.rows} == {f"MobileNeXt, {entry}" for entry in entries}
    titles = [table.title.partition(":")[0] for table in networks if table.task is not None]
    assert sorted(titles) == ["Networks, optimizer.lr 0.05", "Networks, optimizer.lr 0.1"]
    # the other recipes have one run each, which stands in the first table


def test_a_sweep_of_rates_makes_one_table(tmp_path: Path) -> None:
    rates = [small_result(config__optimizer__lr=rate) for rate in (0.1, 0.05, 0.025)]
    (table,) = [table for table in tables(tmp_path, *rates).values() if table.task is not None]
    assert table.name == "recipes_imagenette_96_px_8_epochs"
    assert [row[0] for row in table.rows] == [
        f"MobileNeXt, optimizer.lr {rate}" for rate in (0.025, 0.05, 0.1)
    ]


def test_recipes_that_differ_in_much_are_told_apart_by_the_column_beside(tmp_path: Path) -> None:
    much = {"config__ema_decay": 0.9, "config__optimizer": ADAM, "config__augment__hflip": 0.0,
            "config__label_smoothing": 0.0}  # fmt: skip
    runs = [small_result(width=w, **more) for w in (1.0, 0.5) for more in ({}, much)]
    recipes, *networks = tables(tmp_path, *runs).values()
    assert {row[0] for row in recipes.rows} == {"MobileNeXt"}
    assert len({row[1] for row in recipes.rows}) == 2
    assert len(recipes.rows) == 4
    assert [table.title.partition(":")[0] for table in networks[:2]] == ["Networks"] * 2


GOLDEN = Table(
    "golden",
    "A table of 5 % & more",
    ("network", "top-1", "ours"),
    (("a_b¹", "72.0 [S]", "71.90 ± 0.10"), ("c|d", "", "not measured")),
    ("¹ First.", "Second."),
)


def test_markdown() -> None:
    assert to_markdown(GOLDEN) == (
        "**A table of 5 % & more**\n"
        "\n"
        "| network |    top-1 |         ours |\n"
        "| ------- | -------: | -----------: |\n"
        "| a_b¹    | 72.0 [S] | 71.90 ± 0.10 |\n"
        "| c\\|d    |          | not measured |\n"
        "\n"
        "¹ First.  \n"
        "Second.\n"
    )


def test_csv() -> None:
    assert to_csv(GOLDEN) == ("network,top-1,ours\na_b¹,72.0 [S],71.90 ± 0.10\nc|d,,not measured\n")


def test_latex() -> None:
    assert to_latex(GOLDEN) == (
        "\\begin{table}\n"
        "  \\centering\n"
        "  \\caption{A table of 5 \\% \\& more}\n"
        "  \\begin{tabular}{lrr}\n"
        "    \\hline\n"
        "    network & top-1 & ours \\\\\n"
        "    \\hline\n"
        "    a\\_b\\textsuperscript{1} & 72.0 [S] & 71.90 $\\pm$ 0.10 \\\\\n"
        "    c|d &  & not measured \\\\\n"
        "    \\hline\n"
        "  \\end{tabular}\n"
        "  \\par\\footnotesize \\textsuperscript{1} First.\n"
        "  \\par\\footnotesize Second.\n"
        "\\end{table}\n"
    )


def test_words_that_are_no_numbers_stand_in_footnotes() -> None:
    found = {table.name: table for table in tables_of([], [network("mobilenext")])}
    for name, words in (("ablation_design", "worse than (b)"), ("ablation_activation", "hurts"),
                        ("efficientnet_table", "20 % fewer parameters")):  # fmt: skip
        assert any(words in note for note in found[name].footnotes), name
        assert any(note.startswith("[S2] seen in") for note in found[name].footnotes), name


def network(model: str, params: int = 1_000_000) -> Network:
    return Network(model, arguments_of(fake_result(model)["config"]["model"]["network"]), params, 0)


def test_comparisons_stand_there_without_runs() -> None:
    alone = {table.name: table for table in tables_of([])}
    assert set(labels().comparisons) <= set(alone)
    (row,) = [row for row in alone["ablation_design"].rows if row[0].startswith("MobileNeXt")]
    assert row[1:7] == ("3.4 [S]", "", "300 [S]", "", "74.02 [S]", "not measured")
    found = {table.name: table for table in tables_of([], [network("mobilenext")])}
    assert set(labels().comparisons) <= set(found)
    (row,) = [row for row in found["ablation_design"].rows if row[0].startswith("MobileNeXt")]
    assert row[1:7] == ("3.4 [S]", "1.000", "300 [S]", "0.0", "74.02 [S]", "not measured")


def test_a_network_without_a_label_is_named() -> None:
    with pytest.raises(InputError, match=r"labels\.yaml: expected a label for the network newest"):
        tables_of([], [network("mobilenext"), network("newest")])


def test_a_run_stands_in_the_comparisons_of_its_network(tmp_path: Path) -> None:
    results = [fake_result("bottleneck_one", seed=seed, top1=top1) for seed, top1 in
               ((0, 68.0), (1, 70.0))]  # fmt: skip
    found = tables(tmp_path, *results, fake_result("bottleneck_one", width=0.5, top1=11.0))
    (table,) = [table for name, table in found.items() if name.startswith("ablation_design")]
    row = table.rows[0]
    assert (row[5], row[6], row[7]) == ("69.0 [I]", "69.00 ± 1.41", "+0.00")
    assert "11.00" not in to_markdown(table)
    (own,) = [table for name, table in found.items() if name.startswith("networks")]
    assert [row[1] for row in own.rows] == ["0.5"]


def test_another_network_under_a_known_name_does_not_stand_beside_the_paper(tmp_path: Path) -> None:
    odd = fake_result(top1=99.0, config__model__network__kernel_size=5)
    found = tables_of(read_results([write_results(tmp_path, odd)]), [network("mobilenext")])
    for table in found:
        assert ("99.00" in to_markdown(table)) == table.name.startswith("networks")
