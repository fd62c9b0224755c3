"""`Table`, and its rendering as Markdown, CSV and LaTeX."""

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
    """A table of text: title, header, rows of cells, footnotes."""

    name: str
    """Name of its files and of its place in Markdown; letters, digits, `_` and `.`."""
    title: str
    columns: tuple[str, ...]
    """The header: names of the columns, with units."""
    rows: tuple[tuple[str, ...], ...]
    """Cells row by row, as many in each as there are columns."""
    footnotes: tuple[str, ...] = ()
    text_columns: int = 1
    """Number of leading columns that hold words, aligned left; the others hold numbers, aligned
    right."""
    task: str | None = None
    """Task of its runs (data, size of images, epochs), if it is a table of runs alone; None: it has
    published numbers."""
    measured: bool = True
    """Whether a run stands in it."""


def superscript(number: int) -> str:
    """A non-negative number in superscript digits, as footnotes are marked: 12 gives ¹²."""
    return "".join(SUPERSCRIPTS[int(digit)] for digit in str(number))


def to_markdown(table: Table) -> str:
    """The table as GitHub's Markdown: title in bold, padded cells, footnotes; ends in a newline."""
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
    """The table as CSV: the header in the first line, then the rows; no title, no footnotes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    return text.getvalue()


def to_latex(table: Table) -> str:
    """The table as LaTeX's `table`, which needs no package: caption, rows, footnotes."""
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
