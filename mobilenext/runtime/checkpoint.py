"""Checkpoints: everything that training goes on from, and what the network in them is.

A checkpoint is a dict of tensors and plain values, so `torch.load(weights_only=True)` reads it and
a foreign file can't run code. Its `model` entry describes the network: the config's name, the
constructor's `_target_` and arguments, the number of classes. Final weights are safetensors with
the same description as metadata.
"""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any, overload

import safetensors
import safetensors.torch
import torch
from torch import nn

from mobilenext.errors import InputError
from mobilenext.runtime.files import write_atomically

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        InputError: It can't be written (a full disk, say); what was there before stays.
    """
    try:
        write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))
    except (OSError, RuntimeError) as error:
        # torch reports a failed write as RuntimeError
        raise InputError(
            f"can't write the checkpoint {path} ({error}); the one before it, if any, is intact. "
            "Make room and run the same command again"
        ) from error


@overload
def load_checkpoint(path: Path) -> dict[str, Any]: ...
@overload
def load_checkpoint(path: Path, missing_ok: bool) -> dict[str, Any] | None: ...
def load_checkpoint(path: Path, missing_ok: bool = False) -> dict[str, Any] | None:
    """Read a checkpoint onto the CPU.

    Args:
        path: The file.
        missing_ok: Return None if there is no such file.

    Raises:
        InputError: The file is missing, damaged or not a checkpoint of this package.
    """
    if path.is_dir():
        raise InputError(
            f"{path}: expected a checkpoint, got a folder; a run has {path / 'best.pt'}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # guesses about foreign files
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        if missing_ok:
            return None
        raise InputError(f"checkpoint={path}: expected a file, found none there") from error
    except pickle.UnpicklingError as error:
        # torch's own message recommends to switch the safety off; we don't.
        raise InputError(
            f"{path}: expected a checkpoint, got a file that is not one, or that holds more than "
            "tensors and plain values and is therefore not read"
        ) from error
    except Exception as error:  # torch's reader of damaged files raises almost anything
        raise InputError(
            f"{path}: expected a checkpoint, could not read it ({type(error).__name__}: "
            f"{_first_line(error)}). If this is the last.pt of a run that is damaged, remove it to "
            "start over, or copy best.pt over it to go on from the best epoch"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "model" not in state:
        raise InputError(
            f"{path}: expected a checkpoint of mobilenext (format {FORMAT}), got something else"
        )
    return state


def save_weights(path: Path, network: nn.Module, description: dict[str, Any]) -> None:
    """Write a network's weights as safetensors, with a JSON description as metadata."""
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    data = safetensors.torch.save(tensors, {"mobilenext": json.dumps(description)})
    write_atomically(path, lambda file: file.write(data))


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights to evaluate and their description, from a checkpoint or a safetensors file.

    Where a checkpoint has averaged (EMA) weights, it is these.

    Raises:
        InputError: The file is missing, damaged or not one of this package.
    """
    if path.suffix != ".safetensors":
        state = load_checkpoint(path)
        description = {key: state[key] for key in ("model", "classes", "data")}
        return state["ema"] or state["network"], description
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"checkpoint={path}: expected a file, found none there") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: expected safetensors, could not read it ({error})") from error
    if "mobilenext" not in metadata:
        raise InputError(
            f"{path}: expected weights written by mobilenext; the file does not say which network "
            "it belongs to"
        )
    return tensors, json.loads(metadata["mobilenext"])


def load_into(network: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Copy weights into a network that has to have exactly these names and shapes.

    Raises:
        InputError: The weights are of another network.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{path}: expected the weights of the {type(network).__name__} that the config "
            f"describes, got those of another network ({_first_line(error, 1)})"
        ) from error


def _first_line(error: BaseException, line: int = 0) -> str:
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return lines[min(line, len(lines) - 1)] if lines else type(error).__name__
