"""What is wrong with a command that can't be composed, and what was probably meant."""

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mobilenext.config.help import choices_of
from mobilenext.config.signatures import parameters_of
from mobilenext.errors import InputError

SYNONYMS = {
    "data.global_batch_size": ("batch_size", "batch", "bs"),
    "optimizer.lr": ("learning_rate", "base_lr"),
    "optimizer.weight_decay": ("wd",),
    "data.workers": ("num_workers",),
    "data.image_size": ("img_size", "size", "resolution"),
    "data.root": ("data_dir", "data_path", "path"),
    "data": ("dataset",),
    "model": ("arch", "network", "net"),
    "epochs": ("max_epochs", "num_epochs", "n_epochs"),
    "width": ("width_mult", "width_multiplier", "alpha"),
    "output_dir": ("output", "out", "log_dir", "save_dir"),
    "runtime.precision=bf16": ("amp", "fp16", "bf16", "dtype"),
    "torchrun --nproc_per_node=N train.py": ("gpus", "devices", "num_gpus"),
    "the same command once more, which goes on with its run": ("resume", "continue"),
    "init_from=FILE with weights": ("resume", "continue", "pretrained", "weights", "finetune"),
    "+model.network.pretrained=true (model=timm or torchvision)": ("pretrained",),
}
"""What is ours, and what other trainers call it."""


NO_NAME = "Config group override must be"
"""What Hydra's ValueError says of data=null or model=3; it has no type for it."""
SEVERAL_FLAGS = "Only one of --run"
"""What it says of -m --cfg job."""
ALONE = "The --resolve flag"
"""What it says of --resolve without --cfg."""


def is_about_the_command(error: Exception) -> bool:
    """Whether an error that Hydra raised is about the arguments, and `explained` can say so."""
    kinds = (HydraException, OmegaConfBaseException)
    return isinstance(error, kinds) or str(error).startswith((NO_NAME, SEVERAL_FLAGS, ALONE))


def explained(error: Exception, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """What is wrong with a command, for an error that Hydra raised while it composed the config.

    Hydra's own message may name a remedy that would not help: it offers to append any key, which a
    dataclass refuses.

    Args:
        error: See above.
        overrides: The command's arguments.
        folders: Those with configs.
    """
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _unknown_choice(error, overrides, folders)
    if isinstance(error, OverrideParseException):
        given = error.override
        key, _, value = given.partition("=")
        return (
            f"{given}: can't be read as key=value ({str(error).splitlines()[0]}); quote a value "
            f"with brackets, commas or spaces: {_quoted(key, value)}"
        )
    cause = error.__cause__
    first = str(error).splitlines()[0]
    if first.startswith("Ambiguous value for argument"):
        given = next((text for text in overrides if "," in text and text in first), first)
        key, _, value = given.partition("=")
        return (
            f"{given}: several values make a sweep, with -m; a list is {key}=[{value}], and a text "
            f"with commas is {_quoted(key, value)}"
        )
    missing = missing_key(error)
    if missing is not None:
        return no_value(missing)
    other_job = re.match(r"In '(\w+)/([\w/]+)': ConfigKeyError", first)
    if other_job is not None:
        return _of_another_job(other_job[1], other_job[2], str(error))
    if isinstance(cause, OmegaConfBaseException):
        key = str(getattr(cause, "full_key", None) or "")
        whole = key.partition("[")[0]  # strides[0] is part of strides=[a,b]
        given = next((text for text in reversed(overrides) if _key_of(text) == whole), key)
        unknown = _unknown_key(cause, given, folders) or _no_single_value(cause, given)
        return unknown or f"{given}: {_expected(cause)}"
    if first.startswith(NO_NAME):
        given = " ".join(text for text in overrides if re.fullmatch("[a-z/]+=(null|[0-9.]+)", text))
        return f"{given}: expected the name of a choice; --help lists them"
    if first.startswith(ALONE):
        return "--resolve: expected --cfg job beside it, which shows the config"
    if first.startswith(SEVERAL_FLAGS):
        return (
            "expected one of the flags -m, --cfg and --info, got several; --cfg job shows the "
            "config of one run, without -m"
        )
    return _wrong_sign(first, overrides) or "\n".join(
        line for line in str(error).splitlines() if "/hydra.cc/" not in line
    )


IN_WORDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def _expected(error: OmegaConfBaseException) -> str:
    """OmegaConf's message about a value, in words."""
    first = str(error).splitlines()[0]
    if first.endswith("is not Optional"):
        return "expected a value, it can't be empty"
    if first.endswith("is not a ListConfig, list or tuple."):
        return "expected a list, for instance [1,2]"
    found = re.fullmatch("Value '(.*)' of type '.*' could not be converted to (.*)", first)
    if found is None or found[2] not in IN_WORDS:
        return first
    return f"expected {IN_WORDS[found[2]]}, got {found[1]!r}"


def _quoted(key: str, value: str) -> str:
    """An override whose value is a text, as a shell takes it."""
    return shlex.quote(f'{key}="{value}"')


def _key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _unknown_choice(
    error: MissingConfigException, overrides: Sequence[str], folders: Sequence[Path]
) -> str:
    group, choice = _as_chosen(str(error.missing_cfg_file), overrides)
    options = choices_of(group, folders) or [str(option) for option in error.options or ()]
    below = sorted({name.rpartition("/")[0] for name in options} - {""})
    inside = next((f"{place}/" for place in below if f"{choice}/".startswith(f"{place}/")), "")
    last_parts = {name.rpartition("/")[2]: name for name in options}
    close = difflib.get_close_matches(choice, options, n=3)
    close = close or [last_parts[n] for n in difflib.get_close_matches(choice, last_parts, n=3)]
    close = [] if choice in below else close
    meant = f"did you mean {' or '.join(f'{group}={name}' for name in close)}? " if close else ""
    listed = [name for name in options if name.startswith(inside) and (inside or "/" not in name)]
    listed += [] if inside else [f"{place}/..." for place in below]
    return f"{group}={choice}: there is no such choice; {meant}choices: {', '.join(listed)}"


def _as_chosen(missing: str, overrides: Sequence[str]) -> tuple[str, str]:
    """Group and choice of a missing config: both may have slashes, model=ablation/kernel_5."""
    for text in overrides:
        group, _, value = text.partition("=")
        group = group.lstrip("+").partition("@")[0]
        for choice in value.strip("[]").split(","):
            if f"{group}/{choice}" == missing:
                return group, choice
    group, _, choice = missing.rpartition("/")
    return group, choice


def _wrong_sign(message: str, overrides: Sequence[str]) -> str | None:
    """About a + in front of what is there, or none in front of what is not; None: another error."""
    found = re.match(r"Could not append to config\. An item is already at '(.+)'", message)
    found = found or re.match(r"Multiple values for (\S+)\. To override a value", message)
    if found is not None:
        given = [text for text in overrides if text[:1] == "+" and _key_of(text) == found[1]]
        if not given:
            return None
        without = given[0].lstrip("+")
        return f"{given[0]}: {found[1]} is there already: leave out the +, {without}"
    found = re.fullmatch(r"([\w/@]+) appears more than once in the final defaults list", message)
    if found is not None:
        given = next((text for text in overrides if _key_of(text) == found[1]), found[1])
        return (
            f"{given}: a choice of {found[1]} is made already, and there can be only one; give "
            f"{found[1]}=... once, without +"
        )
    found = re.match(r"Could not delete from config\. '(.+)' does not exist", message)
    if found is not None:
        return f"~{found[1]}: there is no key {found[1]} to take out; --help lists all keys"
    found = re.match(r"Could not override '(.+)'\. No match in the defaults list", message)
    if found is None:
        return None
    given = next((text for text in overrides if _key_of(text) == found[1]), found[1])
    parent, _, below = found[1].partition("@")[0].partition("/")
    choice = given.partition("=")[2]
    meant = f"did you mean {parent}={below}/{choice}? " if below and choice else ""
    return f"{given}: this command has no group {found[1]}; {meant}--help lists its groups"


def _of_another_job(group: str, choice: str, message: str) -> str:
    """About a choice whose keys this job does not have."""
    key = re.search(r"Key '(\w+)' not in", message)
    which = f" (key {key[1]})" if key else ""
    return (
        f"{group}={choice}{which} does not go with this job, or with the chosen data: detectors "
        "(scripts/detect.py) take data=voc or data=coco and augment=ssd, ssd_gentle or "
        "boxes_flip; classifiers (train.py) take the others"
    )


def _no_single_value(error: OmegaConfBaseException, given: str) -> str | None:
    """About one value for what has several, each with a key of its own; None: another error."""
    key, parent = str(getattr(error, "full_key", "")), getattr(error, "parent_node", None)
    said = (
        r"Cannot assign \w+ to Dict|Invalid type assigned: \w+ is not a subclass|field '.*' is not"
    )
    if not isinstance(parent, DictConfig) or not re.match(said, str(error)):
        return None
    name = key.rpartition(".")[2]
    group = parent.get(name)
    if not isinstance(group, DictConfig):
        return None
    text = f"{given}: {key} is a group of keys: give {', '.join(f'{key}.{one}' for one in group)}"
    if key == "checkpoint":
        value = given.partition("=")[2]
        text += (
            ". A run goes on by itself, with the same command; weights to begin with are "
            f"init_from={value if '/' in value or value.endswith('.pt') else 'FILE'}"
        )
    return text


def missing_key(error: Exception) -> str | None:
    """The key without which another one has no value; None: the error is about something else."""
    found = re.search(r"Missing mandatory value: ([\w.]+)", str(error))
    found = found or re.search(r"Interpolation key '([\w.]+)' not found", str(error))
    return None if found is None else found[1]


OF_LIBRARIES = "mobilenetv3_small_100 (timm) or model.name=mobilenet_v3_small (torchvision)"
"""Names for model.name, which only the configs of those networks leave open."""


def no_value(key: str, example: str = "") -> str:
    """What to do about a key that has no value.

    Args:
        key: Dotted.
        example: A whole command that gives it one; "": there is none to name.
    """
    example = example or (f"model.name={OF_LIBRARIES}" if key == "model.name" else "")
    instance = f", for instance {example}" if example else ""
    return f"{key} has no value: add {key}=... to the command{instance}"


def _unknown_key(error: OmegaConfBaseException, given: str, folders: Sequence[Path]) -> str | None:
    """About a key that does not exist; None if the error is about something else."""
    key, parent = str(getattr(error, "full_key", "")), getattr(error, "parent_node", None)
    if not key or not isinstance(parent, DictConfig):
        return None
    place, _, wrong = key.rpartition(".")
    names = [str(name) for name in parent if name != "hydra"]
    if wrong in names:
        return None
    others = [ours for ours, theirs in SYNONYMS.items() if wrong in theirs]
    meant = _elsewhere(parent._get_root(), wrong) or others
    meant = meant or difflib.get_close_matches(wrong, names, n=3)
    inside = f" in {place}" if place else ""
    adding = ""
    if "_target_" in names:  # a constructor's arguments; those with a default are not listed
        takes = parameters_of(str(parent["_target_"]))
        unlisted = [name for name in takes or () if name not in names]
        close = difflib.get_close_matches(wrong, unlisted, n=3)
        meant = meant or [f"+{place}.{name}" for name in close]
        if takes is None or wrong in takes:
            meant = meant if takes is None else []
            adding = f"an argument that is not listed is added with +{given}; "
        elif not meant:
            adding = _choices_with(place, wrong, folders)
    found = f"did you mean {' or '.join(meant)}? {adding}" if meant else adding
    listed = f"keys{inside}: {', '.join(names)}"
    if meant and not place:
        listed = "--help lists all keys"
    return f"{given}: there is no key {wrong}{inside}; {found}{listed}"


def _choices_with(place: str, name: str, folders: Sequence[Path]) -> str:
    """Which choices of a group have a key, where the chosen one takes no such argument."""
    group, *inside = place.split(".")
    have = [
        choice
        for folder in folders
        for choice in choices_of(group, [folder])
        if _has(folder / group / f"{choice}.yaml", [*inside, name])
    ]
    return f"it is a key of {group}={', '.join(have)}; " if have else ""


def _has(path: Path, keys: Sequence[str]) -> bool:
    """Whether a config has a key, by the names on the way to it."""
    try:
        node: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, yaml.YAMLError, OmegaConfBaseException):
        return False  # a user's file, which nobody asked for
    for key in keys:
        node = node.get(key, _has) if isinstance(node, dict) else _has
    return node is not _has


def refuse_hidden(added: Path, ours: Path) -> None:
    """Raise `InputError` about configs of a user that have names of ours, which Hydra finds first.

    Args:
        added: The user's folder; copies of our files may lie in it.
        ours: Our folder.
    """
    hidden = []
    for file in sorted(ours.rglob("*.yaml")):
        name = file.relative_to(ours)
        other = added / name
        if other.is_file() and other.read_bytes() != file.read_bytes():
            hidden.append(name)
    if hidden:
        first = added / hidden[0]
        more = f", and so are {len(hidden) - 1} more files" if len(hidden) > 1 else ""
        raise InputError(
            f"{first}: expected a name of its own, {hidden[0]} is one of mobilenext's configs, "
            f"which would be taken{more}; rename it, for instance {first.stem}_mine.yaml"
        )


def _elsewhere(root: Any, name: str, place: str = "") -> list[str]:
    """Dotted keys of a config whose last part is a name, below its first level."""
    found = []
    for key in map(str, root) if isinstance(root, DictConfig) else ():
        dotted = f"{place}{key}"
        if dotted == "hydra" or OmegaConf.is_missing(root, key):
            continue
        if key == name and place:
            found.append(dotted)
        if not OmegaConf.is_interpolation(root, key):
            found += _elsewhere(root[key], name, f"{dotted}.")
    return found
