"""What a command takes: its groups with their choices, and its keys with what they mean."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mobilenext.program import as_typed

FLAGS = (
    "Flags: -m runs all combinations of values that commas separate; --cfg job --resolve prints "
    "the composed config as YAML; --config-dir=FOLDER adds configs of your own; --hydra-help lists "
    "Hydra's own."
)


def command_help(
    usage: str, about: str, schema: type, composed: DictConfig, folders: Sequence[Path], width: int
) -> str:
    """Text for `--help`.

    Args:
        usage: The command as it is typed here.
        about: A sentence about the job.
        schema: Its config's dataclass.
        composed: Its config with the command's overrides, `hydra` included.
        folders: Those with configs; a folder in them is a group, a file in that a choice.
        width: Columns of the lines.
    """
    lines = [*_usage(usage, width), "", *_wrapped(about, width), ""]
    groups = _groups(composed, folders)
    if groups:
        lines += ["Groups, and their choices (* marks this command's):", ""]
        lines += [line for text in groups for line in _wrapped(text, width, hanging=4)]
        lines.append("")
    lines += ["Keys, with this command's values:", ""]
    for key, value, meaning in _keys(schema, composed):
        given = f"{key}={value}" if value else key
        lines.append(textwrap.shorten(given, width, placeholder=" ..."))
        lines += textwrap.wrap(meaning, width, initial_indent=" " * 4, subsequent_indent=" " * 4)
    return "\n".join([*lines, "", *_wrapped(FLAGS, width)])


def _usage(command: str, width: int) -> list[str]:
    """The line of usage, in two where a long path to Python leaves no room for one."""
    start, arguments = f"usage: {command}", "[key=value ...] [group=choice ...]"
    if len(start) + 1 + len(arguments) <= width:
        return [f"{start} {arguments}"]
    return [start, f"{' ' * len('usage: ')}{arguments}"]


def _wrapped(text: str, width: int, hanging: int = 0) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=" " * hanging)


def _groups(composed: DictConfig, folders: Sequence[Path]) -> Iterator[str]:
    """A line for each group that the job has."""
    for group, chosen in composed.hydra.runtime.choices.items():
        if group.startswith("hydra/") or "@" in group:
            continue  # Hydra's own, and what goes with another choice
        names = choices_of(group, folders)
        yield f"{group}: " + ", ".join(f"{name}*" if name == chosen else name for name in names)


def choices_of(group: str, folders: Sequence[Path]) -> list[str]:
    """Names of a group's choices, those in folders of it with a slash."""
    return sorted(
        path.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders
        for path in (folder / group).rglob("*.yaml")
    )


def _keys(schema: Any, config: DictConfig, place: str = "") -> Iterator[tuple[str, str, str]]:
    """Each key, dotted, with its value as it is typed and what it means; both may be empty."""
    meanings = field_meanings(schema)
    for item in dataclasses.fields(schema):
        key, meaning = f"{place}{item.name}", meanings.get(item.name, "")
        missing = OmegaConf.is_missing(config, item.name)
        value: Any = None if missing else config[item.name]
        if isinstance(value, DictConfig) and dataclasses.is_dataclass(item.type):
            yield from _keys(item.type, value, f"{key}.")
        elif isinstance(value, DictConfig):
            yield key, "", meaning
            yield from _leaves(value, f"{key}.")
        else:
            yield key, "(has to be given)" if missing else as_typed(value), meaning


def _leaves(config: DictConfig, place: str) -> Iterator[tuple[str, str, str]]:
    for name in config:
        key = f"{place}{name}"
        if OmegaConf.is_missing(config, name):
            yield key, "(has to be given)", ""
        elif isinstance(value := config[name], DictConfig):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, as_typed(value), ""


def field_meanings(schema: type) -> dict[str, str]:
    """The text below each field of a dataclass and of those that it extends, in one line each."""
    found: dict[str, str] = {}
    for one in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(definition, ast.ClassDef)
        for before, after in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(before, ast.AnnAssign)
                and isinstance(before.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[before.target.id] = " ".join(str(after.value.value).split())
    return found
