"""Results of runs that never were, in the shape that training writes."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from mobilenext.files import write_whole
from mobilenext.genotype import SPACES, Genotype, edges_of
from mobilenext.tables.confusion import matrix_files

CONFIG: dict[str, Any] = {
    "name": "a-name",
    "output_dir": "runs",
    "seed": 0,
    "width": 1.0,
    "identity": 1.0,
    "strides": [2, 2, 2, 2, 2],
    "epochs": 210,
    "label_smoothing": 0.1,
    "decay_norm_and_bias": False,
    "clip_grad_norm": None,
    "ema_decay": None,
    "ema_warmup": False,
    "nonfinite": "stop",
    "batch_norm": "reduce",
    "checkpoint": {"every_steps": None, "every_minutes": 10.0, "max_share": 0.05, "keep": 2},
    "model": {
        "name": "mobilenext",
        "network": {
            "_target_": "mobilenext.models.MobileNeXt",
            "width_mult": 1.0,
            "identity_tensor_multiplier": 1.0,
            "dropout": 0.2,
            "strides": [2, 2, 2, 2, 2],
        },
    },
    "data": {
        "name": "imagenet",
        "source": {"_target_": "mobilenext.data.imagenet", "root": "/data", "reencoded": False},
        "root": "/data",
        "root_names_data": False,
        "reencoded": False,
        "download": False,
        "image_size": 224,
        "eval_size": 224,
        "global_batch_size": 512,
        "workers": None,
        "decoder": "auto",
        "max_bad_share": 0.01,
    },
    "augment": {"hflip": 0.5},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
    "schedule": {"_target_": "mobilenext.optim.cosine", "epochs": 210},
    "runtime": {"device": "auto", "precision": "fp32", "threads": None, "log_every": 50,
                "timeout_minutes": 30.0, "deterministic": False},
}  # fmt: skip

COSTS = {("mobilenext", 1.0): (3535416, 311264512), ("mobilenetv2", 1.0): (3504872, 300774272)}


def fake_result(
    model: str = "mobilenext",
    width: float = 1.0,
    identity: float = 1.0,
    seed: int = 0,
    top1: float = 74.0,
    **changes: Any,
) -> dict[str, Any]:
    """What result.json would say.

    Args:
        model: Name of the family.
        width: Width multiplier.
        identity: Identity tensor multiplier.
        seed: The run's seed.
        top1: Of the last epoch, in per cent.
        **changes: Entries of the result, or of its config as `config__data__image_size=96`.
    """
    config = copy.deepcopy(CONFIG)
    config |= {"seed": seed, "width": width, "identity": identity}
    network = config["model"]["network"]
    network |= {"width_mult": width, "identity_tensor_multiplier": identity}
    config["model"]["name"] = model
    params, madds = COSTS.get((model, width), (2_000_000, 100_000_000))
    result: dict[str, Any] = {
        "model": model,
        "width": width,
        "identity": identity,
        "data": "imagenet",
        "top1": top1,
        "top5": 91.5,
        "loss": 1.0,
        "count": 50_000,
        "best_top1": top1 + 0.1,
        "best_epoch": 200,
        "num_params": params,
        "madds": madds,
        "image_size": 224,
        "epochs": 210,
        "steps": 100,
        "images_per_second": 1000.0,
        "data_wait_share": 0.02,
        "wall_seconds": 3600.0,
        "sessions": 1,
        "seed": seed,
        "precision": "fp32",
        "decoder": "native",
        "history": [
            {"epoch": n, "step": 50 * n, "lr": 0.1, "train": {"loss": 3.0 / n, "top1": 10.0 * n},
             "val": {"loss": 2.0 / n, "top1": top1 * n / 2, "top5": 90.0}}
            for n in (1, 2)
        ],
        "command": "python train.py experiment=x",
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "hardware": {"device": "cuda", "accelerator": "A GPU", "processes": 8, "cpu": "A CPU",
                     "cpu_count": 64, "threads_per_process": 8, "platform": "Linux"},
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "config": config,
    }  # fmt: skip
    return _changed(result, changes)


def small_result(**changes: Any) -> dict[str, Any]:
    """Of a short run on small images."""
    return fake_result(
        **{
            "config__data__name": "imagenette",
            "config__data__image_size": 96,
            "config__data__eval_size": 96,
            "config__epochs": 8,
            "data": "imagenette",
            "count": 3925,
            "epochs": 8,
            **changes,
        }
    )


def fake_search(
    genotype: Genotype, seed: int = 0, space: str = "darts_sandglass", **changes: Any
) -> dict[str, Any]:
    """What result.json of a search would say that found a genotype.

    Args:
        genotype: What it found.
        seed: The search's.
        space: Its search space.
        **changes: Entries of the result, or of its config as for `fake_result`.
    """
    operators = [*SPACES.get(space, SPACES["darts"])]
    edges = len(edges_of(genotype.nodes))
    weak = 0.5 / (len(operators) - 1)
    alphas = [[[weak] * (len(operators) - 1) + [0.5]] * edges] * 2
    small = {"config__data__name": "cifar10", "config__data__image_size": 32,
             "config__data__eval_size": 32, "config__epochs": 50, "config__model__name": "supernet",
             "config__model__network": {"_target_": "mobilenext.models.Supernet"}}  # fmt: skip
    result = fake_result("supernet", seed=seed, top1=80.0, **small)
    result |= {
        "kind": "search", "data": "cifar10", "image_size": 32, "epochs": 50,
        "num_params": 2_000_000, "count": 25_000, "space": space, "order": "second",
        "genotype": genotype.to_plain(), "found_params": genotype.count_params(),
        "skips": genotype.skips, "entropy": 0.75, "operators": operators,
        "architecture": [
            {"epoch": n, "genotype": genotype.to_plain(), "skips": n, "entropy": 1 - n / 10,
             "found_params": genotype.count_params(), "alphas": alphas}
            for n in (1, 2, 3)
        ],
    }  # fmt: skip
    result["config"] |= {"space": {"name": space}, "order": "second", "partial_channels": 1,
                         "edge_weights": False, "auxiliary_skip": False, "max_skips": None,
                         "channels": 16, "cells": 8, "stem_stride": 1}  # fmt: skip
    return _changed(result, changes)


def fake_cell(
    genotype: Genotype, typed: str, seed: int = 0, top1: float = 97.0, **changes: Any
) -> dict[str, Any]:
    """What result.json would say of a network of cells, trained on CIFAR-10 as DARTS does it.

    Args:
        genotype: Of its cells.
        typed: What `genotype=` said.
        seed: The run's.
        top1: Of the last epoch, in per cent.
        **changes: Entries of the result, or of its config as for `fake_result`.
    """
    network = {"_target_": "mobilenext.models.DartsNetwork", "genotype": genotype.to_plain(),
               "channels": 36, "cells": 20, "auxiliary": True, "drop_path": 0.2,
               "stem_stride": 1, "width_mult": 1.0, "identity_tensor_multiplier": 1.0}  # fmt: skip
    result = fake_result(
        "darts", seed=seed, top1=top1, config__data__name="cifar10", config__data__image_size=32,
        config__data__eval_size=32, config__epochs=600, config__model__network=network,
        config__genotype=typed,
    )  # fmt: skip
    result |= {
        "kind": "training", "data": "cifar10", "image_size": 32, "epochs": 600, "count": 10_000,
        "num_params": genotype.count_params(), "madds": 500_000_000, "images_seen": 600 * 49_920,
        "unreadable_images": {"train": 0, "val": 0},
    }  # fmt: skip
    return _changed(result, changes)


def _changed(result: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        *places, last = key.split("__")
        holder = result
        for place in places:
            holder = holder[place]
        holder[last] = value
    return result


def write_results(folder: Path, *results: dict[str, Any]) -> Path:
    """Lay results out as runs/NAME/HASH/result.json."""
    for number, result in enumerate(results):
        path = folder / "runs" / result["model"] / f"{number:012x}" / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result))
    return folder / "runs"


def write_evaluation(runs: Path, counts: np.ndarray, classes: list[str]) -> Path:
    """Lay an evaluation with this confusion matrix out as evaluate/HASH; its folder."""
    folder = runs / "evaluate" / "0123456789ab"
    folder.mkdir(parents=True)
    count = int(counts.sum())
    result = {
        "model": "mobilenext", "data": "pets", "checkpoint": "runs/mobilenext/0/best.pt",
        "top1": 100 * int(counts.diagonal().sum()) / count, "top5": 100.0, "count": count,
    }  # fmt: skip
    for name, content in matrix_files(counts, classes).items():
        if content is not None:
            write_whole(folder / name, content)
    (folder / "result.json").write_text(json.dumps(result))
    return folder
