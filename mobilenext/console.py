"""Lines for whoever watches: printed once, beside a progress bar, times as people say them."""

import sys
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:  # it loads torch
    from mobilenext.runtime.distributed import Process


def say(text: str, process: "Process | None" = None) -> None:
    """Print a line once, from rank 0, without breaking a progress bar."""
    if process is None or process.is_main:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def format_seconds(seconds: float) -> str:
    """For instance 45 s, 3 min 20 s, 5 h 02 min, 3 d 04 h."""
    whole = round(seconds)
    for unit, size, small_unit, small in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small:02d} {small_unit}"
    return f"{whole} s"
