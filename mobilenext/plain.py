"""Plain values out of files that anybody may have written: of known kinds, and not too many.

A leaf that every room may import.
"""

from typing import Any

from mobilenext.errors import InputError

MOST_LEVELS = 32
MOST_VALUES = 100_000
MOST_CHARACTERS = 10_000
MOST_TEXT = 1_000_000
"""Characters of all texts together."""
SEVERAL = (dict, list, tuple)


def check_plain(value: Any, what: str, where: str = "") -> None:
    """Raise `InputError` unless a value is plain and small enough to be handled without care.

    Plain are dicts with text as keys, lists, tuples, texts, numbers, booleans and None. A few
    bytes may describe a list that has itself in it, or a list of lists that never ends: so every
    visit counts, not every object.

    Args:
        value: What a file holds.
        what: What it should be, for the message.
        where: The file, for the message.
    """
    what = f"{where}: expected {what}" if where else f"expected {what}"
    visits = characters = 0
    ahead: list[tuple[Any, int]] = [(value, 0)]
    while ahead:
        item, level = ahead.pop()
        visits += 1
        if visits > MOST_VALUES or (isinstance(item, SEVERAL) and len(item) > MOST_VALUES):
            raise InputError(f"{what}, got one of more than {MOST_VALUES:,} values")
        if level > MOST_LEVELS:
            raise InputError(f"{what}, got one of more than {MOST_LEVELS} levels")
        if isinstance(item, dict):
            ahead.extend((key, level + 1) for key in item)
            if not all(isinstance(key, str) for key in item):
                raise InputError(f"{what}, got one with a name that is no text")
            item = tuple(item.values())
        if isinstance(item, list | tuple):
            ahead.extend((inner, level + 1) for inner in item)
        else:
            _check_one(item, what)
            characters += len(item) if isinstance(item, str) else 0
            if characters > MOST_TEXT:
                raise InputError(f"{what}, got one of more than {MOST_TEXT:,} characters")


def _check_one(item: Any, what: str) -> None:
    if isinstance(item, str):
        if len(item) > MOST_CHARACTERS:
            raise InputError(f"{what}, got one with {len(item):,} characters in a text")
    elif item is not None and not isinstance(item, int | float):
        raise InputError(f"{what}, got one with a {type(item).__name__} in it")
