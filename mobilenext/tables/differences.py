"""What tells runs apart: the entries of their configs that differ, in words."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mobilenext.program import fraction
from mobilenext.tables.labels import authors_dropout, labels
from mobilenext.tables.results import Result, decimal, genotype_words

MOST = 4
"""More differing entries than this make no label; the six digits of the protocol do."""

FOLLOWS = {"schedule.epochs": "epochs", "data.eval_size": "data.image_size"}
"""Entries that configs derive from others, which are named in their place. `data.source` repeats
entries of `data`, too."""


def same_network(result: Result, results: Iterable[Result]) -> list[Result]:
    """Those results whose network has the same name, width and identity tensor multiplier."""
    return [other for other in results if other.network_key == result.network_key]


def differing_arguments(result: Result, others: Iterable[Result]) -> list[str]:
    """Arguments of a run's network that set it apart, each as "NAME VALUE", sorted.

    Args:
        result: The run.
        others: Runs to tell it from; the run itself may be among them.

    Returns:
        The arguments that differ from those of another run; dropout also where it is not the
        authors', the genotype of cells in any case.
    """
    own = json.loads(result.arguments)
    shown = {"dropout"} if result.dropout != authors_dropout(result.model) else set()
    if result.of_cells:
        shown.add("genotype")
    for other in (json.loads(one.arguments) for one in others):
        shown |= {name for name in own if name not in other or other[name] != own[name]}
    words = {name: _words(own[name]) for name in sorted(shown & own.keys())}
    if "genotype" in words:
        words["genotype"] = genotype_words(own["genotype"], result.values["config"].get("genotype"))
    return [f"{name} {text}" for name, text in words.items()]


def differing_entries(result: Result, others: Iterable[Result]) -> list[str]:
    """Entries of a run's protocol that set it apart, each as "KEY VALUE", sorted by key.

    Runs on other data are told apart by the data's name alone, since most of a recipe follows from
    the data. An entry that only one of two runs has (an argument of its optimiser, one that was
    added later) counts if nothing else differs.

    Args:
        result: The run.
        others: Runs to tell it from; the run itself may be among them.
    """
    own = _entries(result)
    shown: set[str] = set()
    for other in map(_entries, others):
        if own["data"] != other["data"]:
            shown.add("data")
            continue
        differing = {key for key in own.keys() & other.keys() if own[key] != other[key]}
        differing -= {key for key in differing if _derived(key, own, other)}
        shown |= differing or own.keys() - other.keys()
    return [f"{key} {_words(own[key])}" for key in sorted(shown)]


def few(entries: Sequence[str]) -> list[str]:
    """Entries that make a label: all of them, or none if there are more than `MOST`."""
    return list(entries) if len(entries) <= MOST else []


def run_label(result: Result, results: Iterable[Result], seed: bool = False) -> str:
    """A run's network and what tells it from others of the same network.

    Args:
        result: The run.
        results: Runs to tell it from; the run itself may be among them.
        seed: Whether seeds count.

    Returns:
        For instance "MobileNeXt 1.0, identity 1/2, optimizer.lr 0.05, seed 1".
    """
    others = same_network(result, results)
    plain = result.of_cells and result.width == 1
    parts = [labels().label(result.model) if plain else with_width(result)]
    if result.identity != 1:
        parts.append(f"identity {fraction(result.identity)}")
    parts += what_differs(result, others)
    if seed and any(other.seed != result.seed for other in others):
        parts.append(f"seed {result.seed}")
    return ", ".join(parts)


def with_width(result: Result) -> str:
    """A network's label and its width: "MobileNeXt 0.5", "MobileNeXt, no shortcuts, width 0.5"."""
    label, width = labels().label(result.model), decimal(result.width)
    return f"{label}, width {width}" if "," in label else f"{label} {width}"


def what_differs(result: Result, others: Sequence[Result]) -> list[str]:
    """A run's differing arguments and entries; the protocol's digits, if there are many entries."""
    entries = differing_entries(result, others)
    return [
        *differing_arguments(result, others),
        *(entries if len(entries) <= MOST else [f"protocol {result.protocol.short}"]),
    ]


def _entries(result: Result) -> dict[str, Any]:
    """A protocol's entries by dotted key; what a `_target_` names stands under its holder's key."""
    found: dict[str, Any] = {}

    def add(prefix: str, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                add(f"{prefix}{key}.", value)
            elif key == "_target_":
                found[prefix[:-1]] = str(value).rpartition(".")[2]
            else:
                found[f"{prefix}{key}"] = value

    add("", result.protocol.config)
    found["data"] = found.pop("data.name")
    return found


def _derived(key: str, own: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs differ in an entry because they differ in the one that it follows."""
    source = key.replace("data.source.", "data.") if "data.source." in key else FOLLOWS.get(key)
    return source is not None and all(
        source in values and values[source] == values[key] for values in (own, other)
    )


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
