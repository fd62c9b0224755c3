"""Every config composes, and what it describes builds."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mobilenext import tables
from mobilenext.assembly.trained import evaluation_data
from mobilenext.config import (
    DataConfig,
    DetectConfig,
    SearchConfig,
    TrainConfig,
    fingerprint,
    from_plain,
    to_plain,
)
from mobilenext.config.fields import parse_number
from mobilenext.config.signatures import parameters_of
from mobilenext.config.targets import build
from mobilenext.errors import InputError
from mobilenext.jobs.evaluate import EvaluateConfig
from mobilenext.main import CONFIG_DIR
from mobilenext.optim import weight_decay_groups
from mobilenext.program import as_typed
from mobilenext.tables import published_rows
from tests.composed import composed, composed_untyped
from tests.optim.test_schedules import OFFICIAL


def choices(group: str) -> list[str]:
    found = (CONFIG_DIR / group).rglob("*.yaml")
    return sorted(str(path.relative_to(CONFIG_DIR / group).with_suffix("")) for path in found)


NEEDS_NAME = {"timm": "resnet18", "torchvision": "shufflenet_v2_x0_5"}
"""Choices of `model` that stand for many networks, and one of each."""


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def with_name(choice: str) -> list[str]:
    """The override that chooses a model, and its name and data that ask for no strides."""
    more = [f"model.name={NEEDS_NAME[choice]}", "data=imagenette"] if choice in NEEDS_NAME else []
    return [f"model={choice}", *more]


OF_DETECTION = {
    "data": ("voc", "coco"),
    "augment": ("ssd", "ssd_gentle", "boxes_flip"),
    "experiment": ("ssdlite_table", "ssdlite_voc_authors", "ssdlite_voc_mini", "ssdlite_voc_short"),
    "ssdlite": ("mobilenetv2", "mobilenetv2_expansion", "mobilenext"),
    "detector": ("ssdlite_authors", "ssdlite_torchvision"),
}
"""Choices of detectors' configs; the others are of classifiers'."""


OF_SEARCH = {
    "experiment": ("darts_digits", "darts_mini", "darts_table"),
    "space": ("darts", "darts_inverted_residual", "darts_sandglass"),
    "architecture": ("adam_darts",),
}
"""Choices of searches' configs."""
TRAINS_CELLS = ("darts_mini_train", "darts_train")


def job_of(group: str, choice: str) -> str:
    if choice in OF_SEARCH.get(group, ()):
        return "search"
    return "detect" if choice in OF_DETECTION.get(group, ()) else "train"


GROUPS = ["model", "data", "augment", "optimizer", "schedule", "runtime", "experiment", "ssdlite",
          "detector", "space", "architecture"]  # fmt: skip
NEEDS_OPTUNA = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="needs the extra optuna"
)
ALL = [
    pytest.param(group, choice, marks=[NEEDS_OPTUNA] if choice == "tune_recipe" else [])
    for group in GROUPS
    for choice in choices(group)
]


@pytest.mark.parametrize(
    "overrides",
    [
        ("experiment=mobilenext_official", "width=0.5", "data.root=/data"),
        ("data=synthetic", "model=mobilenetv2", "+model.network.depth_mult=0.25", "epochs=3"),
        ("experiment=imagenette_short", "model/ablation@model=ratio_3", "optimizer.lr=0.1"),
        ("~model.network.dropout",),
        ("widht=1",),
        ("model=no_such_choice",),
        ("model.network.no_such_key=1",),
    ],
)
def test_tests_have_the_configs_that_hydra_composes(overrides: tuple[str, ...]) -> None:
    def found(make: Callable[..., DictConfig]) -> Any:
        try:
            return OmegaConf.to_container(make(*overrides))
        except HydraException as error:
            return type(error), str(error)

    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        expected = found(lambda *given: compose("train", list(given)))
    assert found(composed_untyped) == expected


NETWORKS: dict[str, torch.nn.Module] = {}


def built(config: TrainConfig | DetectConfig | SearchConfig) -> torch.nn.Module:
    """The network or detector of a config; those of most choices are the same, and made once."""
    described: list[Any] = [config.model.network]
    if isinstance(config, DetectConfig):
        described += [config.detector.network, config.data.image_size]
    name = json.dumps(described)
    if name not in NETWORKS:
        network = build(config.model.network, num_classes=10)
        if isinstance(config, DetectConfig):
            network = build(
                config.detector.network, backbone=network, num_classes=10,
                image_size=config.data.image_size,
            )  # fmt: skip
        NETWORKS[name] = network
    return NETWORKS[name]


@pytest.mark.parametrize(("group", "choice"), ALL)
def test_every_choice_composes_and_builds(group: str, choice: str) -> None:
    job = job_of(group, choice)
    chosen = with_name(choice) if group == "model" else [f"{group}={choice}"]
    if group == "architecture":
        chosen = [f"architecture@architecture_optimizer={choice}"]
    if choice in ("ssdlite_voc_mini", "finetune"):
        chosen.append("init_from=/w.pt")
    config = composed(*chosen, job=job)
    assert isinstance(
        config, {"train": TrainConfig, "detect": DetectConfig, "search": SearchConfig}[job]
    )
    network = built(config)
    groups = weight_decay_groups(network, 1e-4, config.decay_norm_and_bias)
    optimizer = build(config.optimizer, params=groups)
    assert isinstance(optimizer, torch.optim.Optimizer)
    lr = config.optimizer["lr"]
    steps = range(5 * config.epochs)
    schedule = build(config.schedule)
    rates = [schedule(step, base_lr=lr, steps_per_epoch=5) for step in steps]
    assert 0.7 * lr <= max(rates) <= lr
    assert min(rates) >= 0


GOLDEN = Path(__file__).parent / "golden" / "fingerprints.json"
VARIANTS: tuple[tuple[str, ...], ...] = ((), ("width=0.5", "identity=1/2"), ("model=mobilenetv2",))


def of(job: str, *overrides: str) -> str:
    """The fingerprint of a command, or the kind of error that refuses it."""
    try:
        config = composed("data.root=/data", *overrides, job=job)
    except Exception as error:
        return type(error).__name__
    config.runtime.precision = "fp32"  # what `auto` means depends on the machine
    return fingerprint(config)


def fingerprints(variants: Sequence[tuple[str, ...]] = VARIANTS) -> dict[str, str]:
    """Fingerprints of every experiment, of every choice of each group, and of other jobs."""
    found = {}
    for experiment in choices("experiment"):
        if experiment == "tune_recipe":
            continue  # needs the extra optuna
        job = job_of("experiment", experiment)
        for more in variants:
            chosen = (f"experiment={experiment}", *more)
            if experiment in ("finetune", "ssdlite_voc_mini"):  # they need given weights
                chosen = (*chosen, "init_from=/w.pt")
            found[" ".join(chosen)] = of(job, *chosen)
    for group in ("data", "model", "augment", "optimizer", "schedule", "runtime"):
        for choice in choices(group):
            named = (f"model.name={NEEDS_NAME[choice]}",) if choice in NEEDS_NAME else ()
            job = job_of(group, choice)
            found[f"{group}={choice}"] = of(job, f"{group}={choice}", *named)
    for override in ("init_from=/w.pt", "freeze_backbone=true", "layer_decay=0.8", "seed=1",
                     "data.workers=3", "output_dir=/x", "checkpoint.keep=5"):  # fmt: skip
        given = (override, "init_from=/w.pt") if "freeze" in override else (override,)
        found[override] = of("train", *given)
    found["evaluate"] = of("evaluate", "checkpoint=/x.pt")
    found["gradients"] = of("gradients")
    return found


@pytest.mark.parametrize("variants", [1, pytest.param(len(VARIANTS), marks=pytest.mark.slow)])
def test_every_recipe_keeps_its_run_folder(variants: int) -> None:
    left_out = [" ".join(more) for more in VARIANTS[variants:]]
    expected = {
        key: value
        for key, value in json.loads(GOLDEN.read_text()).items()
        if not (key.startswith("experiment=") and any(more in key for more in left_out))
    }
    found = fingerprints(VARIANTS[:variants])
    assert {key: found.get(key) for key in expected} == expected
    assert found.keys() == expected.keys(), "new configs: python -m tests.test_golden"


@pytest.mark.parametrize("job", sorted(path.stem for path in CONFIG_DIR.glob("*.yaml")))
def test_every_job_composes(job: str) -> None:
    needed = {"evaluate": ["checkpoint=x"], "prepare_imagenet": ["source=x", "output=y"],
              "compare_curve": ["runs=[x]"], "export": ["checkpoint=x", "output=y"],
              "predict": ["checkpoint=x", "images=[y]"],
              "quantize": ["checkpoint=x", "output=y"]}  # fmt: skip
    composed(*needed.get(job, []), job=job)


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_says_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("#")


NO_IDENTITY = ("darts", "mobilenetv2", "efficientnet_b0", "ablation/thin_ends",
               "ablation/thin_ends_depthwise_stride", "ablation/extra_depthwise",
               "ablation/shortcut_thin", "ablation/shortcut_none", *NEEDS_NAME)  # fmt: skip
"""Models that have no identity tensor multiplier, and say so."""


@pytest.mark.parametrize("model", sorted({*choices("model")} - {*NEEDS_NAME}))
def test_the_width_reaches_the_network(model: str) -> None:
    config = composed(f"model={model}", "width=0.6")
    network = build(config.model.network, num_classes=1000)
    reference = build({**config.model.network, "width_mult": 0.6}, num_classes=1000)
    default = build({**config.model.network, "width_mult": 1.0}, num_classes=1000)
    assert count(network) == count(reference) < count(default)


@pytest.mark.parametrize("model", choices("model"))
def test_the_identity_multiplier_reaches_the_network_or_is_refused(model: str) -> None:
    config = composed(*with_name(model), "identity=1/3")
    assert config.identity == 1 / 3
    if model in NO_IDENTITY:
        with pytest.raises(InputError, match=r"no such knob|ha(s|ve) no identity tensor"):
            build(config.model.network, num_classes=10)
        return
    network = build(config.model.network, num_classes=10)
    blocks = [m for m in network.modules() if getattr(m, "residual", False)]
    assert len(blocks) >= 9
    for block in blocks:
        assert block.identity_channels == pytest.approx(block.out_channels / 3, abs=1)


@pytest.mark.parametrize("model", NEEDS_NAME)
def test_other_libraries_networks(model: str) -> None:
    network = build(composed(*with_name(model)).model.network, num_classes=7)
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    for wrong, message in [
        ("width=0.5", r"no such knob: expected width=1, got 0\.5"),
        ("strides=[1,2,2,2,2]", "expected strides="),
        ("model.name=resnet1", "has no such network; did you mean resnet"),
        ("+model.network.depth=3", "can't be built with|has no argument"),
    ]:
        config = composed(*with_name(model), wrong)
        with pytest.raises(InputError, match=message):
            build(config.model.network, num_classes=7)


def test_the_recipe_follows_the_data() -> None:
    digits, imagenet = composed(), composed("data=imagenet", "data.root=/x")
    assert digits.model.network["strides"] == [1, 2, 2, 2, 2]
    assert imagenet.model.network["strides"] == [2, 2, 2, 2, 2]
    assert (imagenet.epochs, imagenet.optimizer["lr"], imagenet.data.global_batch_size) == (
        210,
        0.1,
        512,
    )
    assert composed("data=cifar10").model.network["strides"] == [1, 1, 2, 2, 2]
    # what is chosen beats what the data suggests, without leftovers of it
    chosen = composed("optimizer=adamw", "schedule=constant", "augment=crop_flip")
    assert chosen.optimizer["lr"] == 1e-3
    assert "min_lr" not in chosen.schedule
    assert chosen.augment.hflip == 0.5
    assert composed("epochs=3", "optimizer.lr=0.2").optimizer["lr"] == 0.2


TABLES = {
    "width_table": "mobilenext_official",
    "width_table_paper_text": "mobilenext_paper_text",
    "identity_table": "mobilenext_official",
    "identity_table_paper_text": "mobilenext_paper_text",
    "imagenette_tables": "imagenette_short",
    **{
        f"ablation_{what}": "mobilenext_official"
        for what in (
            "design",
            "activation",
            "depthwise",
            "ratio",
            "kernel",
            "shortcut",
            "extra_depthwise",
        )
    },
    "efficientnet_table": "mnext_s_official",
}
"""Sweeps and the experiments whose values they take."""


@pytest.mark.parametrize(
    ("model", "width"),
    [
        ("mobilenetv2", 1.4),
        pytest.param("mobilenext", 0.35, marks=pytest.mark.slow),
        pytest.param("mobilenext", 1.4, marks=pytest.mark.slow),
        pytest.param("mobilenetv2", 0.35, marks=pytest.mark.slow),
    ],
)
def test_experiments_take_either_model_and_any_width(model: str, width: float) -> None:
    for experiment in {*choices("experiment")} - {
        "tune_recipe",
        "finetune",
        *OF_DETECTION["experiment"],
        *OF_SEARCH["experiment"],
        *TRAINS_CELLS,
    }:
        config = composed(f"experiment={experiment}", f"model={model}", f"width={width}")
        recipe = TABLES.get(experiment, experiment)
        assert config.data.name == ("imagenette" if "imagenette" in recipe else "imagenet")
        assert config.model.network["width_mult"] == width
        assert config.name.startswith(recipe.partition("_")[0])
        assert config.name.endswith(f"{model}-{width}")
        alone = composed(f"experiment={recipe}", f"model={model}", f"width={width}")
        assert fingerprint(config) == fingerprint(alone)


def test_fine_tuning_asks_for_weights() -> None:
    config = composed("experiment=finetune", "data.root=/x", "init_from=/w.pt", "width=0.5")
    assert (config.data.name, config.layer_decay) == ("imagefolder", 0.85)
    assert config.name == "finetune-mobilenext-0.5"


@pytest.mark.parametrize(
    "sweep",
    [pytest.param(name, marks=pytest.mark.slow if "ablation_" in name else []) for name in TABLES],
)
def test_sweeps_have_the_jobs_of_their_table(sweep: str) -> None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        hydra = compose("train", [f"experiment={sweep}"], return_hydra_config=True).hydra
    assert hydra.mode.name == "MULTIRUN"
    params = [f"{key}={value}" for key, value in hydra.sweeper.params.items()]
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(params), None)
    configs = [composed(f"experiment={sweep}", *job) for job in jobs]
    networks = {(c.model.name, c.width, c.identity, c.seed) for c in configs}
    assert len(networks) == len(jobs)
    if sweep.startswith("identity"):
        wanted = {
            (row.model, row.width, row.identity, 0) for row in published_rows("identity_table")
        }
    elif sweep.startswith("width"):
        wanted = {(row.model, row.width, 1.0, 0) for row in published_rows("width_table")}
    elif sweep != "imagenette_tables":
        assert all(width == 1 for _, width, _, _ in networks)
        return
    else:
        models, widths = ("mobilenext", "mobilenetv2"), (0.35, 0.5, 1.0)
        wanted = {(m, w, 1.0, seed) for m in models for w in widths for seed in (0, 1)}
    assert networks == wanted


def test_the_papers_detectors_are_three() -> None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        hydra = compose("detect", ["experiment=ssdlite_table"], return_hydra_config=True).hydra
    rows = str(hydra.sweeper.params["ssdlite"]).split(",")
    configs = [composed("experiment=ssdlite_table", f"ssdlite={row}", job="detect") for row in rows]
    networks = [(one.model.name, one.detector.network["taps"]) for one in configs]
    assert networks == [("mobilenetv2", "authors"), ("mobilenetv2", "expansion"),
                        ("mobilenext", "authors")]  # fmt: skip
    # 240,000 steps of 24 images, in whole epochs.
    steps = 16_551 // 24
    assert {one.epochs for one in configs} == {240_000 // steps}
    rate = partial(build(configs[0].schedule), base_lr=1e-3, steps_per_epoch=steps)
    assert [rate(step) for step in (0, 159_000, 161_000, 199_000, 201_000)] == pytest.approx(
        [1.333e-4, 1e-3, 1e-4, 1e-4, 1e-5]
    )
    assert rate(500) == pytest.approx((1e-3 + 1.333e-4) / 2, rel=1e-3)


def test_official_experiment_is_the_released_run() -> None:
    config = composed("experiment=mobilenext_official")
    rate = build(config.schedule)
    for epoch, lr in OFFICIAL.items():
        step = epoch * 2502 + 1000
        assert rate(step, base_lr=config.optimizer["lr"], steps_per_epoch=2502) == pytest.approx(
            lr, rel=0.005
        )
    assert config.optimizer == {
        "_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "nesterov": True,
        "weight_decay": 1e-4, "foreach": True,
    }  # fmt: skip
    assert (config.epochs, config.data.global_batch_size, config.label_smoothing) == (210, 512, 0.1)
    assert not config.decay_norm_and_bias
    assert config.augment.color_jitter == [0.4, 0.4, 0.4, 0.0]
    assert (config.augment.interpolation, config.data.eval_interpolation) == ("random", "bicubic")
    assert config.augment.crop_scale == [0.08, 1.0]
    assert (config.data.image_size, config.data.eval_crop_ratio) == (224, 0.875)
    assert config.model.network["strides"] == [2, 2, 2, 2, 2]
    assert config.model.network["dropout"] == 0.2
    assert config.runtime.precision == "fp32"
    assert config.norm_batch == 64
    assert config.ema_decay is None


@pytest.mark.parametrize(
    ("experiment", "batch", "images_per_norm"),
    [
        ("mobilenext_official", 512, 64),
        ("mobilenext_paper_text", 256, 64),
        ("mnext_s_official", 1024, 128),
        ("mnext_l_official", 512, 64),
        ("width_table", 512, 64),
        ("efficientnet_table", 1024, 128),
    ],
)
def test_norms_of_released_runs_do_not_follow_the_number_of_processes(
    experiment: str, batch: int, images_per_norm: int
) -> None:
    config = composed(f"experiment={experiment}")
    assert config.data.global_batch_size == batch
    assert config.norm_batch == images_per_norm
    assert config.batch_norm != "sync"


def test_the_command_line_wins_over_an_experiment() -> None:
    chosen = ("augment=none", "schedule=cosine", "optimizer=adamw", "epochs=7", "seed=3")
    config = composed("experiment=mobilenext_official", *chosen)
    assert (config.augment.crop_scale, config.augment.color_jitter[0]) == ([1.0, 1.0], 0.0)
    assert (config.schedule["every"], config.schedule["cooldown_epochs"]) == ("step", 0)
    assert (config.optimizer["lr"], config.epochs, config.seed) == (1e-3, 7, 3)
    assert "momentum" not in config.optimizer


def test_paper_text_experiment() -> None:
    config = composed("experiment=mobilenext_paper_text")
    assert (config.epochs, config.data.global_batch_size, config.label_smoothing) == (200, 256, 0.0)
    assert (config.optimizer["lr"], config.optimizer["weight_decay"]) == (0.05, 4e-5)
    assert not config.optimizer["nesterov"]
    assert config.decay_norm_and_bias
    assert config.model.network["strides"] == [2, 2, 2, 2, 2]
    assert (config.augment.hflip, config.augment.color_jitter) == (0.5, [0.0] * 4)
    assert config.schedule["cooldown_epochs"] == config.schedule["warmup_epochs"] == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("width=0", r"width=0.0: expected a width multiplier in \(0, 10\]"),
        ("width=-1", "in .0, 10."),
        ("identity=0", r"identity=0.0: expected .*\(0, 1\]"),
        ("identity=7/6", r"\(0, 1\]"),
        ("identity=1/0", "expected a number or a fraction"),
        ("identity=half", "expected a number or a fraction such as 0.5 or 1/6, got 'half'"),
        ("epochs=0", "epochs=0: expected at least 1"),
        ("label_smoothing=1", "label_smoothing"),
        ("ema_decay=1.5", "ema_decay"),
        ("clip_grad_norm=0", "clip_grad_norm"),
        ("optimizer.lr=-1", "optimizer.lr=-1"),
        ("data.eval_crop_ratio=2", "data.eval_crop_ratio"),
        ("data.mean=[0.5]", "data.mean=.*expected 3 numbers"),
        ("data.std=[0,1,1]", "data.std"),
        ("data.workers=-1", "data.workers"),
        ("data.order=sorted", "data.order=sorted: expected one of shuffled, blocks"),
        ("data.readahead=-1", "data.readahead=-1: expected null, or 0 to 1024 batches"),
        ("data.readahead=4", "data.readahead=4: expected 0 beside data.workers=0"),  # digits' own
        ("augment.crop_scale=[0.9,0.5]", "augment.crop_scale"),
        ("augment.color_jitter=[0.4]", "augment.color_jitter"),
        ("augment.hflip=2", "augment.hflip"),
        ("augment.mixup=-1", "augment.mixup"),
        ("runtime.micro_batch=0", "runtime.micro_batch=0: expected at least 1"),
        ("runtime.timeout_minutes=0", "runtime.timeout_minutes"),
        (("runtime.fused=true", "runtime.compile=true"), "runtime.fused=true: expected false with"),
        (("runtime.fused=true", "runtime.channels_last=false"),
         "runtime.channels_last=false: expected true with runtime.fused=true"),
        ("nonfinite=ignore", "nonfinite=ignore: expected one of stop, skip"),
        ("batch_norm=none", "batch_norm=none: expected one of reduce, broadcast, sync"),
        ("data.on_bad_image=delete", "data.on_bad_image=delete: expected one of error, skip"),
        ("data.max_bad_share=2", "data.max_bad_share"),
        ("checkpoint.keep=0", "checkpoint.keep=0: expected at least 1"),
        ("checkpoint.every_steps=0", "checkpoint.every_steps"),
        ("checkpoint.every_minutes=-1", "checkpoint.every_minutes"),
        ("checkpoint.max_share=0", "checkpoint.max_share"),
        ("+checkpoint.typo=1", r"unknown key checkpoint\.typo"),
        ("+typo=1", "unknown key typo: expected one of name, output_dir"),
        ("+data.typo=1", r"unknown key data\.typo"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(override: str | tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        composed(*([override] if isinstance(override, str) else override))


def test_fused_sgd_does_not_go_with_a_gradient_scaler() -> None:
    with pytest.raises(InputError, match=r"spoils its momentum.*use bf16"):
        composed("+optimizer.fused=true", "runtime.precision=fp16")
    composed("+optimizer.fused=true", "runtime.precision=bf16")
    composed("optimizer=adamw", "+optimizer.fused=true", "runtime.precision=fp16")


@pytest.mark.parametrize(
    "target",
    ["torch.load", "torch.hub.load", "os.system", "subprocess.run", "builtins.eval",
     "torch.nn.functional.torch.load", "mobilenext.data.sources.os.system",
     "mobilenext.models.complexity.copy.deepcopy", "pathlib.Path.write_text",
     "timm.models.nothing"],
)  # fmt: skip
def test_only_listed_targets_are_called(target: str) -> None:
    with pytest.raises(InputError, match=r"is not allowed|there is no such class"):
        build({"_target_": target})
    with pytest.raises(InputError, match=r"is not allowed|there is no such class"):
        build({"_target_": "mobilenext.models.MobileNeXt", "norm_layer": {"_target_": target}})


@pytest.mark.parametrize("target", ["timm.create_model", "torchvision.models.resnet18"])
def test_other_libraries_networks_build(target: str) -> None:
    node = {"_target_": target} | ({"model_name": "resnet18"} if "timm" in target else {})
    assert build(node, num_classes=7).fc.out_features == 7


def test_nested_and_partial_targets() -> None:
    node = {
        "_target_": "mobilenext.models.MobileNeXt",
        "width_mult": 0.35,
        "norm_layer": {"_target_": "torch.nn.BatchNorm2d", "_partial_": True, "eps": 1e-3},
    }
    assert build(node).features[0][1].eps == 1e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.momentum=0", "did not take .*momentum.*Nesterov"),
        ("optimizer.weight_decay=-1", "did not take .*weight_decay"),
        ("optimizer.nesterov=maybe", "nesterov=maybe: expected true or false"),
        ("model.network.dropout=2", r"dropout: expected a number in \[0, 1\), got 2"),
    ],
)
def test_values_that_a_constructor_refuses(override: str, message: str) -> None:
    config = composed(override)
    more: dict[str, Any] = {"num_classes": 10}
    node = config.model.network
    if override.startswith("optimizer"):
        node, more = config.optimizer, {"params": [torch.nn.Parameter(torch.zeros(1))]}
    with pytest.raises(InputError, match=message):
        build(node, **more)


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(
        InputError, match=r"has no argument dropuot; it takes width_mult, .*dropout"
    ):
        build({"_target_": "mobilenext.models.MobileNeXt", "dropuot": 0.1})


@pytest.mark.parametrize(
    ("target", "takes", "not_taken"),
    [
        ("mobilenext.optim.constant", "warmup_epochs", "cooldown_epochs"),
        ("mobilenext.models.MobileNeXt", "depth_mult", "self"),
        ("torch.optim.SGD", "dampening", "betas"),
    ],
)
def test_what_a_target_takes_is_read_from_its_source(
    target: str, takes: str, not_taken: str
) -> None:
    found = parameters_of(target)
    assert found is not None
    assert takes in found
    assert not_taken not in found


@pytest.mark.parametrize(
    "target", ["mobilenext.models.timm_model", "timm.create_model", "a.b.c", "x", ""]
)
def test_what_takes_anything_or_is_not_found(target: str) -> None:
    assert parameters_of(target) is None


def test_values_are_shown_as_they_are_typed() -> None:
    shown = as_typed([None, True, 1, 0.5, "a", (2, False), {"b": None}])
    assert shown == "[null,true,1,0.5,a,[2,false],{b:null}]"
    with pytest.raises(InputError, match=r"augment\.crop_scale=\[0\.5,2\.0\]: expected"):
        composed("augment.crop_scale=[0.5,2]")


def test_fingerprint_is_what_determines_the_result(tmp_path: Path) -> None:
    same = fingerprint(composed())
    for override in ("data.workers=2", "runtime.threads=1", "runtime.log_every=5", "output_dir=/x",
                     "runtime.device=cpu", "identity=1/1", "checkpoint.every_steps=5",
                     "data.max_bad_share=0.5"):  # fmt: skip
        assert fingerprint(composed(override)) == same, override
    assert fingerprint(composed("data.workers=2", "data.readahead=4")) == same
    for override in ("width=0.5", "identity=1/2", "seed=1", "epochs=3", "optimizer.lr=0.3",
                     "runtime.precision=bf16", "augment.hflip=0.1", "data.image_size=40",
                     "strides=[1,1,2,2,2]", "nonfinite=skip", "data.order=blocks",
                     "data.on_bad_image=skip", "init_from=x.pth", "layer_decay=0.9",
                     "runtime.fused=true"):  # fmt: skip
        assert fingerprint(composed(override)) != same, override


def test_fields_that_came_later_leave_fingerprints_as_they_were() -> None:
    """Of a run from before `init_from`, `freeze_backbone` and `layer_decay` were there."""
    (path,) = (Path(tables.__file__).parent / "measured").glob("*/8560e0ea1edb/result.json")
    stored = json.loads(path.read_text())["config"]
    stored["data"]["root"] = "/data"
    assert not {"init_from", "freeze_backbone", "layer_decay"} & stored.keys()
    config = from_plain(TrainConfig, stored)
    assert fingerprint(config) == "73941663192e"  # as the code of that time says
    assert fingerprint(from_plain(TrainConfig, to_plain(config))) == fingerprint(config)
    begun = {**stored, "init_from": "x.pth"}
    frozen = {**begun, "freeze_backbone": True}
    others = {fingerprint(from_plain(TrainConfig, values)) for values in (stored, begun, frozen)}
    assert len(others) == 3


def test_fingerprint_and_where_given_weights_lie(tmp_path: Path) -> None:
    def of(path: Path | str) -> str:
        return fingerprint(composed(f"init_from='{path}'"))

    assert of("x.pth") == of(Path("x.pth").absolute()) != of(tmp_path / "x.pth")
    assert of("~/x.pth") == of(Path.home() / "x.pth")


@pytest.mark.parametrize("value", ["0", "1.5", "-0.5"])
def test_layer_decay_is_a_share(value: str) -> None:
    with pytest.raises(InputError, match=r"layer_decay=.*null or in \(0, 1\]"):
        composed(f"layer_decay={value}")


def test_random_weights_are_not_frozen() -> None:
    for key in ("freeze_backbone", "freeze_norms"):
        with pytest.raises(InputError, match=rf"{key}=true: .*init_from=FILE"):
            composed(f"{key}=true")
        composed(f"{key}=true", "init_from=x.pth")


def test_fine_tuning_needs_weights_of_one_kind() -> None:
    own = ("experiment=finetune", "data.root=photos")
    with pytest.raises(InputError, match=r"init_from has no value: .*runs/NAME/HASH.*pretrained"):
        composed(*own)
    library = ("model=timm", "model.name=mobilenetv2_100", "strides=[2,2,2,2,2]")
    config = composed(*own, *library, "+model.network.pretrained=true", "freeze_backbone=true")
    assert config.init_from is None
    assert config.freeze_backbone
    assert composed(*own, "init_from=x.pth").init_from == "x.pth"


def test_fingerprint_and_where_data_lies(tmp_path: Path) -> None:
    def of(data: str, root: Path) -> str:
        return fingerprint(composed(f"data={data}", f"data.root='{root}'"))

    one, two = tmp_path / "one", tmp_path / "two"
    assert of("imagenet", one) == of("imagenet", two)
    assert of("imagefolder", one) != of("imagefolder", two)
    assert of("imagenette", one) != of("imagenette", two)
    assert of("imagefolder", Path("~/x")) == of("imagefolder", Path.home() / "x")
    assert of("imagefolder", one) == of("imagefolder", one / ".." / "one")


def test_plain_values_give_the_same_config() -> None:
    config = composed("data=imagefolder", "data.root=/x")
    assert from_plain(DataConfig, to_plain(config.data)) == config.data
    with pytest.raises(InputError, match="does not fit this version"):
        from_plain(DataConfig, {"nmae": "x"})


def test_evaluation_data_is_the_runs_or_a_groups() -> None:
    stored = to_plain(composed("data=imagefolder", "data.root=/old", "data.image_size=96").data)

    def data(*overrides: str) -> DataConfig:
        config = composed("checkpoint=x.pt", *overrides, job="evaluate")
        assert isinstance(config, EvaluateConfig)
        return evaluation_data(stored, config.data)

    assert to_plain(data()) == stored
    moved = data("data.root=/new", "data.eval_batch_size=7")
    assert (moved.root, moved.source["root"]) == ("/new", "/new")
    assert data("data.reencoded=true").source["reencoded"] is True
    assert (moved.eval_size, moved.eval_batch_size) == (96, 7)
    with pytest.raises(InputError, match="lies in no folder"):
        evaluation_data(to_plain(composed().data), {"root": "/x"})
    chosen = data("data=digits")
    assert (chosen.name, chosen.eval_size) == ("digits", 32)
    assert data("data=imagenet", "data.root=/x").source["root"] == "/x"


@pytest.mark.parametrize(("text", "value"), [("1/6", 1 / 6), ("0.5", 0.5), (1, 1.0), ("1", 1.0)])
def test_numbers(text: object, value: float) -> None:
    assert parse_number(text) == value
    assert OmegaConf.create({"a": text, "b": "${number:${a}}"}).b == value


@pytest.mark.parametrize(
    ("data", "override", "message"),
    [
        ("imagenet", "val_share=0.2", "val_share=0.2: expected null with data=imagenet, whose val"),
        (
            "imagenette",
            "val_folder=test",
            "val_folder=test: expected null with data=imagenette",
        ),
        (
            "imagenette",
            "download=true",
            "download=true: expected false with data=imagenette",
        ),
        ("digits", "reencoded=true", "reencoded=true: expected false with data=digits, which no"),
    ],
)
def test_a_key_that_the_data_does_not_take_is_refused(
    data: str, override: str, message: str
) -> None:
    with pytest.raises(InputError, match=rf"data\.{message}"):
        composed(f"data={data}", "data.root=/data", f"data.{override}")


def test_lists_of_multipliers_resolve() -> None:
    """`--cfg job --resolve` shows them."""
    config = composed_untyped("identity=[1,1/2]", job="latency")
    OmegaConf.resolve(config)
    assert config.model.network.identity_tensor_multiplier == [1, 0.5]
