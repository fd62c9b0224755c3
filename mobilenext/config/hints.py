"""Hints about keys that do not exist: what was probably meant."""

import difflib
from typing import Any

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
}
"""What is ours, and what other trainers call it."""


def hint_for(error: BaseException | None) -> str | None:
    """What was probably meant by a key that does not exist, and all keys at its place.

    Args:
        error: What composing the config raised; its causes are looked at, too.
    """
    while error is not None:
        key, parent = getattr(error, "full_key", None), getattr(error, "parent_node", None)
        if isinstance(error, OmegaConfBaseException) and key and isinstance(parent, DictConfig):
            place, _, wrong = str(key).rpartition(".")
            names = [str(name) for name in parent if name != "hydra"]
            if wrong not in names:
                others = [ours for ours, theirs in SYNONYMS.items() if wrong in theirs]
                meant = _elsewhere(parent._get_root(), wrong) or others
                meant = meant or difflib.get_close_matches(wrong, names, n=3)
                inside = f" in {place}" if place else ""
                found = f"did you mean {' or '.join(meant)}? " if meant else ""
                return f"{found}keys{inside}: {', '.join(names)}"
        error = error.__cause__ or error.__context__
    return None


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
