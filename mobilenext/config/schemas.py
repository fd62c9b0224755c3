"""From composed YAML to dataclasses and back: names, types, interpolations, missing values."""

import dataclasses
import os
import re
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mobilenext import program
from mobilenext.config.fields import parse_numbers
from mobilenext.config.hints import missing_key, no_value
from mobilenext.config.run import with_newest_run
from mobilenext.errors import InputError, UserError
from mobilenext.genotype import genotype_named
from mobilenext.plain import check_plain


def schema_name(schema: type) -> str:
    """The name by which YAML calls a job's dataclass: `train_schema` for `TrainConfig`."""
    words = re.findall("[A-Z][a-z0-9]*", schema.__name__.removesuffix("Config"))
    return "_".join([*map(str.lower, words), "schema"])


def register(schema: type) -> None:
    """Give Hydra a job's dataclass, and OmegaConf the meaning of `${number:1/6}` and the like.

    Dataclasses that it extends are registered as well, since its YAML extends theirs.
    """
    for one in schema.__mro__:
        if dataclasses.is_dataclass(one):
            ConfigStore.instance().store(name=schema_name(one), node=_schema_node(one))
    OmegaConf.register_new_resolver("number", _numbers, replace=True)
    OmegaConf.register_new_resolver("genotype", _genotype, replace=True)


def _numbers(value: Any) -> Any:
    """A number, or OmegaConf's list of numbers, which `--resolve` can print."""
    numbers = parse_numbers(value)
    return OmegaConf.create(numbers) if isinstance(numbers, list) else numbers


def _genotype(text: Any) -> dict[str, Any]:
    """What a genotype's name or file says, so that a config does not depend on the file."""
    plain = OmegaConf.to_container(text) if isinstance(text, DictConfig) else text
    if isinstance(plain, str):
        plain = with_newest_run(plain, having_it=True)
    return genotype_named(plain).to_plain()


def _schema_node(schema: type) -> DictConfig:
    """A schema as Hydra merges it.

    One that extends another is merged over the other's composed config (configs/loader_report.yaml)
    and must not reset what that says: inherited fields come without their defaults.
    """
    node = OmegaConf.structured(schema)
    if dataclasses.is_dataclass(schema.__base__):
        for item in dataclasses.fields(schema.__base__):
            node[item.name] = MISSING
    return node


def is_text(config: type, key: str) -> bool:
    """Whether a key of a job's config holds text: a path or a name, or a list of them.

    Args:
        config: The job's dataclass.
        key: Dotted, for instance data.root.
    """
    return _hint(config, key) in (str, str | None, list[str])


def is_text_list(config: type, key: str) -> bool:
    """Whether a key of a job's config holds a list of texts; see `is_text`."""
    return _hint(config, key) == list[str]


def is_word_list(config: type, key: str) -> bool:
    """Whether a key holds a list of words, which commas separate, and not of paths."""
    item = next((item for item in dataclasses.fields(config) if item.name == key), None)
    return is_text_list(config, key) and item is not None and not item.metadata.get("path")


def _hint(config: type, key: str) -> Any:
    """The type of a key's value; None if there is no such key."""
    schema: Any = config
    hint: Any = schema
    for name in key.split("."):
        if not dataclasses.is_dataclass(schema):
            return None
        item = next((item for item in dataclasses.fields(schema) if item.name == name), None)
        if item is None:
            return None
        hint = get_type_hints(schema)[name]
        schema = item.metadata.get("entries_of", hint)
    return hint


def typed(config: DictConfig) -> Any:
    """Turn a composed config into its dataclass, interpolations resolved.

    Raises:
        InputError: A value is missing, of a wrong type or out of range.
    """
    _refuse_unknown(config)
    try:
        return _with_whole_paths(OmegaConf.to_object(config))
    except MissingMandatoryValue as error:
        key = str(getattr(error, "full_key", None))
        raise InputError(no_value(key, _usual_form(config, key))) from error
    except OmegaConfBaseException as error:
        key = missing_key(error)
        if key is not None and _hint(OmegaConf.get_type(config), key) is None:  # pyright: ignore[reportArgumentType]
            wanted = getattr(error, "full_key", None)
            raise InputError(f"{wanted}: ${{{key}}} names no key; --help lists them") from error
        if key is not None:
            raise InputError(no_value(key)) from error
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        key = _as_given(config, str(getattr(error, "full_key", None)))
        text = str(cause or str(error).splitlines()[0])
        raise InputError(text if text.startswith(f"{key}:") else f"{key}: {text}") from error


def _usual_form(config: DictConfig, key: str) -> str:
    """The command of a job with all paths that have to be given; "" if the key is none of them."""
    schema: Any = OmegaConf.get_type(config)
    needed = [
        item
        for item in dataclasses.fields(schema)
        if item.metadata.get("path") and item.default == MISSING
    ]
    if key not in [item.name for item in needed]:
        return ""
    words = [program.command(schema_name(schema).removesuffix("_schema"))]
    for item in needed:
        value = "runs/NAME/HASH" if item.metadata.get("runs") else item.name.upper()
        words.append(value if item.metadata.get("positional") else f"{item.name}={value}")
    return " ".join(words)


def _as_given(config: DictConfig, key: str) -> str:
    """What was typed for a key's value: of ${number:${identity}} it is identity=abc."""
    place, _, name = key.rpartition(".")
    parent = OmegaConf.select(config, place) if place else config
    if not isinstance(parent, DictConfig) or not OmegaConf.is_interpolation(parent, name):
        return key
    written: Any = OmegaConf.to_container(parent, resolve=False)
    asked = r"\$\{\w+:\$\{(?:oc\.select:)?([\w.]+)(?:,\w+)?\}\}"
    found = re.fullmatch(asked, written[name])
    if found is None:
        return key
    return f"{found[1]}={program.as_typed(OmegaConf.select(config, found[1]))}"


def _refuse_unknown(config: DictConfig, place: str = "") -> None:
    """A key that was added with `+` must not be ignored."""
    schema = OmegaConf.get_type(config)
    if not dataclasses.is_dataclass(schema):
        return
    known = [item.name for item in dataclasses.fields(schema)]
    for key in config:
        if key not in known:
            raise InputError(f"unknown key {place}{key}: expected one of {', '.join(known)}")
        if not OmegaConf.is_missing(config, key) and not OmegaConf.is_interpolation(config, key):
            value = config[key]
            if isinstance(value, DictConfig):
                _refuse_unknown(value, f"{place}{key}.")


def _with_whole_paths(config: Any) -> Any:
    """The same config, `~` in front of its paths and `latest` in those of runs replaced."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            _with_whole_paths(value)
        elif item.metadata.get("path") and value:
            paths = [value] if isinstance(value, str) else value
            whole = [os.path.expanduser(path) for path in paths]
            if item.metadata.get("runs"):
                whole = [with_newest_run(path) for path in whole]
            setattr(config, item.name, whole[0] if isinstance(value, str) else whole)
    return config


def from_plain(schema: type, values: dict[str, Any]) -> Any:
    """A dataclass from plain values, such as a checkpoint has; names and types are checked.

    Nothing in them is interpolated: `${oc.env:NAME}` in a file stays these characters.

    Raises:
        InputError: A name or a type does not fit.
    """
    try:
        check_plain(values, f"the values of a {schema.__name__}")
        merged = OmegaConf.merge(OmegaConf.structured(schema), _escaped(values))
    except (OmegaConfBaseException, ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"the stored {schema.__name__} does not fit this version: {str(error).splitlines()[0]}"
        ) from error
    assert isinstance(merged, DictConfig)
    return typed(merged)


def _escaped(value: Any) -> Any:
    """The value with each `${` in its strings written so that OmegaConf reads it as it stands."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(?<!\\)(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    return value


def to_plain(config: Any) -> dict[str, Any]:
    """A config dataclass as plain values."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    """A config dataclass as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))
