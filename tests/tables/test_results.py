import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mobilenext.config import AugmentConfig, DataConfig, RuntimeConfig, TrainConfig
from mobilenext.errors import InputError
from mobilenext.tables import fraction, group_results, read_results
from mobilenext.tables.results import ADDED_DEFAULTS, ADDED_INSIDE, NOT_PROTOCOL
from tests.results import fake_result, write_results


def groups(tmp_path: Path, *results: dict[str, Any]) -> list[Any]:
    return group_results(read_results([write_results(tmp_path, *results)]))


def test_seeds_are_brought_together(tmp_path: Path) -> None:
    results = [fake_result(seed=seed, top1=top1) for seed, top1 in ((1, 74.2), (0, 73.8))]
    (group,) = groups(tmp_path, *results)
    assert group.seeds == [0, 1]
    assert group.mean == pytest.approx(74.0)
    assert group.std == pytest.approx(0.2828, abs=1e-3)
    assert group.commits == ["01234567"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config__output_dir", "/elsewhere"),
        ("config__name", "another"),
        ("config__data__root", "/other"),
        ("config__data__source__root", "/other"),
        ("config__data__workers", 3),
        ("config__runtime__threads", 1),
        ("config__checkpoint__keep", 9),
    ],
)
def test_where_and_how_fast_does_not_set_runs_apart(tmp_path: Path, key: str, value: Any) -> None:
    assert len(groups(tmp_path, fake_result(), fake_result(seed=1, **{key: value}))) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config__data__name", "imagenette"),
        ("config__data__image_size", 160),
        ("config__data__reencoded", True),
        ("config__epochs", 90),
        ("config__optimizer__lr", 0.05),
        ("config__augment__hflip", 0.0),
        ("config__runtime__precision", "bf16"),
        ("config__label_smoothing", 0.0),
    ],
)
def test_other_recipes_are_never_averaged(tmp_path: Path, key: str, value: Any) -> None:
    found = groups(tmp_path, fake_result(), fake_result(seed=1, **{key: value}))
    assert len(found) == 2
    one, two = (group.first.protocol.describe() for group in found)
    assert one != two


def test_entries_that_came_later_keep_results_comparable(tmp_path: Path) -> None:
    later = {"config__init_from": None, "config__freeze_backbone": False,
             "config__layer_decay": None, "config__genotype": "darts_v2",
             "config__auxiliary_weight": 0.4, "config__freeze_norms": False}  # fmt: skip
    (group,) = groups(tmp_path, fake_result(), fake_result(seed=1, **later))
    assert group.seeds == [0, 1]
    assert group.first.of_the_paper
    added = {f.name: f.default for f in dataclasses.fields(TrainConfig) if f.metadata.get("added")}
    assert added == ADDED_DEFAULTS
    for place, config in (("data", DataConfig), ("augment", AugmentConfig),
                          ("runtime", RuntimeConfig)):  # fmt: skip
        inside = {f.name: f.default for f in dataclasses.fields(config) if f.metadata.get("added")}
        assert inside == ADDED_INSIDE[place]


def test_what_decides_no_result_is_no_protocol() -> None:
    """Entries of the config that two machines may set as they like, as the fingerprint has it."""
    for place, config in (("data", DataConfig), ("runtime", RuntimeConfig)):
        free = {f.name for f in dataclasses.fields(config) if f.metadata.get("machine_only")}
        assert free <= {*NOT_PROTOCOL[place]}, place


def test_runs_with_given_weights(tmp_path: Path) -> None:
    """They are of protocols of their own, which the file's content decides, not its path."""
    given = {"config__init_from": "/there/x.pth", "init_from": {"sha256": "ab", "path": "x.pth"}}
    moved = {"config__init_from": "/here/x.pth", "init_from": {"sha256": "ab", "path": "y.pth"}}
    other = {"config__init_from": "/there/x.pth", "init_from": {"sha256": "cd", "path": "x.pth"}}
    found = groups(
        tmp_path,
        fake_result(),
        fake_result(seed=1, **given),
        fake_result(seed=2, **moved),
        fake_result(seed=3, **other),
        fake_result(seed=4, **given, config__freeze_backbone=True),
        fake_result(seed=5, **given, config__layer_decay=0.75),
        fake_result(seed=6, **given, config__freeze_norms=True),
    )
    by_seeds = {tuple(group.seeds): group.first for group in found}
    assert by_seeds.keys() == {(0,), (1, 2), (3,), (4,), (5,), (6,)}
    told = {seeds: first.protocol.describe() for seeds, first in by_seeds.items()}
    assert len(set(told.values())) == 6
    assert "given weights" not in told[0,]
    assert "fp32, from given weights (protocol" in told[1, 2]
    assert "from given weights, classifier only (protocol" in told[4,]
    assert "from given weights, layer decay 0.75 (protocol" in told[5,]
    assert [first.of_the_paper for first in by_seeds.values()].count(True) == 1
    assert by_seeds[0,].of_the_paper


def test_networks_that_differ_in_an_argument_are_not_averaged(tmp_path: Path) -> None:
    other = fake_result(seed=1, config__model__network__dropout=0.0)
    assert len(groups(tmp_path, fake_result(), other)) == 2


@pytest.mark.parametrize(
    ("model", "dropout", "stands"),
    [
        ("mobilenext", 0.2, True),
        ("mobilenext", 0.0, False),
        ("thin_ends", 0.0, True),
        ("thin_ends", 0.2, False),
        ("thin_ends_depthwise_stride", 0.0, True),
        ("extra_depthwise", 0.0, True),
        ("extra_depthwise", 0.2, False),
    ],
)
def test_the_authors_dropout_stands_beside_the_paper(
    tmp_path: Path, model: str, dropout: float, stands: bool
) -> None:
    result = fake_result(model, config__model__network__dropout=dropout)
    (group,) = groups(tmp_path, result)
    assert group.first.of_the_paper == stands


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({}, 64),
        ({"hardware": {"processes": 4}}, 128),
        ({"config__runtime__micro_batch": 32}, 32),
        ({"config__batch_norm": "sync"}, 512),
        ({"config__runtime__micro_batch": 32, "config__batch_norm": "sync"}, 256),
        ({"hardware": {}}, None),
        ({"hardware": {}, "config__runtime__micro_batch": 16}, 16),
    ],
)
def test_images_per_norm(tmp_path: Path, changes: dict[str, Any], images: int | None) -> None:
    """The batch over the processes, unless it is split further or norms are synchronised."""
    (group,) = groups(tmp_path, fake_result(**changes))
    assert group.first.images_per_norm == images
    assert group.first.conditions.images_per_norm == images


def test_norms_of_a_fixed_size_are_named_in_the_recipe(tmp_path: Path) -> None:
    fixed = fake_result(seed=1, config__runtime__micro_batch=64)
    one, two = groups(tmp_path, fake_result(), fixed)
    assert sorted("norms of 64 images" in g.first.protocol.recipe for g in (one, two)) == [0, 1]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"versions": {"torch": "2.14.1+cu130"}}, True),
        ({"versions": {"torch": "2.11.0"}}, False),
        ({"decoder": "native (avx2, libjpeg-turbo 2.1.5)"}, True),
        ({"decoder": "simplejpeg and OpenCV 5.0.0"}, False),
        (
            {"hardware": {"device": "cpu", "accelerator": None, "cpu": "A CPU", "processes": 8}},
            False,
        ),
        ({"hardware": {"device": "cuda", "accelerator": "A GPU", "processes": 4}}, False),
    ],
)
def test_conditions_of_a_run(tmp_path: Path, changes: dict[str, Any], same: bool) -> None:
    (group,) = groups(tmp_path, fake_result(), fake_result(seed=1, **changes))
    one, two = (result.conditions for result in group.results)
    assert (one == two) == same


def test_results_too_old_for_conditions(tmp_path: Path) -> None:
    old = fake_result()
    for name in ("hardware", "versions", "decoder"):
        del old[name]
    (group,) = groups(tmp_path, old)
    assert group.first.conditions.machine == "unknown machine"


def test_a_copied_run_counts_once_and_a_contradiction_is_named(tmp_path: Path) -> None:
    (group,) = groups(tmp_path / "a", fake_result(), fake_result())
    assert group.seeds == [0]
    with pytest.raises(InputError, match=r"are the same run by their configs.*74.00 % and 70.00 %"):
        groups(tmp_path / "b", fake_result(), fake_result(top1=70.0))


def test_what_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a run folder"):
        read_results([tmp_path / "none"])
    with pytest.raises(InputError, match=r"found no result.json of a finished training run"):
        read_results([tmp_path])
    file = tmp_path / "result.json"
    file.write_text("{")
    with pytest.raises(InputError, match="in JSON"):
        read_results([tmp_path])
    file.write_text("{}")
    with pytest.raises(InputError, match="lacks model, width"):
        read_results([file])
    result = fake_result()
    del result["seed"], result["count"]
    file.write_text(json.dumps(result))
    with pytest.raises(InputError, match="it lacks count, seed"):
        read_results([file])


def test_evaluations_are_left_out(tmp_path: Path) -> None:
    runs = write_results(tmp_path, fake_result())
    (runs / "evaluate").mkdir()
    (runs / "evaluate" / "result.json").write_text('{"checkpoint": "x", "top1": 1.0}')
    assert len(read_results([runs])) == 1
    assert len(read_results([runs, runs])) == 1


def test_fractions() -> None:
    assert [fraction(x) for x in (1.0, 0.5, 1 / 3, 1 / 6, 0.37)] == [
        "1",
        "1/2",
        "1/3",
        "1/6",
        "0.37",
    ]
