"""Searches from start to found cells, and that nothing of them is by chance."""

import json
import re
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mobilenext.errors import InputError
from mobilenext.genotype import SPACES, Genotype, edges_of
from mobilenext.jobs.search import search
from mobilenext.jobs.train import train
from mobilenext.runtime.distributed import Process
from tests.compare import assert_same_run
from tests.composed import MADE_UP, composed, placed
from tests.kill_at import draw, kill_again_and_again

CPU = Process(torch.device("cpu"))
SMALL = ("experiment=darts_digits", "epochs=2", "warmup_epochs=0", "channels=4",
         "data.image_size=16", "data.global_batch_size=40", "runtime.log_every=4")  # fmt: skip
IMAGES = (*MADE_UP, "data.source.train_images=320")
TINY = (*SMALL, *IMAGES)
"""Four steps an epoch, of 40 images for the weights and 40 for the alphas."""


def searched(path: Path, *more: str) -> dict[str, Any]:
    return search(placed(composed(*TINY, *more, job="search"), path), CPU)


@pytest.fixture(scope="session")
def found(once) -> Path:
    """Folder of a whole search; it is everyone's: read only."""
    return once("searched", lambda path: searched(path, "space=darts_sandglass"))


def result_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "result.json").read_text())


def test_what_a_search_leaves(found: Path) -> None:
    result = result_of(found)
    assert (result["kind"], result["space"], result["order"]) == (
        "search", "darts_sandglass", "first",
    )  # fmt: skip
    assert result["count"] == 160  # half of the training images; none is of the validation split
    genotype = Genotype.of(yaml.safe_load((found / "genotype.yaml").read_text()))
    assert genotype == Genotype.of(result["genotype"])
    assert result["found_params"] == genotype.count_params()
    assert result["skips"] == genotype.skips
    assert 0.9 < result["entropy"] < 1
    first, last = result["architecture"]
    assert (first["epoch"], last["epoch"]) == (1, 2)
    assert last["genotype"] == result["genotype"]
    assert last["entropy"] < first["entropy"]
    assert [len(rows) for rows in last["alphas"]] == [len(edges_of(2))] * 2
    assert sum(last["alphas"][0][0]) == pytest.approx(1, abs=1e-5)
    text = (found / "genotype.yaml").read_text()
    assert "# Found by scripts/search.py: darts_sandglass, seed 0, 2 epochs of 2, synthetic" in text
    with PIL.Image.open(found / "genotype.png") as picture:
        assert picture.width > 300
    assert (found / "genotype.svg").read_text().startswith("<svg")
    events = EventAccumulator(str(found)).Reload()
    assert {"train/images", "search/cells"} <= set(events.Tags()["images"])
    curves = set(events.Tags()["scalars"])
    assert {"val/skips", "val/entropy", "alphas_normal/0_to_2/sandglass"} <= curves


def test_a_found_cell_trains_as_any_network(found: Path, tmp_path: Path) -> None:
    given = ("model=darts", f"genotype={found / 'genotype.yaml'}", "model.network.channels=4",
             "model.network.cells=3", "model.network.stem_stride=2", *IMAGES, "data.image_size=32",
             "augment=cifar", "augment.cutout=8", "model.network.drop_path=0.3", "epochs=1",
             "runtime.log_every=5", "optimizer=sgd_darts")  # fmt: skip
    config = placed(composed(*given), tmp_path / "run")
    assert config.model.network["genotype"] == result_of(found)["genotype"]
    result = train(config, CPU)
    assert result["model"] == "darts"
    genotype = Genotype.of(result["config"]["model"]["network"]["genotype"])
    assert result["num_params"] == genotype.count_params(4, 3, 10)
    other = tmp_path / "elsewhere.yaml"
    other.write_text((found / "genotype.yaml").read_text())
    moved = composed(given[0], f"genotype={other}", *given[2:])
    assert moved.recipe() == composed(*given).recipe()  # the cells count, not where they lie
    assert composed("model=darts").recipe() != composed(*given[:2]).recipe()


def test_the_newest_genotype_stays_the_newest(found: Path, tmp_path: Path) -> None:
    """A training that has begun is newer, and has none."""
    for name, files in (("search/a", ("genotype.yaml",)), ("darts/b", ())):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_text((found / file).read_text())
        (folder / "sessions.jsonl").write_text("{}\n")
    given = f"genotype={tmp_path}/runs/latest/genotype.yaml"
    config = composed("model=darts", given)
    assert config.model.network["genotype"] == result_of(found)["genotype"]
    (tmp_path / "runs/search/a/genotype.yaml").unlink()
    with pytest.raises(InputError, match=r"found none with genotype\.yaml"):
        composed("model=darts", given)


def test_spaces_are_those_of_random_cells() -> None:
    for name, operators in SPACES.items():
        config = composed(f"space={name}", job="search")
        assert (config.space.name, tuple(config.space.operators)) == (name, operators)


def test_an_auxiliary_head_counts_in_training_only(tmp_path: Path) -> None:
    given = ("model=darts", "model.network.channels=4", "model.network.cells=3",
             "model.network.auxiliary=true", *IMAGES, "data.image_size=32", "epochs=1",
             "data.global_batch_size=80")  # fmt: skip
    losses = []
    for number, weight in enumerate((0.0, 0.4)):
        path = tmp_path / str(number)
        result = train(placed(composed(*given, f"auxiliary_weight={weight}"), path), CPU)
        row = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
        losses.append(row["loss"])
        assert result["num_params"] == Genotype.of(
            result["config"]["model"]["network"]["genotype"]
        ).count_params(4, 3, 10)
    assert 0.3 * 2.3 < losses[1] - losses[0] < 0.5 * 3.5  # 0.4 times a loss of some 2.3


def test_the_same_seed_finds_the_same_cells(found: Path, tmp_path: Path) -> None:
    searched(tmp_path / "again", "space=darts_sandglass")
    assert_same_run(found, tmp_path / "again")
    assert (found / "genotype.yaml").read_text().splitlines()[3:] == (
        tmp_path / "again" / "genotype.yaml"
    ).read_text().splitlines()[3:]
    searched(tmp_path / "other", "space=darts_sandglass", "seed=1")
    other, one = result_of(tmp_path / "other"), result_of(found)
    assert other["architecture"] != one["architecture"]


def test_the_same_command_finds_its_search_again(
    found: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert searched(found, "space=darts_sandglass") == result_of(found)
    assert "already finished: top-1" in capsys.readouterr().out


def test_killed_and_taken_up_is_the_same_search(run, found: Path, tmp_path: Path) -> None:
    chosen = [*TINY, "space=darts_sandglass"]
    often = ("checkpoint.every_steps=1", "checkpoint.max_share=1")
    most = {"before a step": 7, "in evaluation": 2, "within the content": 4, "before a rename": 7}

    def here(*arguments: object, **more: Any) -> Any:
        return run(*arguments, cwd=tmp_path, **more)

    points = draw(list(most), 2, most)
    kill_again_and_again(here, tmp_path, points, "search", *chosen, *often)
    (killed,) = tmp_path.glob("runs/*/*/result.json")
    assert_same_run(killed.parent, found)


@pytest.mark.parametrize("order", ["first", "second"])
def test_two_processes_search_as_one(run, tmp_path: Path, order: str) -> None:
    """With norms of as many images, which micro-batches give one process."""
    given = ("scripts/search.py", *TINY, f"order={order}", "epochs=1", "nodes=1",
             "data.source.train_images=160", "decay_norm_and_bias=true")  # fmt: skip
    weights = []
    for processes in (1, 2):
        more = ("runtime.micro_batch=20",) if processes == 1 else ()
        run(*given, *more, f"output_dir={tmp_path / str(processes)}", processes=processes)
        (path,) = (tmp_path / str(processes)).glob("*/*/result.json")
        assert result_of(path.parent)["count"] == 80
        weights.append(torch.load(path.parent / "last.pt", weights_only=True)["network"])
    one, two = weights
    assert float((one["alpha"] - two["alpha"]).abs().max()) < 1e-6
    largest = max(
        float((one[name] - two[name]).abs().max())
        for name in one
        if "running" not in name and "num_batches" not in name
    )
    assert largest < 1e-5


def test_orders_differ(found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alphas = [result_of(found)["architecture"][0]["alphas"]]
    for order in ("second", "second_fd"):
        path = tmp_path / order
        searched(path, "space=darts_sandglass", f"order={order}", "epochs=1")
        alphas.append(result_of(path)["architecture"][0]["alphas"])
    first, second, differences = (torch.tensor(one[0]) for one in alphas)
    for one, other in ((first, second), (first, differences), (second, differences)):
        assert float((one - other).abs().max()) > 1e-5  # the alphas move by some 1e-3
    assert "order=second_fd is DARTS' own" in capsys.readouterr().out


def test_variants_search(tmp_path: Path) -> None:
    """PC-DARTS, DARTS- and activation checkpointing together, in bf16, with a warm-up."""
    result = searched(
        tmp_path, "channels=8", "partial_channels=2", "edge_weights=true", "auxiliary_skip=true",
        "checkpointing=true", "runtime.precision=bf16", "warmup_epochs=1", "nonfinite=skip",
    )  # fmt: skip
    first, last = result["architecture"]
    assert first["entropy"] > last["entropy"]
    assert first["entropy"] == pytest.approx(1, abs=1e-6)  # the alphas have not moved yet
    assert sum(last["edges"][0][:2]) == pytest.approx(1, abs=1e-5)


def test_a_search_ends_where_its_cell_has_too_many_skips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = searched(tmp_path / "all", "max_skips=4")
    assert len(result["architecture"]) == 2
    monkeypatch.setattr(Genotype, "skips", property(lambda self: 2))
    result = searched(tmp_path / "few", "epochs=3", "warmup_epochs=1", "max_skips=2")
    assert len(result["architecture"]) == 2  # the first epoch's alphas had not learned
    assert (result["epochs"], result["steps"]) == (3, 8)


def test_what_it_takes_is_said_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(tmp_path / "run", "epochs=1")
    said = capsys.readouterr().out
    assert "note: a step needs about 0." in said
    assert "steps of" in said
    assert "evaluation not counted" in said
    assert re.search(r"^normal cell:  0 = \w+ of c\(k-[12]\) \+ \w+ of c\(k-[12]\),  1 = \w+ of",
                     said, re.MULTILINE), "nodes and states have their picture's names"  # fmt: skip
    monkeypatch.setattr("mobilenext.assembly.search.available_bytes", lambda _device: 1_000_000)
    with pytest.raises(
        InputError, match=r"GB are left: set checkpointing=true, partial_channels=4"
    ):
        searched(tmp_path / "other", "epochs=1")
    assert not (tmp_path / "other").exists()


BROKEN = {
    "operator": ("normal", 3, ["sep_conv_7x7", 0], r"genotype.normal\[3\]: expected one of none"),
    "source": (
        "reduce",
        1,
        ["skip_connect", 2],
        r"genotype.reduce\[1\]: expected a state from 0 to",
    ),
    "edge": ("normal", 0, "skip_connect", r"genotype.normal\[0\]: expected \[operator, source\]"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_genotypes_that_are_none(found: Path, tmp_path: Path, what: str) -> None:
    kind, place, value, message = BROKEN[what]
    plain = yaml.safe_load((found / "genotype.yaml").read_text())
    plain[kind][place] = value
    path = tmp_path / "genotype.yaml"
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(InputError, match=message) as error:
        composed("model=darts", f"genotype={path}")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("normal: [", "expected a genotype as YAML"),
        ("normal: 2001-13-45", "expected a genotype as YAML .month must be in 1..12"),
        ("- 1", "genotype: expected entries normal and reduce"),
        ("{normal: [[none, 0]], reduce: []}", "expected two edges for each of 1 to 16 nodes"),
        ("{normal: [[none, 0], [none, 1]], reduce: [[none, 0], [none, 1], [none, 0], [none, 2]]}",
         "expected as many nodes in both cells, got 1 in normal and 2 in reduce"),
        ("{normal: [[none, 0], [none, 1]], reduce: [[none, 0], [none, 1]], sandglass: {ratio: 0}}",
         "genotype.sandglass.ratio: expected 1 to 64, got 0"),
        ("{normal: [[none, 0], [none, 1]], reduce: [[none, 0], [none, 1]], stride: 2}",
         "expected entries normal, reduce, sandglass, inverted_residual, got"),
    ],
)  # fmt: skip
def test_files_that_are_no_genotypes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "genotype.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        composed("model=darts", f"genotype={path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("darts_v3", "expected darts_v2, darts_v2_sandglass1 to 5"),
        ("random:x", "expected random:SEED and, if wanted, :SPACE"),
        ("random:0:enas", "got 'enas'"),
        ("darts_v2_sandglass6", "expected darts_v2, darts_v2_sandglass1 to 5"),
        ("random:0:99M", "none of 100,000 random cells of darts has 99 M parameters"),
    ],
)
def test_names_that_mean_nothing(name: str, message: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("mobilenext.genotype.MOST_TRIES", 100 if "99M" in name else 1)
    with pytest.raises(InputError, match=message.replace("100,000", "100")):
        composed("model=darts", f'genotype="{name}"')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train_share=1",), "train_share=1.0: expected a share above 0 and below 1"),
        (("train_share=0.99",), "leaves 1,423 of 1,437 training images to the weights and 14 to"),
        (("partial_channels=3", "channels=8"), "partial_channels=3: expected a divisor"),
        (("partial_channels=4", "channels=8"), "leaves 2 of 8 channels to an operator"),
        (("cells=2",), "cells: expected at least 3, got 2"),
        (("order=third",), "order=third: expected one of first, second, second_fd"),
        (("order=second", "runtime.precision=fp16"), "does not go through fp16's scaler"),
        (("order=second", "runtime.compile=true"), "torch.compile has no gradient of a gradient"),
        (("order=second", "optimizer=adamw"), "expected optimizer._target_=torch.optim.SGD"),
        (("order=second", "checkpointing=true"), "checkpointing=true: expected false with order"),
        (("checkpointing=true", "runtime.compile=true"), "checkpointing=true: expected false with"),
        (("batch_norm=sync",), "batch_norm=sync: expected reduce or broadcast"),
        (("norm_batch=8",), "norm_batch=8: expected null in a search"),
        (("eval_every=2",), "eval_every=2: expected 1 in a search"),
        (("runtime.graph=true",), "runtime.graph=true: expected false in a search"),
        (("runtime.fused=true",), "runtime.fused=true: expected false in a search"),
        (("~architecture_optimizer.lr",), "architecture_optimizer=.*: expected an entry lr"),
        (("space.operators=[skip_connect]",), "operators: expected some of none, .*two or more"),
        (("order=second", "optimizer=sgd"), "optimizer.nesterov=true: expected false"),
        (("width=0.5",), "width=0.5: expected 1: a supernet's size is channels"),
        (("warmup_epochs=2",), "warmup_epochs=2: expected 0 to 1"),
        (("max_skips=0",), "max_skips=0: expected null, or at least 1"),
        (("augment.mixup=0.2",), "augment.mixup=0.2: expected 0 in a search"),
        (("ema_decay=0.9",), "ema_decay=0.9: expected null in a search"),
        (("space.sandglass.kernel=2",), "space.sandglass.kernel: expected an odd number"),
        (("space.operators=[none,conv]",), "operators: expected some of none, max_pool_3x3"),
        (("model.network._target_=mobilenext.models.DartsNetwork",), "has no argument"),
        (("data.root=/nowhere", "data=cifar10"), "expected CIFAR-10 in"),
        (("runtime.micro_batch=30",), "runtime.micro_batch=30: expected a divisor of 40"),
        (("nodes=17",), "nodes=17: expected 1 to 16"),
    ],
)  # fmt: skip
def test_errors_are_one_message(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        search(placed(composed(*SMALL, *arguments, job="search"), tmp_path / "run"), CPU)
    assert not (tmp_path / "run").exists()
