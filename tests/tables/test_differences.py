"""What labels name: the entries in which runs differ, and no others."""

import re
from pathlib import Path
from typing import Any

import pytest

from mobilenext.genotype import random_genotype
from mobilenext.tables import read_results
from mobilenext.tables.differences import MOST, run_label
from tests.results import fake_cell, fake_result, small_result, write_results

ADAMW = {"_target_": "torch.optim.AdamW", "lr": 0.002, "betas": [0.9, 0.999]}


def run_labels(tmp_path: Path, *results: dict[str, Any], seed: bool = False) -> list[str]:
    read = read_results([write_results(tmp_path, *results)])
    return [run_label(result, read, seed) for result in read]


def test_a_run_alone_is_its_network(tmp_path: Path) -> None:
    assert run_labels(tmp_path, small_result(identity=0.5), seed=True) == [
        "MobileNeXt 1.0, identity 1/2"
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config__optimizer__lr": 0.05}, ("optimizer.lr 0.1", "optimizer.lr 0.05")),
        ({"config__ema_decay": 0.99}, ("ema_decay null", "ema_decay 0.99")),
        ({"config__ema_warmup": True}, ("ema_warmup false", "ema_warmup true")),
        ({"config__strides": [1, 2, 2, 2, 2]}, ("strides [2, 2, 2, 2, 2]",
                                               "strides [1, 2, 2, 2, 2]")),
        ({"config__epochs": 9, "config__schedule__epochs": 9}, ("epochs 8", "epochs 9")),
        ({"config__data__image_size": 64, "config__data__eval_size": 64},
         ("data.image_size 96", "data.image_size 64")),
        ({"config__data__eval_size": 128}, ("data.eval_size 96", "data.eval_size 128")),
        ({"config__data__reencoded": True, "config__data__source__reencoded": True},
         ("data.reencoded false", "data.reencoded true")),
        ({"config__optimizer": ADAMW},
         ("optimizer SGD, optimizer.lr 0.1", "optimizer AdamW, optimizer.lr 0.002")),
        ({"config__model__network__kernel_size": 5}, ("", "kernel_size 5")),
        ({"config__optimizer__momentum": 0.9}, ("", "optimizer.momentum 0.9")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_only_what_differs_is_named(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, str]
) -> None:
    base = {"config__schedule__epochs": 8}
    found = run_labels(tmp_path, small_result(**base), small_result(**base | changes))
    assert found == ["MobileNeXt 1.0" + f", {text}" * bool(text) for text in words]


def test_cells_are_named_by_their_genotype(tmp_path: Path) -> None:
    one, two = random_genotype(0), random_genotype(1)
    cells = [fake_cell(one, "random:0"), fake_cell(two, "/some/where.yaml"),
             fake_cell(one, "random:0", 1, config__model__network__channels=16)]  # fmt: skip
    first, second, third = run_labels(tmp_path, *cells)
    assert first == "network of DARTS' cells, channels 36, genotype random:0"
    assert re.fullmatch("network of DARTS' cells, channels 36, genotype [0-9a-f]{6}", second)
    assert third == "network of DARTS' cells, channels 16, genotype random:0"
    typed = "random:" + "<b>"
    (odd,) = run_labels(tmp_path / "odd", fake_cell(one, typed))
    assert re.fullmatch("network of DARTS' cells, genotype [0-9a-f]{6}", odd)


def test_where_things_lie_and_how_fast_they_go_is_not_named(tmp_path: Path) -> None:
    moved = small_result(config__data__root="/other", config__runtime__threads=1, config__name="b")
    assert run_labels(tmp_path, small_result(), moved) == ["MobileNeXt 1.0"] * 2


def test_other_data_are_named_alone(tmp_path: Path) -> None:
    """Most of a recipe follows from the data; among runs on the same data the rest counts."""
    found = run_labels(
        tmp_path, fake_result(), small_result(), small_result(config__optimizer__lr=0.05)
    )
    assert found == [
        "MobileNeXt 1.0, data imagenet",
        "MobileNeXt 1.0, data imagenette, optimizer.lr 0.1",
        "MobileNeXt 1.0, data imagenette, optimizer.lr 0.05",
    ]


def test_runs_of_other_networks_set_nothing_apart(tmp_path: Path) -> None:
    found = run_labels(
        tmp_path, small_result(), small_result(width=0.5, config__optimizer__lr=0.05)
    )
    assert sorted(found) == ["MobileNeXt 0.5", "MobileNeXt 1.0"]


def test_seeds_are_named_where_they_differ(tmp_path: Path) -> None:
    results = [small_result(), small_result(seed=1), small_result(width=0.5, seed=1)]
    assert run_labels(tmp_path, *results, seed=True) == [
        "MobileNeXt 1.0, seed 0", "MobileNeXt 1.0, seed 1", "MobileNeXt 0.5"
    ]  # fmt: skip
    assert run_labels(tmp_path / "without", *results)[:2] == ["MobileNeXt 1.0"] * 2


def test_many_differences_are_the_protocols_digits(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "config__label_smoothing": 0.0, "config__ema_decay": 0.9, "config__optimizer__lr": 0.2,
        "config__augment__hflip": 0.0, "config__batch_norm": "sync",
    }  # fmt: skip
    assert len(changes) > MOST
    results = read_results([write_results(tmp_path, small_result(), small_result(**changes))])
    for result in results:
        label = f"MobileNeXt 1.0, protocol {result.protocol.short}"
        assert run_label(result, results) == label
