"""The way to the modules that plot, which need the extra `report`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mobilenext.errors import InputError


@contextmanager
def plotting(what: str) -> Iterator[None]:
    """Import a module that plots inside.

    Args:
        what: What needs it, and the verb, for the message.

    Raises:
        InputError: The plotting library, or another package of the extra, is not there.
    """
    # An account's first plot makes matplotlib's list of fonts; Hydra would print a line about it.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{what} {error.name}: pip install -e '.[report]'") from error
