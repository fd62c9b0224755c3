"""A table as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "\u202f": r"\,", "±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$",
    **{sign: rf"\textsuperscript{{{digit}}}" for digit, sign in enumerate(SUPERSCRIPTS)},
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Cells of text, with what has to be said of them."""

    name: str
    """For file names."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footnotes: tuple[str, ...] = ()
    text_columns: int = 1
    """How many of the first columns are words; the others are aligned as numbers."""


def superscript(number: int) -> str:
    """A footnote's mark."""
    return "".join(SUPERSCRIPTS[int(digit)] for digit in str(number))


def to_markdown(table: Table) -> str:
    """GitHub's Markdown: title, table, footnotes."""
    cells = [[text.replace("|", "\\|") for text in row] for row in (table.columns, *table.rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(table.columns))]
    lines = [f"**{table.title}**", ""]
    for number, row in enumerate(cells):
        padded = [
            text.ljust(width) if i < table.text_columns else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
        if number == 0:
            rules = [
                "-" * width if i < table.text_columns else "-" * (width - 1) + ":"
                for i, width in enumerate(widths)
            ]
            lines.append(f"| {' | '.join(rules)} |")
    if table.footnotes:
        lines += ["", *(f"{note}  " for note in table.footnotes[:-1]), table.footnotes[-1]]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """The cells only, with the columns' names in the first line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    return text.getvalue()


def to_latex(table: Table) -> str:
    """A `table` that needs no package."""
    columns = "l" * table.text_columns + "r" * (len(table.columns) - table.text_columns)
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_escaped(table.title)}}}",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \hline",
        f"    {_latex_row(table.columns)}",
        r"    \hline",
        *(f"    {_latex_row(row)}" for row in table.rows),
        r"    \hline",
        r"  \end{tabular}",
        *(rf"  \par\footnotesize {_escaped(note)}" for note in table.footnotes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(_escaped(text) for text in cells) + r" \\"


def _escaped(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)
