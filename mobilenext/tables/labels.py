"""Reads labels.yaml: what tables call the networks, and which networks they compare."""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from mobilenext.errors import InputError, first_line

FILE = "labels.yaml"
DROPOUT = 0.2
"""Dropout before the classifier in the authors' code, where it has any."""


@dataclass(frozen=True)
class Comparison:
    """A table named like the experiment that fills it."""

    title: str
    networks: tuple[str, ...]
    """Names of its networks, row by row."""


@dataclass(frozen=True)
class Labels:
    """The content of labels.yaml."""

    labels: dict[str, str]
    """Labels by the names of the networks, in the order that these have in tables."""
    without_dropout: tuple[str, ...]
    """Networks whose authors' code has no dropout."""
    comparisons: dict[str, Comparison]

    def label(self, model: str) -> str:
        """A network's label; its name, if it has none."""
        return self.labels.get(model, model)

    def place(self, model: str) -> int:
        """A network's place in the order of tables; networks without a label come last."""
        return list(self.labels).index(model) if model in self.labels else len(self.labels)

    def check_label(self, model: str) -> None:
        """Raise `InputError` if a network has no label."""
        if model not in self.labels:
            raise InputError(
                f"{FILE}: expected a label for the network {model}, found none; add it to `labels`"
            )


@cache
def labels() -> Labels:
    """The labels and comparisons of labels.yaml.

    Raises:
        InputError: The file is not as it has to be.
    """
    folder = resources.files(__package__ or "mobilenext.tables")
    return read_labels(folder.joinpath(FILE).read_text())


def authors_dropout(model: str) -> float:
    """Dropout before the classifier in the authors' code, which the network's config has too."""
    return 0.0 if model in labels().without_dropout else DROPOUT


def read_labels(text: str) -> Labels:
    """Labels and comparisons from the text of labels.yaml.

    Raises:
        InputError: It is no YAML, has an unknown or a missing entry, a name twice, an empty text,
            or names a network that has no label.
    """
    try:
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        line = str(getattr(error, "problem", None) or first_line(error))
        mark = getattr(error, "problem_mark", None)
        where = f"{FILE}, line {mark.line + 1}" if mark is not None else FILE
        raise InputError(
            f"{where}: expected labels in YAML, got something else ({line})"
        ) from error
    _check_entries(values, ("labels", "without_dropout", "comparisons"), FILE)
    texts = values["labels"]
    _check(isinstance(texts, dict) and bool(texts), "labels", "a label by each network's name")
    for model, label in texts.items():
        _check(isinstance(model, str), "labels", f"names as keys, got {model!r}")
        _check(_is_text(label), f"labels.{model}", f"a text, got {label!r}")
    without = _known_networks(values["without_dropout"], texts, "without_dropout")
    comparisons = {}
    _check(isinstance(values["comparisons"], dict), "comparisons", "a comparison by each name")
    for name, entry in values["comparisons"].items():
        place = f"comparisons.{name}"
        _check_entries(entry, ("title", "networks"), f"{FILE}: {place}")
        _check(_is_text(entry["title"]), f"{place}.title", f"a text, got {entry['title']!r}")
        networks = _known_networks(entry["networks"], texts, f"{place}.networks")
        _check(bool(networks), f"{place}.networks", "at least one network")
        comparisons[name] = Comparison(entry["title"], networks)
    return Labels(texts, without, comparisons)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping; YAML's own loader takes the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} stands there twice", key_node.start_mark
                )
            seen.append(key)
        return super().construct_mapping(node, deep)


def _check_entries(values: Any, expected: tuple[str, ...], place: str) -> None:
    found = set(values) if isinstance(values, dict) else set()
    if found != set(expected):
        unknown = ", ".join(sorted(map(str, found - set(expected))))
        missing = ", ".join(name for name in expected if name not in found)
        problem = f"got the unknown {unknown}" if unknown else f"it lacks {missing}"
        raise InputError(f"{place}: expected the entries {', '.join(expected)}; {problem}")


def _known_networks(names: Any, texts: dict[str, str], place: str) -> tuple[str, ...]:
    _check(isinstance(names, list), place, f"a list of networks, got {names!r}")
    unknown = [str(name) for name in names if name not in texts]
    _check(not unknown, place, f"networks that have a label, got {', '.join(unknown)}")
    _check(len(set(names)) == len(names), place, f"each network once, got {', '.join(names)}")
    return tuple(names)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check(holds: bool, place: str, expected: str) -> None:
    if not holds:
        raise InputError(f"{FILE}: {place}: expected {expected}")
