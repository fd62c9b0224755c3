"""What runs have measured, read from their result.json files and from nothing else."""

import hashlib
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenext.errors import InputError
from mobilenext.files import printable
from mobilenext.genotype import named_genotypes
from mobilenext.tables.labels import DROPOUT, authors_dropout

NEEDED = ("model", "width", "identity", "data", "top1", "best_top1", "num_params", "madds",
          "epochs", "count", "seed", "git_commit", "config")  # fmt: skip

NOT_PROTOCOL = {
    "": ("name", "output_dir", "seed", "width", "identity", "checkpoint", "model", "genotype"),
    "data": (
        "root",
        "root_names_data",
        "download",
        "workers",
        "decoder",
        "readahead",
        "max_bad_share",
    ),
    "data.source": ("root", "download", "pack"),
    "runtime": ("device", "graph", "threads", "log_every", "timeout_minutes"),
}
"""Entries of a run's config that two networks need not share to be compared: what network it is,
where things lie, and how fast they go."""

MULTIPLIERS = ("width_mult", "identity_tensor_multiplier", "strides")
"""Arguments of networks that tables know apart from the others."""

MIXING = ("mixup", "cutmix", "erasing", "cutout")
"""Entries of a config's `augment` that a recipe is known by if they are not zero."""

ADDED_DEFAULTS = {
    "init_from": None,
    "freeze_backbone": False,
    "freeze_norms": False,
    "layer_decay": None,
    "auxiliary_weight": 0.4,
    "eval_every": 1,
    "norm_batch": None,
}
"""Entries that were added later, and the values with which they change nothing: results from before
and after are of one protocol. `mobilenext.config` marks the same fields as added."""
ADDED_INSIDE = {
    "data": {"val_folder": None, "val_share": None, "on_bad_box": "drop", "order": "shuffled"},
    "augment": {"pad_crop": None, "cutout": None},
    "runtime": {"fused": None},
}
"""The same of groups."""


OF_CELLS = "darts"
"""Name of the network of DARTS' cells: a genotype is no row of tables of networks, and has its own.
"""

RANDOM_CELL = re.compile(r"random:\d{1,12}(?::[\w.]{1,40}){0,3}", re.ASCII)
"""What `genotype=` says of a random cell."""


def arguments_of(network: dict[str, Any]) -> str:
    """A network's arguments but for its multipliers and strides, as JSON with sorted keys."""
    return json.dumps({k: v for k, v in network.items() if k not in MULTIPLIERS}, sort_keys=True)


def genotype_words(plain: Any, typed: Any = None) -> str:
    """What cells are called: their name, if they have one, or six digits of their genotype.

    Args:
        plain: The genotype as plain values.
        typed: What `genotype=` said, if that is known; it names random cells.
    """
    for name, genotype in named_genotypes().items():
        if genotype.to_plain() == plain:
            return name
    if isinstance(typed, str) and RANDOM_CELL.fullmatch(typed):
        return typed
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:6]


def images_per_norm(config: dict[str, Any], processes: int | None) -> int | None:
    """Training images that a batch norm sees at once.

    Args:
        config: A run's config as plain values.
        processes: Those of the run; None if that is not known.

    Returns:
        None if the config does not fix the number and `processes` is not known.
    """
    if config.get("norm_batch"):
        return config["norm_batch"]
    synchronised = config.get("batch_norm") == "sync"
    share = config["runtime"].get("micro_batch")
    if share is None and processes:
        share = config["data"]["global_batch_size"] // processes
    if not synchronised:
        return share
    return share * processes if share and processes else None


@dataclass(frozen=True)
class Conditions:
    """What decides a result a little and is not in its protocol."""

    machine: str
    """The accelerator, or the processor of a run without one."""
    torch: str
    decoder: str
    images_per_norm: int | None
    """See `images_per_norm`."""

    def facets(self) -> tuple[str, ...]:
        """Each in words, always in this order."""
        images = "unknown" if self.images_per_norm is None else self.images_per_norm
        return self.machine, f"torch {self.torch}", self.decoder, f"{images} images per norm"


@dataclass(frozen=True)
class Protocol:
    """All that has to be equal for two networks' accuracies to be compared: data and recipe."""

    text: str
    """The config without `NOT_PROTOCOL`, as JSON with sorted keys."""

    @property
    def config(self) -> dict[str, Any]:
        """The protocol's entries as plain values."""
        return json.loads(self.text)

    @property
    def short(self) -> str:
        """Six hexadecimal digits that tell protocols apart."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:6]

    @property
    def task(self) -> str:
        """Data, size of its images, and epochs."""
        config = self.config
        data = config["data"]
        size, eval_size = data["image_size"], data["eval_size"]
        return ", ".join(
            (
                data["name"] + (" (encoded anew)" if data.get("reencoded") else ""),
                f"{size} px" if size == eval_size else f"{size} px, evaluated at {eval_size} px",
                f"{config['epochs']} epochs",
            )
        )

    @property
    def recipe(self) -> str:
        """Optimiser, batch and all else in words, with the digits that tell protocols apart."""
        config = self.config
        optimizer, augment = config["optimizer"], config["augment"]
        parts = [
            f"{str(optimizer['_target_']).rpartition('.')[2]} {optimizer['lr']:g}",
            f"batch {config['data']['global_batch_size']}",
            str(config["schedule"]["_target_"]).rpartition(".")[2],
            f"label smoothing {config['label_smoothing']:g}",
            config["runtime"]["precision"],
        ]
        micro_batch = config.get("norm_batch") or config["runtime"].get("micro_batch")
        if micro_batch and config.get("batch_norm") != "sync":
            parts.append(f"norms of {micro_batch} images")
        if config.get("eval_every", 1) != 1:
            parts.append(f"evaluated every {config['eval_every']} epochs")
        if config["data"].get("order", "shuffled") != "shuffled":
            parts.append(f"images in {config['data']['order']}")
        if augment.get("randaugment"):
            parts.append(f"RandAugment {augment['randaugment']}")
        parts += [f"{name} {augment[name]:g}" for name in MIXING if augment.get(name)]
        if config.get("ema_decay"):
            parts.append(f"averaged weights {config['ema_decay']:g}")
        if config.get("init_from"):
            parts.append("from given weights")
        if config.get("freeze_backbone"):
            parts.append("classifier only")
        if config.get("freeze_norms"):
            parts.append("norms frozen")
        if config.get("layer_decay"):
            parts.append(f"layer decay {config['layer_decay']:g}")
        return ", ".join(parts) + f" (protocol {self.short})"

    def describe(self) -> str:
        """Task and recipe in a line."""
        return f"{self.task}, {self.recipe}"

    @property
    def of_the_paper(self) -> bool:
        """Whether runs of it may stand in a row of the paper: ImageNet, whole, as long as its runs.

        That is 224 px in training and evaluation, images that were not encoded anew, the layout's
        own strides, 200 epochs or more, and no weights to begin with.
        """
        config = self.config
        data = config["data"]
        return (
            data["name"] == "imagenet"
            and not data.get("reencoded")
            and data["image_size"] == data["eval_size"] == 224
            and config["epochs"] >= 200
            and config["strides"] == [2, 2, 2, 2, 2]
            and not config.get("init_from")
        )


def protocol_text(values: dict[str, Any], left_out: Sequence[str]) -> str:
    """What two results have to share to be compared, as JSON with sorted keys.

    Args:
        values: A result's; its config is taken without `NOT_PROTOCOL`.
        left_out: Entries of the config's top level to leave out.
    """
    kept = {key: value for key, value in values["config"].items() if key not in left_out}
    for place, names in NOT_PROTOCOL.items():
        *parents, last = place.split(".")
        holder = kept
        for parent in parents:
            holder = holder[parent]
        if last in holder:
            holder[last] = {k: v for k, v in holder[last].items() if k not in names}
    kept = {k: v for k, v in kept.items() if k not in ADDED_DEFAULTS or v != ADDED_DEFAULTS[k]}
    for group, defaults in ADDED_INSIDE.items():
        inner = kept.get(group, {}).items()
        kept[group] = {k: v for k, v in inner if k not in defaults or v != defaults[k]}
    if "init_from" in kept and "init_from" in values:
        kept["init_from"] = values["init_from"]["sha256"]  # wherever the file lay
    return json.dumps(kept, sort_keys=True)


@dataclass(frozen=True)
class Result:
    """One finished run."""

    path: Path
    values: dict[str, Any]
    """Entries of its result.json."""

    @property
    def model(self) -> str:
        """Name of the network's family."""
        return self.values["model"]

    @property
    def of_cells(self) -> bool:
        """Whether its network is one of DARTS' cells, which tables of searches show."""
        return self.model == OF_CELLS

    @property
    def width(self) -> float:
        """Width multiplier."""
        return float(self.values["width"])

    @property
    def identity(self) -> float:
        """Identity tensor multiplier."""
        return float(self.values["identity"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.values["seed"]

    @property
    def top1(self) -> float:
        """Top-1 after the last epoch, in per cent."""
        return self.values["top1"]

    @property
    def best_top1(self) -> float:
        """Top-1 after the best epoch, in per cent: chosen on the images that it is measured on."""
        return self.values["best_top1"]

    @property
    def history(self) -> list[dict[str, Any]]:
        """Measurements epoch by epoch, see `RunFolder.history`; empty in results of old runs."""
        return self.values.get("history", [])

    @property
    def commit(self) -> str:
        """Commit of the source, eight digits, with -dirty if files differed."""
        commit = self.values["git_commit"] or "unknown"
        digits, dash, dirty = commit.partition("-")
        return digits[:8] + dash + dirty

    @property
    def protocol(self) -> Protocol:
        """Data and recipe."""
        return Protocol(protocol_text(self.values, NOT_PROTOCOL[""]))

    @property
    def images_per_norm(self) -> int | None:
        """See the function of this name; None in results of old runs that do not say it."""
        return images_per_norm(
            self.values["config"], self.values.get("hardware", {}).get("processes")
        )

    @property
    def device(self) -> str:
        """The accelerator, or the processor of a run without one; "" if the result has neither."""
        hardware = self.values.get("hardware", {})
        return hardware.get("accelerator") or hardware.get("cpu") or ""

    @property
    def network_key(self) -> tuple[str, float, float]:
        """Family, width and identity tensor multiplier, for comparisons."""
        return self.model, round(self.width, 6), round(self.identity, 6)

    @property
    def conditions(self) -> Conditions:
        """Machine, torch and decoder of the run, and images per norm."""
        torch = self.values.get("versions", {}).get("torch", "unknown")
        return Conditions(
            self.device or "unknown machine",
            torch.partition("+")[0],  # what follows is the build for an accelerator
            self.values.get("decoder", "unknown decoder").partition(" (")[0],
            self.images_per_norm,
        )

    @property
    def arguments(self) -> str:
        """Arguments of the network beside its multipliers, as JSON: dropout for instance."""
        return arguments_of(self.values["config"]["model"]["network"])

    @property
    def dropout(self) -> float:
        """Probability before the classifier; 0.2, our networks' default, if the config has none."""
        return self.values["config"]["model"]["network"].get("dropout", DROPOUT)

    @property
    def plain(self) -> bool:
        """Whether the network was built with nothing but multipliers, strides and dropout."""
        network = self.values["config"]["model"]["network"]
        return set(network) <= {"_target_", *MULTIPLIERS, "dropout"}

    @property
    def of_the_paper(self) -> bool:
        """Whether it may stand in a row of the paper.

        See `Protocol`; besides, no validation image is left out and dropout is the authors'.
        """
        return (
            self.protocol.of_the_paper
            and self.values["count"] == 50_000
            and self.dropout == authors_dropout(self.model)
        )


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seeds."""

    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """The run with the smallest seed; network and protocol are those of all."""
        return self.results[0]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs."""
        return [result.seed for result in self.results]

    @property
    def mean(self) -> float:
        """Mean top-1 after the last epoch, in per cent."""
        return statistics.fmean(result.top1 for result in self.results)

    @property
    def best_mean(self) -> float:
        """Mean top-1 after each run's best epoch, in per cent."""
        return statistics.fmean(result.best_top1 for result in self.results)

    @property
    def std(self) -> float | None:
        """Sample standard deviation of the last epochs' top-1; None with one seed."""
        if len(self.results) < 2:
            return None
        return statistics.stdev(result.top1 for result in self.results)

    @property
    def commits(self) -> list[str]:
        """Commits of the runs, each once."""
        return sorted({result.commit for result in self.results})

    @property
    def of_the_paper(self) -> bool:
        """Whether all of them may stand in a row of the paper; see `Result.of_the_paper`."""
        return all(result.of_the_paper for result in self.results)


def read_results(paths: Sequence[Path], or_others: bool = False) -> list[Result]:
    """Read results of training.

    Args:
        paths: Each a result.json, or a folder that is searched for such files, however deep.
            Results of other jobs, which lie in the same folders, are left out.
        or_others: Whether a path may have such results only.

    Raises:
        InputError: A path is not there, has no results, or a file is not a result.
    """
    found: dict[Path, Result] = {}
    for path in paths:
        read = [(file, _read(file)) for file in _files(path)]
        results = {
            file.resolve(): Result(file, values)
            for file, values in read
            if kind_of(values) == TRAINING
        }
        if not results and not (or_others and read):
            raise InputError(
                f"{path}: found no result.json of a finished training run in it; runs/ is where "
                "train.py leaves them"
            )
        found |= results
    return sorted(found.values(), key=lambda result: str(result.path))


def other_results(paths: Sequence[Path], kind: str) -> dict[Path, dict[str, Any]]:
    """Results of a kind other than training, by their files; see `read_results`."""
    read = {file.resolve(): _read(file) for path in paths for file in _files(path)}
    return {file: read[file] for file in sorted(read) if kind_of(read[file]) == kind}


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"{path}: expected a run folder, a folder of runs or a result.json")
    return sorted(path.rglob("result.json")) if path.is_dir() else [path]


MEASURED = Path(__file__).parent / "measured"
"""Folder of the results that come with the source."""


def measured_results() -> list[Result]:
    """The results of training that come with the source, in `measured/`."""
    return read_results([MEASURED])


TRAINING, EVALUATION, QUANTIZED, LATENCY = "training", "evaluation", "quantized", "latency"
DETECTION, SEARCH = "detection", "search"
NEEDED_BY = {
    EVALUATION: ("checkpoint",),
    QUANTIZED: ("model", "data", "image_size", "float", "rows", "calibration", "files"),
    LATENCY: ("device", "threads", "batch", "rounds", "rows"),
    DETECTION: (
        "model",
        "width",
        "detector",
        "taps",
        "data",
        "split",
        "objects",
        "image_size",
        "epochs",
        "seed",
        "num_params",
        "madds",
        "ap_voc_11point",
        "ap_voc_area",
        "ap_coco",
        "config",
    ),
    SEARCH: (
        "data",
        "image_size",
        "epochs",
        "seed",
        "num_params",
        "top1",
        "space",
        "order",
        "genotype",
        "entropy",
        "config",
    ),
}
"""Entries that results of other jobs have."""


def kind_of(values: dict[str, Any]) -> str:
    """Which job a result is of; those from before `kind` are of training or evaluation."""
    if "kind" in values:
        return str(values["kind"])
    return EVALUATION if "checkpoint" in values and "epochs" not in values else TRAINING


def _read(path: Path) -> dict[str, Any]:
    """A result of any job."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a run's result in JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a run's result, an object, got {type(values).__name__}")
    kind = kind_of(values)
    if kind != TRAINING and kind not in NEEDED_BY:
        known = ", ".join((TRAINING, *NEEDED_BY))
        raise InputError(f"{path}: a result of kind {printable(kind)}: expected {known}")
    missing = [key for key in NEEDED_BY.get(kind, NEEDED) if key not in values]
    if missing:
        what = {TRAINING: "a training run", EVALUATION: "an evaluation"}.get(kind, f"kind {kind}")
        raise InputError(f"{path}: not the result of {what}: it lacks {', '.join(missing)}")
    return values


def group_results(results: Iterable[Result]) -> list[Group]:
    """Bring together what differs in nothing but the seed, in the order of network and protocol.

    Raises:
        InputError: Two runs of the same seed have different results.
    """
    groups: dict[tuple[Any, ...], dict[int, Result]] = {}
    for result in results:
        key = (result.protocol.text, result.model, -result.width, -result.identity,
               result.arguments)  # fmt: skip
        seeds = groups.setdefault(key, {})
        twin = seeds.get(result.seed)
        if twin is not None and twin.top1 != result.top1:
            raise InputError(
                f"{twin.path} and {result.path} are the same run by their configs, and have "
                f"top-1 {twin.top1:.2f} % and {result.top1:.2f} %: leave one of them out (they may "
                "have run on different hardware, or from different commits)"
            )
        seeds.setdefault(result.seed, result)
    return [
        Group(tuple(seeds[seed] for seed in sorted(seeds))) for _, seeds in sorted(groups.items())
    ]


def protocols_of(groups: Iterable[Group]) -> list[Protocol]:
    """Protocols of runs, each once, in the order of their descriptions."""
    return sorted({group.first.protocol for group in groups}, key=lambda one: one.describe())


def groups_of(protocol: Protocol | None, groups: Iterable[Group]) -> list[Group]:
    """Those runs that are of one protocol."""
    return [group for group in groups if group.first.protocol == protocol]


def tasks_of(groups: Iterable[Group]) -> list[str]:
    """Tasks of runs, see `Protocol.task`, each once, sorted."""
    return sorted({group.first.protocol.task for group in groups})


def groups_of_task(task: str, groups: Iterable[Group]) -> list[Group]:
    """Those runs that are of one task."""
    return [group for group in groups if group.first.protocol.task == task]


def decimal(value: float) -> str:
    """A number as tables have it: 72.0, 3.45."""
    text = f"{value:g}"
    return text if "." in text else f"{text}.0"
