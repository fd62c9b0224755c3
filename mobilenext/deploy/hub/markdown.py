"""Texts and tables as Markdown that shows them as they are, whatever is in them."""

import re
from typing import Any

from mobilenext.files import printable

Rows = list[tuple[str, str]]
"""Rows of a table with two columns: name and value."""

PLAIN = re.compile(r"(?!.*www\.)(?!\d+[.)] )\w+(?:[ .,+/:-] ?\w+)*", re.ASCII)
"""Text in which Markdown finds nothing: no links, images, HTML or emphasis."""


def literal(value: Any) -> str:
    """A value out of a file, shown as it is: plain words as they stand, all else as a code span.

    Names of data, classes and the like are whatever somebody wrote into a checkpoint; on a public
    page they must not become images, links or headings.
    """
    text = " ".join(str(value).split())
    plain = PLAIN.fullmatch(text) and not text.startswith("_") and not text.endswith("_")
    return text if plain and "__" not in text else code_span(text)


def code_span(text: str) -> str:
    """A text as code within a line; backticks in it stay what they are."""
    text = " ".join(printable(text).split())
    ticks = "`" * (_longest_backticks(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def code_block(lines: list[str], language: str = "python") -> str:
    """Lines of code between fences longer than any row of backticks in them."""
    text = "\n".join(lines)
    fence = "`" * max(3, _longest_backticks(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(rows: Rows) -> str:
    """A table of two columns without headings."""
    cells = [[_cell(text) for text in row] for row in rows]
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells)])


def _cell(text: str) -> str:
    """A text as a cell of a table; a backslash before a pipe would undo the pipe's escape."""
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"(?<!\\)(\\*)\|", lambda found: found[1].replace("\\", "\\ ") + r"\|", text)


def _longest_backticks(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)
