"""What tables of all kinds share: cells, and the footnotes that go with them."""

import re
import statistics
from collections.abc import Iterable, Sequence

from mobilenext.tables.paper import PublishedNumber, tag_meanings
from mobilenext.tables.render import superscript
from mobilenext.tables.results import Group, decimal

NOT_MEASURED = "not measured"
NARROW_SPACE = "\u202f"

ACCURACY = ("top-1", "number of seeds", "top-1 at best epoch", "commit")
"""Columns of `accuracy_cells`."""
MEASURED = ("ours", "difference", *ACCURACY[1:])
"""Columns of `measured_cells`."""

LAST_EPOCH = (
    "Ours: top-1 in per cent after the last epoch, mean ± sample standard deviation over the "
    "seeds; the best epoch is chosen on the images that it is measured on."
)
"""Footnote of tables with these columns."""


def accuracy_cells(group: Group) -> tuple[str, ...]:
    """Accuracy of runs, with the number of seeds and the commits: the cells of `ACCURACY`."""
    return (
        mean_and_std(group),
        str(len(group.seeds)),
        f"{group.best_mean:.2f}",
        ", ".join(group.commits),
    )


def measured_cells(group: Group | None, published: float | None) -> tuple[str, ...]:
    """The same beside a published number: the cells of `MEASURED`.

    Args:
        group: The runs; None: there are none.
        published: Top-1 in per cent; None: there is no such number.
    """
    if group is None:
        return (NOT_MEASURED, "", "", "", "")
    difference = "" if published is None else signed(group.mean - published)
    mean, *others = accuracy_cells(group)
    return (mean, difference, *others)


def mean_and_std(group: Group) -> str:
    """Top-1 in per cent, with the standard deviation if there are several seeds."""
    return mean_of([result.top1 for result in group.results])


def mean_of(values: Sequence[float]) -> str:
    """A mean, with the sample standard deviation if there are several values."""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def cost_cells(params: int, madds: int) -> tuple[str, str]:
    """Parameters and MAdds in millions."""
    return f"{params / 1e6:.3f}", f"{madds / 1e6:.1f}"


def group_cost(group: Group) -> tuple[str, str]:
    """Parameters and MAdds of the runs' network, in millions."""
    return cost_cells(group.first.values["num_params"], group.first.values["madds"])


def published_cell(number: PublishedNumber | None, tags: set[str], unit: str = "") -> str:
    """A published number with its tag, which is added to those of the table.

    Args:
        number: The number; None: it was not recovered.
        tags: Tags in sight so far.
        unit: madds and latency have no more decimals than were published.
    """
    if number is None:
        return "not recovered"
    tags.add(number.tag)
    exact = unit in ("madds", "latency")
    return (
        f"{number.value:g} [{number.tag}]" if exact else f"{decimal(number.value)} [{number.tag}]"
    )


def condition_notes(group: Group | None, groups: Iterable[Group]) -> list[str]:
    """A note on what the runs of a row ran on, if not all runs of the table ran on the same."""
    every = {result.conditions for other in groups for result in other.results}
    if group is None or len(every) < 2:
        return []
    columns = list(zip(*(one.facets() for one in every), strict=True))
    differing = [number for number, column in enumerate(columns) if len(set(column)) > 1]
    seeds: dict[str, list[str]] = {}
    for result in group.results:
        facets = result.conditions.facets()
        words = ", ".join(facets[number] for number in differing)
        seeds.setdefault(words, []).append(str(result.seed))
    if len(seeds) == 1:
        return [f"All seeds: {next(iter(seeds))}."]
    parts = [
        f"seed{'s' if len(which) > 1 else ''} {', '.join(which)}: {words}"
        for words, which in seeds.items()
    ]
    text = "; ".join(parts)
    return [f"{text[0].upper()}{text[1:]}."]


def marks(row_notes: Iterable[str], notes: list[str]) -> str:
    """Superscripts of a row's notes, which are appended to those of the table if new."""
    numbers = sorted({_number(note, notes) for note in row_notes})
    return NARROW_SPACE.join(superscript(number) for number in numbers)


def footnotes(notes: Sequence[str], tags: set[str], *remarks: str) -> tuple[str, ...]:
    """Numbered notes, remarks on the whole table, and the meanings of all tags in sight."""
    meanings = tag_meanings()
    quoted = {tag for note in notes for tag in re.findall(r"\[(\w+)\]", note)}
    return (
        *(f"{superscript(number)} {note}" for number, note in enumerate(notes, 1)),
        *remarks,
        *(f"[{tag}] {meanings[tag]}." for tag in sorted(tags | quoted)),
    )


def signed(value: float) -> str:
    """A number with its sign and two decimals."""
    return f"{value:+.2f}".replace("-", "−")


def _number(note: str, notes: list[str]) -> int:
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1
