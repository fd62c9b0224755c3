"""What a page shows of searches: pictures of their cells, and how they went. Needs matplotlib."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mobilenext.errors import InputError
from mobilenext.files import printable
from mobilenext.genotype import NONE, OPERATORS, Genotype, edges_of, state_name
from mobilenext.tables.cell_pictures import cells_svg
from mobilenext.tables.charts import SERIES, Chart, Series, chart
from mobilenext.tables.detected import pace_of
from mobilenext.tables.results import genotype_words
from mobilenext.tables.searched import Search, is_number, space_words

MOST_DRAWN = 24
"""Searches that a page draws; the others stand in its tables."""
MOST_POINTS = 60
"""Epochs in a chart; of more, some are passed over."""
MOST_EPOCHS, MOST_EDGES = 10_000, 27
"""Epochs that a result may have, and edges of a cell (six nodes), to be drawn."""


@dataclass(frozen=True)
class SearchView:
    """What a page shows of one search."""

    title: str
    picture: str
    """An <svg> of both cells."""
    operators: tuple[tuple[str, ...], ...]
    """The same as a table, see `OPERATOR_COLUMNS`."""
    charts: Sequence[Chart]
    href: str
    """Link to the run's folder."""
    pace: str
    """Images per second, hardware and minutes of the search, in words."""
    command: str
    config: str
    """The run's config as YAML."""


OPERATOR_COLUMNS = ("cell", "node", "operator", "from")


def search_views(
    files: dict[Path, dict[str, Any]], link: Callable[[Path], str], name: str = "search"
) -> list[SearchView]:
    """Cells and courses of the first searches; those that can't be shown are left out.

    Args:
        files: Results of `scripts/search.py` by their files.
        link: Makes a link to a folder.
        name: Prefix of ids in the page.
    """
    views = []
    for file, values in files.items():
        try:
            search = Search.of(values)
        except InputError:
            continue
        if len(views) == MOST_DRAWN:
            break
        here = f"{name}-{len(views) + 1}"
        genotype = search.genotype
        title = (
            f"{space_words(search.space)}, {search.how}, seed {values['seed']}: genotype "
            f"{genotype_words(genotype.to_plain())}"
        )
        picture = cells_svg(genotype)
        picture = picture.replace("<title>", f'<title id="{here}-cells">', 1)
        picture = picture.replace("<svg ", f'<svg aria-labelledby="{here}-cells" ', 1)
        config = yaml.safe_dump(values["config"], sort_keys=False, allow_unicode=True)
        views.append(
            SearchView(title, picture, _operators(genotype), _course(here, values, genotype),
                       link(file.parent), _pace(values), printable(str(values.get("command", ""))),
                       config)
        )  # fmt: skip
    return views


def _operators(genotype: Genotype) -> tuple[tuple[str, ...], ...]:
    """Rows of `OPERATOR_COLUMNS`."""
    return tuple(
        (kind, str(number // 2), operator, state_name(source))
        for kind, edges in (("normal", genotype.normal), ("reduction", genotype.reduce))
        for number, (operator, source) in enumerate(edges)
    )


def _pace(values: dict[str, Any]) -> str:
    try:
        return pace_of(values)
    except (AttributeError, TypeError, ValueError):
        return ""


@dataclass(frozen=True)
class Epoch:
    """A search after an epoch."""

    number: int
    entropy: float
    skips: int
    weights: tuple[tuple[str, float], ...]
    """Of each edge of the normal cell: the strongest operator but `none`, and its weight."""


def _course(name: str, values: dict[str, Any], genotype: Genotype) -> list[Chart]:
    """How a search went, epoch by epoch; none, if its result does not say it as it should."""
    try:
        epochs = _epochs(values, genotype.nodes)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return []
    if len(epochs) < 2:
        return []
    edges = len(genotype.normal)
    first = chart(
        f"{name}-entropy",
        "Entropy of the alphas, and skip connections of the normal cell",
        "epoch",
        "share",
        [
            Series("entropy over its maximum", [(one.number, one.entropy) for one in epochs], 1,
                   markers=False),
            Series(f"skip connections, of {edges} operators",
                   [(one.number, one.skips / edges) for one in epochs], 2, dashes=1,
                   markers=False),
        ],
        whole_x=True,
    )  # fmt: skip
    if not epochs[0].weights:
        return [first]
    lines = []
    for edge, (node, source) in enumerate(edges_of(genotype.nodes)):
        operator = epochs[-1].weights[edge][0]
        points = [(one.number, one.weights[edge][1]) for one in epochs]
        label = f"{state_name(source)} to {node}, at the end {operator}"
        lines.append(Series(label, points, edge % SERIES + 1, dashes=edge // SERIES, markers=False))
    weights = chart(
        f"{name}-weights",
        "Strongest operator of each edge of the normal cell (not counting none)",
        "epoch",
        "weight (softmax)",
        lines,
        whole_x=True,
    )
    return [first, weights]


def _epochs(values: dict[str, Any], nodes: int) -> list[Epoch]:
    """Epochs of a result, at most `MOST_POINTS`; weights only if they are few enough to be drawn.

    Raises:
        ValueError: They are not what they have to be; KeyError, TypeError and others the same.
    """
    entries, operators = values["architecture"], values["operators"]
    if not isinstance(entries, list) or len(entries) > MOST_EPOCHS:
        raise ValueError
    if not isinstance(operators, list) or not set(operators) <= set(OPERATORS):
        raise ValueError
    step = max(1, -(-len(entries) // MOST_POINTS))
    taken = [entries[place] for place in sorted({*range(0, len(entries), step), len(entries) - 1})
             if place >= 0]  # fmt: skip
    edges = len(edges_of(nodes))
    epochs = []
    for entry in taken:
        number, entropy, skips = entry["epoch"], entry["entropy"], entry["skips"]
        if not all(map(is_number, (number, entropy, skips))):
            raise ValueError
        weights = []
        rows = entry["alphas"][0] if edges <= MOST_EDGES else []
        for row in rows:
            options = [(float(weight), operator)
                       for weight, operator in zip(row, operators, strict=True)
                       if operator != NONE and is_number(weight)]  # fmt: skip
            weight, operator = max(options, key=lambda option: option[0])
            weights.append((operator, weight))
        if len(weights) not in (0, edges):
            raise ValueError
        epochs.append(Epoch(number, entropy, skips, tuple(weights)))
    if len({len(one.weights) for one in epochs}) > 1:
        raise ValueError
    return epochs
