"""Fields of configs, and the checks that their dataclasses share."""

from collections.abc import Sequence
from dataclasses import field
from fractions import Fraction
from typing import Any

from omegaconf import MISSING

from mobilenext.errors import InputError
from mobilenext.program import as_typed


def machine_only(default: Any, path: bool = False) -> Any:
    """A field that says how or where to run, not what comes out; left out of the fingerprint."""
    return field(default=default, metadata={"machine_only": True, "path": path})


def added_later(default: Any, path: bool = False) -> Any:
    """A field added later; its default changes nothing.

    It is part of the fingerprint only where it has another value: runs that were begun without it
    keep their folders, so that the same command still goes on with them.
    """
    return field(default=default, metadata={"added": True, "path": path})


PATH = {"path": True}
"""Metadata of fields with paths: `~` in front of one is the user's home folder."""


def path_field(default: Any = MISSING, positional: bool = False, runs: bool = False) -> Any:
    """A path; `~` in front of it is the user's home folder.

    Args:
        default: Its default.
        positional: Whether it is the command's one argument without a `=`.
        runs: Whether it means a run: `latest` in it is the newest, see `with_newest_run`.
    """
    return field(default=default, metadata={**PATH, "positional": positional, "runs": runs})


def path_list(default: Any = None, positional: bool = False, runs: bool = False) -> Any:
    """A list of paths.

    Args:
        default: Its default; None: an empty list.
        positional: Whether it gets the command's arguments without a `=`.
        runs: See `path_field`.
    """
    metadata = {**PATH, "positional": positional, "runs": runs}
    if default is MISSING:
        return field(default=default, metadata=metadata)
    return field(default_factory=lambda: list(default or ()), metadata=metadata)


def parse_numbers(value: Any) -> Any:
    """`parse_number`, of a list each: some jobs take several multipliers."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [parse_number(one) for one in value]
    return parse_number(value)


def parse_number(value: Any) -> float:
    """A number, also one written as a fraction.

    Raises:
        InputError: It is neither.
    """
    try:
        return float(Fraction(value)) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"expected a number or a fraction such as 0.5 or 1/6, got {value!r}"
        ) from error


def check_multipliers(width: float, identity: float) -> None:
    """Raise `InputError` unless width is above 0 and identity in (0, 1]."""
    check(0 < width <= 10, "width", "a width multiplier in (0, 10], for instance 0.5", width)
    check(
        0 < identity <= 1,
        "identity",
        "an identity tensor multiplier in (0, 1], for instance 1 or 1/6",
        identity,
    )


def are_shares(values: list[float]) -> bool:
    """Whether they are three numbers from 0 to 1, one for each channel."""
    return len(values) == 3 and all(0 <= value <= 1 for value in values)


def check(holds: bool, key: str, expected: str, value: Any) -> None:
    """Raise `InputError` about a key's value unless a condition holds.

    Args:
        holds: The condition.
        key: Dotted, as on the command line.
        expected: What the value has to be.
        value: What it is.
    """
    if not holds:
        raise InputError(f"{key}={as_typed(value)}: expected {expected}")


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `InputError` unless a key's value is one of some choices."""
    check(value in choices, key, f"one of {', '.join(choices)}", value)
