"""The table of what networks cost, beside what was published."""

from collections.abc import Sequence
from dataclasses import dataclass

from mobilenext.tables.cells import cost_cells, footnotes, published_cell
from mobilenext.tables.labels import labels
from mobilenext.tables.paper import published_of
from mobilenext.tables.render import Table


@dataclass(frozen=True)
class Network:
    """A network of configs/model at width 1.0, and its cost at 224 px with 1,000 classes."""

    model: str
    arguments: str
    """As `Result.arguments` has them."""
    params: int
    madds: int


def complexity_table(networks: Sequence[Network]) -> Table:
    """Cost of each network, beside what was published.

    Raises:
        InputError: A network has no label.
    """
    tags: set[str] = set()
    rows = []
    for network in networks:
        labels().check_label(network.model)
    for network in sorted(networks, key=lambda one: labels().place(one.model)):
        numbers, _ = published_of(network.model)
        params, madds = cost_cells(network.params, network.madds)
        published = [
            published_cell(number, tags, unit) if number else "–"
            for number, unit in ((numbers.get("params"), ""), (numbers.get("madds"), "madds"))
        ]
        label = labels().label(network.model)
        rows.append((label, network.model, published[0], params, published[1], madds))
    return Table(
        "complexity",
        "What the networks cost at width 1.0, 224 px and 1,000 classes",
        ("network", "name", "params, M: published", "ours", "MAdds, M: published", "ours"),
        tuple(rows),
        footnotes(
            [],
            tags,
            "MAdds: multiply-adds of convolutions and linear layers. The published parameters of "
            "mnext_s and mnext_l include 2,560 that their code never uses; ours do not.",
        ),
        text_columns=2,
        measured=False,
    )
