"""Tables of searches for cells and of the networks that were trained of cells.

What was searched stands beside random cells of its space, and never as a best of several: all
searches and all trainings that are given count.
"""

import hashlib
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobilenext.errors import InputError
from mobilenext.files import printable
from mobilenext.genotype import (
    BLOCKS,
    CELLS,
    CHANNELS,
    NODES,
    NONE,
    SPACES,
    BlockSettings,
    Genotype,
    named_genotypes,
)
from mobilenext.tables.cells import (
    NOT_MEASURED,
    footnotes,
    marks,
    mean_of,
    published_cell,
    signed,
)
from mobilenext.tables.paper import NamedRow, published_table
from mobilenext.tables.render import Table
from mobilenext.tables.results import (
    RANDOM_CELL,
    Protocol,
    Result,
    genotype_words,
    group_results,
    protocol_text,
)

TASK = "search"

SEARCHED, RANDOM, MATCHED = "searched", "random", "random, matched in parameters"
PUBLISHED, SUBSTITUTED, OTHER = "published", "substituted", "another file"
"""Where a trained cell comes from."""

SPACE_WORDS = {
    "darts": "DARTS",
    "darts_sandglass": "DARTS + sandglass",
    "darts_inverted_residual": "DARTS + inverted residual",
}
ORDERS = {
    "first": "first order",
    "second": "second order",
    "second_fd": "second order by differences",
}

PAPERS_DATA, PAPERS_SIZE, PAPERS_IMAGES, PAPERS_TRAINING_IMAGES = "cifar10", 32, 10_000, 50_000
PAPERS_EPOCHS, PAPERS_SEARCH_EPOCHS = 600, 50
"""Of DARTS' trainings and of its searches, on CIFAR-10."""

RANDOM_RANGE, RANDOM_MOST = (1.7, 4.3), (2.1, 3.8)
"""Parameters in millions of 1,000 random cells of DARTS' space, and of the middle 95 % of them."""

MOST_TEXT = 60
"""Characters of a text out of a result in a cell."""

SIZES = ("channels", "cells")
"""Arguments of a network of cells that say how large it is."""

USUAL = {"auxiliary": False, "drop_path": 0.0, "stem_stride": 1, "width_mult": 1.0,
         "identity_tensor_multiplier": 1.0}  # fmt: skip
"""Other arguments of it, with the values that titles need not name."""
PLAIN_SEARCH = {"channels": 16, "cells": 8, "stem_stride": 1, "train_share": 0.5,
                "partial_channels": 1, "edge_weights": False, "auxiliary_skip": False,
                "max_skips": None}  # fmt: skip
"""What a search is that may stand beside the paper: DARTS as it was published."""

LEFT_OUT = ("name", "output_dir", "seed", "checkpoint", "checkpointing", "pictures")
"""Entries of a search's config that searches of one row need not share."""

TARGET = re.compile(r"\d{1,4}(\.\d{1,6})?M", re.ASCII)


# ---- what is given, checked ----


@dataclass(frozen=True)
class Search:
    """A search whose result says what it has to say."""

    values: dict[str, Any]
    """Entries of its result.json."""
    genotype: Genotype
    method: str
    """Its config but for the seed and where things lie, as JSON: searches of one method differ in
    their seeds only."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Search":
        """A search from its result.

        Raises:
            InputError: An entry that tables show is not what it has to be; names it.
        """
        for key in ("data", "space", "order"):
            _check(isinstance(values[key], str), key, "a text", values[key])
        for key in ("image_size", "epochs", "seed", "num_params"):
            _check(_is_whole(values[key]), key, "a whole number", values[key])
        for key in ("top1", "entropy"):
            _check(is_number(values[key]), key, "a number", values[key])
        try:
            method = protocol_text(values, LEFT_OUT)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError("config: expected that of a search, got something else") from error
        return cls(values, Genotype.of(values["genotype"]), method)

    @property
    def space(self) -> str:
        """Name of the space that was searched; one of other operators is another space."""
        name, own = self.values["space"], self.values.get("operators")
        if name not in SPACES or not isinstance(own, list):
            return name
        if {*map(str, own)} - {NONE} == {*SPACES[name]} - {NONE}:
            return name
        return f"{name}, other operators"

    @property
    def how(self) -> str:
        """Order of the gradient of the alphas, and what sets the search apart from DARTS' own."""
        config = self.values["config"]
        channels, most = config.get("partial_channels", 1), config.get("max_skips")
        extras = [
            words
            for words, holds in (
                (f"one of {_short(channels)} channels", channels != 1),
                ("edge weights", config.get("edge_weights")),
                ("auxiliary skips", config.get("auxiliary_skip")),
                (f"up to {_short(most)} skips", most is not None),
            )
            if holds
        ]
        order = self.values["order"]
        return ", ".join([ORDERS.get(order, _short(order)), *extras])

    @property
    def task(self) -> tuple[str, int]:
        """Data, and size of its images."""
        return self.values["data"], self.values["image_size"]

    @property
    def of_the_paper(self) -> bool:
        """Whether networks of its cells may stand beside the paper: DARTS, as long, on its data."""
        config = self.values["config"]
        return (
            self.task == (PAPERS_DATA, PAPERS_SIZE)
            and self.values["epochs"] >= PAPERS_SEARCH_EPOCHS
            and all(config.get(key, usual) == usual for key, usual in PLAIN_SEARCH.items())
        )


@dataclass(frozen=True)
class Cell:
    """A cell that was trained by one recipe; the runs differ in their seeds only."""

    genotype: Genotype
    results: tuple[Result, ...]

    @property
    def typed(self) -> str:
        """What `genotype=` said; that it was drawn at random, if any run knows."""
        said = [str(one.values["config"].get("genotype")) for one in self.results]
        return next((text for text in said if RANDOM_CELL.fullmatch(text)), said[0])

    @property
    def top1(self) -> float:
        """Mean over its trainings, in per cent."""
        return statistics.fmean(one.top1 for one in self.results)


@dataclass(frozen=True)
class Recipe:
    """All that networks of two cells have to share to be compared: data, recipe, size."""

    protocol: Protocol
    network: str
    """The network's arguments but for its genotype, as JSON with sorted keys."""

    @property
    def short(self) -> str:
        """Six hexadecimal digits that tell recipes apart."""
        text = f"{self.protocol.text}\n{self.network}"
        return hashlib.sha256(text.encode()).hexdigest()[:6]

    @property
    def task(self) -> str:
        """Data, size of images, epochs, and size of the network, in words."""
        network = json.loads(self.network)
        sizes = [f"{_short(network[name])} {name}" for name in SIZES if name in network]
        return ", ".join([_short(self.protocol.task, 2 * MOST_TEXT), *sizes])

    @property
    def words(self) -> str:
        """All of it in a line."""
        others = [
            f"{_short(name)} {_short(value if isinstance(value, str) else json.dumps(value))}"
            for name, value in json.loads(self.network).items()
            if name not in SIZES and (name not in USUAL or value != USUAL[name])
        ]
        return ", ".join([self.task, *others, _short(self.protocol.recipe, 4 * MOST_TEXT)])


@dataclass(frozen=True)
class Row:
    """Trained cells of one origin: a row of a table."""

    origin: str
    words: str
    """What it is called beside its space."""
    cells: tuple[Cell, ...]
    space: str = ""
    """Name of the space; "": of none."""
    searches: tuple[Search, ...] = ()
    """Those that found the cells."""
    given: int = 0
    """Searches of that method, whether or not their cells were trained."""

    @property
    def results(self) -> list[Result]:
        """Trainings of all its cells."""
        return [one for cell in self.cells for one in cell.results]

    @property
    def top1s(self) -> list[float]:
        """What its mean and its deviation are over: random cells, or else trainings."""
        if self.origin in (RANDOM, MATCHED):
            return [cell.top1 for cell in self.cells]
        return [one.top1 for one in self.results]

    @property
    def space_words(self) -> str:
        """The space in words."""
        return space_words(self.space)

    @property
    def nodes(self) -> int:
        """Nodes of a cell."""
        return self.cells[0].genotype.nodes

    def mean_params(self, full_size: bool = False) -> str:
        """Mean number of parameters in millions, of what the accuracies are of.

        Args:
            full_size: Of networks of 36 channels and 20 cells, and not of those that were trained.
        """
        counts = []
        for cell in self.cells:
            own = cell.results[0].values["num_params"]
            count = cell.genotype.count_params() if full_size else own
            counts += [count] * (1 if self.origin in (RANDOM, MATCHED) else len(cell.results))
        return f"{statistics.fmean(counts) / 1e6:.3f}"


def searches_of(results: Iterable[dict[str, Any]]) -> list[Search]:
    """Searches that can be shown; see `left_out` for the others.

    Args:
        results: Of `scripts/search.py`.
    """
    found = []
    for values in results:
        try:
            found.append(Search.of(values))
        except InputError:
            continue
    return sorted(found, key=lambda one: (*one.task, _place(one.space), one.method,
                                          one.values["seed"]))  # fmt: skip


def genotype_of(result: Result) -> Genotype:
    """The genotype of a network that was trained.

    Raises:
        InputError: The result has none, or one that is no genotype, or an entry that tables show is
            not what it has to be.
    """
    for key in ("top1", "num_params", "count", "epochs", "seed", "width", "identity"):
        _check(is_number(result.values[key]), key, "a number", result.values[key])
    try:
        plain = result.values["config"]["model"]["network"]["genotype"]
        result.protocol.describe()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError("config: expected that of a trained cell, got something else") from error
    return Genotype.of(plain)


def left_out(searches: dict[Path, dict[str, Any]], trained: Iterable[Result]) -> list[str]:
    """A line on each result that tables of searches can't show, with the reason.

    Args:
        searches: Results of `scripts/search.py` by their files.
        trained: Results of training; those of other networks are passed over.
    """
    lines = []
    for file, values in searches.items():
        try:
            Search.of(values)
        except InputError as error:
            lines.append(f"{printable(file)}: left out: {error}")
    for result in trained:
        try:
            if result.of_cells:
                genotype_of(result)
        except InputError as error:
            lines.append(f"{printable(result.path)}: left out: {error}")
    return lines


def trained_cells(trained: Iterable[Result]) -> dict[Recipe, list[Cell]]:
    """Trained cells by their recipes, in the order of the recipes' words.

    Raises:
        InputError: Two runs of the same seed have different results.
    """
    known: list[Result] = []
    for result in trained:
        try:
            genotype_of(result)
            known.append(result)
        except InputError:
            continue
    found: dict[Recipe, dict[str, Cell]] = {}
    for group in group_results(known):
        genotype, first = genotype_of(group.first), group.first
        network = first.values["config"]["model"]["network"]
        others = {k: v for k, v in network.items() if k not in ("_target_", "genotype", "strides")}
        cells = found.setdefault(Recipe(first.protocol, json.dumps(others, sort_keys=True)), {})
        known_ones = cells[_key(genotype)].results if _key(genotype) in cells else ()
        cells[_key(genotype)] = Cell(genotype, (*known_ones, *group.results))
    ordered = sorted(found, key=lambda recipe: (recipe.words, recipe.short))
    return {recipe: [*found[recipe].values()] for recipe in ordered}


def rows_of(cells: Sequence[Cell], searches: Sequence[Search]) -> list[Row]:
    """Rows of one recipe: by space what was searched and what is random; published cells; others.

    Args:
        cells: Those that were trained by the recipe.
        searches: All that are given.
    """
    found = _searched_rows(cells, searches)
    known = {_key(cell.genotype) for row in found for cell in row.cells}
    randoms: dict[tuple[str, int, str], list[Cell]] = {}
    named: list[Row] = []
    names = {_key(genotype): name for name, genotype in named_genotypes().items()}
    for cell in cells:
        key = _key(cell.genotype)
        if key in known:
            continue
        drawn = _drawn(cell.typed)
        if drawn is not None:
            space, target = drawn
            randoms.setdefault((space, cell.genotype.nodes, target), []).append(cell)
        elif key in names:
            origin = PUBLISHED if names[key] == "darts_v2" else SUBSTITUTED
            named.append(Row(origin, _named_words(names[key]), (cell,)))
        else:
            words = f"{OTHER}, {genotype_words(cell.genotype.to_plain())}"
            named.append(Row(OTHER, words, (cell,)))
    for (space, nodes, target), part in sorted(randoms.items()):
        words = f"random, matched to {target[:-1]} M parameters" if target else "random cells"
        found.append(
            Row(MATCHED if target else RANDOM, words + _node_words(nodes), tuple(part), space)
        )
    order = [SEARCHED, RANDOM, MATCHED]
    found.sort(key=lambda row: (_place(row.space), row.nodes, order.index(row.origin)))
    order = [PUBLISHED, SUBSTITUTED, OTHER]
    return found + sorted(named, key=lambda row: (order.index(row.origin), row.words))


def _searched_rows(cells: Sequence[Cell], searches: Sequence[Search]) -> list[Row]:
    """A row for each method of searching; a cell that two of them found stands in both."""
    by_key = {_key(cell.genotype): cell for cell in cells}
    methods: dict[tuple[str, str, int], list[Search]] = {}
    for search in searches:
        key = (search.space, search.method, search.genotype.nodes)
        methods.setdefault(key, []).append(search)
    rows = []
    for (space, _, nodes), given in methods.items():
        taken = [one for one in given if _key(one.genotype) in by_key]
        if not taken:
            continue
        keys = dict.fromkeys(_key(one.genotype) for one in taken)
        first = taken[0]
        data = "" if first.values["data"] == cells[0].results[0].values["data"] else (
            f" of {_short(first.values['data'])}"
        )  # fmt: skip
        epochs = first.values["epochs"]
        words = f"searched, {first.how}, {epochs} epoch{'' if epochs == 1 else 's'}{data}"
        rows.append(
            Row(SEARCHED, words + _node_words(nodes), tuple(by_key[key] for key in keys), space,
                tuple(taken), len(given))
        )  # fmt: skip
    seen = Counter((row.space, row.words) for row in rows)
    return [
        replace(row, words=f"{row.words} ({_digits(row.searches[0].method)})")
        if seen[row.space, row.words] > 1
        else row
        for row in rows
    ]


# ---- tables ----


def search_tables(results: Sequence[dict[str, Any]], trained: Sequence[Result]) -> list[Table]:
    """Trained cells, one table for each recipe; then the searches, one for each data set.

    Args:
        results: Of `scripts/search.py`.
        trained: Of `scripts/train.py`, networks of cells only.

    Raises:
        InputError: Two trainings of the same seed have different results.
    """
    searches = searches_of(results)
    tables = [
        _cells_table(recipe, rows_of(cells, searches))
        for recipe, cells in trained_cells(trained).items()
    ]
    tasks = dict.fromkeys(one.task for one in searches)
    slugs = [re.sub(r"[^a-z0-9]+", "_", f"{data[:MOST_TEXT]}_{size}".lower())
             for data, size in tasks]  # fmt: skip
    for number, (task, slug) in enumerate(zip(tasks, slugs, strict=True)):
        again = f"_{number}" if slug in slugs[:number] else ""
        part = [one for one in searches if one.task == task]
        tables.append(_searches_table(f"searches_{slug}{again}", part))
    return tables


def _cells_table(recipe: Recipe, rows: Sequence[Row]) -> Table:
    """Trained cells of one recipe."""
    first = rows[0].results[0]
    every = [cell for row in rows for cell in row.cells]
    full_size = any(
        cell.genotype.count_params() != cell.results[0].values["num_params"] for cell in every
    )
    bases = {(row.space, row.nodes): row for row in rows if row.origin == RANDOM}
    cells = [
        (
            row.space_words, row.words, mean_of(row.top1s), _search_count(row),
            str(len(row.cells)), str(len(row.results)), row.mean_params(),
            *([row.mean_params(full_size=True)] if full_size else []), _mean_skips(row),
            _relative_improvement(row, bases.get((row.space, row.nodes))),
        )
        for row in rows
    ]  # fmt: skip
    data = first.protocol.config["data"]
    slug = f"{data['name'][:MOST_TEXT]}_{data['eval_size']}_{first.values['epochs']}"
    slug = re.sub(r"[^a-z0-9]+", "_", slug.lower())
    at_full_size = ("at 36 channels, 20 cells, M",) if full_size else ()
    return Table(
        f"cells_{slug}_{recipe.short}",
        f"Trained cells: {recipe.words}",
        ("space", "cells", "top-1, %", "searches", "genotypes", "trainings", "params, M",
         *at_full_size, "skips", "RI, %"),
        tuple(cells),
        footnotes([], set(), *_cells_remarks(rows)),
        2,
        TASK,
    )  # fmt: skip


def _cells_remarks(rows: Sequence[Row]) -> list[str]:
    remarks = [
        "Top-1 in per cent after the last epoch; all that is given counts, nothing is picked out. "
        "±: standard deviation, over the trainings of all searches of a row, for random cells over "
        "the cells.",
        "RI: relative improvement over random, 100 (top-1 − random) / random, with the mean of the "
        "space's random cells (Yang, Esperança and Carlucci, arXiv 1912.12522); 0: no better than "
        "chance.",
        f"Parameters alone prove nothing: 1,000 random cells of DARTS' own space have "
        f"{RANDOM_RANGE[0]} to {RANDOM_RANGE[1]} M at 36 channels and 20 cells, 95 % of them "
        f"{RANDOM_MOST[0]} to {RANDOM_MOST[1]} M.",
        "Skips: skip connections of the normal cell, of two edges for each node.",
    ]
    remarks += _not_all_trained(rows)
    remarks.append(_our_choices(cell.genotype for row in rows for cell in row.cells))
    results = [one for row in rows for one in row.results]
    if not all(map(_is_whole_cifar10, results)):
        data = _short(results[0].values["data"])
        what = "not the whole of CIFAR-10" if data == PAPERS_DATA else "not CIFAR-10"
        remarks.append(f"{data} is {what}: nothing published compares.")
    elif not all(map(_of_the_paper, results)):
        remarks.append(
            f"Published numbers are of {PAPERS_EPOCHS} epochs, {CHANNELS} channels and {CELLS} "
            "cells: they do not compare with these."
        )
    return remarks


def _not_all_trained(rows: Sequence[Row]) -> list[str]:
    if all(len(row.searches) == row.given for row in rows):
        return []
    return ["n of m: of the m searches that are given, n have a trained cell here."]


def _searches_table(name: str, searches: Sequence[Search]) -> Table:
    """Searches on one data set, each by itself."""
    rows = tuple(
        (
            space_words(one.space), operators_in_words(one.genotype),
            one.how, str(one.values["seed"]), str(one.values["epochs"]),
            f"{one.values['num_params'] / 1e6:.3f}", f"{one.values['top1']:.2f}",
            str(one.genotype.skips), f"{one.values['entropy']:.2f}",
            f"{one.genotype.count_params() / 1e6:.3f}", genotype_words(one.genotype.to_plain()),
        )
        for one in searches
    )  # fmt: skip
    data, size = searches[0].task
    return Table(
        name,
        f"Searches: {_short(data)}, {size} px",
        ("space", "operators of the normal cell", "how", "seed", "epochs", "supernet, M",
         "top-1, shared weights", "skips", "entropy", "cell at 36 channels, 20 cells, M",
         "genotype"),
        rows,
        footnotes(
            [], set(),
            "Top-1 with shared weights: of the supernet, on the training images that its weights "
            "don't learn from; it tells little of what a cell is worth.",
            "Entropy: that of the alphas' softmax, mean over the edges, over its maximum; 1 is "
            "undecided. Skips: skip connections of the normal cell; many where a search collapsed.",
            "Genotype: six digits that tell cells apart.",
            _our_choices(one.genotype for one in searches),
        ),
        2,
        TASK,
    )  # fmt: skip


def operators_in_words(genotype: Genotype) -> str:
    """Operators of the normal cell, the most frequent ones first: "sep_conv_3x3 × 3, ..."."""
    counted = Counter(operator for operator, _ in genotype.normal)
    return ", ".join(f"{name} × {times}" for name, times in counted.most_common())


BESIDE = {
    "DARTS": "darts",
    "DARTS with inverted residuals": "darts_inverted_residual",
    "DARTS with sandglass blocks": "darts_sandglass",
}
"""Spaces whose searches of ours stand in a row of paper.yaml."""
README_ROW = "DARTS, its own README, mean of ten"
"""The row beside which our trainings of DARTS' published cell stand."""


def published_search(results: Sequence[dict[str, Any]], trained: Sequence[Result]) -> Table:
    """The paper's last experiment beside ours: DARTS, with inverted residuals, with sandglass.

    Args:
        results: Of `scripts/search.py`.
        trained: Of `scripts/train.py`, networks of cells only; those that are not of CIFAR-10 at
            DARTS' size and length stand in tables of their own.
    """
    searches = [one for one in searches_of(results) if one.of_the_paper]
    ours = [
        row
        for cells in trained_cells(trained).values()
        for row in rows_of(cells, searches)
        if row.origin in (SEARCHED, PUBLISHED) and all(map(_of_the_paper, row.results))
    ]
    ours.sort(key=lambda row: -len(row.results))
    tags: set[str] = set()
    notes: list[str] = []
    rows, shown = [], []
    for published in published_table("darts"):
        row = next((one for one in ours if _stands_beside(one, published.name)), None)
        shown += [row] if row is not None else []
        expected = published.name in (*BESIDE, README_ROW)
        mine = _ours(row) if row is not None else (NOT_MEASURED * expected, "", "", "")
        name = f"{published.name}{marks(published.notes, notes)}"
        rows.append((name, *_published(published, tags), *mine))
    remarks = [
        f"Ours: all searches and trainings of CIFAR-10, whole ({PAPERS_IMAGES:,} test images, "
        f"{PAPERS_SIZE} px), {PAPERS_SEARCH_EPOCHS} and {PAPERS_EPOCHS} epochs or more, DARTS' own "
        f"way of searching, {CHANNELS} channels, {CELLS} cells; of several recipes that with the "
        "most trainings. Nothing else stands here. ±: standard deviation over the trainings.",
        "Beside DARTS' README: our trainings of the cell that its authors published.",
        *_not_all_trained(shown),
        _our_choices(cell.genotype for row in shown for cell in row.cells),
    ]
    return Table(
        "search_paper",
        "Search: the paper and DARTS, CIFAR-10",
        ("cells", "published: params, M", "top-1, %", "error, %", "ours: error, %", "searches",
         "trainings", "params, M"),
        tuple(rows),
        footnotes(notes, tags, *remarks),
        measured=bool(shown),
    )  # fmt: skip


def _published(row: NamedRow, tags: set[str]) -> list[str]:
    """Parameters, top-1 and error as they were published; of a difference with signs and units."""
    cells = []
    for key in ("params", "top1", "error"):
        number = row.numbers.get(key)
        if number is None:
            cells.append("")
            continue
        text = published_cell(number, tags)
        if row.name.endswith("difference"):
            unit = "%" if key == "params" else "points"
            text = f"{number.value:+g} {unit} [{number.tag}]".replace("-", "−")
        cells.append(text)
    return cells


def _stands_beside(row: Row, name: str) -> bool:
    if row.origin == PUBLISHED:
        return name == README_ROW
    return BESIDE.get(name) == row.space and row.nodes == NODES


def _ours(row: Row) -> tuple[str, ...]:
    errors = [100 - top1 for top1 in row.top1s]
    return mean_of(errors), _search_count(row), str(len(row.results)), row.mean_params()


# ---- numbers and words ----


def _search_count(row: Row) -> str:
    if not row.searches:
        return ""
    count = str(len(row.searches))
    return count if len(row.searches) == row.given else f"{count} of {row.given}"


def _mean_skips(row: Row) -> str:
    return f"{statistics.fmean(cell.genotype.skips for cell in row.cells):.1f}"


def _relative_improvement(row: Row, base: Row | None) -> str:
    """Of what was searched over its space's random cells, in per cent."""
    if row.origin != SEARCHED:
        return ""
    if base is None:
        return NOT_MEASURED
    settings = _settings(cell.genotype for cell in (*row.cells, *base.cells))
    if len(settings) > len({name for name, _ in settings}):
        return "other settings"  # of an operator: two spaces under one name
    random = statistics.fmean(base.top1s)
    if random <= 0:
        return NOT_MEASURED
    return signed(100 * (statistics.fmean(row.top1s) - random) / random)


def _settings(genotypes: Iterable[Genotype]) -> list[tuple[str, BlockSettings]]:
    """Operators with settings that cells have, each with every setting that occurs."""
    found = {
        (name, getattr(genotype, name))
        for genotype in genotypes
        for name in BLOCKS
        if name in genotype.to_plain()
    }
    return sorted(found, key=str)


def _our_choices(genotypes: Iterable[Genotype]) -> str:
    """The sentence on what the paper does not say."""
    chosen = [
        f"{name.replace('_', ' ')} with {one.kernel}x{one.kernel} kernels, ratio {one.ratio} and "
        f"{'a' if one.shortcut else 'no'} shortcut"
        for name, one in _settings(genotypes)
    ]
    here = f" Here: {'; '.join(chosen)}." if chosen else ""
    return (
        "The paper published no genotype, and of its sandglass operator neither kernel, ratio nor "
        f"shortcut: these are our choice.{here}"
    )


def _is_whole_cifar10(result: Result) -> bool:
    """Whether a network was trained and tested on all images of CIFAR-10, as they are."""
    values, data = result.values, result.values["config"]["data"]
    seen = values.get("images_seen", math.inf)
    unreadable = values.get("unreadable_images", {})
    return (
        values["data"] == data["name"] == PAPERS_DATA
        and data["image_size"] == data["eval_size"] == PAPERS_SIZE
        and not data.get("reencoded")
        and values["count"] == PAPERS_IMAGES
        and isinstance(seen, int | float)
        and seen >= 0.99 * PAPERS_TRAINING_IMAGES * values["epochs"]  # whole batches leave some out
        and isinstance(unreadable, dict)
        and not any(unreadable.values())
    )


def _of_the_paper(result: Result) -> bool:
    """Whether a network may stand beside the paper's: DARTS' size, as long, no given weights."""
    network = result.values["config"]["model"]["network"]
    size = tuple(network.get(key, 1) for key in (*SIZES, "stem_stride", "width_mult"))
    return (
        _is_whole_cifar10(result)
        and size == (CHANNELS, CELLS, 1, 1)
        and result.values["epochs"] >= PAPERS_EPOCHS
        and not result.values["config"].get("init_from")
    )


def space_words(space: str) -> str:
    """A search space in words."""
    return SPACE_WORDS.get(space, _short(space))


def _named_words(name: str) -> str:
    """A name of `named_genotypes` in words."""
    found = re.fullmatch(r"darts_v2_(\w+?)(\d)", name)
    if found is None:
        return "DARTS_V2, its authors' cell"
    return f"DARTS_V2 with {found[2]} × {found[1].replace('_', ' ')}"


def _drawn(typed: str) -> tuple[str, str] | None:
    """Space of a random cell and the parameters that were asked for, from what was typed.

    Returns:
        For instance ("darts_sandglass", "2.45M"), or ("darts", "") if none were asked for; None if
        the text names no random cell.
    """
    if not RANDOM_CELL.fullmatch(typed):
        return None
    parts = typed.split(":")[2:]
    space = next((part for part in parts if part in SPACES), "darts")
    return space, next((part for part in parts if TARGET.fullmatch(part)), "")


def _node_words(nodes: int) -> str:
    return "" if nodes == NODES else f", {nodes} node{'s' if nodes > 1 else ''}"


def _key(genotype: Genotype) -> str:
    return json.dumps(genotype.to_plain(), sort_keys=True)


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _place(space: str) -> tuple[int, str]:
    """A space's place in the order of tables; "" comes last."""
    known = list(SPACES)
    return (known.index(space) if space in known else len(known)), space


def _short(value: Any, most: int = MOST_TEXT) -> str:
    text = str(value)
    return printable(text if len(text) <= most else f"{text[: most - 3]}...")


def is_number(value: Any) -> bool:
    """Whether a value out of a file is a number that can be reckoned with."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) < 1e15 and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return is_number(value) and isinstance(value, int)


def _check(holds: bool, place: str, expected: str, got: Any) -> None:
    if not holds:
        raise InputError(f"{place}: expected {expected}, got {_short(repr(got))}")
