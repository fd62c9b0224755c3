"""What is wrong with a command that can't be composed, and what was probably meant."""

import difflib
import re
import shlex
from collections.abc import Sequence
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

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


def is_about_the_command(error: Exception) -> bool:
    """Whether an error that Hydra raised is about the arguments, and `explained` can say so."""
    kinds = (HydraException, OmegaConfBaseException)
    return isinstance(error, kinds) or str(error).startswith((NO_NAME, SEVERAL_FLAGS))


def explained(error: Exception, overrides: Sequence[str]) -> str:
    """What is wrong with a command, for an error that Hydra raised while it composed the config.

    Hydra's own message may name a remedy that would not help: it offers to append any key, which a
    dataclass refuses.

    Args:
        error: See above.
        overrides: The command's arguments.
    """
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _unknown_choice(error)
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
    other_job = re.match(r"In '(\w+)/([\w/]+)': ConfigKeyError", first)
    if other_job is not None:
        return _of_another_job(other_job[1], other_job[2], str(error))
    if isinstance(cause, OmegaConfBaseException):
        key = str(getattr(cause, "full_key", None) or "")
        given = next((text for text in overrides if _key_of(text) == key), key)
        unknown = _unknown_key(cause, given)
        return unknown or f"{given}: {_expected(cause)}"
    if first.startswith(NO_NAME):
        given = " ".join(text for text in overrides if re.fullmatch("[a-z/]+=(null|[0-9.]+)", text))
        return f"{given}: expected the name of a choice; --help lists them"
    if first.startswith(SEVERAL_FLAGS):
        return (
            "expected one of the flags -m, --cfg and --info, got several; --cfg job shows the "
            "config of one run, without -m"
        )
    return "\n".join(line for line in str(error).splitlines() if "/hydra.cc/" not in line)


IN_WORDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def _expected(error: OmegaConfBaseException) -> str:
    """OmegaConf's message about a value, in words."""
    first = str(error).splitlines()[0]
    found = re.fullmatch("Value '(.*)' of type '.*' could not be converted to (.*)", first)
    if found is None or found[2] not in IN_WORDS:
        return first
    return f"expected {IN_WORDS[found[2]]}, got {found[1]!r}"


def _quoted(key: str, value: str) -> str:
    """An override whose value is a text, as a shell takes it."""
    return shlex.quote(f'{key}="{value}"')


def _key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    options = [str(option) for option in error.options or ()]
    close = difflib.get_close_matches(choice, options, n=3)
    meant = f"did you mean {' or '.join(f'{group}={name}' for name in close)}? " if close else ""
    return f"{group}={choice}: there is no such choice; {meant}choices: {', '.join(options)}"


def _of_another_job(group: str, choice: str, message: str) -> str:
    """About a choice whose keys this job does not have."""
    key = re.search(r"Key '(\w+)' not in", message)
    which = f" (key {key[1]})" if key else ""
    return (
        f"{group}={choice}{which} does not go with this job, or with the chosen data: detectors "
        "(scripts/detect.py) take data=voc or data=coco and augment=ssd, ssd_gentle or "
        "boxes_flip; classifiers (train.py) take the others"
    )


def _unknown_key(error: OmegaConfBaseException, given: str) -> str | None:
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
    found = f"did you mean {' or '.join(meant)}? " if meant else ""
    if "_target_" in names:  # a constructor's arguments; those with a default are not listed
        found += f"an argument that is not listed is added with +{given}; "
    listed = f"keys{inside}: {', '.join(names)}"
    if meant and not place:
        listed = "--help lists all keys"
    return f"{given}: there is no key {wrong}{inside}; {found}{listed}"


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
